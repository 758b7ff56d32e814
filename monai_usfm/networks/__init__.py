# Copyright (c) monai_usfm contributors
# SPDX-License-Identifier: Apache-2.0
"""Networks, heads and published-weight loading."""

from __future__ import annotations

from monai_usfm.networks.nets import UltrasoundViT, usfm_vit_base, usfm_vit_small, usfm_vit_tiny
from monai_usfm.networks.nets.classifier import UltrasoundClassifier
from monai_usfm.networks.nets.enhancer import UltrasoundEnhancer
from monai_usfm.networks.nets.segmentation import UltrasoundSegmenter

__all__ = [
    "UltrasoundClassifier",
    "UltrasoundEnhancer",
    "UltrasoundSegmenter",
    "UltrasoundViT",
    "usfm_vit_base",
    "usfm_vit_small",
    "usfm_vit_tiny",
]
