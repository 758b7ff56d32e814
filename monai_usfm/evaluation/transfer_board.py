# Copyright (c) monai_usfm contributors
# SPDX-License-Identifier: Apache-2.0
"""Transfer board: starts x tasks x shares of the labels x seeds, by the bundles' own training, with equal steps."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from monai.config import PathLike

from monai_usfm.data import load_datalist
from monai_usfm.evaluation.bundle_runs import BundleTraining
from monai_usfm.evaluation.label_efficiency import label_subsets, read_cell, run_label_efficiency
from monai_usfm.evaluation.report import markdown_table, save_figure
from monai_usfm.evaluation.statistics import PairedTest, bootstrap_interval, holm_adjust
from monai_usfm.files import write_csv, write_text_atomically

__all__ = ["summarize_board", "transfer_board"]

PATHS = ("dataset_dir", "datalist", "label_fractions", "pretrained")


def transfer_board(
    board: str,
    output: str,
    *,
    tasks: Sequence[str] | None = None,
    starts: Sequence[str] | None = None,
    fractions: Sequence[float] | None = None,
    seeds: Sequence[int] | None = None,
) -> Path:
    """Fill the cells of a transfer board that are not there yet, and write its tables and heat map.

    The board is a JSON file, its paths relative to its folder:

    - ``options``: of the bundles, for every cell; ``steps`` gives all networks the same number of them;
    - ``tasks``: name -> ``bundle`` (default ``segmentation``), ``datalist`` with the three splits, ``dataset_dir``,
      ``label_fractions`` (the data set's own parts), ``options``;
    - ``starts``: name -> options of the bundle, such as ``{"pretrained": FILE}``. A mapping of task -> FILE gives each
      task its own file, as where the start used on a task must not have seen its labels. ``{}`` starts from scratch;
    - ``fractions``, ``seeds``, and ``reference``: the start that the others are compared with.

    Args:
        board: the JSON file.
        output: folder of the results; a second call continues, or adds what the first left out.
        tasks: only these.
        starts: only these.
        fractions: only these.
        seeds: only these.

    Returns:
        The Markdown file of the table, see :func:`summarize_board`.

    Raises:
        ValueError: for a task or start that the board does not have, or cells made under other settings.
    """
    file = Path(board)
    plan = json.loads(file.read_text(encoding="utf-8"))
    for chosen, kind in ((tasks, "tasks"), (starts, "starts")):
        unknown = [name for name in chosen or () if name not in plan[kind]]
        if unknown:
            raise ValueError(f"{board} has no {kind} {', '.join(unknown)}; it has {', '.join(plan[kind])}.")
    for name in tasks or plan["tasks"]:
        task = _resolved(file.parent, plan["tasks"][name], name)
        networks = {start: _resolved(file.parent, plan["starts"][start], name) for start in starts or plan["starts"]}
        splits = {
            split: load_datalist(task["datalist"], task.get("dataset_dir"), split, required=("image", "label"))
            for split in ("training", "validation", "test")
        }
        shares = list(fractions or plan["fractions"])
        subsets = label_subsets(splits["training"], shares, task.get("label_fractions"), task.get("dataset_dir"))
        options = {**plan.get("options", {}), **task.get("options", {})}
        folder = Path(output) / name
        training = BundleTraining(
            task.get("bundle", "segmentation"), networks, splits, subsets, folder / "runs", **options
        )
        run_label_efficiency(
            training,
            folder,
            training.describe(),
            shares,
            list(seeds or plan["seeds"]),
            training.conditions(),
            report=partial(print, name, flush=True),
        )
    return summarize_board(output, plan["reference"])


def summarize_board(output: PathLike, reference: str) -> Path:
    """Tables and heat map from the cells that there are: ``board.csv``, ``board.md`` and ``board.png``.

    Each entry is the mean Dice over seeds and test images, with a bootstrap interval over patients. The last columns
    are means over the tasks; there each start is compared with ``reference`` by a bootstrap over patients within tasks
    (two-sided, Holm-corrected for the comparisons of the board), on the seeds that both have.

    Args:
        output: folder of :func:`transfer_board`: a folder with ``cells`` for each task.
        reference: start that the others are compared with.

    Raises:
        ValueError: when there are no cells, or none of ``reference``.
    """
    scores = _read(Path(output))
    tasks = list(dict.fromkeys(task for task, _, _ in scores))
    fractions = sorted({fraction for _, fraction, _ in scores})
    names = sorted({name for _, _, name in scores}, key=lambda name: (name != reference, name))
    if reference not in names:
        raise ValueError(f"{output}: no cell of the reference {reference!r}; there are {', '.join(names) or 'none'}.")
    rows: list[dict[str, Any]] = []
    tests = {}
    for fraction in fractions:
        complete = [task for task in tasks if all((task, fraction, name) in scores for name in names)]
        for name in names:
            for task in tasks:
                if (task, fraction, name) in scores:
                    patients, seeds = scores[task, fraction, name]
                    values = np.mean(list(seeds.values()), axis=0)
                    interval = bootstrap_interval(partial(_mean, values), patients)
                    rows.append(_row(name, task, fraction, interval.value, interval.low, interval.high, len(seeds)))
            if not complete:
                continue
            mean = np.mean(
                [r["dice"] for r in rows if r["start"] == name and r["fraction"] == fraction and r["task"] in complete]
            )
            rows.append(_row(name, "mean", fraction, float(mean), np.nan, np.nan, 0))
            if name != reference:
                tests[name, fraction] = _compare(scores, complete, fraction, reference, name)
    adjusted = dict(zip(tests, holm_adjust([t.p_value for t in tests.values()]), strict=True)) if tests else {}
    for row in rows:
        test = tests.get((row["start"], row["fraction"])) if row["task"] == "mean" else None
        if test is not None:
            row |= {
                "reference_minus_this": test.difference,
                "difference_low": test.low,
                "difference_high": test.high,
                "p_adjusted": adjusted[row["start"], row["fraction"]],
            }
    folder = Path(output)
    write_csv(folder / "board.csv", rows)
    columns = [(task, fraction) for fraction in fractions for task in (*tasks, "mean")]
    found = {(row["start"], row["task"], row["fraction"]): row for row in rows}
    columns = [c for c in columns if any((name, *c) in found for name in names)]
    table = [[name, *(_shown(found.get((name, *column))) for column in columns)] for name in names]
    heads = ["start", *(f"{task}, {100 * fraction:g} %" for task, fraction in columns)]
    write_text_atomically(folder / "board.md", markdown_table(heads, table))
    _heat_map(folder / "board.png", names, columns, found)
    return folder / "board.md"


def _resolved(base: Path, settings: Mapping[str, Any], task: str) -> dict[str, Any]:
    """Settings with the file of this task, and paths from the folder of the board."""
    chosen = {k: v[task] if k == "pretrained" and isinstance(v, Mapping) else v for k, v in settings.items()}
    return {k: str(base / v) if k in PATHS and isinstance(v, str) else v for k, v in chosen.items()}


def _read(folder: Path) -> dict[tuple[str, float, str], tuple[list[Any], dict[int, list[float]]]]:
    """(task, fraction, start) -> patients of the test cases, and their scores by seed."""
    scores: dict[tuple[str, float, str], tuple[list[Any], dict[int, list[float]]]] = {}
    for file in sorted(folder.glob("*/cells/[!.]*.json")):
        cell = read_cell(file)
        key = (file.parent.parent.name, cell["fraction"], cell["initialization"])
        patients, seeds = scores.setdefault(key, (cell["cases"]["patient"], {}))
        if patients != cell["cases"]["patient"]:
            raise ValueError(f"{file}: other test cases than the cells before it; make it again.")
        seeds[cell["seed"]] = cell["cases"]["dice"]
    return scores


def _mean(values: np.ndarray, rows: np.ndarray) -> float:
    return float(values[rows].mean())


def _compare(
    scores: Mapping, tasks: Sequence[str], fraction: float, first: str, second: str, resamples: int = 2000
) -> PairedTest:
    """Mean over tasks of the difference of the means, by a bootstrap of the patients within each task."""
    generator = np.random.default_rng(0)
    values, draws, count = [], [], 0
    for task in tasks:
        patients, ours = scores[task, fraction, first]
        _, theirs = scores[task, fraction, second]
        seeds = sorted(set(ours) & set(theirs))
        difference = np.mean([np.subtract(ours[s], theirs[s]) for s in seeds], axis=0)
        place = np.unique(patients, return_inverse=True)[1]
        sums, cases = np.bincount(place, difference), np.bincount(place)
        drawn = generator.integers(len(sums), size=(resamples, len(sums)))
        values.append(difference.mean())
        draws.append(sums[drawn].sum(1) / cases[drawn].sum(1))
        count += len(sums)
    means = np.mean(draws, axis=0)
    low, high = np.percentile(means, [2.5, 97.5])
    tail = (1 + min((means <= 0).sum(), (means >= 0).sum())) / (1 + resamples)
    return PairedTest(float(np.mean(values)), float(low), float(high), float(min(1.0, 2 * tail)), count, "bootstrap")


def _row(start: str, task: str, fraction: float, dice: float, low: float, high: float, seeds: int) -> dict[str, Any]:
    return {"start": start, "task": task, "fraction": fraction, "dice": dice, "low": low, "high": high, "seeds": seeds}


def _shown(row: Mapping[str, Any] | None) -> str:
    if row is None:
        return "-"
    text = f"{row['dice']:.3f}"
    if np.isfinite(row["low"]):
        return f"{text} [{row['low']:.3f}, {row['high']:.3f}]"
    if "p_adjusted" not in row:
        return text
    p = row["p_adjusted"]
    return f"{text}<br>{row['reference_minus_this']:+.3f}, p {'< 0.001' if p < 0.001 else f'= {p:.3f}'}"


def _heat_map(path: Path, names: Sequence[str], columns: Sequence[tuple[str, float]], found: Mapping) -> None:
    from matplotlib.figure import Figure

    values = np.array([[found.get((n, *c), {}).get("dice", np.nan) for c in columns] for n in names])
    figure = Figure(figsize=(1.5 + 0.9 * len(columns), 1.2 + 0.45 * len(names)))
    axes = figure.add_subplot()
    # Colors compare the starts within a column: tasks differ in how hard they are.
    spread = values - np.nanmax(values, axis=0, keepdims=True)
    axes.imshow(spread, cmap="viridis", vmin=min(-0.1, float(np.nanmin(spread))), vmax=0, aspect="auto")
    for i, j in np.argwhere(np.isfinite(values)):
        color = "black" if spread[i, j] > -0.05 else "white"
        axes.text(j, i, f"{values[i, j]:.3f}", ha="center", va="center", fontsize=8, color=color)
    axes.set_yticks(range(len(names)), names)
    axes.set_xticks(range(len(columns)), [f"{t}\n{100 * f:g} %" for t, f in columns], fontsize=8)
    axes.set_title("test Dice; color: distance to the best start of the column", fontsize=9)
    save_figure(path, figure)
