#!/usr/bin/env python
# Copyright (c) monai_usfm contributors
# SPDX-License-Identifier: Apache-2.0
"""Probe frozen encoders: nearest neighbours, linear, attentive (classes) and dense linear (label maps).

    python scripts/probe.py --datalist data/busbra/dataset.json --patient_table data/busbra/labels.csv \\
        --encoders ours=encoder.pt random --probes knn linear attentive dense --output results/probes

Every encoder sees the same images. `random` is the untrained network. Writes probes.csv (with 95 % bootstrap intervals
over patients), probes.md and probes.png.
"""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure

from monai_usfm.data import load_datalist
from monai_usfm.evaluation import (
    CaseSet,
    Interval,
    NetworkSpec,
    ProbeResult,
    add_patient_options,
    add_patients,
    attentive_probe,
    bootstrap_interval,
    classification_scores,
    dense_linear_probe,
    extract_features,
    knn_probe,
    linear_probe,
    load_cases,
    patients_of,
)
from monai_usfm.evaluation.report import conditions_of_run, markdown_table, save_figure
from monai_usfm.files import write_csv, write_text_atomically

PROBES = ("knn", "linear", "attentive", "dense")


def run_probe(
    name: str, maps: dict[str, torch.Tensor], pooled: dict, cases: dict[str, CaseSet], args: Any
) -> ProbeResult:
    """One probe, fitted on the training split and scored on the test split."""
    train, test = cases["training"], cases[args.section]
    if name == "dense":
        return dense_linear_probe(
            maps["training"], train.labels, maps[args.section], test.labels, train.patients, args.num_label_classes
        )
    classes = train.classes, test.classes
    if name == "attentive":
        return attentive_probe(maps["training"], classes[0], maps[args.section], classes[1])
    fit = {"knn": knn_probe, "linear": linear_probe}[name]
    groups = {"train_groups": train.patients} if name == "linear" else {}
    return fit(pooled["training"], classes[0], pooled[args.section], classes[1], **groups)


def interval(result: ProbeResult, metric: str, test: CaseSet) -> Interval:
    """95 % interval of the metric over the patients of the test split; none of one patient."""
    if len(set(test.patients)) < 2:
        return Interval(result.metrics[metric], math.nan, math.nan, 1)
    if metric in result.cases:
        values = result.cases[metric].numpy()
        return bootstrap_interval(lambda rows: float(values[rows].mean()), test.patients)

    def score(rows: np.ndarray) -> float:
        return classification_scores(result.output[rows], test.classes[rows])[metric]

    return bootstrap_interval(score, test.patients, resamples=1000)


