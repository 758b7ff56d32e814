# Copyright (c) monai_usfm contributors
# SPDX-License-Identifier: Apache-2.0
"""Crops without a structure, and masks that may be empty."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from monai.data import MetaTensor, list_data_collate

from monai_usfm.transforms import PresenceThresholdd, RandBackgroundCropd, presence_score


def logits(sure: float, pixels: int = 40) -> torch.Tensor:
    """``(2, 64, 64)``: ``pixels`` with log-odds ``sure``, all others -8."""
    odds = torch.full((64 * 64,), -8.0)
    odds[:pixels] = sure
    return torch.stack([torch.zeros(64 * 64), odds]).view(2, 64, 64)


def test_score_is_the_mean_of_the_highest_log_odds() -> None:
    # 0.5 % of 4096 pixels are 20: ten at 5, ten at -8.
    assert presence_score(logits(5.0, 10)[None]).item() == pytest.approx((10 * 5 - 10 * 8) / 20)


def test_score_of_several_classes_is_that_of_any() -> None:
    one = logits(3.0)
    two = torch.stack([one[0], one[1] - np.log(2), one[1] - np.log(2)])
    assert presence_score(two[None]).item() == pytest.approx(presence_score(one[None]).item(), abs=1e-5)


@pytest.mark.parametrize(("sure", "marked"), [(4.1, True), (3.9, False)])
def test_mask_is_empty_below_the_threshold(sure: float, marked: bool) -> None:
    result = PresenceThresholdd("pred", 4.0)({"pred": logits(sure)})["pred"]
    assert bool(result.argmax(0).any()) is marked
    assert marked or result.softmax(0)[1].max() < 1e-9


def test_no_threshold_changes_nothing() -> None:
    assert torch.equal(PresenceThresholdd("pred")({"pred": logits(0.1)})["pred"], logits(0.1))


def test_frames_are_judged_one_by_one() -> None:
    cine = torch.stack([logits(5.0), logits(3.0)], dim=1)
    result = PresenceThresholdd("pred", 4.0, frames=True)({"pred": cine})["pred"].argmax(0)
    assert result[0].any() and not result[1].any()


def test_background_crop_is_the_drawn_part_at_the_old_size() -> None:
    image = torch.arange(10.0).repeat(10, 1)[None]  # gray value = column
    label = torch.zeros(1, 10, 10)
    label[:, :, 6:] = 1  # only the left part has three tenths
    crop = RandBackgroundCropd(("image", "label"), prob=1.0)({"image": image, "label": label})
    assert crop["image"].shape == (1, 10, 10) and not crop["label"].any()
    assert crop["image"].max() == pytest.approx(5.0) and crop["image"].min() == pytest.approx(0.0)


def test_a_background_crop_knows_where_it_lies_and_takes_every_key_along() -> None:
    affine = torch.diag(torch.tensor([0.5, 0.25, 1.0, 1.0]))
    image = MetaTensor(torch.arange(20.0).repeat(20, 1)[None], affine=affine)
    label = MetaTensor(torch.zeros(1, 20, 20), affine=affine)
    label[:, :, :10] = 1  # the right half is shown
    crop = RandBackgroundCropd(("image", "label", "fov"), prob=1.0)({"image": image, "label": label, "fov": image})
    for key, first in {"image": 9.75, "label": 9.75, "fov": 9.75}.items():  # twice as wide: half a pixel before 10
        assert (crop[key].affine @ torch.tensor([3.0, 0.0, 0.0, 1.0], dtype=torch.float64))[:2].tolist() == [
            pytest.approx(1.5),
            pytest.approx(0.25 * first),
        ]
        assert crop[key].shape == (1, 20, 20)
    assert not crop["label"].any() and torch.equal(crop["fov"], crop["image"])
    with pytest.raises(ValueError, match="3"):
        RandBackgroundCropd(("image", "label", "fov"), mode=("bilinear", "nearest"))


def test_image_stays_where_no_part_is_large_enough() -> None:
    data = {"image": torch.rand(1, 8, 8), "label": torch.ones(1, 8, 8)}
    assert torch.equal(RandBackgroundCropd(("image", "label"), prob=1.0)(data)["image"], data["image"])


def test_share_of_crops_is_the_probability() -> None:
    label = torch.zeros(1, 8, 8)
    label[:, :4] = 1
    crop = RandBackgroundCropd(("image", "label"), prob=0.25)
    crop.set_random_state(0)
    empty = [not crop({"image": label.clone(), "label": label.clone()})["label"].any() for _ in range(400)]
    assert 0.19 < np.mean(empty) < 0.31


@pytest.mark.parametrize("kind", [torch.as_tensor, MetaTensor])
def test_crops_and_whole_images_can_share_a_batch(kind) -> None:
    label = torch.zeros(1, 8, 8)
    label[:, :4] = 1
    crop = RandBackgroundCropd(("image", "label"), prob=0.5)
    crop.set_random_state(0)
    items = [crop({"image": kind(label.clone()), "label": kind(label.clone())}) for _ in range(8)]
    shown = list_data_collate(items)["label"].flatten(1).any(1)
    assert shown.any() and not shown.all()
