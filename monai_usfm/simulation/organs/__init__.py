# Copyright (c) monai_usfm contributors
# SPDX-License-Identifier: Apache-2.0
"""Procedural organs: what the tissue is, before any sound is sent into it.

Organs differ in structure, not only in numbers, and two classes of each differ in what a reader of ultrasound would
look at (margin, orientation, shadow or enhancement, chamber size ...). Values follow the order of magnitude of Szabo,
Diagnostic Ultrasound Imaging, 2nd ed., appendix B; the anatomy is a caricature with sensible millimeters, not an atlas.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from monai_usfm.simulation.organs.abdomen import gallbladder, kidney, liver
from monai_usfm.simulation.organs.chest import heart, lung
from monai_usfm.simulation.organs.pelvis import bladder, fetal_head, prostate
from monai_usfm.simulation.organs.superficial import breast, muscle, nerve, thyroid
from monai_usfm.simulation.phantoms import Phantom

__all__ = ["CLASS_NAMES", "ORGANS", "Organ"]


@dataclass(frozen=True)
class Organ:
    """How an organ is painted and scanned."""

    paint: Callable[[Phantom, bool], None]  # into an empty phantom; the second argument chooses the second class
    depth: tuple[float, float]  # range that is imaged, mm
    probes: tuple[str, ...]  # kinds that it is seen with
    classes: tuple[str, ...]  # names of the two classes, and of the third where an item may show no lesion
    target: str  # what the label marks


ORGANS: dict[str, Organ] = {
    "breast": Organ(
        breast, (22, 55), ("linear",), ("regular mass", "irregular, mostly shadowing mass", "no lesion"), "lesion"
    ),
    "thyroid": Organ(
        thyroid, (34, 42), ("linear",), ("regular nodule", "irregular, mostly shadowing nodule", "no lesion"), "lesion"
    ),
    "liver": Organ(
        liver, (120, 165), ("convex",), ("cyst or hemangioma", "metastasis-like lesion", "no lesion"), "lesion"
    ),
    "heart": Organ(
        heart,
        (135, 165),
        ("phased",),
        ("normal left ventricle", "dilated, hypokinetic left ventricle"),
        "left ventricle",
    ),
    "fetal_head": Organ(fetal_head, (80, 150), ("convex",), ("normal ventricles", "wide ventricles"), "fetal head"),
    "kidney": Organ(kidney, (100, 135), ("convex",), ("normal collecting system", "hydronephrosis"), "kidney"),
    "muscle": Organ(muscle, (30, 70), ("linear",), ("normal muscle", "bright, fibrous muscle"), "aponeurosis"),
    "nerve": Organ(nerve, (20, 45), ("linear",), ("normal nerve", "thick, dark nerve"), "nerve"),
    "lung": Organ(lung, (50, 120), ("linear", "convex"), ("A-lines", "B-lines"), "pleura"),
    "prostate": Organ(prostate, (45, 70), ("convex",), ("no nodule", "nodules"), "prostate"),
    "gallbladder": Organ(
        gallbladder, (75, 130), ("convex",), ("clear gallbladder", "stones, sludge or polyps"), "gallbladder"
    ),
    "bladder": Organ(bladder, (90, 150), ("convex",), ("clear bladder", "mass on the wall"), "bladder"),
}

CLASS_NAMES = {name: organ.classes for name, organ in ORGANS.items()}
