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
from monai_usfm.evaluation.statistics import PairedTest, holm_adjust
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
    - ``tasks``: name -> ``bundle`` (``segmentation``, the default, or ``classification``), ``datalist`` with the
      three splits, ``dataset_dir``, ``label_fractions`` (the data set's own parts), ``options``;
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
        target = "class" if task.get("bundle") == "classification" else "label"
        splits = {
            split: load_datalist(task["datalist"], task.get("dataset_dir"), split, required=("image", target))
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

    Each entry is the mean over seeds of the score on the test images, Dice or, of classes, macro-F1, with a bootstrap
    interval over patients. Dice is also averaged over the tasks. Each start is compared with ``reference`` on that mean
    and on each task of classes, by a bootstrap over patients within tasks (two-sided, Holm-corrected for the number of
    comparisons), on the seeds that both have.

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
    metrics = {task: _metric(next(iter(group[1].values()))) for (task, _, _), group in scores.items()}
    rows: list[dict[str, Any]] = []
    tests = {}
    for fraction in fractions:
        for name in names:
            own = [task for task in tasks if (task, fraction, name) in scores]
            for task in own:
                value, draws = _bootstrap(*scores[task, fraction, name])
                low, high = np.percentile(draws, [2.5, 97.5])
                seeds = len(scores[task, fraction, name][1])
                rows.append(_row(name, task, fraction, metrics[task], value, low, high, seeds))
                if metrics[task] != "dice" and name != reference and (task, fraction, reference) in scores:
                    tests[name, task, fraction] = _compare(scores, [task], fraction, reference, name)
            # A start is averaged over the tasks of the reference, or not at all: tasks differ in how hard they are.
            wanted = [t for t in tasks if metrics[t] == "dice" and (t, fraction, reference) in scores]
            if wanted and set(wanted) <= set(own):
                values = [r["score"] for r in rows if r["start"] == name and r["fraction"] == fraction]
                mean = np.mean([v for v, task in zip(values, own, strict=True) if task in wanted])
                rows.append(_row(name, "mean", fraction, "dice", float(mean), np.nan, np.nan, 0))
                if name != reference:
                    tests[name, "mean", fraction] = _compare(scores, wanted, fraction, reference, name)
    adjusted = dict(zip(tests, holm_adjust([t.p_value for t in tests.values()]), strict=True)) if tests else {}
    for row in rows:
        key = (row["start"], row["task"], row["fraction"])
        if key in tests:
            row |= {
                "reference_minus_this": tests[key].difference,
                "difference_low": tests[key].low,
                "difference_high": tests[key].high,
                "p_adjusted": adjusted[key],
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


Cells = tuple[list[Any], dict[int, np.ndarray]]  # patients of the test cases, and what each case adds, by seed


def _read(folder: Path) -> dict[tuple[str, float, str], Cells]:
    """(task, fraction, start) -> its cells."""
    scores: dict[tuple[str, float, str], Cells] = {}
    for file in sorted(folder.glob("*/cells/[!.]*.json")):
        cell = read_cell(file)
        key = (file.parent.parent.name, cell["fraction"], cell["initialization"])
        patients, seeds = scores.setdefault(key, (cell["cases"]["patient"], {}))
        if patients != cell["cases"]["patient"]:
            raise ValueError(f"{file}: other test cases than the cells before it; make it again.")
        seeds[cell["seed"]] = _parts(cell["cases"])
    return scores


def _parts(cases: Mapping[str, Any]) -> np.ndarray:
    """What each case adds to the sums that a score is made of: Dice and 1, or its place in the confusion matrix."""
    if "dice" in cases:
        return np.stack([cases["dice"], np.ones(len(cases["dice"]))], axis=1)
    columns = [cases[f"probability_{i}"] for i in range(sum(key.startswith("probability_") for key in cases))]
    place = len(columns) * np.asarray(cases["label"]) + np.argmax(columns, axis=0)
    return np.eye(len(columns) ** 2)[place]


def _metric(parts: np.ndarray) -> str:
    return "dice" if parts.shape[1] == 2 else "macro_f1"


def _score(sums: np.ndarray) -> np.ndarray:
    """``(..., D)`` sums over cases -> ``(...)`` mean Dice, or macro-F1 over the classes that occur or are predicted."""
    if sums.shape[-1] == 2:
        return sums[..., 0] / sums[..., 1]
    classes = round(sums.shape[-1] ** 0.5)
    confusion = sums.reshape(*sums.shape[:-1], classes, classes)
    hits, total = np.diagonal(confusion, axis1=-2, axis2=-1), confusion.sum(-1) + confusion.sum(-2)
    f1 = np.divide(2 * hits, total, out=np.full(total.shape, np.nan), where=total > 0)
    return np.nanmean(f1, axis=-1)


def _bootstrap(patients: Sequence[Any], seeds: Mapping[int, np.ndarray], resamples: int = 10_000) -> tuple[float, Any]:
    """Mean over seeds of the score, and its draws over patients, the same patients for every start."""
    place = np.unique(patients, return_inverse=True)[1]
    members = place.max() + 1
    generator = np.random.default_rng(0)
    drawn = generator.multinomial(members, np.full(members, 1 / members), size=resamples)
    values, draws = [], []
    for parts in seeds.values():
        sums = np.stack([np.bincount(place, column) for column in parts.T], axis=1)
        values.append(_score(sums.sum(0)))
        draws.append(_score(drawn @ sums))
    return float(np.mean(values)), np.mean(draws, axis=0)


def _compare(
    scores: Mapping[tuple[str, float, str], Cells], tasks: Sequence[str], fraction: float, first: str, second: str
) -> PairedTest:
    """Mean over tasks of the difference of the scores, by a bootstrap of the patients within each task."""
    values, draws, count = [], [], 0
    for task in tasks:
        patients, ours = scores[task, fraction, first]
        _, theirs = scores[task, fraction, second]
        common = set(ours) & set(theirs)
        pair = [_bootstrap(patients, {s: side[s] for s in common}) for side in (ours, theirs)]
        values.append(pair[0][0] - pair[1][0])
        draws.append(pair[0][1] - pair[1][1])
        count += len(set(patients))
    means = np.mean(draws, axis=0)
    low, high = np.percentile(means, [2.5, 97.5])
    tail = (1 + min((means <= 0).sum(), (means >= 0).sum())) / (1 + len(means))
    return PairedTest(float(np.mean(values)), float(low), float(high), float(min(1.0, 2 * tail)), count, "bootstrap")


def _row(
    start: str, task: str, fraction: float, metric: str, score: float, low: float, high: float, seeds: int
) -> dict[str, Any]:
    where = {"start": start, "task": task, "fraction": fraction, "metric": metric}
    return {**where, "score": score, "low": low, "high": high, "seeds": seeds}


def _shown(row: Mapping[str, Any] | None) -> str:
    if row is None:
        return "-"
    text = f"{row['score']:.3f}"
    if np.isfinite(row["low"]):
        return f"{text} [{row['low']:.3f}, {row['high']:.3f}]"
    if "p_adjusted" not in row:
        return text
    p = row["p_adjusted"]
    return f"{text}<br>{row['reference_minus_this']:+.3f}, p {'< 0.001' if p < 0.001 else f'= {p:.3f}'}"


def _heat_map(path: Path, names: Sequence[str], columns: Sequence[tuple[str, float]], found: Mapping) -> None:
    from matplotlib.figure import Figure

    values = np.array([[found.get((n, *c), {}).get("score", np.nan) for c in columns] for n in names])
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
    axes.set_title("test Dice or macro-F1; color: distance to the best start of the column", fontsize=9)
    save_figure(path, figure)
