# Copyright (c) monai_usfm contributors
# SPDX-License-Identifier: Apache-2.0
"""Reading, listing, sampling and simulating ultrasound images."""

from __future__ import annotations

__all__: list[str] = []
