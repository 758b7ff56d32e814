# Copyright (c) monai_usfm contributors
# SPDX-License-Identifier: Apache-2.0
"""Removal of what was written over the tissue: text, calipers, colored annotations."""

from __future__ import annotations

from collections.abc import Hashable, MutableMapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
import torch
from monai.config import NdarrayOrTensor
from monai.data import MetaTensor, get_track_meta
from monai.transforms import ThreadUnsafe, Transform
from monai.utils import convert_to_dst_type, convert_to_tensor
from scipy import ndimage
from scipy.sparse.csgraph import connected_components

from monai_usfm.transforms.dictionary import NUMPY, DictionaryForm, dictionary_form

__all__ = ["AnnotationReport", "RemoveAnnotations", "RemoveAnnotationsd"]

_EIGHT = np.ones((3, 3), bool)


@dataclass(frozen=True)
class AnnotationReport:
    """What was found in one image; ``kinds`` and ``boxes`` have an entry for each annotation."""

    kinds: tuple[str, ...] = ()  # "text", "caliper" or "color"
    boxes: tuple[tuple[int, int, int, int, int], ...] = ()  # frame (0 in 2D), top, left, bottom, right in pixels
    area_fraction: float = 0.0  # share of all pixels that they, with their blurred rims, take up

    @property
    def count(self) -> int:
        """Number of annotations; a line of text is one."""
        return len(self.kinds)


class RemoveAnnotations(ThreadUnsafe, Transform):
    """Find burned-in annotations, report them, and fill them in from their surroundings: ``(C, *S) -> (C, *S)``.

    An annotation is told from tissue by what a beam cannot draw:

    - **text**: thin bright strokes that form at least three neighboring shapes with the same top and bottom row, as
      capitals and digits have, and the same gray level; and the signs that continue such a line;
    - **calipers**: upright or diagonal crosses with four bright arms, even and of equal length, darker on both sides
      and darker between and beyond them;
    - **color** (three channels only): pixels that are not gray, unless they cover more than a twentieth of the image,
      which is Doppler and left alone.

    What lies outside the field of view, such as logos, rulers and gray bars, is removed by :class:`FieldOfView` and
    MONAI's ``MaskIntensity``.

    The input is never changed where nothing is found. Single letters and pairs, dotted lines, annotations much fainter
    than the tissue around them, handwriting and filled shapes are not found. Volumes and cines ``(C, D, H, W)`` are
    searched slice by slice along the first spatial axis. Of four channels the last counts as alpha: it is neither
    searched nor filled.

    An annotation is filled with the nearest values around it, smoothed; :meth:`detect` only finds annotations.

    Args:
        contrast: least difference between an annotation and its surroundings, as a fraction of the image range. Lower
            values find fainter annotations and more tissue.

    Attributes:
        report: :class:`AnnotationReport` of the last image.

    Raises:
        ValueError: for a contrast outside (0, 1), or an image that is not ``(C, H, W)`` or ``(C, D, H, W)`` with one,
            three or four channels.
    """

    backend = NUMPY

    def __init__(self, contrast: float = 0.2) -> None:
        if not 0 < contrast < 1:
            raise ValueError(f"contrast is a fraction of the image range in (0, 1), got {contrast}.")
        self.contrast = contrast
        self.report = AnnotationReport()

    def __call__(self, img: NdarrayOrTensor) -> torch.Tensor:
        image = convert_to_tensor(img, track_meta=get_track_meta())
        mask, self.report = self.detect(image)
        if not mask.any():
            return image.clone()
        plain = image.as_tensor() if isinstance(image, MetaTensor) else image
        colors = min(plain.shape[0], 3)
        values = plain[:colors].detach().to(torch.float32).cpu().numpy().copy()  # filled in place
        frames = values.reshape(colors, -1, *values.shape[-2:])
        spots = mask[0].cpu().numpy().reshape(-1, *values.shape[-2:])
        for frame in np.flatnonzero(spots.any(axis=(1, 2))):
            for channel in range(colors):
                frames[channel, frame] = _fill(frames[channel, frame], spots[frame])
        filled = torch.as_tensor(frames.reshape(values.shape), device=plain.device)
        if not plain.dtype.is_floating_point:
            filled = filled.round()
        out = plain.clone()
        out[:colors] = torch.where(mask.to(plain.device), filled.to(plain.dtype), plain[:colors])
        return convert_to_dst_type(out, dst=image, dtype=out.dtype)[0]

    def detect(self, img: NdarrayOrTensor) -> tuple[torch.Tensor, AnnotationReport]:
        """Mask ``(1, *S)`` of all annotations, a plain bool tensor, and the report on them; nothing is filled."""
        image = convert_to_tensor(img, track_meta=False)
        if image.ndim not in (3, 4) or image.shape[0] not in (1, 3, 4) or image.numel() == 0:
            raise ValueError(
                f"the image must be (C, H, W) or (C, D, H, W) with 1, 3 or 4 channels, got {tuple(image.shape)}."
            )
        values = image[:3].detach().to(torch.float32).cpu().numpy()
        finite = np.isfinite(values)
        low, high = (values[finite].min(), values[finite].max()) if finite.any() else (0.0, 0.0)
        if not high > low:  # a constant image
            return torch.zeros(1, *image.shape[1:], dtype=torch.bool, device=image.device), AnnotationReport()
        unit = (np.where(finite, values, low) / 2 - low / 2) / (high / 2 - low / 2)  # halves cannot overflow
        frames = unit.reshape(len(unit), -1, *unit.shape[-2:])
        found = [_Annotations.of(frames[:, i], self.contrast) for i in range(frames.shape[1])]
        mask = np.stack([f.mask for f in found])
        report = AnnotationReport(
            kinds=tuple(kind for f in found for kind in f.kinds),
            boxes=tuple((i, *box) for i, f in enumerate(found) for box in f.boxes),
            area_fraction=float(mask.mean()),
        )
        return torch.as_tensor(mask.reshape(1, *image.shape[1:]), device=image.device), report


