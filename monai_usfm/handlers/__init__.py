# Copyright (c) monai_usfm contributors
# SPDX-License-Identifier: Apache-2.0
"""Ignite handlers that MONAI lacks."""

from __future__ import annotations

from monai_usfm.handlers.checkpoint import (
    BestCheckpoint,
    EpochSeed,
    ExportWeights,
    ResumableCheckpoint,
    ValidateStart,
    save_atomically,
)
from monai_usfm.handlers.classification import ClassificationReport, ClassificationScore, save_confusion
from monai_usfm.handlers.embeddings import EmbeddingSaver
from monai_usfm.handlers.enhancement import (
    EnhancementReport,
    best_blur,
    enhancement_panels,
    first_channels,
    matched_blur,
    near_signal,
    score_enhancement,
    surrounding_region,
)
from monai_usfm.handlers.gradient import FiniteLoss, GradientClip
from monai_usfm.handlers.measurements import LandmarkReport, LandmarkResults, MeasurementError, ValueReport
from monai_usfm.handlers.records import (
    FigureHandler,
    MetricsTable,
    PictureHandler,
    Progress,
    RunLock,
    RunRecord,
    draw_metrics,
    learning_rates,
    network_panels,
    save_panels,
    write_text_atomically,
)
from monai_usfm.handlers.report import EvaluationReport
from monai_usfm.handlers.results import ClassificationPreviews, EnhancementPreviews, SegmentationResults
from monai_usfm.handlers.segmentation import (
    DiceScore,
    SegmentationReport,
    published_circumferences,
    score_case,
    segmentation_panels,
)

__all__ = [
    "BestCheckpoint",
    "ClassificationPreviews",
    "ClassificationReport",
    "ClassificationScore",
    "DiceScore",
    "EmbeddingSaver",
    "EnhancementPreviews",
    "EnhancementReport",
    "EpochSeed",
    "EvaluationReport",
    "ExportWeights",
    "FigureHandler",
    "FiniteLoss",
    "GradientClip",
    "LandmarkReport",
    "LandmarkResults",
    "MeasurementError",
    "MetricsTable",
    "PictureHandler",
    "Progress",
    "ResumableCheckpoint",
    "RunLock",
    "RunRecord",
    "SegmentationReport",
    "SegmentationResults",
    "ValidateStart",
    "ValueReport",
    "best_blur",
    "draw_metrics",
    "enhancement_panels",
    "first_channels",
    "learning_rates",
    "matched_blur",
    "near_signal",
    "network_panels",
    "published_circumferences",
    "save_atomically",
    "save_confusion",
    "save_panels",
    "score_case",
    "score_enhancement",
    "segmentation_panels",
    "surrounding_region",
    "write_text_atomically",
]
