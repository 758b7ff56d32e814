# Copyright (c) monai_usfm contributors
# SPDX-License-Identifier: Apache-2.0
"""Gain, attenuation, TGC and dynamic range against decibel arithmetic in NumPy."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from monai_usfm.transforms import (
    BeamGeometry,
    NoiseRecovery,
    RandDepthAttenuation,
    RandDynamicRange,
    RandGain,
    RandTimeGain,
    apply_gain,
    attenuate,
    recompress,
    time_gain,
)


def decibels(image: torch.Tensor, dynamic_range_db: float | None) -> np.ndarray:
    values = np.asarray(image, dtype=np.float64)
    return 20 * np.log10(values) if dynamic_range_db is None else (values - 1) * dynamic_range_db


@pytest.mark.parametrize("dynamic_range_db", [60.0, 40.0, None])
def test_gain_raises_every_echo_by_that_many_decibels(dynamic_range_db):
    image = torch.full((1, 8, 8), 0.4)
    out = apply_gain(image, 5.0, dynamic_range_db)
    rise = decibels(out, dynamic_range_db) - decibels(image, dynamic_range_db)
    np.testing.assert_allclose(rise, 5.0, atol=1e-4)


@pytest.mark.parametrize("dynamic_range_db", [60.0, None])
@pytest.mark.parametrize("shape", [(1, 101, 8), (1, 3, 101, 8)])
def test_attenuation_has_the_slope_it_was_given_in_decibels_per_pixel(shape, dynamic_range_db):
    image = torch.full(shape, 0.9)
    out = attenuate(image, 20.0, dynamic_range_db)
    level = decibels(out, dynamic_range_db)
    profile = level[(0,) * (len(shape) - 2) + (slice(None), 3)]
    slope, start = np.polyfit(np.arange(101), profile, 1)
    assert slope == pytest.approx(-20.0 / 100, abs=1e-4)
    assert start == pytest.approx(decibels(image, dynamic_range_db).max(), abs=1e-3)


def test_attenuation_in_a_sector_depends_on_the_distance_from_the_probe_only():
    geometry = BeamGeometry("convex", apex=(-20.0, 31.5), radii=(30.0, 80.0), angles=(-0.4, 0.4))
    image = torch.where(geometry.mask((64, 64)), 0.8, 0.0)
    out = attenuate(image, 12.0, geometry=geometry)[0]
    rows, columns = np.nonzero(np.asarray(image[0]))
    radius = np.hypot(rows + 20.0, columns - 31.5)
    expected = 0.8 - 12.0 / 60 * (radius - 30) / 50
    np.testing.assert_allclose(np.asarray(out)[rows, columns], expected, atol=1e-5)


@pytest.mark.parametrize("dynamic_range_db", [60.0, None])
def test_time_gain_undoes_attenuation(dynamic_range_db):
    image = 0.5 + 0.3 * torch.rand((1, 64, 32))
    lost = attenuate(image, 12.0, dynamic_range_db)
    assert float((lost - image).abs().max()) > 0.15
    for gains in ((0.0, 12.0), (0.0, 3.0, 6.0, 9.0, 12.0)):
        torch.testing.assert_close(time_gain(lost, gains, dynamic_range_db), image, atol=1e-5, rtol=0)


def test_time_gain_interpolates_the_sliders_linearly():
    image = torch.full((1, 41, 3), 0.5)
    gains = (0.0, 6.0, -6.0, 3.0, 3.0)
    expected = 0.5 + np.interp(np.linspace(0, 4, 41), np.arange(5), gains) / 60
    np.testing.assert_allclose(np.asarray(time_gain(image, gains)[0, :, 1]), expected, atol=1e-6)


def test_recompression_has_its_closed_form_and_can_be_undone():
    image = torch.rand((1, 20, 20)).clamp(min=0.3)
    hard = recompress(image, 60.0, 45.0)
    np.testing.assert_allclose(hard, np.clip(1 + (np.asarray(image) - 1) * 60 / 45, 0, 1), atol=1e-6)
    torch.testing.assert_close(recompress(hard, 45.0, 60.0), image, atol=1e-5, rtol=0)


def test_random_parameters_are_uniform_over_their_ranges():
    cases = [
        (RandGain(1.0, (-4.0, 8.0)), "gain_db", -4.0, 8.0),
        (RandDepthAttenuation(1.0, (2.0, 6.0)), "loss_db", 2.0, 6.0),
        (RandDynamicRange(1.0, (40.0, 80.0)), "target_db", 40.0, 80.0),
    ]
    for effect, name, low, high in cases:
        effect.set_random_state(0)
        draws = []
        for _ in range(2000):
            effect.randomize(torch.zeros(1, 2, 2))
            draws.append(effect.params[name])
        share = (np.array(draws) - low) / (high - low)
        assert 0 <= share.min() < 0.01 and 0.99 < share.max() <= 1
        assert share.mean() == pytest.approx(0.5, abs=0.03) and share.var() == pytest.approx(1 / 12, rel=0.1)


def test_the_drawn_sliders_are_the_ones_applied():
    effect = RandTimeGain(1.0, sliders=5).set_random_state(0)
    image = torch.full((1, 33, 4), 0.5)
    out = effect(image)
    assert len(effect.params["gains_db"]) == 5
    torch.testing.assert_close(out, time_gain(image, effect.params["gains_db"]))
    torch.testing.assert_close(out, effect(image, randomize=False))


@pytest.mark.parametrize(
    ("build", "words"),
    [
        (lambda: RandGain(gain_db=(3.0, 1.0)), "gain_db must be a number or a range"),
        (lambda: RandDynamicRange(target_db=(0.0, 50.0)), "above 0"),
        (lambda: RandDynamicRange(dynamic_range_db=None), "log-compressed images: dynamic_range_db must be"),
        (lambda: recompress(torch.rand(1, 4, 4), None, 60.0), "log-compressed images: dynamic_range_db must be"),
        (lambda: NoiseRecovery(dynamic_range_db=None), "log-compressed images: dynamic_range_db must be"),
        (lambda: RandGain(dynamic_range_db=-60.0), "dynamic_range_db must be positive"),
        (lambda: RandTimeGain(sliders=1), "sliders"),
        (lambda: time_gain(torch.zeros(1, 4, 4), []), "gains_db"),
        (lambda: apply_gain(torch.zeros(4, 4), 1.0), "with 2 to 3 axes"),
    ],
)
def test_mistakes_are_named(build, words):
    with pytest.raises(ValueError, match=words):
        build()
