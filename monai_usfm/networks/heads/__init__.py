# Copyright (c) monai_usfm contributors
# SPDX-License-Identifier: Apache-2.0
"""Decoders that sit on the encoder's maps."""

from __future__ import annotations

from monai_usfm.networks.heads.atm import ATMHead
from monai_usfm.networks.heads.pyramid import PyramidDecoder, PyramidHead, PyramidPool
from monai_usfm.networks.heads.upernet import UPerNetHead

__all__ = [
    "ATMHead",
    "PyramidDecoder",
    "PyramidHead",
    "PyramidPool",
    "UPerNetHead",
]
