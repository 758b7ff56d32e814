# Copyright (c) monai_usfm contributors
# SPDX-License-Identifier: Apache-2.0
"""Ultrasound image quality and biometry."""

from __future__ import annotations

from monai_usfm.metrics.ellipse import Ellipse, fit_ellipse
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
    "fit_ellipse",
    "measure",
]
