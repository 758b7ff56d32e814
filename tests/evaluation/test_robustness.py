# Copyright (c) monai_usfm contributors
# SPDX-License-Identifier: Apache-2.0
"""The robustness audit: label maps follow the figure, and it finds the network that leans on layout or gain."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from monai_usfm.evaluation import CHANGES, audit_class_robustness, audit_robustness, classification_scores

LAYOUT = ("margins all around", "empty lower half", "margins left and right", "screen with text", "closer")
LAYOUT += ("width x 0.7", "width x 1.4", "mirrored")


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


def dark(image: torch.Tensor) -> torch.Tensor:
    """Outlines what is dark but not black."""
    return ((image[0] > 0.02) & (image[0] < 0.25)).long()


@pytest.mark.parametrize("name", CHANGES)
def test_label_maps_follow_the_figure_and_nothing_is_edited(name: str) -> None:
    image, label = case()
    kept = image.clone(), label.clone()
    altered, mask = CHANGES[name](image, label[None], torch.Generator().manual_seed(0))
    assert torch.equal(image, kept[0]) and torch.equal(label, kept[1])
    assert not (altered.shape == image.shape and torch.equal(altered, image)) or name == "marks removed"
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
    audit = audit_robustness(dark, IMAGES, LABELS, patients=[0, 0, 1, 1, 2, 2])
    rows = {row.change: row for row in audit.rows}
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

    rows = {row.change: row for row in audit_robustness(same_place, IMAGES[:1], LABELS[:1]).rows}
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

        audit_robustness(note, IMAGES[:count], LABELS[:count], changes=changes)
    assert all(torch.equal(a, b) for a, b in zip(seen[1], seen[6], strict=False))


def test_images_without_the_class_are_left_out() -> None:
    empty = torch.zeros_like(LABELS[0])
    audit = audit_robustness(dark, [IMAGES[0], *IMAGES[1:3]], [empty, *LABELS[1:3]])
    assert {row.images for row in audit.rows} <= {0, 2}
    assert audit.rows[0].images == 2


def test_figures_show_label_and_prediction(tmp_path) -> None:
    audit = audit_robustness(dark, IMAGES[:2], LABELS[:2])
    assert set(audit.examples) == {row.change for row in audit.rows if row.images and row.change != "unchanged"}
    audit.save_figure(tmp_path / "audit.png")
    assert (tmp_path / "audit.png").stat().st_size > 10_000


def test_a_classifier_of_the_mean_gray_value_is_found_out_by_margins_and_not_by_mirrors() -> None:
    images = [image * (0.6 if i % 2 else 1.0) for i, image in enumerate(IMAGES)]
    classes = [i % 2 for i in range(6)]

    def bright(image: torch.Tensor) -> torch.Tensor:
        dark = torch.sigmoid(40 * (0.4 - image.mean()))
        return torch.stack([1 - dark, dark])

    rows = {r.change: r for r in audit_class_robustness(bright, images, classes, [0, 0, 1, 1, 2, 2], LABELS)}
    assert rows["unchanged"].macro_f1 == rows["unchanged"].auc == 1 and rows["unchanged"].flips == 0
    assert rows["mirrored"].loss == 0 and rows["mirrored"].images == 6
    spoilt = rows["margins all around"]  # all are dark then: half of the predictions change
    assert spoilt.flips == 0.5 and spoilt.auc == 1
    truth, found = torch.tensor(classes), torch.tensor([[0.0, 1.0]]).expand(6, 2)
    assert spoilt.macro_f1 == pytest.approx(classification_scores(found, truth)["macro_f1"])
    assert spoilt.loss == pytest.approx(1 - spoilt.macro_f1) and spoilt.loss_low <= spoilt.loss <= spoilt.loss_high
    # without label maps the finding is the whole image, and a close-up is the middle of it
    close = {r.change: r for r in audit_class_robustness(bright, images, classes)}["closer"]
    assert close.images == 6 and close.flips == 0


def test_bad_input_is_refused() -> None:
    with pytest.raises(ValueError, match="1 and 0"):
        audit_robustness(dark, IMAGES[:1], [])
    with pytest.raises(ValueError, match=r"image 0.*\(1, 96, 128\).*\(10, 10\)"):
        audit_robustness(dark, IMAGES[:1], [torch.ones(10, 10)])
    with pytest.raises(ValueError, match="1 and 2"):
        audit_class_robustness(dark, IMAGES[:1], [0, 1])
