# Copyright (c) monai_usfm contributors
# SPDX-License-Identifier: Apache-2.0
"""Procedural anatomy for simulated ultrasound: what the tissue is, before any sound is sent into it.

A phantom is a set of maps on the image grid: echogenicity, attenuation, acoustic impedance and the structure each
voxel belongs to. Organs differ in structure, not only in numbers, and two classes of each differ in what a reader of
ultrasound would look at (margin, orientation, shadow or enhancement, chamber size ...). Shapes are analytic, so that
the masks are exact. Values follow the order of magnitude of Szabo, Diagnostic Ultrasound Imaging, 2nd ed., appendix B;
the anatomy is a caricature with sensible millimetres, not an atlas.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache

import numpy as np

__all__ = ["CLASS_NAMES", "ORGANS", "STRUCTURES", "Phantom", "build_phantom"]

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
)
_CODE = {name: code for code, name in enumerate(STRUCTURES)}

SOFT_TISSUE_ATTENUATION = 0.5  # dB/cm/MHz, what the machine's time-gain compensation assumes
FLUID = {"echo": -45.0, "attenuation": 0.03, "impedance": -0.4}
BLOOD = {"echo": -30.0, "attenuation": 0.18, "impedance": -0.3}


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

    Attributes:
        echo: mean scattered intensity in dB; soft tissue is about 0.
        attenuation: dB/cm/MHz, one way.
        impedance: relative acoustic impedance; its gradient makes the mirror-like (specular) echoes.
        structures: ``uint8`` codes into :data:`STRUCTURES`.
        target: ``uint8``, 1 inside what the organ's segmentation task asks for.
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
        self.echo = np.zeros(self.shape, np.float32)
        self.attenuation = np.full(self.shape, SOFT_TISSUE_ATTENUATION, np.float32)
        self.impedance = np.zeros(self.shape, np.float32)
        self.structures = np.zeros(self.shape, np.uint8)
        self.target = np.zeros(self.shape, np.uint8)
        self.broken = np.clip(0.55 + 0.45 * self.noise((0.05 * depth, 0.09 * depth)), 0.05, 1.3)  # along membranes
        # Heart only: centre (x, z) and radius in mm, strength of the beat.
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
        """Normalised radius of an ellipsoid: below 1 inside, 1 on the border.

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
                ripple += amplitude * np.cos(order * azimuth + phase + 1.5 * c)
            rho = rho / (1 + ripple)
        return np.broadcast_to(rho, self.shape).astype(np.float32, copy=False)

    def irregular(self, amount: float) -> list[tuple[int, float]]:
        """Ripples for :meth:`ellipse` with random weights: low orders large, high orders small."""
        return [(k, amount * self.uniform(0.3, 1.0) / np.sqrt(k)) for k in (2, 3, 4, 5, 7)]

    def at(self, values: np.ndarray, point: Sequence[float]) -> float:
        """Value of a map at the voxel nearest to ``point``, (x, z) in mm, in the middle slice."""
        z_axis, x_axis = self.axes[-2:]
        row = int(np.abs(z_axis - point[1]).argmin())
        column = int(np.abs(x_axis - point[0]).argmin())
        return float(values[(*(n // 2 for n in self.shape[:-2]), row, column)])

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
            self.structures[where] = _CODE[structure]
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

        Args:
            start, end: ends of the centre line in mm.
            radii: at the start and at the end, in mm.
            wall: how far beyond the wall the window reaches, in mm.
            breadth: half-extent in mm across the image plane, which makes a plate of the tube.

        Returns:
            The window and the distances in it, negative inside; ``None`` when the tube is out of view.
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


def _lesion(p: Phantom, center: tuple[float, float], size: float, malignant: bool, clearance: float = 1e9) -> None:
    """A regular, through-transmitting lesion or an irregular, shadowing one."""
    if malignant:
        radii = (size * p.uniform(0.65, 0.95), size * p.uniform(0.8, 1.15), size * p.uniform(0.7, 1.0))
        spikes = [(int(k), p.uniform(0.01, 0.035)) for k in p.rng.integers(6, 18, 4)]
        lobes = p.irregular(0.15) + spikes
        rho = p.ellipse(center, radii, p.uniform(-0.5, 0.5), lobes)
        halo = np.exp(-np.square((rho - 1.12) / 0.12))
        p.echo += (p.uniform(2, 6) * halo * (rho > 1)).astype(np.float32)
        texture = p.uniform(-19, -12) + 3.0 * p.noise((0.25 * size, 0.25 * size, 0.25 * size))
        inside = rho < 1
        p.paint(inside, "lesion", echo=texture, attenuation=p.uniform(0.8, 1.6), impedance=0.05)
        if p.rng.random() < 0.5:  # microcalcifications
            for _ in range(int(p.rng.integers(2, 7))):
                spot = (
                    center[0] + 0.5 * size * p.uniform(-1, 1),
                    center[1] + 0.5 * size * p.uniform(-1, 1),
                    0.4 * size * p.uniform(-1, 1),
                )
                dot = p.ellipse(spot, (0.05 * size + 0.6 * p.spacing,) * 3) < 1
                p.paint(dot & inside, echo=14.0)
    else:
        cyst = p.rng.random() < 0.35
        radii = (size * p.uniform(1.0, 1.45), size * p.uniform(0.6, 0.85), size * p.uniform(0.8, 1.2))
        rho = p.ellipse(center, radii, p.uniform(-0.2, 0.2), [(2, p.uniform(0, 0.04)), (3, p.uniform(0, 0.03))])
        inside = rho < 1
        if cyst:
            p.paint(inside, "lesion", **FLUID)
        else:
            texture = p.uniform(-14, -8) + 1.2 * p.noise((0.3 * size, 0.4 * size, 0.4 * size))
            p.paint(inside, "lesion", echo=texture, attenuation=p.uniform(0.1, 0.3), impedance=-0.15)
        p.sheet((rho - 1) * size, 0.03 * size, p.uniform(-6, 1), 0.3)
    p.mark_target(inside)


def _breast(p: Phantom, altered: bool) -> None:
    skin = p.uniform(1.2, 2.2)
    below_skin = p.skin(skin)
    fat_end = p.uniform(0.18, 0.32) * p.depth
    gland_end = p.uniform(0.58, 0.75) * p.depth
    gland_top = p.surface(fat_end, 0.045 * p.depth, p.uniform(6, 12))
    gland_floor = p.surface(gland_end, 0.02 * p.depth, 14.0)
    fat = (below_skin > 0) & (gland_top < 0)
    p.paint(fat, "fat", echo=-9.0 + 1.5 * p.noise((2.0, 4.0, 4.0)), attenuation=0.48)
    gland = (gland_top >= 0) & (gland_floor < 0)
    fibres = 3.0 * p.noise((0.5, 3.5, 3.5)) + 2.0 * p.noise((1.2, 8.0, 8.0)) + 2.5 * p.noise((4.0, 9.0, 9.0))
    p.paint(gland, "gland", echo=2.0 + fibres, attenuation=0.55, impedance=0.15)
    lobules = gland & (p.noise((3.0, 7.0, 7.0)) > p.uniform(0.5, 1.3))  # fat lobules inside the gland
    p.paint(lobules, "fat", echo=-8.0 + 1.5 * p.noise((1.5, 3.0, 3.0)))
    p.septa(fat, (1.5, 7.0, 7.0), 0.12, 13.0)
    p.septa(gland, (1.0, 6.0, 6.0), 0.16, 7.0)
    p.septa(gland, (2.0, 12.0, 12.0), 0.08, 9.0)
    retro = gland_floor >= 0
    muscle_top = p.surface(gland_end + p.uniform(1.5, 4.0), 0.4, 20.0)
    p.paint(retro, "fat", echo=-8.0)
    muscle = muscle_top >= 0
    p.paint(muscle, "muscle", echo=-6.0 + 5.0 * p.stripes(0.6), attenuation=0.7)
    p.sheet(muscle_top, 0.2, 6.0)
    p.sheet(muscle_top - p.uniform(2.5, 5.0), 0.2, 5.0)
    if p.rng.random() < 0.5:  # chest wall: pleura, air behind it
        pleura = p.surface(p.uniform(0.86, 0.96) * p.depth, 0.5, 25.0)
        p.paint(pleura > 0, "airway", echo=-18.0, attenuation=4.0)
        p.sheet(pleura, 0.25, 12.0, 1.5)
    size = p.uniform(0.09, 0.19) * p.depth
    fraction = p.uniform(max(0.34, (fat_end + 0.6 * size) / p.depth), 0.58)
    _lesion(p, p.inside_view(fraction, 1.6 * size), size, altered)


def _thyroid(p: Phantom, altered: bool) -> None:
    side = 1.0 if p.rng.random() < 0.5 else -1.0
    below_skin = p.skin(p.uniform(1.0, 1.8))
    strap = p.surface(p.uniform(3.0, 5.0), 0.5, 15.0)
    p.paint((below_skin > 0) & (strap < 0), "fat", echo=-7.0 + 1.5 * p.noise((1.0, 5.0, 5.0)))
    p.paint(strap >= 0, "muscle", echo=-9.0 + 4.0 * p.stripes(0.7), attenuation=0.6)
    p.sheet(strap, 0.15, 4.0)
    # The trachea lies beside the middle, one lobe is centred; the other one is cut by the border of the view.
    trachea_x, trachea_z = -side * p.uniform(0.35, 0.55) * p.width(15.0), p.uniform(14.0, 18.0)
    trachea_radius = p.uniform(7.0, 9.0)
    lobe_radii = (p.uniform(7.5, 10.0), p.uniform(6.5, 9.0), 20.0)
    lobe = np.full(p.shape, np.inf, np.float32)
    centers = []
    for sign in (side, -side):
        center = (trachea_x + sign * (trachea_radius + 0.75 * lobe_radii[0]), trachea_z - 0.5)
        centers.append(center)
        lobe = np.minimum(lobe, p.ellipse(center, lobe_radii, sign * p.uniform(0.0, 0.4), p.irregular(0.03)))
    isthmus = p.ellipse((trachea_x, trachea_z - trachea_radius - 0.8), (trachea_radius + 2, p.uniform(1.8, 2.8), 12.0))
    lobe = np.minimum(lobe, isthmus)
    p.paint(lobe < 1, "gland", echo=3.0 + 1.2 * p.noise((1.5, 2.0, 2.0)), attenuation=0.55, impedance=0.15)
    p.sheet((lobe - 1) * 7.0, 0.15, 1.0, 0.5)
    nodule = p.uniform(0.4, 0.62) * lobe_radii[1]
    _lesion(p, (centers[0][0] + p.uniform(-1, 1), centers[0][1] + p.uniform(-1, 1)), nodule, altered)
    for center, sign in zip(centers, (side, -side), strict=True):
        carotid = (center[0] + sign * (lobe_radii[0] + 4.0), center[1] + p.uniform(0, 3))
        radius = p.uniform(2.6, 3.6)
        rho = p.ellipse(carotid, (radius, radius, 200.0))
        p.paint(rho < 1, "vessel", **BLOOD)
        p.sheet((rho - 1) * radius, 0.15, 2.0, 0.9)
        jugular = p.ellipse(
            (carotid[0] + sign * 4.5, carotid[1] - 4.0), (p.uniform(3.5, 5.0), p.uniform(1.5, 2.6), 200.0), 0.4 * sign
        )
        p.paint(jugular < 1, "vessel", **BLOOD)
    rho = p.ellipse((trachea_x, trachea_z), (trachea_radius, 0.9 * trachea_radius, 200.0))
    p.paint(rho < 1.0, "airway", echo=-14.0, attenuation=3.0)
    p.paint((rho >= 1.0) & (rho < 1.16) & (p.target == 0), "airway", echo=-12.0)  # cartilage ring
    facing = np.clip((trachea_z - p.z) / trachea_radius * 1.6 - 0.3, 0, 1)  # only the front wall is reached
    p.sheet((rho - 1) * trachea_radius, 0.3, 11.0, 1.6, facing)
    p.target[p.structures != _CODE["lesion"]] = 0
    spine = p.surface(trachea_z + trachea_radius + p.uniform(6.0, 9.0), 1.0, 18.0)
    p.paint(spine > 0, "bone", echo=-12.0, attenuation=6.0)
    p.sheet(spine, 0.3, 9.0, 1.2)


def _abdominal_wall(p: Phantom, fat: float, muscle: float) -> np.ndarray:
    """Skin, subcutaneous fat and muscle; returns the distance below the wall."""
    below_skin = p.skin(p.uniform(1.8, 3.0))
    fat_floor = p.surface(fat, 0.6, 25.0)
    wall_floor = p.surface(fat + muscle, 1.0, 30.0)
    p.paint((below_skin > 0) & (fat_floor < 0), "fat", echo=-7.0 + 5.0 * p.stripes(1.2), attenuation=0.5)
    p.paint((fat_floor >= 0) & (wall_floor < 0), "muscle", echo=-3.0 + 5.0 * p.stripes(1.0), attenuation=0.6)
    p.sheet(fat_floor, 0.4, 6.0, 0.9)
    p.sheet(fat_floor - 0.45 * muscle, 0.3, 4.0, 0.7)
    p.sheet(wall_floor, 0.4, 7.0, 1.2)
    return wall_floor


Segment = tuple[tuple[float, float, float], tuple[float, float, float], tuple[float, float]]


def _branch(p: Phantom, root: tuple[float, float, float], angle: float, length: float, radius: float) -> list[Segment]:
    """A vessel that runs at ``angle`` (0 points right, pi/2 down) from ``root``, bends, forks and leaves the plane."""
    segments: list[Segment] = []
    ends = [(root, angle, p.uniform(-0.15, 0.15), length, radius, 3)]
    while ends:
        start, angle, rise, length, radius, generations = ends.pop()
        for _ in range(2):  # two straight pieces make a bend
            step = 0.5 * length
            end = (
                start[0] + step * np.cos(angle) * np.cos(rise),
                start[1] + step * np.sin(angle) * np.cos(rise),
                start[2] + step * np.sin(rise),
            )
            thinner = 0.88 * radius
            segments.append((start, end, (radius, thinner)))
            start, radius = end, thinner
            angle += p.uniform(-0.25, 0.25)
        if generations > 1:
            for side in (-1.0, 1.0):
                turn = side * p.uniform(0.3, 0.7)
                ends.append(
                    (start, angle + turn, rise + p.uniform(-0.35, 0.35), 0.75 * length, 0.74 * radius, generations - 1)
                )
    return segments


def _vessels(p: Phantom, segments: Sequence[Segment], tissue: np.ndarray, walled: bool) -> None:
    """Paint blood-filled tubes into the mask ``tissue``; ``walled`` ones (portal) have bright walls."""
    found = [t for t in (p.tube(start, end, radii, 3.0) for start, end, radii in segments) if t is not None]
    if walled:
        for window, distance in found:
            bump = np.exp(-0.5 * np.square((distance - 0.4) / 0.8)) * tissue[window]
            p.echo[window] += bump * np.maximum(5.0 * p.broken[window] - p.echo[window], 0)
            p.impedance[window] = np.maximum(p.impedance[window], 0.5 * bump)
    for window, distance in found:
        inside = (distance < 0) & tissue[window]
        p.echo[window][inside] = BLOOD["echo"]
        p.attenuation[window][inside] = BLOOD["attenuation"]
        p.impedance[window][inside] = BLOOD["impedance"]
        p.structures[window][inside] = _CODE["vessel"]


def _liver(p: Phantom, altered: bool) -> None:
    wall = _abdominal_wall(p, p.uniform(6, 14), p.uniform(6, 10))
    parenchyma = wall >= 0
    p.paint(parenchyma, "liver", echo=0.6 * p.noise((4.0, 4.0, 4.0)) + 0.8 * p.noise((30.0, 30.0, 30.0)))
    cava = (p.uniform(-0.5, 0.5) * p.width(0.7 * p.depth), p.uniform(0.62, 0.8) * p.depth, p.uniform(-3, 3))
    for _ in range(int(p.rng.integers(2, 4))):
        toward = p.uniform(np.pi + 0.2, 2 * np.pi - 0.2)  # hepatic veins fan out from the vena cava, upwards
        _vessels(p, _branch(p, cava, toward, 0.22 * p.depth, p.uniform(3.0, 5.0)), parenchyma, walled=False)
    for _ in range(int(p.rng.integers(1, 4))):
        hilum = (p.uniform(-0.6, 0.6) * p.width(0.5 * p.depth), p.uniform(0.35, 0.7) * p.depth, p.uniform(-6, 6))
        _vessels(p, _branch(p, hilum, p.uniform(0, 2 * np.pi), 0.16 * p.depth, p.uniform(2.5, 4.5)), parenchyma, True)
    size = p.uniform(0.055, 0.13) * p.depth
    aside = p.uniform(-0.6, 0.6)
    bow = p.ellipse(
        (aside * p.depth, p.uniform(0.0, 0.25) * p.depth),
        ((0.75 + 0.5 * abs(aside)) * p.depth, p.uniform(0.66, 0.85) * p.depth, p.depth),
        -0.4 * aside,
    )
    for _ in range(30):  # the lesion lies in front of the diaphragm
        center = p.inside_view(p.uniform(0.3, 0.62), 1.6 * size)
        if p.at(bow, center) < 1 - 1.4 * size / (0.7 * p.depth):
            break
    if not altered:
        kind = p.rng.random()
        rho = p.ellipse(center, (size * p.uniform(0.9, 1.2), size * p.uniform(0.8, 1.0)), 0, [(3, p.uniform(0, 0.04))])
        if kind < 0.5:  # simple cyst
            p.paint(rho < 1, "lesion", **FLUID)
            p.sheet((rho - 1) * size, 0.3, -4.0, 0.5)
        else:  # haemangioma
            p.paint(rho < 1, "lesion", echo=8.0 + p.noise((2.0, 2.0, 2.0)), attenuation=0.4, impedance=0.1)
    else:  # metastasis: hypoechoic rim around a brighter centre, or hypoechoic throughout
        rho = p.ellipse(center, (size * p.uniform(0.9, 1.2), size * p.uniform(0.9, 1.2)), 0, p.irregular(0.09))
        core = -4.0 + 3.0 * p.noise((4.0, 4.0, 4.0)) if p.rng.random() < 0.6 else -9.0 + 2.0 * p.noise((4.0, 4.0, 4.0))
        p.paint(rho < 1, "lesion", echo=-12.0, attenuation=p.uniform(0.7, 1.0), impedance=-0.05)
        p.paint(rho < p.uniform(0.68, 0.8), echo=core)
    lesion = rho < 1
    p.mark_target(lesion & parenchyma)
    beyond = bow > 1
    seen = np.clip(0.45 + 0.6 * p.noise((0.3 * p.depth,) * 3), 0.02, 1)
    p.paint(beyond, "airway", echo=-20.0 + 2.0 * p.noise((6.0, 10.0, 10.0)), attenuation=1.0, impedance=0.0)
    p.sheet((bow - 1) * 0.7 * p.depth, 0.8, 8.0, 2.4, seen)
    p.paint(np.abs((bow - 1) * 0.7 * p.depth) < 1.2, "diaphragm")
    p.target[p.structures != _CODE["lesion"]] = 0


def _kidney(p: Phantom, altered: bool) -> None:
    wall = _abdominal_wall(p, p.uniform(6, 14), p.uniform(6, 10))
    beside = p.rng.random() < 0.6  # seen through the liver, or through fat and muscle
    texture = 0.7 * p.noise((4.0, 4.0, 4.0))
    p.paint(wall >= 0, "liver" if beside else "muscle", echo=(texture if beside else -4.0 + 5.0 * p.stripes(2.0)))
    if beside:
        root = (p.uniform(-0.5, 0.5) * p.width(0.3 * p.depth), 0.3 * p.depth, p.uniform(-10, 10))
        _vessels(p, _branch(p, root, p.uniform(0, np.pi), 0.15 * p.depth, p.uniform(2.0, 3.5)), wall >= 0, walled=True)
    long, short = p.uniform(44, 56), p.uniform(20, 26)
    center = (p.uniform(-10, 10), max(0.5 * p.depth + p.uniform(-6, 8), short + 24.0))
    angle = p.uniform(-0.35, 0.35)
    rho = p.ellipse(center, (long, short, short), angle, [(2, p.uniform(0, 0.04)), (3, p.uniform(0, 0.03))])
    fat = (rho < 1.14) & (wall >= 0)
    p.paint(fat, "fat", echo=2.5 + 2.5 * p.noise((3.0, 10.0, 10.0)))
    kidney = (rho < 1) & (wall >= 0)
    p.paint(kidney, "renal cortex", echo=-4.0 + 0.8 * p.noise((3.0, 3.0, 3.0)), attenuation=0.5)
    p.sheet((rho - 1) * short, 0.4, 3.0, 0.9)
    sinus = p.ellipse(center, (0.6 * long, 0.4 * short, 0.42 * short), angle, p.irregular(0.14))
    cosine, sine = np.cos(angle), np.sin(angle)
    for side in (-1.0, 1.0):
        for position in np.linspace(-0.62, 0.62, 5):
            jitter = p.uniform(-0.05, 0.05)
            a, b = (position + jitter) * long, side * short * 0.62 * np.sqrt(1 - (position * 0.95) ** 2)
            spot = (center[0] + cosine * a - sine * b, center[1] + sine * a + cosine * b)
            pyramid = p.ellipse(spot, (p.uniform(4.0, 5.5), p.uniform(3.5, 4.8), 6.0), angle) < 1
            p.paint(pyramid & kidney & (sinus > 1), "renal medulla", echo=-11.0)
    p.paint(sinus < 1, "renal sinus", echo=8.0 + 3.0 * p.noise((2.0, 4.0, 4.0)), attenuation=0.7, impedance=0.3)
    p.septa(sinus < 1, (2.5, 8.0, 8.0), 0.2, 5.0)
    if altered:  # hydronephrosis: the collecting system is wide and filled with urine
        pelvis = p.ellipse(center, (0.36 * long, p.uniform(0.2, 0.3) * short, 0.3 * short), angle, p.irregular(0.12))
        soft = np.exp(-6 * pelvis)  # summed exponentials melt the calyces into the pelvis
        for _ in range(int(p.rng.integers(4, 7))):
            a, b = p.uniform(-0.5, 0.5) * long, p.uniform(-0.38, 0.38) * short
            spot = (center[0] + cosine * a - sine * b, center[1] + sine * a + cosine * b)
            calyx = p.ellipse(spot, (p.uniform(5.0, 9.0), p.uniform(3.5, 6.0), 5.0), p.uniform(-1.5, 1.5))
            soft += np.exp(-6 * calyx)
        pelvis = -np.log(soft + 1e-12) / 6
        urine = (pelvis < 1) & (rho < 0.9)
        p.paint(urine, "fluid", **FLUID)
    p.mark_target(kidney)


def _heart(p: Phantom, altered: bool) -> None:
    below_skin = p.skin(p.uniform(1.5, 2.5))
    chest = p.surface(p.uniform(12, 20), 1.0, 25.0)
    p.paint((below_skin > 0) & (chest < 0), "muscle", echo=-3.0 + 5.0 * p.stripes(1.5), attenuation=0.6)
    p.paint(chest >= 0, "background", echo=-15.0 + 4.0 * p.noise((10.0, 14.0, 14.0)), attenuation=0.5)
    scale = p.depth / 150.0
    tilt = p.uniform(-0.25, 0.15)
    cosine, sine = np.cos(tilt), np.sin(tilt)
    apex = (p.uniform(-2, 12) * scale, p.uniform(20, 28) * scale)

    def place(a: float, b: float) -> tuple[float, float]:  # a across, b along the long axis from the apex, both in mm
        return apex[0] + scale * (cosine * a + sine * b), apex[1] + scale * (cosine * b - sine * a)

    def chamber(
        at: tuple[float, float], half_across: float, half_along: float, turn: float = 0.0, ripple: float = 0.0
    ) -> np.ndarray:
        return p.ellipse(
            at, (scale * half_across, scale * half_along, scale * half_across), turn - tilt, p.irregular(ripple)
        )

    length = p.uniform(70, 80)
    valve = 0.86 * length  # the valve plane, along the axis
    half = p.uniform(26, 30) if altered else p.uniform(18, 22)
    wall = p.uniform(5, 7) if altered else p.uniform(9, 12)
    rv_half, la_half, ra_half = p.uniform(14, 18), p.uniform(18, 23), p.uniform(17, 21)
    septum = -(0.4 * half + 0.5 * wall)  # where the septum meets the valve plane, across
    below = sine * (p.x - apex[0]) + cosine * (p.z - apex[1]) - np.float32(scale * valve)
    below = np.broadcast_to(below, p.shape)  # mm beyond the valve plane, towards the atria
    lv = chamber(place(0.6 * half, 0.5 * length + 6), half, 0.5 * length, 0.0, 0.03)
    outer = chamber(place(0.6 * half, 0.5 * length + 5), half + wall, 0.5 * length + 0.8 * wall)
    rv_at = place(septum - 0.5 * wall - 0.7 * rv_half, 0.6 * length)
    rv = chamber(rv_at, rv_half, 0.36 * length, 0.25, 0.05)
    rv_outer = chamber(rv_at, rv_half + 4, 0.36 * length + 4, 0.25)
    la_at = place(septum + 2 + la_half, valve + 0.7 * la_half)
    ra_at = place(septum - 2 - ra_half, valve + 0.7 * ra_half)
    la, ra = chamber(la_at, la_half, la_half * p.uniform(0.95, 1.2), 0, 0.05), chamber(ra_at, ra_half, ra_half, 0, 0.05)
    la_outer, ra_outer = chamber(la_at, la_half + 3, la_half + 4), chamber(ra_at, ra_half + 3, ra_half + 3)
    heart = np.minimum(np.minimum(outer + 9 * (below > 3), rv_outer + 9 * (below > 3)), np.minimum(la_outer, ra_outer))
    fibre = -6.0 + 1.5 * p.noise((3.0, 3.0, 3.0)) + 2.0 * p.noise((12.0, 12.0, 12.0))
    p.paint(heart < 1, "myocardium", echo=fibre, attenuation=0.55, impedance=0.1)
    cavity = {"echo": -26.0, "attenuation": 0.2, "impedance": -0.1}
    p.paint((rv < 1) & (outer >= 1) & (below < 0), "right ventricle", **cavity)
    p.paint((lv < 1) & (below < 0), "left ventricle", **cavity)
    p.paint((la < 1) & (below >= 0), "left atrium", **cavity)
    p.paint((ra < 1) & (la_outer >= 1) & (below >= 0), "right atrium", **cavity)
    p.sheet((heart - 1) * 25 * scale, 0.8 * scale, 1.0, 0.9, 0.25 + 0.5 * p.broken)  # pericardium
    opening = p.uniform(0.15, 0.6)  # leaflets hang from the valve plane into the ventricles
    lv_base = half * np.sqrt(max(1 - ((valve - 0.5 * length - 6) / (0.5 * length)) ** 2, 0.1))
    for middle, reach in ((0.6 * half, lv_base), (septum - 0.5 * wall - 0.75 * rv_half, 0.85 * rv_half)):
        for side in (-1.0, 1.0):
            root = place(middle + side * reach, valve)
            tip = place(middle + side * reach * opening * 0.7, valve - (0.3 + 0.7 * opening) * 0.75 * reach)
            plate = p.tube((*root, 0.0), (*tip, 0.0), (0.3 * scale, 0.2 * scale), 3.0, 0.6 * reach * scale)
            if plate is not None:
                window, distance = plate
                bump = np.exp(-0.5 * np.square(np.maximum(distance, 0) / (0.7 * scale)))
                p.echo[window] += bump * np.maximum(0.0 - p.echo[window], 0)
                p.impedance[window] += 0.7 * bump
    p.mark_target(p.structures == _CODE["left ventricle"])
    # A cine contracts towards the middle of the left ventricle.
    p.beat = (place(half * 0.6, 0.5 * length), scale * (half + wall), p.uniform(0.05, 0.09) if altered else 0.22)


def _fetal_head(p: Phantom, altered: bool) -> None:
    wall = _abdominal_wall(p, p.uniform(5, 10), p.uniform(4, 8))
    uterus = p.surface(p.uniform(20, 28), 2.0, 40.0)
    p.paint(wall >= 0, "uterine wall", echo=-3.0 + 2.0 * p.noise((3.0, 8.0, 8.0)))
    p.paint(uterus >= 0, "fluid", **FLUID)
    p.sheet(uterus, 0.4, 2.0, 0.8)
    behind = p.surface(p.uniform(0.86, 1.0) * p.depth, 4.0, 40.0)
    p.paint(behind > 0, "uterine wall", echo=1.0 + 2.0 * p.noise((3.0, 8.0, 8.0)))
    half_long = min(p.uniform(0.32, 0.44) * p.depth, p.width(0.5 * p.depth) * 0.85)
    half_short = half_long * p.uniform(0.72, 0.84)
    center = (p.uniform(-0.06, 0.06) * p.depth, max(p.uniform(0.52, 0.6) * p.depth, half_short + 26.0))
    angle = p.uniform(-0.6, 0.6)
    radii = (half_long, half_short, half_short)
    side_reach = p.width(center[1])
    for _ in range(int(p.rng.integers(1, 3))):  # placenta, fetal body or uterine wall beside the head
        away = (1.0 if p.rng.random() < 0.5 else -1.0) * p.uniform(0.9, 1.2) * side_reach
        blob = p.ellipse((away, p.uniform(0.35, 0.95) * p.depth), (0.22 * p.depth, 0.3 * p.depth), 0, p.irregular(0.1))
        p.paint((blob < 1) & (uterus >= 0), "uterine wall", echo=0.5 + 2.5 * p.noise((4.0, 4.0, 4.0)))
    head = p.ellipse(center, radii, angle, [(2, p.uniform(0, 0.02)), (3, p.uniform(0, 0.015))])
    scalp = (head < 1.06) & (head >= 1)
    p.paint(scalp, "muscle", echo=-3.0)
    p.paint(head < 1, "fetal skull", echo=5.0, attenuation=p.uniform(2.5, 4.5), impedance=1.3)
    skull_thickness = p.uniform(1.6, 2.4)
    brain = head < 1 - skull_thickness / half_short
    gyri = 2.0 * p.noise((3.0, 3.0, 3.0)) + 2.0 * p.noise((9.0, 9.0, 9.0))
    p.paint(brain, "fetal brain", echo=-12.0 + gyri, attenuation=0.4, impedance=0.0)
    cosine, sine = np.cos(angle), np.sin(angle)
    along = cosine * (p.x - center[0]) + sine * (p.z - center[1])
    across = cosine * (p.z - center[1]) - sine * (p.x - center[0])
    along, across = np.broadcast_to(along, p.shape), np.broadcast_to(across, p.shape)
    p.septa(brain & (head > 0.5), (6.0, 8.0, 8.0), 0.08, 7.0)  # sulci, near the surface

    def inner(a: float, b: float) -> tuple[float, float]:  # fractions of the semi-axes -> mm
        return (
            center[0] + cosine * a * half_long - sine * b * half_short,
            center[1] + sine * a * half_long + cosine * b * half_short,
        )

    for side in (-1.0, 1.0):
        thalamus = p.ellipse(inner(-0.02, 0.17 * side), (0.17 * half_long, 0.15 * half_short), angle)
        p.paint((thalamus < 1) & brain, echo=-13.0)
        width = p.uniform(0.17, 0.24) if altered else p.uniform(0.06, 0.09)
        ventricle = p.ellipse(
            inner(-0.42, 0.34 * side), (0.3 * half_long, width * half_short, 0.4 * half_short), angle + 0.18 * side
        )
        inside = (ventricle < 1) & brain
        p.paint(inside, "cerebral ventricle", **FLUID)
        p.sheet((ventricle - 1) * width * half_short, 0.4, -2.0, 0.5)
        plexus = p.ellipse(
            inner(-0.38, 0.34 * side), (0.16 * half_long, min(width, 0.11) * 0.75 * half_short), angle + 0.18 * side
        )
        p.paint((plexus < 1) & inside, echo=2.0)
    cavum = p.ellipse(inner(0.45, 0.0), (0.09 * half_long, 0.06 * half_short), angle)
    falx = np.where(brain & (np.abs(along) < 0.93 * half_long) & (cavum > 1), across, 50.0)
    falx = np.where((along > -0.18 * half_long) & (along < 0.16 * half_long), falx * 3 + 1.0, falx)
    p.sheet(falx, 0.5, 2.0, 0.9)
    p.paint((cavum < 1) & brain, "fluid", **FLUID)
    p.sheet((cavum - 1) * 0.06 * half_short, 0.4, 0.0, 0.5)
    p.mark_target(head < 1)


ORGANS: dict[str, Callable[[Phantom, bool], None]] = {
    "breast": _breast,
    "thyroid": _thyroid,
    "liver": _liver,
    "heart": _heart,
    "fetal_head": _fetal_head,
    "kidney": _kidney,
}

CLASS_NAMES = {
    "breast": ("regular, through-transmitting mass", "irregular, shadowing mass"),
    "thyroid": ("regular nodule", "irregular, shadowing nodule"),
    "liver": ("cyst or haemangioma", "metastasis-like lesion"),
    "heart": ("normal left ventricle", "dilated, hypokinetic left ventricle"),
    "fetal_head": ("normal ventricles", "wide ventricles"),
    "kidney": ("normal collecting system", "hydronephrosis"),
}


def build_phantom(organ: str, altered: bool, phantom: Phantom) -> Phantom:
    """Paint ``organ`` into an empty phantom; ``altered`` chooses the second name of :data:`CLASS_NAMES`."""
    ORGANS[organ](phantom, altered)
    return phantom
