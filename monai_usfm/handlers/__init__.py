# Copyright (c) monai_usfm contributors
# SPDX-License-Identifier: Apache-2.0
"""Ignite handlers that MONAI lacks."""

from __future__ import annotations

from monai_usfm.handlers.checkpoint import *
from monai_usfm.handlers.classification import *
from monai_usfm.handlers.enhancement import *
from monai_usfm.handlers.gradient import *
from monai_usfm.handlers.measurements import *
from monai_usfm.handlers.records import *
from monai_usfm.handlers.report import *
from monai_usfm.handlers.results import *
from monai_usfm.handlers.segmentation import *
from monai_usfm.handlers.sharding import *
