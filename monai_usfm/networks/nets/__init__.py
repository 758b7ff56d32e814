# Copyright (c) monai_usfm contributors
# SPDX-License-Identifier: Apache-2.0
"""Whole networks: the encoder, its pretraining wrappers and the task networks."""

from __future__ import annotations

from monai_usfm.networks.nets.classifier import UltrasoundClassifier
from monai_usfm.networks.nets.distillation import DistillationModel, FrozenTeacher, TokenDistillation
from monai_usfm.networks.nets.enhancer import UltrasoundEnhancer
from monai_usfm.networks.nets.features import FeatureExtractor
from monai_usfm.networks.nets.foundation import FoundationModel
from monai_usfm.networks.nets.masked import Corruption, MaskedAutoencoder, MaskedImageModel, RandomBandStop
from monai_usfm.networks.nets.segmentation import UltrasoundSegmenter
from monai_usfm.networks.nets.vit import UltrasoundViT, usfm_vit, usfm_vit_base, usfm_vit_small, usfm_vit_tiny

__all__ = [
    "Corruption",
    "DistillationModel",
    "FeatureExtractor",
    "FoundationModel",
    "FrozenTeacher",
    "MaskedAutoencoder",
    "MaskedImageModel",
    "RandomBandStop",
    "TokenDistillation",
    "UltrasoundClassifier",
    "UltrasoundEnhancer",
    "UltrasoundSegmenter",
    "UltrasoundViT",
    "usfm_vit",
    "usfm_vit_base",
    "usfm_vit_small",
    "usfm_vit_tiny",
]
