# Copyright (c) monai_usfm contributors
# SPDX-License-Identifier: Apache-2.0
"""Band-stop filtering against full-spectrum NumPy transforms, Parseval's theorem and the published ring recipe."""

from __future__ import annotations

from collections import Counter
from itertools import combinations, pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from monai.data import MetaTensor

from monai_usfm.transforms import (
    FourierBandStop,
    RandFourierBandStop,
    RandFourierBandStopd,
    apply_band_stop,
    draw_rings,
    equal_rings,
    frequency_radius,
    random_ring_masks,
    ring_mask,
    usfm_rings,
)

SHAPES = [(33,), (64,), (24, 31), (32, 32), (12, 9, 16)]


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def centered_radius(shape: tuple[int, ...], scale: tuple[float, ...] | None = None) -> np.ndarray:
    """Distance from the center of the shifted full spectrum, each axis in units of its own Nyquist frequency."""
    square = np.zeros(shape)
    for axis, size in enumerate(shape):
        offset = (np.arange(size) - size // 2) / (size / 2) * (1 if scale is None else scale[axis])
        square = square + np.expand_dims(offset**2, [i for i in range(len(shape)) if i != axis])
    return np.sqrt(square)


def full_spectrum_filter(image: np.ndarray, keep: np.ndarray) -> np.ndarray:
    axes = tuple(range(image.ndim - keep.ndim, image.ndim))
    spectrum = np.fft.fftshift(np.fft.fftn(image, axes=axes), axes=axes) * keep
    filtered = np.fft.ifftn(np.fft.ifftshift(spectrum, axes=axes), axes=axes)
    assert np.abs(filtered.imag).max() < 1e-12  # a symmetric mask leaves a real image
    return filtered.real


def official_masks(size: int, base: int, factor: float, most: int, protect: int) -> list[np.ndarray]:
    """The published recipe in words of our own, on the centerd spectrum: differences of growing discs."""
    rows, columns = np.indices((size, size)) - int(size / 2)
    distance = np.sqrt(rows**2 + columns**2)
    discs, radius, following = [], protect, base
    while int(size / 2) - radius >= 0:
        discs.append(np.where(distance <= radius, 0.0, 1.0))
        radius, following = following, following + min(int(following * factor), most)
    return [outer - inner + 1 for inner, outer in pairwise(discs)]


# ------------------------------------------------------------------------------------------------ functions


@pytest.mark.parametrize("shape", SHAPES)
def test_filtering_equals_the_shifted_full_spectrum(shape):
    image, rings = noise(3, *shape), [(0.2, 0.45), (0.8, 1.1)]
    radius = centered_radius(shape)
    keep = np.ones(shape)
    for low, high in rings:
        keep[(radius > low + 1e-12) & (radius <= high + 1e-12)] = 0
    ours = apply_band_stop(image, ring_mask(shape, rings))
    assert ours.shape == image.shape
    np.testing.assert_allclose(ours.numpy(), full_spectrum_filter(image.numpy(), keep), atol=1e-12)


@pytest.mark.parametrize(
    "parameters", [(224, 45, 0.7, 36, 15), (64, 10, 0.3, 4, 10), (96, 8, 0.5, 9, 0), (63, 7, 2, 5, 3)]
)
def test_usfm_rings_reproduce_the_official_masks(parameters):
    size, image = parameters[0], noise(1, parameters[0], parameters[0])
    expected = official_masks(*parameters)
    pixels = usfm_rings(*parameters)
    assert len(pixels) == len(expected)
    for (low, high), keep in zip(pixels, expected, strict=True):
        assert set(np.unique(keep)) <= {0.0, 1.0}
        half = ring_mask((size, size), [(low / (size / 2), high / (size / 2))])
        shifted = np.fft.ifftshift(keep)[:, : size // 2 + 1]
        np.testing.assert_array_equal(half.numpy(), shifted)
        np.testing.assert_allclose(
            apply_band_stop(image, half).numpy(), full_spectrum_filter(image.numpy(), keep), atol=1e-12
        )


def test_usfm_rings_give_the_drawn_example():
    assert usfm_rings(224, 45, 0.7, 36, 15) == [(15, 45), (45, 76), (76, 112)]


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ((224, 10, 0.05, 36, 5), "never grows"),  # int(10 * 0.05) == 0
        ((224, 10, 0.5, 0, 5), "never grows"),
        ((224, 10, 0.5, -3, 5), "never grows"),
        ((224, 10, -0.5, 9, 5), "never grows"),
        ((224, 10, 0.5, 9, 11), "amplifies"),
        ((224, 113, 0.5, 9, 11), "no ring"),
        ((224, 10, 0.5, 9, -1), "negative"),
        ((224, float("nan"), 0.5, 9, 1), "finite"),
    ],
)
def test_usfm_rings_refuse_what_the_official_code_cannot_do(parameters, message):
    with pytest.raises(ValueError, match=message):
        usfm_rings(*parameters)


