# Copyright (c) monai_usfm contributors
# SPDX-License-Identifier: Apache-2.0
"""What scripts take on the command line: settings of a bundle, paths with a name."""

from __future__ import annotations

import ast
from collections.abc import Iterable
from pathlib import Path
from typing import Any

__all__ = ["parse_settings", "split_named_path"]


def parse_settings(entries: Iterable[str]) -> dict[str, Any]:
    """``["size=[96,96]", "train#name=small"] -> {"size": [96, 96], "train#name": "small"}``.

    A value is a Python literal, or else text. The parser of ``fire`` is not used: it takes what follows ``#`` for a
    comment, which in a bundle separates the parts of a name.
    """
    settings: dict[str, Any] = {}
    for entry in entries:
        name, _, value = entry.partition("=")
        try:
            settings[name] = ast.literal_eval(value)
        except (ValueError, SyntaxError):
            settings[name] = value
    return settings


def split_named_path(entry: str) -> tuple[str, str]:
    """``"NAME=PATH" -> ("NAME", "PATH")``, ``"PATH" -> ("", "PATH")``; a path that exists may hold the sign itself."""
    name, _, path = entry.partition("=")
    return (name, path) if path and not Path(entry).exists() else ("", entry)
