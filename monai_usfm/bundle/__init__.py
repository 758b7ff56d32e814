# Copyright (c) monai_usfm contributors
# SPDX-License-Identifier: Apache-2.0
"""What the configurations of the bundles share."""

from __future__ import annotations

from monai_usfm.bundle.errors import describe, root_cause
from monai_usfm.bundle.options import check_names, check_values, flag
from monai_usfm.bundle.start import options, start

__all__ = ["check_names", "check_values", "describe", "flag", "options", "root_cause", "start"]
