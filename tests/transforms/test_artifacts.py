# Copyright (c) monai_usfm contributors
# SPDX-License-Identifier: Apache-2.0
"""Shadow, enhancement, reverberation and haze against closed forms and autocorrelation."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from monai_usfm.transforms import (
    BeamGeometry,
    RandAcousticShadow,
    RandHaze,
    RandHazed,
    acoustic_shadow,
    add_haze,
    reverberate,
)

CONVEX = BeamGeometry("convex", apex=(-40.0, 63.5), radii=(60.0, 160.0), angles=(-0.4, 0.4))


def test_shadow_darkens_only_behind_its_start_and_by_the_loss_in_its_middle():
    image = torch.full((1, 101, 101), 0.9)
    out = acoustic_shadow(image, 20.0, start=0.5, center=0.4, width=0.2)[0]
    assert torch.equal(out[:51], image[0, :51])
    assert 60 * float(0.9 - out[80, 40]) == pytest.approx(20.0, abs=0.01)
    assert bool((out <= 0.9).all())
    torch.testing.assert_close(out[80, 80:], image[0, 80, 80:], atol=1e-3, rtol=0)


def test_shadow_is_as_wide_as_it_was_asked_to_be_at_half_its_loss():
    image = torch.full((1, 11, 1001), 1.0)
    loss = 60 * (1 - np.asarray(acoustic_shadow(image, 20.0, 0.0, 0.5, 0.3)[0, -1]))
    assert (loss > 10).sum() / 1000 == pytest.approx(0.3, abs=0.005)


def test_shadow_in_a_sector_runs_along_the_beams():
    image = torch.where(CONVEX.mask((128, 128)), 0.9, 0.0)
    out = acoustic_shadow(image, 20.0, 0.3, 0.7, 0.1, geometry=CONVEX)[0]
    rows, columns = np.nonzero(np.asarray(image[0] - out) > 15 / 60)
    angle = np.arctan2(columns - 63.5, rows + 40.0)
    assert np.abs(angle - (-0.4 + 0.7 * 0.8)).max() < 0.05 * 0.8  # within half the width about its beam
    assert np.hypot(rows + 40.0, columns - 63.5).min() > 60 + 0.3 * 100


def test_a_volume_is_shadowed_around_the_drawn_slice():
    volume = torch.full((1, 41, 21, 21), 0.9)
    out = acoustic_shadow(volume, 20.0, 0.0, 0.5, 0.4, elevation=(0.25, 0.2))
    loss = 60 * np.asarray(volume - out)[0, :, -1, 10]
    assert loss.argmax() == 10 and loss[10] == pytest.approx(20, abs=0.01) and loss[30] < 0.01


def test_a_negative_loss_is_the_enhancement_behind_fluid():
    effect = RandAcousticShadow(1.0, loss_db=-6.0, start=0.5, width=0.3).set_random_state(0)
    image = torch.full((1, 64, 64), 0.4)
    out = effect(image)[0]
    assert torch.equal(out[:32], image[0, :32])
    assert bool((out >= 0.4).all()) and 60 * float(out.max() - 0.4) == pytest.approx(6.0, abs=0.05)


def test_reverberation_repeats_at_its_spacing():
    image = torch.zeros((1, 201, 16))
    image[:, 38:43] = 1.0  # an interface at depth 0.2
    out = np.asarray(reverberate(image, 0.2, 6.0, echoes=4, fov=torch.ones(1, 201, 16))[0, :, 8], dtype=np.float64)
    signal = out - out.mean()
    autocorrelation = np.correlate(signal, signal, "full")[len(out) - 1 :]
    assert 20 + int(autocorrelation[20:].argmax()) == 40
    peaks = out[[80, 120, 160]]
    np.testing.assert_allclose(60 * (1 - peaks), [6, 12, 18], atol=0.05)


def test_reverberation_follows_the_arcs_of_a_sector():
    coordinates = CONVEX.cartesian_to_beam((128, 128))
    near = (coordinates[..., 0] - 0.2).abs() < 0.02
    image = torch.where(CONVEX.mask((128, 128)) & near, 1.0, 0.0)
    out = reverberate(image, 0.2, 6.0, echoes=1, geometry=CONVEX)
    rows, columns = np.nonzero(np.asarray((out - image)[0]) > 0.6)
    radius = np.hypot(rows + 40.0, columns - 63.5)
    assert len(rows) > 100 and np.abs((radius - 60) / 100 - 0.4).max() < 0.05


def test_echo_powers_add():
    image = torch.full((1, 101, 8), 1.0 - 20 / 60)
    out = reverberate(image, 0.5, 10.0, echoes=1)[0, 70, 4]
    floor = 10**-6.0
    expected = 10 * np.log10((10**-2.0 - floor) * (1 + 0.1) + floor)
    assert 60 * (float(out) - 1) == pytest.approx(expected, abs=1e-3)


def test_even_haze_has_its_level_in_the_dark_and_spares_bright_tissue():
    image = torch.zeros((1, 101, 20))
    image[..., 10:] = 0.9
    out = add_haze(image, -30.0, 0.5, 0.1, fov=torch.ones(1, 101, 20))[0]
    assert 60 * (float(out[50, 3]) - 1) == pytest.approx(-30.0, abs=0.01)
    assert 60 * float(out[50, 15] - 0.9) == pytest.approx(10 * np.log10(1 + 10 ** (-3 + 0.6)), abs=0.01)
    assert float(out[0, 3]) < 0.01
    width = int((from_db(out[:, 3]) > 0.5 * from_db(out[50, 3])).sum())
    assert width == pytest.approx(2.3548 * 0.1 * 100, abs=1.5)


def from_db(values: torch.Tensor) -> torch.Tensor:
    return 10 ** ((values.double() - 1) * 6)


def test_random_haze_is_speckle_of_the_drawn_mean_power():
    effect = RandHaze(1.0, level_db=(-20.0, -20.0), center=(0.5, 0.5), extent=(10.0, 10.0)).set_random_state(0)
    power = from_db(effect(torch.zeros(1, 256, 256), fov=torch.ones(1, 256, 256)))
    assert 10 * np.log10(float(power.mean())) == pytest.approx(-20.0, abs=0.2)
    assert float(power.std() / power.mean()) == pytest.approx(1.0, abs=0.08)


def test_random_haze_is_drawn_for_images_of_different_sizes():
    images = {"image": torch.full((1, 40, 50), 0.1), "other": torch.full((1, 60, 40), 0.1)}
    item = RandHazed(("image", "other"), prob=1.0)(images)
    assert all(item[key].shape == images[key].shape and item[key].max() > 0.2 for key in images)


def test_random_shadow_stays_within_its_ranges_and_draws_an_elevation_for_volumes_only():
    effect = RandAcousticShadow(1.0, (10.0, 12.0), (0.1, 0.2), (0.05, 0.1)).set_random_state(0)
    for _ in range(50):
        effect.randomize(torch.zeros(1, 8, 8))
        assert 10 <= effect.params["loss_db"] <= 12 and 0.1 <= effect.params["start"] <= 0.2
        assert 0.05 <= effect.params["width"] <= 0.1 and "elevation" not in effect.params
    effect.randomize(torch.zeros(1, 4, 8, 8))
    assert len(effect.params["elevation"]) == 2


@pytest.mark.parametrize(
    ("build", "words"),
    [
        (lambda: acoustic_shadow(torch.zeros(1, 4, 4), 10, 0, 0.5, 0.0), "positive width"),
        (lambda: acoustic_shadow(torch.zeros(1, 4, 4), 10, 0, 0.5, 0.1, elevation=(0.5, 0.1)), "needs a volume"),
        (lambda: reverberate(torch.zeros(1, 4, 4), 0.0, 6), "spacing must be in"),
        (lambda: add_haze(torch.zeros(1, 4, 4), -30, 0.5, 0.0), "extent must be positive"),
    ],
)
def test_mistakes_are_named(build, words):
    with pytest.raises(ValueError, match=words):
        build()
