# Copyright (c) monai_usfm contributors
# SPDX-License-Identifier: Apache-2.0
"""Speckle against the closed forms of Rayleigh, gamma and log-Rayleigh statistics and of Gaussian autocorrelation."""

from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.ndimage
import scipy.special
import scipy.stats
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from monai.data import MetaTensor

from monai_usfm.transforms import (
    BeamGeometry,
    RandSpeckleNoise,
    RandSpeckleNoised,
    SpeckleNoise,
    SpeckleNoised,
    add_speckle,
    respeckle,
    speckle_intensity,
)

CONVEX = BeamGeometry("convex", apex=(-60.0, 96.0), radii=(80.0, 250.0), angles=(-0.5, 0.5))


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def decibels(intensity: torch.Tensor) -> np.ndarray:
    return 10 * np.log10(intensity.double().numpy())


def autocovariance_width(field: np.ndarray, axis: int) -> float:
    """Full width at half maximum, by linear interpolation, of the autocovariance along one axis of many draws."""
    spectrum = np.abs(np.fft.rfft(field - field.mean(), n=2 * field.shape[axis], axis=axis)) ** 2
    covariance = np.fft.irfft(spectrum, axis=axis).mean(axis=tuple(i for i in range(field.ndim) if i != axis))
    lags = np.arange(field.shape[axis])
    covariance = covariance[: len(lags)] / (len(lags) - lags)  # unbiased
    covariance /= covariance[0]
    beyond = int(np.argmax(covariance < 0.5))
    step = (covariance[beyond - 1] - 0.5) / (covariance[beyond - 1] - covariance[beyond])
    return 2 * (beyond - 1 + step)


# ------------------------------------------------------------------------------------------- first-order statistics


@pytest.mark.parametrize("psf_sigma", [None, (1.0, 1.0)])
@pytest.mark.parametrize("looks", [1, 2, 4])
def test_decibels_follow_the_log_gamma_law(looks, psf_sigma):
    level = decibels(speckle_intensity((24, 160, 160), looks, psf_sigma, generator=generator()))
    scale = 10 / math.log(10)
    assert level.std() == pytest.approx(scale * math.sqrt(scipy.special.polygamma(1, looks)), rel=0.01)
    assert level.mean() == pytest.approx(scale * (scipy.special.digamma(looks) - math.log(looks)), abs=0.06)
    skew = scipy.special.polygamma(2, looks) / scipy.special.polygamma(1, looks) ** 1.5
    assert scipy.stats.skew(level.ravel()) == pytest.approx(skew, abs=0.03)


@pytest.mark.parametrize("looks", [0.6, 1, 1.7, 4, 6.3])
def test_independent_intensity_is_gamma_distributed(looks):
    """Kolmogorov-Smirnov distance of 90 000 samples; 0.0054 is exceeded once in a hundred draws."""
    intensity = speckle_intensity((300, 300), looks, generator=generator(1)).numpy().ravel()
    assert scipy.stats.kstest(intensity, scipy.stats.gamma(looks, scale=1 / looks).cdf).statistic < 0.0054


@pytest.mark.parametrize("looks", [1, 3])
def test_correlated_intensity_is_gamma_distributed(looks):
    far = speckle_intensity((60, 200, 200), looks, (1.0, 1.5), generator=generator(2))[:, ::8, ::12]  # independent
    assert scipy.stats.kstest(far.numpy().ravel(), scipy.stats.gamma(looks, scale=1 / looks).cdf).statistic < 0.009


def test_lower_tail_reaches_deep_nulls():
    level = decibels(speckle_intensity((1000, 1000), generator=generator()))
    assert (level < -30).mean() == pytest.approx(1 - math.exp(-1e-3), rel=0.15)
    assert np.isfinite(level).all()


@pytest.mark.parametrize("shape", [(4000, 1), (4000, 3, 2), (3000, 1, 5, 4)])
def test_mean_is_one_in_expectation_and_not_in_each_draw(shape):
    intensity = speckle_intensity(shape, 1, (2.0,) * (len(shape) - 1), generator=generator()).flatten(1)
    assert intensity.mean().item() == pytest.approx(1, abs=0.06)
    assert intensity.mean(1).std() > 0.3


# ------------------------------------------------------------------------------------------- second-order statistics


