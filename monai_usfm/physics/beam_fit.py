# Copyright (c) monai_usfm contributors
# SPDX-License-Identifier: Apache-2.0
"""Estimation of a beam geometry from the contour of a field of view."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy import ndimage
from scipy.optimize import least_squares

from monai_usfm.physics.beam import BeamGeometry

__all__ = ["NotAConeError", "fit_beam"]

_CUT = math.radians(85.0)  # stands for a lateral edge that the image cuts off; beams are never that oblique
_MIN_OPENING = math.radians(3.0)  # below, edges count as parallel: a pixel of error per 20 pixels of depth


class NotAConeError(ValueError):
    """The image shows no sector whose beams could be estimated."""


def fit_beam(
    mask: np.ndarray, spacing: Sequence[float], fallback: str | None = "error", min_confidence: float = 0.35
) -> BeamGeometry | None:
    """The :class:`BeamGeometry` of a field of view, as :class:`~monai_usfm.transforms.FitBeam` describes it.

    The mask is ``(H, W)`` or ``(D, H, W)``, bool, with the ``spacing`` of a step along each axis.
    """
    if mask.ndim == 3:
        areas = mask.sum(axis=(1, 2))
        # the contour is the same in all slices of a cine, while a volume tapers
        if len(mask) == 1 or areas.min() > 0.9 * areas.max() > 0:
            mask, spacing = mask.mean(axis=0) > 0.5, spacing[1:]
    try:
        if mask.all() or not mask.any():
            raise NotAConeError("no cone in this image: nothing separates a field of view from its surroundings.")
        geometry = _fit_sector(mask, spacing) if mask.ndim == 2 else _fit_sector3d(mask, spacing)
        if geometry.confidence < min_confidence:
            raise NotAConeError(
                f"no cone in this image: the best fit has confidence {geometry.confidence:.2f}, below "
                f"min_confidence={min_confidence}; fallback='linear' or None accepts such images."
            )
    except NotAConeError:
        if fallback == "error":
            raise
        return _fit_linear(mask, spacing) if fallback == "linear" else None
    return geometry


@dataclass
class _Contour:
    """Contour points ``(depth, lateral)`` of a mask in units of spacing, one array per side, and which are evidence."""

    sides: dict[str, np.ndarray]
    seen: dict[str, np.ndarray]  # False where the image or a vertical cut, not the sector, ends the mask
    spacing: tuple[float, ...]

    def __post_init__(self) -> None:
        self.step = min(self.spacing)  # length of the smaller pixel side
        self.tolerance = 1.5 * self.step  # greatest distance from a boundary of the points that support it

    @classmethod
    def of(cls, mask: np.ndarray, spacing: Sequence[float], cuts: bool = True) -> _Contour:
        height, width = mask.shape
        rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
        first, last = mask.argmax(axis=1)[rows], width - 1 - mask[:, ::-1].argmax(axis=1)[rows]
        top, bottom = mask.argmax(axis=0)[columns], height - 1 - mask[::-1].argmax(axis=0)[columns]
        # the true edge lies between the last pixel inside and the first outside: half a pixel out
        points = {
            "left": (rows, first - 0.5),
            "right": (rows, last + 0.5),
            "top": (top - 0.5, columns),
            "bottom": (bottom + 0.5, columns),
        }
        seen = {"left": first > 0, "right": last < width - 1, "top": top > 0, "bottom": bottom < height - 1}
        if cuts:
            # exports crop sectors and paint boxes over them: a long vertical run of the contour is no lateral edge
            seen["left"] &= ~_vertical(first)
            seen["right"] &= ~_vertical(last)
        sides = {k: np.stack([z * spacing[0], x * spacing[1]], axis=1) for k, (z, x) in points.items()}
        return cls(sides, seen, tuple(spacing))


def _vertical(columns: np.ndarray) -> np.ndarray:
    """Which entries belong to a run that stays within one pixel over more than a seventh of all rows."""
    length = max(len(columns) // 7, 12)
    if len(columns) <= length:
        return np.zeros(len(columns), bool)
    spread = ndimage.maximum_filter1d(columns, length) - ndimage.minimum_filter1d(columns, length)
    return ndimage.maximum_filter1d((spread <= 1).astype(np.uint8), length).astype(bool)


def _consensus_line(points: np.ndarray, seen: np.ndarray, side: int, tolerance: float) -> tuple[float, float] | None:
    """Lateral edge ``x = p + q z`` supported by most points; ``side`` is -1 for the left edge, +1 for the right."""
    evidence = points[seen]
    if len(evidence) < 8:
        return None
    sample = evidence[np.linspace(0, len(evidence) - 1, min(len(evidence), 90)).round().astype(int)]
    i, j = np.triu_indices(len(sample), k=1)
    far = sample[j, 0] - sample[i, 0] > 0.08 * np.ptp(points[:, 0])
    i, j = i[far], j[far]
    if len(i) == 0:
        return None
    slope = (sample[j, 1] - sample[i, 1]) / (sample[j, 0] - sample[i, 0])
    slope, start = slope[abs(slope) < 6], (sample[i, 1] - slope * sample[i, 0])[abs(slope) < 6]
    if len(slope) == 0:
        return None

    def outward(slope: np.ndarray, start: np.ndarray) -> np.ndarray:
        """Distance of every point to every line, positive beyond the sector."""
        return side * (points[:, 1] - start[:, None] - slope[:, None] * points[:, 0]) / np.hypot(1, slope)[:, None]

    distance = outward(slope, start)
    score = ((abs(distance) < tolerance) & seen).sum(axis=1) - 2 * (distance > tolerance).sum(axis=1)
    best = int(score.argmax())
    line = slope[best], start[best]
    for _ in range(3):
        near = (abs(outward(*(np.array([v]) for v in line))[0]) < tolerance) & seen
        if near.sum() < 8:
            return None
        line = tuple(np.polyfit(points[near, 0], points[near, 1], 1))
    return float(line[1]), float(line[0])


def _polar(points: np.ndarray, apex: Sequence[float] | np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    depth, lateral = points[:, 0] - apex[0], points[:, 1] - apex[1]
    return np.hypot(depth, lateral), np.arctan2(lateral, depth)


def _fit_sector(mask: np.ndarray, spacing: Sequence[float]) -> BeamGeometry:
    """Sector of a 2D mask from its lateral edges, or from its arcs where those explain the contour better."""
    contour = _Contour.of(mask, spacing)
    try:
        found = _complete_sector(mask, contour, _edge_start(contour))
    except NotAConeError:
        start = _arc_start(contour)
        if start is None:
            raise
        return _complete_sector(mask, contour, start)
    if found.confidence < 0.75 and (start := _arc_start(contour)) is not None:
        try:
            return max(found, _complete_sector(mask, contour, start), key=lambda g: g.confidence)
        except NotAConeError:
            return found
    return found


def _edge_start(contour: _Contour) -> np.ndarray:
    """(depth, lateral, a0, a1) from two straight edges; NotAConeError where they do not diverge with depth."""
    left = _consensus_line(contour.sides["left"], contour.seen["left"], -1, contour.tolerance)
    right = _consensus_line(contour.sides["right"], contour.seen["right"], 1, contour.tolerance)
    if left is None or right is None:
        raise NotAConeError("no cone in this image: its field of view has no two straight lateral edges, nor arcs.")
    (p0, q0), (p1, q1) = left, right
    a0, a1 = math.atan(q0), math.atan(q1)
    if a1 - a0 < _MIN_OPENING:
        raise NotAConeError(
            f"no cone in this image: its lateral edges open by {math.degrees(a1 - a0):.1f} degrees only; "
            "fallback='linear' accepts parallel beams."
        )
    depth = (p0 - p1) / (q1 - q0)
    return np.array([depth, p0 + q0 * depth, a0, a1])


def _arc_start(contour: _Contour) -> np.ndarray | None:
    """(depth, lateral, a0, a1) from concentric arcs, for sectors whose edges the image cuts off.

    Circles through triples of contour points compete for the points of both arcs (RANSAC, Fischler and Bolles 1981,
    https://doi.org/10.1145/358669.358692). Edges are then rays from the center; one without support becomes ``+-_CUT``.
    """
    extent = max(np.ptp(np.concatenate(list(contour.sides.values())), axis=0))
    ceiling = contour.sides["top"][:, 0].min() + contour.tolerance
    centers = []
    rng = np.random.default_rng(0)
    for side in ("top", "bottom"):
        points = contour.sides[side][contour.seen[side]]
        if len(points) < max(20, 0.2 * len(contour.seen[side])):
            continue
        triples = np.sort(rng.integers(0, len(points), (400, 3)), axis=1)
        lateral = points[triples][..., 1]
        triples = triples[np.diff(lateral, axis=1).min(axis=1) > 0.08 * extent]
        centers.append(_circumcenters(points[triples]))
    center = np.concatenate([*centers, np.empty((0, 2))])
    center = center[(center[:, 0] <= ceiling) & (center[:, 0] > ceiling - 4 * extent)]
    best, apex = 0.0, None
    for candidate in center:
        score = 0.0
        for side, outward in (("top", -1), ("bottom", 1)):
            radius = np.hypot(*(contour.sides[side] - candidate).T)
            score += max(_consensus(radius, contour.seen[side], outward, contour.tolerance)[1], 0)
        if score > best:
            best, apex = score, candidate
    if apex is None or best < 0.25 * len(contour.seen["top"]):
        return None
    angles = []
    for side, outward in (("left", -1), ("right", 1)):
        radius, theta = _polar(contour.sides[side], apex)
        # in units of length at the middle of the edge, so that one tolerance serves
        arm = float(np.median(radius))
        angle, score = _consensus(theta * arm, contour.seen[side], outward, contour.tolerance)
        supported = score >= max(12, 0.15 * len(radius))
        angles.append(angle / arm if supported else outward * _CUT)
    return np.array([*apex, *angles])


def _circumcenters(triples: np.ndarray) -> np.ndarray:
    """Centers ``(N, 2)`` of the circles through ``(N, 3, 2)`` points; collinear ones are dropped."""
    a, b, c = triples[:, 0], triples[:, 1] - triples[:, 0], triples[:, 2] - triples[:, 0]
    cross = 2 * (b[:, 0] * c[:, 1] - b[:, 1] * c[:, 0])
    keep = abs(cross) > 1e-9
    a, b, c, cross = a[keep], b[keep], c[keep], cross[keep, None]
    bb, cc = (b**2).sum(axis=1, keepdims=True), (c**2).sum(axis=1, keepdims=True)
    offset = np.concatenate([c[:, 1:] * bb - b[:, 1:] * cc, b[:, :1] * cc - c[:, :1] * bb], axis=1) / cross
    return a + offset


def _consensus(values: np.ndarray, seen: np.ndarray, outward: int, tolerance: float) -> tuple[float, float]:
    """Value that most of ``values[seen]`` share, and its score: each value beyond it counts twice against it."""
    evidence = np.sort(values[seen])
    if len(evidence) == 0:
        return 0.0, -math.inf
    everything = np.sort(outward * values)
    inliers = np.searchsorted(evidence, evidence + tolerance) - np.searchsorted(evidence, evidence - tolerance)
    beyond = len(values) - np.searchsorted(everything, outward * evidence + tolerance)
    score = inliers - 2.0 * beyond
    best = int(score.argmax())
    return float(evidence[best]), float(score[best])


def _complete_sector(mask: np.ndarray, contour: _Contour, start: np.ndarray) -> BeamGeometry:
    """Refine ``start`` and close the sector; a boundary that the image cuts off goes to the outermost visible pixel."""
    spacing, values = contour.spacing, start
    cut = abs(start[2:]) >= _CUT
    for _ in range(3):
        values, arcs = _refine_sector(contour, values, contour.tolerance)
        values[2:][cut] = start[2:][cut]
    apex, angles = values[:2], values[2:]
    radius, angle = _polar(np.argwhere(mask) * spacing, apex)
    if cut.any():
        far = radius > 0.05 * radius.max()  # at the apex the angle means nothing
        half = 0.5 * contour.step / radius[far]
        angles = np.where(cut, [(angle[far] - half).min(), (angle[far] + half).max()], angles)
    a0, a1 = (float(a) for a in angles)
    between = (angle > a0) & (angle < a1)
    if not -math.pi / 2 < a0 < a1 < math.pi / 2 or a1 - a0 < _MIN_OPENING or not between.any():
        raise NotAConeError("no cone in this image: its beams do not meet above it.")
    half_step = 0.5 * contour.step
    r0 = arcs[0] if arcs[0] is not None else max(radius[between].min() - half_step, 0.0)
    r1 = arcs[1] if arcs[1] is not None else radius[between].max() + half_step
    if not 0 <= r0 < r1 - 4 * contour.step:
        raise NotAConeError("no cone in this image: it has no depth between its near and its far arc.")
    geometry = BeamGeometry(
        kind="phased" if r0 < 0.1 * r1 else "convex",
        apex=(apex[0] / spacing[0], apex[1] / spacing[1]),
        radii=(r0, r1),
        angles=(a0, a1),
        spacing=tuple(spacing),
    )
    return replace(geometry, confidence=_confidence(geometry, mask, contour, cut))


def _refine_sector(
    contour: _Contour, values: np.ndarray, tolerance: float
) -> tuple[np.ndarray, tuple[float | None, float | None]]:
    """One round of choosing inliers and least squares; returns (depth, lateral, a0, a1) and the visible arcs."""
    polar = {k: _polar(p, values[:2]) for k, p in contour.sides.items()}
    near: dict[str, np.ndarray] = {}
    arcs: list[float | None] = []
    for side, angle in (("left", values[2]), ("right", values[3])):
        radius, theta = polar[side]
        near[side] = contour.seen[side] & (abs(radius * np.sin(theta - angle)) < tolerance) & (abs(angle) < _CUT)
    for side, outward in (("top", -1), ("bottom", 1)):
        radius, theta = polar[side]
        between = (theta > values[2]) & (theta < values[3])
        radii, seen = radius[between], contour.seen[side][between]
        best, _ = _consensus(radii, seen, outward, tolerance)
        close = (abs(radii - best) < tolerance) & seen
        # an arc has to be more than the corner where it would meet a lateral edge
        arc = float(np.median(radii[close])) if close.sum() >= max(8, 0.1 * len(radii)) else None
        near[side] = contour.seen[side] & between & (abs(radius - (arc or 0.0)) < tolerance)
        arcs.append(arc)

    def residuals(x: np.ndarray) -> np.ndarray:
        parts = []
        for side in ("left", "right"):
            radius, theta = _polar(contour.sides[side][near[side]], x[:2])
            parts.append(radius * np.sin(theta - x[2 if side == "left" else 3]))
        for i, side in enumerate(("top", "bottom")):
            if arcs[i] is not None:
                parts.append(_polar(contour.sides[side][near[side]], x[:2])[0] - x[4 + i])
        return np.concatenate(parts) / contour.step

    start = np.concatenate([values, [a if a is not None else 0.0 for a in arcs]])
    if len(residuals(start)) < 16:
        raise NotAConeError("no cone in this image: too few points of its contour agree.")
    found = least_squares(residuals, start, loss="soft_l1", x_scale="jac", max_nfev=60).x
    return found[:4], tuple(float(f) if a is not None else None for f, a in zip(found[4:], arcs, strict=True))  # type: ignore[return-value]


def _confidence(geometry: BeamGeometry, mask: np.ndarray, contour: _Contour, cut: np.ndarray) -> float:
    """Share of the evidence that the image should show and does, times the overlap of fit and mask.

    The evidence is the two lateral edges; where one is ``cut`` off, the other edge and the arcs.
    """
    model = geometry.mask(mask.shape)[0].numpy()
    overlap = (model & mask).sum() / max((model | mask).sum(), 1)
    apex = [a * s for a, s in zip(geometry.apex, geometry.spacing, strict=True)]
    expected = _Contour.of(model, geometry.spacing) if model.any() else contour

    def support(side: str) -> tuple[int, int]:
        """Points of one side on the fitted boundary: in the image, and in the model."""
        counts = []
        for source in (contour, expected):
            radius, theta = _polar(source.sides[side], apex)
            if side in ("left", "right"):
                distance = radius * np.sin(theta - geometry.angles[side == "right"])
            else:
                distance = radius - geometry.radii[side == "bottom"]
            counts.append(int((source.seen[side] & (abs(distance) < contour.tolerance)).sum()))
        return min(counts), counts[1]

    if cut.any():
        counts = [support(side) for side in ("top", "bottom", *np.array(["left", "right"])[~cut])]
        return float(overlap * sum(c[0] for c in counts) / max(sum(c[1] for c in counts), 1))
    (left, all_left), (right, all_right) = support("left"), support("right")
    # an edge that is upright while the other leans is more often the side of a box or of a crop than of a sector
    (a0, a1) = geometry.angles
    balance = min(2 * (1 - abs(a0 + a1) / (a1 - a0)), 1.0)
    return float(overlap * (left / max(all_left, 1) + right / max(all_right, 1)) / 2 * max(balance, 0.0))


def _fit_sector3d(mask: np.ndarray, spacing: Sequence[float]) -> BeamGeometry:
    """3D sector of a mask ``(D, H, W)``: the planes through the apex are planar sectors and are fitted in turn."""
    slice_ = round(ndimage.center_of_mass(mask)[0])
    for _ in range(2):  # the second time in the slice where the apex was found
        in_plane = _fit_sector(mask[slice_], spacing[1:])
        column = int(np.clip(round(in_plane.apex[1]), 0, mask.shape[2] - 1))
        across = _fit_sector(mask[:, :, column].T, (spacing[1], spacing[0]))
        slice_ = int(np.clip(round(across.apex[1]), 0, mask.shape[0] - 1))
    geometry = BeamGeometry(
        kind="sector3d",
        apex=(across.apex[1], (in_plane.apex[0] + across.apex[0]) / 2, in_plane.apex[1]),
        radii=tuple((a + b) / 2 for a, b in zip(in_plane.radii, across.radii, strict=True)),  # type: ignore[arg-type]
        angles=(across.angles, in_plane.angles),
        spacing=tuple(spacing),
    )
    model = geometry.mask(mask.shape)[0].numpy()
    overlap = float((model & mask).sum() / max((model | mask).sum(), 1))
    return replace(geometry, confidence=min(in_plane.confidence, across.confidence, overlap))


def _fit_linear(mask: np.ndarray, spacing: Sequence[float]) -> BeamGeometry:
    """Rectangle or parallelogram about a mask; of a volume, about the union of its slices."""
    if mask.ndim == 3:
        mask, spacing = np.asarray(mask.any(axis=0)), spacing[1:]
    if not mask.any():
        mask = np.ones_like(mask)
    contour = _Contour.of(mask, spacing, cuts=False)
    left = _consensus_line(contour.sides["left"], contour.seen["left"], -1, contour.tolerance)
    right = _consensus_line(contour.sides["right"], contour.seen["right"], 1, contour.tolerance)
    rows, columns = (np.flatnonzero(mask.any(axis=a)) for a in (1, 0))
    depth = np.array([rows[0] - 0.5, rows[-1] + 0.5]) * spacing[0]
    limits = (np.array([columns[0] - 0.5, columns[-1] + 0.5])) * spacing[1]
    steer, confidence = 0.0, 0.0
    if left is not None and right is not None:
        (p0, q0), (p1, q1) = left, right
        slope = (q0 + q1) / 2
        if abs(q1 - q0) < math.tan(_MIN_OPENING) and p1 + q1 * depth[0] > p0 + q0 * depth[0]:
            steer = math.atan(slope)
            limits = np.array([p0 + q0 * depth.mean(), p1 + q1 * depth.mean()]) + slope * (depth[0] - depth.mean())
            confidence = 1.0
    origin = limits.mean()
    geometry = BeamGeometry(
        kind="linear",
        apex=(depth[0] / spacing[0], origin / spacing[1]),
        radii=(0.0, float(depth[1] - depth[0]) / math.cos(steer)),
        angles=(steer, steer),
        width=(float(limits[0] - origin), float(limits[1] - origin)),
        spacing=tuple(spacing),
    )
    if confidence:
        model = geometry.mask(mask.shape)[0].numpy()
        confidence = float((model & mask).sum() / (model | mask).sum())
    return replace(geometry, confidence=confidence)
