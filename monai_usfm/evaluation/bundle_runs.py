# Copyright (c) monai_usfm contributors
# SPDX-License-Identifier: Apache-2.0
"""Cells of a label-efficiency table or a transfer board, made by a bundle's own training and evaluation."""

from __future__ import annotations

import json
import logging
import re
import shutil
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from monai.config import PathLike

from monai_usfm.data import check_patient_leak
from monai_usfm.evaluation.label_efficiency import Cell
from monai_usfm.evaluation.report import file_digest
from monai_usfm.files import write_text_atomically
from monai_usfm.metrics.scores import classification_scores
from monai_usfm.workflow import run_bundle, steps_within

__all__ = ["BundleTraining"]

Items = Sequence[Mapping[str, Any]]


class BundleTraining:
    """Train with a bundle's ``train.json`` on a part of the labels and score the test split with its ``evaluate.json``.

    Calling it gives one cell; pass it to :func:`~monai_usfm.evaluation.run_label_efficiency` as ``train_fn``. The
    validation split chooses the weights, as in any training of the bundle; the test split is scored once, at the size
    of its files. Networks differ by options of the bundle alone: ``{"pretrained": "a.pt"}``, ``{}`` from scratch, or
    for one of MONAI ``{"network_def": {"_target_": "UNet", ...}, "layer_decay": 1.0}``.

    Args:
        bundle: task, name or folder, see :func:`~monai_usfm.workflow.find_bundle`.
        networks: name in the table -> options of the bundle.
        splits: items of ``training``, ``validation`` and ``test`` with absolute paths.
        subsets: fraction -> training items, see :func:`~monai_usfm.evaluation.label_subsets`.
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
        splits: Mapping[str, Items],
        subsets: Mapping[float, Items],
        output_dir: PathLike,
        overlays: Sequence[str] = (),
        **options: Any,
    ) -> None:
        check_patient_leak({name: [dict(item) for item in items] for name, items in splits.items()})
        self.bundle, self.overlays, self.options = bundle, tuple(overlays), options
        self.networks, self.splits, self.subsets = dict(networks), dict(splits), dict(subsets)
        self.folder = Path(output_dir)

    def conditions(self) -> dict[str, Any]:
        """Settings shared by all cells, for the table of results."""
        sizes = {f"{name}_images": len(items) for name, items in self.splits.items()}
        shown = {k: v if isinstance(v, int | float | str) else json.dumps(v) for k, v in self.options.items()}
        return {"bundle": Path(self.bundle).name, "overlays": " ".join(self.overlays), **sizes, **shown}

    def describe(self) -> dict[str, dict[str, Any]]:
        """Settings of each network, with a digest of the weights that it starts from."""
        described = {}
        for name, options in self.networks.items():
            start = options.get("pretrained")
            digest = f"sha256:{file_digest(start)}" if start else ""
            rest = {k: v for k, v in options.items() if k != "pretrained"}
            described[name] = {"pretrained": digest, "network": json.dumps(rest, sort_keys=True) if rest else ""}
        return described

    def __call__(self, fraction: float, seed: int, name: str) -> Cell:
        part = self.subsets[fraction]
        folder = self.folder / re.sub(r"\W+", "_", f"{name}_{100 * fraction:g}pct_seed{seed}")
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
            run_bundle(self.bundle, overlays=self.overlays, **shared)
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
        steps = {"steps": shared["steps"]} if "steps" in shared else {}
        details = {**steps, "images": len(part), "patients": len(patients), "seconds": round(spent)}
        return Cell(metrics=metrics, cases=cases, details=details)

    def _read(self, folder: Path) -> tuple[dict[str, float], dict[str, list[Any]]]:
        """Scores of the test split, and the columns of its cases."""
        patient = {str(item["image"]): item.get("patient", item["image"]) for item in self.splits["test"]}
        if (folder / "cases.csv").is_file():  # Dice, the mean over the classes of a case first
            dice = pd.read_csv(folder / "cases.csv").groupby("image", sort=False)["dice"].mean()
            cases = {"name": [Path(image).name for image in dice.index], "dice": dice.tolist()}
            return {"dice": float(dice.mean())}, {**cases, "patient": [patient[image] for image in dice.index]}
        table = pd.read_csv(folder / "images.csv", dtype={"class": str})
        columns = [column for column in table if column.startswith("p_")]
        labels = [columns.index(f"p_{name}") for name in table["class"]]
        probabilities = torch.from_numpy(table[columns].to_numpy(copy=True))
        return classification_scores(probabilities, torch.tensor(labels)), {
            "name": [Path(image).name for image in table["image"]],
            "patient": [patient[image] for image in table["image"]],
            "label": labels,
            **{f"probability_{i}": table[column].tolist() for i, column in enumerate(columns)},
        }
