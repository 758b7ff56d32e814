# Copyright (c) monai_usfm contributors
# SPDX-License-Identifier: Apache-2.0
"""The canvas of simulated anatomy: tissue maps on an image grid, and the brushes that organs are painted with.

Shapes are analytic, so that masks are exact; randomness is the caller's generator alone. The organs themselves are in
:mod:`monai_usfm.simulation.organs`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
from scipy.ndimage import map_coordinates

STRUCTURES = (
    "background",
    "lesion",
    "skin",
    "fat",
    "muscle",
    "gland",
    "vessel",
    "bone",
    "airway",
    "liver",
    "diaphragm",
    "left ventricle",
    "myocardium",
    "right ventricle",
    "left atrium",
    "right atrium",
    "fluid",
    "fetal brain",
    "fetal skull",
    "cerebral ventricle",
    "renal cortex",
    "renal medulla",
    "renal sinus",
    "uterine wall",
    "aponeurosis",
    "nerve",
    "pleura",
    "lung",
    "gallbladder",
    "stone",
    "bladder",
    "prostate",
)


def structure_code(name: str) -> int:
    """Code of a structure in the maps, its place in :data:`STRUCTURES`."""
    return STRUCTURES.index(name)


SOFT_TISSUE_ATTENUATION = 0.5  # dB/cm/MHz, what the machine's time-gain compensation assumes


@lru_cache(maxsize=256)
def _spline_weights(samples: int, knots: int) -> np.ndarray:
    """Matrix ``(samples, knots)`` that evaluates cubic B-splines; rows of unit norm, so that white noise stays unit."""
    position = np.linspace(1.0, knots - 2.0, samples)[:, None] if samples > 1 else np.full((1, 1), (knots - 1) / 2)
    t = np.abs(position - np.arange(knots))
    near, far = 2 / 3 - t**2 + t**3 / 2, np.clip(2 - t, 0, None) ** 3 / 6
    weights = np.where(t < 1, near, far)
    return (weights / np.linalg.norm(weights, axis=1, keepdims=True)).astype(np.float32)


class Phantom:
    """Tissue maps on an image grid, and the few brushes that organs are painted with.

    Args:
        x, z, y: lateral, depth and elevation coordinates in mm, broadcastable to ``shape``; depth 0 is the probe face.
        shape: ``(H, W)`` or ``(D, H, W)``: depth down the rows, elevation first.
        steps: mm per voxel along each axis of ``shape``.
        depth: depth in mm that is visible in the middle of the image.
        width: function of depth (mm) giving the half-width (mm) that is visible there.
        rng: source of every random choice.
    """

    def __init__(
        self,
        x: np.ndarray,
        z: np.ndarray,
        y: np.ndarray,
        shape: Sequence[int],
        steps: Sequence[float],
        depth: float,
        width: Callable[[float], float],
        rng: np.random.Generator,
    ) -> None:
        self.shape, self.steps, self.spacing = tuple(shape), tuple(steps), float(steps[-1])
        self.depth, self.width, self.rng = depth, width, rng
        # Nature draws no ellipses: all shapes live in gently warped coordinates; the skin stays flat under the probe.
        self.axes = (z.reshape(-1), x.reshape(-1)) if len(self.shape) == 2 else tuple(c.reshape(-1) for c in (y, z, x))
        self.bend = 0.03 * depth
        fade = np.clip(z / (0.3 * depth), 0, 1)
        grain = (0.2 * depth,) * 3
        self.x = x + self.bend * 0.4 * fade * np.clip(self.noise(grain), -2, 2)
        self.z = z + self.bend * 0.4 * fade * np.clip(self.noise(grain), -2, 2)
        self.y = y
        self.echo = np.zeros(self.shape, np.float32)  # mean scattered intensity in dB; soft tissue is about 0
        self.attenuation = np.full(self.shape, SOFT_TISSUE_ATTENUATION, np.float32)  # dB/cm/MHz, one way
        self.impedance = np.zeros(self.shape, np.float32)  # relative; its gradient makes the mirror-like echoes
        self.structures = np.zeros(self.shape, np.uint8)  # codes into STRUCTURES
        self.target = np.zeros(self.shape, np.uint8)  # 1 inside what the organ's segmentation task asks for
        self.instances = np.zeros(self.shape, np.uint8)  # number of the single lesion, vessel, chamber, sheet ...
        self.lesions: list[dict[str, Any]] = []  # of each its pattern, whether it is suspicious, radius in mm
        self.healthy = False  # paints no lesion
        self.broken = np.clip(0.55 + 0.45 * self.noise((0.05 * depth, 0.09 * depth)), 0.05, 1.3)  # along membranes
        # Heart only: center (x, z) and radius in mm, strength of the beat.
        self.beat: tuple[tuple[float, float], float, float] | None = None

    # ---- drawing random shapes -------------------------------------------------------------------------------------
    def uniform(self, low: float, high: float) -> float:
        return float(self.rng.uniform(low, high))

    def noise(self, correlation: Sequence[float], shape: Sequence[int] | None = None) -> np.ndarray:
        """Smooth Gaussian field of unit variance; ``correlation``: its grain in mm along depth, lateral, elevation.

        White noise on a lattice of that pitch, joined by cubic B-splines; a third grain is needed in 3D only.
        """
        shape = self.shape if shape is None else tuple(shape)
        grain = (*correlation[2:], correlation[1], correlation[1])[:1] + (correlation[0], correlation[1])
        counts = [
            max(round(n * step / g), 1) + 3 if n > 1 else 4
            for n, step, g in zip(shape, self.steps, grain[-len(shape) :], strict=True)
        ]
        field = self.rng.standard_normal(counts, dtype=np.float32)
        for n, count in zip(shape, counts, strict=True):  # one axis after the other; each comes out last
            field = np.tensordot(field, _spline_weights(n, count), axes=(0, 1))
        return field

    def surface(self, depth: float, amplitude: float, grain: float) -> np.ndarray:
        """Signed distance-like map ``z - surface``: negative above (towards the probe), for a wavy layer border."""
        flat = tuple(1 if axis == len(self.shape) - 2 else n for axis, n in enumerate(self.shape))
        wave = self.noise((1.0, grain, grain), flat)
        return self.z - (depth + amplitude * wave)

    def ellipse(
        self,
        center: Sequence[float],
        radii: Sequence[float],
        angle: float = 0.0,
        lobes: Sequence[tuple[int, float]] = (),
    ) -> np.ndarray:
        """Normalized radius of an ellipsoid: below 1 inside, 1 on the border.

        Args:
            center: (x, z) or (x, z, y) in mm.
            radii: semi-axes along x, z (and y; by default their mean), in mm.
            angle: rotation in the image plane in radians.
            lobes: (order, relative amplitude) of angular ripples that make the border irregular.
        """
        depth_radius = radii[2] if len(radii) > 2 else 0.5 * (radii[0] + radii[1])
        cosine, sine = np.float32(np.cos(angle)), np.float32(np.sin(angle))
        dx, dz = self.x - np.float32(center[0]), self.z - np.float32(center[1])
        a = (cosine * dx + sine * dz) / np.float32(radii[0])
        b = (cosine * dz - sine * dx) / np.float32(radii[1])
        c = (self.y - np.float32(center[2] if len(center) > 2 else 0.0)) / np.float32(depth_radius)
        rho = np.sqrt(a * a + b * b + c * c)
        if lobes:
            azimuth = np.arctan2(b, a)
            ripple = np.zeros_like(rho)
            for order, amplitude in lobes:
                phase = self.uniform(0, 2 * np.pi)
                wave = amplitude * np.cos(order * azimuth + phase + 1.5 * c)
                # Spikes stand in groups, or a lesion would look like a cogwheel.
                ripple += wave if order < 5 else wave * (1 + np.cos(azimuth + self.uniform(0, 2 * np.pi)))
            rho = rho / (1 + ripple)
        return np.broadcast_to(rho, self.shape).astype(np.float32, copy=False)

    def irregular(self, amount: float) -> list[tuple[int, float]]:
        """Ripples for :meth:`ellipse` with random weights: low orders large, high orders small."""
        return [(k, amount * self.uniform(0.3, 1.0) / np.sqrt(k)) for k in (2, 3, 4, 5, 7)]

    def beam_position(self) -> np.ndarray:
        """Lateral position of each pixel between the outermost visible beams, -1 to 1; constant along a beam."""
        widths = np.array([self.width(float(z)) for z in self.axes[-2]], np.float32)
        shape = (1,) * (len(self.shape) - 2) + (-1, 1)
        return np.broadcast_to(self.x / np.maximum(widths, 1e-3).reshape(shape), self.shape)

    def point(self, where: np.ndarray) -> tuple[float, float]:
        """A random point (x, z) in mm of the mask ``where``, in the middle slice or else anywhere."""
        middle = where[tuple(n // 2 for n in self.shape[:-2])]
        rows, columns = np.nonzero(middle if middle.any() else where.reshape(-1, *self.shape[-2:]).any(0))
        if not len(rows):
            return 0.0, 0.5 * self.depth
        chosen = int(self.rng.integers(len(rows)))
        return float(self.axes[-1][columns[chosen]]), float(self.axes[-2][rows[chosen]])

    @property
    def area(self) -> float:
        """Visible area of a frame in mm2."""
        return self.depth * (self.width(0.15 * self.depth) + self.width(0.85 * self.depth))

    def inside_view(self, fraction: float, margin: float) -> tuple[float, float]:
        """A point (x, z) at ``fraction`` of the depth which stays ``margin`` mm away from the lateral borders."""
        z = fraction * self.depth
        reach = max(self.width(z) - margin, 0.0)
        return self.uniform(-reach, reach) * 0.8, z

    # ---- painting --------------------------------------------------------------------------------------------------
    def paint(
        self,
        where: np.ndarray,
        structure: str | None = None,
        echo: float | np.ndarray | None = None,
        attenuation: float | None = None,
        impedance: float | None = None,
    ) -> None:
        """Replace the tissue in the boolean mask ``where``; arguments left out keep what is there."""
        if structure is not None:
            self.structures[where] = structure_code(structure)
        if echo is not None:
            self.echo[where] = echo[where] if isinstance(echo, np.ndarray) else echo
        if attenuation is not None:
            self.attenuation[where] = attenuation
        if impedance is not None:
            self.impedance[where] = impedance

    def sheet(
        self,
        distance: np.ndarray,
        thickness: float,
        echo: float,
        impedance: float = 0.6,
        share: np.ndarray | float = 1.0,
    ) -> None:
        """A membrane where ``distance`` (mm) is near 0: scattering, unevenly bright, and a mirror for the beam.

        ``share`` (0 to 1) weakens parts of it. Never thinner than the grid can hold.
        """
        bump = np.exp(-0.5 * np.square(distance / max(thickness, 0.5 * self.spacing)))
        bump = (bump * share).astype(np.float32)
        self.echo += bump * self.broken * np.maximum(echo - self.echo, 0)
        self.impedance += impedance * bump * (0.4 + 0.6 * self.broken)

    def tube(
        self,
        start: Sequence[float],
        end: Sequence[float],
        radii: tuple[float, float],
        wall: float,
        breadth: float = 0.0,
    ) -> tuple[tuple[slice, ...], np.ndarray] | None:
        """Distance (mm) to the wall of a tapering tube between two (x, z, y) points, in the window where it is near 0.

        ``radii`` are at the start and at the end; the window reaches ``wall`` beyond it; ``breadth``, a half-extent
        across the image plane, makes a plate of the tube; all in mm. Distances are negative inside; ``None`` is for a
        tube out of view.
        """
        reach = max(radii) + wall + self.bend
        order = (1, 0) if len(self.shape) == 2 else (2, 1, 0)
        window = []
        for axis, component in zip(self.axes, order, strict=True):
            low, high = sorted((start[component], end[component]))
            extra = reach + (breadth if component == 2 else 0.0)
            first, last = np.searchsorted(axis, (low - extra, high + extra))
            if first == last:
                return None
            window.append(slice(int(first), int(last)))
        cut = tuple(window)
        x, z = self.x[cut], self.z[cut]
        y = np.broadcast_to(self.y, self.shape)[cut]
        dx, dz, dy = (np.float32(e - s) for s, e in zip(start, end, strict=True))
        px, pz, py = x - np.float32(start[0]), z - np.float32(start[1]), y - np.float32(start[2])
        py = np.sign(py) * np.maximum(np.abs(py) - np.float32(breadth), 0)
        along = np.clip((px * dx + pz * dz + py * dy) / (dx * dx + dz * dz + dy * dy + 1e-6), 0, 1)
        away = np.sqrt((px - along * dx) ** 2 + (pz - along * dz) ** 2 + (py - along * dy) ** 2)
        return cut, away - (radii[0] + np.float32(radii[1] - radii[0]) * along)

    def septa(self, where: np.ndarray, grain: Sequence[float], width: float, echo: float) -> None:
        """Fibrous strands: the zero lines of a smooth random field, bright in parts, inside the mask ``where``."""
        strand = np.exp(-np.square(self.noise(grain) / width)) * self.broken * where
        self.echo += (strand * echo).astype(np.float32)
        self.impedance += (0.4 * strand).astype(np.float32)

    def mark_target(self, where: np.ndarray) -> None:
        self.target[where] = 1

    def instance(self, where: np.ndarray) -> None:
        """Give the object in the mask ``where`` a number of its own; it hides what lies below it."""
        self.instances[where] = min(int(self.instances.max()) + 1, 255)

    def fibers(self, where: np.ndarray, pitch: float, length: float, angle: float, bow: float = 0.0) -> np.ndarray:
        """Streaks of unit variance along ``angle`` inside the mask ``where``, 0 elsewhere.

        ``pitch`` and ``length`` are their grain across and along in mm, ``angle`` is in radians from the probe face,
        positive downwards to the right, and ``bow`` a curvature in 1/mm.
        """
        field = np.zeros(self.shape, np.float32)
        if not where.any():
            return field
        cosine, sine = np.cos(angle), np.sin(angle)
        x, z = (np.broadcast_to(c, self.shape)[where] for c in (self.x, self.z))
        along, across = cosine * x + sine * z, cosine * z - sine * x
        across = across + 0.5 * bow * along**2 + 0.35 * pitch * self.noise((8 * pitch, length, length))[where]
        rows, columns = across / pitch, along / length
        rows, columns = rows - rows.min(), columns - columns.min()
        lattice = self.rng.standard_normal((int(rows.max()) + 3, int(columns.max()) + 3), dtype=np.float32)
        # linear interpolation loses a third of the deviation
        field[where] = 1.5 * map_coordinates(lattice, np.stack([rows, columns]), order=1, mode="nearest")
        return field

    def stripes(self, pitch: float, tilt: float = 0.0) -> np.ndarray:
        """Muscle fibres in [-1, 1]: long streaks along the probe face, ``pitch`` mm apart."""
        streak = self.noise((pitch, 9 * pitch, 6 * pitch))
        return np.clip(streak + tilt * self.noise((3 * pitch, 20 * pitch, 20 * pitch)), -1.5, 1.5)

    def skin(self, thickness: float) -> np.ndarray:
        """Skin under the probe; returns the distance below its lower border."""
        below = self.surface(thickness, 0.08 * thickness, 12.0)
        self.paint(below < 0, "skin", echo=7.0, attenuation=0.8, impedance=0.3)
        self.sheet(below, 0.12 * thickness, 9.0, 0.8)
        return below
