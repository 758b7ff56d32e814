# Copyright (c) monai_usfm contributors
# SPDX-License-Identifier: Apache-2.0
"""Biometry from contours: the ellipse of a mask, and its circumference, as head circumference is measured."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from scipy import ndimage

__all__ = ["Ellipse", "fit_ellipse"]


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
    steps = [float(spacing)] * 2 if isinstance(spacing, int | float) else [float(v) for v in spacing]
    if len(steps) != 2 or not all(math.isfinite(v) and v > 0 for v in steps):
        raise ValueError(f"spacing must be one or two positive numbers of mm, got {spacing}.")
    inside = plane > 0
    if not inside.any():
        return None
    parts, _ = ndimage.label(inside.cpu().numpy(), structure=np.ones((3, 3)))
    largest = np.argwhere(parts == np.bincount(parts[parts > 0]).argmax())
    points = torch.from_numpy(largest).double() * torch.tensor(steps, dtype=torch.float64)
    center = points.mean(0)
    offsets = points - center
    # Each pixel is a rectangle: its own variance belongs to the shape.
    covariance = offsets.T @ offsets / len(points) + torch.diag(torch.tensor(steps, dtype=torch.float64) ** 2 / 12)
    variances, directions = torch.linalg.eigh(covariance)
    long_axis = directions[:, 1]
    angle = math.degrees(math.atan2(float(long_axis[0]), float(long_axis[1])))
    angle = angle - 180 if angle > 90 else angle + 180 if angle <= -90 else angle
    semi = (2 * variances.clamp(min=0).sqrt()).tolist()
    return Ellipse((float(center[0]), float(center[1])), (semi[1], semi[0]), angle)
