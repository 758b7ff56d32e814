# Copyright (c) monai_usfm contributors
# SPDX-License-Identifier: Apache-2.0
"""The display of a scanner: gray levels are decibels below white.

An image in [0, 1] that was log-compressed with ``dynamic_range_db`` shows ``(v - 1) * dynamic_range_db`` dB below
white; with ``dynamic_range_db=None`` it is a linear echo amplitude.
"""

from __future__ import annotations

import math

import torch

__all__ = ["check_dynamic_range", "from_power", "require_log_compressed", "to_power"]


def to_power(image: torch.Tensor, dynamic_range_db: float | None) -> torch.Tensor:
    """Echo power, 1 for white and 0 for black: no echo above the floor is seen there, and two such stay black."""
    if dynamic_range_db is None:
        return image**2
    return 10 ** ((image - 1) * dynamic_range_db / 10) - 10 ** (-dynamic_range_db / 10)


def from_power(power: torch.Tensor, dynamic_range_db: float | None) -> torch.Tensor:
    """Inverse of :func:`to_power`."""
    if dynamic_range_db is None:
        return power.clamp(min=0).sqrt()
    return 1 + 10 * torch.log10(power.clamp(min=0) + 10 ** (-dynamic_range_db / 10)) / dynamic_range_db


def check_dynamic_range(dynamic_range_db: float | None) -> None:
    """Refuse a display range that is not positive; ``None`` stands for linear images."""
    if dynamic_range_db is not None and not (math.isfinite(dynamic_range_db) and dynamic_range_db > 0):
        raise ValueError(f"dynamic_range_db must be positive, or None for linear images, got {dynamic_range_db}.")


def require_log_compressed(dynamic_range_db: float | None) -> None:
    """Refuse what :func:`check_dynamic_range` does, and ``None`` too: where a linear image has no such display."""
    if dynamic_range_db is None:
        raise ValueError("this is for log-compressed images: dynamic_range_db must be a number of dB, got None.")
    check_dynamic_range(dynamic_range_db)
