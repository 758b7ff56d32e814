# Copyright (c) monai_usfm contributors
# SPDX-License-Identifier: Apache-2.0
"""Whole networks: the encoder, its pretraining wrappers and the task networks."""

from __future__ import annotations

from monai_usfm.networks.nets.vit import UltrasoundViT, usfm_vit_base, usfm_vit_small, usfm_vit_tiny

__all__ = [
    "UltrasoundViT",
    "usfm_vit_base",
    "usfm_vit_small",
    "usfm_vit_tiny",
]
