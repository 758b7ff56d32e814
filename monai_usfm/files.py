# Copyright (c) monai_usfm contributors
# SPDX-License-Identifier: Apache-2.0
"""Files that are complete or absent: written under another name, then renamed."""

from __future__ import annotations

import csv
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from monai.config import PathLike
from monai.data import ImageWriter, resolve_writer

__all__ = ["whole_file", "whole_writer", "write_csv", "write_text_atomically"]

TWO_FILES = (".hdr", ".img", ".mhd", ".nhdr")


@contextmanager
def whole_file(path: PathLike) -> Iterator[Path]:
    """A name beside ``path`` to write to, renamed to ``path`` at the end: nobody reads half a file.

    The name has the ending of ``path``, by which many writers choose the format. Folders are made. After an error the
    old file is as it was, and nothing else is left. The content is on the disk before the name is: a power failure
    leaves the old file or the new one, not an empty one.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{os.getpid()}.{path.name}")
    try:
        yield part
        with open(part, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def whole_writer(output_ext: str) -> type[ImageWriter]:
    """MONAI's writer of images with this ending, which writes each one as :func:`whole_file` does.

    For the ``writer`` of :class:`monai.transforms.SaveImaged`, which otherwise writes to the final name.

    Raises:
        ValueError: for formats of two files, which no single renaming replaces.
    """
    if output_ext.lower().removesuffix(".gz") in TWO_FILES:
        raise ValueError(f"{output_ext} stands for two files, which cannot be replaced as one; use .nii.gz or .mha.")
    base: type[ImageWriter] = resolve_writer(output_ext)[0]

    class WholeWriter(base):  # type: ignore[misc, valid-type]
        def write(self, filename: PathLike, verbose: bool = True, **kwargs: Any) -> None:
            with whole_file(filename) as part:
                super().write(part, verbose=verbose, **kwargs)

    return WholeWriter


def write_text_atomically(path: PathLike, text: str) -> Path:
    """Write a text file, see :func:`whole_file`."""
    with whole_file(path) as part:
        part.write_text(text, encoding="utf-8")
    return Path(path)


def write_csv(path: PathLike, rows: Sequence[Mapping[str, Any]], columns: Sequence[str] = ()) -> Path:
    """Rows as CSV, ``columns`` first, others in the order in which they appear; a row without one leaves it empty."""
    columns = list(dict.fromkeys([*columns, *(key for row in rows for key in row)]))
    with whole_file(path) as part, part.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    return Path(path)
