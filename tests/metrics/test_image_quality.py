# Copyright (c) monai_usfm contributors
# SPDX-License-Identifier: Apache-2.0
"""Image-quality metrics against closed forms, NumPy loops and the theory of speckle; a blur must not win."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from ignite.engine import Engine, Events
from monai.handlers import IgniteMetricHandler, from_engine
from scipy import ndimage, stats

from monai_usfm.metrics import (
    CNRMetric,
    EnhancementQualityMetric,
    GeneralizedCNRMetric,
    LocalNCCMetric,
    SpeckleSNRMetric,
)
from monai_usfm.physics.speckle import speckle_intensity


def halves(size: tuple[int, ...]) -> torch.Tensor:
    """(1, 2, *S): left half the region, right half the background."""
    left = torch.zeros(size, dtype=torch.bool)
    left[..., : size[-1] // 2] = True
    return torch.stack([left, ~left])[None].float()


def two_gaussians(shift: float, size: tuple[int, ...] = (400, 400)) -> torch.Tensor:
    """Unit normal noise, raised by ``shift`` in the left half, (1, 1, *S)."""
    noise = torch.randn((1, 1, *size), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return noise + shift * halves(size)[:, :1]


@pytest.mark.parametrize("size", [(40, 50), (10, 12, 14)])
def test_cnr_is_its_formula(size):
    image = two_gaussians(2.0, size)
    left, right = np.split(np.asarray(image[0, 0]), 2, axis=-1)
    expected = abs(left.mean() - right.mean()) / np.sqrt(left.var() + right.var())
    assert float(CNRMetric()(image, halves(size))) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("shift", [0.5, 1.0, 3.0])
def test_gcnr_of_two_gaussians_is_one_minus_their_overlap(shift):
    value = float(GeneralizedCNRMetric()(two_gaussians(shift), halves((400, 400))))
    assert value == pytest.approx(1 - 2 * stats.norm.cdf(-shift / 2), abs=0.01)


def test_gcnr_of_equal_regions_is_small_because_bins_grow_with_the_region():
    image, masks = two_gaussians(0.0, (20, 20)), halves((20, 20))
    default = float(GeneralizedCNRMetric()(image, masks))
    too_many = float(GeneralizedCNRMetric(num_bins=256)(image, masks))
    assert default < 0.25 < too_many


def test_gcnr_is_unchanged_by_any_increasing_change_of_gray_levels_and_cnr_is_not():
    image, masks = two_gaussians(1.0, (60, 60)), halves((60, 60))
    changed = torch.exp(1.5 * image)
    gcnr, cnr = GeneralizedCNRMetric(), CNRMetric()
    assert float(gcnr(image, masks)) == float(gcnr(changed, masks))
    assert abs(float(cnr(image, masks)) - float(cnr(changed, masks))) > 0.1


def test_gcnr_of_separable_regions_is_one():
    image = halves((16, 16))[:, :1] + 0.1 * torch.rand(1, 1, 16, 16)
    assert float(GeneralizedCNRMetric()(image, halves((16, 16)))) == 1.0


@pytest.mark.parametrize("inside", [0.8, 0.2])
@pytest.mark.parametrize("size", [30, 100, 200, 2000])
def test_gcnr_does_not_depend_on_the_sizes_of_the_regions(size, inside):
    masks = torch.zeros(1, 2, 10000)
    masks[0, 0, :size], masks[0, 1, size:] = 1, 1
    image = torch.where(masks[:, :1] > 0, inside, 0.5)
    noisy = image + 0.1 * torch.rand(image.shape, generator=torch.Generator().manual_seed(0))
    assert [float(GeneralizedCNRMetric()(x, masks)) for x in (image, noisy)] == [1.0, 1.0]


@pytest.mark.parametrize("looks", [1, 4])
def test_speckle_snr_is_that_of_theory(looks):
    generator = torch.Generator().manual_seed(0)
    intensity = speckle_intensity((1, 1, 400, 400), looks, generator=generator, dtype=torch.float64)
    envelope_snr = {1: 1.913, 4: 3.940}[looks]  # mean over std of a Rayleigh and of a chi distribution
    mask = torch.ones(1, 1, 400, 400)
    assert float(SpeckleSNRMetric(None)(intensity.sqrt(), mask)) == pytest.approx(envelope_snr, rel=0.01)
    compressed = 0.7 + 10 * torch.log10(intensity) / 80
    assert float(SpeckleSNRMetric(80.0)(compressed, mask)) == pytest.approx(envelope_snr, rel=0.01)


def numpy_lncc(a: np.ndarray, b: np.ndarray, window: int) -> float:
    """Plain loops over every window that fits."""
    total, count = 0.0, 0
    for corner in np.ndindex(*[n - window + 1 for n in a.shape]):
        cut = tuple(slice(c, c + window) for c in corner)
        x, y = a[cut] - a[cut].mean(), b[cut] - b[cut].mean()
        flat = [np.abs(v).max() < 1e-9 for v in (x, y)]
        if all(flat):
            continue
        count += 1
        if not any(flat):
            total += (x * y).sum() / np.sqrt((x**2).sum() * (y**2).sum())
    return total / count


@pytest.mark.parametrize("size", [(14, 17), (8, 9, 10)])
def test_lncc_agrees_with_a_plain_loop_also_where_windows_are_constant(size):
    generator = np.random.default_rng(0)
    a, b = generator.random(size), generator.random(size)
    a[..., :6], b[..., :7] = 0.2, 0.4
    value = LocalNCCMetric(window=4)(*(torch.from_numpy(v)[None, None] for v in (a, b)))
    assert float(value) == pytest.approx(numpy_lncc(a, b, 4), abs=1e-6)


def test_lncc_ignores_local_brightness_and_contrast_and_keeps_the_sign():
    image = torch.rand((1, 1, 24, 24), generator=torch.Generator().manual_seed(0))
    metric = LocalNCCMetric(window=5)
    assert float(metric(0.3 * image + 0.5, image)) == pytest.approx(1.0, abs=1e-5)
    assert float(metric(1 - image, image)) == pytest.approx(-1.0, abs=1e-5)
    assert float(metric(torch.full_like(image, 0.5), image)) == 0.0


def test_lncc_of_two_constant_images_is_undefined_and_left_out_of_the_mean():
    metric = LocalNCCMetric(window=3)
    image = torch.rand(1, 1, 8, 8)
    metric(torch.cat([torch.zeros(1, 1, 8, 8), image]), torch.cat([torch.ones(1, 1, 8, 8), image]))
    assert bool(metric.get_buffer()[0].isnan())
    assert float(metric.aggregate()) == pytest.approx(1.0, abs=1e-5)


def phantom(seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-compressed speckle with a dark and a gray lesion and a bright layer, (1, 1, 128, 128), and its two masks."""
    generator = torch.Generator().manual_seed(seed)
    rows, columns = torch.meshgrid(torch.arange(128), torch.arange(128), indexing="ij")
    lesion = (rows - 60) ** 2 + (columns - 50) ** 2 < 20**2
    level = 0.6 - 0.2 * lesion + 0.2 * ((rows - 105).abs() < 4)
    speckle = speckle_intensity((128, 128), psf_sigma=(1.0, 1.5), generator=generator, dtype=torch.float64)
    image = (level + 10 * torch.log10(speckle) / 60).clamp(0, 1)
    background = ((rows - 60) ** 2 + (columns - 50) ** 2 > 24**2) & (rows < 95)
    return image[None, None], torch.stack([lesion, background])[None].double()


