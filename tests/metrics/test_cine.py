# Copyright (c) monai_usfm contributors
# SPDX-License-Identifier: Apache-2.0
"""Steadiness and propagation in cines whose motion is known."""

from __future__ import annotations

import math

import numpy as np
import pytest
from monai.utils import OptionalImportError
from scipy import ndimage

from monai_usfm.metrics import cine
from monai_usfm.metrics.cine import flicker, motion, propagate_label, warped_dice


def moving_disc(shift: tuple[float, float], frames: int = 8) -> tuple[np.ndarray, np.ndarray]:
    """A bright disc in smooth speckle, both moved by ``shift`` (rows, columns) in every frame."""
    noise = ndimage.gaussian_filter(np.random.default_rng(0).normal(size=(160, 160)), 1.5)
    noise = (noise - noise.min()) / np.ptp(noise)
    y, x = np.indices((160, 160))
    disc = (y - 75) ** 2 + (x - 70) ** 2 < 18**2
    image = 0.5 * noise + 0.4 * ndimage.gaussian_filter(disc.astype(float), 1)
    moves = [np.multiply(shift, t) for t in range(frames)]
    cut = (slice(None), slice(32, 128), slice(32, 128))
    return (
        np.stack([ndimage.shift(image, move, order=1) for move in moves])[cut],
        np.stack([ndimage.shift(disc.astype(np.uint8), move, order=0) for move in moves])[cut],
    )


def test_flicker_is_zero_for_even_growth_and_the_jump_otherwise():
    grows = np.zeros((5, 10, 20), dtype=np.uint8)
    for t in range(5):
        grows[t, :, : 4 + 2 * t] = 1
    assert flicker(grows) == [0]
    jumps = np.zeros((5, 10, 20), dtype=np.uint8)
    jumps[:, :, :8] = 1
    jumps[1::2, :, :10] = 1  # areas 80, 100, 80, 100, 80: second differences of 40
    assert flicker(jumps) == [pytest.approx(20 / 88)]
    assert math.isnan(flicker(jumps, 3)[1])


def test_motion_is_the_shift_and_a_label_that_follows_it_has_dice_one():
    frames, labels = moving_disc((1.5, -2.0), frames=3)
    inside = labels[0] > 0
    flow = motion(frames[0], frames[1])[inside]
    assert np.median(flow, axis=0) == pytest.approx([-2.0, 1.5], abs=0.1)
    (dice,) = warped_dice(labels, frames)
    assert dice > 0.97
    still = np.repeat(labels[:1], 3, axis=0)
    assert warped_dice(still, frames)[0] < 0.95


def test_a_label_is_carried_through_the_cine_in_both_directions():
    frames, labels = moving_disc((1.5, -2.0))
    found = propagate_label(frames, labels[4], frame=4)
    for t in range(len(frames)):
        both = (found[t] > 0) & (labels[t] > 0)
        assert 2 * both.sum() / ((found[t] > 0).sum() + (labels[t] > 0).sum()) > 0.95
    found = propagate_label(*moving_disc((1.5, -2.0), frames=12)[:1], labels[0])
    assert np.array_equal(found[0], labels[0])
    last = ndimage.center_of_mass(found[11])
    assert last == pytest.approx(np.add(ndimage.center_of_mass(labels[0]), [16.5, -22]), abs=1)
    with pytest.raises(ValueError, match="does not fit"):
        propagate_label(frames, labels[4], frame=8)


def test_without_opencv_it_says_what_to_install(monkeypatch):
    monkeypatch.setattr(cine, "_has_cv2", False)
    with pytest.raises(OptionalImportError, match="pip install opencv"):
        motion(np.zeros((8, 8)), np.zeros((8, 8)))
