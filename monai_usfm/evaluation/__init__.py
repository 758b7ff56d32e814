# Copyright (c) monai_usfm contributors
# SPDX-License-Identifier: Apache-2.0
"""Probes, label-efficiency curves and audits of a pretrained encoder."""

from __future__ import annotations

from monai_usfm.data import add_patients
from monai_usfm.evaluation.audit import audit_classifier, audit_segmenter
from monai_usfm.evaluation.bundle_runs import BundleTraining
from monai_usfm.evaluation.calibration import calibrate
from monai_usfm.evaluation.changes import CHANGES, SHORTCUTS, crop_borders, cut_sector, plant_calipers, plant_text
from monai_usfm.evaluation.features import extract_features
from monai_usfm.evaluation.images import ImageSet, load_images, read_items
from monai_usfm.evaluation.label_efficiency import (
    FRACTIONS,
    Cell,
    label_subsets,
    run_label_efficiency,
    summarize_label_efficiency,
)
from monai_usfm.evaluation.leaks import Leak, LeakError, calibrated_distance, check_leaks, find_leaks
from monai_usfm.evaluation.probes import (
    L2_GRID,
    ProbeResult,
    attentive_probe,
    dense_linear_probe,
    grouped_folds,
    knn_probe,
    linear_probe,
)
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
from monai_usfm.evaluation.transfer_board import summarize_board, transfer_board
from monai_usfm.metrics.scores import classification_scores, overlap_scores

__all__ = [
    "CHANGES",
    "FRACTIONS",
    "L2_GRID",
    "SHORTCUTS",
    "BundleTraining",
    "Cell",
    "ImageSet",
    "Interval",
    "Leak",
    "LeakError",
    "PairedTest",
    "ProbeResult",
    "add_patients",
    "attentive_probe",
    "audit_classifier",
    "audit_segmenter",
    "bootstrap_interval",
    "calibrate",
    "calibrated_distance",
    "check_leaks",
    "classification_scores",
    "crop_borders",
    "cut_sector",
    "dense_linear_probe",
    "extract_features",
    "find_leaks",
    "grouped_folds",
    "holm_adjust",
    "knn_probe",
    "label_subsets",
    "linear_probe",
    "load_images",
    "mean_interval",
    "overlap_scores",
    "paired_bootstrap",
    "paired_test",
    "patient_means",
    "plant_calipers",
    "plant_text",
    "read_items",
    "run_label_efficiency",
    "summarize_board",
    "summarize_label_efficiency",
    "transfer_board",
]
