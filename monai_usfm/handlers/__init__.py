# Copyright (c) monai_usfm contributors
# SPDX-License-Identifier: Apache-2.0
"""Ignite handlers that MONAI lacks."""

from __future__ import annotations

from monai_usfm.handlers import (
    checkpoint,
    classification,
    embeddings,
    enhancement,
    gradient,
    measurements,
    records,
    report,
    results,
    segmentation,
)
from monai_usfm.handlers.checkpoint import *
from monai_usfm.handlers.classification import *
from monai_usfm.handlers.embeddings import *
from monai_usfm.handlers.enhancement import *
from monai_usfm.handlers.gradient import *
from monai_usfm.handlers.measurements import *
from monai_usfm.handlers.records import *
from monai_usfm.handlers.report import *
from monai_usfm.handlers.results import *
from monai_usfm.handlers.segmentation import *

__all__ = [
    *checkpoint.__all__,
    *classification.__all__,
    *embeddings.__all__,
    *enhancement.__all__,
    *gradient.__all__,
    *measurements.__all__,
    *records.__all__,
    *report.__all__,
    *results.__all__,
    *segmentation.__all__,
]
