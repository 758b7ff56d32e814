# Copyright (c) monai_usfm contributors
# SPDX-License-Identifier: Apache-2.0
"""Organs under a linear probe: breast, thyroid, muscle, nerve."""

from __future__ import annotations

from itertools import pairwise

import numpy as np

from monai_usfm.simulation.organs.lesions import draw_radius, lesion, lesions
from monai_usfm.simulation.organs.tissue import BLOOD, branch, vessels
from monai_usfm.simulation.phantoms import Phantom, structure_code


def _fat(p: Phantom, where: np.ndarray, echo: float) -> None:
    """Lobules of fat with thin, broken septa that shine where they face the beam."""
    p.paint(where, "fat", echo=echo + 1.5 * p.noise((1.2, 4.0, 4.0)) + 1.5 * p.noise((3.0, 8.0, 8.0)), attenuation=0.48)
    for _ in range(int(p.rng.integers(1, 4))):
        p.septa(where, (p.uniform(1.5, 4.0), p.uniform(8.0, 20.0), 8.0), 0.06, p.uniform(5.0, 12.0))


def _rib(p: Phantom, top: float) -> None:
    """A rib across the image plane at depth ``top``: a dark oval, or a bright arc and its shadow."""
    center = (p.uniform(-0.8, 0.8) * p.width(top), top + 3.0)
    rho = p.ellipse(center, (p.uniform(5, 8), p.uniform(3, 5), 60.0), p.uniform(-0.2, 0.2))
    cartilage = p.rng.random() < 0.5
    p.paint(rho < 1, "bone", echo=-16.0 + p.noise((1.0, 1.0, 1.0)), attenuation=0.8 if cartilage else 7.0)
    p.sheet((rho - 1) * 4.0, 0.2, 8.0, 1.2, np.clip((center[1] - p.z) / 3.0 + 0.2, 0, 1))


def breast(p: Phantom, altered: bool) -> None:
    """Skin, fat, gland, muscle and chest wall of any share, and lesions in any layer above the muscle."""
    below_skin = p.skin(p.uniform(0.7, 2.2))
    fat_end = p.uniform(0.06, 0.38) * p.depth
    gland_end = p.uniform(max(fat_end / p.depth + 0.15, 0.45), 0.92) * p.depth
    gland_top = p.surface(fat_end, 0.05 * p.depth, p.uniform(6, 14))
    gland_floor = p.surface(gland_end, 0.025 * p.depth, 14.0)
    fat_echo = p.uniform(-13.0, -6.0)
    _fat(p, (below_skin > 0) & (gland_top < 0), fat_echo)
    gland = (gland_top >= 0) & (gland_floor < 0)
    if p.rng.random() < 0.85:
        coarse = p.uniform(1.0, 4.0)
        fibers = 2.5 * p.noise((0.5, 3.5, 3.5)) + 2.5 * p.noise((1.2, 8.0, 8.0)) + coarse * p.noise((4.0, 9.0, 9.0))
        p.paint(gland, "gland", echo=p.uniform(-3.0, 4.0) + fibers, attenuation=p.uniform(0.5, 0.75), impedance=0.15)
        p.septa(gland, (1.0, 7.0, 7.0), 0.1, p.uniform(2.0, 7.0))
        p.septa(gland, (2.0, 14.0, 14.0), 0.06, p.uniform(4.0, 9.0))
        lobules = gland & (p.noise((3.0, 7.0, 7.0)) > p.uniform(0.3, 1.6))
        p.paint(lobules, "fat", echo=fat_echo + 1.5 * p.noise((1.5, 3.0, 3.0)))
    else:  # fat all the way down
        _fat(p, gland, fat_echo)
    muscle_top = p.surface(gland_end + p.uniform(1.0, 4.0), 0.4, 20.0)
    p.paint(gland_floor >= 0, "fat", echo=fat_echo)
    tilt = p.uniform(-0.12, 0.12)
    p.paint(muscle_top >= 0, "muscle", echo=-8.0 + 3.0 * p.fibers(muscle_top >= 0, 0.5, 9.0, tilt), attenuation=0.7)
    p.sheet(muscle_top, 0.15, p.uniform(-2.0, 6.0))
    if p.rng.random() < 0.7:
        p.sheet(muscle_top - p.uniform(2.5, 6.0), 0.15, p.uniform(-2.0, 5.0))
    chest = p.uniform(max(0.75, gland_end / p.depth + 0.05), 1.2) * p.depth
    pleura = p.surface(chest, 0.5, 25.0)
    p.paint(pleura > 0, "airway", echo=-18.0, attenuation=4.0)
    p.sheet(pleura, 0.25, 12.0, 1.5)
    for _ in range(int(p.rng.choice([0, 1, 2], p=[0.75, 0.17, 0.08]))):
        _rib(p, min(chest - 4.0, 0.9 * p.depth))
    # Ligaments, the areola and scars take sound away in columns.
    dark = np.clip(p.noise((p.depth, 4.0, 4.0)) - p.uniform(0.3, 2.0), 0, 1.5) * (gland_top < 0)
    p.attenuation += (p.uniform(0.1, 0.6) * dark).astype(np.float32)
    if p.rng.random() < 0.2:  # a vessel or duct, which is no lesion
        root = (*p.inside_view(p.uniform(0.15, 0.6), 3.0), 0.0)
        vessels(p, branch(p, root, p.uniform(-0.3, 0.3), p.uniform(4, 10), p.uniform(0.4, 1.0)), pleura < 0, False)
    lesions(p, altered, max(fat_end * p.uniform(0.2, 0.9), 1.0), min(gland_end + 2.0, 0.92 * p.depth))


