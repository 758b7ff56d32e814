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
