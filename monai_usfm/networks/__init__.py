# Copyright (c) monai_usfm contributors
# SPDX-License-Identifier: Apache-2.0
"""Networks, heads and published-weight loading."""

from __future__ import annotations

from monai_usfm.networks.fine_tuning import apply_lora, freeze, layer_decay_groups, merge_lora
from monai_usfm.networks.nets import (
    Corruption,
    DistillationModel,
    FeatureExtractor,
    FoundationModel,
    FrozenTeacher,
    MaskedAutoencoder,
    MaskedImageModel,
    RandomBandStop,
    TokenDistillation,
    UltrasoundViT,
    usfm_vit,
    usfm_vit_base,
    usfm_vit_small,
    usfm_vit_tiny,
)
from monai_usfm.networks.nets.classifier import UltrasoundClassifier
from monai_usfm.networks.nets.enhancer import UltrasoundEnhancer
from monai_usfm.networks.nets.segmentation import UltrasoundSegmenter
from monai_usfm.networks.uncertainty import FlipInferer, TemperatureScaling, monte_carlo
from monai_usfm.networks.weights import (
    LoadReport,
    encoder_arguments,
    load_official_head,
    load_pretrained,
    to_mae_state_dict,
    to_usfm_state_dict,
)

__all__ = [
    "Corruption",
    "DistillationModel",
    "FeatureExtractor",
    "FlipInferer",
    "FoundationModel",
    "FrozenTeacher",
    "LoadReport",
    "MaskedAutoencoder",
    "MaskedImageModel",
    "RandomBandStop",
    "TemperatureScaling",
    "TokenDistillation",
    "UltrasoundClassifier",
    "UltrasoundEnhancer",
    "UltrasoundSegmenter",
    "UltrasoundViT",
    "apply_lora",
    "encoder_arguments",
    "freeze",
    "layer_decay_groups",
    "load_official_head",
    "load_pretrained",
    "merge_lora",
    "monte_carlo",
    "to_mae_state_dict",
    "to_usfm_state_dict",
    "usfm_vit",
    "usfm_vit_base",
    "usfm_vit_small",
    "usfm_vit_tiny",
]
