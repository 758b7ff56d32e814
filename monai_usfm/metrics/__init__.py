# Copyright (c) monai_usfm contributors
# SPDX-License-Identifier: Apache-2.0
"""Ultrasound image quality and biometry."""

from __future__ import annotations

from monai_usfm.metrics.cine import flicker, propagate_label, warped_dice
from monai_usfm.metrics.ellipse import Ellipse, ellipse_of_extremes, extremes_of_ellipse, fit_ellipse
from monai_usfm.metrics.geometry import muscle_architecture, simpson_volume
from monai_usfm.metrics.image_quality import (
    CNRMetric,
    EnhancementQualityMetric,
    FWHMMetric,
    GeneralizedCNRMetric,
    LocalNCCMetric,
    SpeckleSNRMetric,
)
from monai_usfm.metrics.measurements import measure

__all__ = [
    "CNRMetric",
    "Ellipse",
    "EnhancementQualityMetric",
    "FWHMMetric",
    "GeneralizedCNRMetric",
    "LocalNCCMetric",
    "SpeckleSNRMetric",
    "ellipse_of_extremes",
    "extremes_of_ellipse",
    "fit_ellipse",
    "flicker",
    "measure",
    "muscle_architecture",
    "propagate_label",
    "simpson_volume",
    "warped_dice",
]
