# Copyright (c) monai_usfm contributors
# SPDX-License-Identifier: Apache-2.0
"""Whole networks: the encoder, its pretraining wrappers and the task networks."""

from __future__ import annotations

__all__: list[str] = []
