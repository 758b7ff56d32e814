# Copyright (c) monai_usfm contributors
# SPDX-License-Identifier: Apache-2.0
"""A simulated ultrasound world: anatomy, machines, and data sets of images with exact labels."""

from __future__ import annotations

from monai_usfm.simulation.organs import CLASS_NAMES, ORGANS
from monai_usfm.simulation.phantoms import STRUCTURES
from monai_usfm.simulation.world import SyntheticUltrasound, write_synthetic_dataset

__all__ = ["CLASS_NAMES", "ORGANS", "STRUCTURES", "SyntheticUltrasound", "write_synthetic_dataset"]
