# Copyright (c) monai_usfm contributors
# SPDX-License-Identifier: Apache-2.0
"""Ultrasound image-quality metrics."""

from __future__ import annotations

from monai_usfm.metrics.image_quality import (
    CNRMetric,
    EnhancementQualityMetric,
    FWHMMetric,
    GeneralizedCNRMetric,
    LocalNCCMetric,
    SpeckleSNRMetric,
)

__all__ = [
    "CNRMetric",
    "EnhancementQualityMetric",
    "FWHMMetric",
    "GeneralizedCNRMetric",
    "LocalNCCMetric",
    "SpeckleSNRMetric",
]