def muscle(p: Phantom, altered: bool) -> None:
    """Longitudinal muscle: compartments of oblique fascicles between aponeuroses; bright if ``altered`` (fibrous)."""
    below_skin = p.skin(p.uniform(0.5, 2.0))
    slope, bow = p.uniform(-0.1, 0.15), p.uniform(-0.002, 0.002)
    x = np.broadcast_to(p.x, p.shape)

    def border(depth: float, slope: float) -> np.ndarray:
        return (
            p.surface(depth, p.uniform(0.001, 0.006) * p.depth, 35.0) - np.float32(slope) * x - np.float32(bow) * x * x
        )

    depths = [p.uniform(0.03, 0.2) * p.depth]
    while depths[-1] < p.depth:
        depths.append(depths[-1] + p.uniform(0.2, 0.45) * p.depth)
    slopes = [0.4 * slope] + [slope * p.uniform(0.6, 1.4) + p.uniform(-0.04, 0.04) for _ in depths[1:]]
    borders = [border(d, s) for d, s in zip(depths, slopes, strict=True)]
    for upper, lower in pairwise(borders):
        np.minimum(lower, upper, out=lower)  # sheets merge, but do not cross
    _fat(p, (below_skin > 0) & (borders[0] < 0), p.uniform(-16.0, -6.0))
    sign, pennation = float(p.rng.choice([-1.0, 1.0])), p.uniform(0.05, 0.5)
    tissue = p.uniform(-16.0, -8.0) + (9.0 if altered else 0.0)
    for number, upper in enumerate(borders):
        lower = borders[number + 1] if number + 1 < len(borders) else np.full(p.shape, -np.inf, np.float32)
        room = (upper >= 0) & (lower < 0)
        if not room.any():
            continue
        angle = np.arctan(slopes[number]) + sign * pennation
        pitch = p.uniform(0.3, 1.0)
        streak = p.fibers(room, pitch, p.uniform(8, 25) * pitch, angle, p.uniform(-0.004, 0.004))
        perimysium = np.clip(p.fibers(room, 1.6 * pitch, 30 * pitch, angle) - 0.8, 0, 2)
        level = tissue + p.uniform(-3, 3) + p.uniform(2, 5) * np.clip(streak, -2, 2) + p.uniform(4, 14) * perimysium
        p.paint(room, "muscle", echo=level, attenuation=p.uniform(0.5, 0.9) + (0.3 if altered else 0.0))
        p.impedance += (0.12 * room * (streak + perimysium)).astype(np.float32)
        sign, pennation = sign * float(p.rng.choice([-1.0, 1.0], p=[0.6, 0.4])), p.uniform(0.05, 0.4)
    if p.rng.random() < 0.3:
        surface = p.surface(p.uniform(0.75, 1.0) * p.depth, 0.02 * p.depth, 30.0) - np.float32(slope) * x
        p.paint(surface > 0, "bone", echo=-14.0, attenuation=6.0)
        p.sheet(surface, 0.3, 10.0, 1.3)
    if not p.healthy and p.rng.random() < 0.12:  # a hematoma or a tear
        spot = p.inside_view(p.uniform(0.2, 0.6), 4.0)
        lesion(p, spot, 0.6 * draw_radius(p), altered, p.structures == structure_code("muscle"))
        p.target[:] = 0
    shown = [b for d, b in zip(depths, borders, strict=True) if d < 0.95 * p.depth]
    for number, distance in enumerate(shown):
        half = 0.5 * p.uniform(0.014, 0.034) * p.depth
        layers = np.exp(-np.square(distance / (0.55 * half))) + 0.5 * np.exp(
            -np.square((distance - half) / (0.3 * half))
        )
        bright = p.uniform(8.0, 16.0) - (0.0 if number < 2 else p.uniform(2, 12))
        rough = 0.6 + 0.4 * np.clip(p.noise((2.0, 12.0, 12.0)), -1, 1)
        p.echo += (np.clip(layers, 0, 1) * rough * np.maximum(bright - p.echo, 0)).astype(np.float32)
        p.impedance += (0.6 * layers).astype(np.float32)
        # The near sheet of a merged pair is marked, and what lies under bone is not seen.
        sheet = (np.abs(distance) < half) & (p.structures != structure_code("bone"))
        p.paint(sheet, "aponeurosis")
        if number < 2 or bright > 8.0:
            p.mark_target(sheet)
        p.instance(sheet)


