#!/usr/bin/env python
# Copyright (c) monai_usfm contributors
# SPDX-License-Identifier: Apache-2.0
"""How often does a classifier change its mind when calipers, text or the edge of the field of view come or go?

    python scripts/audit_shortcuts.py --model bundles/usfm_classification/models/model.ts \\
        --datalist data/busbra/dataset.json --patient_table data/busbra/labels.csv --output results/shortcuts

The model is a TorchScript file that takes (B, 1, *S) in [0, 1] and gives logits. Writes shortcuts.csv, shortcuts.md and
shortcuts.png, which shows for each alteration the image that it changed most.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from monai_usfm.data import load_datalist
from monai_usfm.evaluation import add_patient_options, add_patients, audit_shortcuts, load_cases, patients_of
from monai_usfm.evaluation.report import conditions_of_run, file_digest, markdown_table
from monai_usfm.files import write_csv, write_text_atomically


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True, help="TorchScript classifier")
    parser.add_argument("--datalist", type=Path, required=True)
    parser.add_argument("--dataset_dir", type=Path, help="folder its paths start from; default: that of the file")
    parser.add_argument("--section", default="test")
    add_patient_options(parser)
    parser.add_argument("--size", type=int, nargs="+", default=(224, 224), help="pixels (H, W) or (D, H, W)")
    parser.add_argument("--limit", type=int, help="use only so many images, for a trial")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--output", type=Path, required=True)
    args = parser.parse_args()

    folder = args.dataset_dir or args.datalist.parent
    items = load_datalist(args.datalist, folder, args.section)[: args.limit]
    cases = load_cases(add_patients(items, folder, **patients_of(args)), args.size)
    model = torch.jit.load(args.model, map_location=args.device).eval()
    audit = audit_shortcuts(
        lambda x: model(x.to(args.device)), cases.images.float() / 255, cases.classes, cases.patients
    )
    run = {"model": f"sha256:{file_digest(args.model)}", "section": args.section, **conditions_of_run(args.device)}
    write_csv(args.output / "shortcuts.csv", [{**row, **run} for row in audit.table()])
    heads = ["alteration", "images", "predictions flipped", "mean change of p", "macro-F1 before", "after"]
    lines = [
        (
            r.alteration,
            r.images,
            f"{100 * r.flips:.1f} % [{100 * r.flips_low:.1f}, {100 * r.flips_high:.1f}]",
            r.mean_change,
            r.macro_f1_before,
            r.macro_f1_after,
        )
        for r in audit.rows
    ]
    text = markdown_table(heads, lines)
    write_text_atomically(args.output / "shortcuts.md", text)
    audit.save_picture(args.output / "shortcuts.png")
    print(text)


if __name__ == "__main__":
    main()
