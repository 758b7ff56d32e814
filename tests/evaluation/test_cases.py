# Copyright (c) monai_usfm contributors
# SPDX-License-Identifier: Apache-2.0
"""Splits in memory."""

from __future__ import annotations

import argparse

import nibabel as nib
import numpy as np
import pytest
import torch
from PIL import Image

from monai_usfm.data import load_datalist
from monai_usfm.evaluation import (
    add_patient_options,
    add_patients,
    extract_features,
    load_cases,
    patients_of,
    restore_size,
)


def write_case(folder, name: str, shape: tuple[int, int], box: tuple[slice, slice]) -> dict:
    """A grey ramp over rows with a bright box, and its mask of 0 and 255."""
    image = np.repeat(np.linspace(0, 100, shape[0])[:, None], shape[1], 1).astype(np.uint8)
    mask = np.zeros(shape, np.uint8)
    mask[box] = 255
    Image.fromarray(np.where(mask > 0, np.uint8(200), image)).save(folder / f"{name}.png")
    Image.fromarray(mask).save(folder / f"{name}-mask.png")
    return {"image": str(folder / f"{name}.png"), "label": str(folder / f"{name}-mask.png"), "patient": name}


def test_proportions_are_kept_and_the_rest_is_black(tmp_path):
    item = write_case(tmp_path, "a", (60, 30), (slice(0, 30), slice(0, 15)))
    cases = load_cases([item], (32, 32), with_label=True)
    assert cases.images.shape == (1, 1, 32, 32) and cases.images.dtype == torch.uint8
    assert cases.images[0, 0, :, :8].max() == 0 and cases.images[0, 0, :, 24:].max() == 0
    assert cases.labels[0, :16, 8:16].float().mean() == 1 and cases.labels.sum() == 16 * 8
    assert cases.images[0, 0, 4, 12] == 200
    assert cases.truths[0].shape == (60, 30) and set(cases.truths[0].unique().tolist()) == {0, 1}


@pytest.mark.parametrize("shape", [(60, 30), (33, 64), (20, 20)])
def test_restoring_the_size_puts_a_label_map_back(tmp_path, shape):
    item = write_case(tmp_path, "a", shape, (slice(5, 15), slice(8, 18)))
    cases = load_cases([item], (64, 64), with_label=True)
    restored = restore_size(torch.stack([1.0 - cases.labels[0], cases.labels[0].float()]), shape).argmax(0)
    assert restored.shape == shape
    assert (restored != cases.truths[0]).sum() <= 40  # the rim of the box, at most one pixel wide


def test_a_volume_goes_through_the_same_code():
    maps = torch.zeros(2, 16, 16, 16)
    maps[1, :, 4:12] = 1  # 20 x 10 x 20 fills 16 x 8 x 16
    assert bool((restore_size(maps, (20, 10, 20))[1] == 1).all())


def test_values_outside_the_classes_are_named(tmp_path):
    item = write_case(tmp_path, "a", (20, 20), (slice(0, 5), slice(0, 5)))
    with pytest.raises(ValueError, match=r"a-mask\.png: value\(s\) 255 stand for no class"):
        load_cases([item], (16, 16), with_label=True, num_classes=3)


def test_masks_of_several_files_and_values_are_joined(tmp_path):
    first = write_case(tmp_path, "a", (20, 20), (slice(0, 5), slice(0, 5)))
    second = write_case(tmp_path, "b", (20, 20), (slice(10, 20), slice(10, 20)))
    item = {**first, "label": [first["label"], second["label"]]}
    cases = load_cases([item], (20, 20), True, label_values=[255, 0])  # background and structure the other way round
    assert int(cases.truths[0].sum()) == 20 * 20 - 5 * 5 - 10 * 10


def test_options_of_scripts_name_the_column_of_a_table(tmp_path):
    items = [{"image": str(tmp_path / "a.png")}]
    table = tmp_path / "labels.csv"
    table.write_text("image,subject_id\na.png,5\n")
    parser = argparse.ArgumentParser()
    add_patient_options(parser)
    args = parser.parse_args(["--patient_table", str(table), "--patient_column", "subject_id"])
    assert [i["patient"] for i in add_patients(items, tmp_path, **patients_of(args))] == ["5"]
    with pytest.raises(ValueError, match="no column patient_id; it has image, subject_id"):
        add_patients(items, tmp_path, **patients_of(parser.parse_args(["--patient_table", str(table)])))


def test_cases_feed_the_feature_extraction(tmp_path):
    item = write_case(tmp_path, "a", (20, 20), (slice(0, 5), slice(0, 5)))
    cases = load_cases([item, item], (16, 16))
    found = extract_features(torch.nn.Flatten(), cases)["features"]
    torch.testing.assert_close(found, cases.images.flatten(1).float() / 255)


def test_real_masks_survive_the_way_to_network_size_and_back(shared_data):
    folder = shared_data / "busbra"
    items = add_patients(load_datalist(folder / "dataset.json", folder, "test")[:8], folder, folder / "labels.csv")
    cases = load_cases(items, (128, 128), with_label=True)
    for label, truth in zip(cases.labels, cases.truths, strict=True):
        found = restore_size(torch.stack([1.0 - label, label.float()]), truth.shape).argmax(0)
        dice = 2 * (found * truth).sum() / (found.sum() + truth.sum())
        assert dice > 0.96


def test_frames_of_a_cine_are_cases_of_their_own(tmp_path):
    frames = np.arange(1, 6, dtype=np.uint8)[None, None] * np.full((8, 8, 1), 20, dtype=np.uint8)
    nib.save(nib.Nifti1Image(frames, np.eye(4)), tmp_path / "cine.nii.gz")
    nib.save(nib.Nifti1Image((frames > 40).astype(np.uint8), np.eye(4)), tmp_path / "label.nii.gz")
    files = {"image": str(tmp_path / "cine.nii.gz"), "label": str(tmp_path / "label.nii.gz"), "patient": "a"}
    cases = load_cases([{**files, "frame": frame} for frame in (0, 1, 4)], (8, 8), with_label=True)
    assert [int(image.max()) for image in cases.images] == [20, 40, 100]
    assert [int(truth.max()) for truth in cases.truths] == [0, 0, 1]
    assert cases.rows([files["image"]]) == [0, 1, 2]


def test_an_item_without_a_label_is_named(tmp_path):
    item = write_case(tmp_path, "a", (20, 20), (slice(0, 5), slice(0, 5)))
    with pytest.raises(ValueError, match=r"lack the key 'label', the first is .*a\.png"):
        load_cases([{k: v for k, v in item.items() if k != "label"}], (16, 16), with_label=True)


def test_empty_cells_of_a_table_are_no_patient(tmp_path):
    items = [{"image": str(tmp_path / f"{name}.png"), "patient": None} for name in "ab"]
    (tmp_path / "t.csv").write_text("image,patient_id\na.png,1\nb.png,\n", encoding="utf-8-sig")
    with pytest.raises(ValueError, match=r"b\.png is not known"):
        add_patients(items, tmp_path, tmp_path / "t.csv")
    found = add_patients(items, tmp_path, tmp_path / "t.csv", pattern=r"^\w")
    assert [item["patient"] for item in found] == ["1", "b"]