def plot(path: Path, rows: list[dict]) -> None:
    shown = [row for row in rows if row["metric"] in ("macro_f1", "dice")]
    probes, encoders = (list(dict.fromkeys(row[key] for row in shown)) for key in ("probe", "encoder"))
    figure = Figure(figsize=(1.6 + 1.4 * len(probes), 3.6))
    axes = figure.add_subplot()
    width = 0.8 / len(encoders)
    for i, encoder in enumerate(encoders):
        bars = [row for row in shown if row["encoder"] == encoder]
        x = [probes.index(row["probe"]) + (i - (len(encoders) - 1) / 2) * width for row in bars]
        span = np.array([[row["value"] - row["low"], row["high"] - row["value"]] for row in bars]).T
        axes.bar(x, [row["value"] for row in bars], width, yerr=span.clip(0), capsize=2, label=encoder)
    labels = {row["probe"]: f"{row['probe']}\n{row['metric'].replace('_', ' ')}" for row in shown}
    axes.set_xticks(range(len(probes)), [labels[probe] for probe in probes])
    axes.set_ylim(0, 1)
    axes.legend(fontsize=8)
    save_figure(path, figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--datalist", type=Path, required=True, help="JSON with training and test")
    parser.add_argument("--dataset_dir", type=Path, help="folder its paths start from; default: that of the file")
    parser.add_argument("--section", default="test", help="the split to score; validation while choosing settings")
    add_patient_options(parser)
    parser.add_argument("--encoders", nargs="+", required=True, help="name=weights for each, or random")
    parser.add_argument("--network", default="usfm_vit_tiny", help="usfm_vit_tiny, usfm_vit_small or usfm_vit_base")
    parser.add_argument("--encoder_options", default="{}", help='JSON, for example {"pos_embed": "sincos"}')
    parser.add_argument("--probes", nargs="+", choices=PROBES, default=("knn", "linear"))
    parser.add_argument("--pool", choices=("mean", "class"), default="mean", help="features of knn and linear")
    parser.add_argument("--num_label_classes", type=int, default=2, help="of the dense probe, with background")
    parser.add_argument("--label_values", type=int, nargs="+", help="file values of the classes; default: 0, 1, ...")
    parser.add_argument("--size", type=int, nargs="+", default=(224, 224), help="pixels (H, W) or (D, H, W)")
    parser.add_argument("--limit", type=int, help="use only so many images of each split, for a trial")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--amp", action="store_true", help="bfloat16 autocast")
    parser.add_argument("--output", type=Path, required=True)
    args = parser.parse_args()

    folder = args.dataset_dir or args.datalist.parent
    cases = {}
    for section in ("training", args.section):
        items = load_datalist(args.datalist, folder, section)[: args.limit]
        items = add_patients(items, folder, **patients_of(args))
        cases[section] = load_cases(items, args.size, "dense" in args.probes, args.num_label_classes, args.label_values)

    for section, split in cases.items():
        if split.classes is None and set(args.probes) - {"dense"}:
            parser.error(
                f"{args.datalist}: not every item of {section!r} has an integer 'class'; only dense needs none."
            )
    rows: list[dict[str, Any]] = []
    for entry in args.encoders:
        name, _, weights = entry.partition("=")
        if not weights and name != "random":
            parser.error(f"--encoders {entry}: write name=weights, or random.")
        spec = NetworkSpec(args.network, weights or None, options=json.loads(args.encoder_options))
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            encoder = spec.build("classification", 2, args.size).encoder
        maps, pooled = {}, {}
        where = {"device": args.device, "amp": args.amp}
        for section, split in cases.items():
            if {"attentive", "dense"} & set(args.probes):
                maps[section] = extract_features(encoder, split, "tokens", **where)["features"]
            if args.pool == "mean" and section in maps:
                pooled[section] = maps[section].flatten(2).mean(2)
            else:
                pooled[section] = extract_features(encoder, split, args.pool, device=args.device, amp=args.amp)[
                    "features"
                ]
        for probe in args.probes:
            result = run_probe(probe, maps, pooled, cases, args)
            for metric, value in result.metrics.items():
                span = interval(result, metric, cases[args.section])
                rows.append(
                    {
                        "encoder": name,
                        "probe": probe,
                        "metric": metric,
                        "value": value,
                        "low": span.low,
                        "high": span.high,
                        "patients": span.count,
                        "section": args.section,
                        "training_images": len(cases["training"]),
                        "test_images": len(cases[args.section]),
                        "size": "x".join(map(str, args.size)),
                        "pool": args.pool,
                        "l2": result.settings.get("l2", ""),
                        **spec.describe(),
                        **conditions_of_run(args.device),
                    }
                )
            print(f"{name}, {probe}: " + ", ".join(f"{k} {v:.3f}" for k, v in result.metrics.items()), flush=True)
    write_csv(args.output / "probes.csv", rows)
    table = [
        (r["encoder"], r["probe"], r["metric"], f"{r['value']:.3f} [{r['low']:.3f}, {r['high']:.3f}]") for r in rows
    ]
    text = markdown_table(["encoder", "probe", "metric", f"{args.section}, 95 % interval over patients"], table)
    write_text_atomically(args.output / "probes.md", text)
    plot(args.output / "probes.png", rows)


if __name__ == "__main__":
    main()
