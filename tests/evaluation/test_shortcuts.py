# Copyright (c) monai_usfm contributors
# SPDX-License-Identifier: Apache-2.0
"""The shortcut audit catches classifiers that read marks, and acquits one that does not."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from monai_usfm.evaluation import audit_shortcuts, crop_borders, cut_sector, plant_calipers, plant_text


def draw_images(count: int = 24, shape: tuple[int, ...] = (96, 128)) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    smooth = F.interpolate(torch.rand(count, 1, 12, 16, generator=generator), size=shape[-2:], mode="bilinear")
    images = 0.1 + 0.6 * smooth
    return images if len(shape) == 2 else images[:, :, None].expand(-1, -1, *shape)


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def sees_white(x: torch.Tensor) -> torch.Tensor:
    """Calls an image positive when it holds pure white, which only burnt-in marks are."""
    return torch.stack([torch.zeros(len(x)), 8.0 * (x.flatten(1).amax(1) > 0.99).float() - 4.0], 1)


def sees_tissue(x: torch.Tensor) -> torch.Tensor:
    """Compares the middle of the image with a fixed level; thin marks do not matter to a median."""
    middle = x[..., 24:72, 32:96].flatten(1).median(dim=1).values
    return torch.stack([torch.zeros(len(x)), 200 * (middle - 0.4)], 1)


def rows(audit) -> dict:
    return {row.alteration: row for row in audit.rows}


def test_a_classifier_that_reads_marks_flips_when_they_are_planted():
    found = rows(audit_shortcuts(sees_white, draw_images()))
    for name in ("calipers", "text"):
        assert found[name].flips == 1.0 and found[name].images == 24
        assert found[name].mean_shift == pytest.approx(2 * torch.sigmoid(torch.tensor(4.0)).item() - 1, abs=1e-6)
    for name in ("mirrored", "borders cropped", "sector edge", "control: one pixel down"):
        assert found[name].flips == 0.0


def test_a_classifier_that_reads_tissue_hardly_changes_with_marks():
    found = rows(audit_shortcuts(sees_tissue, draw_images()))
    assert found["calipers"].flips <= 2 / 24 and found["text"].flips == 0.0
    assert found["text"].mean_change < 1e-6


def test_a_classifier_that_reads_one_side_flips_when_mirrored():
    def sees_left(x):
        difference = x[..., :64].mean((1, 2, 3)) - x[..., 64:].mean((1, 2, 3))
        return torch.stack([-1000 * difference, 1000 * difference], 1)

    found = rows(audit_shortcuts(sees_left, draw_images()))
    assert found["mirrored"].flips == 1.0 and found["text"].flips < 0.5


def test_removing_marks_counts_only_images_that_had_any():
    images = draw_images(shape=(192, 256))
    marked = [plant_text(image, generator()) if i < 5 else image for i, image in enumerate(images)]
    count = (marked[0] == 1).sum().item()

    def sees_text(x):
        return torch.stack([torch.zeros(len(x)), (x > 0.99).flatten(1).sum(1) - 0.2 * count], 1)

    found = rows(audit_shortcuts(sees_text, marked))
    assert found["marks removed"].images == 5 and found["marks removed"].flips == 1.0


def test_scores_before_and_after_are_those_of_the_changed_images():
    images = draw_images()
    labels = (sees_tissue(images)[:, 1] > 0).long()
    audit = audit_shortcuts(sees_tissue, images, labels, alterations={"inverted": lambda image, _: 0.8 - image})
    row = rows(audit)["inverted"]
    assert (row.macro_f1_before, row.macro_f1_after, row.flips) == (1.0, 0.0, 1.0)


def test_the_interval_is_over_patients():
    images = draw_images()
    flipping = {"flip": lambda image, _: image + (0.5 if image[0, 0, 0] > images[:, 0, 0, 0].median() else 0.001)}
    single = rows(audit_shortcuts(sees_white, images, alterations=flipping))["flip"]
    doubled = torch.cat([images, images])
    paired = rows(audit_shortcuts(sees_white, doubled, patients=[*range(24)] * 2, alterations=flipping))["flip"]
    assert 0 < single.flips < 1 and single.flips_low < single.flips < single.flips_high
    assert (paired.flips_low, paired.flips_high) == (single.flips_low, single.flips_high)


@pytest.mark.parametrize("plant", [plant_calipers, plant_text])
@pytest.mark.parametrize("shape", [(96, 128), (3, 96, 128)])
def test_planted_marks_are_white_thin_and_equal_in_every_slice(plant, shape):
    image = draw_images(1, shape)[0]
    copy = image.clone()
    marked = plant(image, generator())
    changed = marked != image
    assert torch.equal(image, copy) and marked.shape == image.shape
    assert bool((marked[changed] == 1).all())
    assert 0.001 < changed.float().mean() < 0.06
    if len(shape) == 3:
        assert torch.equal(changed[:, 0], changed[:, 2])


def test_text_is_legible_at_its_corner():
    image = torch.zeros(1, 224, 224)
    marked = plant_text(image, generator(), "AB")
    rows_, columns = marked[0].nonzero(as_tuple=True)
    assert 6 <= int(rows_.max() - rows_.min()) + 1 <= 14
    assert min(int(rows_.min()), 223 - int(rows_.max())) <= 8 and min(int(columns.min()), 223 - int(columns.max())) <= 8


def test_cropping_takes_the_border_away_and_keeps_the_size():
    image = torch.zeros(1, 100, 80)
    image[:, :2], image[:, -2:], image[:, :, :1], image[:, :, -1:] = 1, 1, 1, 1
    cropped = crop_borders(image, generator())
    assert cropped.shape == image.shape and cropped.max() < 1e-6


def test_the_sector_is_symmetric_and_touches_the_bottom_corners_only_below():
    cut = cut_sector(torch.ones(1, 120, 120), generator())[0]
    assert torch.equal(cut, cut.flip(-1))
    assert cut[0].sum() < cut[60].sum() <= cut[80].sum() + 1e-6
    assert cut[40, 60] == 1 and cut[10, 0] == 0 and 0.4 < cut.mean() < 0.95


def test_the_figure_of_the_largest_changes_is_written(tmp_path):
    audit_shortcuts(sees_white, draw_images(4)).save_figure(tmp_path / "examples.png")
    assert (tmp_path / "examples.png").stat().st_size > 10000
