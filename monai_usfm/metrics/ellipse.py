# Copyright (c) monai_usfm contributors
# SPDX-License-Identifier: Apache-2.0
"""Biometry from contours: the ellipse of a mask, and its circumference, as head circumference is measured."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from scipy import ndimage

__all__ = ["Ellipse", "ellipse_of_extremes", "extremes_of_ellipse", "fit_ellipse"]


@dataclass(frozen=True)
class Ellipse:
    """An ellipse in the plane of a 2D image.

    Args:
        center: of the ellipse along (H, W), from the center of the first pixel.
        semi_axes: half the long and half the short axis.
        angle: from the W axis to the long axis, towards the H axis, in degrees in (-90, 90].

    Lengths are in mm where the fit was given a spacing, in pixels otherwise.
    """

    center: tuple[float, float]
    semi_axes: tuple[float, float]
    angle: float

    @property
    def circumference(self) -> float:
        """Perimeter, by Ramanujan's second approximation (relative error below 1e-5 for axes within 1 : 4)."""
        a, b = self.semi_axes
        h = ((a - b) / (a + b)) ** 2
        return math.pi * (a + b) * (1 + 3 * h / (10 + math.sqrt(4 - 3 * h)))

    @property
    def area(self) -> float:
        """Area."""
        return math.pi * self.semi_axes[0] * self.semi_axes[1]


def fit_ellipse(mask: torch.Tensor, spacing: float | Sequence[float] = 1.0) -> Ellipse | None:
    """The ellipse with the center, orientation and second moments of a 2D mask.

    Head circumference is that of an ellipse drawn around the skull (van den Heuvel et al. 2018,
    https://doi.org/10.1371/journal.pone.0200412). A filled ellipse with semi-axes ``a`` and ``b`` has the variances
    ``a^2 / 4`` and ``b^2 / 4`` along them, which holds for any orientation and anisotropic pixels; small holes and a
    ragged edge hardly move them. Only the largest connected part is measured.

    Args:
        mask: ``(H, W)`` or ``(1, H, W)``; above 0 is inside.
        spacing: mm per pixel along (H, W), or one number for both; 1 measures in pixels.

    Returns:
        The ellipse; None for an empty mask.

    Raises:
        ValueError: for a mask that is not 2D, or a spacing that is not positive.
    """
    plane = torch.as_tensor(mask).as_subclass(torch.Tensor)
    plane = plane[0] if plane.dim() == 3 and plane.shape[0] == 1 else plane
    if plane.dim() != 2:
        raise ValueError(f"an ellipse is fitted to a mask (H, W) or (1, H, W), got shape {tuple(mask.shape)}.")
    steps = checked_spacing(spacing, 2)
    parts, sizes = connected_parts((plane > 0).cpu().numpy())
    if not len(sizes):
        return None
    points = np.argwhere(parts == sizes.argmax() + 1) * steps
    center = points.mean(0)
    offsets = points - center
    # Each pixel is a rectangle: its own variance belongs to the shape.
    return _from_shape(center, 4 * (offsets.T @ offsets / len(points) + np.diag(steps**2 / 12)))


def checked_spacing(spacing: float | Sequence[float] | None, dims: int) -> np.ndarray:
    """Spacing along each axis ``(dims,)``, of which one number is that of all; None is 1, a pixel.

    Raises:
        ValueError: for another number of axes, or spacing that is not positive.
    """
    steps = np.asarray(1.0 if spacing is None else spacing, dtype=float)
    if steps.shape not in ((), (1,), (dims,)) or not (np.isfinite(steps) & (steps > 0)).all():
        raise ValueError(f"spacing must be positive mm along {dims} axes, got {spacing}.")
    return np.broadcast_to(steps, (dims,))


def connected_parts(mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Numbered parts (pixels that touch at a corner belong together), and their sizes in pixels."""
    parts, count = ndimage.label(mask, structure=np.ones((3,) * mask.ndim))
    return parts, np.bincount(parts.ravel(), minlength=count + 1)[1:]


def extremes_of_ellipse(ellipse: Ellipse) -> dict[str, list[float]]:
    """The points ``[x, y]`` of an ellipse that lie farthest to the left, right, top and bottom of the image.

    As landmarks they are defined whatever its orientation, where the ends of its axes change places.
    """
    angle = math.radians(ellipse.angle)
    axes = np.array([[math.sin(angle), math.cos(angle)], [math.cos(angle), -math.sin(angle)]])  # rows: long, short
    shape = axes.T @ np.diag(np.square(ellipse.semi_axes)) @ axes
    center = np.array(ellipse.center)
    right, bottom = shape[1] / math.sqrt(shape[1, 1]), shape[0] / math.sqrt(shape[0, 0])
    ends = {"left": center - right, "right": center + right, "top": center - bottom, "bottom": center + bottom}
    return {name: [float(x), float(y)] for name, (y, x) in ends.items()}


def ellipse_of_extremes(points: Mapping[str, Sequence[float]], spacing: float | Sequence[float] = 1.0) -> Ellipse:
    """The ellipse whose leftmost, rightmost, topmost and bottommost points are given: the inverse of the above.

    Four points say more than an ellipse needs: its center is their mean, and its covariance of x and y the mean of the
    two that the points give.

    Args:
        points: ``left``, ``right``, ``top`` and ``bottom``, each ``(x, y)`` in pixels.
        spacing: mm per pixel along (H, W), or one number for both; 1 measures in pixels.

    Raises:
        ValueError: for points that are no extremes of an ellipse, such as a left one to the right of the right one.
    """
    steps = checked_spacing(spacing, 2)
    left, right, top, bottom = (np.array(points[name][::-1]) * steps for name in ("left", "right", "top", "bottom"))
    width, height = (right - left)[1] / 2, (bottom - top)[0] / 2
    mixed = ((right - left)[0] / 2 * width + (bottom - top)[1] / 2 * height) / 2
    if width <= 0 or height <= 0 or mixed**2 >= (width * height) ** 2:
        raise ValueError(f"no ellipse has the extremes {dict(points)}.")
    return _from_shape((left + right + top + bottom) / 4, np.array([[height**2, mixed], [mixed, width**2]]))


def _from_shape(center: np.ndarray, shape: np.ndarray) -> Ellipse:
    """From the matrix ``A`` of the ellipse ``(p - center) A^-1 (p - center) = 1`` in coordinates along (H, W)."""
    squares, directions = np.linalg.eigh(shape)
    down, across = directions[:, 1]
    angle = math.degrees(math.atan2(down, across))
    angle = angle - 180 if angle > 90 else angle + 180 if angle <= -90 else angle
    short, long = np.sqrt(np.maximum(squares, 0)).tolist()
    return Ellipse((float(center[0]), float(center[1])), (long, short), angle)
