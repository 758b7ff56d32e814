# Copyright (c) monai_usfm contributors
# SPDX-License-Identifier: Apache-2.0
"""Options of a bundle's config on the command line."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from monai_usfm.settings import literal

__all__ = ["parse_options"]


def parse_options(tokens: Sequence[str]) -> dict[str, Any]:
    """``["--size", "96", "96", "--net#name", "small"] -> {"size": [96, 96], "net#name": "small"}``.

    A value is a Python literal, or else text; several values are a list; none is True. ``--name=value`` is taken too,
    and dashes in a name are underscores. The parser of ``fire`` is not used: it takes what follows ``#`` for a comment,
    which in a bundle separates the parts of a name.

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
    return {name: _value(values) for name, values in found.items()}


def _value(texts: list[str]) -> Any:
    if not texts:
        return True
    return literal(texts[0]) if len(texts) == 1 else [literal(text) for text in texts]
