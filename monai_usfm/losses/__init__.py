# Copyright (c) monai_usfm contributors
# SPDX-License-Identifier: Apache-2.0
"""Losses that MONAI does not have."""

from __future__ import annotations

__all__: list[str] = []
