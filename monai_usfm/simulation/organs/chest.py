# Copyright (c) monai_usfm contributors
# SPDX-License-Identifier: Apache-2.0
"""Organs of the chest: heart, lung."""

from __future__ import annotations

import numpy as np

from monai_usfm.simulation.phantoms import Phantom, structure_code


def heart(p: Phantom, altered: bool) -> None:
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
    p.mark_target(p.structures == structure_code("left ventricle"))
    # A cine contracts towards the middle of the left ventricle.
    p.beat = (place(half * 0.6, 0.5 * length), scale * (half + wall), p.uniform(0.05, 0.09) if altered else 0.22)


def lung(p: Phantom, altered: bool) -> None:
    """Chest wall, ribs and the pleural line; below it A-lines, or B-lines and consolidations if ``altered``.

    What is seen below the pleura is reverberation, not tissue: lines are painted where echoes would seem to come from.
    """
    below_skin = p.skin(p.uniform(1.0, 2.5))
    pleura_depth = p.uniform(0.12, 0.35) * p.depth
    pleura = p.surface(pleura_depth, 0.015 * p.depth, 40.0) - np.float32(p.uniform(-0.12, 0.12)) * p.x
    pleura = np.broadcast_to(pleura, p.shape)
    wall = (below_skin > 0) & (pleura < 0)
    streak = p.fibers(wall, p.uniform(0.8, 1.6), p.uniform(10, 20), p.uniform(-0.2, 0.2))
    p.paint(wall, "muscle", echo=p.uniform(-8.0, -1.0) + 4.0 * streak, attenuation=0.6)
    for _ in range(int(p.rng.integers(1, 4))):
        p.sheet(p.surface(p.uniform(0.3, 0.9) * pleura_depth, 0.5, 20.0), 0.25, p.uniform(0.0, 7.0))
    inside = pleura >= 0
    fade = np.clip((p.z - pleura_depth) / (p.depth - pleura_depth), 0, 1)
    veil = p.uniform(-22.0, -10.0) - p.uniform(4.0, 18.0) * fade + 2.0 * p.noise((3.0, 6.0, 6.0))
    p.paint(inside, "lung", echo=np.broadcast_to(veil, p.shape).astype(np.float32), attenuation=0.5)
    beam = p.beam_position()  # lateral position between the outer beams, -1 to 1
    lines = int(p.rng.integers(0, 2)) if altered else int(p.rng.integers(1, 5))
    for number in range(1, lines + 1):
        level = p.uniform(2.0, 6.0) - 5.0 * number
        seen = np.clip(p.noise((p.depth, 0.3 * p.depth, 30.0)) + 0.5, 0, 1)
        p.sheet(pleura - number * pleura_depth, 0.4, level, 0.5 / number, seen)
    if altered:
        for _ in range(int(p.rng.integers(1, 7))):
            width, at = p.uniform(0.015, 0.12), p.uniform(-0.9, 0.9)
            column = np.exp(-np.square((beam - at) / width)) * inside
            ripple = 1.0 + 0.3 * p.noise((2.0, 60.0, 60.0))
            bright = (p.uniform(0.0, 9.0) - p.uniform(2.0, 10.0) * fade) * ripple
            p.echo += (column * np.maximum(bright - p.echo, 0)).astype(np.float32)
        if p.rng.random() < 0.4:  # a consolidation under the pleura
            size = p.uniform(0.03, 0.1) * p.depth
            spot = p.ellipse((p.uniform(-0.6, 0.6) * p.width(pleura_depth), pleura_depth), (1.4 * size, size), 0)
            patch = (spot < 1) & inside
            p.paint(patch, "lesion", echo=p.uniform(-12.0, -4.0) + 2.0 * p.noise((1.5, 2.0, 2.0)))
            p.instance(patch)
    half = p.uniform(0.006, 0.014) * p.depth
    thick = half * (p.uniform(1.0, 2.0) if altered else 1.0)
    broken = np.clip(1.2 + (0.9 if altered else 0.3) * p.noise((20.0, 6.0, 6.0)), 0, 1)
    p.sheet(pleura, thick, p.uniform(8.0, 14.0), 1.5, broken)
    line = np.abs(pleura) < max(thick, 0.8 * p.spacing)
    p.paint(line, "pleura")
    for side in (-1.0, 1.0):
        if p.rng.random() < 0.6:  # a rib takes what lies behind it
            top = pleura_depth * p.uniform(0.55, 0.9)
            center = (side * p.uniform(0.45, 1.0) * p.width(top), top)
            size = p.uniform(0.025, 0.06) * p.depth
            rho = p.ellipse(center, (size * p.uniform(1.2, 2.0), size, 60.0), 0.3 * side)
            p.paint(rho < 1, "bone", echo=-12.0, attenuation=9.0)
            p.sheet((rho - 1) * size, 0.3, 9.0, 1.3, np.clip((center[1] - p.z) / size + 0.3, 0, 1))
            reach = 1.3 * size / max(p.width(top), 1.0)
            line = line & ~((np.abs(beam - center[0] / p.width(top)) < reach) & (p.z > center[1]))
    p.mark_target(line & (p.structures == structure_code("pleura")))
    p.instance(p.target > 0)
