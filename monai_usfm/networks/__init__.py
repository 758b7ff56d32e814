# Copyright (c) monai_usfm contributors
# SPDX-License-Identifier: Apache-2.0
"""Networks, heads and published-weight loading."""

from __future__ import annotations

from monai_usfm.networks.nets import UltrasoundViT, usfm_vit_base, usfm_vit_small, usfm_vit_tiny

__all__ = [
    "UltrasoundViT",
    "usfm_vit_base",
    "usfm_vit_small",
    "usfm_vit_tiny",
]
