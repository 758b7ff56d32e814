# Copyright (c) monai_usfm contributors
# SPDX-License-Identifier: Apache-2.0
"""Probes, label-efficiency curves and audits of a pretrained encoder."""

from __future__ import annotations

from monai_usfm.evaluation import (
    board,
    cells,
    changes,
    features,
    images,
    leaks,
    probes,
    statistics,
)
from monai_usfm.evaluation.audit import audit_classifier, audit_segmenter
from monai_usfm.evaluation.board import *
from monai_usfm.evaluation.calibration import calibrate
from monai_usfm.evaluation.cells import *
from monai_usfm.evaluation.changes import *
from monai_usfm.evaluation.features import *
from monai_usfm.evaluation.images import *
from monai_usfm.evaluation.leaks import *
from monai_usfm.evaluation.probes import *
from monai_usfm.evaluation.statistics import *

__all__ = [
    "audit_classifier",
    "audit_segmenter",
    "calibrate",
    *board.__all__,
    *cells.__all__,
    *changes.__all__,
    *features.__all__,
    *images.__all__,
    *leaks.__all__,
    *probes.__all__,
    *statistics.__all__,
]
