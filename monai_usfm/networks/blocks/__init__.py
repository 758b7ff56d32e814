# Copyright (c) monai_usfm contributors
# SPDX-License-Identifier: Apache-2.0
"""Pieces of the encoder: patch embedding, positions, transformer blocks."""

from __future__ import annotations

__all__: list[str] = []