def blurred(image: torch.Tensor, sigma: float) -> torch.Tensor:
    return torch.from_numpy(ndimage.gaussian_filter(image.numpy(), (0, 0, sigma, sigma)))


@pytest.mark.parametrize("sigma", [0.5, 1.0, 2.0, 4.0, 8.0])
def test_a_blur_does_not_win_over_the_clean_image_or_over_doing_nothing(sigma):
    for seed in range(3):
        clean, masks = phantom(seed)
        noise = torch.randn(clean.shape, generator=torch.Generator().manual_seed(9), dtype=torch.float64)
        degraded = (0.85 * clean + 0.02 * noise).clamp(0, 1)  # less gain and electronic noise
        target = torch.cat([clean, masks], dim=1)
        metric = EnhancementQualityMetric()
        ideal, nothing = float(metric(clean, target)), float(metric(degraded, target))
        assert ideal == pytest.approx(1.0, abs=1e-6)
        assert float(metric(blurred(clean, sigma), target)) < ideal - 0.02
        assert float(metric(blurred(degraded, sigma), target)) < nothing < ideal
        # the parts alone would have praised the blur: this is what the combination is for
        for part in (CNRMetric(), GeneralizedCNRMetric()):
            assert float(part(blurred(clean, max(sigma, 1.0)), masks)) > float(part(clean, masks))


