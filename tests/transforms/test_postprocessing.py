# Copyright (c) monai_usfm contributors
# SPDX-License-Identifier: Apache-2.0
"""Wavelet denoising by the published rule, CLAHE against OpenCV, salt and pepper by counting."""

from __future__ import annotations

import numpy as np
import pytest
import pywt
import torch

from monai_usfm.transforms import (
    RandSaltAndPepper,
    RandWaveletDenoise,
    birge_massart_keep,
    clahe,
    salt_and_pepper,
    wavelet_denoise,
)
from monai_usfm.transforms.speckle import speckle_intensity


def test_counts_are_those_of_the_published_example():
    # the manual of MATLAB's wdcbm: 501 samples, db3, 5 levels, alpha 1.5 keeps 1 2 3 4 7 (finest first)
    coarsest = len(pywt.wavedec(np.zeros(501), "db3", level=5)[0])
    assert birge_massart_keep(5, coarsest, alpha=1.5) == [1, 2, 3, 4, 7]


def test_only_the_largest_coefficients_of_each_level_survive():
    generator = torch.Generator().manual_seed(0)
    image = (0.4 + 0.1 * torch.rand((1, 64, 64), generator=generator, dtype=torch.float64)).clamp(0, 1)
    # Haar, two levels, even sizes: the decomposition of the result shows exactly what was kept
    out = wavelet_denoise(image, "haar", levels=2, alpha=3.0)
    approximation, coarse, fine = pywt.wavedec2(np.asarray(out[0]), "haar", level=2)
    kept = [int((np.abs(np.stack(bands)) > 1e-9).sum()) for bands in (fine, coarse)]
    assert kept == [round(256 / 27), round(256 / 8)]
    np.testing.assert_allclose(approximation, pywt.wavedec2(np.asarray(image[0]), "haar", level=2)[0], atol=1e-9)


def test_denoising_does_not_depend_on_the_image_area():
    # thresholds that are counts, as in the code of the paper, would grow with the area and flatten large images
    stds = []
    for size in (64, 256):
        generator = torch.Generator().manual_seed(1)
        speckle = 10 * torch.log10(
            speckle_intensity((1, size, size), psf_sigma=1.0, spatial_dims=2, generator=generator)
        )
        image = (0.6 + speckle / 60).clamp(0, 1)
        stds.append(float(wavelet_denoise(image).std() / image.std()))
    assert stds[0] == pytest.approx(stds[1], rel=0.15) and stds[1] < 0.8


def test_denoising_moves_a_noisy_edge_towards_the_clean_one():
    clean = torch.full((1, 96, 96), 0.3)
    clean[:, 40:] = 0.7
    noisy = clean + 0.05 * torch.randn(clean.shape, generator=torch.Generator().manual_seed(0))
    for alpha in (1.5, 3.0):
        out = wavelet_denoise(noisy, "db2", alpha=alpha)
        assert float((out - clean).square().mean()) < 0.6 * float((noisy - clean).square().mean())


def test_sparser_is_smoother():
    image = torch.rand((1, 64, 64), generator=torch.Generator().manual_seed(0))
    spread = [float(wavelet_denoise(image, alpha=alpha).std()) for alpha in (0.5, 1.5, 3.5)]
    assert float(image.std()) > spread[0] > spread[1] > spread[2]


def test_axes_too_short_for_the_wavelet_are_left_out():
    image = torch.rand((1, 3, 64, 64))
    out = wavelet_denoise(image)
    assert out.shape == image.shape and float(out.std()) < float(image.std())
    tiny = torch.rand((1, 5, 4))
    assert torch.equal(wavelet_denoise(tiny), tiny)


def test_random_wavelets_and_sparsity_come_from_their_ranges():
    effect = RandWaveletDenoise(1.0, alpha=(2.0, 3.0), wavelets=("db2", "db5")).set_random_state(0)
    drawn = []
    for _ in range(200):
        effect.randomize(torch.zeros(1, 4, 4))
        drawn.append(effect.params["wavelet"])
        assert 2 <= effect.params["alpha"] <= 3
    assert 70 < drawn.count("db2") < 130


def test_clahe_agrees_with_opencv():
    cv2 = pytest.importorskip("cv2")
    rows, columns = np.mgrid[0:192, 0:192] / 192
    generator = np.random.default_rng(0)
    image = (0.3 + 0.3 * rows + 0.1 * np.sin(12 * columns) + 0.03 * generator.standard_normal((192, 192))).clip(0, 1)
    for limit in (2.0, 5.0):
        ours = np.asarray(clahe(torch.from_numpy(image)[None], limit, tiles=6)[0])
        eight = cv2.createCLAHE(limit, (6, 6)).apply((image * 255).astype(np.uint8)) / 255
        eight = (eight - eight.min()) / np.ptp(eight)  # scikit-image stretches its result to the full range
        assert np.corrcoef(ours.ravel(), eight.ravel())[0, 1] > 0.95
        assert ours.std() / eight.std() == pytest.approx(1.0, abs=0.1)


def test_clahe_takes_a_volume_with_three_columns_for_a_volume():
    volume = torch.rand((1, 12, 10, 3), generator=torch.Generator().manual_seed(0))
    wide = torch.cat([volume, volume[..., 2:]], dim=-1)
    assert clahe(volume).shape == volume.shape and clahe(wide).shape == wide.shape


def test_salt_and_pepper_hits_the_asked_fractions_inside_the_field_of_view():
    fov = torch.zeros(1, 400, 400)
    fov[:, 100:] = 1
    image = 0.5 * fov
    uniform = torch.rand((1, 400, 400), generator=torch.Generator().manual_seed(0))
    out = salt_and_pepper(image, uniform, salt=0.02, pepper=0.05, fov=fov)
    inside = out[fov > 0]
    assert float((inside == 1).double().mean()) == pytest.approx(0.02, abs=0.002)
    assert float((inside == 0).double().mean()) == pytest.approx(0.05, abs=0.003)
    assert float(out[fov == 0].max()) == 0
    assert float(((inside != 0) & (inside != 1) & (inside != 0.5)).sum()) == 0


@pytest.mark.parametrize(
    ("build", "words"),
    [
        (lambda: clahe(torch.zeros(1, 4, 4), clip_limit=0), "clip_limit"),
        (lambda: clahe(torch.zeros(1, 4, 4), tiles=(2, 2, 2)), "tiles"),
        (lambda: RandSaltAndPepper(fraction=(0.1, 0.6)), "fraction"),
        (lambda: salt_and_pepper(torch.zeros(1, 2, 2), torch.zeros(1, 2, 2), 0.7, 0.7), "sum to at most 1"),
        (lambda: RandWaveletDenoise(wavelets=()), "wavelets"),
        (lambda: birge_massart_keep(0, 10), "must be positive"),
    ],
)
def test_mistakes_are_named(build, words):
    with pytest.raises(ValueError, match=words):
        build()
