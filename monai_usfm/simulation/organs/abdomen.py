# Copyright (c) monai_usfm contributors
# SPDX-License-Identifier: Apache-2.0
"""Organs of the abdomen: liver, kidney, gallbladder."""

from __future__ import annotations

import numpy as np

from monai_usfm.simulation.organs.lesions import draw_radius, lesion, lesions
from monai_usfm.simulation.organs.tissue import FLUID, abdominal_wall, branch, vessels
from monai_usfm.simulation.phantoms import Phantom, structure_code


def liver(p: Phantom, altered: bool) -> None:
    wall = abdominal_wall(p, p.uniform(6, 14), p.uniform(6, 10))
    parenchyma = wall >= 0
    p.paint(parenchyma, "liver", echo=0.6 * p.noise((4.0, 4.0, 4.0)) + 0.8 * p.noise((30.0, 30.0, 30.0)))
    cava = (p.uniform(-0.5, 0.5) * p.width(0.7 * p.depth), p.uniform(0.62, 0.8) * p.depth, p.uniform(-3, 3))
    for _ in range(int(p.rng.integers(2, 4))):
        toward = p.uniform(np.pi + 0.2, 2 * np.pi - 0.2)  # hepatic veins fan out from the vena cava, upwards
        vessels(p, branch(p, cava, toward, 0.22 * p.depth, p.uniform(3.0, 5.0)), parenchyma, walled=False)
    for _ in range(int(p.rng.integers(1, 4))):
        hilum = (p.uniform(-0.6, 0.6) * p.width(0.5 * p.depth), p.uniform(0.35, 0.7) * p.depth, p.uniform(-6, 6))
        vessels(p, branch(p, hilum, p.uniform(0, 2 * np.pi), 0.16 * p.depth, p.uniform(2.5, 4.5)), parenchyma, True)
    aside = p.uniform(-0.6, 0.6)
    bow = p.ellipse(
        (aside * p.depth, p.uniform(0.0, 0.25) * p.depth),
        ((0.75 + 0.5 * abs(aside)) * p.depth, p.uniform(0.66, 0.85) * p.depth, p.depth),
        -0.4 * aside,
    )
    front = parenchyma & (bow < 0.97)
    if altered and not p.healthy and p.rng.random() < 0.4:  # a target: dark rim around a brighter center
        size, center = draw_radius(p, 0.03, 0.15), p.point(front & (bow < 0.8))
        rim = lesion(p, center, size, True, front, pattern="hypoechoic")
        core = rim & (p.ellipse(center, (0.7 * size, 0.7 * size), 0, p.irregular(0.09)) < p.uniform(0.7, 1.0))
        p.paint(core, echo=-4.0 + 3.0 * p.noise((4.0, 4.0, 4.0)))
    else:
        lesions(p, altered, 0.0, p.depth, within=front, core=front & (bow < 0.85), median=0.03)
    beyond = bow > 1
    seen = np.clip(0.45 + 0.6 * p.noise((0.3 * p.depth,) * 3), 0.02, 1)
    p.paint(beyond, "airway", echo=-20.0 + 2.0 * p.noise((6.0, 10.0, 10.0)), attenuation=1.0, impedance=0.0)
    p.sheet((bow - 1) * 0.7 * p.depth, 0.8, 8.0, 2.4, seen)
    p.paint(np.abs((bow - 1) * 0.7 * p.depth) < 1.2, "diaphragm")
    p.target[p.structures != structure_code("lesion")] = 0


def kidney(p: Phantom, altered: bool) -> None:
    wall = abdominal_wall(p, p.uniform(6, 14), p.uniform(6, 10))
    beside = p.rng.random() < 0.6  # seen through the liver, or through fat and muscle
    texture = 0.7 * p.noise((4.0, 4.0, 4.0))
    p.paint(wall >= 0, "liver" if beside else "muscle", echo=(texture if beside else -4.0 + 5.0 * p.stripes(2.0)))
    if beside:
        root = (p.uniform(-0.5, 0.5) * p.width(0.3 * p.depth), 0.3 * p.depth, p.uniform(-10, 10))
        vessels(p, branch(p, root, p.uniform(0, np.pi), 0.15 * p.depth, p.uniform(2.0, 3.5)), wall >= 0, walled=True)
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


