# Copyright (c) monai_usfm contributors
# SPDX-License-Identifier: Apache-2.0
"""Results drawn for a person to look at: overlays, planes of a volume, frames of a cine, contact sheets, movies."""

from __future__ import annotations

import io
import math
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from pathlib import Path

import av
import matplotlib
import numpy as np
from matplotlib.figure import Figure
from PIL import Image, ImageChops, ImageDraw, ImageFont

from monai_usfm.files import atomic_write
from monai_usfm.metrics.measurements import contours

__all__ = [
    "COLORS",
    "draw_bars",
    "draw_over_time",
    "draw_overlay",
    "draw_pair",
    "draw_volume",
    "label_figure",
    "save_movie",
    "tile",
]

COLORS = ((255, 80, 60), (60, 200, 255), (255, 215, 40), (130, 255, 90), (230, 110, 255), (255, 150, 200))
"""Of the classes after the background, repeated when there are more."""

PAPER, INK = (20, 20, 24), (235, 235, 235)
FILL = 0.25  # opacity of a class inside its contour: the texture must stay visible
TEXT = 15


def draw_overlay(
    image: np.ndarray, labels: np.ndarray, spacing: Sequence[float] | None = None, size: int = 560
) -> Image.Image:
    """An image with the contour of every class and a transparent fill; with a scale bar where mm are known.

    Args:
        image: ``(H, W)`` in [0, 1], upright.
        labels: class indices ``(H, W)``.
        spacing: mm per pixel along (H, W): the figure then has the aspect ratio of the body.
        size: longer side in pixels; smaller images are enlarged.
    """
    height, width = image.shape[0] * (spacing[0] if spacing else 1), image.shape[1] * (spacing[1] if spacing else 1)
    factor = size / max(height, width)
    shape = (max(1, round(width * factor)), max(1, round(height * factor)))
    gray = Image.fromarray((np.clip(image, 0, 1) * 255).round().astype(np.uint8))
    drawn = gray.resize(shape, Image.Resampling.BICUBIC).convert("RGB")
    to_x, to_y = shape[0] / image.shape[1], shape[1] / image.shape[0]
    for number in np.unique(labels[labels > 0]).tolist():
        color = COLORS[(int(number) - 1) % len(COLORS)]
        lines = [(line[:, ::-1] + 0.5) * (to_x, to_y) for line in contours(labels == number)]
        ends = np.concatenate(lines)
        left, top = np.maximum(np.floor(ends.min(0)).astype(int) - 4, 0).tolist()
        right, bottom = np.minimum(np.ceil(ends.max(0)).astype(int) + 4, shape).tolist()
        inside = Image.fromarray((labels == number).astype(np.uint8) * round(255 * FILL)).resize(
            (right - left, bottom - top),
            Image.Resampling.BILINEAR,
            (left / to_x, top / to_y, right / to_x, bottom / to_y),
        )
        border = Image.new("L", (2 * inside.width, 2 * inside.height))  # twice as large: smooth lines
        for line in lines:
            points = (2 * (line - (left, top))).ravel().tolist()
            ImageDraw.Draw(border).line(points, fill=255, width=4, joint="curve")
        drawn.paste(color, (left, top), ImageChops.lighter(inside, border.reduce(2)))
    if spacing:
        _scale_bar(drawn, factor)
    return drawn


def _scale_bar(drawn: Image.Image, pixels_per_mm: float) -> None:
    """A bar of a round length, about a fifth of the width, in the lower right corner."""
    wanted = drawn.width / 5 / pixels_per_mm
    power = 10 ** math.floor(math.log10(wanted))
    length = max(n * power for n in (1, 2, 5) if n * power <= wanted)
    right, bottom = drawn.width - 12, drawn.height - 12
    left = right - length * pixels_per_mm
    draw = ImageDraw.Draw(drawn)
    draw.rectangle((left - 1, bottom - 5, right + 1, bottom), fill=INK, outline=(0, 0, 0))
    middle = ((left + right) / 2, bottom - 9)
    draw.text(middle, f"{length:g} mm", INK, _font(), "ms", stroke_width=2, stroke_fill=(0, 0, 0))


def draw_volume(
    image: np.ndarray, labels: np.ndarray, spacing: Sequence[float] | None = None, time: bool = False
) -> Image.Image:
    """Three planes of a volume through the middle of what was found, over a montage of eight slices where it is.

    Args:
        image: ``(D, H, W)`` in [0, 1].
        labels: class indices ``(D, H, W)``.
        spacing: mm per voxel along (D, H, W).
        time: the first axis is time: a montage of frames alone, over all of them.
    """
    found = np.flatnonzero((labels > 0).any(axis=(1, 2)))
    first, last = (found[0], found[-1]) if len(found) and not time else (0, len(image) - 1)
    chosen = sorted(set(np.linspace(first, last, 8).round().astype(int).tolist()))
    word = "frame" if time else "slice"
    slices = [
        label_figure(draw_overlay(image[k], labels[k], spacing and spacing[1:], 260), f"{word} {k}") for k in chosen
    ]
    montage = tile(slices, min(4, len(slices)))
    if time:
        return montage
    inside = np.argwhere(labels > 0)
    middle = inside.mean(0).round().astype(int) if len(inside) else np.array(labels.shape) // 2
    planes = []
    for axis in range(3):
        pair = [s for i, s in enumerate(spacing) if i != axis] if spacing else None
        shown = draw_overlay(image.take(middle[axis], axis), labels.take(middle[axis], axis), pair, 350)
        planes.append(label_figure(shown, f"{'zyx'[axis]} = {middle[axis]}"))
    return tile([tile(planes, 3), montage], 1)