@pytest.mark.parametrize("shape", SHAPES)
def test_removed_energy_is_that_of_the_rings(shape):
    image, ring = noise(*shape), (0.3, 0.7)
    removed = image - apply_band_stop(image[None], ring_mask(shape, [ring]))[0]
    spectrum = np.abs(np.fft.fftshift(np.fft.fftn(image.numpy()))) ** 2 / image.numel()  # Parseval
    radius = centered_radius(shape)
    inside = (radius > ring[0] + 1e-12) & (radius <= ring[1] + 1e-12)
    assert inside.any() and not inside.all()
    assert removed.square().sum().item() == pytest.approx(spectrum[inside].sum(), rel=1e-10)


@pytest.mark.parametrize("size", [32, 57, 128])
def test_a_ring_means_the_same_at_every_size(size):
    """A wave of a quarter of the Nyquist frequency goes at every size, one of three quarters stays."""
    position = torch.arange(size, dtype=torch.float64)
    cycles = [round(size / 2 * fraction) for fraction in (0.25, 0.75)]
    slow, fast = (torch.cos(2 * torch.pi * c * position / size).expand(size, size) for c in cycles)
    keep = ring_mask((size, size), [(0.15, 0.35)])
    torch.testing.assert_close(apply_band_stop((slow + fast)[None], keep)[0], fast, atol=1e-12, rtol=0)


