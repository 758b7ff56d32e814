# Copyright (c) monai_usfm contributors
# SPDX-License-Identifier: Apache-2.0
"""Label-efficiency curves: score against the fraction of labeled patients, with intervals and paired tests.

A cell is one initialization, one fraction and one seed. Each finished cell is one file, so a run can be stopped,
continued, or spread over processes; tables and the plot are made from whatever cells there are.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure
from monai.config import PathLike

from monai_usfm.data import check_patient_leak, label_fraction, load_datalist
from monai_usfm.evaluation.report import conditions_of_run, markdown_table, save_figure
from monai_usfm.evaluation.statistics import (
    PairedTest,
    holm_adjust,
    mean_interval,
    paired_bootstrap,
    paired_test,
)
from monai_usfm.files import write_csv, write_text_atomically
from monai_usfm.metrics.scores import classification_scores

__all__ = ["FRACTIONS", "Cell", "label_subsets", "run_label_efficiency", "summarize_label_efficiency"]

FRACTIONS: tuple[float, ...] = (0.05, 0.1, 0.2, 0.5, 1.0)
"""Fractions of the labeled patients that are compared."""
ENDS = ("mean", "low", "high")


@dataclass
class Cell:
    """Result of one initialization, fraction and seed.

    Args:
        metrics: scores on the test split.
        cases: columns of equal length, one entry for each test image. ``patient`` is needed; a column with the name of
            a metric holds the score of each image; classifiers give ``label`` and ``probability_0``, ``probability_1``,
            and so on.
        details: what else belongs into the table: images, steps, seconds.
    """

    metrics: dict[str, float]
    cases: dict[str, list[Any]]
    details: dict[str, Any] = field(default_factory=dict)


def label_subsets(
    items: Sequence[dict[str, Any]],
    fractions: Sequence[float] = FRACTIONS,
    published: PathLike | None = None,
    dataset_dir: PathLike | None = None,
    seed: int = 0,
) -> dict[float, list[dict[str, Any]]]:
    """Nested parts of the training items: whole patients, each class in proportion.

    Args:
        items: training items with ``patient``, and ``class`` where there are classes.
        fractions: of the patients, in (0, 1].
        published: the data set's own parts, a JSON file with lists ``training_5pct``, ``training_10pct`` and so on
            (``label_fractions.json``). A fraction it does not have is an error, so that two rules are never mixed.
        dataset_dir: folder that its paths are relative to; None is that of the file.
        seed: of the parts that are drawn here, see :func:`~monai_usfm.data.label_fraction`.

    Raises:
        ValueError: for parts that are not nested, share a patient with the rest of the training items, or hold an image
            that is not in ``items``.
    """
    place: dict[str, list[dict[str, Any]]] = {}
    for item in items:  # a cine may be listed frame by frame
        place.setdefault(str(item["image"]), []).append(item)
    subsets: dict[float, list[dict[str, Any]]] = {}
    for fraction in sorted(fractions):
        if fraction == 1:
            subsets[fraction] = list(items)
        elif published is None:
            subsets[fraction] = label_fraction(items, fraction, seed)
        else:
            names = [
                str(item["image"])
                for item in load_datalist(
                    published, dataset_dir, f"training_{_percent(fraction)}pct", check_files=False
                )
            ]
            foreign = [name for name in names if name not in place]
            if foreign:
                raise ValueError(
                    f"{published}: {len(foreign)} images of {_percent(fraction)} % are not in the training split, "
                    f"for example {foreign[0]}."
                )
            subsets[fraction] = [item for name in dict.fromkeys(names) for item in place[name]]
    smaller: set[str] = set()
    for fraction, chosen in subsets.items():
        current = {str(item["image"]) for item in chosen}
        if not smaller <= current:
            raise ValueError(f"the part of {_percent(fraction)} % does not contain the one before it.")
        rest = [item for item in items if str(item["image"]) not in current]
        check_patient_leak({f"the part of {_percent(fraction)} %": chosen, "the rest of the training items": rest})
        smaller = current
    return subsets


def run_label_efficiency(
    train_fn: Callable[[float, int, str], Cell],
    output_dir: PathLike,
    initializations: Mapping[str, Mapping[str, Any]],
    fractions: Sequence[float] = FRACTIONS,
    seeds: Sequence[int] = (0, 1, 2),
    conditions: Mapping[str, Any] | None = None,
    report: Callable[[str], None] = print,
) -> None:
    """Fill the cells that are not there yet, smallest fraction first.

    Args:
        train_fn: (fraction, seed, initialization) -> the scores of one trained network.
        output_dir: cells are kept in its folder ``cells``, one JSON file each.
        initializations: name -> its settings, which stand in the table.
        fractions: of the labeled patients.
        seeds: of training; the parts of the data are the same for all.
        conditions: settings shared by all cells.
        report: takes one line per cell.

    Raises:
        ValueError: when a cell that is there was made under other settings: they must not stand in one table.
    """
    total = len(fractions) * len(seeds) * len(initializations)
    done = 0
    for fraction in sorted(fractions):
        for seed in seeds:
            for name, settings in initializations.items():
                done += 1
                expected = _json_ready({**settings, **(conditions or {})})
                file = Path(output_dir) / "cells" / f"{name}-{_percent(fraction)}pct-seed{seed}.json"
                if file.is_file():
                    _check_conditions(file, read_cell(file)["conditions"], expected)
                    continue
                started = time.perf_counter()
                cell = train_fn(fraction, seed, name)
                content = {
                    "initialization": name,
                    "fraction": fraction,
                    "seed": seed,
                    "metrics": cell.metrics,
                    "details": cell.details,
                    "conditions": expected,
                    "run": conditions_of_run(),
                    "cases": cell.cases,
                }
                write_text_atomically(file, json.dumps(_json_ready(content)))
                shown = ", ".join(f"{k} {v:.3f}" for k, v in cell.metrics.items())
                report(
                    f"[{done}/{total}] {name}, {_percent(fraction)} %, seed {seed}: {shown} "
                    f"({time.perf_counter() - started:.0f} s)"
                )


def summarize_label_efficiency(output_dir: PathLike, primary: str, reference: str, title: str = "") -> str:
    """Make the tables and the plot from the cells in ``output_dir``; returns the Markdown.

    Writes ``cells.csv`` (one row per cell, with every setting), ``label_efficiency.csv`` (mean and 95 % Student-t
    interval over seeds for each initialization, fraction and metric; for the primary metric also the paired test),
    ``label_efficiency.md`` and ``label_efficiency.png``.

    The paired test compares ``reference`` with each other initialization at equal fractions, on the seeds both have, by
    patient: signed ranks of the scores averaged over seeds where each image has one, else a bootstrap of the difference
    of the metric (mean over seeds). p-values are corrected for their number in the table (Holm).

    Args:
        output_dir: folder of :func:`run_label_efficiency`.
        primary: metric of the plot and of the tests.
        reference: initialization that the others are compared with.
        title: of the table and the plot.

    Raises:
        ValueError: for no cells, or a ``primary`` or ``reference`` that they do not have.
    """
    folder = Path(output_dir)
    cells = [read_cell(file) for file in sorted((folder / "cells").glob("[!.]*.json"))]
    if not cells:
        raise ValueError(f"{folder / 'cells'} holds no finished cell.")
    names = list(dict.fromkeys(cell["initialization"] for cell in cells))
    if reference not in names:
        raise ValueError(f"no cell of the reference {reference!r}; there are {', '.join(names)}.")
    names = [reference, *(name for name in names if name != reference)]
    if any(primary not in cell["metrics"] for cell in cells):
        raise ValueError(f"the cells have no metric {primary!r}; they have {', '.join(cells[0]['metrics'])}.")
    cells.sort(key=lambda c: (names.index(c["initialization"]), c["fraction"], c["seed"]))
    write_csv(folder / "cells.csv", [_flat(cell) for cell in cells])

    fractions = sorted({cell["fraction"] for cell in cells})
    grid: dict[tuple[str, float], list[dict]] = {(name, f): [] for name in names for f in fractions}
    for cell in cells:
        grid[cell["initialization"], cell["fraction"]].append(cell)
    tests: dict[tuple[str, float], PairedTest] = {}
    for (name, fraction), group in grid.items():
        ours = grid[reference, fraction]
        paired = {c["seed"] for c in group} & {c["seed"] for c in ours}
        if name != reference and paired and len(set(ours[0]["cases"]["patient"])) > 1:  # one patient is no sample
            tests[name, fraction] = _compare(ours, group, primary)
    adjusted = dict(zip(tests, holm_adjust([t.p_value for t in tests.values()]) if tests else [], strict=True))

    rows = []
    for (name, fraction), group in grid.items():
        for metric in group[0]["metrics"] if group else ():
            interval = mean_interval([_number(cell["metrics"][metric]) for cell in group])
            row = {
                "initialization": name,
                "fraction": fraction,
                "images": group[0]["details"].get("images", ""),
                "patients": group[0]["details"].get("patients", ""),
                "metric": metric,
                "mean": interval.value,
                "low": interval.low,
                "high": interval.high,
                "seeds": interval.count,
            }
            test = tests.get((name, fraction)) if metric == primary else None
            if test is not None:
                row.update(
                    reference_minus_this=test.difference,
                    difference_low=test.low,
                    difference_high=test.high,
                    p_value=test.p_value,
                    p_adjusted=adjusted[name, fraction],
                    test=test.method,
                    test_patients=test.count,
                )
            rows.append(row)
    write_csv(folder / "label_efficiency.csv", rows)
    text = _markdown(grid, names, fractions, primary, tests, adjusted, title)
    write_text_atomically(folder / "label_efficiency.md", text)
    _plot(folder / "label_efficiency.png", rows, names, primary, title)
    return text


def read_cell(file: Path) -> dict[str, Any]:
    """A finished cell of :func:`run_label_efficiency`; those of version 0.6 spell its name otherwise."""
    cell = json.loads(file.read_text(encoding="utf-8"))
    cell.setdefault("initialization", cell.pop("initialisation", None))
    return cell


def _compare(ours: Sequence[dict], others: Sequence[dict], primary: str) -> PairedTest:
    """First against second at one fraction, on common seeds, by patient."""
    seeds = sorted({c["seed"] for c in ours} & {c["seed"] for c in others})
    pairs = [tuple(next(c for c in group if c["seed"] == seed) for group in (ours, others)) for seed in seeds]
    patients = pairs[0][0]["cases"]["patient"]
    for pair in pairs:
        for cell in pair:
            if cell["cases"]["patient"] != patients or cell["cases"].get("name") != pairs[0][0]["cases"].get("name"):
                raise ValueError(
                    f"{cell['initialization']}, seed {cell['seed']}: scored on other test images than "
                    f"{pairs[0][0]['initialization']}; make its cells again."
                )
    if primary in pairs[0][0]["cases"]:
        first, second = (np.mean([pair[side]["cases"][primary] for pair in pairs], axis=0) for side in (0, 1))
        return paired_test(first, second, patients)
    labels = torch.tensor(pairs[0][0]["cases"]["label"])
    probabilities = [[_probabilities(cell) for cell in pair] for pair in pairs]

    bins = 15 if primary == "ece" else None

    def difference(rows: np.ndarray) -> float:
        index = torch.from_numpy(rows)
        values = [
            [classification_scores(p[index], labels[index], bins)[primary] for p in pair] for pair in probabilities
        ]
        return float(np.mean([first - second for first, second in values]))

    return paired_bootstrap(difference, patients, resamples=1000)


def _probabilities(cell: dict) -> torch.Tensor:
    columns = sorted((k for k in cell["cases"] if k.startswith("probability_")), key=lambda k: int(k.split("_")[1]))
    return torch.tensor([cell["cases"][column] for column in columns], dtype=torch.float64).T


def _markdown(
    grid: Mapping[tuple[str, float], Sequence[dict]],
    names: Sequence[str],
    fractions: Sequence[float],
    primary: str,
    tests: Mapping[tuple[str, float], PairedTest],
    adjusted: Mapping[tuple[str, float], float],
    title: str,
) -> str:
    counts = {}
    for fraction in fractions:
        details = next(group[0]["details"] for (_, f), group in grid.items() if f == fraction and group)
        counts[fraction] = f" ({details['patients']} patients)" if "patients" in details else ""
    heads = ["initialization", *(f"{_percent(f)} %{counts[f]}" for f in fractions)]
    rows = []
    for name in names:
        row = [name]
        for fraction in fractions:
            group = grid[name, fraction]
            if not group:
                row.append("-")
                continue
            text = str(mean_interval([_number(cell["metrics"][primary]) for cell in group]))
            if (name, fraction) in tests:
                test = tests[name, fraction]
                p = adjusted[name, fraction]
                text += f"<br>{test.difference:+.3f}, p {'< 0.001' if p < 0.001 else f'= {p:.3f}'}"
            row.append(text)
        rows.append(row)
    seeds = sorted({cell["seed"] for group in grid.values() for cell in group})
    methods = sorted({test.method for test in tests.values()})
    runs = [cell["run"] for group in grid.values() for cell in group]
    devices = sorted({run["device"] for run in runs})
    commits = sorted({run["commit"] for run in runs if run["commit"]})
    first = next(group[0] for group in grid.values() if group)
    shared = {
        key: value
        for key, value in first["conditions"].items()
        if all(cell["conditions"].get(key) == value for group in grid.values() for cell in group) and value != ""
    }
    lines = [
        f"## {title}\n\n" if title else "",
        f"Test {primary}: mean and 95 % Student-t interval over seeds {', '.join(map(str, seeds))}.",
        f" Second line: {names[0]} minus this row, by patient ({', '.join(methods)}; p corrected by Holm for "
        f"{len(tests)} comparisons)."
        if tests
        else "",
        "\n\n",
        markdown_table(heads, rows),
        "\nConditions: " + ", ".join(f"{key} {value}" for key, value in shared.items()) + ".\n" if shared else "\n",
        f"Run: {', '.join(devices)}; torch {runs[0]['torch']}, MONAI {runs[0]['monai']}, ",
        f"commit {', '.join(commits) or 'unknown'}.\n",
    ]
    return "".join(lines)


def _plot(path: Path, rows: Sequence[dict], names: Sequence[str], primary: str, title: str) -> None:
    table = pd.DataFrame(rows).query("metric == @primary").assign(percent=lambda t: 100 * t["fraction"])
    mean, low, high = (table.pivot(index="percent", columns="initialization", values=v)[list(names)] for v in ENDS)
    error = np.nan_to_num(np.stack([(mean - low).to_numpy().T, (high - mean).to_numpy().T], axis=1))
    axes = Figure(figsize=(6.4, 4.4)).add_subplot()
    mean.plot(ax=axes, yerr=error, marker="o", capsize=2, logx=True, grid=True, title=title)
    axes.set_xticks(mean.index, [f"{percent:g}" for percent in mean.index])
    axes.minorticks_off()
    axes.set(xlabel="labeled training patients (%)", ylabel=f"test {primary} (mean, 95 % interval over seeds)")
    save_figure(path, axes.figure)


def _check_conditions(file: Path, found: Mapping[str, Any], expected: Mapping[str, Any]) -> None:
    keys = [key for key in {**found, **expected} if found.get(key) != expected.get(key)]
    if keys:
        changes = "; ".join(f"{key} was {found.get(key)!r}, is {expected.get(key)!r}" for key in keys)
        raise ValueError(f"{file} was made under other settings ({changes}); use another output folder or delete it.")


def _flat(cell: Mapping[str, Any]) -> dict[str, Any]:
    head = {key: cell[key] for key in ("initialization", "fraction", "seed")}
    return {**head, **cell["metrics"], **cell["details"], **cell["conditions"], **cell["run"]}


def _percent(fraction: float) -> int | float:
    percent = round(100 * fraction, 6)
    return int(percent) if percent == int(percent) else percent


def _number(value: float | None) -> float:
    return math.nan if value is None else value


def _json_ready(value: Any) -> Any:
    """What it will be once written and read: tuples become lists, NaN becomes None."""
    if isinstance(value, Mapping):
        return {str(k): _json_ready(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_json_ready(v) for v in value]
    if isinstance(value, float) and math.isnan(value):
        return None
    return value
