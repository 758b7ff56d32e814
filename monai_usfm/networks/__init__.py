# Copyright (c) monai_usfm contributors
# SPDX-License-Identifier: Apache-2.0
"""Networks, heads and published-weight loading."""

from __future__ import annotations

__all__: list[str] = []
