# Copyright (c) monai_usfm contributors
# SPDX-License-Identifier: Apache-2.0
"""The fetal head, the bladder and the prostate."""

from __future__ import annotations

import numpy as np

from monai_usfm.simulation.organs.lesions import lesions
from monai_usfm.simulation.organs.tissue import FLUID, abdominal_wall
from monai_usfm.simulation.phantoms import Phantom, structure_code


def fetal_head(p: Phantom, altered: bool) -> None:
    """A head in cross section, young or grown, in fluid or not; its skull shines where it faces the probe."""
    wall = abdominal_wall(p, p.uniform(4, 12), p.uniform(3, 9))
    young = p.rng.random() < 0.2  # first half of pregnancy: small, round, soft skull, bright brain
    share = p.uniform(0.08, 0.25) if young else p.uniform(0.2, 0.62)
    ratio = p.uniform(0.82, 0.95) if young else p.uniform(0.72, 0.86)
    half_long = float(np.sqrt(share * p.area / np.pi / ratio))
    half_long = min(half_long, 1.15 * p.width(0.55 * p.depth), 0.47 * p.depth / ratio)
    half_short = half_long * ratio
    top = max(p.uniform(0.08, 0.3) * p.depth, 14.0)
    low, high = top + half_short, max(p.depth - 1.02 * half_short, top + half_short)
    center = (p.uniform(-0.12, 0.12) * p.depth, p.uniform(low, high))
    angle = p.uniform(-1.2, 1.2) if young else p.uniform(-0.6, 0.6)
    radii = (half_long, half_short, half_short)
    head = p.ellipse(center, radii, angle, [(2, p.uniform(0, 0.02)), (3, p.uniform(0, 0.015))])

    # Around the head: wall, placenta and limbs, and as much fluid as there happens to be.
    uterus = p.surface(top * p.uniform(0.6, 1.0), 2.0, 40.0)
    tissue = p.uniform(-8.0, 1.0)
    grain = 2.0 * p.noise((3.0, 8.0, 8.0)) + 2.5 * p.noise((8.0, 20.0, 20.0))
    p.paint(wall >= 0, "uterine wall", echo=tissue + grain)
    reach = p.uniform(0.9, 1.9)
    pocket = p.ellipse(
        (center[0] + p.uniform(-0.5, 0.5) * half_long, center[1] + p.uniform(-0.4, 0.4) * half_short),
        (reach * half_long * p.uniform(0.9, 1.4), reach * half_short, reach * half_short),
        angle + p.uniform(-0.4, 0.4),
        p.irregular(0.12),
    )
    fluid = (pocket < 1) & (uterus >= 0)
    p.paint(fluid, "fluid", **FLUID)
    p.sheet((pocket - 1) * reach * half_short, 0.4, tissue + 4.0, 0.8, 1.0 * (uterus >= 0))
    for _ in range(int(p.rng.integers(0, 4))):  # placenta, body and limbs
        away = p.uniform(-1.1, 1.1) * p.width(center[1])
        size = p.uniform(0.08, 0.26) * p.depth
        blob = p.ellipse((away, p.uniform(0.3, 1.0) * p.depth), (size, size * p.uniform(0.6, 1.6)), 0, p.irregular(0.1))
        part = (blob < 1) & (uterus >= 0)
        p.paint(part, "uterine wall", echo=tissue + p.uniform(-2, 6) + 2.5 * p.noise((4.0, 4.0, 4.0)))
        p.sheet((blob - 1) * size, 0.4, tissue + 6.0, 0.9)
    behind = p.surface(p.uniform(0.8, 1.1) * p.depth, 4.0, 40.0)
    p.paint(behind > 0, "uterine wall", echo=tissue + 4.0 + grain)

    cosine, sine = np.cos(angle), np.sin(angle)
    along = cosine * (p.x - center[0]) + sine * (p.z - center[1])
    across = cosine * (p.z - center[1]) - sine * (p.x - center[0])
    along, across = np.broadcast_to(along, p.shape), np.broadcast_to(across, p.shape)
    a, b = along / half_long**2, across / half_short**2  # gradient of the ellipse
    facing = np.abs(cosine * b + sine * a) / np.sqrt(a * a + b * b + 1e-9)
    scalp = (head < p.uniform(1.03, 1.1)) & (head >= 1)
    p.paint(scalp, "muscle", echo=tissue - 1.0)
    bone = p.uniform(-6.0, 6.0) if young else p.uniform(4.0, 12.0)
    gaps = np.clip(
        1.3 + 1.1 * p.noise((0.3 * half_long, 0.3 * half_long, 0.3 * half_long)), 0, 1
    )  # fontanelles, sutures
    sides = np.clip((facing - p.uniform(0.0, 0.6)) / 0.35, 0, 1)
    level = tissue + (bone - tissue) * gaps * (0.15 + 0.85 * sides)
    attenuation = p.uniform(0.8, 1.5) if young else p.uniform(1.6, 4.0)
    p.paint(head < 1, "fetal skull", echo=level.astype(np.float32), attenuation=attenuation, impedance=1.3)
    skull_thickness = p.uniform(0.012, 0.03) * 2 * half_short
    brain = head < 1 - skull_thickness / half_short
    gyri = 1.5 * p.noise((3.0, 3.0, 3.0)) + 2.5 * p.noise((9.0, 9.0, 9.0))
    base = p.uniform(-7.0, 0.0) if young else p.uniform(-18.0, -9.0)
    near = np.clip((center[1] - p.z) / half_short, 0, 1) * p.uniform(0.0, 8.0)  # reverberation behind the near skull
    p.paint(brain, "fetal brain", echo=(base + gyri + near).astype(np.float32), attenuation=0.4, impedance=0.0)
    for _ in range(int(p.rng.integers(0, 3))):  # sulci
        p.septa(brain & (head > p.uniform(0.3, 0.6)), (6.0, 9.0, 9.0), 0.06, p.uniform(6.0, 14.0))

    def inner(a: float, b: float) -> tuple[float, float]:  # fractions of the semi-axes -> mm
        return (
            center[0] + cosine * a * half_long - sine * b * half_short,
            center[1] + sine * a * half_long + cosine * b * half_short,
        )

    end = float(p.rng.choice([-1.0, 1.0]))  # where the face looks
    for side in (-1.0, 1.0):
        if p.rng.random() < 0.8:
            thalamus = p.ellipse(inner(0.02 * end, 0.17 * side), (0.17 * half_long, 0.15 * half_short), angle)
            p.paint((thalamus < 1) & brain, echo=base - p.uniform(0, 3))
        width = p.uniform(0.17, 0.26) if altered else p.uniform(0.05, 0.1)
        if not altered and p.rng.random() < 0.5:  # not seen on this side
            continue
        ventricle = p.ellipse(
            inner(0.42 * end, 0.34 * side),
            (p.uniform(0.22, 0.34) * half_long, width * half_short, 0.4 * half_short),
            angle - 0.18 * side * end,
        )
        inside = (ventricle < 1) & brain
        p.paint(inside, "cerebral ventricle", **FLUID)
        p.instance(inside)
        p.sheet((ventricle - 1) * width * half_short, 0.3, base + p.uniform(4, 12), 0.5)
        size = p.uniform(0.6, 2.2) if young else p.uniform(0.5, 1.0)
        plexus = p.ellipse(
            inner(0.38 * end, 0.34 * side),
            (0.16 * size * half_long, min(size * width, 0.2) * 0.75 * half_short),
            angle - 0.18 * side * end,
        )
        p.paint((plexus < 1) & (brain if young else inside), echo=base + p.uniform(8, 15))
    cavum = p.ellipse(inner(-0.45 * end, 0.0), (0.09 * half_long, 0.06 * half_short), angle)
    falx = np.where(brain & (np.abs(along) < 0.93 * half_long) & (cavum > 1), across, 50.0)
    broken = np.clip(1.0 + p.noise((10.0, 0.25 * half_long, 0.25 * half_long)), 0, 1)
    p.sheet(falx, 0.4, p.uniform(-4.0, 6.0), 0.9, broken * (0.3 + 0.7 * (np.abs(along) > 0.18 * half_long)))
    if p.rng.random() < 0.6:
        p.paint((cavum < 1) & brain, "fluid", **FLUID)
        p.sheet((cavum - 1) * 0.06 * half_short, 0.3, 0.0, 0.5)
    p.mark_target(head < 1)
    p.instance((head < 1) & (p.instances == 0))


