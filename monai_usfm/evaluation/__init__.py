# Copyright (c) monai_usfm contributors
# SPDX-License-Identifier: Apache-2.0
"""Probes, label-efficiency curves and audits of a pretrained encoder."""

from __future__ import annotations

__all__: list[str] = []
