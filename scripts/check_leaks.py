#!/usr/bin/env python
# Copyright (c) monai_usfm contributors
# SPDX-License-Identifier: Apache-2.0
"""Stop when validation or test images, or their patients, stand in the training data.

    python scripts/check_leaks.py --datalist data/dataset.json --output leaks
    python scripts/check_leaks.py --datalist pretraining.json --dataset_dir data --test_datalist data/dataset.json

Writes leaks.csv; the exit status is 1 when there are any.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import fields
from pathlib import Path

from monai_usfm.data import load_datalist
from monai_usfm.evaluation import Leak, LeakError, add_patient_options, add_patients, check_leaks, patients_of
from monai_usfm.evaluation.fine_tuning import NetworkSpec
from monai_usfm.files import write_csv


def sections(path: Path, folder: Path | None, names: list[str]) -> list[dict]:
    present = json.loads(path.read_text(encoding="utf-8-sig"))
    return [item for name in names if present.get(name) for item in load_datalist(path, folder, name)]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--datalist", type=Path, required=True, help="JSON with the training section")
    parser.add_argument("--dataset_dir", type=Path, help="folder its paths start from; default: that of the file")
    parser.add_argument("--test_datalist", type=Path, help="JSON with validation and test; default: the same")
    parser.add_argument("--test_dataset_dir", type=Path, help="folder its paths start from; default: that of the file")
    add_patient_options(parser)
    parser.add_argument("--max_bits", type=int, default=40, help="largest distance of two hashes that is a copy")
    parser.add_argument("--encoder", help="usfm_vit_tiny, usfm_vit_small or usfm_vit_base: compare features too")
    parser.add_argument("--weights", help="weights of the encoder")
    parser.add_argument("--size", type=int, nargs=2, default=(224, 224), help="pixels (H, W) for the encoder")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--output", type=Path, default=Path("leaks"), help="folder of leaks.csv")
    args = parser.parse_args()

    test_list = args.test_datalist or args.datalist
    test_dir = args.test_dataset_dir if args.test_datalist else args.dataset_dir
    train = sections(args.datalist, args.dataset_dir, ["training"])
    test = sections(test_list, test_dir, ["validation", "test"])
    if args.patient_table or args.patient_pattern:
        base = test_dir or test_list.parent
        train, test = (add_patients(items, base, **patients_of(args)) for items in (train, test))
    encoder = None
    if args.encoder:
        spec = NetworkSpec(args.encoder, args.weights)
        encoder = spec.build("classification", 2, args.size).encoder
    leaks = []
    try:
        check_leaks(train, test, max_bits=args.max_bits, encoder=encoder, size=args.size, device=args.device)
    except LeakError as error:
        print(error, file=sys.stderr)
        leaks = error.leaks
    write_csv(args.output / "leaks.csv", [vars(leak) for leak in leaks], [field.name for field in fields(Leak)])
    print(f"{len(train)} training and {len(test)} other images: {len(leaks)} leaks; {args.output / 'leaks.csv'}")
    return 1 if leaks else 0


if __name__ == "__main__":
    sys.exit(main())
