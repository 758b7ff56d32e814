# Copyright (c) monai_usfm contributors
# SPDX-License-Identifier: Apache-2.0
"""Probes, label-efficiency curves and audits of a pretrained encoder."""

from __future__ import annotations

from monai_usfm.evaluation.features import extract_features
from monai_usfm.evaluation.probes import (
    L2_GRID,
    ProbeResult,
    attentive_probe,
    dense_linear_probe,
    grouped_folds,
    knn_probe,
    linear_probe,
)
from monai_usfm.evaluation.scores import classification_scores, overlap_scores
from monai_usfm.evaluation.statistics import (
    Interval,
    PairedTest,
    bootstrap_interval,
    holm_adjust,
    mean_interval,
    paired_bootstrap,
    paired_test,
    patient_means,
)

__all__ = [
    "L2_GRID",
    "Interval",
    "PairedTest",
    "ProbeResult",
    "attentive_probe",
    "bootstrap_interval",
    "classification_scores",
    "dense_linear_probe",
    "extract_features",
    "grouped_folds",
    "holm_adjust",
    "knn_probe",
    "linear_probe",
    "mean_interval",
    "overlap_scores",
    "paired_bootstrap",
    "paired_test",
    "patient_means",
]
