# Copyright (c) monai_usfm contributors
# SPDX-License-Identifier: Apache-2.0
"""Networks, heads and published-weight loading."""

from __future__ import annotations

from monai_usfm.networks.nets import UltrasoundViT, usfm_vit_base, usfm_vit_small, usfm_vit_tiny
from monai_usfm.networks.nets.classifier import UltrasoundClassifier
from monai_usfm.networks.nets.enhancer import UltrasoundEnhancer
from monai_usfm.networks.nets.segmentation import UltrasoundSegmenter
from monai_usfm.networks.weights import LoadReport, load_pretrained, to_mae_state_dict, to_usfm_state_dict

__all__ = [
    "LoadReport",
    "UltrasoundClassifier",
    "UltrasoundEnhancer",
    "UltrasoundSegmenter",
    "UltrasoundViT",
    "load_pretrained",
    "to_mae_state_dict",
    "to_usfm_state_dict",
    "usfm_vit_base",
    "usfm_vit_small",
    "usfm_vit_tiny",
]