@pytest.mark.parametrize(("shape", "sigmas"), [((40, 192, 192), (1.5, 3.0)), ((4, 48, 64, 64), (1.0, 1.5, 2.5))])
def test_autocovariance_widths_are_those_of_the_psf(shape, sigmas):
    intensity = speckle_intensity(shape, 1, sigmas, generator=generator(1)).double().numpy()
    for axis, sigma in enumerate(sigmas, start=1):
        assert autocovariance_width(intensity, axis) == pytest.approx(2.355 * sigma, rel=0.06)
        assert autocovariance_width(np.sqrt(intensity), axis) == pytest.approx(2.28 * sigma, rel=0.06)
        assert autocovariance_width(10 * np.log10(intensity), axis) == pytest.approx(1.84 * sigma, rel=0.06)


def test_statistics_are_stationary_up_to_the_border_and_opposite_borders_are_strangers():
    intensity = speckle_intensity((6000, 24), 1, (2.0,), generator=generator()).double().numpy()
    assert np.abs(intensity.mean(0) - 1).max() < 0.06  # four standard errors
    correlation = np.corrcoef(intensity.T)
    assert abs(correlation[0, -1]) < 0.05
    assert correlation[0, 1] == pytest.approx(correlation[11, 12], abs=0.04)
    assert correlation[0, 1] == pytest.approx(math.exp(-1 / 8), abs=0.03)  # exp(-lag^2 / (2 sigma^2))


def test_a_psf_of_no_width_leaves_samples_independent():
    intensity = speckle_intensity((50, 64, 64), 1, (0.0, 2.0), generator=generator()).double().numpy()
    rows = np.corrcoef(intensity[:, :-1].ravel(), intensity[:, 1:].ravel())[0, 1]
    assert abs(rows) < 0.02


def test_one_sigma_counts_for_the_spatial_axes_of_a_batch():
    batch = speckle_intensity((500, 2, 16, 16), 1, 1.5, generator=generator()).double().numpy()
    assert abs(np.corrcoef(batch[:, 0].ravel(), batch[:, 1].ravel())[0, 1]) < 0.02
    assert np.corrcoef(batch[..., 1:, :].ravel(), batch[..., :-1, :].ravel())[0, 1] > 0.7


# ------------------------------------------------------------------------------------------- on images


@pytest.mark.parametrize("dynamic_range_db", [40.0, 60.0, 80.0])
def test_added_speckle_spreads_by_the_strength_in_decibels(dynamic_range_db):
    image, speckle = torch.full((1, 1, 300, 300), 0.7), speckle_intensity((1, 1, 300, 300), 1, generator=generator())
    for strength in (0.3, 0.6):
        out = add_speckle(image, speckle, dynamic_range_db, strength)
        assert out.std().item() * dynamic_range_db == pytest.approx(strength * 5.57, rel=0.01)


def test_linear_speckle_multiplies_the_envelope():
    speckle = speckle_intensity((1, 1, 200, 200), 1, generator=generator())
    out = add_speckle(torch.full_like(speckle, 0.25), speckle, None)
    np.testing.assert_allclose(out.numpy(), 0.25 * np.sqrt(speckle.numpy()), rtol=1e-6)
    half = add_speckle(torch.full_like(speckle, 0.25), speckle, None, strength=0.5)
    assert decibels(half.square()).std() == pytest.approx(5.57 / 2, rel=0.02)


def test_speckle_on_speckle_spreads_by_the_root_of_two_and_respeckling_does_not():
    first, second = speckle_intensity((2, 1, 320, 320), 1, (1.0, 1.0), generator=generator())[:, None]
    image = add_speckle(torch.full((1, 1, 320, 320), 0.75), first, 80.0)
    added = add_speckle(image, second, 80.0)
    replaced = respeckle(image, second, 80.0, window=9)
    assert added.std().item() * 80 == pytest.approx(5.57 * 2**0.5, rel=0.03)
    assert replaced.std().item() * 80 == pytest.approx(5.57, rel=0.06)


