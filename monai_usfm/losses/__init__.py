# Copyright (c) monai_usfm contributors
# SPDX-License-Identifier: Apache-2.0
"""Losses that MONAI does not have."""

from __future__ import annotations

from monai_usfm.losses.atm import ATMLoss
from monai_usfm.losses.measurements import HeatmapLoss, ValueLoss
from monai_usfm.losses.reconstruction import FocalFrequencyLoss, MaskedReconstructionLoss, SpatialFrequencyLoss

__all__ = [
    "ATMLoss",
    "FocalFrequencyLoss",
    "HeatmapLoss",
    "MaskedReconstructionLoss",
    "SpatialFrequencyLoss",
    "ValueLoss",
]
