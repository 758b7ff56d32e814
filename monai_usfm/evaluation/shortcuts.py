# Copyright (c) monai_usfm contributors
# SPDX-License-Identifier: Apache-2.0
"""Shortcut audit: does a classifier read the tissue, or what the examiner and the machine drew around it?

Calipers are set where a finding was measured, text names side and organ, and the edge of the field of view tells the
probe. Each image is altered by one such mark at a time, and the change of the prediction is recorded. None of the
alterations changes what a radiologist would say.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from monai.config import PathLike
from PIL import Image, ImageDraw, ImageFont

from monai_usfm.evaluation.report import save_figure
from monai_usfm.evaluation.statistics import bootstrap_ends
from monai_usfm.metrics.scores import classification_scores
from monai_usfm.transforms.annotation import RemoveAnnotations

__all__ = [
    "ALTERATIONS",
    "ShortcutAudit",
    "ShortcutRow",
    "audit_shortcuts",
    "crop_borders",
    "cut_sector",
    "plant_calipers",
    "plant_text",
]

Alteration = Callable[[torch.Tensor, torch.Generator], torch.Tensor]
"""Image ``(C, *S)`` in [0, 1] and a source of randomness -> altered image of the same shape."""


@dataclass(frozen=True)
class ShortcutRow:
    """Effect of one alteration.

    Args:
        alteration: its name.
        images: images that it changed; the others do not count.
        flips: share of them whose predicted class changed.
        flips_low: lower end of the 95 % bootstrap interval over patients.
        flips_high: upper end.
        mean_change: mean absolute change of the probability of the class predicted before.
        largest_change: the largest of them.
        mean_shift: mean signed change of the probability of the last class (with two classes, the positive one).
        macro_f1_before: of the images that were changed; NaN without labels.
        macro_f1_after: the same after the alteration.
    """

    alteration: str
    images: int
    flips: float
    flips_low: float
    flips_high: float
    mean_change: float
    largest_change: float
    mean_shift: float
    macro_f1_before: float
    macro_f1_after: float


@dataclass
class ShortcutAudit:
    """Result of :func:`audit_shortcuts`.

    Args:
        rows: one per alteration.
        before: probabilities of the images as they are ``(M, K)``.
        after: alteration -> probabilities ``(M, K)``.
        examples: alteration -> (index, image, altered image) with the largest change of probability.
    """

    rows: list[ShortcutRow]
    before: torch.Tensor
    after: dict[str, torch.Tensor]
    examples: dict[str, tuple[int, torch.Tensor, torch.Tensor]]

    def table(self) -> list[dict[str, Any]]:
        """Rows as dictionaries, for a CSV file."""
        return [asdict(row) for row in self.rows]

    def save_figure(self, path: PathLike) -> None:
        """For each alteration the image that it changed most for the network: before, after, difference."""
        from matplotlib.figure import Figure

        lines = max(1, len(self.examples))
        figure = Figure(figsize=(7.5, 2.6 * lines))
        axes = figure.subplots(lines, 3, squeeze=False)
        for line, (name, (index, image, altered)) in zip(axes, self.examples.items(), strict=False):
            predicted = int(self.before[index].argmax())
            before, after = float(self.before[index, predicted]), float(self.after[name][index, predicted])
            views = [_slice(image), _slice(altered), (_slice(altered) - _slice(image)).abs()]
            titles = [f"p(class {predicted}) = {before:.2f}", f"{name}: {after:.2f}", "difference"]
            for ax, view, title in zip(line, views, titles, strict=True):
                ax.imshow(view, cmap="gray", vmin=0, vmax=1)
                ax.set_title(title, fontsize=9)
                ax.axis("off")
        save_figure(path, figure)


def plant_calipers(image: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Two bright crosses joined by a dotted line, as a measured lesion has: ``(C, *S) -> (C, *S)``, in every slice."""
    height, width = image.shape[-2:]
    arm = max(2, round(0.015 * min(height, width)))
    draw = torch.rand(4, generator=generator).tolist()
    # ends a quarter to a half of the image apart, around a center in the middle third
    row, column = (0.35 + 0.3 * draw[0]) * height, (0.35 + 0.3 * draw[1]) * width
    angle, half = np.pi * draw[2], (0.125 + 0.125 * draw[3]) * min(height, width)
    ends = [(round(row + side * half * np.sin(angle)), round(column + side * half * np.cos(angle))) for side in (-1, 1)]
    marks = torch.zeros(height, width, dtype=torch.bool)
    for y, x in ends:
        marks[max(0, y - arm) : y + arm + 1, x : x + 1] = True
        marks[y : y + 1, max(0, x - arm) : x + arm + 1] = True
    dots = max(2, int(2 * half / (2 * arm)))
    for step in np.linspace(0, 1, dots):
        y, x = (round(a + step * (b - a)) for a, b in zip(*ends, strict=True))
        marks[y, x] = True
    return _burn(image, marks)


