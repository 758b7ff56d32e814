# Copyright (c) monai_usfm contributors
# SPDX-License-Identifier: Apache-2.0
"""What a reader measures on a contour: area or volume, diameters, circumference and position of each structure."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from typing import Any

import contourpy
import numpy as np
import torch
from scipy import ndimage
from scipy.spatial import ConvexHull
from scipy.spatial.distance import pdist, squareform

from monai_usfm.metrics.ellipse import checked_spacing, connected_parts, fit_ellipse

__all__ = ["contours", "diameters", "measure", "perimeter"]

AXES = ("x", "y", "z")


def measure(
    labels: torch.Tensor | np.ndarray,
    num_classes: int,
    spacing: float | Sequence[float] | None = None,
    names: Sequence[str] | None = None,
    components: bool = False,
) -> list[dict[str, Any]]:
    """Measure every structure of a label map; rows of one table, so all have the same keys.

    ``area`` (2D) or ``volume`` (3D) is that of all pixels of the class. The rest describes its largest connected part,
    since a diameter across two separate structures means nothing; ``parts`` says how many there are.

    - ``longest_diameter``: the longest distance between two points of the contour, and ``perpendicular_diameter``, the
      longest chord of its convex hull at a right angle to it. See :func:`diameters`.
    - 2D only: ``circumference`` of the ellipse with the same second moments, as head circumference is taken
      (:func:`~monai_usfm.metrics.fit_ellipse`), and ``perimeter``, the length of the contour itself.
    - ``center_x, center_y[, center_z]``: centroid, from the center of the first pixel; ``box_x, box_y[, box_z]`` and
      ``width, height[, depth]``: the bounding box, from the outer edge of the first pixel.

    Args:
        labels: class indices ``(*S)`` or ``(1, *S)``, ``S`` is (H, W) or (D, H, W); x runs along W, z along D.
        num_classes: classes, background included.
        spacing: mm per sample along ``S``, or one number for all axes; None measures in pixels.
        names: names of the classes, background first; default the class index.
        components: a row for each connected part, largest first, instead of one for each class.

    Returns:
        One dictionary per class, or per part, with ``class, name, part, parts`` (``part`` is 0 for a whole class), the
        measurements above and ``unit``: "mm" or "px"; an area is in the square of it, a volume in the cube. An absent
        class has one row with an area or volume of 0 and None elsewhere.

    Raises:
        ValueError: for labels that are not 2D or 3D, a spacing that is not positive, or names of another number.
    """
    array = np.asarray(torch.as_tensor(labels).as_subclass(torch.Tensor).cpu())
    array = array[0] if array.ndim in (3, 4) and array.shape[0] == 1 else array
    if array.ndim not in (2, 3):
        raise ValueError(f"labels must be (H, W) or (D, H, W), or (1, *S), got shape {tuple(labels.shape)}.")
    steps = checked_spacing(spacing, array.ndim)
    if names is not None and len(names) != num_classes:
        raise ValueError(f"names has {len(names)} entries, but there are {num_classes} classes, background included.")
    rows = []
    for number in range(1, num_classes):
        parts, sizes = connected_parts(array == number)
        largest_first = [int(n) + 1 for n in np.argsort(-sizes, kind="stable")] or [0]  # 0: the class is absent
        for rank, part in enumerate(largest_first if components else largest_first[:1], start=1):
            one = components and part > 0
            size = int(sizes[part - 1] if one else sizes.sum())
            row: dict[str, Any] = {"class": number, "name": str(names[number] if names else number)}
            row |= {"part": rank if one else 0, "parts": len(sizes)}
            row["area" if array.ndim == 2 else "volume"] = size * float(np.prod(steps))
            row |= _shape(parts == part if part else None, steps)
            rows.append({**row, "unit": "px" if spacing is None else "mm"})
    return rows


def diameters(
    mask: np.ndarray, spacing: float | Sequence[float] | None = None
) -> tuple[tuple[float, np.ndarray], tuple[float, np.ndarray]]:
    """The longest diameter of a mask and the longest perpendicular to it, as calipers are placed.

    The contour passes half a sample beyond the centers of the outermost pixels, as in scikit-image. The perpendicular
    is the longest chord of the convex hull that meets the direction of the longest diameter at a right angle; in 3D it
    may point anywhere in that plane.

    Args:
        mask: ``(*S)``, not empty; above 0 is inside.
        spacing: mm per sample along ``S``; None measures in pixels.

    Returns:
        ``(length, ends)`` of both; ``ends (2, dims)`` are their end points along ``S``, from the center of the first
        pixel.
    """
    hull, edges = _hull(mask > 0, checked_spacing(spacing, mask.ndim))
    longest, ends = _farthest(hull)
    heights = hull @ ((ends[1] - ends[0]) / longest)
    low, high = heights[edges].T
    start, step = hull[edges[:, 0]], hull[edges[:, 1]] - hull[edges[:, 0]]
    across, across_ends = 0.0, ends
    # Between two vertices of the hull the chord changes linearly in 2D, so that the longest one is at a vertex.
    levels = np.unique(heights) if len(heights) < 200 else np.linspace(heights.min(), heights.max(), 201)
    levels = levels[1:-1, None]
    with np.errstate(divide="ignore", invalid="ignore"):
        shares = (levels - low) / (high - low)  # of each level (rows) along each edge
    crossed = ((low - levels) * (high - levels) <= 0) & (low != high)
    if mask.ndim == 2 and len(levels):  # the points of a level lie on one line
        sideways = np.array([ends[0, 1] - ends[1, 1], ends[1, 0] - ends[0, 0]])
        along = np.where(crossed, start @ sideways + shares * (step @ sideways), np.nan)
        best = np.nanargmax(np.nanmax(along, axis=1) - np.nanmin(along, axis=1))
        shares, crossed = shares[best : best + 1], crossed[best : best + 1]
    for share, hit in zip(shares, crossed, strict=True):
        length, points = _farthest(start[hit] + share[hit, None] * step[hit])
        if length > across:
            across, across_ends = length, points
    return (longest, ends), (across, across_ends)


def contours(mask: np.ndarray, sigma: float = 0.0) -> list[np.ndarray]:
    """Closed contours of a 2D mask, half a pixel beyond the centers of its pixels; holes have their own.

    Args:
        mask: ``(H, W)``; above 0 is inside.
        sigma: Gaussian smoothing of the mask before, in pixels, which takes its stairs away.

    Returns:
        Arrays ``(N, 2)`` of points along (H, W) in pixels, the last point equal to the first.
    """
    inside, margin = mask > 0, 2 + int(3 * sigma)
    rows, columns = (np.flatnonzero(inside.any(axis)) for axis in (1, 0))
    if not len(rows):
        return []
    box = inside[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    values = ndimage.gaussian_filter(np.pad(box.astype(np.float64), margin), sigma)
    lines = contourpy.contour_generator(z=values, name="serial").lines(0.5)
    return [np.asarray(line)[:, ::-1] + (rows[0] - margin, columns[0] - margin) for line in lines]


def perimeter(mask: np.ndarray, spacing: float | Sequence[float] | None = None) -> float:
    """Length of the outer contour of a 2D mask.

    The stairs of a mask are longer than the curve they follow, so the mask is smoothed by one pixel first: within 2 %
    for ellipses with semi-axes of 5 pixels and more; corners lose a pixel or so. Holes do not count.
    """
    steps = checked_spacing(spacing, 2)
    filled = ndimage.binary_fill_holes(mask > 0)
    found = contours(filled, sigma=1.0) or contours(filled)  # a few pixels would be smoothed away
    return float(sum(np.linalg.norm(np.diff(line * steps, axis=0), axis=1).sum() for line in found))


def _shape(part: np.ndarray | None, steps: np.ndarray) -> dict[str, float | None]:
    """Diameters, circumference and position of one connected part; None everywhere without one."""
    dims = len(steps)
    names = ["longest_diameter", "perpendicular_diameter", *(["circumference", "perimeter"] if dims == 2 else [])]
    axes = AXES[:dims]
    names += [*(f"center_{a}" for a in axes), *(f"box_{a}" for a in axes), *("width", "height", "depth")[:dims]]
    if part is None:
        return dict.fromkeys(names)
    box = ndimage.find_objects(part.astype(np.uint8))[0]
    small = np.pad(part[box], 1)
    (longest, _), (across, _) = diameters(small, steps.tolist())
    values: list[float] = [longest, across]
    if dims == 2:
        ellipse = fit_ellipse(torch.from_numpy(small), steps.tolist())
        values += [ellipse.circumference if ellipse else 0.0, perimeter(small, steps.tolist())]
    center = ndimage.center_of_mass(part)
    values += [float(c * s) for c, s in zip(center[::-1], steps[::-1], strict=True)]
    values += [float(b.start * s) for b, s in zip(box[::-1], steps[::-1], strict=True)]
    values += [float((b.stop - b.start) * s) for b, s in zip(box[::-1], steps[::-1], strict=True)]
    return dict(zip(names, values, strict=True))


def _farthest(points: np.ndarray) -> tuple[float, np.ndarray]:
    """The two points ``(2, dims)`` of ``(N, dims)`` that are farthest apart, and their distance."""
    distances = squareform(pdist(points))
    pair = np.unravel_index(distances.argmax(), distances.shape)
    return float(distances[pair]), points[list(pair)]


def _hull(mask: np.ndarray, steps: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Vertices ``(N, dims)`` of the convex hull of the contour in units of ``steps``, and its edges ``(M, 2)``."""
    surface = np.argwhere(mask & ~ndimage.binary_erosion(mask))
    shifts = np.concatenate([np.eye(mask.ndim), -np.eye(mask.ndim)]) / 2
    points = (surface[:, None] + shifts).reshape(-1, mask.ndim) * steps
    hull = ConvexHull(points)
    sides = [hull.simplices[:, pair] for pair in combinations(range(mask.ndim), 2)]
    edges = np.unique(np.sort(np.concatenate(sides), axis=1), axis=0)
    vertices = np.sort(hull.vertices)
    return points[vertices], np.searchsorted(vertices, edges)
