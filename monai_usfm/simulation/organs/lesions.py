# Copyright (c) monai_usfm contributors
# SPDX-License-Identifier: Apache-2.0
"""Lesions of every echogenicity, margin and size, and how many there are.

Distributions, all drawn from the phantom's generator:

- number: one (78 %), two (15 %) or three (7 %); none for a healthy phantom. Further ones are smaller.
- area: log-normal about 5 % of the visible area, one standard deviation a factor of 2.7, kept within 0.5 and 40 %.
- echogenicity: by :data:`PATTERNS`, relative to the tissue that the lesion replaces.
- suspicious ones have an irregular, spiculated or blurred margin, stand upright as often as they lie, and mostly cast
  a shadow; others are oval, smooth or gently lobed, often with a capsule, and let sound through.
"""

from __future__ import annotations

import numpy as np

from monai_usfm.simulation.organs.tissue import FLUID
from monai_usfm.simulation.phantoms import Phantom

PATTERNS: dict[bool, dict[str, float]] = {
    False: {"anechoic": 0.24, "hypoechoic": 0.38, "isoechoic": 0.13, "hyperechoic": 0.11, "complex": 0.14},
    True: {"hypoechoic": 0.66, "isoechoic": 0.14, "hyperechoic": 0.06, "complex": 0.14},
}
SMALLEST, LARGEST = 0.005, 0.40  # of the visible area


def draw_radius(p: Phantom, median: float = 0.05, largest: float = LARGEST) -> float:
    """Radius in mm of a disk whose share of the view is log-normal about ``median``."""
    share = float(np.clip(median * np.exp(p.rng.standard_normal()), SMALLEST, largest))
    return float(np.sqrt(share * p.area / np.pi))


def _echo(p: Phantom, pattern: str, base: float, size: float, rho: np.ndarray, suspicious: bool) -> np.ndarray:
    """Echogenicity (dB) inside the lesion."""
    rough = p.uniform(0.5, 3.0 if suspicious else 1.8)
    grain = size * p.uniform(0.15, 0.5)
    texture = rough * p.noise((grain, 1.4 * grain, 1.4 * grain))
    if pattern == "anechoic":
        return FLUID["echo"] + 0 * texture
    if pattern == "isoechoic":
        return base + p.uniform(-2.0, 1.5) + texture
    if pattern == "hyperechoic":
        return base + p.uniform(5.0, 11.0) + texture
    if pattern == "complex":  # fluid with a solid part, or a bright heart in a dark body
        soft = p.noise((0.7 * size, 0.7 * size, 0.7 * size)) + p.uniform(-0.6, 0.6)
        dark = FLUID["echo"] if not suspicious or p.rng.random() < 0.4 else base - p.uniform(12, 18)
        solid = base + p.uniform(-9.0, 2.0) + texture
        edge = 1 / (1 + np.exp(-8 * soft))
        return dark + (solid - dark) * edge
    depth = p.uniform(9, 20) if suspicious else p.uniform(4, 14)
    return base - depth + texture + p.uniform(-2, 3) * (1 - rho)  # some are brighter in the middle, some darker


