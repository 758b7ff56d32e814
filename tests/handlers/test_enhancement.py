# Copyright (c) monai_usfm contributors
# SPDX-License-Identifier: Apache-2.0
"""The enhancement report: its numbers, and that a blur cannot pass for an enhancement."""

from __future__ import annotations

import csv
import json
import math

import numpy as np
import pytest
import torch
from ignite.engine import Engine
from monai.data import MetaTensor
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from monai_usfm.handlers import (
    EnhancementReport,
    best_blur,
    enhancement_panels,
    matched_blur,
    near_signal,
    score_enhancement,
    surrounding_region,
)
from monai_usfm.metrics import EnhancementQualityMetric, GeneralizedCNRMetric, LocalNCCMetric
from monai_usfm.transforms import gaussian_blur


def scene(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """A textured figure ``(1, 48, 64)`` with a darker disc, and the disc."""
    generator = torch.Generator().manual_seed(seed)
    disc = ((torch.arange(48.0)[:, None] - 22) ** 2 + (torch.arange(64.0) - 30) ** 2 < 100).float()[None]
    texture = gaussian_blur(torch.randn(1, 1, 48, 64, generator=generator), 1.0)[0]
    return (0.6 - 0.3 * disc + 0.25 * texture).clamp(0.02, 1), disc


def noisy(image: torch.Tensor, seed: int = 1) -> torch.Tensor:
    return (image + 0.1 * torch.randn(image.shape, generator=torch.Generator().manual_seed(seed))).clamp(0, 1)


def report(folder, items) -> tuple[list[dict[str, str]], dict]:
    """Run the handler over items of (before, after, target, masks)."""

    def step(engine: Engine, number: int) -> list[dict[str, torch.Tensor]]:
        before, after, target, masks = items[number]
        source = MetaTensor(before, meta={"filename_or_obj": f"figure_{number}.png"})
        engine.state.batch = [{"image": source, **masks}]
        return [{"image": before, "pred": after, "label": target}]

    engine = Engine(step)
    EnhancementReport(str(folder)).attach(engine)
    engine.run(range(len(items)))
    with open(folder / "cases.csv", newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file)), json.loads((folder / "summary.json").read_text())


@pytest.mark.parametrize("sigma", [0.6, 2.5])
@pytest.mark.parametrize("shape", [(1, 1, 48, 64), (1, 1, 16, 24, 24)])
def test_matched_blur_finds_the_blur_that_was_applied(sigma, shape):
    image = torch.rand(shape, generator=torch.Generator().manual_seed(0))
    blurred, found = matched_blur(image, gaussian_blur(image, sigma))
    assert found == pytest.approx(sigma, abs=0.03)
    torch.testing.assert_close(blurred, gaussian_blur(image, sigma), atol=0.03, rtol=0)


def test_matched_blur_of_an_unchanged_image_is_the_image():
    image = torch.rand(1, 1, 20, 20)
    torch.testing.assert_close(matched_blur(image, image)[0], image)
    assert matched_blur(image, 1 - image)[1] == 16  # no blur changes it as much


def test_best_blur_is_the_nearest_of_all_it_tries():
    target, _ = scene()
    image = noisy(target)[None]
    _, sigma = best_blur(image, target[None])
    errors = {s: (gaussian_blur(image, s) - target[None]).square().mean() for s in np.arange(0.3, 4.0, 0.05)}
    assert sigma == pytest.approx(min(errors, key=errors.get), rel=0.2)


def test_ring_lies_around_the_region_and_where_the_figure_is_not_black():
    region = torch.zeros(1, 1, 40, 40)
    region[..., 18:22, 18:22] = 1
    image = torch.ones(1, 1, 40, 40)
    image[..., :12] = 0
    ring = surrounding_region(region, image, gap=2, width=3)[0, 0]
    rows, columns = np.indices((40, 40))
    distance = np.maximum(np.maximum(18 - rows, rows - 21), np.maximum(18 - columns, columns - 21))
    np.testing.assert_array_equal(ring.numpy(), (distance > 2) & (distance <= 5) & (columns >= 12))


def test_scores_are_those_of_an_independent_computation():
    target, disc = scene()
    image = noisy(target)
    background = torch.zeros_like(disc)
    background[:, 38:] = 1
    scores = score_enhancement(image, target, disc, background)
    assert scores["psnr"] == pytest.approx(
        peak_signal_noise_ratio(target.numpy(), image.numpy(), data_range=1.0), rel=1e-5
    )
    inside, outside = image[disc > 0].double(), image[background > 0].double()
    noise = math.sqrt(inside.var(unbiased=False) + outside.var(unbiased=False))
    assert scores["cnr"] == pytest.approx(float(abs(inside.mean() - outside.mean()) / noise), rel=1e-4)
    envelope = 10 ** ((outside - 1) * 3)
    assert scores["speckle_snr"] == pytest.approx(float(envelope.mean() / envelope.std(unbiased=False)), rel=1e-4)
    whole = structural_similarity(
        target[0].numpy(), image[0].numpy(), data_range=1.0, gaussian_weights=True, use_sample_covariance=False
    )
    assert scores["ssim"] == pytest.approx(whole, abs=1e-3)
    assert scores["lncc"] == pytest.approx(LocalNCCMetric(9)(image[None], target[None]).item())
    y = torch.cat([target, disc, background])[None]
    assert scores["gcnr"] == pytest.approx(GeneralizedCNRMetric()(image[None], y[:, 1:]).item())
    assert scores["quality"] == pytest.approx(EnhancementQualityMetric()(image[None], y).item())