def prostate(p: Phantom, altered: bool) -> None:
    """The prostate from the rectum: capsule, inner gland and peripheral zone; nodules if ``altered``."""
    wall = p.surface(p.uniform(0.04, 0.12) * p.depth, 0.01 * p.depth, 25.0)
    p.paint(wall < 0, "muscle", echo=p.uniform(-6.0, 6.0) + 3.0 * p.noise((0.8, 12.0, 12.0)), attenuation=0.5)
    grain = 2.0 * p.noise((1.5, 5.0, 5.0)) + 3.0 * p.noise((5.0, 12.0, 12.0))
    p.paint(wall >= 0, "fat", echo=p.uniform(-6.0, 3.0) + grain)
    p.sheet(wall, 0.3, 6.0, 0.8)
    half_wide = p.uniform(0.35, 0.6) * p.width(0.5 * p.depth)
    half_tall = min(half_wide * p.uniform(0.55, 0.85), 0.4 * p.depth)
    center = (p.uniform(-0.1, 0.1) * p.depth, max(p.uniform(0.35, 0.5) * p.depth, 1.1 * half_tall + 0.1 * p.depth))
    tilt = p.uniform(-0.15, 0.15)
    rho = p.ellipse(center, (half_wide, half_tall, half_wide), tilt, [(2, 0.03), (3, p.uniform(0, 0.06))])
    gland = (rho < 1) & (wall >= 0)
    zone = p.uniform(-5.0, 1.0)
    p.paint(gland, "prostate", echo=zone + 1.2 * p.noise((1.5, 2.0, 2.0)), attenuation=0.55, impedance=0.15)
    at = (center[0], center[1] + 0.2 * half_tall)
    inner = p.ellipse(at, (p.uniform(0.5, 0.8) * half_wide, 0.72 * half_tall, 0.7 * half_wide), tilt, p.irregular(0.06))
    mixed = zone - p.uniform(1.0, 6.0) + 2.5 * p.noise((2.0, 3.0, 3.0)) + 2.0 * p.noise((5.0, 6.0, 6.0))
    p.paint((inner < 1) & gland, echo=mixed)
    p.sheet(np.where(gland, (inner - 1) * half_tall, 50.0), 0.3, zone - p.uniform(0, 6), 0.3)
    if p.rng.random() < 0.5:
        urethra = p.ellipse((center[0], at[1]), (0.05 * half_wide, 0.12 * half_tall, 60.0), tilt)
        p.paint((urethra < 1) & gland, "fluid", **FLUID)
    p.sheet((rho - 1) * half_tall, 0.3, p.uniform(-2.0, 7.0), 0.7, 1.0 * (wall >= 0))
    if altered:
        lesions(p, True, 0.0, p.depth, within=gland, core=gland & (rho < 0.85), median=0.012, largest=0.06)
        p.target[:] = 0
    p.mark_target(gland)
    p.instance(gland & (p.instances == 0))


