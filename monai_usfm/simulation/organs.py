# Copyright (c) monai_usfm contributors
# SPDX-License-Identifier: Apache-2.0
"""Procedural organs: what the tissue is, before any sound is sent into it.

Organs differ in structure, not only in numbers, and two classes of each differ in what a reader of ultrasound would
look at (margin, orientation, shadow or enhancement, chamber size ...). Values follow the order of magnitude of Szabo,
Diagnostic Ultrasound Imaging, 2nd ed., appendix B; the anatomy is a caricature with sensible millimetres, not an atlas.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from monai_usfm.simulation.phantoms import Phantom, structure_code

__all__ = ["CLASS_NAMES", "ORGANS", "build_phantom"]

FLUID = {"echo": -45.0, "attenuation": 0.03, "impedance": -0.4}
BLOOD = {"echo": -30.0, "attenuation": 0.18, "impedance": -0.3}


def _lesion(p: Phantom, center: tuple[float, float], size: float, malignant: bool) -> None:
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
    p.target[p.structures != structure_code("lesion")] = 0
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
        p.structures[window][inside] = structure_code("vessel")


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
    p.target[p.structures != structure_code("lesion")] = 0


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
    p.mark_target(p.structures == structure_code("left ventricle"))
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
