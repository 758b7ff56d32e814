#!/usr/bin/env python
# Copyright (c) monai_usfm contributors
# SPDX-License-Identifier: Apache-2.0
"""Convert ultrasound DICOM files to NIfTI or PNG with their spacing in mm.

    python scripts/convert_dicom.py SCANS --output converted --format png --crop --deidentify strip

Folders are searched; the outputs lie below --output as the inputs did. A file that cannot be converted is named with
the reason, and the others go on.
"""

from __future__ import annotations

import argparse
import logging
import sys
from pathlib import Path

import pydicom

from monai_usfm.data import UnreadableImageError, convert_dicom


def main(arguments: list[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    done, failed, taken = 0, 0, set()
    for argument in map(Path, options.inputs):
        if not argument.exists():
            print(f"{argument}: no such file or folder", file=sys.stderr)
            failed += 1
            continue
        files = [argument] if argument.is_file() else sorted(p for p in argument.rglob("*") if _is_dicom(p))
        for file in files:
            below = Path(file.name) if argument.is_file() else file.relative_to(argument)
            # a UID as a name has points, of which none begins an ending
            name = below.stem if below.suffix.lower() in (".dcm", ".dicom", ".ima") else below.name
            target = Path(options.output) / below.with_name(f"{name}.{options.format}")
            try:
                if target in taken:
                    raise UnreadableImageError(file, f"{target} was already written from another input.")
                convert_dicom(
                    file,
                    target,
                    region=None if options.region == "none" else _region(options.region),
                    crop=options.crop,
                    frame=options.frame,
                    gray=not options.colour,
                    deidentify=options.deidentify,
                )
                taken.add(target)
                done += 1
            except Exception as error:  # a damaged file must not end a long conversion
                failed += 1
                print(f"not converted: {error if isinstance(error, UnreadableImageError) else f'{file}: {error!r}'}")
    print(f"{done} converted, {failed} not.")
    return 1 if failed or not done else 0


def _is_dicom(path: Path) -> bool:
    return path.is_file() and path.stat().st_size > 132 and pydicom.misc.is_dicom(path)


def _region(text: str) -> str | int:
    return int(text) if text.lstrip("-").isdigit() else text


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("inputs", nargs="+", help="files or folders")
    parser.add_argument("--output", required=True, help="folder")
    parser.add_argument("--format", choices=("nii.gz", "nii", "png"), default="nii.gz")
    parser.add_argument("--region", default="largest_tissue", help="largest_tissue, an index, or none")
    parser.add_argument("--crop", action="store_true", help="cut to the region")
    parser.add_argument("--frame", type=int, help="write this frame; default: all (NIfTI) or the middle one (PNG)")
    parser.add_argument("--colour", action="store_true", help="keep RGB instead of luma")
    parser.add_argument(
        "--deidentify",
        choices=("check", "strip"),
        help="refuse or strip what names a person; text burnt into a region stays: look at the output",
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