@pytest.mark.parametrize("shape", SHAPES)
def test_radius_is_that_of_the_shifted_spectrum(shape):
    expected = np.fft.ifftshift(centered_radius(shape))[..., : shape[-1] // 2 + 1]
    np.testing.assert_allclose(frequency_radius(shape).numpy(), expected, atol=1e-12)


def test_mean_and_centre_disc_survive_every_ring():
    keep = ring_mask((32, 32), [(0.0, 2.0)], center_radius=0.25)
    radius = frequency_radius((32, 32))
    assert torch.equal(keep > 0, radius <= 0.25 + 1e-12)
    image = noise(1, 32, 32)
    bare = apply_band_stop(image, ring_mask((32, 32), [(0.0, 2.0)]))
    torch.testing.assert_close(bare, image.mean().expand_as(bare))


def test_sign_is_kept():
    image = noise(1, 32, 32) - 0.5
    out = apply_band_stop(image, ring_mask((32, 32), [(0.5, 0.6)]))
    assert out.min() < -0.3
    torch.testing.assert_close(apply_band_stop(-image, ring_mask((32, 32), [(0.5, 0.6)])), -out)


def test_a_batch_of_masks_filters_every_image_with_its_own():
    images = noise(4, 2, 16, 24)
    masks = random_ring_masks(4, (16, 24), generator=torch.Generator().manual_seed(3))
    together = apply_band_stop(images, masks)
    one_by_one = torch.stack([apply_band_stop(image, mask[0]) for image, mask in zip(images, masks, strict=True)])
    torch.testing.assert_close(together, one_by_one)


def test_expanded_gray_gives_what_copied_channels_give():
    gray, keep = noise(1, 16, 16), ring_mask((16, 16), [(0.3, 0.5)])
    torch.testing.assert_close(
        apply_band_stop(gray.expand(3, 16, 16), keep), apply_band_stop(gray.repeat(3, 1, 1), keep)
    )


def test_gradients_pass_through_the_filter():
    image = noise(1, 8, 9).requires_grad_()
    keep = ring_mask((8, 9), [(0.3, 0.7)])
    assert torch.autograd.gradcheck(lambda x: apply_band_stop(x, keep), (image,))


@pytest.mark.parametrize("shape", [(4, 9), (5, 9), (1, 4, 5), (8,)])
def test_a_mask_that_does_not_fit_is_refused(shape):
    with pytest.raises(ValueError, match="does not fit"):
        apply_band_stop(noise(2, 1, 8, 8), torch.ones(shape))


def test_ring_masks_of_a_batch_follow_the_documented_law():
    """Exactly floor(0.5 * 5) = 2 of 5 rings go, and each of the 10 pairs equally often."""
    masks = random_ring_masks(4000, (40,), num_rings=5, stop_ratio=0.5, center_radius=0.0, generator=torch.Generator())
    flags = masks[:, 0, [2, 6, 10, 14, 18]] == 0  # one sample in each ring of width 0.2
    for ring, (low, high) in enumerate(equal_rings(5, 0.0)):
        expected = ring_mask((40,), [(low, high)]) == 0
        assert ((masks[:, 0] == 0)[:, expected] == flags[:, ring : ring + 1]).all()  # whole rings only
    assert (flags.sum(1) == 2).all()
    counts = Counter(tuple(row.nonzero().flatten().tolist()) for row in flags)
    expected = 400
    chi_square = sum((counts[pair] - expected) ** 2 / expected for pair in combinations(range(5), 2))
    assert chi_square < 27.9  # 99.9 % of chi-square with 9 degrees of freedom


def test_ring_draws_of_one_image_follow_the_same_law():
    state, rings = np.random.RandomState(0), equal_rings(5, 0.0)
    counts = Counter(tuple(draw_rings(state, rings, 0.5)) for _ in range(2000))
    assert set(counts) == set(combinations(rings, 2))
    assert sum((n - 200) ** 2 / 200 for n in counts.values()) < 27.9


def test_ratio_range_is_drawn_per_image():
    masks = random_ring_masks(2000, (40,), num_rings=10, stop_ratio=(0.2, 0.7), center_radius=0.0)
    stopped = (masks[:, 0, 1:] == 0)[:, 1::2].sum(1)  # samples 2, 4, ... lie in rings 1, 2, ...
    assert stopped.min() == 2 and stopped.max() in (6, 7)
    assert stopped.float().mean().item() == pytest.approx(4.0, abs=0.15)  # floor of U(2, 7)


@pytest.mark.parametrize("arguments", [{"stop_ratio": 0.0}, {"stop_ratio": (0.6, 0.4)}, {"num_rings": 0}])
def test_impossible_draws_are_refused(arguments):
    with pytest.raises(ValueError):
        random_ring_masks(2, (8, 8), **arguments)
    with pytest.raises(ValueError):
        RandFourierBandStop(**arguments)


def test_overlapping_candidates_are_refused():
    with pytest.raises(ValueError, match="overlap"):
        RandFourierBandStop(rings=[(0.1, 0.5), (0.4, 0.6)])


# ------------------------------------------------------------------------------------------------ transforms


def test_random_form_removes_exactly_the_rings_it_reports():
    transform, image = RandFourierBandStop(prob=1.0).set_random_state(5), noise(2, 20, 33)
    for _ in range(3):
        out = transform(image)
        expected = FourierBandStop(transform.rings, center_radius=0.1)(image)
        torch.testing.assert_close(out, expected)
        assert torch.equal(transform.keep[0], ring_mask((20, 33), transform.rings, center_radius=0.1))


def test_the_same_state_gives_the_same_bits_and_another_one_does_not():
    image = noise(1, 32, 32)
    first, second, third = (RandFourierBandStop(prob=0.5).set_random_state(s) for s in (1, 1, 2))
    outs = [torch.stack([transform(image) for _ in range(8)]) for transform in (first, second, third)]
    assert torch.equal(outs[0], outs[1]) and not torch.equal(outs[0], outs[2])


def test_probability_zero_is_the_identity_with_an_all_pass_mask():
    image = noise(1, 9, 10)
    transform = RandFourierBandStop(prob=0.0)
    assert torch.equal(transform(image), image)
    assert transform.keep.shape == (1, 9, 6) and transform.keep.all()


def test_fixed_form_follows_a_change_of_size():
    transform = FourierBandStop([(0.3, 0.6)])
    for size in (8, 9, 8):  # 8 and 9 samples have half spectra of one shape
        image = noise(1, size, size, seed=size)
        torch.testing.assert_close(transform(image), apply_band_stop(image, ring_mask((size, size), [(0.3, 0.6)])))


def test_input_and_global_state_stay_untouched():
    image = noise(1, 16, 16)
    copy, numpy_state, torch_state = image.clone(), np.random.get_state()[1].copy(), torch.get_rng_state()
    RandFourierBandStop(prob=1.0)(image)
    assert torch.equal(image, copy)
    assert np.array_equal(np.random.get_state()[1], numpy_state) and torch.equal(torch.get_rng_state(), torch_state)


def test_metadata_survive():
    image = MetaTensor(noise(1, 16, 16).float(), affine=torch.diag(torch.tensor([2.0, 3.0, 1.0, 1.0])))
    out = FourierBandStop([(0.3, 0.6)])(image)
    assert isinstance(out, MetaTensor) and torch.equal(out.affine, image.affine)


def test_dictionary_form_draws_once_for_all_keys():
    image = noise(1, 16, 18)
    transform = RandFourierBandStopd(["a", "b"], prob=1.0).set_random_state(4)
    out = transform({"a": image, "b": image.clone(), "c": 1})
    assert torch.equal(out["a"], out["b"]) and not torch.equal(out["a"], image) and out["c"] == 1
    torch.testing.assert_close(out["a"].as_tensor(), apply_band_stop(image, transform.transform.keep[0]))


@settings(max_examples=25, deadline=None, derandomize=True)
@given(
    shape=st.lists(st.integers(1, 9), min_size=1, max_size=3),
    channels=st.sampled_from([1, 3, 4]),
    dtype=st.sampled_from([torch.uint8, torch.int16, torch.bool, torch.float16, torch.float32, torch.float64]),
    level=st.sampled_from([None, 0, 1]),
)
def test_any_image_gives_a_finite_one_of_the_same_mean(shape, channels, dtype, level):
    image = (noise(channels, *shape) * 100 if level is None else torch.full((channels, *shape), level)).to(dtype)
    out = RandFourierBandStop(prob=1.0).set_random_state(0)(image)
    assert out.shape == image.shape and out.dtype == (dtype if dtype.is_floating_point else torch.float32)
    assert torch.isfinite(out).all()
    assert out.double().mean().item() == pytest.approx(image.double().mean().item(), abs=0.1)
    if level is not None:
        torch.testing.assert_close(out.double(), image.double(), atol=1e-3, rtol=0)  # nothing but a mean to keep


@pytest.mark.parametrize("image", [
    torch.tensor([[[0.0, float("nan")]]]), torch.full((1, 4, 4), float("inf")), torch.ones(1, 0, 4), torch.ones(4),
    torch.ones(1, 2, 2, 2, 2),
])  # fmt: skip
def test_an_image_that_has_no_spectrum_is_refused(image):
    with pytest.raises(ValueError, match=r"NaN|\(C, \*S\)"):
        FourierBandStop([(0.3, 0.6)])(image)


@pytest.mark.parametrize("prob", [0.0, 1.0])
def test_integers_become_float_whether_or_not_a_ring_is_removed(prob):
    assert RandFourierBandStop(prob)(torch.zeros(1, 8, 8, dtype=torch.uint8)).dtype == torch.float32