@pytest.mark.parametrize("new", [1, 4])
@pytest.mark.parametrize("psf_sigma", [None, 1.0])
def test_respeckling_keeps_the_mean_intensity_of_the_tissue(new, psf_sigma):
    image, truth = torch.full((1, 1, 256, 256), 0.7), 10 ** (0.7 * 8)
    image = add_speckle(image, speckle_intensity(image.shape, 1, psf_sigma, generator=generator()), 80.0)
    out = respeckle(image, speckle_intensity(image.shape, new, generator=generator(1)), 80.0, window=9)
    assert (10 ** (out * 8)).mean().item() == pytest.approx(truth, rel=0.1)


def test_respeckling_an_envelope_keeps_its_intensity():
    envelope = 0.3 * speckle_intensity((1, 1, 256, 256), 1, generator=generator()).sqrt()
    out = respeckle(envelope, speckle_intensity(envelope.shape, 1, generator=generator(1)), None, window=9)
    assert out.square().mean().item() == pytest.approx(0.09, rel=0.03)


def test_the_black_surroundings_do_not_darken_the_rim_of_a_respeckled_sector():
    fov = CONVEX.mask((200, 192))[None]
    image = torch.where(fov, 0.6, 0.0)
    out = respeckle(image, torch.ones_like(image), 60.0)
    assert not out[~fov].any()
    inner = torch.from_numpy(scipy.ndimage.binary_opening(fov[0, 0].numpy(), np.ones((7, 7))))[None, None]
    torch.testing.assert_close(out[inner], image[inner] + 1.592 / 60, atol=1e-4, rtol=0)


def test_real_images_keep_their_brightness_when_respeckled(shared_data):
    from PIL import Image

    files = sorted((shared_data / "busbra" / "images").glob("*.png"))[::400]
    for file in files:
        with Image.open(file) as pixels:
            image = torch.from_numpy(np.asarray(pixels.convert("L"), dtype=np.float32) / 255)[None]
        out = SpeckleNoise(mode="respeckle", psf_sigma=1.5).set_random_state(0)(image)
        assert out.mean().item() == pytest.approx(image.mean().item(), abs=0.04)
        assert np.corrcoef(*(scipy.ndimage.gaussian_filter(x[0].numpy(), 6).ravel() for x in (image, out)))[0, 1] > 0.95


def edge_profile(estimate: np.ndarray) -> tuple[float, float, float]:
    """10-90 % width of a vertical edge, and the levels far from it on either side."""
    profile = estimate.reshape(-1, estimate.shape[-1]).mean(0)
    low, high = profile[:16].mean(), profile[-16:].mean()
    rise, middle = (profile - low) / (high - low), len(profile) // 2
    near = slice(middle - 16, middle + 16)
    position = np.interp([0.1, 0.9], np.maximum.accumulate(rise[near]), np.arange(32))
    return position[1] - position[0], low, high


@pytest.mark.parametrize(("shape", "psf_sigma"), [((64, 96), None), ((64, 96), 1.0), ((20, 32, 96), 1.0)])
@pytest.mark.parametrize("display", [80.0, None])
def test_the_echogenicity_of_a_step_is_sharp_and_unbiased_on_both_sides(shape, psf_sigma, display):
    """A mean over the same reach, 7.7 samples wide between 10 and 90 %, fails."""
    level = torch.where(torch.arange(96) >= 48, 60.0, 40.0).expand(8, 1, *shape)
    speckle = speckle_intensity((8, 1, *shape), 1, psf_sigma, generator=generator())
    image = add_speckle(level / 80 if display else 10 ** ((level - 60) / 20), speckle, display)
    out = respeckle(image, torch.ones(()), display)  # speckle of 1 leaves the estimate
    estimate = out.numpy() * 80 if display else 20 * np.log10(out.numpy()) + 60
    width, low, high = edge_profile(estimate)
    assert width < 5
    assert (low, high) == (pytest.approx(40, abs=0.5), pytest.approx(60, abs=0.5))


@pytest.mark.parametrize("axis", [1, 2, 3])
def test_an_edge_across_any_axis_of_a_volume_is_kept(axis):
    image = torch.full((1, 1, 24, 24, 24), 0.3)
    image.narrow(axis + 1, 12, 12).fill_(0.7)
    torch.testing.assert_close(respeckle(image, torch.ones(()), 60.0), image + 1.592 / 60, atol=1e-4, rtol=0)


# ------------------------------------------------------------------------------------------- transforms


