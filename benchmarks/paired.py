# Copyright (c) monai_usfm contributors
# SPDX-License-Identifier: Apache-2.0
"""Two evaluations of the same images, image by image: ``python benchmarks/paired.py OUT_1 OUT_2 [--dataset_dir DATA]``.

OUT are output folders of ``monai-usfm evaluate``. The interval is a bootstrap over patients, who are told by the table
or by the names of the files below DATA.
"""

import argparse
from pathlib import Path

import pandas as pd

from monai_usfm.data import add_patients
from monai_usfm.evaluation.statistics import bootstrap_interval


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("outputs", nargs=2, type=Path)
    parser.add_argument("--dataset_dir", default="/")
    parser.add_argument("--metric", default="dice")
    options = parser.parse_args()
    tables = [pd.read_csv(out / "evaluation" / "cases.csv").groupby("image", sort=False) for out in options.outputs]
    if not all(options.metric in table.first() for table in tables):
        parser.error(f"--metric {options.metric}: there is no such column in cases.csv.")
    first, second = (table[options.metric].mean() for table in tables)  # over classes and frames
    if set(first.index) != set(second.index):
        parser.error("the two evaluations are not of the same images.")
    second = second.loc[first.index]
    measured = first.notna() & second.notna()  # where a mask is empty there is no distance
    first, second, named = first[measured], second[measured], tables[0].first()
    known = "patient" in named
    items = [{"image": n, "patient": named["patient"][n] if known else None} for n in first.index]
    patients = [item["patient"] for item in add_patients(items, options.dataset_dir)]
    difference = (first - second).to_numpy()
    found = bootstrap_interval(lambda chosen: difference[chosen].mean(), patients, resamples=10_000)
    print(
        f"{options.metric}: mean {first.mean():.4f} and {second.mean():.4f}, median {first.median():.4f} and "
        f"{second.median():.4f}, below 0.5 in {(first < 0.5).sum()} and {(second < 0.5).sum()} of {len(first)}"
        f"{f', {(~measured).sum()} left out' if not measured.all() else ''}\n"
        f"first minus second {found.value:+.4f} [{found.low:.4f}, {found.high:.4f}] over "
        f"{found.count} patients; larger in {(difference > 0).sum()}, smaller in {(difference < 0).sum()}"
    )


if __name__ == "__main__":
    main()
