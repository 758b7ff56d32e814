# Copyright (c) monai_usfm contributors
# SPDX-License-Identifier: Apache-2.0
"""Texture of patches: against what speckle and waves are known to have."""

from __future__ import annotations

import math

import pytest
import torch

from monai_usfm.networks import PatchTexture
from monai_usfm.physics.speckle import speckle_intensity


@pytest.mark.parametrize("looks", [1, 4])
def test_the_nakagami_shape_of_speckle_is_its_number_of_looks(looks):
    intensity = speckle_intensity((8, 128, 128), looks, generator=torch.Generator().manual_seed(0))
    gray = 1 + (intensity / 100).log10() / 6
    shape = PatchTexture((128, 128)).statistics(gray)[:, 3].exp().mean()
    assert shape == pytest.approx(looks, rel=0.05)


def test_a_wave_has_its_power_in_the_band_of_its_frequency():
    wave = (0.5 + 0.4 * torch.sin(2 * math.pi * 0.3 * torch.arange(32)))[:, None].expand(32, 32)
    texture = PatchTexture((32, 32))
    axial, lateral = texture.statistics(wave), texture.statistics(wave.T)
    assert int(axial[4:8].argmax()) == int(lateral[4:8].argmax()) == 2
    assert axial[8] > 5 and lateral[8] < -5


def test_moments_are_those_of_each_patch_in_the_order_of_tokens():
    image = torch.rand(2, 1, 8, 12, generator=torch.Generator().manual_seed(1))
    found = PatchTexture((4, 4))(image)
    assert found.shape == (2, 1 + 6, 9)
    patch = image[1, 0, 4:8, 8:12]
    expected = torch.stack([patch.mean(), patch.std(correction=0)])
    torch.testing.assert_close(found[1, 6, :2], expected)
    torch.testing.assert_close(found[:, 0], found[:, 1:].mean(1))


def test_a_volume_compares_each_axis_with_the_last():
    wave = (0.5 + 0.4 * torch.sin(2 * math.pi * 0.3 * torch.arange(16)))[:, None, None].expand(16, 16, 16)
    along_first = PatchTexture((16, 16, 16)).statistics(wave)
    along_second = PatchTexture((16, 16, 16)).statistics(wave.transpose(0, 1))
    assert along_first.shape == (10,)
    assert along_first[8] > 5 and along_second[9] > 5
    torch.testing.assert_close(along_first[:8], along_second[:8])


def test_channels_are_averaged_and_a_constant_image_is_finite():
    gray = torch.rand(1, 1, 8, 8)
    texture = PatchTexture((8, 8))
    torch.testing.assert_close(texture(gray.expand(1, 3, 8, 8)), texture(gray))
    assert texture(torch.zeros(1, 1, 8, 8)).isfinite().all()


def test_patches_too_small_for_a_spectrum_are_refused():
    with pytest.raises(ValueError, match="at least 4"):
        PatchTexture((2, 16))
