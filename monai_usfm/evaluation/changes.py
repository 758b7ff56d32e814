# Copyright (c) monai_usfm contributors
# SPDX-License-Identifier: Apache-2.0
"""Changes of an image that alter nothing of what a radiologist would say: layout, scale, gain, texture, annotations."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from monai.config import NdarrayOrTensor
from monai.transforms import AdjustContrast, Resize
from monai.utils import convert_to_tensor
from PIL import Image, ImageDraw, ImageFont

from monai_usfm.transforms.annotation import RemoveAnnotations
from monai_usfm.transforms.noise_recovery import gaussian_blur
from monai_usfm.transforms.speckle import SpeckleNoise

__all__ = ["CHANGES", "SHORTCUTS", "crop_borders", "cut_sector", "plant_calipers", "plant_text"]

Pair = tuple[torch.Tensor, torch.Tensor]
Change = Callable[[torch.Tensor, torch.Tensor, torch.Generator], Pair]
"""Image ``(C, H, W)`` in [0, 1], label map ``(1, H, W)`` and a source of randomness -> both altered, of any size."""


def plant_calipers(image: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Two bright crosses joined by a dotted line, as a measured lesion has: ``(C, *S) -> (C, *S)``, in every slice."""
    height, width = image.shape[-2:]
    arm = max(2, round(0.015 * min(height, width)))
    draw = torch.rand(4, generator=generator).tolist()
    # ends a quarter to a half of the image apart, around a center in the middle third
    row, column = (0.35 + 0.3 * draw[0]) * height, (0.35 + 0.3 * draw[1]) * width
    angle, half = np.pi * draw[2], (0.125 + 0.125 * draw[3]) * min(height, width)
    ends = [(round(row + side * half * np.sin(angle)), round(column + side * half * np.cos(angle))) for side in (-1, 1)]
    drawn = torch.zeros(height, width, dtype=torch.bool)
    for y, x in ends:
        drawn[max(0, y - arm) : y + arm + 1, x : x + 1] = True
        drawn[y : y + 1, max(0, x - arm) : x + arm + 1] = True
    dots = max(2, int(2 * half / (2 * arm)))
    for step in np.linspace(0, 1, dots):
        y, x = (round(a + step * (b - a)) for a, b in zip(*ends, strict=True))
        drawn[y, x] = True
    return _burn(image, drawn)


def plant_text(image: torch.Tensor, generator: torch.Generator, text: str = "LEFT BREAST  12 H") -> torch.Tensor:
    """Burn text of 5 % of the height into one of the four corners: ``(C, *S) -> (C, *S)``, in every slice."""
    height, width = image.shape[-2:]
    canvas, pen, font = _canvas(image, 0.05)
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


def _canvas(image: torch.Tensor, share: float) -> tuple[Image.Image, ImageDraw.ImageDraw, Any]:
    """A black image of the same size, its pen, and a font of this share of the height."""
    canvas = Image.new("L", (image.shape[-1], image.shape[-2]))
    return canvas, ImageDraw.Draw(canvas), ImageFont.load_default(size=max(8, round(share * image.shape[-2])))


def _burn(image: torch.Tensor, drawn: torch.Tensor) -> torch.Tensor:
    """White where ``drawn`` (H, W) is true, in every channel and slice."""
    return torch.where(drawn.to(image.device), torch.ones((), dtype=image.dtype, device=image.device), image)


def _margins(image: torch.Tensor, label: torch.Tensor, top: float, bottom: float, left: float, right: float) -> Pair:
    """Black margins, given as shares of the height and the width."""
    height, width = image.shape[-2:]
    pad = [round(left * width), round(right * width), round(top * height), round(bottom * height)]
    return F.pad(image, pad), F.pad(label, pad)


def _screen(image: torch.Tensor, label: torch.Tensor, generator: torch.Generator) -> Pair:
    """A screenshot: margins with the lines of text and the depth scale that machines write beside the image."""
    image, label = _margins(image, label, 0.12, 0.06, 0.06, 0.3)
    height, width = image.shape[-2:]
    canvas, pen, font = _canvas(image, 0.04)
    pen.text((0.02 * width, 0.02 * height), "GENERAL HOSPITAL  12-03-2019  MI 1.2  TIs 0.3", fill=255, font=font)
    edge = width - 0.3 / 1.36 * width
    pen.multiline_text((edge + 0.04 * width, 0.25 * height), "FR 38Hz\nGN 52\nDR 60\n4.0 cm", fill=220, font=font)
    for y in np.linspace(0.12, 0.94, 9) * height:
        pen.line((edge + 2, y, edge + 2 + 0.015 * width, y), fill=255)
    drawn = torch.from_numpy(np.asarray(canvas, np.float32) / 255)
    return torch.maximum(image, drawn.to(image)), label


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
    return convert_to_tensor(altered), mask.to(label.dtype)


def _intensity(change: Callable[[torch.Tensor, torch.Generator], NdarrayOrTensor]) -> Change:
    """A change of gray values, which leaves the label map alone."""

    def altered(image: torch.Tensor, label: torch.Tensor, generator: torch.Generator) -> Pair:
        result = convert_to_tensor(change(image, generator))
        return result.to(image.dtype).clamp(0, 1), label

    return altered


CHANGES: dict[str, Change] = {
    "margins all around": lambda x, y, g: _margins(x, y, 0.25, 0.25, 0.25, 0.25),
    "empty lower half": lambda x, y, g: _margins(x, y, 0, 1, 0, 0),
    "margins left and right": lambda x, y, g: _margins(x, y, 0, 0, 1 / 3, 1 / 3),
    "user-interface overlay": _screen,
    "closer": _closer,
    "width x 0.7": lambda x, y, g: _stretch(x, y, 0.7),
    "width x 1.4": lambda x, y, g: _stretch(x, y, 1.4),
    "flipped": lambda x, y, g: (x.flip(-1), y.flip(-1)),
    "brighter (gamma 0.6)": _intensity(lambda x, g: AdjustContrast(0.6)(x)),
    "darker (gamma 1.6)": _intensity(lambda x, g: AdjustContrast(1.6)(x)),
    "low gain": _intensity(lambda x, g: 0.45 * x),
    "low contrast": _intensity(lambda x, g: 0.15 + 0.4 * x),
    "high contrast": _intensity(lambda x, g: 1.6 * x - 0.375),
    "gain falls with depth": _intensity(lambda x, g: x * torch.linspace(1.3, 0.4, x.shape[1])[:, None].to(x)),
    "blur (2 pixels)": _intensity(lambda x, g: gaussian_blur(x[None], 2.0)[0]),
    "speckle": _intensity(
        lambda x, g: SpeckleNoise(looks=1.0).set_random_state(g.initial_seed())(x)  # type: ignore[operator]
    ),
    "annotations removed": _intensity(lambda x, g: RemoveAnnotations()(x)),
    "calipers": _intensity(plant_calipers),
    "text": _intensity(plant_text),
}
"""Layout of the screen, scale, gain, texture and annotations; none changes what there is to segment."""

SHORTCUTS: dict[str, Change] = {
    **{name: CHANGES[name] for name in ("calipers", "text", "annotations removed", "flipped")},
    "borders cropped": _intensity(crop_borders),
    "sector edge": _intensity(cut_sector),
    "control: one pixel down": _intensity(lambda x, g: F.pad(x[..., :-1, :], (0, 0, 1, 0))),
}
"""For classifiers: annotations that come and go, edges of the field of view, a control that hardly changes an image."""