def lesion(
    p: Phantom,
    center: tuple[float, float],
    size: float,
    suspicious: bool,
    within: np.ndarray | None = None,
    aspect: float | None = None,
    pattern: str | None = None,
) -> np.ndarray:
    """Paint one lesion about ``center`` (x, z) in mm and mark it as target, structure and instance.

    Args:
        size: mean radius in mm.
        suspicious: irregular and mostly shadowing, or regular.
        within: the tissue that it does not leave.
        aspect, pattern: width over height, and a key of :data:`PATTERNS`; drawn if not given.

    Returns:
        Its mask.
    """
    shares = PATTERNS[suspicious]
    if pattern is None:
        pattern = str(p.rng.choice(list(shares), p=list(shares.values())))
    if aspect is None:
        aspect = p.uniform(0.65, 1.6) if suspicious else p.uniform(1.0, 2.1)
    radii = (size * np.sqrt(aspect), size / np.sqrt(aspect), size * p.uniform(0.75, 1.1))
    if suspicious:
        spikes = [(int(k), p.uniform(0.005, 0.03)) for k in p.rng.integers(5, 20, 6)]
        ripples = p.irregular(p.uniform(0.06, 0.22)) + spikes
        softness = p.uniform(0.01, 0.2)
    else:
        ripples = [(2, p.uniform(0, 0.06)), (3, p.uniform(0, 0.05))]
        if p.rng.random() < 0.3:  # gentle lobes
            ripples.append((int(p.rng.integers(3, 6)), p.uniform(0.04, 0.1)))
        softness = p.uniform(0.005, 0.06)
    rho = p.ellipse(center, radii, p.uniform(-0.45, 0.45) if suspicious else p.uniform(-0.3, 0.3), ripples)
    inside = rho < 1 if within is None else (rho < 1) & within
    if not inside.any():
        return inside
    around = (rho < 1.3) if within is None else (rho < 1.3) & within
    base = float(np.median(p.echo[around]))
    share = 1 / (1 + np.exp(np.clip((rho - 1) / softness, -30, 30)))  # a blurred margin
    if within is not None:
        share = share * within
    if suspicious and p.rng.random() < 0.5:  # echogenic halo
        p.echo += (p.uniform(2, 6) * np.exp(-np.square((rho - 1.15) / 0.12)) * (rho > 1)).astype(np.float32)
    p.echo += (share * (_echo(p, pattern, base, size, rho, suspicious) - p.echo)).astype(np.float32)
    if pattern == "anechoic":
        attenuation = FLUID["attenuation"]
    elif suspicious:
        attenuation = float(p.rng.choice([p.uniform(0.8, 1.8), 0.5, 0.25], p=[0.65, 0.2, 0.15]))
    else:
        attenuation = 0.25 if pattern == "complex" else p.uniform(0.1, 0.5)
    p.paint(inside, "lesion", attenuation=attenuation, impedance=p.uniform(-0.3, 0.1))
    if not suspicious and (pattern in ("anechoic", "isoechoic") or p.rng.random() < 0.6):
        if pattern == "isoechoic" and p.rng.random() < 0.5:  # dark halo
            p.echo -= (p.uniform(6, 12) * np.exp(-np.square((rho - 0.96) / 0.06))).astype(np.float32)
        else:
            p.sheet((rho - 1) * size, 0.02 * size, base + p.uniform(0, 6), 0.3)
    if pattern == "complex" or p.rng.random() < 0.15:
        p.septa(inside, (0.6 * size, 0.8 * size, 0.8 * size), 0.08, 14.0)
    if p.rng.random() < (0.4 if suspicious else 0.12):  # calcifications, coarse or fine
        coarse = p.uniform(0.02, 0.06) * size + 0.5 * p.spacing
        for _ in range(int(p.rng.integers(2, 12))):
            spot = tuple(c + 0.5 * size * p.uniform(-1, 1) for c in (*center, 0.0))
            p.paint((p.ellipse(spot, (coarse,) * 3) < 1) & inside, echo=base + 10.0)
    p.mark_target(inside)
    p.instance(inside)
    p.lesions.append({"pattern": pattern, "suspicious": suspicious, "radius": size})
    return inside


def lesions(
    p: Phantom,
    suspicious: bool,
    top: float,
    bottom: float,
    within: np.ndarray | None = None,
    core: np.ndarray | None = None,
    median: float = 0.05,
    largest: float = LARGEST,
) -> None:
    """Paint the lesions of a phantom between the depths ``top`` and ``bottom`` (mm): none if it is healthy.

    With ``within`` they stay in that tissue, with their middles in the part ``core`` of it instead of between depths.
    A lesion that is larger than the layer overlaps its borders; one near the edge of the view may be cut by it.
    """
    if p.healthy:
        return
    placed: list[tuple[float, float, float]] = []
    count = int(p.rng.choice([1, 2, 3], p=[0.78, 0.15, 0.07]))
    for number in range(count):
        radius = draw_radius(p, median, largest)
        if number:
            radius = max(0.75 * min(radius, placed[0][2]), np.sqrt(SMALLEST * p.area / np.pi))
        aspect = p.uniform(0.65, 1.6) if suspicious else p.uniform(1.0, 2.1)
        if radius > 0.25 * p.depth:  # what is large grows along the layers
            aspect = max(aspect, 1.2)
        tall, wide = radius / np.sqrt(aspect), radius * np.sqrt(aspect)
        for _ in range(12):
            low, high = top + 0.9 * tall, bottom - 0.5 * tall
            z = p.uniform(low, high) if low < high else 0.5 * (top + bottom)
            reach = max(p.width(z) - 0.8 * wide, 0.1 * p.width(z))
            x, z = (
                (float(p.rng.triangular(-reach, 0, reach)), z)
                if within is None
                else p.point(within if core is None else core)
            )
            if all(np.hypot(x - ox, z - oz) > 1.15 * (1.2 * radius + other) for ox, oz, other in placed):
                lesion(p, (x, z), radius, suspicious, within, aspect)
                placed.append((x, z, radius))
                break
