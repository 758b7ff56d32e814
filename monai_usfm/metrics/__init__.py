# Copyright (c) monai_usfm contributors
# SPDX-License-Identifier: Apache-2.0
"""Ultrasound image quality and biometry."""

from __future__ import annotations

from monai_usfm.metrics.cine import *
from monai_usfm.metrics.ellipse import *
from monai_usfm.metrics.geometry import *
from monai_usfm.metrics.image_quality import *
from monai_usfm.metrics.measurements import *
