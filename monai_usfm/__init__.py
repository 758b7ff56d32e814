# Copyright (c) monai_usfm contributors
# SPDX-License-Identifier: Apache-2.0
"""Ultrasound foundation models for MONAI."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from monai_usfm.cards import build_network, load_network, network_options, read_card, save_network, write_card

__version__ = "0.23.0"
__all__ = [
    "__version__",
    "build_network",
    "load_network",
    "network_options",
    "read_card",
    "save_network",
    "write_card",
]


def __getattr__(name: str) -> Any:
    """The functions of :mod:`monai_usfm.cards`, imported when first used: ``--help`` need not wait for PyTorch."""
    if name in __all__:
        from monai_usfm import cards

        return getattr(cards, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
