# Copyright (c) monai_usfm contributors
# SPDX-License-Identifier: Apache-2.0
"""Probes, label-efficiency curves and audits of a pretrained encoder."""

from __future__ import annotations

from monai_usfm.evaluation.audit import *
from monai_usfm.evaluation.board import *
from monai_usfm.evaluation.calibration import *
from monai_usfm.evaluation.cells import *
from monai_usfm.evaluation.changes import *
from monai_usfm.evaluation.images import *
from monai_usfm.evaluation.leaks import *
from monai_usfm.evaluation.probes import *
from monai_usfm.evaluation.statistics import *