def bladder(p: Phantom, altered: bool) -> None:
    """The bladder through the abdominal wall, of any filling; a mass on its wall if ``altered``."""
    wall = abdominal_wall(p, p.uniform(5, 14), p.uniform(4, 9))
    grain = 2.5 * p.noise((4.0, 9.0, 9.0)) + 2.5 * p.noise((10.0, 20.0, 20.0))
    tissue = p.uniform(-8.0, 1.0)
    p.paint(wall >= 0, "background", echo=tissue + grain)
    half_wide = p.uniform(0.35, 0.95) * p.width(0.5 * p.depth)
    half_tall = min(half_wide * p.uniform(0.45, 0.9), 0.33 * p.depth)
    center = (p.uniform(-0.1, 0.1) * p.depth, half_tall + p.uniform(0.2, 0.32) * p.depth)
    ripples = [(2, p.uniform(0, 0.06)), (3, p.uniform(0, 0.08)), (4, p.uniform(0, 0.05))]
    rho = p.ellipse(center, (half_wide, half_tall, half_wide), p.uniform(-0.2, 0.2), ripples)
    thick = p.uniform(2.0, 6.0) / half_tall
    p.paint((rho < 1 + thick) & (wall >= 0), "muscle", echo=tissue + p.uniform(-4.0, 4.0), attenuation=0.5)
    lumen = (rho < 1) & (wall >= 0)
    p.paint(lumen, "bladder", **FLUID)
    p.sheet((rho - 1) * half_tall, 0.4, p.uniform(0.0, 7.0), 0.9, 1.0 * (wall >= 0))
    if p.rng.random() < 0.6:  # prostate or uterus behind it
        size = p.uniform(0.1, 0.2) * p.depth
        at = (center[0] + p.uniform(-0.3, 0.3) * half_wide, center[1] + half_tall + 0.9 * size)
        below = p.ellipse(at, (1.4 * size, size, size), p.uniform(-0.3, 0.3), p.irregular(0.05))
        p.paint((below < 1) & (rho > 1 + thick), echo=tissue - 2.0 + 1.5 * p.noise((3.0, 3.0, 3.0)))
        p.sheet(np.where(rho > 1 + thick, (below - 1) * size, 50.0), 0.4, tissue + 5.0, 0.5)
    if altered and not p.healthy:
        turn = p.uniform(0.1, 0.9) * np.pi
        edge = (center[0] + 0.85 * half_wide * np.cos(turn), center[1] + 0.85 * half_tall * np.sin(turn))
        size = p.uniform(0.15, 0.45) * half_tall
        mass = p.ellipse(edge, (size, size * p.uniform(0.6, 1.0)), 0, p.irregular(0.15))
        grown = (mass < 1) & (rho < 1 + thick) & (wall >= 0)
        p.paint(grown, "lesion", echo=tissue + p.uniform(-3.0, 5.0) + 1.5 * p.noise((2.0, 2.0, 2.0)), attenuation=0.6)
        p.instance(grown)
    p.mark_target(p.structures == structure_code("bladder"))
    p.instance(p.structures == structure_code("bladder"))