def thyroid(p: Phantom, altered: bool) -> None:
    side = 1.0 if p.rng.random() < 0.5 else -1.0
    below_skin = p.skin(p.uniform(1.0, 1.8))
    strap = p.surface(p.uniform(3.0, 5.0), 0.5, 15.0)
    p.paint((below_skin > 0) & (strap < 0), "fat", echo=-7.0 + 1.5 * p.noise((1.0, 5.0, 5.0)))
    p.paint(strap >= 0, "muscle", echo=-9.0 + 4.0 * p.stripes(0.7), attenuation=0.6)
    p.sheet(strap, 0.15, 4.0)
    # The trachea lies beside the middle, one lobe is centered; the other one is cut by the border of the view.
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
    lesions(p, altered, 0.0, p.depth, within=lobe < 1, core=lobe < 0.6, median=0.02, largest=0.09)
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


def nerve(p: Phantom, altered: bool) -> None:
    """A nerve across the image plane, a honeycomb beside artery and vein; thick and dark if ``altered``."""
    below_skin = p.skin(p.uniform(0.8, 1.8))
    fascia = p.surface(p.uniform(0.1, 0.25) * p.depth, 0.02 * p.depth, 15.0)
    _fat(p, (below_skin > 0) & (fascia < 0), p.uniform(-14.0, -7.0))
    deep = fascia >= 0
    streak = p.fibers(deep, p.uniform(0.6, 1.2), p.uniform(5, 15), p.uniform(-0.3, 0.3))
    p.paint(deep, "muscle", echo=p.uniform(-14.0, -7.0) + 3.0 * streak, attenuation=0.6)
    p.sheet(fascia, 0.2, p.uniform(2.0, 9.0))
    for _ in range(int(p.rng.integers(1, 4))):  # intermuscular septa
        p.sheet(p.surface(p.uniform(0.3, 0.9) * p.depth, 0.04 * p.depth, 12.0), 0.2, p.uniform(-2.0, 6.0))
    if p.rng.random() < 0.4:
        bone = p.surface(p.uniform(0.7, 1.0) * p.depth, 0.04 * p.depth, 12.0)
        p.paint(bone > 0, "bone", echo=-14.0, attenuation=6.0)
        p.sheet(bone, 0.3, 10.0, 1.3)
    size = p.uniform(0.05, 0.12) * p.depth * (1.4 if altered else 1.0)
    center = p.inside_view(p.uniform(0.3, 0.65), 2 * size)
    aspect = p.uniform(1.0, 2.2)
    side = float(p.rng.choice([-1.0, 1.0]))
    for number in range(int(p.rng.integers(0, 4))):  # artery, then veins
        radius = size * p.uniform(0.5, 1.3)
        away = side * (size * np.sqrt(aspect) + radius * p.uniform(1.1, 1.8)) * (1 if number < 2 else -1)
        flat = 1.0 if number == 0 else p.uniform(0.4, 0.9)
        at = (center[0] + away, center[1] + p.uniform(-0.8, 0.8) * size + (1.6 * radius if number == 1 else 0.0))
        rho = p.ellipse(at, (radius, flat * radius, 200.0), p.uniform(-0.3, 0.3))
        p.paint(rho < 1, "vessel", **BLOOD)
        p.instance(rho < 1)
        p.sheet((rho - 1) * radius, 0.15, p.uniform(-2.0, 5.0), 0.9 if number == 0 else 0.4)
    radii = (size * np.sqrt(aspect), size / np.sqrt(aspect), 60.0)
    rho = p.ellipse(center, radii, p.uniform(-0.5, 0.5), p.irregular(0.08))
    inside = rho < 1
    rim = p.uniform(0.0, 7.0) - (4.0 if altered else 0.0)
    grain = p.uniform(0.25, 0.5) * size
    holes = np.clip(p.noise((grain, grain, 20.0)) + 0.3, 0, 1)  # fascicles are dark in a bright sheath
    p.paint(inside, "nerve", echo=rim - p.uniform(6.0, 14.0) * holes, attenuation=0.6, impedance=0.2)
    p.sheet((rho - 1) * size, 0.15, rim + 2.0, 0.6)
    p.mark_target(inside)
    p.instance(inside)
