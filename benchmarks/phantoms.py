# Copyright (c) monai_usfm contributors
# SPDX-License-Identifier: Apache-2.0
"""What enhancement does to two images of a test object: contrast of a cyst, speckle, width of a wire.

    python benchmarks/phantoms.py DATA/quality_phantoms bundles/usfm_enhancement/models/model.pt

Beside each enhanced image stands the Gaussian blur that leaves the background the same speckle SNR. The regions were
drawn by hand: discs in the cyst and beside it at the same depth, a box around one wire.
"""

import argparse
import tempfile
from pathlib import Path

import numpy as np
import torch
from scipy.ndimage import gaussian_filter
from scipy.optimize import brentq
from scipy.signal import peak_widths

from monai_usfm.data import LoadUltrasound
from monai_usfm.evaluation.report import markdown_table
from monai_usfm.metrics import CNRMetric, GeneralizedCNRMetric, SpeckleSNRMetric
from monai_usfm.workflow import run_bundle

# (row, column, radius) of the cyst and of its background, (row, column) of the wire, in pixels of the file.
REGIONS = {
    "clarius_resolution": ((237, 491, 40), (237, 382, 40), (478, 225)),
    "butterfly_resolution": ((204, 427, 32), (204, 327, 32), (412, 185)),
}


def disc(shape: tuple[int, int], row: int, column: int, radius: int) -> torch.Tensor:
    rows, columns = np.ogrid[: shape[0], : shape[1]]
    return torch.from_numpy((rows - row) ** 2 + (columns - column) ** 2 <= radius**2)


def width(profile: np.ndarray) -> float:
    """Full width at half the height above what surrounds the highest peak, in pixels."""
    return float(peak_widths(profile, [int(profile.argmax())], rel_height=0.5)[0][0])


def measured(image: np.ndarray, name: str) -> tuple[float, ...]:
    """CNR, gCNR, speckle SNR of the background, wire width along rows and along columns."""
    cyst, background, (row, column) = REGIONS[name]
    masks = torch.stack([disc(image.shape, *cyst), disc(image.shape, *background)])[None].float()
    batch = torch.from_numpy(image)[None, None].float()
    scores = [metric(batch, masks) for metric in (CNRMetric(), GeneralizedCNRMetric())]
    snr = SpeckleSNRMetric()(batch, masks[:, 1:])
    box = image[row - 14 : row + 15, column - 22 : column + 23]
    top, left = np.unravel_index(box.argmax(), box.shape)
    return *(float(score) for score in (*scores, snr)), width(box[:, left]), width(box[top])


def like_blur(image: np.ndarray, name: str, snr: float) -> tuple[str, np.ndarray]:
    """The Gaussian blur after which the background has this speckle SNR."""
    sigma = brentq(lambda s: measured(gaussian_filter(image, s), name)[2] - snr, 0.01, 5.0)
    return f"blur, sigma {sigma:.2f}", gaussian_filter(image, sigma)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("checkpoint")
    options = parser.parse_args()
    read = LoadUltrasound()
    rows = []
    with tempfile.TemporaryDirectory() as scratch:
        run_bundle(
            "enhancement", "predict", dataset_dir=str(options.folder), output_dir=scratch, checkpoint=options.checkpoint
        )
        for name in REGIONS:
            image = read(options.folder / f"{name}.png")[0].numpy()
            enhanced = read(next(Path(scratch).rglob(f"{name}*.png")))[0].numpy()
            label, blurred = like_blur(image, name, measured(enhanced, name)[2])
            kinds = {"image": image, "enhanced": enhanced, label: blurred}
            rows += [(name, kind, *(f"{v:.3g}" for v in measured(x, name))) for kind, x in kinds.items()]
    print(markdown_table(["", "", "CNR", "gCNR", "speckle SNR", "wire, rows", "wire, columns"], rows))


if __name__ == "__main__":
    main()
