# Copyright (c) monai_usfm contributors
# SPDX-License-Identifier: Apache-2.0
"""Measurements that follow from masks by geometry: muscle thickness and pennation, ventricle volume from two views."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from scipy import ndimage

from monai_usfm.metrics.ellipse import checked_spacing, connected_parts

__all__ = ["muscle_architecture", "simpson_volume"]


def muscle_architecture(
    mask: np.ndarray, image: np.ndarray | None = None, spacing: float | Sequence[float] | None = None
) -> dict[str, float | None]:
    """Thickness and pennation of a muscle in a longitudinal image, from the mask of its two aponeuroses.

    1. The two widest connected parts are the aponeuroses; the upper one is superficial.
    2. A straight line is fitted to the inner edge of each (the lower edge of the superficial one, the upper edge of the
       deep one), by least squares over the columns that both have.
    3. ``thickness`` is the mean distance of the superficial edge from the deep line, at a right angle to it.
    4. ``aponeurosis_angle`` lies between the lines, positive where they come closer to the right.
    5. Fascicles have the direction along which the image between the lines changes least: the eigenvector of the
       smaller eigenvalue of its structure tensor, averaged over that region without the sixth next to each line.
       ``pennation_angle`` is that between them and the deep line, in [0, 90]; ``coherence`` in [0, 1] tells how much
       the directions agree. ``fascicle_length`` is thickness / sin(pennation), for straight fascicles that reach from
       one aponeurosis to the other, also beyond the image.

    Narici et al. 1996, https://doi.org/10.1113/jphysiol.1996.sp021685, define the quantities; Rana et al. 2009,
    https://doi.org/10.1016/j.jbiomech.2009.05.030, find fascicles by local direction.

    Args:
        mask: ``(H, W)``; above 0 is aponeurosis.
        image: ``(H, W)`` gray values; None leaves out what needs them.
        spacing: mm per pixel along (H, W), or one number for both; None measures in pixels.

    Returns:
        The quantities above, angles in degrees; None for those that the mask or image does not give.
    """
    names = ("thickness", "aponeurosis_angle", "pennation_angle", "coherence", "fascicle_length")
    nothing: dict[str, float | None] = dict.fromkeys(names)
    steps = checked_spacing(spacing, 2)
    parts, sizes = connected_parts(np.asarray(mask) > 0)
    if len(sizes) < 2:
        return nothing
    widths = [(np.any(parts == number, axis=0).sum(), number) for number in range(1, len(sizes) + 1)]
    pair = [parts == number for _, number in sorted(widths)[-2:]]
    common = np.flatnonzero(pair[0].any(0) & pair[1].any(0))
    if len(common) < 8:
        return nothing
    upper, lower = sorted((part[:, common] for part in pair), key=lambda part: float(np.argwhere(part)[:, 0].mean()))
    above = len(mask) - 1 - upper[::-1].argmax(0)  # lower edge of the superficial aponeurosis
    below = lower.argmax(0)  # upper edge of the deep one
    x, tops, bottoms = common * steps[1], (above + 0.5) * steps[0], (below - 0.5) * steps[0]
    (top_slope, top_start), (slope, start) = np.polyfit(x, tops, 1), np.polyfit(x, bottoms, 1)
    thickness = float(np.mean(slope * x + start - tops)) / math.hypot(1, slope)
    if thickness <= 0:
        return nothing
    found = nothing | {
        "thickness": thickness,
        "aponeurosis_angle": math.degrees(math.atan(top_slope) - math.atan(slope)),
    }
    if image is None:
        return found
    rows, columns = np.indices(mask.shape)
    y = rows * steps[0]
    first, last = (a * columns * steps[1] + b for a, b in ((top_slope, top_start), (slope, start)))
    margin = (last - first) / 6
    inside = (y > first + margin) & (y < last - margin) & (columns >= common[0]) & (columns <= common[-1])
    if inside.sum() < 50:
        return found
    sigma = 0.01 * max(mask.shape)
    gray = np.asarray(image, dtype=float)
    down, right = (
        ndimage.gaussian_filter(gray, sigma, order=order)[inside] / step
        for order, step in zip(((1, 0), (0, 1)), steps, strict=True)
    )
    tensor = np.array([[np.mean(right * right), np.mean(right * down)], [np.mean(right * down), np.mean(down * down)]])
    values, vectors = np.linalg.eigh(tensor)
    if values[1] <= 0:
        return found
    fascicle = math.degrees(math.atan2(vectors[1, 0], vectors[0, 0]))
    between = abs((fascicle - math.degrees(math.atan(slope)) + 90) % 180 - 90)
    found["pennation_angle"] = between
    found["coherence"] = float((values[1] - values[0]) / (values[1] + values[0]))
    found["fascicle_length"] = thickness / math.sin(math.radians(between)) if between > 1 else None
    return found


def simpson_volume(
    first: np.ndarray,
    second: np.ndarray,
    spacing: float | Sequence[float],
    discs: int = 20,
) -> float:
    """Volume of a ventricle in mm³ from its masks in two orthogonal views through its long axis: biplane Simpson.

    Along the long axis, that of the second moments of each mask, both are cut into the same number of discs of equal
    height. Disc ``i`` is an ellipse whose diameters are the widths ``a_i`` and ``b_i`` of the masks there:
    ``V = pi / 4 * sum(a_i * b_i) * L / discs``, with the longer of both lengths ``L``. Lang et al. 2015,
    https://doi.org/10.1016/j.echo.2014.10.003. Both views must have the apex on the same side (up, or down).

    Args:
        first: ``(H, W)``, above 0 is inside; such as the four-chamber view.
        second: ``(H, W)``; such as the two-chamber view.
        spacing: mm per pixel along (H, W), or one number for both.
        discs: number of discs.

    Returns:
        The volume; 0 where a mask is empty.

    Raises:
        ValueError: for masks that are not 2D or a spacing that is not positive.
    """
    (a, long_a), (b, long_b) = (_widths(np.asarray(mask), spacing, discs) for mask in (first, second))
    return float(math.pi / 4 * np.sum(a * b) * max(long_a, long_b) / discs)


def _widths(mask: np.ndarray, spacing: float | Sequence[float], discs: int) -> tuple[np.ndarray, float]:
    """Widths of a mask at a right angle to its long axis, in discs from above to below, and its length."""
    steps = checked_spacing(spacing, 2)
    if mask.ndim != 2:
        raise ValueError(f"need masks (H, W), got shape {mask.shape}.")
    if not (mask > 0).any():
        return np.zeros(discs), 0.0
    points = np.argwhere(mask > 0) * steps
    axis = np.linalg.eigh(np.cov(points.T, bias=True) + np.diag(steps**2) / 12)[1][:, 1]
    axis = axis if axis[0] > 0 else -axis
    # A pixel reaches half its extent along the axis beyond its center.
    along, reach = points @ axis, np.abs(axis) @ steps / 2
    low, high = along.min() - reach, along.max() + reach
    # Each pixel is spread over its own extent, so that few pixels in a disc make no stairs.
    edges = np.linspace(low, high, discs + 1)
    shares = np.clip((edges[None] - (along - reach)[:, None]) / (2 * reach), 0, 1)
    areas = np.diff(shares, axis=1).sum(0) * steps.prod()
    return areas / ((high - low) / discs), float(high - low)