@pytest.mark.parametrize("psf_sigma", [None, 1.0])
def test_transform_adds_log_rayleigh_noise(psf_sigma):
    image = torch.full((1, 320, 320), 0.7)
    out = SpeckleNoise(psf_sigma=psf_sigma).set_random_state(0)(image)
    assert out.std().item() * 60 == pytest.approx(5.57, rel=0.04)
    assert (out.mean().item() - 0.7) * 60 == pytest.approx(-2.51, abs=0.15)


@pytest.mark.parametrize("mode", ["add", "respeckle"])
@pytest.mark.parametrize("psf_sigma", [None, (1.0, 2.0)])
def test_the_same_state_gives_the_same_bits_and_a_new_call_new_speckle(mode, psf_sigma):
    image = torch.rand(1, 32, 40, generator=generator())
    first, second = (RandSpeckleNoise(1.0, mode=mode, psf_sigma=psf_sigma).set_random_state(3) for _ in range(2))
    outs = [first(image), first(image)]
    assert not torch.equal(*outs)
    assert torch.equal(outs[0], second(image)) and torch.equal(outs[1], second(image))
    assert torch.equal(outs[1], first(image, randomize=False))


def test_drawn_parameters_fill_their_ranges():
    transform = RandSpeckleNoise(0.5, looks=(1, 3), strength=(0.2, 0.9)).set_random_state(0)
    looks, strengths, acted = set(), [], 0
    for _ in range(400):
        transform.randomize()
        acted += transform._do_transform
        looks.add(transform.looks)
        strengths.append(transform.strength)
    assert looks == {1, 2, 3} and 150 < acted < 250
    assert 0.2 <= min(strengths) < 0.22 and 0.88 < max(strengths) <= 0.9


def test_probability_zero_is_the_identity():
    image = torch.rand(2, 9, 10, generator=generator())
    assert torch.equal(RandSpeckleNoise(prob=0.0)(image), image)


@pytest.mark.parametrize("mode", ["add", "respeckle"])
@pytest.mark.parametrize("dynamic_range_db", [60.0, None])
def test_outside_the_field_of_view_nothing_changes(mode, dynamic_range_db):
    image = torch.rand(1, 200, 192, generator=generator())
    fov = CONVEX.mask((200, 192))
    image[~fov] = 0
    image[0, :4, :20] = 1.0  # a burned-in mark
    out = SpeckleNoise(mode=mode, dynamic_range_db=dynamic_range_db).set_random_state(0)(image, fov)
    assert torch.equal(out[~fov], image[~fov]) and not torch.allclose(out[fov], image[fov])


@pytest.mark.parametrize("mode", ["add", "respeckle"])
def test_black_surroundings_stay_black_without_a_mask(mode):
    fov = CONVEX.mask((200, 192))
    image = torch.where(fov, add_speckle(torch.tensor(0.5), speckle_intensity((1, 200, 192), generator=generator())), 0)
    out = SpeckleNoise(mode=mode).set_random_state(0)(image)
    grown = scipy.ndimage.binary_dilation(fov[0].numpy(), iterations=4)
    assert not out[0].numpy()[~grown].any()


def test_all_channels_get_the_same_speckle():
    out = SpeckleNoise().set_random_state(0)(torch.full((3, 16, 16), 0.6))
    assert torch.equal(out[0], out[1]) and torch.equal(out[0], out[2])


def test_input_metadata_and_global_state_stay_untouched():
    image = MetaTensor(torch.rand(1, 16, 16, generator=generator()), affine=torch.diag(torch.tensor([2.0, 3, 1, 1])))
    copy, numpy_state, torch_state = image.clone(), np.random.get_state()[1].copy(), torch.get_rng_state()
    for psf_sigma in (None, 1.0):
        out = RandSpeckleNoise(1.0, psf_sigma=psf_sigma)(image)
        assert isinstance(out, MetaTensor) and torch.equal(out.affine, image.affine)
    assert torch.equal(image, copy)
    assert np.array_equal(np.random.get_state()[1], numpy_state) and torch.equal(torch.get_rng_state(), torch_state)


