# Copyright (c) monai_usfm contributors
# SPDX-License-Identifier: Apache-2.0
"""Splits in memory, for probes and audits."""

from __future__ import annotations

import json

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.transforms import Compose, Resized
from PIL import Image

from monai_usfm.data import LoadUltrasoundd
from monai_usfm.evaluation import load_images, read_items


@pytest.fixture
def folder(tmp_path):
    rng = np.random.default_rng(0)
    items = []
    for i in range(5):
        Image.fromarray(rng.integers(0, 256, (30, 44), dtype=np.uint8)).save(tmp_path / f"{i}.png")
        mask = np.zeros((30, 44), np.uint8)
        mask[:15] = 255
        Image.fromarray(mask).save(tmp_path / f"{i}_mask.png")
        items.append({"image": f"{i}.png", "label": f"{i}_mask.png", "class": i % 2, "patient": f"p{i // 2}"})
    (tmp_path / "dataset.json").write_text(json.dumps({"training": items}))
    return tmp_path


def test_images_are_those_that_the_bundles_see(folder):
    found = load_images(read_items(str(folder / "dataset.json"), "training"), (16, 24), num_classes=2)
    read = Compose([LoadUltrasoundd("image"), Resized("image", (16, 24), mode="bilinear", anti_aliasing=True)])
    for i in range(5):
        wanted = read({"image": str(folder / f"{i}.png")})["image"].as_tensor()
        torch.testing.assert_close(found.images[i], wanted)
    assert found.patients == ["p0", "p0", "p1", "p1", "p2"]
    assert found.classes.tolist() == [0, 1, 0, 1, 0]
    assert found.labels.shape == (5, 16, 24)
    assert found.labels[:, :8].all() and not found.labels[:, 8:].any()


def test_a_limit_takes_images_evenly(folder):
    items = read_items(str(folder / "dataset.json"), "training", limit=3)
    assert [item["image"].rpartition("/")[2] for item in items] == ["0.png", "2.png", "4.png"]
    assert len(read_items(str(folder / "dataset.json"), "training", limit=4)) == 4


def test_volumes_go_through_the_same_code(tmp_path):
    nib.save(nib.Nifti1Image(np.full((20, 16, 12), 100, np.uint8), np.eye(4)), tmp_path / "a.nii.gz")
    found = load_images([{"image": str(tmp_path / "a.nii.gz"), "patient": "p"}], (8, 8, 8))
    assert found.images.shape == (1, 1, 8, 8, 8) and found.classes is None and found.labels is None


def test_items_without_label_are_named(folder):
    items = read_items(str(folder / "dataset.json"), "training")
    del items[3]["label"]
    with pytest.raises(ValueError, match=r"1 items lack the key 'label', the first is .*3\.png"):
        load_images(items, (16, 16), num_classes=2)