def test_volumes_thinner_than_the_windows_are_scored():
    volume = torch.rand(1, 6, 24, 24, generator=torch.Generator().manual_seed(0))
    scores = score_enhancement(volume, volume)
    assert scores["ssim"] == pytest.approx(1.0) and scores["lncc"] == pytest.approx(1.0, abs=1e-4)


def test_without_masks_contrast_is_not_a_number_and_structure_is():
    target, _ = scene()
    scores = score_enhancement(target, target)
    assert math.isinf(scores["psnr"]) and scores["ssim"] == pytest.approx(1) and scores["lncc"] == pytest.approx(1)
    assert all(math.isnan(scores[name]) for name in ("cnr", "gcnr", "speckle_snr", "quality"))
    lines = target[:, :2]  # too thin for any window
    thin = score_enhancement(lines, lines, lines)
    assert list(thin) == list(scores) and [name for name in thin if not math.isnan(thin[name])] == ["psnr"]


def test_a_network_that_only_blurs_does_not_beat_the_blur(tmp_path):
    items = []
    for seed in range(3):
        target, disc = scene(seed)
        before = noisy(target, seed + 10)
        items.append((before, gaussian_blur(before[None], 2.5)[0], target, {"roi": disc}))
    _, summary = report(tmp_path, items)
    assert summary["enhanced"]["cnr"] > summary["input"]["cnr"]  # contrast alone would have praised it
    assert summary["blur_wins"]["psnr"] == summary["blur_wins"]["lncc"] == 1.0


def test_a_network_that_recovers_the_target_beats_the_blur(tmp_path):
    items = []
    for seed in range(3):
        target, disc = scene(seed)
        before = noisy(target, seed + 10)
        items.append((before, 0.2 * before + 0.8 * target, target, {"roi": disc}))
    rows, summary = report(tmp_path, items)
    assert set(summary["blur_wins"].values()) == {0.0}
    assert [name for name in summary if "blur_sigma" in str(summary[name])] == ["matched_blur", "best_blur"]
    assert [row["method"] for row in rows[:4]] == ["input", "enhanced", "matched_blur", "best_blur"]
    assert [row["image"] for row in rows[::4]] == [f"figure_{i}.png" for i in range(3)]
    enhanced = [float(row["psnr"]) for row in rows if row["method"] == "enhanced"]
    assert summary["enhanced"]["psnr"] == pytest.approx(np.mean(enhanced), abs=1e-4)


def test_a_report_without_masks_is_valid_json_without_contrast(tmp_path):
    target, _ = scene()
    _, summary = report(tmp_path, [(noisy(target), target, target, {})])
    assert summary["cases"] == 1 and summary["enhanced"]["cnr"] is None
    assert summary["enhanced"]["psnr"] is None  # infinite: nothing is left to remove
    assert summary["blur_wins"]["quality"] is None and summary["blur_wins"]["psnr"] == 0.0


def test_panels_show_the_change_around_gray():
    target, _ = scene()
    target = target.expand(3, -1, -1)
    item = {"image": target, "pred": target - 0.05}
    assert list(enhancement_panels([item])) == ["before", "after", "change x4"]
    panels = enhancement_panels([{**item, "label": target}])
    assert list(panels) == ["before", "after", "change x4", "target"]
    torch.testing.assert_close(panels["change x4"], torch.full((1, 1, 48, 64), 0.3))


def test_the_field_of_view_ends_where_the_sector_ends_and_has_no_holes():
    y, x = np.mgrid[:120, :140]
    radius, angle = np.hypot(y + 20, x - 70), np.arctan2(x - 70, y + 20)
    sector = (radius < 125) & (radius > 40) & (abs(angle) < 0.5)
    image = sector * np.random.default_rng(0).integers(0, 2, sector.shape)  # every other echo is black
    found = near_signal(torch.from_numpy(image)[None].float())[0].numpy()
    assert found[sector].mean() > 0.97 and found[~sector].mean() < 0.02
    assert found[image > 0].all()
    assert near_signal(torch.ones(1, 20, 30)).all() and not near_signal(torch.zeros(1, 20, 30)).any()
