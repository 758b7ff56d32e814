# Copyright (c) monai_usfm contributors
# SPDX-License-Identifier: Apache-2.0
"""Head circumference by three trainings of equal budget: ``python benchmarks/circumference.py DATA_FOLDER OUTPUT``.

DATA_FOLDER is a copy of HC18 with ``dataset.json``, masks and ``labels.csv``. The same start, images, steps and image
size for each method; the test split is compared with the circumferences of the table, in mm:

- ``segmentation``: the head is segmented, an ellipse is fitted to the mask;
- ``landmarks``: the four extremes of that ellipse are found as heatmaps, and give an ellipse;
- ``number``: the circumference in pixels is regressed, with its standard deviation.
"""

from __future__ import annotations

import argparse
import csv
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from PIL import Image

from monai_usfm.metrics import ellipse_of_extremes, extremes_of_ellipse, fit_ellipse
from monai_usfm.workflow import run_bundle

POINTS = ["left", "right", "top", "bottom"]
METHODS: dict[str, tuple[str, dict[str, Any]]] = {
    "segmentation": ("segmentation", {"circumference": True}),
    "landmarks": ("segmentation", {"landmarks": POINTS}),
    "number": ("classification", {"values": ["circumference_in_pixels"]}),
}


def write_list(folder: Path, target: Path) -> dict[str, dict[str, float]]:
    """The datalist with pixel sizes, circumferences and landmarks; image -> pixel size and circumference."""
    with (folder / "labels.csv").open(newline="") as file:
        table = {row["image"]: row for row in csv.DictReader(file)}
    lists = json.loads((folder / "dataset.json").read_text())
    known: dict[str, dict[str, float]] = {}
    for split in ("training", "validation", "test"):
        for item in lists[split]:
            row = table[item["image"]]
            size, length = float(row["pixel_size_mm"]), float(row["head_circumference_mm"])
            # A head may be cut off by the edge of the image, and an extreme of its ellipse lie beyond.
            mask = np.asarray(Image.open(folder / item["label"])) > 0
            points = extremes_of_ellipse(fit_ellipse(torch.from_numpy(mask)))
            inside = {
                n: all(0 <= v <= end - 1 for v, end in zip(p, mask.shape[::-1], strict=True)) for n, p in points.items()
            }
            item |= {"image": str(folder / item["image"]), "label": str(folder / item["label"])}
            item |= {"patient": row["subject_id"], "spacing": [size, size], "circumference": length}
            item |= {
                "landmarks": {name: point for name, point in points.items() if inside[name]},
                "circumference_in_pixels": length / size,
            }
            known[item["image"]] = {"size": size, "length": length}
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(json.dumps({split: lists[split] for split in ("training", "validation", "test")}))
    return known


def measured(method: str, folder: Path, known: dict[str, dict[str, float]]) -> dict[str, float]:
    """Image -> circumference in mm by the tables of an evaluation; NaN where there is none."""
    if method == "number":
        table = pd.read_csv(folder / "values.csv")
        rows = zip(table["image"], table["value"], strict=True)
        return {image: known[image]["size"] * value for image, value in rows}
    table = pd.read_csv(folder / "cases.csv")
    if method == "segmentation":
        return dict(zip(table["image"], table["circumference"], strict=True))
    result = {}
    for image, rows in table.groupby("image"):
        points = {row.name_: (row.x, row.y) for row in rows.rename(columns={"name": "name_"}).itertuples()}
        try:
            result[image] = ellipse_of_extremes(points, known[image]["size"]).circumference
        except ValueError:  # the points are no extremes of an ellipse
            result[image] = np.nan
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("output", type=Path)
    parser.add_argument("--methods", nargs="*", default=list(METHODS), choices=list(METHODS))
    parser.add_argument("--pretrained", default="bundles/usfm_pretraining/models/model.pt")
    parser.add_argument("--steps", type=int, default=120)
    parser.add_argument("--batch_size", type=int, default=8)
    parser.add_argument("--spatial_size", type=int, nargs=2, default=[96, 128])
    parser.add_argument("--seeds", type=int, nargs="*", default=[0])
    options = parser.parse_args()
    known = write_list(options.data.resolve(), options.output / "list.json")
    draws, rows = np.random.default_rng(0), []
    for seed in options.seeds:
        for method in options.methods:
            bundle, more = METHODS[method]
            folder = options.output / f"{method}_{seed}"
            shared = {"datalist": str(options.output / "list.json"), "output_dir": str(folder), "num_workers": 0}
            shared |= {"export_path": str(folder / "model.pt"), "spatial_size": options.spatial_size, "seed": seed}
            training = {k: v for k, v in more.items() if k != "circumference"}
            budget = {"steps": options.steps, "max_epochs": 2, "warmup_epochs": 0.2, "batch_size": options.batch_size}
            begin = time.process_time()
            run_bundle(bundle, pretrained=options.pretrained, **shared, **training, **budget)
            seconds = time.process_time() - begin
            run_bundle(bundle, "evaluate", **shared, **more)
            found = measured(method, folder / "evaluation", known)
            error = np.array([abs(value - known[image]["length"]) for image, value in found.items()])
            there = error[np.isfinite(error)]
            means = draws.choice(there, (2000, len(there))).mean(1)
            low, high = np.percentile(means, [2.5, 97.5])
            rows.append([method, seed, len(there), len(error), there.mean(), low, high, np.median(there), seconds])
            print("{} seed {}: {} of {} images, {:.1f} mm [{:.1f}, {:.1f}], median {:.1f}, {:.0f} s".format(*rows[-1]))
    names = ["method", "seed", "measured", "images", "mean_error_mm", "low", "high", "median_error_mm", "seconds"]
    pd.DataFrame(rows, columns=names).to_csv(options.output / "circumference.csv", index=False)


if __name__ == "__main__":
    main()
