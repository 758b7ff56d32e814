# Copyright (c) monai_usfm contributors
# SPDX-License-Identifier: Apache-2.0
"""What stands on a command line: literals, paths with a name."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import Any

__all__ = ["literal", "split_named_path"]


def literal(value: Any) -> Any:
    """The Python literal that a text stands for, ``true``, ``false`` and ``null`` too, or else the text.

    ``"1e-3" -> 0.001``, ``"[96,96]" -> [96, 96]``, ``"small" -> "small"``. What is no text stays.
    """
    if not isinstance(value, str):
        return value
    words = {"true": True, "false": False, "null": None}
    if value.lower() in words:
        return words[value.lower()]
    try:
        return ast.literal_eval(value)
    except (ValueError, SyntaxError):
        return value


def split_named_path(entry: str) -> tuple[str, str]:
    """``"NAME=PATH" -> ("NAME", "PATH")``, ``"PATH" -> ("", "PATH")``; a path that exists may hold the sign itself."""
    name, _, path = entry.partition("=")
    return (name, path) if path and not Path(entry).exists() else ("", entry)