def test_enhancement_quality_rewards_a_real_restoration():
    clean, masks = phantom(0)
    haze = (clean * 0.6 + 0.3).clamp(0, 1) + 0.05 * torch.randn(clean.shape, dtype=torch.float64).abs()
    target, metric = torch.cat([clean, masks], dim=1), EnhancementQualityMetric()
    values = [float(metric(haze + share * (clean - haze), target)) for share in (0.0, 0.5, 0.9)]
    assert values[0] < values[1] < values[2] < 1


METRICS = {
    "cnr": (CNRMetric, 2),
    "gcnr": (GeneralizedCNRMetric, 2),
    "snr": (SpeckleSNRMetric, 1),
    "lncc": (LocalNCCMetric, None),
    "quality": (EnhancementQualityMetric, 3),
}


def batch_for(channels: int | None) -> tuple[torch.Tensor, torch.Tensor]:
    image, masks = phantom(0)
    image = torch.cat([image, phantom(1)[0]])
    point = torch.zeros_like(image)
    point[..., 10:40, 100:120] = 1
    image[..., 25, 110], image[..., 22:25, 110], image[..., 26:29, 110] = 1.0, 0.2, 0.2
    y = {None: image.flip(0), 1: point, 2: masks.expand(2, -1, -1, -1)}.get(channels)
    return image, torch.cat([image, masks.expand(2, -1, -1, -1)], 1) if channels == 3 else y


@pytest.mark.parametrize("name", METRICS)
def test_metric_works_in_an_engine_as_in_a_loop(name):
    build, channels = METRICS[name]
    image, y = batch_for(channels)
    engine = Engine(lambda _, batch: None)
    engine.add_event_handler(
        Events.ITERATION_COMPLETED,
        lambda e: setattr(e.state, "output", [{"pred": i, "y": t} for i, t in zip(image, y, strict=True)]),
    )
    IgniteMetricHandler(metric_fn=build(), output_transform=from_engine(["pred", "y"])).attach(engine, "quality")
    engine.run([0, 0])
    values = build()(image, y)
    assert values.shape == (2, 1) and bool(torch.isfinite(values).all())
    assert engine.state.metrics["quality"] == pytest.approx(float(values.mean()), rel=1e-5)


@pytest.mark.parametrize("name", METRICS)
def test_metric_refuses_nan_and_leaves_its_input_alone(name):
    build, channels = METRICS[name]
    image, y = batch_for(channels)
    before = image.clone(), y.clone()
    build()(image, y)
    assert torch.equal(image, before[0]) and torch.equal(y, before[1])
    image[0, 0, 3, 3] = torch.nan
    with pytest.raises(ValueError, match="NaN"):
        build()(image, y)


def test_a_region_without_pixels_is_left_out_of_the_mean():
    image, masks = phantom(0)
    metric = CNRMetric()
    empty = masks.clone()
    empty[:, 0] = 0
    values = metric(torch.cat([image, image]), torch.cat([masks, empty]))
    assert bool(values[1].isnan())
    assert float(metric.aggregate()) == pytest.approx(float(values[0]))


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: GeneralizedCNRMetric(num_bins=1), "num_bins"),
        (lambda: SpeckleSNRMetric(-3.0), "dynamic_range_db"),
        (lambda: LocalNCCMetric(1), "window"),
        (lambda: LocalNCCMetric(9)(torch.zeros(1, 1, 4, 4), torch.ones(1, 1, 4, 4)), "window=9"),
        (lambda: CNRMetric()(torch.zeros(1, 1, 4, 4), torch.ones(1, 1, 4, 4)), "one mask channel"),
        (lambda: CNRMetric()(torch.zeros(1, 1, 4, 4), torch.ones(1, 2, 5, 4)), "y_pred must be"),
        (lambda: EnhancementQualityMetric()(torch.zeros(1, 1, 4, 4), torch.ones(1, 2, 4, 4)), "reference, region"),
    ],
)
def test_mistakes_are_named(call, words):
    with pytest.raises(ValueError, match=words):
        call()


def test_speckle_snr_of_a_flat_region_is_infinite():
    image, mask = torch.full((1, 1, 9, 9), 0.3), torch.ones(1, 1, 9, 9)
    assert SpeckleSNRMetric(60.0)(image, mask).isinf().all()
