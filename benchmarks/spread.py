# Copyright (c) monai_usfm contributors
# SPDX-License-Identifier: Apache-2.0
"""How a table tells the values of the rounds."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

__all__ = ["spread"]


def spread(values: Sequence[float]) -> str:
    """``median (lower to upper quartile)``; of a single round its value."""
    if len(values) < 2:
        return f"{values[0]:.3g}"
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return f"{middle:.3g} ({low:.3g} to {high:.3g})"
