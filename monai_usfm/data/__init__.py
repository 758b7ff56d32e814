# Copyright (c) monai_usfm contributors
# SPDX-License-Identifier: Apache-2.0
"""Reading, listing, sampling and simulating ultrasound images."""

from __future__ import annotations

from .loading import SUPPORTED_SUFFIXES, LoadUltrasound, LoadUltrasoundd, UnreadableImageError

__all__ = ["SUPPORTED_SUFFIXES", "LoadUltrasound", "LoadUltrasoundd", "UnreadableImageError"]
