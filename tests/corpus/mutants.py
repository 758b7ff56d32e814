# Copyright (c) monai_usfm contributors
# SPDX-License-Identifier: Apache-2.0
"""Faults put into a copy of the package one at a time: the tests beside each must fail, or they guard nothing.

``python tests/corpus/mutants.py`` prints a line for each; exit status 1 where one survives. Heavy libraries are
imported once, and each fault runs in a forked process.
"""

from __future__ import annotations

import contextlib
import io
import os
import shutil
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[2]


class Mutant(NamedTuple):
    """``old`` becomes ``new`` in ``file``; ``tests`` (with ``-k``) are to notice."""

    file: str
    old: str
    new: str
    tests: str
    k: str = ""


P, B, T = "monai_usfm", "bundles/usfm_segmentation/configs", "tests"
CHECKPOINT, READ, ODD = f"{P}/handlers/checkpoint.py", f"{P}/networks/weights/read.py", f"{T}/data/test_odd_files.py"
DICOM, PIXELS = f"{T}/data/test_dicom_pixels.py", f"{P}/data/dicom_pixels.py"
LABELS, GRADIENT = f"{P}/transforms/labels.py", f"{P}/handlers/gradient.py"
LOSS = "monai.losses.DiceCELoss(to_onehot_y=True, softmax=True)"
MUTANTS = [
    Mutant(CHECKPOINT, 'torch.load(self.path, map_location="cpu", weights_only=True)',
           'torch.load(self.path, map_location="cpu", weights_only=False)', f"{T}/handlers/test_checkpoint.py", "never_runs"),
    Mutant(READ, 'torch.load(path, map_location="cpu", weights_only=True)',
           'torch.load(path, map_location="cpu", weights_only=False)', f"{T}/networks/test_weights.py", "code"),
    Mutant(GRADIENT, "IterationEvents.LOSS_COMPLETED, self)", "IterationEvents.MODEL_COMPLETED, self)",
           f"{T}/handlers/test_gradient.py", "before_the_weights_change"),
    Mutant(f"{B}/train.json", LOSS, LOSS.replace("softmax", "sigmoid"), f"{T}/test_bundle_segmentation.py", "loss_is_that"),
    Mutant(LABELS, "<= 1e-3", "<= 1e-9", ODD, "nearly_whole"),
    Mutant(LABELS, "bool((label <= 1).all())", "False", ODD, "zeros_and_ones"),
    Mutant(f"{P}/data/image_files.py", '_PAGED = {"TIFF"', '_PAGED = {"MPO", "TIFF"', ODD, "phones"),
    Mutant(f"{P}/data/image_files.py", "    img = ImageOps.exif_transpose(img)\n    if img.mode in", "    if img.mode in", ODD, "exif"),
    Mutant(f"{P}/data/videos.py", "np.rot90(np.stack(frames), quarters", "np.rot90(np.stack(frames), -quarters", ODD, "video"),
    Mutant(f"{P}/data/videos.py", "frame_time=1 / rate", "frame_time=rate", ODD, "mp4"),
    Mutant(f"{P}/data/grids.py", "apart > 0.5 *", "apart > 500 *", ODD, "backwards"),
    Mutant(f"{P}/data/volumes.py", 'kind not in ("", "domain"', 'kind not in ("list", "", "domain"', ODD, "nrrd"),
    Mutant(f"{P}/data/upright.py", "np.count_nonzero(values > white) <= 1e-3 * values.size):\n            return white",
           "False):\n            return white", ODD, "one_pixel"),
    Mutant(f"{P}/data/splits.py", '{"full_scale": full_scale, **item}', "dict(item)", ODD, "on_the_card"),
    Mutant(f"{P}/data/formats.py", "if not stat.S_ISREG(status.st_mode):", "if False:", ODD, "device"),
    Mutant(PIXELS, "bottom, top = float(low), float(high)", "bottom, top = 0.0, 1.0", DICOM, "window"),
    Mutant(PIXELS, 'dataset.PhotometricInterpretation == "MONOCHROME1"\n', "False\n", DICOM, "inverse"),
    Mutant(f"{P}/data/dicom.py", "or not self._scales_differ(dataset)", "or True", DICOM, "scale_of_one"),
    Mutant(f"{P}/data/deidentify.py", "element.VR in _BULK and", "False and", f"{T}/data/test_deidentify.py", "overlays"),
    Mutant(f"{P}/data/deidentify.py", "_STANDARD = \"1.2.840.10008.\"", "_STANDARD = \"1.2\"", f"{T}/data/test_deidentify.py", "overlays"),
    Mutant(f"{P}/data/datalist.py", 'if key in ("patient", "patient_id", "organ")', "if key in ()", f"{T}/data/test_datalist.py", "names_become"),
    Mutant(f"{P}/data/datalist.py", "if len(where) > 1\n", "if len(where) > 2\n", f"{T}/data/test_datalist.py", "two_splits"),
]  # fmt: skip


def survives(mutant: Mutant) -> str:
    """Empty where the tests notice the fault; else what they said."""
    with tempfile.TemporaryDirectory() as folder:
        for part in ("monai_usfm", "bundles", "tests"):
            shutil.copytree(ROOT / part, Path(folder) / part, ignore=shutil.ignore_patterns("*.pt", "__pycache__"))
        shutil.copy(ROOT / "pyproject.toml", folder)
        file = Path(folder) / mutant.file
        text = file.read_text()
        if text.count(mutant.old) != 1:
            return f"{mutant.file} holds {text.count(mutant.old)} times {mutant.old!r}: bring the mutant up to date"
        file.write_text(text.replace(mutant.old, mutant.new))
        read, write = os.pipe()
        if (child := os.fork()) == 0:
            os.close(read)
            os.chdir(folder)
            sys.path[:0] = [folder]
            said = io.StringIO()
            with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
                import pytest

                arguments = ["-q", "-x", "-p", "no:cacheprovider", str(Path(folder) / mutant.tests)]
                status = int(pytest.main([*arguments, "-k", mutant.k] if mutant.k else arguments))
            with os.fdopen(write, "w") as stream:
                stream.write(f"{status} {said.getvalue()[-600:]}")
            os._exit(0)
        os.close(write)
        with os.fdopen(read) as stream:
            status, _, said = stream.read().partition(" ")
        os.waitpid(child, 0)
    return "" if status == "1" else f"status {status}: {said}"


def main() -> int:
    import matplotlib  # noqa: F401 - here, once, for all children
    import monai.bundle
    import monai.engines  # noqa: F401
    import nibabel  # noqa: F401
    import pydicom  # noqa: F401

    left = 0
    for mutant in MUTANTS:
        began = time.time()
        said = survives(mutant)
        left += bool(said)
        change = f"{' '.join(mutant.old.split())[:60]} -> {' '.join(mutant.new.split())[:50]}"
        verdict = f"SURVIVES ({said})" if said else "killed"
        print(f"{verdict} | {mutant.file} | {change} | {time.time() - began:.0f} s", flush=True)
    print(f"{len(MUTANTS) - left} of {len(MUTANTS)} killed")
    return int(left > 0)


if __name__ == "__main__":
    sys.exit(main())