def gallbladder(p: Phantom, altered: bool) -> None:
    """A pear of bile in front of the liver's hilum; stones with their shadows, sludge or polyps if ``altered``."""
    wall = abdominal_wall(p, p.uniform(5, 12), p.uniform(5, 9))
    tissue = wall >= 0
    p.paint(tissue, "liver", echo=0.7 * p.noise((4.0, 4.0, 4.0)) + 0.8 * p.noise((30.0, 30.0, 30.0)))
    for _ in range(int(p.rng.integers(1, 4))):
        root = (p.uniform(-0.7, 0.7) * p.width(0.5 * p.depth), p.uniform(0.3, 0.8) * p.depth, p.uniform(-6, 6))
        tubes = branch(p, root, p.uniform(0, 2 * np.pi), 0.16 * p.depth, p.uniform(2.0, 4.5))
        vessels(p, tubes, tissue, walled=p.rng.random() < 0.6)
    long, short = p.uniform(18, 42), p.uniform(8, 19)
    center = p.inside_view(p.uniform(0.35, 0.6), 0.8 * long)
    angle = p.uniform(-1.2, 1.2)
    rho = p.ellipse(center, (long, short, short), angle, [(1, p.uniform(0.1, 0.3)), (3, p.uniform(0, 0.06))])
    lumen = (rho < 1) & tissue
    thick = p.uniform(0.8, 2.0) * (p.uniform(1.0, 3.0) if altered else 1.0)
    p.paint((rho < 1 + thick / short) & tissue, "liver", echo=p.uniform(2.0, 6.0))
    p.paint(lumen, "gallbladder", **FLUID)
    p.sheet((rho - 1) * short, 0.3 * thick, p.uniform(2.0, 8.0), 0.8, 1.0 * tissue)
    gas = p.ellipse(
        (center[0] + p.uniform(-1, 1) * long, center[1] + 1.6 * short + 12.0), (20.0, 9.0), 0, p.irregular(0.2)
    )
    if p.rng.random() < 0.5:  # bowel: a bright face, and a dirty shadow
        p.paint((gas < 1) & (rho > 1.1), "airway", echo=-8.0 + 3.0 * p.noise((2.0, 3.0, 3.0)), attenuation=2.5)
        p.sheet(
            np.where(rho > 1.1, (gas - 1) * 9.0, 50.0),
            0.5,
            9.0,
            1.2,
            np.clip((center[1] + 1.6 * short - p.z) / 8, 0, 1),
        )
    if altered:
        kind = p.rng.random()
        if kind < 0.3:  # sludge settles
            level = p.z - (center[1] + p.uniform(-0.1, 0.6) * short)
            p.paint(lumen & (level > 0), echo=-14.0 + 2.0 * p.noise((2.0, 3.0, 3.0)))
        for _ in range(int(p.rng.integers(1, 6)) if kind > 0.2 else 0):
            size = p.uniform(0.12, 0.4) * short
            spot, along = p.point(lumen & (rho < 0.85)), p.uniform(0.8, 1.4)
            lowest = center[1] + 0.6 * short if kind < 0.8 else spot[1]  # stones lie, polyps hang
            rim = p.ellipse((spot[0], max(spot[1], lowest - size)), (along * size, size), 0, p.irregular(0.06))
            stone = (rim < 1) & lumen
            if kind < 0.8:
                p.paint(stone, "stone", echo=7.0, attenuation=9.0, impedance=0.8)
            else:
                p.paint(stone, "lesion", echo=p.uniform(-2.0, 6.0), attenuation=0.5)
            p.instance(stone)
    p.mark_target(lumen)
    p.instance(lumen & (p.instances == 0))
