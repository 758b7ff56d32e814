# Copyright (c) monai_usfm contributors
# SPDX-License-Identifier: Apache-2.0
"""Settings of a bundle as scripts take them on the command line."""

from __future__ import annotations

import ast
from collections.abc import Iterable
from typing import Any

__all__ = ["parse_settings"]


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
