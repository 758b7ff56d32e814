# Copyright (c) monai_usfm contributors
# SPDX-License-Identifier: Apache-2.0
"""Losses that MONAI does not have."""

from __future__ import annotations

from monai_usfm.losses.atm import *
from monai_usfm.losses.measurements import *
from monai_usfm.losses.reconstruction import *
