# Copyright (c) monai_usfm contributors
# SPDX-License-Identifier: Apache-2.0
"""Noise addition: what is added has the promised statistics, and what must not change does not."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.ndimage
import scipy.special
import torch

from monai_usfm.transforms import BatchAugmentation, NoiseRecovery, gaussian_blur

SHAPES = [(2, 1, 24, 40), (2, 1, 12, 20, 24)]
NO_BLUR = {"blur_sigma": (0.0, 0.0)}


@pytest.mark.parametrize("shape", SHAPES)
def test_a_wide_blur_is_that_of_scipy(shape, sigma=2.5):
    image = torch.rand(shape, generator=torch.Generator().manual_seed(0))
    expected = np.stack([scipy.ndimage.gaussian_filter(x[0], sigma, mode="nearest", radius=10) for x in image.numpy()])
    # MONAI integrates the Gaussian over each sample, SciPy takes its value there: equal for a wide one.
    np.testing.assert_allclose(gaussian_blur(image, sigma)[:, 0].numpy(), expected, atol=0.01)
    assert (gaussian_blur(image, sigma) - image).abs().max() > 0.2


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("sigma", [0.7, 2.0])
def test_blur_has_the_width_it_documents(dims, sigma):
    point = torch.zeros(1, 1, *[33] * dims)
    point[(0, 0, *[16] * dims)] = 1
    spread = gaussian_blur(point, sigma).double()
    offset = torch.arange(33.0, dtype=torch.float64) - 16
    for axis in range(dims):
        profile = spread.sum([d for d in range(2 + dims) if d != 2 + axis])
        # The mean over a sample widens a Gaussian by the variance of a box.
        assert (profile * offset**2).sum().item() == pytest.approx(sigma**2 + 1 / 12, rel=0.02)


def test_blur_keeps_a_constant_image_up_to_its_border():
    torch.testing.assert_close(gaussian_blur(torch.full((1, 1, 20, 20), 0.4), 3.0), torch.full((1, 1, 20, 20), 0.4))


@pytest.mark.parametrize("looks", [1, 3])
@pytest.mark.parametrize("strength", [0.4, 1.0])
def test_speckle_has_the_deviation_of_theory_and_does_not_change_the_brightness(looks, strength):
    torch.manual_seed(0)
    noise = NoiseRecovery(
        strength=(strength, strength), looks=(looks, looks), psf_sigma=(0.8, 0.8), dynamic_range_db=80.0, **NO_BLUR
    )
    added = (noise.degrade(torch.full((8, 1, 128, 128), 0.6)) - 0.6) * 80
    deviation = strength * 4.343 * np.sqrt(scipy.special.polygamma(1, looks))
    assert added.std().item() == pytest.approx(deviation, rel=0.04)
    assert added.mean().item() == pytest.approx(0.0, abs=0.12)


def test_neighbors_are_correlated_as_the_point_spread_function_says():
    torch.manual_seed(0)
    added = NoiseRecovery(psf_sigma=(2.0, 2.0), looks=(1, 1), **NO_BLUR).degrade(torch.full((6, 1, 96, 96), 0.6))
    added = added - added.mean((2, 3), keepdim=True)
    near, far = ((added[..., shift:, :] * added[..., :-shift, :]).mean() / added.square().mean() for shift in (1, 12))
    assert near > 0.7 and abs(far) < 0.1


def test_every_image_of_a_batch_is_drawn_for_itself():
    torch.manual_seed(0)
    added = NoiseRecovery(**NO_BLUR).degrade(torch.full((6, 1, 64, 64), 0.5)) - 0.5
    deviations = added.std((1, 2, 3))
    assert deviations.max() > 1.5 * deviations.min()
    assert np.abs(np.corrcoef(added.flatten(1).numpy()) - np.eye(6)).max() < 0.2


@pytest.mark.parametrize("shape", SHAPES)
def test_black_stays_exactly_black_and_the_range_is_kept(shape):
    torch.manual_seed(0)
    clean = torch.rand(shape)
    clean[..., :5] = 0
    noisy = NoiseRecovery(blur_sigma=(1.0, 1.0)).degrade(clean)
    assert (noisy[..., :5] == 0).all() and (noisy[..., 5:] != clean[..., 5:]).float().mean() > 0.9
    assert noisy.min() >= 0 and noisy.max() <= 1 and noisy.shape == clean.shape


def test_channels_that_are_copies_stay_copies():
    torch.manual_seed(0)
    noisy = NoiseRecovery().degrade(torch.rand(2, 1, 32, 32).expand(-1, 3, -1, -1))
    assert torch.equal(noisy[:, 0], noisy[:, 1]) and torch.equal(noisy[:, 0], noisy[:, 2])


def test_target_is_the_augmented_image_and_the_batch_is_left_alone():
    batch = {"image": (255 * torch.rand(3, 1, 32, 32)).to(torch.uint8)}
    before = batch["image"].clone()
    augmentation = BatchAugmentation((32, 32), (1.0, 1.0), (1.0, 1.0), rotate=0.0, flip=1.0, gamma=1.0)
    noisy, clean = NoiseRecovery(augmentation)(batch, "cpu")
    torch.testing.assert_close(clean, before.flip(-1) / 255, atol=1e-4, rtol=0)
    assert (noisy - clean).abs().mean() > 0.005
    assert torch.equal(batch["image"], before)
    untouched = NoiseRecovery()(batch, "cpu")[1]
    torch.testing.assert_close(untouched, before / 255)


def test_one_seed_gives_one_result():
    clean = torch.rand(2, 1, 32, 32, generator=torch.Generator().manual_seed(1))
    results = []
    for seed in (5, 5, 6):
        torch.manual_seed(seed)
        results.append(NoiseRecovery().degrade(clean))
    assert torch.equal(results[0], results[1]) and not torch.equal(results[0], results[2])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"strength": (1.0, 0.5)}, "strength"),
        ({"looks": (0, 2)}, "looks"),
        ({"looks": (1, 2.5)}, "whole"),
        ({"psf_sigma": (-1.0, 1.0)}, "psf_sigma"),
        ({"dynamic_range_db": 0.0}, "dynamic_range_db"),
    ],
)
def test_bad_ranges_are_refused_by_name(options, message):
    with pytest.raises(ValueError, match=message):
        NoiseRecovery(**options)
