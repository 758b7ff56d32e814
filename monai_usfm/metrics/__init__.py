# Copyright (c) monai_usfm contributors
# SPDX-License-Identifier: Apache-2.0
"""Ultrasound image-quality metrics."""

from __future__ import annotations

__all__: list[str] = []
