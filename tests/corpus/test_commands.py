# Copyright (c) monai_usfm contributors
# SPDX-License-Identifier: Apache-2.0
"""A sample of the corpus by the real command: its exit status, and the last line that it writes."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))
import odd_files

from monai_usfm import build_network, save_network

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]
SMALL = {"num_layers": 4, "hidden_size": 48, "mlp_dim": 96, "num_heads": 3}
NOBODY = 65534
Change = Callable[[Path], dict[str, Any] | None]


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder that everybody may read, with the plain images, their lists, weights and a folder of results."""
    with tempfile.TemporaryDirectory() as made:
        data = Path(made) / "data"
        items = odd_files.plain_folder(data)
        odd_files.write_lists(data, items[:1], items)
        network = build_network("segmentation", None, spatial_size=[32, 32], **SMALL)
        save_network(Path(made) / "weights.pt", network.eval())
        assert torch.isfinite(next(network.parameters())).all()
        (Path(made) / "out").mkdir()
        (Path(made) / "out").chmod(0o777)
        Path(made).chmod(0o755)
        yield Path(made)


def damaged(folder: Path) -> None:
    (folder / "data" / "image.png").write_bytes((folder / "data" / "image.png").read_bytes()[:500])


def damaged_in_a_folder(folder: Path) -> dict[str, Any]:
    damaged(folder)
    return {"datalist": "$None"}


def locked(name: str, mode: int = 0o000) -> Change:
    return lambda folder: (folder / name).chmod(mode)


CASES: dict[str, tuple[str, Change, str, int, dict[str, Any]]] = {
    # name: config, change, last line, exit status, how it is started
    "trains": ("train", lambda folder: {}, "", 0, {}),
    "a damaged image": ("train", damaged, "image.png: cannot be decoded", 1, {}),
    "a misspelt option": ("train", lambda folder: {"max_epoch": 1}, "Did you mean --max_epochs", 1, {}),
    "no epochs": ("train", lambda folder: {"max_epochs": 0}, "max_epochs", 1, {}),
    "a damaged image of a folder": ("inference", damaged_in_a_folder, "", 3, {}),
    "no such weights": ("evaluate", lambda folder: {"checkpoint": "gone.pt"}, "gone.pt", 1, {}),
    "a full disk": ("train", lambda folder: {}, "no space is left", 1, {"blocks": 64}),
    "results may not be written": ("train", locked("out", 0o555), "out", 1, {"user": NOBODY}),
    "an image may not be read": ("train", locked("data/image.png"), "image.png", 1, {"user": NOBODY}),
    "weights may not be read": ("inference", locked("weights.pt"), "weights.pt", 1, {"user": NOBODY}),
}


@pytest.mark.parametrize("name", CASES)
def test_the_command_ends_in_a_result_or_in_one_sentence(name: str, folder: Path) -> None:
    workflow, change, last, status, how = CASES[name]
    if "user" in how and os.geteuid() != 0:
        how = {}  # whoever is not root has no right either
    elif "user" in how:
        try:
            subprocess.run([sys.executable, "-c", ""], user=NOBODY, check=True)
        except (PermissionError, subprocess.CalledProcessError):
            pytest.skip("nobody else may run this Python")
    configs = ROOT / "bundles" / "usfm_segmentation" / "configs"
    options: dict[str, Any] = {
        "bundle_root": configs.parent, "dataset_dir": folder / "data", "output_dir": folder / "out", "device": "cpu",
    }  # fmt: skip
    if workflow == "train":
        options |= {
            "pretrained": "null",
            "spatial_size": [32, 32],
            "max_epochs": 1,
            "batch_size": 2,
            "figure_interval": 0,
        }
        options |= {f"plan#{key}": value for key, value in SMALL.items()}
    else:
        options |= {"checkpoint": folder / "weights.pt", "datalist": folder / "data" / "test.json"}
    options |= change(folder) or {}
    files = [
        str(configs / f"{file}.json") for file in (("train", "evaluate") if workflow == "evaluate" else (workflow,))
    ]
    command = [sys.executable, "-m", "monai.bundle", "run", "--config_file", str(files)]
    command += [word for key, value in options.items() for word in (f"--{key}", str(value))]
    if blocks := how.get("blocks"):  # of 1,024 bytes a file: what a disk does that is full
        command = ["bash", "-c", f'ulimit -f {blocks} && exec "$0" "$@"', *command]
    done = subprocess.run(
        command, capture_output=True, text=True, user=how.get("user"), cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1", "HOME": str(folder)},
    )  # fmt: skip
    said = done.stderr.strip().splitlines()
    assert done.returncode == status, said[-3:]
    if status == 1:
        assert said[-1].startswith("error: ") and last in said[-1]
    else:
        assert list((folder / "out").rglob("*.pt" if status == 0 else "failed.csv"))
