# Copyright (c) monai_usfm contributors
# SPDX-License-Identifier: Apache-2.0
"""Tables of images (CSV), read by one rule."""

from __future__ import annotations

import os
import re
import unicodedata
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from monai.config import PathLike

from .folders import stem_of

NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?")


class Table:
    """A CSV file with a column ``image``: paths, or their ends, with the rows that belong to them.

    Commas, semicolons and tabs separate; cells are UTF-8 text, without spaces at their ends. Other columns than the
    wanted ones may differ between two rows of one image.

    Args:
        file: the table.
        columns: wanted ones; all by default.
        renamed: name that a column gets -> the one that it has in the file, as :func:`named_columns` reads them.

    Raises:
        ValueError: for no table, a column that lacks, or two rows of one image that differ in the wanted columns.
    """

    def __init__(self, file: PathLike, columns: Sequence[str] = (), renamed: Mapping[str, str] | None = None) -> None:
        import pandas as pd  # takes half a second, and most runs read no table

        self.file = Path(file)
        try:
            with self.file.open(encoding="utf-8-sig") as stream:
                header = stream.readline()
            frame = pd.read_csv(
                self.file,
                sep=max(",;\t", key=header.count),
                dtype=str,
                keep_default_na=False,
                encoding="utf-8-sig",
                skipinitialspace=True,
                index_col=False,
            )
        except FileNotFoundError:
            raise FileNotFoundError(f"{file}: no such table.") from None
        except ValueError as error:  # what pandas raises too
            raise ValueError(f"{file} is no CSV table in UTF-8: {error}. Save it as CSV UTF-8.") from None
        frame.columns = [str(name).strip() for name in frame.columns]
        names = {"image": "image", **(renamed or {})}
        missing = {*names.values(), *(name for name in columns if name not in names)} - set(frame.columns)
        if missing:
            hint = (
                "; columns image=NAME says which one names the images"
                if renamed is not None and "image" in missing
                else ""
            )
            raise ValueError(
                f"{file}: no column {', '.join(sorted(missing))}; it has {', '.join(frame.columns)}{hint}."
            )
        kept = {name: frame[name] for name in frame.columns if name not in names.values()}
        frame = pd.DataFrame(kept | {name: frame[column] for name, column in names.items()})
        self.columns = [name for name in frame.columns if name != "image"]
        self.rows: dict[str, dict[str, str]] = {}
        for row in frame.apply(lambda column: column.str.strip()).to_dict("records"):
            if not row["image"]:
                continue
            other = self.rows.setdefault(path_key(row["image"].replace("\\", "/")), row)
            unlike = [name for name in columns or self.columns if other[name] != row[name]]
            if unlike:
                raise ValueError(f"{file}: two rows of {row['image']} differ in {', '.join(unlike)}.")

    def rows_of(self, paths: Sequence[PathLike]) -> list[dict[str, str] | None]:
        """The row of each path: the one that names its longest end, or else its name without ending.

        A row that would belong to several files, since it names less than their whole path, is a ValueError.
        """
        found: list[dict[str, str] | None] = []
        users: dict[str, str] = {}
        for path in paths:
            parts = path_key(path).split("/")
            ends = ["/".join(parts[start:]) for start in range(len(parts))]
            key = next((key for key in [*ends, stem_of(parts[-1])] if key in self.rows), None)
            found.append(self.rows[key] if key is not None else None)
            if key is not None and users.setdefault(key, ends[0]) != ends[0]:
                raise ValueError(
                    f"{self.file}: the row of {key} may belong to {users[key]} and to {ends[0]}; give their paths."
                )
        return found


def named_columns(columns: Sequence[str]) -> dict[str, str]:
    """``KEY=COLUMN`` or ``COLUMN`` -> the name of each column by its key."""
    return {key: column or key for key, _, column in (entry.partition("=") for entry in columns)}


def path_key(path: PathLike) -> str:
    """One name for a path however it is written: ``./a.png``, ``b/../a.png``, letters composed or decomposed."""
    return unicodedata.normalize("NFC", os.path.normpath(path).replace(os.sep, "/"))


def value_of(text: str, key: str = "") -> Any:
    """A number where the text is one. Texts such as 007 stay: they name something. A ``class`` of 1.0 is 1, as pandas
    writes whole numbers of a column that has empty cells."""
    if not NUMBER.fullmatch(text):
        return text
    if text.lstrip("+-").isdigit():
        return int(text) if str(int(text)) == text else text
    number = float(text)
    return int(number) if key == "class" and number.is_integer() else number
