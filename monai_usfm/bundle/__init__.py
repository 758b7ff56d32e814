# Copyright (c) monai_usfm contributors
# SPDX-License-Identifier: Apache-2.0
"""What the configurations of the bundles share: checks of their options, clear errors, the parts of a run."""

from __future__ import annotations

from monai_usfm.bundle.errors import describe, root_cause
from monai_usfm.bundle.inference import (
    InferenceDataset,
    InferenceEvaluator,
    card_of,
    class_inferer,
    collate_readable,
    default_checkpoint,
    entropy_map,
    finish,
    inference_items,
    inference_network,
    plan_of,
)
from monai_usfm.bundle.options import check_names, check_values, flag
from monai_usfm.bundle.own import own_bundle
from monai_usfm.bundle.start import options, start, stop
from monai_usfm.bundle.training import (
    EnhancementItems,
    LabeledBatch,
    MixedBatch,
    TrainingRecords,
    TrainingSteps,
    default_device,
    encoder_of,
    encoder_options,
    fingerprint,
    loss_of_head,
    on_device,
    prepare_network,
    rank,
    start_weights,
    training_items,
    training_sampler,
    validation_sampler,
    warmup_cosine,
    window_inferer,
)

__all__ = [
    "EnhancementItems",
    "InferenceDataset",
    "InferenceEvaluator",
    "LabeledBatch",
    "MixedBatch",
    "TrainingRecords",
    "TrainingSteps",
    "card_of",
    "check_names",
    "check_values",
    "class_inferer",
    "collate_readable",
    "default_checkpoint",
    "default_device",
    "describe",
    "encoder_of",
    "encoder_options",
    "entropy_map",
    "fingerprint",
    "finish",
    "flag",
    "inference_items",
    "inference_network",
    "loss_of_head",
    "on_device",
    "options",
    "own_bundle",
    "plan_of",
    "prepare_network",
    "rank",
    "root_cause",
    "start",
    "start_weights",
    "stop",
    "training_items",
    "training_sampler",
    "validation_sampler",
    "warmup_cosine",
    "window_inferer",
]
