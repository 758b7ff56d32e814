# Copyright (c) monai_usfm contributors
# SPDX-License-Identifier: Apache-2.0
"""Cells of a board: one start, one share of the labels, one seed, trained and scored by a bundle itself.

Each finished cell is one file, so that a board can be stopped, continued, or spread over processes.
"""

from __future__ import annotations

import json
import logging
import re
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from monai.config import PathLike

from monai_usfm.data import check_patient_leak, label_fraction, load_datalist
from monai_usfm.evaluation.report import conditions_of_run, file_digest
from monai_usfm.files import write_text_atomically
from monai_usfm.metrics.scores import classification_scores
from monai_usfm.workflow import run_bundle, steps_within

__all__ = ["BundleTraining", "label_subsets", "run_cells"]

Item = dict[str, Any]


def label_subsets(
    items: Sequence[Item],
    fractions: Sequence[float],
    published: PathLike | None = None,
    dataset_dir: PathLike | None = None,
) -> dict[float, list[Item]]:
    """Nested parts of the training items: whole patients, each class in proportion.

    Args:
        items: training items with ``patient``, and ``class`` where there are classes.
        fractions: of the patients, in (0, 1].
        published: the data set's own parts, a JSON file with lists ``training_5pct``, ``training_10pct`` and so on
            (``label_fractions.json``). A fraction it does not have is an error, so that two rules are never mixed;
            None draws them by :func:`~monai_usfm.data.label_fraction`.
        dataset_dir: folder that its paths are relative to; None is that of the file.

    Raises:
        ValueError: for parts that are not nested, share a patient with the rest of the training items, or hold an image
            that is not in ``items``.
    """
    place: dict[str, list[Item]] = {}
    for item in items:  # a cine may be listed frame by frame
        place.setdefault(str(item["image"]), []).append(item)
    subsets: dict[float, list[Item]] = {}
    smaller: set[str] = set()
    for fraction in sorted(fractions):
        part = f"{100 * fraction:g} %"
        if fraction == 1:
            subsets[fraction] = list(items)
        elif published is None:
            subsets[fraction] = label_fraction(items, fraction)
        else:
            split = f"training_{100 * fraction:g}pct"
            chosen = load_datalist(published, dataset_dir, split, check_files=False)
            names = list(dict.fromkeys(str(item["image"]) for item in chosen))
            if foreign := [name for name in names if name not in place]:
                raise ValueError(
                    f"{published}: {len(foreign)} images of {part} are not in the training split, for example "
                    f"{foreign[0]}."
                )
            subsets[fraction] = [item for name in names for item in place[name]]
        current = {str(item["image"]) for item in subsets[fraction]}
        if not smaller <= current:
            raise ValueError(f"the part of {part} does not contain the one before it.")
        rest = [item for item in items if str(item["image"]) not in current]
        check_patient_leak({f"the part of {part}": subsets[fraction], "the rest of the training items": rest})
        smaller = current
    return subsets


def run_name(start: str, fraction: float, seed: int) -> str:
    """Name of the folder of the run that made a cell; no two cells share one, as ``a+b`` and ``a-b`` would by ``_``."""
    return re.sub(r"\W", lambda sign: f"~{ord(sign[0]):x}", f"{start}_{100 * fraction:g}pct_seed{seed}")


