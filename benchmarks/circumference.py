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
import json
import time
from collections import defaultdict
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from PIL import Image

from monai_usfm.data import join_table, load_datalist
from monai_usfm.evaluation.statistics import bootstrap_interval, paired_test
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
    target.parent.mkdir(parents=True, exist_ok=True)
    columns = ["patient=subject_id", "size=pixel_size_mm", "circumference=head_circumference_mm"]
    join_table(str(folder / "dataset.json"), str(folder / "labels.csv"), columns, output=str(target))
    lists = {split: load_datalist(target, folder, split) for split in ("training", "validation", "test")}
    known: dict[str, dict[str, float]] = {}
    for item in chain(*lists.values()):
        size, length = float(item.pop("size")), float(item["circumference"])
        mask = np.asarray(Image.open(item["label"])) > 0
        points = extremes_of_ellipse(fit_ellipse(torch.from_numpy(mask)))
        # A head may be cut off by the edge of the image, and an extreme of its ellipse lie beyond.
        rows, columns = mask.shape
        inside = {name: (x, y) for name, (x, y) in points.items() if 0 <= x <= columns - 1 and 0 <= y <= rows - 1}
        item |= {"spacing": [size, size], "landmarks": inside, "circumference_in_pixels": length / size}
        known[str(item["image"])] = {"size": size, "length": length}
    target.write_text(json.dumps(lists, default=str))
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
        points = dict(zip(rows["name"], zip(rows["x"], rows["y"], strict=True), strict=True))
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
    parser.add_argument("--pretrained", default="shipped")
    parser.add_argument("--steps", type=int, default=120)
    parser.add_argument("--batch_size", type=int, default=8)
    parser.add_argument("--spatial_size", type=int, nargs=2, default=[96, 128])
    parser.add_argument("--seeds", type=int, nargs="*", default=[0])
    options = parser.parse_args()
    known = write_list(options.data.resolve(), options.output / "list.json")
    rows, errors = [], defaultdict[str, list[pd.Series]](list)
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
            found = pd.Series(measured(method, folder / "evaluation", known))
            error = (found - [known[image]["length"] for image in found.index]).abs()
            errors[method].append(error)
            there = error.dropna().to_numpy()
            mean = bootstrap_interval(lambda i, values=there: values[i].mean(), range(len(there)))
            rows.append(
                [method, seed, len(there), len(error), mean.value, mean.low, mean.high, np.median(there), seconds]
            )
            print("{} seed {}: {} of {} images, {:.1f} mm [{:.1f}, {:.1f}], median {:.1f}, {:.0f} s".format(*rows[-1]))
    names = ["method", "seed", "measured", "images", "mean_error_mm", "low", "high", "median_error_mm", "seconds"]
    pd.DataFrame(rows, columns=names).to_csv(options.output / "circumference.csv", index=False)
    first, *others = options.methods
    for method in others:
        pair = pd.DataFrame({name: pd.concat(errors[name], axis=1).mean(axis=1) for name in (method, first)}).dropna()
        if len(pair) < 2:
            print(f"{method}, {first}: fewer than two images are measured by both.")
            continue
        test = paired_test(pair[method], pair[first])
        print(f"{method} minus {first}: {test.difference:.1f} mm [{test.low:.1f}, {test.high:.1f}]")


if __name__ == "__main__":
    main()
