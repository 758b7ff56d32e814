# Copyright (c) monai_usfm contributors
# SPDX-License-Identifier: Apache-2.0
"""Measurements of masks against closed forms and scikit-image."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.special import ellipe

from monai_usfm.metrics import measure
from monai_usfm.metrics.measurements import contours, diameters, perimeter

measurements = pytest.importorskip("skimage.measure")


def grid(size, spacing):
    """Coordinates along ``S`` in mm from the middle of the image."""
    return np.meshgrid(*((np.arange(n) - (n - 1) / 2) * s for n, s in zip(size, spacing, strict=True)), indexing="ij")


def turned(angle, size=(160, 180), spacing=(1.0, 1.0)):
    y, x = grid(size, spacing)
    turn = math.radians(angle)
    return x * math.cos(turn) + y * math.sin(turn), -x * math.sin(turn) + y * math.cos(turn)


def ellipse(a, b, angle, spacing=(1.0, 1.0)):
    u, v = turned(angle, spacing=spacing)
    return (u / a) ** 2 + (v / b) ** 2 <= 1


def rectangle(width, height, angle):
    u, v = turned(angle)
    return (abs(u) <= width / 2) & (abs(v) <= height / 2)


@pytest.mark.parametrize("spacing", [(1.0, 1.0), (0.4, 0.7)])
@pytest.mark.parametrize("angle", [0.0, 33.0, -70.0])
def test_an_ellipse_has_its_axes_area_and_circumference_whatever_the_pixels(angle, spacing):
    a, b = 25.0, 14.0
    (row,) = measure(ellipse(a, b, angle, spacing), 2, spacing)
    exact = 4 * a * ellipe(1 - (b / a) ** 2)
    assert row["unit"] == "mm"
    assert row["area"] == pytest.approx(math.pi * a * b, rel=0.01)
    assert row["longest_diameter"] == pytest.approx(2 * a, abs=max(spacing))
    assert row["perpendicular_diameter"] == pytest.approx(2 * b, abs=max(spacing))
    assert row["circumference"] == pytest.approx(exact, rel=0.01)
    assert row["perimeter"] == pytest.approx(exact, rel=0.02)


@pytest.mark.parametrize("angle", [0.0, 20.0, 45.0])
def test_a_rectangle_is_measured_along_its_diagonal_and_across_it(angle):
    width, height = 90.0, 50.0
    diagonal = math.hypot(width, height)
    mask = rectangle(width, height, angle)
    (longest, _), (across, ends) = diameters(mask)
    assert longest == pytest.approx(diagonal, abs=1.5)
    # the chord through the middle, at a right angle to the diagonal, from one long side to the other
    assert across == pytest.approx(height * diagonal / width, abs=1.5)
    assert np.linalg.norm(ends[1] - ends[0]) == pytest.approx(across)
    assert perimeter(mask) == pytest.approx(2 * (width + height), rel=0.02)


def test_the_two_diameters_are_at_right_angles():
    (_, first), (_, second) = diameters(ellipse(30.0, 12.0, 25.0) | rectangle(50.0, 20.0, 60.0), (0.3, 0.8))
    assert abs((first[1] - first[0]) @ (second[1] - second[0])) < 1e-6


@pytest.mark.parametrize("spacing", [(1.0, 1.0, 1.0), (2.0, 0.6, 0.9)])
def test_an_ellipsoid_has_its_volume_and_axes_in_mm(spacing):
    semi = (16.0, 12.0, 20.0)
    inside = sum((c / s) ** 2 for c, s in zip(grid((40, 70, 60), spacing), semi, strict=True)) <= 1
    (row,) = measure(inside, 2, spacing)
    assert row["volume"] == pytest.approx(4 / 3 * math.pi * math.prod(semi), rel=0.02)
    assert row["longest_diameter"] == pytest.approx(40.0, abs=max(1.3, spacing[0]))
    assert row["perpendicular_diameter"] == pytest.approx(32.0, abs=max(1.3, spacing[0]))
    assert "circumference" not in row


def test_position_and_diameter_equal_those_of_scikit_image():
    mask = np.zeros((90, 120), dtype=np.uint8)
    mask[20:81, 30:101] = ellipse(30.0, 18.0, 40.0)[50:111, 55:126]
    region = measurements.regionprops(mask, spacing=(0.5, 0.25))[0]
    (row,) = measure(mask, 2, (0.5, 0.25))
    assert (row["center_y"], row["center_x"]) == pytest.approx(region.centroid)
    top, left, bottom, right = region.bbox
    assert (row["box_y"], row["box_x"]) == (top * 0.5, left * 0.25)
    assert (row["height"], row["width"]) == ((bottom - top) * 0.5, (right - left) * 0.25)
    assert row["area"] == pytest.approx(region.area)
    # scikit-image measures the contour of the hull drawn in whole pixels, up to half a pixel longer
    alone = measure(mask, 2)[0]
    assert alone["longest_diameter"] == pytest.approx(measurements.regionprops(mask)[0].feret_diameter_max, abs=0.5)
    assert alone["unit"] == "px"


def test_parts_are_those_of_scikit_image_largest_first():
    generator = np.random.default_rng(1)
    mask = np.kron(generator.random((12, 12)) < 0.3, np.ones((5, 5))) > 0
    labels = measurements.label(mask, connectivity=2)
    sizes = sorted(np.bincount(labels.ravel())[1:], reverse=True)
    rows = measure(mask, 2, components=True)
    assert [row["area"] for row in rows] == sizes
    assert [row["part"] for row in rows] == list(range(1, len(sizes) + 1))


def test_the_shape_of_a_class_is_that_of_its_largest_part_and_the_area_that_of_all():
    mask = np.zeros((60, 60))
    mask[5:25, 5:25] = 1
    alone = measure(mask, 2)[0]
    mask[50:54, 50:54] = 1
    both = measure(mask, 2)[0]
    assert both["area"] == alone["area"] + 16 and both["parts"] == 2
    assert {k: v for k, v in both.items() if k not in ("area", "parts")} == {
        k: v for k, v in alone.items() if k not in ("area", "parts")
    }


def test_an_absent_class_has_a_row_with_the_same_keys():
    rows = measure(torch.from_numpy(ellipse(10.0, 8.0, 0.0)).long()[None], 3, 0.5, names=["background", "cyst", "node"])
    assert [row["name"] for row in rows] == ["cyst", "node"]
    assert rows[1].keys() == rows[0].keys()
    assert rows[1]["area"] == 0 and rows[1]["parts"] == 0 and rows[1]["longest_diameter"] is None


@pytest.mark.parametrize("dims", [2, 3])
def test_a_single_pixel_can_be_measured(dims):
    mask = np.zeros((5,) * dims)
    mask[(2,) * dims] = 1
    (row,) = measure(mask, 2, 0.5)
    assert row["longest_diameter"] == pytest.approx(0.5)
    assert 0 < row["perpendicular_diameter"] <= 0.5


def test_contours_lie_half_a_pixel_beyond_the_pixels_even_at_the_border():
    (line,) = contours(np.ones((4, 6)))
    assert line.min(0) == pytest.approx([-0.5, -0.5])
    assert line.max(0) == pytest.approx([3.5, 5.5])
    assert (line[0] == line[-1]).all()


@pytest.mark.parametrize(
    ("shape", "options", "message"),
    [
        ((4,), {}, "shape"),
        ((4, 4), {"spacing": (1.0, 0.0)}, "spacing"),
        ((4, 4), {"names": ["background"]}, "names has 1"),
    ],
)
def test_bad_input_is_named(shape, options, message):
    with pytest.raises(ValueError, match=message):
        measure(np.ones(shape), 2, **options)
