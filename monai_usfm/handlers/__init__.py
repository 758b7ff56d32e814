# Copyright (c) monai_usfm contributors
# SPDX-License-Identifier: Apache-2.0
"""Ignite handlers that MONAI lacks."""

from __future__ import annotations

__all__: list[str] = []
