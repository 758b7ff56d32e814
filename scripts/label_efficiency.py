#!/usr/bin/env python
# Copyright (c) monai_usfm contributors
# SPDX-License-Identifier: Apache-2.0
"""Fine-tune networks on 5, 10, 20, 50 and 100 % of the labelled patients and compare them.

    python scripts/label_efficiency.py --task segmentation --datalist data/busbra/dataset.json \\
        --patient_table data/busbra/labels.csv --pretrained encoder.pt --baselines unet segresnet --output breast

Compares the pretrained encoder, the same network from scratch, and MONAI's networks, all with the same batches and
number of steps (or the same --seconds). Finished cells are kept: run it again to continue, or with more seeds. Writes
cells.csv, label_efficiency.csv, .md and .png into the output folder.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from pathlib import Path

import torch

from monai_usfm.data import load_datalist
from monai_usfm.evaluation import (
    FRACTIONS,
    FineTuning,
    NetworkSpec,
    Recipe,
    add_patient_options,
    add_patients,
    choose_learning_rate,
    label_subsets,
    load_cases,
    patients_of,
    run_label_efficiency,
    summarise_label_efficiency,
)
from monai_usfm.files import write_text_atomically
from monai_usfm.settings import split_named_path


def networks(args: argparse.Namespace) -> dict[str, NetworkSpec]:
    """Name in the table -> network."""
    options = json.loads(args.encoder_options)
    ours = NetworkSpec(args.encoder, learning_rate=args.learning_rate, head=args.head, options=options)
    found = {}
    for entry in args.pretrained:
        name, path = split_named_path(entry)
        if (name or "pretrained") in found:
            raise SystemExit(
                f"--pretrained names {name or 'pretrained'!r} twice: give each a name of its own, NAME=FILE."
            )
        spec = replace(ours, weights=path, layer_decay=args.layer_decay)
        found[name or "pretrained"] = spec
        if args.frozen:
            found[f"{name or 'pretrained'}, frozen"] = replace(spec, frozen=True)
    found["scratch"] = ours
    if args.frozen:
        found["scratch, frozen"] = replace(ours, frozen=True)
    for baseline in args.baselines:
        name, _, path = baseline.partition("=")
        title = f"{name}, pretrained" if path else name
        if title in found:
            raise SystemExit(f"--baselines names {title!r} twice.")
        found[title] = NetworkSpec(name, path or None, learning_rate=args.baseline_learning_rate)
    return found


def tuned(tuning: FineTuning, args: argparse.Namespace) -> dict[str, NetworkSpec]:
    """Each network with the learning rate that is best on the validation split; kept in learning_rates.json."""
    file = args.output / "learning_rates.json"
    known = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    result = {}
    for name, spec in tuning.networks.items():
        if name not in known or set(known[name]["validation_scores"]) != {str(rate) for rate in args.tune}:
            best, scores = choose_learning_rate(tuning, spec, args.tune_fraction, args.tune)
            known[name] = {"best": best, "validation_scores": {str(k): v for k, v in scores.items()}}
            write_text_atomically(file, json.dumps(known, indent=1))
            print(f"{name}: learning rate {best:g} ({', '.join(f'{k:g} {v:.3f}' for k, v in scores.items())})")
        result[name] = replace(spec, learning_rate=known[name]["best"])
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", choices=("segmentation", "classification"), required=True)
    parser.add_argument("--datalist", type=Path, required=True, help="JSON with training, validation and test")
    parser.add_argument("--dataset_dir", type=Path, help="folder its paths start from; default: that of the file")
    parser.add_argument("--label_fractions", type=Path, help="the data set's own parts; default: beside the datalist")
    add_patient_options(parser)
    parser.add_argument("--num_classes", type=int, default=2, help="with background in segmentation")
    parser.add_argument("--label_values", type=int, nargs="+", help="file values of the classes; default: 0, 1, ...")
    parser.add_argument("--size", type=int, nargs="+", default=(128, 128), help="pixels (H, W) or (D, H, W)")
    parser.add_argument("--pretrained", nargs="*", default=[], help="weights to start from, or name=weights, several")
    parser.add_argument("--frozen", action="store_true", help="also with the encoders, pretrained and not, frozen")
    parser.add_argument("--encoder", default="usfm_vit_tiny")
    parser.add_argument("--encoder_options", default="{}", help='JSON, for example {"pos_embed": "sincos"}')
    parser.add_argument("--head", help="segmentation head or pooling of the classifier; default: the network's")
    parser.add_argument(
        "--baselines",
        nargs="*",
        default=[],
        help="unet attention_unet segresnet unetr dynunet densenet121; with =FILE from weights",
    )
    parser.add_argument("--fractions", type=float, nargs="+", default=FRACTIONS)
    parser.add_argument("--seeds", type=int, nargs="+", default=(0, 1, 2))
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--seconds", type=float, help="training time per cell; --steps is then the upper limit")
    parser.add_argument("--batch_size", type=int, default=16)
    parser.add_argument("--learning_rate", type=float, default=5e-4, help="of the networks with our encoder")
    parser.add_argument("--layer_decay", type=float, default=0.8, help="of the pretrained ones")
    parser.add_argument("--baseline_learning_rate", type=float, default=1e-3)
    parser.add_argument("--tune", type=float, nargs="+", help="choose each network's rate among these, on validation")
    parser.add_argument("--tune_fraction", type=float, default=0.2)
    parser.add_argument("--reference", help="the network that is tested against the others; default: the first")
    parser.add_argument("--title", default="")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--amp", action="store_true", help="bfloat16 autocast")
    parser.add_argument("--output", type=Path, required=True)
    args = parser.parse_args()

    folder = args.dataset_dir or args.datalist.parent
    splits = {
        section: add_patients(load_datalist(args.datalist, folder, section), folder, **patients_of(args))
        for section in ("training", "validation", "test")
    }
    published = args.label_fractions or args.datalist.parent / "label_fractions.json"
    if args.label_fractions and not published.is_file():
        raise SystemExit(f"{published}: no such file; without --label_fractions the parts are drawn here.")
    published = published if published.is_file() else None
    subsets = label_subsets(splits["training"], args.fractions, published, folder)
    with_label = args.task == "segmentation"
    cases = {
        name: load_cases(items, args.size, with_label, args.num_classes, args.label_values)
        for name, items in splits.items()
    }
    tuning = FineTuning(
        args.task,
        *cases.values(),
        subsets={f: cases["training"].rows([str(i["image"]) for i in part]) for f, part in subsets.items()},
        networks=networks(args),
        num_classes=args.num_classes,
        recipe=Recipe(steps=args.steps, seconds=args.seconds, batch_size=args.batch_size, amp=args.amp),
        device=args.device,
    )
    if args.tune:
        tuning.networks = tuned(tuning, args)
    conditions = {
        **tuning.conditions(),
        "datalist": args.datalist.name,
        "parts": published.name if published else "label_fraction, seed 0",
    }
    run_label_efficiency(
        tuning,
        args.output,
        tuning.describe(),
        args.fractions,
        args.seeds,
        conditions,
        args.device,
        report=lambda line: print(line, flush=True),
    )
    primary = "dice" if with_label else "macro_f1"
    print(summarise_label_efficiency(args.output, primary, args.reference or next(iter(tuning.networks)), args.title))


if __name__ == "__main__":
    main()
