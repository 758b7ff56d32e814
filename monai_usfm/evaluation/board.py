# Copyright (c) monai_usfm contributors
# SPDX-License-Identifier: Apache-2.0
"""Boards: starts x tasks x shares of the labels x seeds, by the bundles' own training and evaluation."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from monai.config import PathLike

from monai_usfm.cards import network_options
from monai_usfm.data import add_patients, load_datalist
from monai_usfm.evaluation.cells import BundleTraining, label_subsets, run_cells, run_name
from monai_usfm.evaluation.report import markdown_table
from monai_usfm.evaluation.statistics import PairedTest, holm_adjust
from monai_usfm.files import read_json, save_figure, write_csv, write_text_atomically
from monai_usfm.metrics.scores import macro_f1
from monai_usfm.settings import literal, split_named_path

__all__ = ["BASELINES", "label_efficiency", "summarize_board", "transfer_board"]

PATHS = ("dataset_dir", "datalist", "label_fractions", "pretrained")
_LEVELS = {"channels": [16, 32, 64, 128, 256], "strides": [2, 2, 2, 2]}
_NESTED = {"kernel_size": [3] * 5, "strides": [1, 2, 2, 2, 2], "upsample_kernel_size": [2] * 4}
BASELINES: dict[str, dict[str, Any]] = {
    "unet": {"_target_": "UNet", **_LEVELS, "num_res_units": 2},
    "attention_unet": {"_target_": "AttentionUnet", **_LEVELS},
    "segresnet": {"_target_": "SegResNet", "init_filters": 16},
    "unetr": {"_target_": "UNETR", "hidden_size": 192, "mlp_dim": 768, "num_heads": 3},
    "dynunet": {"_target_": "DynUNet", **_NESTED},
    "densenet121": {"_target_": "DenseNet121"},
}
"""MONAI's networks with usual settings, as the bundles' ``network_def``: nothing else of the training changes."""


def transfer_board(
    board: str,
    output: str,
    *,
    tasks: Sequence[str] | None = None,
    starts: Sequence[str] | None = None,
    fractions: Sequence[float] | None = None,
    seeds: Sequence[int] | None = None,
) -> Path:
    """Fill the cells of a transfer board that are not there yet, and write its tables and figure.

    The board is a JSON file, its paths relative to its folder:

    - ``options``: of the bundles, for every cell; ``steps`` gives all networks the same number of them;
    - ``tasks``: name -> ``bundle`` (``segmentation``, the default, or ``classification``), ``datalist`` with the
      three splits, ``dataset_dir``, ``label_fractions`` (the data set's own parts), ``overlays``, ``options``;
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
        ValueError: for a board that lacks something, a task or start that it does not have, or cells made under other
            settings.
    """
    plan = _read_board(board)
    for chosen, kind in ((tasks, "tasks"), (starts, "starts")):
        unknown = [name for name in chosen or () if name not in plan[kind]]
        if unknown:
            raise ValueError(f"{board} has no {kind} {', '.join(unknown)}; it has {', '.join(plan[kind])}.")
        plan[kind] = {name: plan[kind][name] for name in chosen or plan[kind]}
    return _fill(
        {**plan, "fractions": fractions or plan["fractions"], "seeds": seeds or plan["seeds"]},
        Path(board).parent,
        output,
    )


def _read_board(board: str) -> dict[str, Any]:
    """The content of a board, checked before its first training."""
    plan = read_json(board, "board")
    wanted = ("tasks", "starts", "fractions", "seeds", "reference")
    if lacking := [name for name in wanted if plan.get(name) is None]:
        raise ValueError(f"{board}: lacks {', '.join(lacking)}.")
    if plan["reference"] not in plan["starts"]:
        raise ValueError(f"{board}: the reference {plan['reference']!r} is none of its starts.")
    for task, settings in plan["tasks"].items():
        if not settings.get("datalist"):
            raise ValueError(f"{board}: the task {task!r} has no datalist.")
        for start, options in plan["starts"].items():
            if isinstance(files := options.get("pretrained"), Mapping) and task not in files:
                raise ValueError(f"{board}: the start {start!r} has no weights for the task {task!r}.")
    return plan


def label_efficiency(
    datalist: str,
    *,
    task: str = "segmentation",
    pretrained: Sequence[str] = (),
    baselines: Sequence[str] = ("scratch",),
    fractions: Sequence[float] = (0.05, 0.1, 0.2, 0.5, 1.0),
    seeds: Sequence[int] = (0, 1, 2),
    steps: int | None = 400,
    seconds: float | None = None,
    learning_rate: float = 1e-3,
    dataset_dir: str | None = None,
    label_fractions: str | None = None,
    overlays: Sequence[str] = (),
    reference: str | None = None,
    output_dir: str = "label_efficiency",
    options: dict[str, Any] | None = None,
) -> Path:
    """Train networks on 5, 10, 20, 50 and 100 % of the labeled patients with a bundle's ``train.json``; compare them.

    It is a :func:`transfer_board` of one task. Finished cells are kept: run it again to continue, or with more seeds.

    Args:
        datalist: JSON file with ``training``, ``validation`` and ``test``.
        task: bundle: ``segmentation`` or ``classification``.
        pretrained: weights to start from, as FILE or NAME=FILE.
        baselines: ``scratch``, the bundle's network without pretrained weights, and MONAI's networks: ``unet``,
            ``attention_unet``, ``segresnet``, ``unetr``, ``dynunet``, ``densenet121``.
        fractions: of the labeled patients.
        seeds: of training; the parts of the data are the same for all.
        steps: optimizer steps of every training; None trains for the bundle's ``max_epochs``.
        seconds: computing time of every training instead of ``steps``.
        learning_rate: of all networks.
        dataset_dir: folder the paths of the datalist start from; default: that of the file.
        label_fractions: the data set's own parts; default: ``label_fractions.json`` beside the datalist, if any.
        overlays: names of further configs of the bundle.
        reference: the network that the others are compared with; default: the first.
        output_dir: folder of the results.
        options: further options of the bundle; on the command line ``--options.max_epochs 30``.

    Returns:
        The table in Markdown.

    Raises:
        ValueError: for two networks of one name, a baseline that is not known, or none to compare.
        FileNotFoundError: for parts that are not there.
    """
    given = {name: literal(value) for name, value in (options or {}).items()}
    named = [split_named_path(entry) for entry in pretrained]
    starts = {name or "pretrained": {"pretrained": path} for name, path in named}
    if len(starts) < len(named):
        raise ValueError("two networks have one name: give each weight file a name of its own, NAME=FILE.")
    for name in baselines:
        if name not in ("scratch", *BASELINES):
            raise ValueError(f"there is no baseline {name!r}; choose from scratch, {', '.join(BASELINES)}.")
        network = {} if name == "scratch" else {"network_def": _baseline(name, task, given)}
        starts[name] = {**network, "pretrained": None, "layer_decay": 1.0}  # type: ignore[dict-item]
    if not starts:
        raise ValueError("there is no network to train: give pretrained or baselines.")
    published = Path(label_fractions) if label_fractions else Path(datalist).parent / "label_fractions.json"
    if label_fractions and not published.is_file():
        raise FileNotFoundError(f"{published}: no such file; without label_fractions the parts are drawn here.")
    settings = {"bundle": task, "datalist": datalist, "dataset_dir": dataset_dir, "overlays": list(overlays)}
    parts = {"label_fractions": str(published)} if published.is_file() else {}
    budget = {"seconds": seconds} if seconds else {"steps": steps} if steps else {}
    plan = {
        "options": {**budget, "learning_rate": learning_rate, **given},
        "tasks": {task: {**settings, **parts}},
        "starts": starts,
        "fractions": fractions,
        "seeds": seeds,
        "reference": reference or next(iter(starts)),
    }
    return _fill(plan, Path(), output_dir)


def _baseline(name: str, task: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """Definition of one of MONAI's networks for the images and classes of the bundle with these options."""
    sizes = ("spatial_dims", "spatial_size", "in_channels", "num_classes")
    plan = network_options(task, **{key: options[key] for key in sizes if key in options})
    image = {"img_size": plan["spatial_size"]} if name == "unetr" else {}
    axes = {"spatial_dims": plan["spatial_dims"], "in_channels": plan["in_channels"]}
    return {**BASELINES[name], **image, **axes, "out_channels": plan["num_classes"]}


def _fill(plan: Mapping[str, Any], base: Path, output: PathLike) -> Path:
    """Make the cells of a board whose paths start from ``base``, and its tables."""
    for name in (*plan["tasks"], *plan["starts"]):
        if "/" in name or name.startswith("."):
            raise ValueError(f"the name {name!r} is to be that of files: write it without / and a dot at its begin.")
    for name in plan["tasks"]:
        task = _resolved(base, plan["tasks"][name], name)
        networks = {start: _resolved(base, settings, name) for start, settings in plan["starts"].items()}
        bundle, folder = task.get("bundle", "segmentation"), task.get("dataset_dir") or Path(task["datalist"]).parent
        required = ("image", "class" if bundle == "classification" else "label")
        splits = {
            split: add_patients(load_datalist(task["datalist"], folder, split, required=required), folder)
            for split in ("training", "validation", "test")
        }
        subsets = label_subsets(splits["training"], plan["fractions"], task.get("label_fractions"), folder)
        options = {**plan.get("options", {}), **task.get("options", {})}
        cells = Path(output) / name
        training = BundleTraining(
            bundle, networks, splits, subsets, cells / "runs", task.get("overlays", ()), **options
        )
        report = partial(print, name, flush=True)
        run_cells(training, cells, training.conditions(), plan["fractions"], plan["seeds"], report)
    return summarize_board(output, plan["reference"], list(plan["starts"]))


def _resolved(base: Path, settings: Mapping[str, Any], task: str) -> dict[str, Any]:
    """Settings with the file of this task, and paths from the folder of the board."""
    chosen = {k: v[task] if k == "pretrained" and isinstance(v, Mapping) else v for k, v in settings.items()}
    return {k: str(base / v) if k in PATHS and isinstance(v, str) else v for k, v in chosen.items()}


def summarize_board(output: PathLike, reference: str, instead: Sequence[str] = ()) -> Path:
    """Tables and figures of the cells that there are: ``cells.csv``, ``board.csv``, ``board.md`` and ``board.png``.

    Each entry is the mean over seeds of the score on the test images, Dice or, of classes, macro-F1, with a bootstrap
    interval over patients; ``seed_std`` is the standard deviation over seeds. Dice is also averaged over the tasks.
    Each start is compared with ``reference`` on that mean and on each task of classes, by a bootstrap over patients
    within tasks (two-sided, Holm-corrected for the number of comparisons), on the seeds that both have; without one in
    common there is no comparison.

    ``curves.csv`` and ``curves.png`` have the validation score after each epoch against steps and computing seconds.

    Args:
        output: folder with a folder for each task, of ``cells`` by :func:`run_cells` and the ``runs`` of them.
        reference: start that the others are compared with.
        instead: the first of these that has cells takes its place where it has none yet, and this is said.

    Raises:
        ValueError: when there are no cells, or none of ``reference`` and ``instead``.
    """
    folder = Path(output)
    scores, curves = _read(folder)
    tasks = list(dict.fromkeys(task for task, _, _ in scores))
    fractions = sorted({fraction for _, fraction, _ in scores})
    there = {name for _, _, name in scores}
    if not (references := [name for name in (reference, *instead) if name in there]):
        raise ValueError(
            f"{output}: no cell of the reference {reference!r}; there are {', '.join(sorted(there)) or 'none'}."
        )
    if references[0] != reference:  # left for another call, which must not cost this one its tables
        print(f"no cell of the reference {reference} yet: the starts are compared with {references[0]}.")
        reference = references[0]
    names = sorted(there, key=lambda name: (name != reference, name))
    metrics = {task: _metric(next(iter(group[1].values()))) for (task, _, _), group in scores.items()}
    masks = [task for task in tasks if metrics[task] == "dice"]
    compared = {task: [task] for task in tasks if task not in masks or len(masks) == 1}
    if len(masks) > 1:
        compared["mean"] = masks
    found: dict[tuple[str, str, float], dict[str, Any]] = {}
    tests: dict[tuple[str, str, float], PairedTest] = {}
    bootstrap = cache(partial(_bootstrap, scores))
    for fraction in fractions:
        for name in names:
            for task in tasks:
                if (task, fraction, name) not in scores:
                    continue
                values, draws = bootstrap((task, fraction, name), tuple(scores[task, fraction, name][1]))
                low, high = np.percentile(draws, [2.5, 97.5])
                found[name, task, fraction] = {
                    "metric": metrics[task], "score": np.mean(values), "low": low, "high": high,
                    "seeds": len(values), "seed_std": np.std(values, ddof=1) if len(values) > 1 else np.nan,
                }  # fmt: skip
            for group, members in compared.items():
                # A start is averaged over the tasks of the reference, or not at all: tasks differ in how hard they are.
                wanted = [task for task in members if (task, fraction, reference) in scores]
                if not wanted or not all((task, fraction, name) in scores for task in wanted):
                    continue
                if group == "mean":
                    mean = np.mean([found[name, task, fraction]["score"] for task in wanted])
                    found[name, group, fraction] = {"metric": "dice", "score": mean}
                shared = {task: _common(scores, task, fraction, reference, name) for task in wanted}
                if name != reference and all(shared.values()):
                    tests[name, group, fraction] = _compare(scores, bootstrap, shared, fraction, reference, name)
    adjusted = holm_adjust([test.p_value for test in tests.values()]) if tests else []
    for (key, test), p_value in zip(tests.items(), adjusted, strict=True):
        ends = {"difference_low": test.low, "difference_high": test.high}
        found[key] |= {"reference_minus_this": test.difference, **ends, "p_adjusted": p_value}
    write_csv(folder / "board.csv", [
        {"start": name, "task": task, "fraction": fraction, **row} for (name, task, fraction), row in found.items()
    ])  # fmt: skip
    columns = [(t, f) for f in fractions for t in (*tasks, "mean") if any((name, t, f) in found for name in names)]
    table = [[name, *(_shown(found.get((name, *column))) for column in columns)] for name in names]
    heads = ["start", *(f"{task}, {100 * fraction:g} %" for task, fraction in columns)]
    write_text_atomically(folder / "board.md", markdown_table(heads, table))
    _draw(folder / "board.png", names, columns, found)
    write_csv(folder / "curves.csv", curves)
    if curves:
        _draw_curves(folder / "curves.png", pd.DataFrame(curves))
    return folder / "board.md"


Cell = tuple[str, float, str]  # task, fraction, start
Cells = tuple[list[Any], dict[int, np.ndarray]]  # patients of the test cases, and what each case adds, by seed


def _read(folder: Path) -> tuple[dict[Cell, Cells], list[dict[str, Any]]]:
    """(task, fraction, start) -> its cells, of which ``cells.csv`` gets all but the cases; and their curves."""
    scores: dict[Cell, Cells] = {}
    rows, curves = [], []
    for file in sorted(folder.glob("*/cells/[!.]*.json")):
        cell = json.loads(file.read_text(encoding="utf-8"))
        task, cases = file.parent.parent.name, cell.pop("cases")
        patients, seeds = scores.setdefault((task, cell["fraction"], cell["initialization"]), (cases["patient"], {}))
        if patients != cases["patient"]:
            raise ValueError(f"{file}: other test images than the cells before it; make it again.")
        seeds[cell["seed"]] = _parts(cases)
        nested = {k: v for group in cell.values() if isinstance(group, dict) for k, v in group.items()}
        rows.append({"task": task, **{k: v for k, v in cell.items() if not isinstance(v, dict)}, **nested})
        curves += _curve(file.parent.parent / "runs", task, cell)
    write_csv(folder / "cells.csv", rows)
    return scores, curves


def _curve(runs: Path, task: str, cell: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Validation score of a cell after each epoch, from the table that its training wrote; none where that is gone."""
    start, fraction, seed = (cell[key] for key in ("initialization", "fraction", "seed"))
    file = runs / run_name(start, fraction, seed) / "metrics.csv"
    if not file.is_file():
        return []
    table = pd.read_csv(file)
    found = [name for name in ("val_mean_dice", "val_macro_f1") if name in table]
    # Every step costs the same, while the clock of a shared machine does not: the computing time goes by steps.
    second = cell["details"]["seconds"] / table["iteration"].max()
    return [
        {"start": start, "task": task, "fraction": fraction, "seed": seed}
        | {"step": step, "seconds": round(step * second, 1), "validation": score}
        for step, score in table[["iteration", *found[:1]]].dropna().itertuples(index=False)
    ]


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
    return macro_f1(sums.reshape(*sums.shape[:-1], classes, classes))


def _bootstrap(scores: Mapping[Cell, Cells], cell: Cell, seeds: Sequence[int]) -> tuple[list[float], np.ndarray]:
    """Score of each seed, and draws of their mean over patients, the same patients for every start."""
    patients, parts = scores[cell]
    place = np.unique(patients, return_inverse=True)[1]
    members = place.max() + 1
    drawn = np.random.default_rng(0).multinomial(members, np.full(members, 1 / members), size=10_000)
    sums = [np.stack([np.bincount(place, column) for column in parts[seed].T], axis=1) for seed in seeds]
    return [float(_score(s.sum(0))) for s in sums], np.mean([_score(drawn @ s) for s in sums], axis=0)


def _common(scores: Mapping[Cell, Cells], task: str, fraction: float, first: str, second: str) -> tuple[int, ...]:
    """The seeds that two starts have on a task."""
    there = scores[task, fraction, second][1]
    return tuple(seed for seed in scores[task, fraction, first][1] if seed in there)


def _compare(
    scores: Mapping[Cell, Cells],
    bootstrap: Callable[[Cell, tuple[int, ...]], tuple[list[float], np.ndarray]],
    shared: Mapping[str, tuple[int, ...]],
    fraction: float,
    first: str,
    second: str,
) -> PairedTest:
    """Mean over tasks of the difference of the scores on the seeds that both have (``shared``), by a bootstrap of the
    patients within each task."""
    values, draws, count = [], [], 0
    for task, seeds in shared.items():
        (left, left_draws), (right, right_draws) = (bootstrap((task, fraction, n), seeds) for n in (first, second))
        values.append(np.mean(left) - np.mean(right))
        draws.append(left_draws - right_draws)
        count += len(set(scores[task, fraction, first][0]))
    return PairedTest.of_draws(float(np.mean(values)), np.mean(draws, axis=0), count)


def _shown(row: Mapping[str, Any] | None) -> str:
    if row is None:
        return "-"
    text = f"{row['score']:.3f}" + (f" [{row['low']:.3f}, {row['high']:.3f}]" if "low" in row else "")
    if "p_adjusted" not in row:
        return text
    p = row["p_adjusted"]
    return f"{text}<br>{row['reference_minus_this']:+.3f}, p {'< 0.001' if p < 0.001 else f'= {p:.3f}'}"


def _draw(path: Path, names: Sequence[str], columns: Sequence[tuple[str, float]], found: Mapping) -> None:
    """Curves over the share of the labels of one task, or a heat map of several."""
    tasks, fractions = list(dict.fromkeys(t for t, _ in columns)), list(dict.fromkeys(f for _, f in columns))
    figure = Figure(figsize=(1.5 + 0.9 * max(len(columns), 5), 1.5 + 0.45 * max(len(names), 5)), layout="constrained")
    axes = figure.add_subplot()
    values = pd.DataFrame([[found.get((n, *c), {}).get("score", np.nan) for c in columns] for n in names], index=names)
    if len(tasks) == 1 and len(fractions) > 1:
        values.columns = pd.Index([100 * fraction for fraction in fractions])
        values.T.plot(ax=axes, marker="o", logx=True, grid=True)
        axes.set_xticks(values.columns, [f"{percent:g}" for percent in values.columns])
        axes.minorticks_off()
        axes.set(xlabel="labeled training patients (%)", ylabel="test Dice or macro-F1 (mean over seeds)")
    else:
        spread = values - values.max()  # colors compare the starts within a column: tasks differ in how hard they are
        axes.imshow(spread, cmap="viridis", vmin=min(-0.1, spread.min().min()), vmax=0, aspect="auto")
        for i, j in np.argwhere(values.notna().to_numpy()):
            color = "black" if spread.iloc[i, j] > -0.05 else "white"
            axes.text(j, i, f"{values.iloc[i, j]:.3f}", ha="center", va="center", fontsize=8, color=color)
        axes.set_yticks(range(len(names)), names)
        axes.set_xticks(range(len(columns)), [f"{t}\n{100 * f:g} %" for t, f in columns], fontsize=8)
        axes.set_title("test Dice or macro-F1; color: distance to the best start of the column", fontsize=9)
    save_figure(path, figure)


def _draw_curves(path: Path, curves: pd.DataFrame) -> None:
    """Validation score against steps and against seconds, mean over seeds: a row a task, two columns a fraction."""
    tasks, fractions = curves["task"].unique(), sorted(curves["fraction"].unique())
    figure = Figure(figsize=(6 * len(fractions), 0.6 + 2.4 * len(tasks)), layout="constrained")
    grid = figure.subplots(len(tasks), 2 * len(fractions), squeeze=False, sharey="row")
    colors = {start: f"C{i % 10}" for i, start in enumerate(sorted(curves["start"].unique()))}
    lines: dict[str, Any] = {}
    for axes in grid.flat:
        axes.set_visible(False)
    for (task, fraction, start), part in curves.groupby(["task", "fraction", "start"]):
        mean = part.groupby("step", as_index=False)[["seconds", "validation"]].mean()
        for i, unit in enumerate(("step", "seconds")):
            axes = grid[list(tasks).index(task), 2 * fractions.index(fraction) + i]
            axes.set_visible(True)
            (lines[start],) = axes.plot(mean[unit], mean["validation"], marker=".", color=colors[start])
            axes.set_title(f"{task}, {100 * fraction:g} %", fontsize=9)
            axes.set_xlabel({"step": "steps", "seconds": "computing time (s)"}[unit])
            axes.grid(True)
    grid[0, 0].set_ylabel("validation Dice or macro-F1")
    figure.legend(lines.values(), lines.keys(), loc="outside lower center", ncols=min(len(lines), 6))
    save_figure(path, figure)
