# Copyright (c) monai_usfm contributors
# SPDX-License-Identifier: Apache-2.0
"""A table of segmentation scores by case and class, in mm where the pixel size is known."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch
from ignite.engine import Engine
from monai.handlers import IgniteMetricHandler, from_engine
from monai.metrics import CumulativeIterationMetric, compute_dice, compute_iou
from monai.networks.utils import one_hot
from scipy.ndimage import binary_erosion, distance_transform_edt

from monai_usfm.handlers.drawing import COLORS
from monai_usfm.handlers.records import stacked
from monai_usfm.handlers.report import EvaluationReport, known_spacing, moments, over_time, unit_of
from monai_usfm.handlers.results import warn_beyond_spacing
from monai_usfm.metrics.ellipse import fit_ellipse
from monai_usfm.metrics.scores import check_classes

__all__ = ["DiceScore", "SegmentationReport", "published_circumferences", "score_case", "segmentation_panels"]

logger = logging.getLogger(__name__)


def score_case(
    prediction: torch.Tensor, label: torch.Tensor, num_classes: int, spacing: list[float] | None = None
) -> list[dict[str, Any]]:
    """Scores of every foreground class of one case.

    Dice and IoU are 1 where prediction and label are both empty. Surface distances are NaN where either is empty: there
    is no surface to measure from; how often that happens is told by ``false_negative`` and ``false_positive``.

    Args:
        prediction: class indices ``(1, *S)``.
        label: class indices ``(1, *S)``.
        num_classes: classes, background included.
        spacing: mm per sample along ``S``; None measures in pixels.

    Returns:
        One dictionary per class with ``class, dice, iou, hd95, asd, labeled, false_negative, false_positive``.

    Raises:
        ValueError: for values that are no class.
    """
    check_classes(prediction, label, num_classes)
    predicted = one_hot(prediction[None].float(), num_classes)
    wanted = one_hot(label[None].float(), num_classes)
    dice = compute_dice(predicted, wanted, include_background=False, ignore_empty=False)[0]
    iou = compute_iou(predicted, wanted, include_background=False, ignore_empty=False)[0]
    rows = []
    for number in range(1, num_classes):
        here, there = predicted[:, number : number + 1], wanted[:, number : number + 1]
        hd95, asd = _surface_distances(here[0, 0].numpy() > 0, there[0, 0].numpy() > 0, spacing)
        rows.append(
            {
                "class": number,
                "dice": dice[number - 1].item(),
                "iou": iou[number - 1].item(),
                "hd95": hd95,
                "asd": asd,
                "labeled": int(there.any()),
                "false_negative": int(there.any() and not here.any()),
                "false_positive": int(here.any() and not there.any()),
            }
        )
    return rows


def _surface_distances(
    prediction: np.ndarray, label: np.ndarray, spacing: Sequence[float] | None
) -> tuple[float, float]:
    """95th percentile of the Hausdorff distance and symmetric mean surface distance of two masks ``(*S)``.

    What MONAI's ``compute_hausdorff_distance`` and ``compute_average_surface_distance`` give, which search a tree of
    points: that takes seconds where a mask is scattered over the image. Two distance transforms serve both numbers.
    """
    if not (prediction.any() and label.any()):
        return float("nan"), float("nan")
    edges = [mask ^ binary_erosion(mask) for mask in (prediction, label)]
    ways = [distance_transform_edt(~there, sampling=spacing)[here] for here, there in (edges, edges[::-1])]
    return float(max(np.percentile(way, 95) for way in ways)), float(np.concatenate(ways).mean())


def segmentation_panels(output: Sequence[Mapping[str, Any]], num_classes: int) -> dict[str, torch.Tensor]:
    """Image | label | prediction, for :func:`~monai_usfm.handlers.save_panels`.

    Args:
        output: decollated items with ``image (C, *S)``, ``pred (1, *S)`` and, where there is one, ``label (1, *S)``; of
            items with different sizes only the first is shown, of volumes the middle slice.
        num_classes: classes, background included.
    """
    keys = [key for key in ("image", "label", "pred") if key in output[0]]
    image, *maps = stacked(output, *keys)
    titles = {"label": "label", "pred": "prediction"}
    drawn = {titles[key]: _overlay(image[:, :1], found, num_classes) for key, found in zip(keys[1:], maps, strict=True)}
    return {"image": image[:, :1], **drawn}


def _overlay(image: torch.Tensor, classes: torch.Tensor, num_classes: int) -> torch.Tensor:
    """Gray images ``(B, 1, *S)`` with colored classes ``(B, 3, *S)``."""
    color = image.expand(-1, 3, *image.shape[2:]).clone()
    for number in range(1, num_classes):
        tint = torch.tensor(COLORS[(number - 1) % len(COLORS)]).view(1, 3, *[1] * (image.dim() - 2)) / 255
        color = torch.where(classes == number, 0.55 * color + 0.45 * tint, color)
    return color


class _Dice(CumulativeIterationMetric):
    """Dice of every case and foreground class, and whether the label shows that class."""

    def __init__(self, num_classes: int, labeled_only: bool) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.labeled_only = labeled_only

    def _compute_tensor(self, y_pred: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        check_classes(y_pred, y, self.num_classes)
        predicted, wanted = (one_hot(torch.as_tensor(x).float(), self.num_classes) for x in (y_pred, y))
        dice = compute_dice(predicted, wanted, include_background=False, ignore_empty=False)
        there = wanted[:, 1:].flatten(2).any(2)
        return torch.stack([dice, there.to(dice)], dim=-1)

    def aggregate(self) -> float:
        scores = self.get_buffer()
        dice, there = scores[..., 0], scores[..., 1] > 0
        if not there.any():
            logger.warning("no case of this split shows any structure: its labels are empty, and Dice says nothing.")
        chosen = dice[there] if self.labeled_only else dice
        return float(chosen.mean())


class DiceScore(IgniteMetricHandler):
    """Mean Dice over cases and foreground classes as a metric of MONAI's evaluators.

    The one definition of this package, that of :func:`score_case`: a class that is in neither prediction nor label
    counts as 1, one in the prediction alone as 0. The evaluator decollates and has class indices ``(1, *S)`` under
    ``pred`` and ``label``.

    Args:
        num_classes: classes, background included.
        labeled_only: over those cases alone whose label shows the class; NaN where none does.
    """

    def __init__(self, num_classes: int, labeled_only: bool = False) -> None:
        super().__init__(
            metric_fn=_Dice(num_classes, labeled_only),
            output_transform=from_engine(["pred", "label"]),
            save_details=False,
        )


def published_circumferences(items: Sequence[Mapping[str, Any]]) -> dict[str | tuple[str, int], float]:
    """``circumference`` of the items that have one, as ``published`` of :class:`SegmentationReport` wants it."""
    return {
        (item["image"], item["frame"]) if isinstance(item.get("frame"), int) else item["image"]: float(
            item["circumference"]
        )
        for item in items
        if item.get("circumference") is not None
    }


class SegmentationReport(EvaluationReport):
    """Writes ``cases.csv`` (a row per case and class) and ``summary.json`` (means per class) after an evaluation.

    Attach it to an evaluator that decollates, with class indices ``(1, *S)`` under ``pred`` and ``label``. The pixel
    size is read from the image's affine, or else from the label's; where none is known (plain figures) distances are
    in pixels, and the ``unit`` column says so.

    Args:
        output_dir: folder of the files.
        num_classes: classes, background included.
        circumference: also measure the ellipse of each class in 2D, as the head circumference is
            (:func:`~monai_usfm.metrics.fit_ellipse`): columns ``circumference``, ``circumference_label`` and their
            difference ``circumference_error``, which is NaN where one of them is missing.
        published: circumferences in mm to compare with instead of the ellipse of the label where the pixel size is
            known, by the path of the image, or by (path, frame) where frames of one file are cases.
        names: of the classes, with or without the background; None leaves the column ``name`` out.
    """

    def __init__(
        self,
        output_dir: str,
        num_classes: int,
        circumference: bool = False,
        published: Mapping[str | tuple[str, int], float] | None = None,
        names: Sequence[str] | None = None,
    ) -> None:
        super().__init__(output_dir, names)
        self.num_classes = num_classes
        self.circumference = circumference
        self.published = dict(published or {})

    def collect(self, engine: Engine) -> list[dict[str, Any]]:
        rows: list[dict[str, Any]] = []
        for item in engine.state.output:
            label, prediction = item["label"], item["pred"]
            grid = label.shape[1:]
            # as in inference; programs give a mask that knows no size pixels of 1 mm
            spacing = known_spacing(item["image"], grid) or known_spacing(label, grid)
            spacing = None if over_time(item["image"]) else spacing
            if spacing:
                warn_beyond_spacing(np.asarray(label)[0], item["image"].meta)
            case = self.case_of(item["image"], rows, self.num_classes - 1)
            frame = int(item["image"].meta.get("frame", 0))
            published = self.published.get((case["image"], frame), self.published.get(case["image"]))
            for row in score_case(torch.as_tensor(prediction), torch.as_tensor(label), self.num_classes, spacing):
                if self.circumference:
                    masks = (torch.as_tensor(x) == row["class"] for x in (prediction, label))
                    ellipses = (fit_ellipse(mask, spacing or 1.0) for mask in masks)
                    found, drawn = (ellipse.circumference if ellipse else float("nan") for ellipse in ellipses)
                    expected = published if published is not None and spacing else drawn
                    row |= {"circumference": found, "circumference_label": expected}
                    row["circumference_error"] = found - expected
                row = {"class": row["class"], **self._name(row["class"]), **row}
                rows.append({**case, **row, "unit": "px" if spacing is None else "mm"})
        return rows

    def _name(self, number: int) -> dict[str, str]:
        return {"name": self.names[number - self.num_classes]} if self.names else {}  # from the last one

    def write(self, engine: Engine, rows: list[dict[str, Any]]) -> None:
        self.write_table("cases.csv", rows)
        summary: dict[str, Any] = {"cases": len(rows) // (self.num_classes - 1)}
        for number, cases in pd.DataFrame(rows).groupby("class"):
            entry: dict[str, Any] = {**self._name(int(number)), "unit": unit_of(cases["unit"].to_list())}
            for name in ("dice", "iou", "hd95", "asd", *["circumference_error"] * self.circumference):
                entry |= moments(cases[name], name)
            if self.circumference:
                error = cases["circumference_error"].abs()
                entry["circumference_absolute_error"] = moments(error, "mean")["mean"]
            entry["dice_labeled"] = moments(cases["dice"][cases["labeled"] > 0], "mean")["mean"]
            entry["false_negatives"] = int(cases["false_negative"].sum())
            entry["false_positives"] = int(cases["false_positive"].sum())
            entry["images_without"] = without = int((cases["labeled"] == 0).sum())
            entry["false_positive_rate"] = entry["false_positives"] / without if without else None
            summary[f"class_{number}"] = entry
        self.write_summary(engine, summary)
