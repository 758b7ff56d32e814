# Copyright (c) monai_usfm contributors
# SPDX-License-Identifier: Apache-2.0
"""Probes, label-efficiency curves and audits of a pretrained encoder."""

from __future__ import annotations

from monai_usfm.evaluation import (
    bundle_runs,
    changes,
    features,
    images,
    label_efficiency,
    leaks,
    probes,
    statistics,
)
from monai_usfm.evaluation.audit import audit_classifier, audit_segmenter
from monai_usfm.evaluation.bundle_runs import *
from monai_usfm.evaluation.calibration import calibrate
from monai_usfm.evaluation.changes import *
from monai_usfm.evaluation.features import *
from monai_usfm.evaluation.images import *
from monai_usfm.evaluation.label_efficiency import *
from monai_usfm.evaluation.leaks import *
from monai_usfm.evaluation.probes import *
from monai_usfm.evaluation.statistics import *

__all__ = [
    "audit_classifier",
    "audit_segmenter",
    "calibrate",
    *bundle_runs.__all__,
    *changes.__all__,
    *features.__all__,
    *images.__all__,
    *label_efficiency.__all__,
    *leaks.__all__,
    *probes.__all__,
    *statistics.__all__,
]
