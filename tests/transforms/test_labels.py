# Copyright (c) monai_usfm contributors
# SPDX-License-Identifier: Apache-2.0
"""Label values to class indices: every value is a class or an error."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from PIL import Image

from monai_usfm.data import LoadUltrasound
from monai_usfm.transforms import LabelIndices, LabelIndicesd


@pytest.mark.parametrize("shape", [(1, 4, 5), (1, 3, 4, 5)])
def test_values_become_the_index_of_their_class(shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    index = torch.randint(0, 3, shape)
    values = [0, 128, 7]
    stored = torch.tensor(values)[index].float()
    before = stored.clone()
    found = LabelIndices(3, values)(stored)
    assert torch.equal(found.as_tensor().long(), index)
    assert found.dtype == torch.uint8
    assert torch.equal(stored, before)


def test_indices_are_taken_as_they_are() -> None:
    label = torch.tensor([[[0.0, 1.0, 2.0]]])
    assert LabelIndices(3)(label).tolist() == [[[0, 1, 2]]]


@pytest.mark.parametrize(
    "stored, wanted", [([0, 255], [0, 1]), ([255, 255], [1, 1]), ([0, 1], [0, 1]), ([0, 0], [0, 0])]
)
def test_two_classes_may_be_stored_as_a_mask_of_0_and_255(stored: list[int], wanted: list[int]) -> None:
    assert LabelIndices(2)(torch.tensor([[stored]])).flatten().tolist() == wanted


def test_a_first_class_that_may_be_no_background_is_told() -> None:
    with pytest.warns(UserWarning, match=r"label_values \[1, 2\]: 1 is taken for the background.* put 0 first"):
        LabelIndices(2, [1, 2])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        LabelIndices(2, [255, 0])


@pytest.mark.parametrize("num_classes, stored", [(2, [0, 1, 255]), (2, [0, 2]), (3, [0, 255]), (2, [0, 0.5])])
def test_value_that_is_no_class_is_named_with_its_file(num_classes: int, stored: list[float]) -> None:
    label = MetaTensor(torch.tensor([[stored]]), meta={"filename_or_obj": "case_7.png"})
    shown = rf"case_7\.png: value\(s\) .*{stored[-1]:g}.* stand for no class.* choose some that have these classes"
    with pytest.raises(ValueError, match=shown):
        LabelIndices(num_classes)(label)


def discs(levels: list[int], path: Path, quality: int = 75) -> tuple[np.ndarray, str]:
    """A disc of each class but the first, written as JPEG; the class of each pixel."""
    y, x = np.mgrid[:96, :128]
    index = np.zeros(y.shape, dtype=np.uint8)
    for number in range(1, len(levels)):
        index[(y - 48) ** 2 + (x - 40 * number) ** 2 < 15**2] = number
    Image.fromarray(np.array(levels, dtype=np.uint8)[index]).save(path, quality=quality)
    return index, str(path)


@pytest.mark.parametrize("levels, values", [([0, 255], None), ([0, 128, 255], [0, 128, 255]), ([255, 0], [255, 0])])
@pytest.mark.parametrize("quality", [50, 95])
def test_masks_stored_as_jpeg_take_the_nearest_class(tmp_path, levels, values, quality) -> None:
    index, path = discs(levels, tmp_path / "mask.jpg", quality)
    stored = LoadUltrasound(scale=None)(path)
    assert len(stored.unique()) > len(levels)
    found = LabelIndices(len(levels), values)(stored)
    assert found.dtype == torch.uint8 and (found[0].numpy() != index).mean() < 0.005


@pytest.mark.parametrize("quality", [60, 95])
def test_a_structure_of_a_jpeg_that_stands_for_no_class_is_refused(tmp_path, quality) -> None:
    _, path = discs([0, 128, 255], tmp_path / "three.jpg", quality)
    with pytest.raises(ValueError, match=r"three\.jpg: a part of value 12\d stands for no class; expected \[0, 255\]"):
        LabelIndices(2)(LoadUltrasound(scale=None)(path))


def test_a_jpeg_that_does_not_tell_its_classes_apart_is_refused(tmp_path) -> None:
    _, path = discs([0, 1, 2], tmp_path / "indices.jpg")
    with pytest.raises(ValueError, match=r"indices\.jpg: JPEG does not keep .* \[0, 1, 2\] apart; store it as PNG"):
        LabelIndices(3)(LoadUltrasound(scale=None)(path))
    ramp = np.repeat(np.arange(128, dtype=np.uint8)[None] * 2, 96, 0)
    Image.fromarray(ramp).save(tmp_path / "gray.jpg")
    with pytest.raises(ValueError, match=r"gray\.jpg: JPEG does not keep"):
        LabelIndices(2)(LoadUltrasound(scale=None)(tmp_path / "gray.jpg"))


@pytest.mark.parametrize("values", [[0, 1, 2], [5, 5], [0, 0.5], [0.5, 1]])
def test_values_must_be_one_per_class_whole_and_different(values: list[int]) -> None:
    with pytest.raises(ValueError, match="2 different whole numbers"):
        LabelIndices(2, values)


def test_metadata_is_kept() -> None:
    label = MetaTensor(torch.zeros(1, 2, 2), affine=torch.diag(torch.tensor([2.0, 3.0, 1.0, 1.0])))
    assert torch.equal(LabelIndices(2)(label).affine, label.affine)


def test_dictionary_form_does_the_same() -> None:
    label = torch.tensor([[[0, 255]]])
    item = {"image": torch.rand(1, 1, 2), "label": label, "organ": "liver"}
    found = LabelIndicesd("label", 2)(item)
    assert torch.equal(found["label"], LabelIndices(2)(label))
    assert found["organ"] == "liver" and item["label"] is label


def test_label_on_another_grid_than_its_image_is_refused() -> None:
    label = MetaTensor(torch.zeros(1, 4, 5), meta={"filename_or_obj": "case_7.png"})
    with pytest.raises(ValueError, match=r"case_7\.png: the label has size \(4, 5\), its image \(5, 4\)"):
        LabelIndicesd("label", 2)({"image": torch.zeros(1, 5, 4), "label": label})
    LabelIndicesd("label", 2, image_key=None)({"image": torch.zeros(1, 5, 4), "label": label})


def test_more_classes_than_bytes_tell_are_refused():
    with pytest.raises(ValueError, match="num_classes must be at most 256"):
        LabelIndices(257)


def ring(size: tuple[int, int], center: tuple[float, float], radius: float, thickness: float) -> np.ndarray:
    rows, columns = np.indices(size)
    distance = np.hypot(rows - center[0], columns - center[1])
    return (distance <= radius) & (distance > radius - thickness)


@pytest.mark.parametrize("thickness", [1.5, 6])
@pytest.mark.parametrize("slices", [(), (3,)])
def test_closed_lines_are_what_they_enclose(thickness: float, slices: tuple[int, ...]) -> None:
    outer, inner = ((50, 40), 36.0), ((50, 46), 22.0)
    label = 2 * ring((100, 90), *outer, thickness) + 1 * ring((100, 90), *inner, thickness)  # one within another
    wanted = np.where(ring((100, 90), *outer, 99), 2, 0)
    wanted[ring((100, 90), *inner, 99)] = 1
    given = torch.from_numpy(np.broadcast_to(label, (1, *slices, 100, 90)).copy())
    transform = LabelIndices(3)
    with pytest.warns(UserWarning, match="closed lines") as caught:
        found = transform(given), transform(given)
    assert len(caught) == 1  # of all files
    assert all(np.array_equal(one[0], np.broadcast_to(wanted, (*slices, 100, 90))) for one in found)
    assert np.array_equal(LabelIndices(3, fill_outlines=False)(given), given)


def test_among_outlines_one_that_is_not_closed_is_told() -> None:
    closed = ring((100, 90), (50, 40), 36, 3)[None].astype(np.uint8)
    cut, area = closed[:, :60], ring((100, 90), (50, 40), 36, 40)[None].astype(np.uint8)
    transform = LabelIndices(2)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for label in (cut, area, closed, area, cut):
            found = transform(MetaTensor(torch.from_numpy(label), meta={"filename_or_obj": "cut.png"}))
    assert [str(w.message).split(";")[0] for w in caught] == [
        "cut.png: has closed lines around a structure",
        "cut.png: its line is not closed, or covers more than it encloses, and stays a line",
    ]
    assert np.array_equal(found, cut)


@pytest.mark.parametrize("kind", ["wall", "hole", "open", "lines"])
def test_what_is_no_outline_stays_as_it_is(kind: str) -> None:
    label = ring((100, 90), (50, 40), 36, {"wall": 8, "hole": 30}.get(kind, 3))
    if kind == "open":
        label[:, 40:45] = False
    elif kind == "lines":  # two fasciae across the image
        label[:] = False
        label[30:33] = label[70:73] = True
    found = LabelIndices(2)(torch.from_numpy(label[None].astype(np.uint8)))
    assert np.array_equal(found[0], label)


def test_colors_are_values_of_classes(tmp_path: Path) -> None:
    index = np.random.default_rng(0).integers(0, 4, (6, 8))
    colors = np.array([[0, 0, 0], [0, 255, 0], [255, 255, 255], [0, 0, 255]], np.uint8)
    Image.fromarray(colors[index]).save(tmp_path / "a.png")
    label = LoadUltrasound(scale=None)(tmp_path / "a.png")
    found = LabelIndices(4, [0, [0, 255, 0], 255, [0, 0, 255]])(label)
    assert np.array_equal(found[0], index)
    with pytest.raises(
        ValueError,
        match=r"a\.png: value\(s\) 255, 65280 \(as a color \[0, 255, 0\]\), .*\[0, 0, 255\]\) stand for no class",
    ):
        LabelIndices(2, [[0, 0, 0], [255, 0, 0]])(label)
    for values in ([0, [0, 255]], [0, [0, 256, 0]], [0, "green"]):
        with pytest.raises(ValueError, match=r"neither a whole number nor a color such as \[0, 255, 0\]"):
            LabelIndices(2, values)


@pytest.mark.parametrize("size", [(60, 70), (300, 350)])
@pytest.mark.parametrize("resample", [Image.Resampling.BILINEAR, Image.Resampling.BICUBIC, Image.Resampling.LANCZOS])
def test_a_mask_that_was_resized_as_an_image_takes_the_nearest_class(size, resample) -> None:
    mask = Image.fromarray(ring((140, 120), (70, 60), 40, 40).astype(np.uint8) * 255)
    stored, wanted = (np.asarray(mask.resize(size, how)) for how in (resample, Image.Resampling.NEAREST))
    transform = LabelIndices(2)
    with pytest.warns(UserWarning, match="as resizing leaves them") as caught:
        found = [transform(torch.from_numpy(stored[None].copy()))[0].numpy() for _ in range(2)]
    assert len(caught) == 1
    assert ((found[0] > 0) != (wanted > 0)).mean() < 0.01 and found[0].max() == 1


@pytest.mark.parametrize("other", [1, 100, 250])
def test_a_part_of_another_value_is_a_class_that_was_not_named(other: int) -> None:
    stored = 255 * ring((140, 120), (70, 60), 40, 40).astype(np.uint8)
    edge = np.asarray(Image.fromarray(stored).resize((60, 70)).resize((120, 140)))
    named = np.where(ring((140, 120), (70, 60), 6, 6), other, edge)
    with pytest.raises(ValueError, match="stand for no class"):
        LabelIndices(2)(torch.from_numpy(named[None]))
