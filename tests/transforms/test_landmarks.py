# Copyright (c) monai_usfm contributors
# SPDX-License-Identifier: Apache-2.0
"""Landmarks as heatmaps and back."""

from __future__ import annotations

import math

import pytest
import torch

from monai_usfm.losses import HeatmapLoss, ValueLoss
from monai_usfm.transforms import Landmarksd, draw_heatmaps, soft_argmax, spatial_softmax


def test_soft_argmax_finds_points_below_a_pixel_and_their_spread():
    points = torch.tensor([[20.3, 41.8], [33.71, 12.05]])
    found = soft_argmax(draw_heatmaps(points, (64, 80), 1.5))
    assert torch.allclose(found[:, :2], points, atol=1e-2)
    assert torch.allclose(found[:, 2], torch.full((2,), 1.5), atol=0.01)


def test_the_border_draws_no_point_inwards():
    points = torch.tensor([[0.0, 40.0], [2.0, 79.0], [63.0, 0.0]])
    found = soft_argmax(draw_heatmaps(points, (64, 80), 1.5))
    assert torch.allclose(found[:, :2], points, atol=1e-3)
    assert torch.allclose(found[:, 2], torch.full((3,), 1.5), atol=0.2)


def test_points_keep_their_place_when_the_image_is_resized():
    item = {"image": torch.zeros(1, 60, 90), "landmarks": {"a": [30.0, 14.5], "b": None}}
    target = Landmarksd("landmarks", ["a", "b"], spatial_size=[120, 45], sigma=None)(item)["label"]
    # the edge of the first pixel lies at -0.5: the center of twice as many rows moves by half a row
    assert target[0].tolist() == pytest.approx([(14.5 + 0.5) * 2 - 0.5, (30 + 0.5) / 2 - 0.5])
    assert target[1].isnan().all()
    heat = Landmarksd("landmarks", ["a", "b"], spatial_size=[120, 45])(item)["label"]
    assert soft_argmax(heat)[0].tolist() == pytest.approx([*target[0].tolist(), 0.02 * 120], abs=0.02)
    assert heat[1].sum() == 0


@pytest.mark.parametrize(
    ("landmarks", "words"),
    [
        ({"c": [1, 2]}, "expected an object with a, b"),
        ({"a": [95, 2]}, "within 90 x 60"),
        ({"a": [2, 65]}, "90 x 60"),
        ({"a": "x"}, "expected"),
    ],
)
def test_wrong_landmarks_are_refused_in_one_sentence(landmarks, words):
    with pytest.raises(ValueError, match=words):
        Landmarksd("landmarks", ["a", "b"])({"image": torch.zeros(1, 60, 90), "landmarks": landmarks})


def test_heatmap_loss_is_the_divergence_and_leaves_absent_points_out():
    heat = draw_heatmaps(torch.tensor([[5.0, 6.0], [math.nan, math.nan]]), (16, 16), 2.0)[None]
    perfect = torch.where(heat > 0, heat, torch.tensor(1e-30)).log()
    assert HeatmapLoss()(perfect, heat).item() == pytest.approx(0, abs=1e-4)
    share = heat[0, 0] / heat[0, 0].sum()
    uniform = torch.zeros(1, 2, 16, 16)
    expected = math.log(256) - torch.special.entr(share).sum().item()
    assert HeatmapLoss()(uniform, heat).item() == pytest.approx(expected, rel=1e-4)
    cut_away = draw_heatmaps(torch.tensor([[5.0, 6.0], [-3.0, 6.0]]), (16, 16), 2.0)[None]  # of the second a tail
    assert HeatmapLoss()(uniform, cut_away).item() == pytest.approx(expected, rel=1e-4)
    assert spatial_softmax(uniform[0]).flatten(1).sum(1).tolist() == pytest.approx([1, 1])


@pytest.mark.parametrize("unknown", [math.nan, math.inf])
def test_value_loss_is_the_negative_log_likelihood_up_to_a_constant(unknown):
    loss = ValueLoss(mean=[10.0, 0.0], std=[2.0, 1.0])
    output = torch.tensor([[0.5, 1.0, 0.2, -0.4]])
    target = torch.tensor([[12.0, unknown]])
    normal = torch.distributions.Normal(0.5, math.exp(0.1))
    expected = -normal.log_prob(torch.tensor(1.0)) - 0.5 * math.log(2 * math.pi)
    for count in (1, 3):  # the mean over the numbers that are known
        found = loss(output.repeat(count, 1), target.repeat(count, 1))
        assert found.item() == pytest.approx(expected.item(), abs=1e-5)
    value, std = loss.estimate(output[0])[0].tolist()
    assert (value, std) == (pytest.approx(11.0), pytest.approx(2 * math.exp(0.1)))


@pytest.mark.parametrize(
    ("loss", "output", "target"),
    [
        (ValueLoss([0.0], [1.0]), (5, 2), (5,)),
        (ValueLoss([0.0, 1.0], [1.0, 1.0]), (5, 4), (5, 1)),
        (HeatmapLoss(), (2, 3, 8, 8), (2, 1, 8, 8)),
        (HeatmapLoss(), (2, 1, 4, 16), (2, 1, 8, 8)),
    ],
)
def test_losses_refuse_targets_of_another_shape(loss, output, target):
    with pytest.raises(ValueError, match="must"):
        loss(torch.zeros(output), torch.ones(target))
