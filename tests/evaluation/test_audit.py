# Copyright (c) monai_usfm contributors
# SPDX-License-Identifier: Apache-2.0
"""Audits: label maps follow the figure, and they find the network that leans on layout, gain or annotations."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from monai_usfm.evaluation import (
    CHANGES,
    SHORTCUTS,
    audit_classifier,
    audit_segmenter,
    crop_borders,
    cut_sector,
    plant_calipers,
    plant_text,
)
from monai_usfm.evaluation.audit import _save_examples
from monai_usfm.metrics.scores import classification_scores

LAYOUT = ("margins all around", "empty lower half", "margins left and right", "user-interface overlay", "closer")
LAYOUT += ("width x 0.7", "width x 1.4", "flipped")


def case(seed: int = 0, shape: tuple[int, int] = (96, 128)) -> tuple[torch.Tensor, torch.Tensor]:
    """Gray tissue with an ellipse of 0.1 in it, and the ellipse."""
    generator = torch.Generator().manual_seed(seed)
    height, width = shape
    row, column = (torch.tensor([0.4, 0.35]) + 0.2 * torch.rand(2, generator=generator)).tolist()
    y, x = torch.meshgrid(torch.arange(height) / height - row, torch.arange(width) / width - column, indexing="ij")
    label = ((y / 0.2) ** 2 + (x / 0.15) ** 2 < 1).long()
    smooth = F.interpolate(torch.rand(1, 1, 8, 8, generator=generator), size=shape, mode="bilinear")[0]
    return torch.where(label > 0, 0.1, 0.4 + 0.3 * smooth), label


CASES = [case(seed) for seed in range(6)]
IMAGES, LABELS = [image for image, _ in CASES], [label for _, label in CASES]


def by_change(result) -> dict:
    return {row.change: row for row in result[0].itertuples()}


def dark(image: torch.Tensor) -> torch.Tensor:
    """Segments what is dark but not black."""
    return ((image[0] > 0.02) & (image[0] < 0.25)).long()


@pytest.mark.parametrize("name", CHANGES)
def test_label_maps_follow_the_figure_and_nothing_is_edited(name: str) -> None:
    image, label = case()
    kept = image.clone(), label.clone()
    altered, mask = CHANGES[name](image, label[None], torch.Generator().manual_seed(0))
    assert torch.equal(image, kept[0]) and torch.equal(label, kept[1])
    assert not (altered.shape == image.shape and torch.equal(altered, image)) or name == "annotations removed"
    assert type(altered) is torch.Tensor and altered.dtype == torch.float32 and mask.dtype == label.dtype
    assert altered.shape[1:] == mask.shape[1:]
    assert altered.min() >= 0 and altered.max() <= 1
    if name in LAYOUT:
        found = dark(altered)
        dice = 2 * (found * mask[0]).sum() / (found.sum() + mask.sum())
        assert dice > 0.93  # letters have dark edges
    else:
        assert torch.equal(mask[0], label)


def test_layout_does_not_matter_to_a_threshold_but_gain_does() -> None:
    rows = by_change(audit_segmenter(dark, IMAGES, LABELS, patients=[0, 0, 1, 1, 2, 2]))
    assert next(iter(rows)) == "unchanged" and set(rows) == {"unchanged", *CHANGES}
    assert rows["unchanged"].dice == pytest.approx(1.0) and rows["unchanged"].loss == 0
    for name in LAYOUT:
        assert rows[name].images == 6 and rows[name].loss < 0.07 and rows[name].failed == 0
    lost = rows["low gain"]  # most of the tissue is below 0.25 then
    assert lost.loss > 0.3 and lost.loss_low > 0 and lost.loss_high >= lost.loss >= lost.loss_low
    assert lost.dice == pytest.approx(lost.dice_before - lost.loss)


def test_a_network_that_knows_the_place_fails_when_the_place_changes() -> None:
    def same_place(image: torch.Tensor) -> torch.Tensor:
        size = (1, 1, *image.shape[1:])
        return F.interpolate(LABELS[0][None, None].float(), size=size[2:], mode="nearest-exact")[0, 0].long()

    rows = by_change(audit_segmenter(same_place, IMAGES[:1], LABELS[:1]))
    assert rows["empty lower half"].failed == 1 and rows["empty lower half"].dice < 0.5
    assert rows["darker (gamma 1.6)"].loss == 0
    assert rows["width x 0.7"].loss < 0.03


def test_an_image_is_altered_alike_whatever_the_others_are() -> None:
    changes = {name: CHANGES[name] for name in ("calipers", "speckle", "text")}
    seen: dict[int, list[torch.Tensor]] = {1: [], 6: []}

    for count, seen_images in seen.items():

        def note(image: torch.Tensor, seen_images: list[torch.Tensor] = seen_images) -> torch.Tensor:
            seen_images.append(image)
            return dark(image)

        audit_segmenter(note, IMAGES[:count], LABELS[:count], changes=changes)
    assert all(torch.equal(a, b) for a, b in zip(seen[1], seen[6], strict=False))


def test_images_without_the_class_are_left_out() -> None:
    empty = torch.zeros_like(LABELS[0])
    rows = by_change(audit_segmenter(dark, [IMAGES[0], *IMAGES[1:3]], [empty, *LABELS[1:3]]))
    assert {row.images for row in rows.values()} <= {0, 2}
    assert rows["unchanged"].images == 2


def test_the_figure_shows_an_image_of_every_change(tmp_path) -> None:
    changes = {name: change for name, change in CHANGES.items() if name != "annotations removed"}
    _, examples = audit_segmenter(dark, IMAGES[:1], LABELS[:1], changes=changes)
    assert set(examples) == set(changes)
    _save_examples(tmp_path / "audit.png", examples)
    assert (tmp_path / "audit.png").stat().st_size > 10_000


def test_a_classifier_of_the_mean_gray_value_is_found_out_by_margins_and_not_by_mirrors() -> None:
    images = [image * (0.6 if i % 2 else 1.0) for i, image in enumerate(IMAGES)]
    classes = [i % 2 for i in range(6)]

    def bright(image: torch.Tensor) -> torch.Tensor:
        dark = torch.sigmoid(40 * (0.4 - image.mean()))
        return torch.stack([1 - dark, dark])

    changes = {name: CHANGES[name] for name in ("margins all around", "flipped", "closer")}
    rows = by_change(audit_classifier(bright, images, classes, [0, 0, 1, 1, 2, 2], LABELS, changes))
    assert rows["unchanged"].macro_f1 == rows["unchanged"].auc == 1 and rows["unchanged"].flips == 0
    assert rows["flipped"].loss == 0 and rows["flipped"].images == 6
    spoilt = rows["margins all around"]  # all are dark then: half of the predictions change
    assert spoilt.flips == 0.5 and spoilt.auc == 1
    truth, found = torch.tensor(classes), torch.tensor([[0.0, 1.0]]).expand(6, 2)
    assert spoilt.macro_f1 == pytest.approx(classification_scores(found, truth)["macro_f1"])
    assert spoilt.loss == pytest.approx(1 - spoilt.macro_f1) and spoilt.loss_low <= spoilt.loss <= spoilt.loss_high
    # without label maps the finding is the whole image, and a close-up is the middle of it
    close = by_change(audit_classifier(bright, images, classes, changes=changes))["closer"]
    assert close.images == 6 and close.flips == 0


def test_bad_input_is_refused() -> None:
    with pytest.raises(ValueError, match="1 and 0"):
        audit_segmenter(dark, IMAGES[:1], [])
    with pytest.raises(ValueError, match=r"image 0.*\(1, 96, 128\).*\(10, 10\)"):
        audit_segmenter(dark, IMAGES[:1], [torch.ones(10, 10)])
    with pytest.raises(ValueError, match="1 and 2"):
        audit_classifier(dark, IMAGES[:1], [0, 1])


# ------------------------------------------------------------------ shortcuts of a classifier


def draw_images(count: int = 24, shape: tuple[int, ...] = (96, 128)) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    smooth = F.interpolate(torch.rand(count, 1, 12, 16, generator=generator), size=shape[-2:], mode="bilinear")
    images = 0.1 + 0.6 * smooth
    return images if len(shape) == 2 else images[:, :, None].expand(-1, -1, *shape)


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def two(logit: torch.Tensor) -> torch.Tensor:
    return torch.stack([-logit, logit]).softmax(0)


def sees_white(x: torch.Tensor) -> torch.Tensor:
    """Calls an image positive when it holds pure white, which only burned-in annotations are."""
    return two(4.0 * (x.amax() > 0.99).float() - 2.0)


def sees_tissue(x: torch.Tensor) -> torch.Tensor:
    """Compares the middle of the image with a fixed level; thin annotations do not matter to a median."""
    return two(100 * (x[..., 24:72, 32:96].median() - 0.4))


def shortcuts(classify, images, classes=None, **options) -> dict:
    classes = classes or [i % 2 for i in range(len(images))]
    quick = {name: change for name, change in SHORTCUTS.items() if name != "annotations removed"}
    return by_change(audit_classifier(classify, list(images), classes, **{"changes": quick, **options}))


def test_a_classifier_that_reads_marks_flips_when_they_are_planted():
    found = shortcuts(sees_white, draw_images())
    for name in ("calipers", "text"):
        assert found[name].flips == 1.0 and found[name].images == 24
        assert found[name].mean_change == pytest.approx(2 * torch.sigmoid(torch.tensor(4.0)).item() - 1, abs=1e-6)
    for name in ("flipped", "borders cropped", "sector edge", "control: one pixel down"):
        assert found[name].flips == 0.0


def test_a_classifier_that_reads_tissue_hardly_changes_with_marks():
    found = shortcuts(sees_tissue, draw_images())
    assert found["calipers"].flips <= 2 / 24 and found["text"].flips == 0.0
    assert found["text"].mean_change < 1e-6


def test_a_classifier_that_reads_one_side_flips_when_flipped():
    def sees_left(x):
        return two(1000 * (x[..., :64].mean() - x[..., 64:].mean()))

    found = shortcuts(sees_left, draw_images())
    assert found["flipped"].flips == 1.0 and found["text"].flips < 0.5


def test_removing_marks_counts_only_images_that_had_any():
    images = draw_images(8, shape=(192, 256))
    marked = [plant_text(image, generator()) if i < 5 else image for i, image in enumerate(images)]
    count = (marked[0] == 1).sum().item()

    def sees_text(x):
        return two((x > 0.99).sum() / 2 - 0.1 * count)

    name = "annotations removed"
    found = shortcuts(sees_text, marked, changes={name: SHORTCUTS[name]})
    assert found["annotations removed"].images == 5 and found["annotations removed"].flips == 1.0


def test_scores_before_and_after_are_those_of_the_changed_images():
    images = draw_images()
    classes = [int(sees_tissue(image).argmax()) for image in images]
    row = shortcuts(sees_tissue, images, classes, changes={"inverted": lambda x, y, _: (0.8 - x, y)})["inverted"]
    assert (row.macro_f1_before, row.macro_f1, row.flips) == (1.0, 0.0, 1.0)


def test_the_interval_is_over_patients():
    images = draw_images()
    middle = images[:, 0, 0, 0].median()
    flipping = {"flip": lambda image, label, _: (image + (0.5 if image[0, 0, 0] > middle else 0.001), label)}
    single = shortcuts(sees_white, images, changes=flipping)["flip"]
    doubled = torch.cat([images, images])
    paired = shortcuts(sees_white, doubled, patients=[*range(24)] * 2, changes=flipping)["flip"]
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


def test_blur_leaves_the_border_as_bright_as_it_was() -> None:
    image, label = torch.full((1, 24, 32), 0.7), torch.zeros(1, 24, 32)
    blurred, _ = CHANGES["blur (2 pixels)"](image, label, torch.Generator())
    torch.testing.assert_close(torch.as_tensor(blurred), image)
