# Copyright (c) monai_usfm contributors
# SPDX-License-Identifier: Apache-2.0
"""Geometry from masks against drawings whose measurements are known."""

from __future__ import annotations

import math

import numpy as np
import pytest

from monai_usfm.metrics import muscle_architecture, simpson_volume


def muscle(deep: float, fascicle: float, thickness: float, step: float) -> tuple[np.ndarray, np.ndarray]:
    """Two parallel aponeuroses 3 mm thick, sloping by ``deep`` degrees, and stripes at ``fascicle`` degrees to them."""
    y, x = np.indices((240, 320)) * step
    slope = math.tan(math.radians(deep))
    height = (y - 12 - slope * x) * math.cos(math.radians(deep))  # below the inner edge of the superficial one, in mm
    mask = ((height > -3) & (height < 0)) | ((height > thickness) & (height < thickness + 3))
    angle = math.radians(deep + fascicle)
    stripes = np.sin(2 * math.pi * (y * math.cos(angle) - x * math.sin(angle)) / 2.5)
    return mask, stripes + np.random.default_rng(0).normal(0, 0.5, y.shape)


@pytest.mark.parametrize(("deep", "fascicle", "thickness"), [(0, 15, 18), (4, 22, 14), (-6, -18, 20)])
def test_muscle_is_measured_as_it_was_drawn(deep: float, fascicle: float, thickness: float):
    mask, image = muscle(deep, fascicle, thickness, step=0.15)
    found = muscle_architecture(mask, image, 0.15)
    assert found["thickness"] == pytest.approx(thickness, abs=0.15)
    assert found["aponeurosis_angle"] == pytest.approx(0, abs=0.3)
    assert found["pennation_angle"] == pytest.approx(abs(fascicle), abs=1.0)
    assert found["fascicle_length"] == pytest.approx(thickness / math.sin(math.radians(abs(fascicle))), rel=0.06)
    assert muscle_architecture(mask)["thickness"] == pytest.approx(thickness / 0.15, abs=1)  # pixels
    assert muscle_architecture(mask)["pennation_angle"] is None


def test_lines_that_converge_and_pixels_that_are_not_square():
    step, top, deep, fascicle = (0.2, 0.12), 10, 4, 22
    y, x = np.indices((240, 320)) * np.reshape(step, (2, 1, 1))
    upper, lower = (start + math.tan(math.radians(angle)) * x for start, angle in ((12, top), (30, deep)))
    mask = ((y > upper - 3) & (y < upper)) | ((y > lower) & (y < lower + 3))
    mask[120:124, 150:156] = True  # a speck between them
    angle = math.radians(deep + fascicle)
    image = np.sin(2 * math.pi * (y * math.cos(angle) - x * math.sin(angle)) / 2.5)
    found = muscle_architecture(mask, image, step)
    assert found["aponeurosis_angle"] == pytest.approx(top - deep, abs=0.3)
    assert found["thickness"] == pytest.approx((lower - upper).mean() * math.cos(math.radians(deep)), abs=0.1)
    assert found["pennation_angle"] == pytest.approx(fascicle, abs=1.0)
    assert found["coherence"] > 0.9


def test_one_aponeurosis_gives_no_muscle():
    mask = np.zeros((60, 80), dtype=bool)
    mask[10:14] = True
    assert set(muscle_architecture(mask, mask.astype(float)).values()) == {None}


def test_simpson_of_one_pixel_is_the_disc_of_that_pixel():
    mask = np.zeros((5, 5))
    mask[2, 2] = 1
    assert simpson_volume(mask, mask, 2.0) == pytest.approx(math.pi / 4 * 8, rel=1e-6)
    with pytest.raises(ValueError, match=r"need masks \(H, W\)"):
        simpson_volume(mask[None], mask, 2.0)


@pytest.mark.parametrize("spacing", [(0.5, 0.5), (0.5, 0.4)])
@pytest.mark.parametrize("tilt", [0, 20])
def test_simpson_gives_the_volume_of_an_ellipsoid_also_where_the_base_cuts_it(tilt: float, spacing: tuple):
    y, x = np.indices((200, 200)) * np.reshape(spacing, (2, 1, 1))
    turned = math.radians(tilt)
    along = (y - 50) * math.cos(turned) + (x - 40) * math.sin(turned)
    across = (x - 40) * math.cos(turned) - (y - 50) * math.sin(turned)
    first, second = ((along / 42) ** 2 + (across / short) ** 2 < 1 for short in (20, 26))
    assert simpson_volume(first, second, spacing) == pytest.approx(4 / 3 * math.pi * 42 * 20 * 26, rel=0.01)
    base = along > -20
    height = 62 - (42**3 + 20**3) / (3 * 42**2)  # integral of 1 - (t / 42)^2 from -20 to 42
    for view in (second & base, (second & base)[:, ::-1]):  # whichever side it is seen from
        volume = simpson_volume(first & base, view, spacing)
        assert volume == pytest.approx(math.pi * 20 * 26 * height, rel=0.02)
    assert simpson_volume(first & False, second, spacing) == 0
