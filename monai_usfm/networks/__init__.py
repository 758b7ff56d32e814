# Copyright (c) monai_usfm contributors
# SPDX-License-Identifier: Apache-2.0
"""Networks, heads and published-weight loading."""

from __future__ import annotations

from monai_usfm.networks.nets import (
    FeatureExtractor,
    MaskedAutoencoder,
    MaskedImageModel,
    RandomBandStop,
    UltrasoundViT,
    usfm_vit,
    usfm_vit_base,
    usfm_vit_small,
    usfm_vit_tiny,
)
from monai_usfm.networks.nets.classifier import UltrasoundClassifier
from monai_usfm.networks.nets.enhancer import UltrasoundEnhancer
from monai_usfm.networks.nets.segmentation import UltrasoundSegmenter
from monai_usfm.networks.weights import (
    LoadReport,
    encoder_arguments,
    load_pretrained,
    to_mae_state_dict,
    to_usfm_state_dict,
)

__all__ = [
    "FeatureExtractor",
    "LoadReport",
    "MaskedAutoencoder",
    "MaskedImageModel",
    "RandomBandStop",
    "UltrasoundClassifier",
    "UltrasoundEnhancer",
    "UltrasoundSegmenter",
    "UltrasoundViT",
    "encoder_arguments",
    "load_pretrained",
    "to_mae_state_dict",
    "to_usfm_state_dict",
    "usfm_vit",
    "usfm_vit_base",
    "usfm_vit_small",
    "usfm_vit_tiny",
]