class _AnnotationForm(DictionaryForm):
    options: ClassVar = {"postfix": ("annotations", "appended to the key, after an underscore.")}
    note = "The report on ``key`` is stored under ``{key}_{postfix}``: a dictionary of count, kinds and area fraction."
    postfix: str

    def store(self, d: MutableMapping[Hashable, Any], key: Hashable, result: Any) -> None:
        report: AnnotationReport = self.transform.report  # type: ignore[attr-defined]
        d[key] = result
        d[f"{key}_{self.postfix}"] = {
            "count": report.count,
            "kinds": "; ".join(report.kinds),
            "area_fraction": report.area_fraction,
        }


RemoveAnnotationsd = dictionary_form(RemoveAnnotations, _AnnotationForm)


def _fill(gray: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """``gray`` with the values around ``mask`` carried into it, smoothed by two pixels."""
    bad = mask | ~np.isfinite(gray)
    if bad.all():
        return gray
    nearest = ndimage.distance_transform_edt(bad, return_distances=False, return_indices=True)
    return np.where(mask, ndimage.gaussian_filter(gray[tuple(nearest)], 2.0), gray)


# ---------------------------------------------------------------------- detection, on one frame


@dataclass
class _Annotations:
    """Annotations of one frame: their pixels, kinds and boxes ``(top, left, bottom, right)``."""

    mask: np.ndarray
    kinds: list[str] = field(default_factory=list)
    boxes: list[tuple[int, int, int, int]] = field(default_factory=list)

    @classmethod
    def of(cls, frame: np.ndarray, contrast: float) -> _Annotations:
        """Search ``(C, H, W)`` in [0, 1]."""
        annotations = cls(np.zeros(frame.shape[1:], bool))
        if min(frame.shape[1:]) < 12:  # no room for an annotation and its surroundings
            return annotations
        gray = frame.mean(axis=0)
        if len(frame) == 3:
            annotations.add_color(frame)
        levels = np.linspace(0.95, 0.4, 10) * np.quantile(gray, 0.9995)
        shapes = [_Shapes.of(gray, level, contrast) for level in levels]
        annotations.add_text(gray, shapes, [line for s in shapes for line in s.words()])
        for cross in _crosses(gray, contrast, annotations.mask):
            annotations.add("caliper", cross)
        return annotations

    def add(self, kind: str, mask: np.ndarray) -> None:
        rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
        self.mask |= mask
        self.kinds.append(kind)
        self.boxes.append((int(rows[0]), int(columns[0]), int(rows[-1]) + 1, int(columns[-1]) + 1))

    def add_color(self, frame: np.ndarray) -> None:
        colored = (frame.max(axis=0) - frame.min(axis=0)) > 0.15
        if 0 < colored.mean() <= 0.05:
            for region in _regions(ndimage.binary_dilation(colored, _EIGHT)):
                if (region & colored).sum() >= 4:
                    self.add("color", region)

    def add_text(self, gray: np.ndarray, shapes: list[_Shapes], lines: list[_Line]) -> None:
        if not lines:
            return
        # what continues a line may stand out at another gray level than its letters
        for _ in range(2):
            for line in lines:
                for s in shapes:
                    line.grow(s)
        rims = [ndimage.binary_dilation(line.pixels | line.strokes(gray), _EIGHT) for line in lines]
        overlap = np.array([[bool((a & b).any()) for b in rims] for a in rims])
        _, group = connected_components(overlap, directed=False)
        for g in np.unique(group):  # lines that touch each other
            self.add("text", np.any([rim for rim, own in zip(rims, group, strict=True) if own == g], axis=0))


def _regions(mask: np.ndarray) -> list[np.ndarray]:
    labels, count = ndimage.label(mask, _EIGHT)
    return [labels == i for i in range(1, count + 1)]


@dataclass
class _Shapes:
    """Connected shapes above one gray level, thin and contrasted enough to be letters or signs."""

    labels: np.ndarray
    index: np.ndarray  # (N,) label of each shape
    box: np.ndarray  # (N, 4) top, left, bottom, right
    level: np.ndarray  # (N,) mean gray
    contrast: np.ndarray  # (N,) mean gray less that of the surroundings

    @classmethod
    def of(cls, gray: np.ndarray, threshold: float, contrast: float) -> _Shapes:
        """Shapes of ``gray > threshold``."""
        labels, count = ndimage.label(gray > threshold, _EIGHT)
        tallest = max(0.12 * gray.shape[0], 24)
        # a cheap look at all shapes first: speckle makes thousands
        relief = ndimage.mean(gray - ndimage.uniform_filter(gray, 15), labels, np.arange(1, count + 1))
        kept = []
        for label, window in enumerate(ndimage.find_objects(labels), start=1):
            height, width = (s.stop - s.start for s in window)
            if not (2 <= height <= tallest and width <= 4 * max(height, 5)) or relief[label - 1] < 0.4 * contrast:
                continue
            shape = labels[window] == label
            wide = tuple(slice(max(s.start - 2, 0), s.stop + 2) for s in window)
            around = ~ndimage.binary_dilation(labels[wide] == label, _EIGHT)
            mean = float(gray[window][shape].mean())
            rise = mean - float(gray[wide][around].mean()) if around.any() else 0.0
            if rise < contrast:
                continue
            # strokes are thin: a letter loses most of its pixels to an erosion by a fifth of its height
            radius = max(height // 5, 1)
            if ndimage.binary_erosion(shape, np.ones((2 * radius + 1,) * 2)).sum() > 0.1 * shape.sum():
                continue
            box = window[0].start, window[1].start, window[0].stop, window[1].stop
            kept.append((label, *box, mean, rise))
        table = np.array(kept, dtype=float).reshape(-1, 7)
        return cls(labels, table[:, 0].astype(int), table[:, 1:5], table[:, 5], table[:, 6])

    def words(self) -> list[_Line]:
        """At least three letters that follow each other on a row, with equal top, bottom and gray level."""
        top, left, bottom, right = self.box.T
        height = bottom - top
        letter = (height >= 5) & (right - left >= 2)
        gap = left[None, :] - right[:, None]  # from the end of the first shape to the start of the second
        aligned = (abs(top[:, None] - top) <= 1) & (abs(bottom[:, None] - bottom) <= 1)
        alike = abs(self.level[:, None] - self.level) < 0.1
        follows = aligned & alike & (gap >= 0) & (gap <= 1.2 * height[:, None]) & letter & letter[:, None]
        _, group = connected_components(follows, directed=False)
        count = np.bincount(group[letter], minlength=1)
        return [_Line(self, np.flatnonzero((group == g) & letter)) for g in np.flatnonzero(count >= 3)]


class _Line:
    """One line of text: its letters' common rows, gray level and contrast, and the pixels found so far."""

    def __init__(self, shapes: _Shapes, members: np.ndarray) -> None:
        box = shapes.box[members]
        self.top, self.bottom = np.median(box[:, 0]), np.median(box[:, 2])
        self.left, self.right = box[:, 1].min(), box[:, 3].max()
        self.level, self.contrast = np.median(shapes.level[members]), np.median(shapes.contrast[members])
        self.pixels = np.isin(shapes.labels, shapes.index[members])

    def grow(self, shapes: _Shapes) -> None:
        """Add shapes that stand on the line beside what it holds: the next word, lower case, points, a cursor."""
        top, left, bottom, right = shapes.box.T
        tall = self.bottom - self.top
        stands = (abs(bottom - self.bottom) <= 1) & (top >= self.top - 1)
        cursor = (right - left <= 0.3 * tall) & (top <= self.top + 1) & (bottom >= self.bottom - 1)
        cursor &= bottom - top <= 1.7 * tall
        alike = (abs(shapes.level - self.level) < 0.15) & (shapes.contrast > 0.6 * self.contrast)
        # small signs only close by, where chance has less room
        reach = np.where(bottom - top > 0.6 * tall, 1.2, 0.6) * tall
        candidates = (stands | cursor) & alike
        while True:
            near = candidates & (left <= self.right + reach) & (right >= self.left - reach)
            if not near.any():
                return
            self.pixels |= np.isin(shapes.labels, shapes.index[near])
            candidates &= ~near
            self.left, self.right = min(self.left, left[near].min()), max(self.right, right[near].max())

    def strokes(self, gray: np.ndarray) -> np.ndarray:
        """Everything in the box of the line that is more like its letters than like what surrounds them."""
        out = np.zeros_like(self.pixels)
        box = slice(int(self.top), int(self.bottom)), slice(int(self.left), int(self.right))
        out[box] = gray[box] > self.level - 0.55 * self.contrast
        return out


def _crosses(gray: np.ndarray, contrast: float, taken: np.ndarray) -> list[np.ndarray]:
    """Pixels of crosses: four arms brighter than the quadrants and than what is beyond."""
    height, width = gray.shape
    best = np.zeros_like(gray)
    kind = np.zeros(gray.shape, int)
    # only pixels that stand out can be the center; most do not, which is what makes this search affordable
    bright = np.argwhere((gray - ndimage.uniform_filter(gray, 11) > contrast / 2) & ~taken)
    variants = [(arm, diagonal) for arm in range(3, 9) for diagonal in (False, True)]
    for number, (arm, diagonal) in enumerate(variants, start=1):
        margin = arm + 2  # a cross that the border cuts is not to be told from other things
        row, column = bright[
            ((bright >= margin) & (bright < np.array([height - margin, width - margin]))).all(axis=1)
        ].T
        axes = [(0, 1), (1, 0), (0, -1), (-1, 0)]
        corners = [(1, 1), (1, -1), (-1, -1), (-1, 1)]
        along, between = (corners, axes) if diagonal else (axes, corners)
        strokes = [np.stack([gray[row + s * y, column + s * x] for s in range(1, arm + 1)]) for y, x in along]
        arms = [stroke.mean(axis=0) for stroke in strokes]
        fade = np.max([stroke.std(axis=0) for stroke in strokes], axis=0)
        quadrants = [
            np.mean([gray[row + s * y, column + s * x] for s in range(2, arm + 1)], axis=0) for y, x in between
        ]
        # strokes: brighter than what lies two pixels beside them, but for one that may touch the number
        flanks = [
            np.mean(
                [gray[row + s * y + t * v, column + s * x + t * u] for s in range(2, arm + 1) for t in (-2, 2)], axis=0
            )
            for (y, x), (v, u) in zip(along, [*along[1:], along[0]], strict=True)
        ]
        relief = np.sort([a - f for a, f in zip(arms, flanks, strict=True)], axis=0)[1]
        tips = [gray[row + margin * y, column + margin * x] for y, x in along]
        # the second brightest quadrant and tip: the number of the caliper may fill one of them
        score = np.min(arms, axis=0) - np.maximum(np.sort(quadrants, axis=0)[-2], np.sort(tips, axis=0)[-2])
        # resampling splits a stroke between two rows of pixels, which dims both arms of that stroke alike
        opposite = np.maximum(abs(arms[0] - arms[2]), abs(arms[1] - arms[3]))
        even = (opposite <= 0.25 * np.max(arms, axis=0)) & (np.ptp(arms, axis=0) <= 0.4 * np.max(arms, axis=0))
        better = even & (relief > 0.6 * contrast) & (fade < 0.3 * score) & (score > best[row, column])
        best[row[better], column[better]], kind[row[better], column[better]] = score[better], number
    peaks = (best == ndimage.maximum_filter(best, size=9)) & (best > 0.6 * contrast) & ~taken
    found = []
    for y, x in np.argwhere(peaks):
        arm, diagonal = variants[kind[y, x] - 1]
        cross = np.zeros_like(taken)
        steps = np.arange(-arm, arm + 1)
        cross[y + steps, x + (steps if diagonal else 0)] = True
        cross[y + (steps if diagonal else 0), x + (-steps if diagonal else steps)] = True
        found.append(ndimage.binary_dilation(cross, _EIGHT))
    return found
