# Copyright (c) monai_usfm contributors
# SPDX-License-Identifier: Apache-2.0
"""Ultrasound transforms in array and dictionary form."""

from __future__ import annotations

from monai_usfm.transforms.beam import BeamGeometry

__all__ = [
    "BeamGeometry",
]
