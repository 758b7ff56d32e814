# Copyright (c) monai_usfm contributors
# SPDX-License-Identifier: Apache-2.0
"""Deprecated since 0.7, gone in 0.8: take these names from :mod:`monai_usfm.simulation`."""

import warnings

from monai_usfm.simulation import CLASS_NAMES, ORGANS  # noqa: F401

warnings.warn("monai_usfm.data.organs has moved to monai_usfm.simulation.", DeprecationWarning, stacklevel=2)