class BundleTraining:
    """Train with a bundle's ``train.json`` on a part of the labels and score the test split with its ``evaluate.json``.

    Calling it gives one cell, see :func:`run_cells`. The validation split chooses the weights, as in any training of
    the bundle; the test split is scored once, at the size of its files. Networks differ by options of the bundle alone:
    ``{"pretrained": "a.pt"}``, ``{}`` from scratch, or for one of MONAI ``{"network_def": {"_target_": "UNet", ...},
    "layer_decay": 1.0}``.

    Args:
        bundle: task, name or folder, see :func:`~monai_usfm.workflow.find_bundle`.
        networks: name in the table -> options of the bundle.
        splits: items of ``training``, ``validation`` and ``test`` with absolute paths.
        subsets: fraction -> training items, see :func:`label_subsets`.
        output_dir: folder for the runs; of each the tables of the evaluation stay, weights go.
        overlays: names of further configs of the bundle.
        options: options of the bundle for all networks, such as ``steps`` and ``spatial_size``; ``seconds`` instead of
            ``steps`` gives every training the same computing time.

    Raises:
        ValueError: for a patient in two splits.
    """

    def __init__(
        self,
        bundle: str,
        networks: Mapping[str, Mapping[str, Any]],
        splits: Mapping[str, Sequence[Item]],
        subsets: Mapping[float, Sequence[Item]],
        output_dir: PathLike,
        overlays: Sequence[str] = (),
        **options: Any,
    ) -> None:
        check_patient_leak(splits)
        self.bundle, self.overlays, self.options = bundle, tuple(overlays), options
        self.networks, self.splits, self.subsets = networks, splits, subsets
        self.folder = Path(output_dir)

    def conditions(self) -> dict[str, dict[str, Any]]:
        """Settings of the cells of each network, with a digest of the weights that it starts from."""
        shared: dict[str, Any] = {"bundle": Path(self.bundle).name, "overlays": " ".join(self.overlays)}
        shared |= {f"{name}_images": len(items) for name, items in self.splits.items()}
        shared |= {k: v if isinstance(v, int | float | str) else json.dumps(v) for k, v in self.options.items()}
        described = {}
        for name, options in self.networks.items():
            start, rest = options.get("pretrained"), {k: v for k, v in options.items() if k != "pretrained"}
            digest = f"sha256:{file_digest(start)}" if start else ""
            network = json.dumps(rest, sort_keys=True) if rest else ""
            described[name] = {"pretrained": digest, "network": network, **shared}
        return described

    def __call__(self, fraction: float, seed: int, name: str) -> dict[str, Any]:
        """``metrics`` of the test split, columns of its ``cases``, and ``details`` of the training."""
        part = self.subsets[fraction]
        folder = self.folder / run_name(name, fraction, seed)
        shutil.rmtree(folder, ignore_errors=True)
        datalist = folder / "datalist.json"
        write_text_atomically(datalist, json.dumps({**self.splits, "training": list(part)}))
        shared = {
            "pretrained": None,  # a bundle's own default is its shipped start, which would pass for scratch here
            **self.options,
            **self.networks[name],
            "datalist": str(datalist),
            "output_dir": str(folder),
            "export_path": str(folder / "model.pt"),
            "seed": seed,
        }
        seconds = shared.pop("seconds", None)
        logging.disable(logging.INFO)  # a table of hundreds of cells, not of thousands of lines
        try:
            if seconds:
                shared["steps"] = steps_within(seconds, self.bundle, overlays=self.overlays, **shared)
            started = time.process_time()
            flow = run_bundle(self.bundle, overlays=self.overlays, **shared)
            steps = flow.parser.get_parsed_content("train#trainer").state.iteration
            spent = time.process_time() - started
            training = ("steps", "plan#")  # what evaluation takes from the card of the weights
            scored = {k: v for k, v in shared.items() if not k.startswith(training)}
            run_bundle(self.bundle, "evaluate", overlays=self.overlays, **scored)
        finally:
            logging.disable(logging.NOTSET)
        metrics, cases = self._read(folder / "evaluation")
        for file in (*folder.glob("*.pt"), *folder.glob("checkpoints/*.pt")):
            file.unlink()
        patients = {item.get("patient", item["image"]) for item in part}
        details = {"images": len(part), "patients": len(patients), "seconds": round(spent)}
        return {"metrics": metrics, "cases": cases, "details": {"steps": steps, **details}}

    def _read(self, folder: Path) -> tuple[dict[str, float], dict[str, list[Any]]]:
        """Scores of the test split, and the columns of its cases: Dice, or the label and the probabilities."""
        patient = {str(item["image"]): item.get("patient", item["image"]) for item in self.splits["test"]}
        if (folder / "cases.csv").is_file():
            dice = pd.read_csv(folder / "cases.csv").groupby("image", sort=False)["dice"].mean()
            names, columns = dice.index, {"dice": dice.tolist()}
            metrics = {"dice": float(dice.mean())}
        else:
            # pandas would take a class named None or NA for nothing
            table = pd.read_csv(folder / "images.csv", dtype={"class": str}, keep_default_na=False)
            shares = table.filter(regex="^p_")
            labels = [shares.columns.get_loc(f"p_{name}") for name in table["class"]]
            metrics = classification_scores(torch.from_numpy(shares.to_numpy(copy=True)), torch.tensor(labels))
            names = table["image"]
            columns = {"label": labels, **{f"probability_{i}": shares[c].tolist() for i, c in enumerate(shares)}}
        return metrics, {"name": [Path(n).name for n in names], "patient": [patient[n] for n in names], **columns}


def run_cells(
    train: Callable[[float, int, str], Mapping[str, Any]],
    output_dir: PathLike,
    conditions: Mapping[str, Mapping[str, Any]],
    fractions: Sequence[float],
    seeds: Sequence[int] = (0, 1, 2),
    report: Callable[[str], None] = print,
) -> None:
    """Fill the cells that are not there yet, smallest fraction first.

    Args:
        train: (fraction, seed, start) -> the cell of one trained network, such as a :class:`BundleTraining`.
        output_dir: cells are kept in its folder ``cells``, one JSON file each.
        conditions: name of each start -> settings that its cells were made under.
        fractions: of the labeled patients.
        seeds: of training; the parts of the data are the same for all.
        report: takes one line per cell.

    Raises:
        ValueError: when a cell that is there was made under other settings: they must not stand in one table.
    """
    wanted = [(f, seed, name) for f in sorted(fractions) for seed in seeds for name in conditions]
    for number, (fraction, seed, name) in enumerate(wanted, start=1):
        file = Path(output_dir) / "cells" / f"{name}-{100 * fraction:g}pct-seed{seed}.json"
        expected = json.loads(json.dumps(conditions[name]))  # as it is once read: tuples are lists
        if file.is_file():
            found = json.loads(file.read_text(encoding="utf-8"))["conditions"]
            keys = [key for key in {**found, **expected} if found.get(key) != expected.get(key)]
            if keys:
                changes = "; ".join(f"{key} was {found.get(key)!r}, is {expected.get(key)!r}" for key in keys)
                raise ValueError(
                    f"{file} was made under other settings ({changes}); use another output folder or delete it."
                )
            continue
        started = time.perf_counter()
        cell = train(fraction, seed, name)
        content = {"initialization": name, "fraction": fraction, "seed": seed, "conditions": expected, **cell}
        write_text_atomically(file, json.dumps({**content, "run": conditions_of_run()}))
        shown = ", ".join(f"{k} {v:.3f}" for k, v in cell["metrics"].items())
        spent = time.perf_counter() - started
        report(f"[{number}/{len(wanted)}] {name}, {100 * fraction:g} %, seed {seed}: {shown} ({spent:.0f} s)")
