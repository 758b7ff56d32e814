# Copyright (c) monai_usfm contributors
# SPDX-License-Identifier: Apache-2.0
"""Ultrasound foundation models for MONAI."""

from __future__ import annotations

__version__ = "0.6.0"
__all__ = ["__version__"]