def test_dictionary_form_draws_once():
    image, fov = torch.full((1, 64, 64), 0.6), torch.zeros(1, 64, 64)
    fov[:, 20:50, 20:50] = 1
    data = {"a": image, "b": image.clone(), "fov": fov}
    for build in (SpeckleNoised(["a", "b"], fov_key="fov"), RandSpeckleNoised(["a", "b"], 1.0, fov_key="fov")):
        first = build.set_random_state(2)(data)
        assert torch.equal(first["a"], first["b"]) and torch.equal(first["a"][fov == 0], image[fov == 0])
        assert first["a"][fov > 0].std() > 0.01 and set(data) == {"a", "b", "fov"}


@settings(max_examples=25, deadline=None, derandomize=True)
@given(
    shape=st.lists(st.integers(1, 9), min_size=1, max_size=3),
    channels=st.sampled_from([1, 3, 4]),
    dtype=st.sampled_from([torch.float16, torch.float32, torch.float64]),
    level=st.sampled_from([None, 0.0, 0.5, 1.0]),
    mode=st.sampled_from(["add", "respeckle"]),
    psf_sigma=st.sampled_from([None, 0.0, 1.5]),
    dynamic_range_db=st.sampled_from([None, 60.0]),
    fov=st.sampled_from([None, 0, 1]),
)
def test_any_image_gives_a_finite_one_in_range(shape, channels, dtype, level, mode, psf_sigma, dynamic_range_db, fov):
    image = (
        torch.rand(channels, *shape, generator=generator()) if level is None else torch.full((channels, *shape), level)
    )
    image = image.to(dtype)
    mask = None if fov is None else torch.full((1, *shape), fov)
    transform = RandSpeckleNoise(1.0, (1, 2), dynamic_range_db, psf_sigma, mode).set_random_state(0)
    out = transform(image, fov=mask)
    assert out.shape == image.shape and out.dtype == dtype and torch.isfinite(out).all() and out.min() >= 0
    assert dynamic_range_db is None or out.max() <= 1
    if fov == 0 or level == 0:
        assert torch.equal(out, image)


@pytest.mark.parametrize(("image", "message"), [
    (torch.full((1, 4, 4), 200, dtype=torch.uint8), "scale it"),
    (torch.full((1, 4, 4), 200.0), "scale it"),
    (torch.full((1, 4, 4), float("nan")), "NaN"),
    (torch.tensor([[[0.5, float("inf")]]]), "NaN"),
    (torch.ones(1, 0, 4), "empty"),
    (torch.ones(4), "1 to 3 axes"),
])  # fmt: skip
def test_an_image_that_cannot_be_taken_is_refused(image, message):
    with pytest.raises(ValueError, match=message):
        SpeckleNoise()(image)


@pytest.mark.parametrize("arguments", [
    {"looks": 0}, {"looks": 1.5}, {"looks": float("nan")}, {"mode": "replace"}, {"strength": -1.0},
    {"dynamic_range_db": 0.0}, {"psf_sigma": -1.0},
])  # fmt: skip
def test_impossible_parameters_are_refused(arguments):
    with pytest.raises(ValueError, match=next(iter(arguments))):
        SpeckleNoise(**arguments)


@pytest.mark.parametrize("arguments", [{"looks": (4, 1)}, {"looks": (0, 1)}, {"strength": (1.0, 0.5)}])
def test_impossible_ranges_are_refused(arguments):
    with pytest.raises(ValueError, match=next(iter(arguments))):
        RandSpeckleNoise(**arguments)


def test_a_psf_for_other_axes_is_refused():
    with pytest.raises(ValueError, match="psf_sigma"):
        SpeckleNoise(psf_sigma=(1.0, 2.0))(torch.rand(1, 4, 4, 4))


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16])
@pytest.mark.parametrize("wrap", [torch.as_tensor, MetaTensor, lambda x: x.numpy()])
def test_integers_become_float_and_do_not_wrap_around(dtype, wrap):
    image = torch.full((1, 64, 64), 120, dtype=dtype)
    out = SpeckleNoise(dynamic_range_db=None).set_random_state(0)(wrap(image))
    expected = SpeckleNoise(dynamic_range_db=None).set_random_state(0)(image.float())
    assert out.max() > 255 and torch.as_tensor(out).dtype == torch.float32
    torch.testing.assert_close(torch.as_tensor(out).as_subclass(torch.Tensor), expected.as_subclass(torch.Tensor))
