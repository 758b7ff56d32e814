# Copyright (c) monai_usfm contributors
# SPDX-License-Identifier: Apache-2.0
"""Robustness audit: how much worse is a network when an image is shown as another scanner or screen would?

Networks are tested on images that look like those they were trained on: the same margins, depth, gain and marks. Here
each test image is altered in one such respect at a time, its label map along with it, and scored again. What remains
of the score is no substitute for another hospital's images, but what is lost here would be lost there.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from monai.config import NdarrayOrTensor, PathLike
from monai.transforms import AdjustContrast, GaussianSmooth, Resize
from PIL import Image, ImageDraw, ImageFont

from monai_usfm.evaluation.report import save_figure
from monai_usfm.evaluation.shortcuts import plant_calipers, plant_text
from monai_usfm.evaluation.statistics import bootstrap_ends
from monai_usfm.metrics.scores import classification_scores, overlap_scores
from monai_usfm.transforms.annotation import RemoveAnnotations
from monai_usfm.transforms.speckle import SpeckleNoise

__all__ = [
    "CHANGES",
    "ClassRobustnessRow",
    "RobustnessAudit",
    "RobustnessRow",
    "audit_class_robustness",
    "audit_robustness",
]

Pair = tuple[torch.Tensor, torch.Tensor]
Change = Callable[[torch.Tensor, torch.Tensor, torch.Generator], Pair]
"""Image ``(C, H, W)`` in [0, 1], label map ``(1, H, W)`` and a source of randomness -> both altered, of any size."""


@dataclass(frozen=True)
class RobustnessRow:
    """Scores of the images altered in one way.

    Args:
        change: its name; ``"unchanged"`` is the first row.
        images: images it was scored on: those that it changed and that still hold a foreground class.
        dice_before: mean Dice of these images as they are.
        dice: mean Dice of them altered.
        loss: the difference, positive where the alteration hurts.
        loss_low: lower end of its 95 % bootstrap interval over patients.
        loss_high: upper end.
        failed: share of the altered images with a Dice below 0.5.
    """

    change: str
    images: int
    dice_before: float
    dice: float
    loss: float
    loss_low: float
    loss_high: float
    failed: float


@dataclass(frozen=True)
class ClassRobustnessRow:
    """Scores of a classifier on the images altered in one way.

    Args:
        change: its name; ``"unchanged"`` is the first row.
        images: images that it changed; the others do not count.
        macro_f1_before: of these images as they are.
        macro_f1: of them altered.
        loss: the difference, positive where the alteration hurts.
        loss_low: lower end of its 95 % bootstrap interval over patients.
        loss_high: upper end.
        auc_before: area under the ROC curve as they are.
        auc: altered.
        flips: share of them whose predicted class changed.
    """

    change: str
    images: int
    macro_f1_before: float
    macro_f1: float
    loss: float
    loss_low: float
    loss_high: float
    auc_before: float
    auc: float
    flips: float


@dataclass
class RobustnessAudit:
    """Result of :func:`audit_robustness`.

    Args:
        rows: the images as they are, then one row for each change.
        scores: change -> Dice of each image; NaN where it was not scored.
        examples: change -> image, label map and prediction of the image that lost most.
    """

    rows: list[RobustnessRow]
    scores: dict[str, np.ndarray]
    examples: dict[str, tuple[torch.Tensor, torch.Tensor, torch.Tensor]]

    def save_figure(self, path: PathLike) -> None:
        """For each change the image that lost most: contour of the label (green) and of the prediction (red)."""
        from matplotlib.figure import Figure

        columns = 5
        lines = -(-len(self.examples) // columns)
        figure = Figure(figsize=(2.6 * columns, 2.8 * lines))
        axes = figure.subplots(lines, columns, squeeze=False).ravel()
        for ax in axes:
            ax.axis("off")
        for ax, (name, (image, label, found)) in zip(axes, self.examples.items(), strict=False):
            ax.imshow(image[0].float(), cmap="gray", vmin=0, vmax=1)
            for mask, color in ((label, "lime"), (found, "red")):
                if bool((mask > 0).any()):
                    ax.contour(mask > 0, levels=[0.5], colors=color, linewidths=0.8)
            ax.set_title(name, fontsize=8)
        save_figure(path, figure)


def _margins(image: torch.Tensor, label: torch.Tensor, top: float, bottom: float, left: float, right: float) -> Pair:
    """Black margins, given as shares of the height and the width."""
    height, width = image.shape[-2:]
    pad = [round(left * width), round(right * width), round(top * height), round(bottom * height)]
    return F.pad(image, pad), F.pad(label, pad)


def _screen(image: torch.Tensor, label: torch.Tensor, generator: torch.Generator) -> Pair:
    """A screenshot: margins with the lines of text and the depth scale that machines write beside the image."""
    image, label = _margins(image, label, 0.12, 0.06, 0.06, 0.3)
    height, width = image.shape[-2:]
    canvas = Image.new("L", (width, height))
    pen, font = ImageDraw.Draw(canvas), ImageFont.load_default(size=max(8, round(0.04 * height)))
    pen.text((0.02 * width, 0.02 * height), "GENERAL HOSPITAL  12-03-2019  MI 1.2  TIs 0.3", fill=255, font=font)
    edge = width - 0.3 / 1.36 * width
    pen.multiline_text((edge + 0.04 * width, 0.25 * height), "FR 38Hz\nGN 52\nDR 60\n4.0 cm", fill=220, font=font)
    for y in np.linspace(0.12, 0.94, 9) * height:
        pen.line((edge + 2, y, edge + 2 + 0.015 * width, y), fill=255)
    marks = torch.from_numpy(np.asarray(canvas, np.float32) / 255)
    return torch.maximum(image, marks.to(image)), label


def _closer(image: torch.Tensor, label: torch.Tensor, generator: torch.Generator) -> Pair:
    """Seven tenths of each side, around the middle of what is labeled."""
    window = []
    for axis in (1, 2):
        length = label.shape[axis]
        size = round(0.7 * length)
        middle = (label[0] > 0).nonzero()[:, axis - 1].float().mean().item()
        start = int(min(max(middle - size / 2, 0), length - size))
        window.append(slice(start, start + size))
    return image[:, window[0], window[1]], label[:, window[0], window[1]]


def _stretch(image: torch.Tensor, label: torch.Tensor, factor: float) -> Pair:
    """The width times ``factor``."""
    size = (image.shape[1], round(factor * image.shape[2]))
    altered = Resize(size, mode="bilinear", anti_aliasing=True)(image)
    mask = F.interpolate(label[None].float(), size=size, mode="nearest-exact")[0]
    return torch.as_tensor(altered).as_subclass(torch.Tensor), mask.to(label.dtype)


def _intensity(change: Callable[[torch.Tensor, torch.Generator], NdarrayOrTensor]) -> Change:
    """A change of gray values, which leaves the label map alone."""

    def altered(image: torch.Tensor, label: torch.Tensor, generator: torch.Generator) -> Pair:
        result = torch.as_tensor(change(image, generator)).as_subclass(torch.Tensor)
        return result.to(image.dtype).clamp(0, 1), label

    return altered


def _gain_by_depth(image: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    return image * torch.linspace(1.3, 0.4, image.shape[1])[:, None].to(image)


def _speckle(image: torch.Tensor, generator: torch.Generator) -> NdarrayOrTensor:
    noise = SpeckleNoise(looks=1.0)
    noise.set_random_state(int(torch.randint(2**31 - 1, (1,), generator=generator)))
    return noise(image)


CHANGES: dict[str, Change] = {
    "margins all around": lambda x, y, g: _margins(x, y, 0.25, 0.25, 0.25, 0.25),
    "empty lower half": lambda x, y, g: _margins(x, y, 0, 1, 0, 0),
    "margins left and right": lambda x, y, g: _margins(x, y, 0, 0, 1 / 3, 1 / 3),
    "screen with text": _screen,
    "closer": _closer,
    "width x 0.7": lambda x, y, g: _stretch(x, y, 0.7),
    "width x 1.4": lambda x, y, g: _stretch(x, y, 1.4),
    "mirrored": lambda x, y, g: (x.flip(-1), y.flip(-1)),
    "brighter (gamma 0.6)": _intensity(lambda x, g: AdjustContrast(0.6)(x)),
    "darker (gamma 1.6)": _intensity(lambda x, g: AdjustContrast(1.6)(x)),
    "low gain": _intensity(lambda x, g: 0.45 * x),
    "low contrast": _intensity(lambda x, g: 0.15 + 0.4 * x),
    "high contrast": _intensity(lambda x, g: 1.6 * x - 0.375),
    "gain falls with depth": _intensity(_gain_by_depth),
    "blur (2 pixels)": _intensity(lambda x, g: GaussianSmooth(2.0)(x)),
    "speckle": _intensity(_speckle),
    "marks removed": _intensity(lambda x, g: RemoveAnnotations()(x)),
    "calipers": _intensity(plant_calipers),
    "text": _intensity(plant_text),
}
"""Layout of the screen, scale, gain, texture and annotations; none changes what there is to segment."""


@torch.no_grad()
def audit_robustness(
    segment: Callable[[torch.Tensor], torch.Tensor],
    images: Sequence[torch.Tensor],
    labels: Sequence[torch.Tensor],
    patients: Sequence[Hashable] | None = None,
    num_classes: int = 2,
    changes: Mapping[str, Change] = CHANGES,
    seed: int = 0,
) -> RobustnessAudit:
    """Alter every image in each way and score its segmentation against the label map that was altered with it.

    Args:
        segment: image ``(C, H, W)`` in [0, 1] of any size -> class indices ``(H, W)``.
        images: images ``(C, H, W)`` in [0, 1], of any sizes.
        labels: class indices ``(H, W)`` of each.
        patients: the patient of each image, for the interval; None takes every image for a patient.
        num_classes: classes including background 0.
        changes: name -> change.
        seed: of the changes; image ``i`` is altered alike whatever the others are.

    Raises:
        ValueError: for no images, another number of label maps, or an image whose label map has another size.
    """
    if not images or len(images) != len(labels):
        raise ValueError(f"need images and as many label maps, got {len(images)} and {len(labels)}.")
    for i, (image, label) in enumerate(zip(images, labels, strict=True)):
        if image.dim() != 3 or label.shape != image.shape[1:]:
            shapes = f"{tuple(image.shape)} and {tuple(label.shape)}"
            raise ValueError(f"image {i}: need an image (C, H, W) and a label map (H, W), got {shapes}.")
    if not any(bool((label > 0).any()) for label in labels):
        raise ValueError("every label map is empty: there is nothing to score.")
    owners = list(patients) if patients is not None else list(range(len(images)))
    every: dict[str, Change] = {"unchanged": lambda x, y, g: (x, y), **changes}
    scores = {name: np.full(len(images), np.nan) for name in every}
    worst: dict[str, tuple[float, tuple[torch.Tensor, torch.Tensor, torch.Tensor]]] = {}
    for i, (image, label) in enumerate(zip(images, labels, strict=True)):
        if not bool((label > 0).any()):
            continue
        for name, change in every.items():
            altered, mask = change(image, label[None], torch.Generator().manual_seed(seed + i))
            same = altered.shape == image.shape and torch.equal(altered, image)
            if (same and name != "unchanged") or not bool((mask > 0).any()):
                continue
            found = segment(altered)
            scores[name][i] = overlap_scores(found, mask[0], num_classes)["dice"]
            loss = scores["unchanged"][i] - scores[name][i]
            if name not in worst or loss > worst[name][0]:
                worst[name] = loss, (altered, mask[0], found)
    rows = [_row(name, values, scores["unchanged"], owners, seed) for name, values in scores.items()]
    examples = {name: found for name, (_, found) in worst.items() if name != "unchanged"}
    return RobustnessAudit(rows, scores, examples)


@torch.no_grad()
def audit_class_robustness(
    classify: Callable[[torch.Tensor], torch.Tensor],
    images: Sequence[torch.Tensor],
    classes: Sequence[int],
    patients: Sequence[Hashable] | None = None,
    labels: Sequence[torch.Tensor] | None = None,
    changes: Mapping[str, Change] = CHANGES,
    seed: int = 0,
) -> list[ClassRobustnessRow]:
    """The same for a classifier: the images as they are, then one row for each change.

    Args:
        classify: image ``(C, H, W)`` in [0, 1] of any size -> probabilities ``(K,)``.
        images: images ``(C, H, W)`` in [0, 1], of any sizes.
        classes: class index of each.
        patients: the patient of each image, for the interval; None takes every image for a patient.
        labels: where the finding is, ``(H, W)`` for each image, for the changes that look at it; the whole image where
            there is none.
        changes: name -> change.
        seed: of the changes; image ``i`` is altered alike whatever the others are.

    Raises:
        ValueError: for no images, or another number of classes.
    """
    if not images or len(images) != len(classes):
        raise ValueError(f"need images and as many classes, got {len(images)} and {len(classes)}.")
    owners = list(patients) if patients is not None else list(range(len(images)))
    truth = torch.as_tensor(list(classes))
    before = torch.stack([classify(image) for image in images]).cpu()
    rows = [_class_row("unchanged", list(range(len(images))), before, before, truth, owners, seed)]
    for name, change in changes.items():
        index, after = [], []
        for i, image in enumerate(images):
            found = torch.zeros(image.shape[1:], dtype=torch.uint8) if labels is None else labels[i]
            mask = found if bool((found > 0).any()) else torch.ones_like(found)
            altered, _ = change(image, mask[None], torch.Generator().manual_seed(seed + i))
            if altered.shape != image.shape or not torch.equal(altered, image):
                index.append(i)
                after.append(classify(altered).cpu())
        if index:
            rows.append(_class_row(name, index, before[index], torch.stack(after), truth[index], owners, seed))
    return rows


def _class_row(
    name: str,
    index: Sequence[int],
    before: torch.Tensor,
    after: torch.Tensor,
    truth: torch.Tensor,
    owners: Sequence[Hashable],
    seed: int,
) -> ClassRobustnessRow:
    def lost(chosen: np.ndarray) -> float:
        f1 = [classification_scores(p[chosen], truth[chosen], bins=None)["macro_f1"] for p in (before, after)]
        return f1[0] - f1[1]

    scores = [classification_scores(p, truth) for p in (before, after)]
    low, high = bootstrap_ends(lost, [owners[i] for i in index], seed)
    return ClassRobustnessRow(
        name,
        len(index),
        scores[0]["macro_f1"],
        scores[1]["macro_f1"],
        scores[0]["macro_f1"] - scores[1]["macro_f1"],
        low,
        high,
        scores[0]["auc"],
        scores[1]["auc"],
        float((before.argmax(1) != after.argmax(1)).double().mean()),
    )


def _row(name: str, values: np.ndarray, before: np.ndarray, owners: Sequence[Hashable], seed: int) -> RobustnessRow:
    scored = np.flatnonzero(~np.isnan(values))
    nan = float("nan")
    if len(scored) == 0:
        return RobustnessRow(name, 0, nan, nan, nan, nan, nan, nan)
    loss = (before - values)[scored]
    low, high = bootstrap_ends(lambda rows: float(loss[rows].mean()), [owners[i] for i in scored.tolist()], seed)
    mean = float(values[scored].mean())
    failed = float((values[scored] < 0.5).mean())
    return RobustnessRow(name, len(scored), float(before[scored].mean()), mean, float(loss.mean()), low, high, failed)
