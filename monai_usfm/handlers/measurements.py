# Copyright (c) monai_usfm contributors
# SPDX-License-Identifier: Apache-2.0
"""Scores and tables of networks that measure: where landmarks lie, and numbers with their uncertainty."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ignite.engine import Engine
from monai.handlers import IgniteMetricHandler, from_engine
from monai.metrics import CumulativeIterationMetric
from PIL import Image

from monai_usfm.files import write_csv
from monai_usfm.handlers.drawing import draw_overlay, label_figure
from monai_usfm.handlers.report import EvaluationReport, known_spacing, moments, unit_of
from monai_usfm.handlers.results import CasePreviews, upright
from monai_usfm.transforms.landmarks import soft_argmax

__all__ = ["LandmarkReport", "LandmarkResults", "MeasurementError", "ValueReport"]


class _MeanError(CumulativeIterationMetric):
    def __init__(self, scale: Sequence[float] | None) -> None:
        super().__init__()
        self.scale = scale

    def _compute_tensor(self, y_pred: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        if y.dim() == 3:  # (B, K, 2): points
            return (y_pred[..., :2].float() - y.float()).norm(dim=2)
        scale = torch.ones(y.shape[1]) if self.scale is None else torch.tensor(self.scale)
        return (y_pred[..., 0].float() - y.float()).abs() / scale.to(y_pred.device)

    def aggregate(self) -> float:
        return float(self.get_buffer().nanmean())


class MeasurementError(IgniteMetricHandler):
    """Mean error of landmarks (distance in pixels of the network) or of numbers, as a metric of MONAI's evaluators.

    Args:
        scale: of numbers, what each error is divided by, such as the standard deviation over the training images.
    """

    def __init__(self, scale: Sequence[float] | None = None) -> None:
        super().__init__(_MeanError(scale), output_transform=from_engine(["pred", "label"]), save_details=False)


class LandmarkReport(EvaluationReport):
    """Writes ``cases.csv`` (a row per image and landmark) and ``summary.json`` (mean distances) after an evaluation.

    Attach it to an evaluator that decollates, with ``(K, 3)`` of :func:`~monai_usfm.transforms.soft_argmax` under
    ``pred`` and ``(K, 2)`` under ``label``, on the grid of the file. Distances and ``spread``, what the heatmap says of
    its own uncertainty, are in mm where the pixel size is known; ``x`` and ``y`` are pixels.

    Args:
        output_dir: folder of the files.
        names: of the landmarks.
    """

    def collect(self, engine: Engine) -> list[dict[str, Any]]:
        rows: list[dict[str, Any]] = []
        for given, item in zip(engine.state.batch, engine.state.output, strict=True):
            spacing, case = known_spacing(given["image"]), self.case_of(given["image"], rows, len(self.names))
            for name, found, (y, x) in zip(self.names, item["pred"], item["label"].tolist(), strict=True):
                row = _point_row(name, found.tolist(), spacing)
                steps = spacing or [1.0, 1.0]
                error = float(np.hypot((row["y"] - y) * steps[0], (row["x"] - x) * steps[1]))
                rows.append({**case, **row, "label_x": x, "label_y": y, "error": error})
        return rows

    def write(self, engine: Engine, rows: list[dict[str, Any]]) -> None:
        self.write_table("cases.csv", rows)
        summary: dict[str, Any] = {"cases": len(rows) // len(self.names)}
        for name in (*self.names, "all"):
            chosen = [row for row in rows if name in ("all", row["name"])]
            summary[name] = {"unit": unit_of([row["unit"] for row in chosen])}
            summary[name] |= _error_of([row["error"] for row in chosen])
        self.write_summary(engine, summary)


class LandmarkResults(CasePreviews):
    """A figure of each case with its landmarks, and ``landmarks.csv`` and ``landmarks.json``: ``x``, ``y`` in pixels of
    the upright image, ``spread`` in mm where the pixel size is known.

    ``pred`` has heatmaps ``(K, *axes of the file)``.

    Args:
        output_dir: folder of the results.
        names: of the landmarks.
        data_root_dir, preview: see :class:`~monai_usfm.handlers.results.CasePreviews`.
    """

    table = "landmarks"

    def draw(self, item: Mapping[str, Any], image: np.ndarray, stem: Path) -> Image.Image | None:
        spacing = known_spacing(item["loaded"])
        maps = np.stack([upright(one[None], image) for one in item["pred"]])
        points = soft_argmax(torch.from_numpy(maps)).tolist()
        rows = [_point_row(name, point, spacing) for name, point in zip(self.names, points, strict=True)]
        self.record(item, rows)
        if not self.preview:
            return None
        dots = np.zeros(image.shape, dtype=np.uint8)
        grid, radius = np.indices(image.shape), max(2, max(image.shape) // 100)
        for number, (y, x, _) in enumerate(points, start=1):
            dots[(grid[0] - y) ** 2 + (grid[1] - x) ** 2 <= radius**2] = number
        texts = [f"{r['name']}: x {r['x']:.1f}, y {r['y']:.1f}; spread {r['spread']:.1f} {r['unit']}" for r in rows]
        return label_figure(draw_overlay(image, dots, spacing), stem.name, list(enumerate(texts, start=1)))


class ValueReport(EvaluationReport):
    """Writes ``values.csv``, a row per image and number, and where images have labels ``summary.json``.

    Attach it to an evaluator that decollates, with ``(K, 2)``, estimates and standard deviations, under ``pred``, and
    where there are labels ``(K,)`` under ``label``. ``within_2_std`` is the share of the labels that lie within two
    standard deviations; 0.95 if those are right.

    Args:
        output_dir: folder of the files.
        names: of the numbers.
    """

    files = ("values.csv", "summary.json")
    streamed = "values.csv"

    def collect(self, engine: Engine) -> list[dict[str, Any]]:
        rows: list[dict[str, Any]] = []
        for given, item in zip(engine.state.batch, engine.state.output, strict=True):
            case = self.case_of(given["image"], rows, len(self.names))
            label = item.get("label")
            wanted = [None] * len(self.names) if label is None else label.tolist()
            for name, (value, std), target in zip(self.names, item["pred"].tolist(), wanted, strict=True):
                row = {**case, "name": name, "value": value, "std": std}
                rows.append(row if target is None else {**row, "label": target, "error": value - target})
        return rows

    def shown(self, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return [{k: f"{v:.5g}" if isinstance(v, float) else v for k, v in row.items()} for row in rows]

    def write(self, engine: Engine, rows: list[dict[str, Any]]) -> None:
        write_csv(self.folder / "values.csv", self.shown(rows))
        if "label" not in rows[0]:
            return
        summary: dict[str, Any] = {"cases": len(rows) // len(self.names)}
        for name in self.names:
            chosen = [row for row in rows if row["name"] == name and np.isfinite(row["error"])]
            labels, values = (np.array([row[key] for row in chosen]) for key in ("label", "value"))
            errors, stds = values - labels, np.array([row["std"] for row in chosen])
            varies = len(chosen) > 2 and labels.std() > 0 and values.std() > 0
            summary[name] = {
                **_error_of(np.abs(errors)),
                "bias": moments(errors, "bias")["bias"],
                "within_2_std": moments(np.abs(errors) <= 2 * stds, "share")["share"],
                "correlation": float(np.corrcoef(labels, values)[0, 1]) if varies else None,
            }
        self.write_summary(engine, summary)


def _point_row(name: str, found: Sequence[float], spacing: Sequence[float] | None) -> dict[str, Any]:
    """Name, place in pixels, and spread of one landmark."""
    y, x, spread = found
    unit = "px" if spacing is None else "mm"
    return {"name": name, "x": x, "y": y, "spread": spread * (np.mean(spacing) if spacing else 1.0), "unit": unit}


def _error_of(errors: Any) -> dict[str, Any]:
    """Mean, standard deviation and median of errors, of which NaN do not count."""
    known = np.asarray(errors, dtype=float)
    known = known[np.isfinite(known)]
    return {**moments(known, "error"), "error_median": float(np.median(known)) if len(known) else None}
