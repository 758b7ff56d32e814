# Copyright (c) monai_usfm contributors
# SPDX-License-Identifier: Apache-2.0
"""Probes of encoders on a datalist: the tables and the figure behind ``monai-usfm probe``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure

from monai_usfm.cards import build_network
from monai_usfm.evaluation.features import extract_features
from monai_usfm.evaluation.images import ImageSet, load_images, read_items
from monai_usfm.evaluation.probes import ProbeResult, attentive_probe, dense_linear_probe, knn_probe, linear_probe
from monai_usfm.evaluation.report import conditions_of_run, file_digest, markdown_table, save_figure
from monai_usfm.evaluation.statistics import Interval, bootstrap_interval
from monai_usfm.files import write_csv, write_text_atomically
from monai_usfm.metrics.scores import classification_scores
from monai_usfm.settings import split_named_path

__all__ = ["probe"]


def probe(
    datalist: str,
    encoders: Sequence[str],
    *,
    probes: Sequence[Literal["knn", "linear", "attentive", "dense"]] = ("knn", "linear"),
    pool: Literal["mean", "class"] = "mean",
    split: str = "test",
    dataset_dir: str | None = None,
    spatial_size: tuple[int, ...] = (224, 224),
    num_classes: int = 2,
    label_values: Sequence[int] | None = None,
    limit: int | None = None,
    device: str = "cuda" if torch.cuda.is_available() else "cpu",
    amp: bool = False,
    output_dir: str = "probes",
) -> Path:
    """Probe frozen encoders: nearest neighbors, linear, attentive (classes) and dense linear (label maps).

    Every encoder sees the same images. Writes ``probes.csv`` with 95 % bootstrap intervals over patients, ``probes.md``
    and ``probes.png``.

    Args:
        datalist: JSON file with ``training`` and the split that is scored.
        encoders: weights, own or published, as FILE or NAME=FILE; ``random`` is the untrained tiny encoder.
        probes: which ones; ``dense`` needs label maps, the others need classes.
        pool: features of ``knn`` and ``linear``.
        split: the split to score; ``validation`` while settings are being chosen.
        dataset_dir: folder the paths of the datalist start from; default: that of the file.
        spatial_size: pixels (H, W) or (D, H, W).
        num_classes: classes of the label maps, with background.
        label_values: file values of the classes; default: 0, 1, ...
        limit: use only so many images of each split, for a trial.
        device: where the encoders run.
        amp: bfloat16 autocast.
        output_dir: folder of the results.

    Returns:
        The table.

    Raises:
        ValueError: for items without what a probe needs.
    """
    sets = {}
    for name in ("training", split):
        items = read_items(datalist, name, dataset_dir, limit)
        sets[name] = load_images(items, spatial_size, num_classes if "dense" in probes else 0, label_values)
        if sets[name].classes is None and set(probes) - {"dense"}:
            raise ValueError(f"{datalist}: not every item of {name!r} has an integer 'class'; only dense needs none.")
    rows = []
    for entry in encoders:
        title, path = split_named_path(entry)
        title = title or Path(path).stem
        weights = None if path == "random" else path
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            encoder = build_network("encoder", weights, spatial_size=list(spatial_size))
        wanted = {"tokens"} if {"attentive", "dense"} & set(probes) else set()
        wanted |= {pool} if {"knn", "linear"} & set(probes) else set()
        features = {
            (kind, name): extract_features(encoder, images, kind, device=device, amp=amp)
            for kind in wanted
            for name, images in sets.items()
        }
        for kind in probes:
            form = "tokens" if kind in ("attentive", "dense") else pool
            x = features[form, "training"], features[form, split]
            result = _run(kind, x, sets["training"], sets[split], num_classes)
            for metric, value in result.metrics.items():
                span = _interval(result, metric, sets[split])
                rows.append(
                    {
                        "encoder": title,
                        "weights": f"sha256:{file_digest(weights)}" if weights else "",
                        "probe": kind,
                        "metric": metric,
                        "value": value,
                        "low": span.low,
                        "high": span.high,
                        "patients": span.count,
                        "split": split,
                        "training_images": len(sets["training"]),
                        "test_images": len(sets[split]),
                        "size": "x".join(map(str, spatial_size)),
                        "pool": form,
                        "l2": result.settings.get("l2", ""),
                        **conditions_of_run(device),
                    }
                )
            print(f"{title}, {kind}: " + ", ".join(f"{k} {v:.3f}" for k, v in result.metrics.items()), flush=True)
    folder = Path(output_dir)
    table = write_csv(folder / "probes.csv", rows)
    shown = [
        (r["encoder"], r["probe"], r["metric"], str(Interval(r["value"], r["low"], r["high"], r["patients"])))
        for r in rows
    ]
    text = markdown_table(["encoder", "probe", "metric", f"{split}, 95 % interval over patients"], shown)
    write_text_atomically(folder / "probes.md", text)
    _plot(folder / "probes.png", pd.DataFrame(rows))
    return table


def _run(
    kind: str, x: tuple[torch.Tensor, torch.Tensor], train: ImageSet, test: ImageSet, num_classes: int
) -> ProbeResult:
    """One probe, fitted on the training split and scored on the other."""
    if kind == "dense":
        assert train.labels is not None and test.labels is not None  # read when the dense probe is wanted
        return dense_linear_probe(x[0], train.labels, x[1], test.labels, train.patients, num_classes)
    assert train.classes is not None and test.classes is not None  # checked when they were read
    if kind == "linear":
        return linear_probe(x[0], train.classes, x[1], test.classes, train.patients)
    fit = knn_probe if kind == "knn" else attentive_probe
    return fit(x[0], train.classes, x[1], test.classes)


def _interval(result: ProbeResult, metric: str, test: ImageSet) -> Interval:
    """95 % interval of the metric over the patients of the test split; none of one patient."""
    if metric in result.cases:
        values = result.cases[metric].numpy()
        return bootstrap_interval(lambda rows: float(values[rows].mean()), test.patients)
    classes = test.classes

    def score(rows: np.ndarray) -> float:
        bins = 15 if metric == "ece" else None
        return classification_scores(result.output[rows], classes[rows], bins)[metric]  # type: ignore[index]

    return bootstrap_interval(score, test.patients, resamples=1000)


def _plot(path: Path, table: pd.DataFrame) -> None:
    """Bars of macro-F1 and Dice, a group for each probe."""
    shown = table[table["metric"].isin(["macro_f1", "dice"])]
    order = [f"{p}\n{m.replace('_', ' ')}" for p, m in shown[["probe", "metric"]].drop_duplicates().values]
    shown = shown.assign(group=shown["probe"] + "\n" + shown["metric"].str.replace("_", " "))
    value, low, high = (
        shown.pivot(index="group", columns="encoder", values=v).reindex(order) for v in ("value", "low", "high")
    )
    error = np.nan_to_num(np.stack([(value - low).to_numpy().T, (high - value).to_numpy().T], axis=1)).clip(0)
    figure = Figure(figsize=(1.6 + 1.4 * len(order), 3.6))
    axes = figure.add_subplot()
    value.plot.bar(ax=axes, yerr=error, capsize=2, rot=0, ylim=(0, 1), xlabel="")
    axes.legend(fontsize=8)
    save_figure(path, figure)
