#!/usr/bin/env python
# Copyright (c) monai_usfm contributors
# SPDX-License-Identifier: Apache-2.0
"""Convert ultrasound DICOM files to NIfTI or PNG with their spacing in mm.

    python scripts/convert_dicom.py SCANS --output converted --format png --crop --deidentify strip --key key.txt

Folders are searched; the outputs lie below --output as the inputs did, with strip under pseudonyms. A file that cannot
be converted is named with the reason, and the others go on.
"""

from __future__ import annotations

import argparse
import logging
import sys

from monai_usfm.data import convert_dicom_folder


def main(arguments: list[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    if options.deidentify == "strip" and options.key is None:
        print("--deidentify strip needs --key FILE, the key of the pseudonyms; it is made if missing.", file=sys.stderr)
        return 2
    failed = convert_dicom_folder(
        options.inputs,
        options.output,
        format=options.format,
        key=options.key,
        region=None if options.region == "none" else _region(options.region),
        crop=options.crop,
        frame=options.frame,
        gray=not options.color,
        deidentify=options.deidentify,
        no_regions=options.no_regions,
    )
    return 1 if failed else 0


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
    parser.add_argument("--color", "--colour", action="store_true", help="keep RGB instead of luma")
    parser.add_argument(
        "--deidentify",
        choices=("check", "strip"),
        help="refuse or strip what names a person; text burned into a region stays: look at the output",
    )
    parser.add_argument("--key", help="file with the key of the pseudonyms, made if missing; keep it")
    parser.add_argument(
        "--no_regions",
        choices=("refuse", "blacken"),
        default="refuse",
        help="with strip, a file without ultrasound regions: refuse it, or keep its field of view alone",
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
