#!/usr/bin/env python
# Copyright (c) monai_usfm contributors
# SPDX-License-Identifier: Apache-2.0
"""Give the items of a datalist what a table knows of them: patients, pixel sizes, classes, measurements.

    python scripts/join_table.py --datalist DATA/dataset.json --table DATA/labels.csv \\
        --columns patient=subject_id spacing=pixel_size_mm --output DATA/with_mm.json

The table has a column ``image`` with the paths of the datalist. With ``spacing`` (mm per pixel) pictures get their
geometry, with ``patient`` the check for patients in two splits works, and ``circumference`` is what the segmentation
bundle compares with. Paths stay as they are: keep the new list in the folder of the old one, or name it with
--datalist and the folder with --dataset_dir.
"""

from __future__ import annotations

import argparse
import csv
import json
from pathlib import Path
from typing import Any

from monai_usfm.data.splits import SPLITS
from monai_usfm.files import write_text_atomically


def value_of(text: str) -> Any:
    """A number where the text is one. Texts such as 007 stay: they name something."""
    number: Any = None
    for kind in (int, float):
        try:
            number = kind(text)
            break
        except ValueError:
            continue
    if number is None or (isinstance(number, int) and str(number) != text.strip()):
        return text
    return number


def join(datalist: Path, table: Path, columns: dict[str, str]) -> dict[str, Any]:
    """The content of the datalist with new keys.

    Raises:
        ValueError: for a column that the table lacks, an image that it does not name, an empty cell, or a datalist that
            is no JSON object.
    """
    with table.open(newline="", encoding="utf-8-sig") as stream:
        reader = csv.DictReader(stream)
        missing = {"image", *columns.values()} - set(reader.fieldnames or [])
        if missing:
            raise ValueError(
                f"{table}: no column {', '.join(sorted(missing))}; it has {', '.join(reader.fieldnames or [])}."
            )
        rows: dict[str, dict[str, str]] = {}
        for row in reader:
            other = rows.setdefault(row["image"], row)
            unlike = [column for column in columns.values() if other[column] != row[column]]
            if unlike:
                raise ValueError(f"{table}: two rows of {row['image']} differ in {', '.join(unlike)}.")
    try:
        content = json.loads(datalist.read_text(encoding="utf-8-sig"))
    except ValueError as error:
        raise ValueError(f"{datalist} is no JSON file: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{datalist} must hold an object with {', '.join(SPLITS)}, not a {type(content).__name__}.")
    for section in content.keys() & set(SPLITS):
        # A datalist may name an image by its path alone.
        content[section] = [{"image": entry} if isinstance(entry, str) else entry for entry in content[section]]
        for item in content[section]:
            row = rows.get(item.get("image"))
            if row is None:
                raise ValueError(f"{table}: no row for {item.get('image')} of {datalist}.")
            for key, column in columns.items():
                if not row[column]:
                    raise ValueError(f"{table}: {column} of {item['image']} is empty.")
                # A patient is a name even where all its characters are digits.
                item[key] = row[column] if key in ("patient", "patient_id") else value_of(row[column])
    return content


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--datalist", type=Path, required=True)
    parser.add_argument("--table", type=Path, required=True, help="CSV with a column image")
    parser.add_argument("--columns", nargs="+", required=True, metavar="KEY=COLUMN")
    parser.add_argument("--output", type=Path, required=True)
    args = parser.parse_args()
    pairs = [entry.partition("=") for entry in args.columns]
    columns = {key: column or key for key, _, column in pairs}
    try:
        content = join(args.datalist, args.table, columns)
    except (ValueError, OSError) as error:
        parser.exit(1, f"{error}\n")
    write_text_atomically(args.output, json.dumps(content, indent=1))
    count = sum(len(content.get(section, [])) for section in SPLITS)
    print(f"{args.output}: {', '.join(columns)} for {count} items")


if __name__ == "__main__":
    main()
