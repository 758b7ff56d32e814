# Copyright (c) monai_usfm contributors
# SPDX-License-Identifier: Apache-2.0
"""Scores of a classifier after each validation, and the tables and figure of an evaluation."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from ignite.engine import Engine
from matplotlib.figure import Figure
from monai.handlers import IgniteMetricHandler
from monai.metrics import CumulativeIterationMetric
from monai.utils import convert_to_tensor

from monai_usfm.files import save_figure, write_csv
from monai_usfm.handlers.report import EvaluationReport
from monai_usfm.metrics.scores import classification_scores, confusion_counts

__all__ = ["ClassificationReport", "ClassificationScore", "save_confusion"]

SCORES = ("accuracy", "balanced_accuracy", "macro_f1", "auc", "ece")


class _Score(CumulativeIterationMetric):
    """One of :func:`classification_scores` over everything seen since the last reset, in all processes."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name

    def _compute_tensor(self, y_pred: torch.Tensor, y: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return y_pred, y

    def aggregate(self) -> float:
        probabilities, labels = self.get_buffer()
        return classification_scores(probabilities, labels)[self.name]


class ClassificationScore(IgniteMetricHandler):
    """A score of :func:`~monai_usfm.metrics.scores.classification_scores` as a metric of MONAI's evaluators.

    The evaluator decollates and has probabilities ``(K,)`` under ``pred`` and a class index under ``label``.

    Args:
        score: one of ``accuracy``, ``balanced_accuracy``, ``macro_f1``, ``auc``, ``ece``.

    Raises:
        ValueError: for another name.
    """

    def __init__(self, score: str) -> None:
        if score not in SCORES:
            raise ValueError(f"score must be one of {', '.join(SCORES)}, got {score!r}.")
        super().__init__(metric_fn=_Score(score), output_transform=_pairs, save_details=False)


def _pairs(output: Sequence[Mapping[str, Any]]) -> tuple[torch.Tensor, torch.Tensor]:
    """Decollated items -> probabilities ``(B, K)`` and labels ``(B,)``."""
    probabilities = torch.stack([convert_to_tensor(item["pred"]) for item in output])
    labels = torch.tensor([int(item["label"]) for item in output], device=probabilities.device)
    return probabilities, labels


def save_confusion(
    path: str | os.PathLike, matrix: Sequence[Sequence[int]], names: Sequence[str], unit: str = "images"
) -> Path:
    """Draw a confusion matrix as a PNG: counts, and the share of the row as shade and per cent.

    Args:
        path: the file, replaced atomically.
        matrix: counts; rows are true classes, columns predictions.
        names: names of the classes.
        unit: what is counted, for the title.
    """
    from sklearn.metrics import ConfusionMatrixDisplay  # takes a second, and is needed once, at the end

    counts = np.asarray(matrix)
    shares = counts / counts.sum(axis=1, keepdims=True).clip(1)
    side = 2.2 + 0.9 * len(names)
    figure = Figure(figsize=(side, side), layout="constrained")
    display = ConfusionMatrixDisplay(shares, display_labels=[name[:24] for name in names])
    display.plot(ax=figure.subplots(), cmap="Blues", colorbar=False, im_kw={"vmin": 0, "vmax": 1}, xticks_rotation=45)
    for place, text in np.ndenumerate(display.text_):
        text.set_text(f"{counts[place]}\n{shares[place]:.0%}" if counts[place[0]].any() else "-")
    figure.suptitle(f"{counts.sum()} {unit}")
    return save_figure(path, figure, dpi=100)


class ClassificationReport(EvaluationReport):
    """Tables of probabilities, scores and a figure of the confusion matrix, written after an evaluation.

    - ``images.csv``: a row per image with its file, patient, class, predicted class and the probability of each class;
      columns that no image has a value for are left out.
    - ``patients.csv``, where the images name their ``patient``: mean probabilities over a patient's images. The class
      of a patient is that of most of its images, the smaller one where two are as frequent.
    - ``summary.json``, where the images have classes: accuracy, balanced accuracy, macro-F1, AUC, expected calibration
      error and confusion matrix (rows are true classes) over images and over patients. What cannot be computed, such
      as the AUC without images of a class, is ``null``.
    - ``confusion.png``: the confusion matrix, of patients where there are any.

    Attach it to an evaluator that decollates and has probabilities ``(K,)`` under ``pred``. Without classes, as in
    inference, only the tables are written.

    Args:
        output_dir: folder of the files, which are replaced atomically.
        names: of the classes; None counts them from 0.

    Raises:
        ValueError: during the run, if there are more or fewer names than classes.
    """

    files = ("images.csv", "patients.csv", "summary.json", "confusion.png")
    streamed = "images.csv"

    def __init__(self, output_dir: str, names: Sequence[str] | None = None) -> None:
        super().__init__(output_dir, names)
        if len(set(self.names)) < len(self.names):
            raise ValueError(f"class_names must differ, for they name columns; got {', '.join(self.names)}.")

    def collect(self, engine: Engine) -> list[dict[str, Any]]:
        rows: list[dict[str, Any]] = []
        for given, item in zip(engine.state.batch, engine.state.output, strict=True):
            probabilities = torch.as_tensor(item["pred"]).flatten().tolist()
            if self.names and len(self.names) != len(probabilities):
                raise ValueError(f"class_names has {len(self.names)} names for {len(probabilities)} classes.")
            label = item.get("label")
            row = {**self.case_of(given["image"], rows), "patient": given.get("patient")}
            rows.append({**row, "class": None if label is None else int(label), "probabilities": probabilities})
        return rows

    def shown(self, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return _table(rows, self._names(rows))

    def _names(self, rows: list[dict[str, Any]]) -> list[str]:
        return self.names or [str(number) for number in range(len(rows[0]["probabilities"]))]

    def write(self, engine: Engine, rows: list[dict[str, Any]]) -> None:
        names = self._names(rows)
        write_csv(self.folder / "images.csv", _table(rows, names))
        patients = _by_patient(rows) if all(row["patient"] is not None for row in rows) else []
        if patients:
            write_csv(self.folder / "patients.csv", _table(patients, names))
        if any(row["class"] is None for row in rows):
            engine.logger.info(f"probabilities of {len(rows)} images written to {self.folder}.")
            return
        summary: dict[str, Any] = {"classes": names, "images": _summary(rows)}
        if patients:
            summary["patients"] = _summary(patients)
        self.write_summary(engine, summary)
        unit = "patients" if patients else "images"
        save_confusion(self.folder / "confusion.png", summary[unit]["confusion_matrix"], names, unit)


def _table(rows: Sequence[Mapping[str, Any]], names: Sequence[str]) -> list[dict[str, Any]]:
    """Rows as they are shown; the columns of the probabilities are ``p_<class>``."""
    shown = ("image", "frame", "patient", "images", "class")
    keys = [key for key in shown if any(row.get(key) is not None for row in rows)]
    return [
        {key: names[row[key]] if key == "class" else row.get(key) for key in keys}
        | {"prediction": names[int(np.argmax(row["probabilities"]))]}
        | {f"p_{name}": f"{p:.6f}" for name, p in zip(names, row["probabilities"], strict=True)}
        for row in rows
    ]


def _by_patient(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """One row per patient, in the order in which they first appear; of its classes the most frequent one."""
    groups = pd.DataFrame(rows).groupby("patient", sort=False)
    return [
        {
            "patient": str(patient),
            "images": len(images),
            "class": None if images["class"].isna().any() else int(images["class"].mode()[0]),
            "probabilities": np.mean(images["probabilities"].tolist(), axis=0).tolist(),
        }
        for patient, images in groups
    ]


def _summary(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    probabilities = torch.tensor([row["probabilities"] for row in rows], dtype=torch.float64)
    labels = torch.tensor([row["class"] for row in rows])
    scores = classification_scores(probabilities, labels)
    confusion = confusion_counts(labels.numpy(), probabilities.argmax(1).numpy(), probabilities.shape[1])
    return {
        "count": len(rows),
        **scores,
        "confusion_matrix": confusion.astype(int).tolist(),
    }
