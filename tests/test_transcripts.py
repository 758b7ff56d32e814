# Copyright (c) monai_usfm contributors
# SPDX-License-Identifier: Apache-2.0
"""The commands of docs/first_hour_transcripts.md, as they stand there, at tiny size."""

from __future__ import annotations

import csv
import re
import shlex
import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from PIL import Image
from pydicom.sequence import Sequence

from monai_usfm import read_card
from monai_usfm.cli import main
from monai_usfm.networks import UltrasoundViT, to_mae_state_dict, to_usfm_state_dict
from tests.dicom_files import region, saved, ultrasound

PAGE = Path(__file__).resolve().parents[1] / "docs" / "first_hour_transcripts.md"
SMALL = ["--max_epochs", "1", "--warmup_epochs", "0", "--device", "cpu", "--figure_interval", "0"]
IMAGES = [*SMALL, "--spatial_size", "[32,32]", "--batch_size", "4"]
VOLUMES = [*SMALL, "--spatial_size", "[8,32,32]", "--crops_per_volume", "1", "--batch_size", "1"]
ARCHITECTURE = ("--network", "--spatial", "--patch", "--in_channels", "--pos_embed", "--layer", "--num_classes")


def commands(heading: str) -> list[list[str]]:
    """Arguments of each ``monai-usfm`` of the code blocks below a heading of the page."""
    part = PAGE.read_text(encoding="utf-8").split(f"\n## {heading}")[1].split("\n## ")[0]
    lines = "\n".join(re.findall(r"```bash\n(.*?)```", part, re.S)).replace("\\\n", " ").splitlines()
    found = [shlex.split(line, comments=True) for line in lines]
    assert all(words[0] == "monai-usfm" for words in found if words)
    return [words[1:] for words in found if words]


def walk(heading: str, more: list[str]) -> list[list[str]]:
    """Run the commands of a part of the page, trainings with ``more`` options; returns them."""
    found = commands(heading)
    for words in found:
        own = more if words[0] == "train" else []
        assert main([*words, *own]) == 0, f"monai-usfm {' '.join(words)}"
    return found


def disk(*shape: int) -> np.ndarray:
    grids = np.meshgrid(*(np.linspace(-1, 1, n) for n in shape), indexing="ij")
    return sum(grid**2 for grid in grids) < 0.4


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A folder with the images that the page speaks of, and the published weights at a small size."""
    monkeypatch.chdir(tmp_path)
    draw = np.random.default_rng(0)
    for folder in ("breast/images", "breast/masks", "new", "liver/images", "liver/labels", "new_volumes"):
        (tmp_path / folder).mkdir(parents=True)
    for patient in range(1, 11):
        inside = disk(40, 48)
        image = draw.integers(0, 120, inside.shape) + 100 * inside
        name = f"patient{patient:02d}.png"
        Image.fromarray(image.astype(np.uint8)).save(tmp_path / "breast" / "images" / name)
        Image.fromarray(255 * inside.astype(np.uint8)).save(tmp_path / "breast" / "masks" / name)
        if patient < 3:
            Image.fromarray(image.astype(np.uint8)).save(tmp_path / "new" / f"new{patient}.png")
        inside = disk(32, 36, 10)
        image = draw.integers(0, 120, inside.shape) + 100 * inside
        name = f"patient{patient:02d}.nii.gz"
        nib.save(nib.Nifti1Image(image.astype(np.uint8), np.eye(4)), tmp_path / "liver" / "images" / name)
        nib.save(nib.Nifti1Image(inside.astype(np.uint8), np.eye(4)), tmp_path / "liver" / "labels" / name)
        if patient == 1:
            nib.save(nib.Nifti1Image(image.astype(np.uint8), np.eye(4)), tmp_path / "new_volumes" / "new1.nii.gz")
    return tmp_path


def results(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if "_seg." in path.name)


def test_a_folder_of_images_is_listed_trained_scored_and_segmented_without_an_architecture_option(here):
    walked = walk("A folder of images", IMAGES)
    assert [words[0] for words in walked] == ["datalist", "train", "evaluate", "predict"]
    assert not [word for words in walked for word in words if word.startswith((*ARCHITECTURE, "--head"))]
    with open(here / "runs" / "breast" / "evaluation" / "cases.csv", encoding="utf-8") as stream:
        assert len(list(csv.DictReader(stream))) >= 1
    assert results(here / "runs" / "breast" / "predictions") == ["new1_seg.png", "new2_seg.png"]


def test_the_head_is_named_in_training_alone(here):
    walked = walk("Another head", IMAGES)
    assert [words[0] for words in walked if "--head" in words] == ["train"]
    assert read_card(here / "runs" / "upernet" / "model.pt")["network"]["head"] == "upernet"
    assert len(results(here / "runs" / "upernet" / "predictions")) == 2


def test_published_weights_decide_the_network(here):
    sizes = {"hidden_size": 24, "mlp_dim": 96, "num_layers": 4, "num_heads": 2, "in_channels": 3, "patch_size": 16}
    usfm = UltrasoundViT(img_size=64, pos_embed="relative", layer_scale=0.1, **sizes)
    torch.save({"model": to_usfm_state_dict(usfm)}, here / "USFM_latest.pth")
    torch.save(
        {"model": to_mae_state_dict(UltrasoundViT(img_size=64, pos_embed="sincos", **sizes))}, here / "USF-MAE.pth"
    )
    walk("Published weights", IMAGES)
    for name, positions in (("usfm", "relative"), ("usf_mae", "sincos")):
        network = read_card(here / "runs" / name / "model.pt")["network"]
        assert (network["hidden_size"], network["num_layers"], network["pos_embed"]) == (24, 4, positions)


def test_volumes_need_their_axes_once(here):
    walked = walk("Volumes", VOLUMES)
    assert [words[0] for words in walked if "--spatial_dims" in words] == ["train"]
    assert results(here / "runs" / "liver" / "predictions") == ["new1_seg.nii.gz"]


def test_dicom_is_measured_in_mm_and_leaves_without_names(here, repository):
    regions = Sequence([region((0, 4, 47, 39))])  # one that covers all of the image is refused
    for name in ("one", "two"):
        pixels = np.asarray(Image.open(here / "breast" / "images" / "patient01.png"))
        (here / "studies" / "DOE").mkdir(parents=True, exist_ok=True)
        saved(here / "studies" / "DOE", ultrasound(pixels, SequenceOfUltrasoundRegions=regions), f"DOE_{name}.dcm")
    walk("DICOM", [])
    with open(here / "runs" / "dicom" / "statistics.csv", encoding="utf-8") as stream:
        assert {row["unit"] for row in csv.DictReader(stream)} == {"mm"}
    written = sorted((here / "runs" / "png").rglob("*.png"))
    assert len(written) == 2 and "DOE" not in str([path.relative_to(here) for path in written])


def test_the_package_alone_needs_a_weight_file_only(here, repository):
    part = PAGE.read_text(encoding="utf-8").split("## The package alone")[1]
    code = re.search(r"```python\n(.*?)```", part, re.S).group(1)
    weights = repository / "bundles" / "usfm_segmentation" / "models" / "model"
    (here / "runs" / "breast").mkdir(parents=True)
    for ending in (".pt", ".json"):
        shutil.copy(weights.with_suffix(ending), here / "runs" / "breast" / f"model{ending}")
    names = {"images": torch.rand(1, 1, 192, 192)}
    exec(code, names)
    assert names["masks"].shape == (1, 192, 192) and not names["network"].training
