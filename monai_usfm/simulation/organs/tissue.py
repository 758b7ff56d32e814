# Copyright (c) monai_usfm contributors
# SPDX-License-Identifier: Apache-2.0
"""What several organs share: fluids, layers under the skin, vessels."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from monai_usfm.simulation.phantoms import Phantom, structure_code

FLUID = {"echo": -45.0, "attenuation": 0.03, "impedance": -0.4}
BLOOD = {"echo": -30.0, "attenuation": 0.18, "impedance": -0.3}


def abdominal_wall(p: Phantom, fat: float, muscle: float) -> np.ndarray:
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


def branch(p: Phantom, root: tuple[float, float, float], angle: float, length: float, radius: float) -> list[Segment]:
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


def vessels(p: Phantom, segments: Sequence[Segment], tissue: np.ndarray, walled: bool) -> None:
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
        p.structures[window][inside] = structure_code("vessel")
