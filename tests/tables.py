# Copyright (c) monai_usfm contributors
# SPDX-License-Identifier: Apache-2.0
"""Reading the tables that runs write."""

from __future__ import annotations

import csv
from pathlib import Path


def rows(path: Path) -> list[dict[str, str]]:
    """The rows of a CSV file by the names of its columns."""
    with open(path, newline="", encoding="utf-8") as stream:
        return list(csv.DictReader(stream))
