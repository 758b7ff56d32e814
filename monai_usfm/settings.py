# Copyright (c) monai_usfm contributors
# SPDX-License-Identifier: Apache-2.0
"""What stands on a command line: literals, paths with a name, options of a bundle."""

from __future__ import annotations

import ast
from collections.abc import Sequence
from pathlib import Path
from typing import Any

__all__ = ["literal", "parse_options", "split_named_path"]

PATHS = "bundle_root dataset_dir datalist output_dir ckpt_dir export_path cache_dir checkpoint pretrained teacher"
"""Options that name a file or folder, which may be called 2024."""


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
        found = ast.literal_eval(value)
    except (ValueError, SyntaxError, TypeError):  # the last: a dictionary whose keys are lists
        return value
    return value if isinstance(found, int | float) and "_" in value else found  # 2024_01 is a name


def split_named_path(entry: str) -> tuple[str, str]:
    """``"NAME=PATH" -> ("NAME", "PATH")``, ``"PATH" -> ("", "PATH")``; a path that exists may hold the sign itself."""
    name, _, path = entry.partition("=")
    return (name, path) if path and not Path(entry).exists() else ("", entry)


def parse_options(tokens: Sequence[str]) -> dict[str, Any]:
    """``["--size", "96", "96", "--net#name", "small"] -> {"size": [96, 96], "net#name": "small"}``.

    A value is a Python literal, or else text; a number that names a file or folder is text. Several values are a list;
    none is True. ``--name=value`` is taken too, and dashes in a name are underscores. The parser of ``fire`` is not
    used: it takes what follows ``#`` for a comment, which in a bundle separates the parts of a name.

    Raises:
        ValueError: for a value without an option.
    """
    found: dict[str, list[str]] = {}
    name = ""
    for token in tokens:
        if token.startswith("--") and token != "--":
            name, has_value, value = token[2:].partition("=")
            name = name.replace("-", "_")
            found[name] = [value] if has_value else []
        elif name:
            found[name].append(token)
        else:
            raise ValueError(f"{token!r} belongs to no option; options are written --name value.")

    def read(name: str, text: str) -> Any:
        found = literal(text)
        return text if name in PATHS.split() and type(found) in (int, float) else found

    values = {name: [read(name, text) for text in texts] or [True] for name, texts in found.items()}
    return {name: texts[0] if len(texts) == 1 else texts for name, texts in values.items()}
