# Copyright (c) monai_usfm contributors
# SPDX-License-Identifier: Apache-2.0
"""Ellipses of masks against drawn ones, scikit-image and the exact perimeter."""

from __future__ import annotations

import csv
import math

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.special import ellipe

from monai_usfm.metrics import Ellipse, ellipse_of_extremes, extremes_of_ellipse, fit_ellipse


def drawn(center, semi_axes, angle, size, spacing=(1.0, 1.0)):
    """Mask of an ellipse given in mm."""
    y, x = np.meshgrid(*(np.arange(n) * s for n, s in zip(size, spacing, strict=True)), indexing="ij")
    turn = math.radians(angle)
    dy, dx = y - center[0], x - center[1]
    along, across = dx * math.cos(turn) + dy * math.sin(turn), -dx * math.sin(turn) + dy * math.cos(turn)
    return torch.from_numpy((along / semi_axes[0]) ** 2 + (across / semi_axes[1]) ** 2 <= 1)


@pytest.mark.parametrize("spacing", [(1.0, 1.0), (0.3, 0.5)])
@pytest.mark.parametrize("angle", [-60.0, 0.0, 25.0, 90.0])
def test_a_drawn_ellipse_is_found_again(angle, spacing):
    size = tuple(round(120 / s) for s in spacing)
    found = fit_ellipse(drawn((55.0, 62.0), (40.0, 28.0), angle, size, spacing)[None], spacing)
    assert found.center == pytest.approx((55.0, 62.0), abs=0.1)
    assert found.semi_axes == pytest.approx((40.0, 28.0), abs=0.15)
    assert abs((found.angle - angle + 90) % 180 - 90) < 0.5
    assert -90 < found.angle <= 90


@pytest.mark.parametrize("ratio", [1.0, 0.7, 0.4, 0.25])
def test_the_circumference_is_the_elliptic_integral(ratio):
    exact = 4 * 50.0 * ellipe(1 - ratio**2)
    assert Ellipse((0, 0), (50.0, 50.0 * ratio), 0.0).circumference == pytest.approx(exact, rel=1e-5)


def test_axes_equal_those_of_scikit_image():
    measure = pytest.importorskip("skimage.measure")
    mask = drawn((30.0, 40.0), (25.0, 12.0), 33.0, (70, 90))
    region = measure.regionprops(mask.numpy().astype(np.uint8))[0]
    found = fit_ellipse(mask)
    # scikit-image measures the centers of the pixels, without the variance 1 / 12 of each
    expected = [
        math.hypot(axis / 2, 2 / math.sqrt(12)) for axis in (region.axis_major_length, region.axis_minor_length)
    ]
    assert found.semi_axes == pytest.approx(expected, rel=1e-6)
    assert found.area == pytest.approx(float(mask.sum()), rel=0.01)


def test_only_the_largest_part_is_measured():
    mask = drawn((40.0, 40.0), (20.0, 15.0), 0.0, (100, 100))
    alone = fit_ellipse(mask)
    mask[90:95, 90:95] = True
    assert fit_ellipse(mask) == alone


def test_an_empty_mask_has_no_ellipse_and_a_pixel_has_a_finite_one():
    assert fit_ellipse(torch.zeros(5, 5)) is None
    mask = torch.zeros(5, 5)
    mask[2, 2] = 1
    assert 0 < fit_ellipse(mask, 0.5).circumference < 4


@pytest.mark.parametrize(
    ("shape", "spacing", "message"),
    [((1, 4, 4, 4), 1.0, "shape"), ((4, 4), 0.0, "spacing"), ((4, 4), (1.0, 2.0, 3.0), "spacing")],
)
def test_bad_input_is_named(shape, spacing, message):
    with pytest.raises(ValueError, match=message):
        fit_ellipse(torch.ones(shape), spacing)


def test_published_head_circumferences_follow_from_the_masks(shared_data):
    folder = shared_data / "fetal_head_hc18"
    rows = list(csv.DictReader((folder / "labels.csv").open(encoding="utf-8")))[:60]
    errors = []
    for row in rows:
        mask = torch.from_numpy(np.asarray(Image.open(folder / row["mask"]).convert("L")).copy())
        measured = fit_ellipse(mask, float(row["pixel_size_mm"])).circumference
        errors.append(abs(measured / float(row["head_circumference_mm"]) - 1))
    assert np.mean(errors) < 0.01 and max(errors) < 0.025


@pytest.mark.parametrize("angle", [-50.0, 0.0, 30.0, 90.0])
def test_extremes_are_those_of_the_drawn_mask_and_give_the_ellipse_back(angle):
    ellipse = Ellipse((60.0, 70.0), (42.0, 28.0), angle)
    points = extremes_of_ellipse(ellipse)
    y, x = np.nonzero(drawn((60.0, 70.0), (42.0, 28.0), angle, (120, 140)).numpy())
    found = [points["left"][0], points["right"][0], points["top"][1], points["bottom"][1]]
    assert found == pytest.approx([x.min(), x.max(), y.min(), y.max()], abs=1.0)
    assert ((y - 60) @ (x - 70)) * (
        points["right"][1] - 60
    ) >= -1e-6  # the right end is on the side the ellipse leans to
    back = ellipse_of_extremes(points, 0.5)
    assert back.center == pytest.approx((30, 35))
    assert back.semi_axes == pytest.approx((21, 14))
    assert abs((back.angle - angle + 90) % 180 - 90) < 1e-6
    with pytest.raises(ValueError, match="no ellipse"):
        ellipse_of_extremes({**points, "left": points["right"], "right": points["left"]})
