# Copyright (c) monai_usfm contributors
# SPDX-License-Identifier: Apache-2.0
"""Decoders that sit on the encoder's maps."""

from __future__ import annotations

__all__: list[str] = []