def plant_text(image: torch.Tensor, generator: torch.Generator, text: str = "LEFT BREAST  12 H") -> torch.Tensor:
    """Burn text of 5 % of the height into one of the four corners: ``(C, *S) -> (C, *S)``, in every slice."""
    height, width = image.shape[-2:]
    font = ImageFont.load_default(size=max(8, round(0.05 * height)))
    canvas = Image.new("L", (width, height))
    pen = ImageDraw.Draw(canvas)
    left, top, right, bottom = pen.textbbox((0, 0), text, font=font)
    corner = int(torch.randint(4, (1,), generator=generator))
    margin = max(1, round(0.02 * height))
    x = margin - left if corner % 2 == 0 else width - margin - right
    y = margin - top if corner < 2 else height - margin - bottom
    pen.text((x, y), text, fill=255, font=font)
    return _burn(image, torch.from_numpy(np.asarray(canvas) > 127))


def crop_borders(image: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Cut 2 to 8 % off each side and scale back: the edge of the field of view and what stands there are gone."""
    cut = 0.02 + 0.06 * torch.rand(2, 2, generator=generator)
    view = image
    for axis, (first, last) in zip((-2, -1), cut.tolist(), strict=True):
        length = image.shape[axis]
        start, stop = round(first * length), length - round(last * length)
        view = view.narrow(axis, start, stop - start)
    mode = "bilinear" if image.ndim == 3 else "trilinear"
    return F.interpolate(view[None], size=image.shape[1:], mode=mode, align_corners=False)[0]


def cut_sector(image: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Black out what lies outside a sector of 60 to 80 degrees, as if a convex probe had been used."""
    height, width = image.shape[-2:]
    half = np.deg2rad(30 + 10 * float(torch.rand(1, generator=generator)))
    # the sector touches both sides at its bottom edge, and its face has a third of the width
    y, x = torch.meshgrid(torch.arange(height) + 0.5, torch.arange(width) + 0.5 - width / 2, indexing="ij")
    apex = -width / 6 / np.tan(half)
    depth = (x.square() + (y - apex).square()).sqrt()
    inside = (torch.atan2(x.abs(), y - apex) <= half) & (depth >= -apex / np.cos(half)) & (depth <= height - apex)
    return image * inside.to(image)


ALTERATIONS: dict[str, Alteration] = {
    "calipers": plant_calipers,
    "text": plant_text,
    "marks removed": lambda image, generator: RemoveAnnotations()(image),
    "borders cropped": crop_borders,
    "mirrored": lambda image, generator: image.flip(-1),
    "sector edge": cut_sector,
    "control: one pixel down": lambda image, generator: F.pad(image[..., :-1, :], (0, 0, 1, 0)),
}
"""Marks added and taken away, edges of the field of view, and a control that shows how often nothing much flips it."""


@torch.no_grad()
def audit_shortcuts(
    classify: Callable[[torch.Tensor], torch.Tensor],
    images: Sequence[torch.Tensor] | torch.Tensor,
    labels: torch.Tensor | None = None,
    patients: Sequence[Hashable] | None = None,
    alterations: Mapping[str, Alteration] = ALTERATIONS,
    batch_size: int = 32,
    seed: int = 0,
) -> ShortcutAudit:
    """Alter every image in each way and record how the prediction changes.

    Args:
        classify: ``(B, C, *S)`` in [0, 1] -> logits ``(B, K)``; a network must be in evaluation mode.
        images: images ``(C, *S)`` of one size, in [0, 1].
        labels: class indices (M,), for scores before and after.
        patients: the patient of each image, for the interval; None takes every image for a patient.
        alterations: name -> alteration.
        batch_size: images per call of ``classify``.
        seed: of the alterations; image ``i`` is altered alike whatever the others are.

    Raises:
        ValueError: for fewer than two images or patients.
    """
    if len(images) < 2:
        raise ValueError(f"an audit needs at least two images, got {len(images)}.")
    plain = [image.as_tensor() if hasattr(image, "as_tensor") else image for image in images]
    owners = list(patients) if patients is not None else list(range(len(plain)))
    before = _probabilities(classify, plain, batch_size)
    predicted = before.argmax(dim=1)
    rows, after, examples = [], {}, {}
    for name, alter in alterations.items():
        altered = []
        for i, image in enumerate(plain):
            result = alter(image, torch.Generator().manual_seed(seed + i))
            altered.append(result.as_tensor() if hasattr(result, "as_tensor") else result)
        after[name] = _probabilities(classify, altered, batch_size)
        changed = torch.tensor([not torch.equal(a, b) for a, b in zip(plain, altered, strict=True)])
        index = changed.nonzero().flatten()
        if len(index) == 0:
            nan = float("nan")
            rows.append(ShortcutRow(name, 0, nan, nan, nan, nan, nan, nan, nan, nan))
            continue
        flips = (after[name].argmax(dim=1) != predicted)[index].double().numpy()
        change = (after[name] - before).gather(1, predicted[:, None])[:, 0][index]
        shift = (after[name] - before)[index, -1]
        low, high = bootstrap_ends(partial(_mean, flips), [owners[i] for i in index.tolist()], seed)
        scores = [float("nan")] * 2
        if labels is not None:
            truth = torch.as_tensor(labels).cpu()[index]
            scores = [classification_scores(p[index], truth)["macro_f1"] for p in (before, after[name])]
        rows.append(
            ShortcutRow(
                name,
                len(index),
                float(flips.mean()),
                low,
                high,
                change.abs().mean().item(),
                change.abs().max().item(),
                shift.mean().item(),
                scores[0],
                scores[1],
            )
        )
        worst = int(index[change.abs().argmax()])
        examples[name] = (worst, plain[worst], altered[worst])
    return ShortcutAudit(rows, before, after, examples)


def _probabilities(
    classify: Callable[[torch.Tensor], torch.Tensor], images: Sequence[torch.Tensor], batch_size: int
) -> torch.Tensor:
    parts = [
        torch.softmax(classify(torch.stack(list(images[start : start + batch_size]))).double(), dim=1).cpu()
        for start in range(0, len(images), batch_size)
    ]
    return torch.cat(parts)


def _mean(values: np.ndarray, rows: np.ndarray) -> float:
    return float(values[rows].mean())


def _burn(image: torch.Tensor, marks: torch.Tensor) -> torch.Tensor:
    """White where ``marks`` (H, W) is true, in every channel and slice."""
    return torch.where(marks.to(image.device), torch.ones((), dtype=image.dtype, device=image.device), image)


def _slice(image: torch.Tensor) -> torch.Tensor:
    """One gray image (H, W) of an image or volume."""
    return (image[0] if image.ndim == 3 else image[0, image.shape[1] // 2]).float().cpu()