def draw_pair(before: np.ndarray, after: np.ndarray) -> Image.Image:
    """Before | after | their difference, four times as strong around gray."""
    nothing = np.zeros(before.shape, dtype=np.uint8)
    change = 0.5 + 4 * (after.astype(np.float64) - before)
    panels = {"before": before, "after": after, "change x 4": change}
    return tile([label_figure(draw_overlay(p, nothing, None, 420), name) for name, p in panels.items()], 3)


def draw_bars(image: np.ndarray, probabilities: Mapping[str, float]) -> Image.Image:
    """An image over one bar per class, the most probable one in color."""
    drawn = draw_overlay(image, np.zeros(image.shape, dtype=np.uint8), None, 420)
    row, best = TEXT + 7, max(probabilities, key=lambda name: probabilities[name])
    bars = Image.new("RGB", (drawn.width, row * len(probabilities) + 6), PAPER)
    draw = ImageDraw.Draw(bars)
    names = max(draw.textlength(name, _font()) for name in probabilities) + 14
    for line, (name, share) in enumerate(probabilities.items()):
        y = 4 + row * line
        room = max(10.0, drawn.width - names - 60)
        draw.text((6, y), name, INK, _font())
        draw.rectangle((names, y + 3, names + room * share, y + TEXT), COLORS[1] if name == best else (120, 120, 120))
        draw.text((names + room + 8, y), f"{share:.2f}", INK, _font())
    return tile([drawn, bars], 1, gap=0)


def draw_over_time(values: Mapping[str, Sequence[float]], unit: str) -> Image.Image:
    """One line per structure over the frames of a cine."""
    figure = Figure(figsize=(7, 2.8), dpi=100, layout="constrained")
    axes = figure.subplots()
    for place, (name, line) in enumerate(values.items()):
        axes.plot(range(len(line)), line, label=name, color=[v / 255 for v in COLORS[place % len(COLORS)]])
    highest = max((max(line) for line in values.values() if len(line)), default=0)
    axes.set(xlabel="frame", ylabel=f"area ({unit}²)", ylim=(0, 1.1 * highest or 1))
    axes.grid(alpha=0.3)
    axes.legend()
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return Image.open(buffer).convert("RGB")


def label_figure(drawn: Image.Image, title: str, legend: Sequence[tuple[int, str]] = ()) -> Image.Image:
    """A figure with a title above and a legend below; long lines are cut to its width.

    Args:
        drawn: what is shown.
        title: text above.
        legend: class index and text of each line.
    """
    row = TEXT + 6
    whole = Image.new("RGB", (drawn.width, row + drawn.height + row * len(legend)), PAPER)
    whole.paste(drawn, (0, row))
    draw = ImageDraw.Draw(whole)
    draw.text((4, 2), _fitted(draw, title, drawn.width - 8), INK, _font())
    for line, (number, text) in enumerate(legend):
        top = row + drawn.height + row * line
        draw.rectangle((6, top + 5, 6 + TEXT - 3, top + 2 + TEXT), COLORS[(number - 1) % len(COLORS)])
        draw.text((TEXT + 12, top + 3), _fitted(draw, text, drawn.width - TEXT - 16), INK, _font())
    return whole


def _fitted(draw: ImageDraw.ImageDraw, text: str, width: int) -> str:
    if len(text) * TEXT <= width or draw.textlength(text, _font()) <= width:  # no letter is wider than TEXT
        return text
    while text and draw.textlength(text + "...", _font()) > width:
        text = text[:-1]
    return text + "..."


@cache
def _font() -> ImageFont.FreeTypeFont:
    """Matplotlib's own font: it has the squares and crosses that Pillow's lacks."""
    return ImageFont.truetype(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf", TEXT - 1)


def tile(figures: Sequence[Image.Image], columns: int, gap: int = 6) -> Image.Image:
    """Figures in rows of so many columns; each row is as high as its highest."""
    rows = [figures[i : i + columns] for i in range(0, len(figures), columns)]
    widths = [max(row[k].width for row in rows if k < len(row)) for k in range(min(columns, len(figures)))]
    heights = [max(p.height for p in row) for row in rows]
    whole = Image.new("RGB", (sum(widths) + gap * (len(widths) - 1), sum(heights) + gap * (len(rows) - 1)), PAPER)
    for i, row in enumerate(rows):
        for k, drawn in enumerate(row):
            whole.paste(drawn, (sum(widths[:k]) + gap * k, sum(heights[:i]) + gap * i))
    return whole


def save_movie(path: Path, frames: Iterable[Image.Image]) -> Path:
    """Write frames of one size as H.264, which every viewer and browser plays."""
    figures = list(frames)
    width, height = (n - n % 2 for n in figures[0].size)  # color is stored at half the resolution
    with atomic_write(path) as part, av.open(str(part), "w", format="mp4") as container:
        stream = container.add_stream("h264", rate=12)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        for drawn in figures:
            container.mux(stream.encode(av.VideoFrame.from_image(drawn.crop((0, 0, width, height)))))
        container.mux(stream.encode())
    return path
