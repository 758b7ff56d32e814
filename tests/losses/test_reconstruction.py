# Copyright (c) monai_usfm contributors
# SPDX-License-Identifier: Apache-2.0
"""Reconstruction losses against NumPy's full DFT and the published definitions."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from monai_usfm.losses import FocalFrequencyLoss, MaskedReconstructionLoss, SpatialFrequencyLoss

SHAPES = [(2, 1, 8, 12), (2, 3, 7, 9), (1, 2, 5, 6, 8)]


@pytest.mark.parametrize("alpha", [0.0, 1.0, 2.0])
@pytest.mark.parametrize("shape", SHAPES)
def test_focal_frequency_loss_is_the_published_formula_over_the_full_spectrum(shape, alpha):
    prediction, target = torch.rand(shape), torch.rand(shape)
    axes = tuple(range(2, len(shape)))
    spectrum = np.fft.fftn(prediction.double().numpy(), axes=axes, norm="ortho")
    spectrum = spectrum - np.fft.fftn(target.double().numpy(), axes=axes, norm="ortho")
    distance = np.abs(spectrum)
    weight = distance**alpha
    weight = weight / weight.max(axis=axes, keepdims=True)
    expected = (weight * distance**2).mean()
    assert FocalFrequencyLoss(alpha)(prediction, target).item() == pytest.approx(expected, rel=1e-5)


def test_focal_frequency_loss_without_focus_is_the_squared_error():
    prediction, target = torch.rand(2, 1, 9, 9), torch.rand(2, 1, 9, 9)
    expected = torch.nn.functional.mse_loss(prediction, target).item()
    assert FocalFrequencyLoss(0.0)(prediction, target).item() == pytest.approx(expected, rel=1e-5)


def test_no_gradient_flows_through_the_focal_weight():
    prediction = torch.rand(1, 1, 8, 8, dtype=torch.float64, requires_grad=True)
    target = torch.rand(1, 1, 8, 8, dtype=torch.float64)
    FocalFrequencyLoss(1.0)(prediction, target).backward()
    spectrum = torch.fft.fftn((prediction - target).detach(), dim=(2, 3), norm="ortho")
    weight = spectrum.abs() / spectrum.abs().max()
    expected = 2 * torch.fft.ifftn(weight * spectrum, dim=(2, 3), norm="ortho").real / prediction.numel()
    torch.testing.assert_close(prediction.grad, expected, rtol=1e-4, atol=1e-8)


def test_equal_images_give_zero_and_a_finite_gradient():
    image = torch.rand(1, 1, 8, 8, requires_grad=True)
    loss = SpatialFrequencyLoss()(image, image.detach().clone())
    loss.backward()
    assert loss.item() == 0.0
    assert torch.isfinite(image.grad).all()


@pytest.mark.parametrize(("norm", "power"), [("l1", 1), ("l2", 2)])
def test_masked_loss_averages_hidden_entries_only(norm, power):
    prediction, target = torch.rand(2, 5, 4), torch.rand(2, 5, 4)
    mask = torch.tensor([[1, 0, 1, 0, 0], [0, 0, 1, 0, 0]])
    hidden = (prediction - target).abs()[mask.bool()] ** power
    loss = MaskedReconstructionLoss(norm)
    assert loss(prediction, target, mask).item() == pytest.approx(hidden.mean().item(), rel=1e-6)
    changed = prediction + (1 - mask)[..., None]
    assert loss(changed, target, mask).item() == pytest.approx(hidden.mean().item(), rel=1e-6)


def test_masked_loss_of_images_equals_that_of_their_pixels():
    prediction, target = torch.rand(2, 3, 6, 4), torch.rand(2, 3, 6, 4)
    mask = (torch.rand(2, 1, 6, 4) > 0.5).float()
    hidden = (prediction - target).abs()[mask.expand_as(target).bool()]
    assert MaskedReconstructionLoss("l1")(prediction, target, mask).item() == pytest.approx(
        hidden.mean().item(), rel=1e-5
    )


def test_normalized_patches_ignore_brightness_and_contrast_of_the_target():
    target = torch.rand(2, 5, 64)
    loss = MaskedReconstructionLoss("l2", normalize_patches=True)
    prediction = torch.randn(2, 5, 64)
    first = loss(prediction, target)
    assert loss(prediction, 3 * target + 0.4).item() == pytest.approx(first.item(), rel=1e-3)
    perfect = (target - target.mean(-1, keepdim=True)) / target.std(-1, keepdim=True)
    assert loss(perfect, target).item() < 1e-6


def test_an_empty_mask_gives_zero():
    loss = MaskedReconstructionLoss()(torch.rand(1, 4, 3), torch.rand(1, 4, 3), torch.zeros(1, 4))
    assert loss.item() == 0.0


def test_spatial_frequency_loss_is_the_weighted_sum():
    prediction, target = torch.rand(2, 1, 8, 8), torch.rand(2, 1, 8, 8)
    mask = (torch.rand(2, 1, 8, 8) > 0.4).float()
    loss = SpatialFrequencyLoss(0.7, 0.3, norm="l2", alpha=0.5)(prediction, target, mask)
    spatial = MaskedReconstructionLoss("l2")(prediction, target, mask)
    frequency = FocalFrequencyLoss(0.5)(prediction, target)
    assert loss.item() == pytest.approx((0.7 * spatial + 0.3 * frequency).item(), rel=1e-6)


@pytest.mark.parametrize(
    "call",
    [
        lambda: MaskedReconstructionLoss("l3"),
        lambda: FocalFrequencyLoss(-1.0),
        lambda: FocalFrequencyLoss()(torch.rand(1, 1, 4, 4), torch.rand(1, 1, 4, 5)),
        lambda: MaskedReconstructionLoss()(torch.rand(1, 4, 3), torch.rand(1, 4, 2)),
        lambda: MaskedReconstructionLoss()(torch.rand(1, 4, 3), torch.rand(1, 4, 3), torch.ones(1, 3)),
        lambda: MaskedReconstructionLoss(normalize_patches=True)(torch.rand(1, 1, 4, 4), torch.rand(1, 1, 4, 4)),
    ],
)
def test_bad_arguments_are_refused(call):
    with pytest.raises(ValueError, match=r"got|differ|fit"):
        call()
