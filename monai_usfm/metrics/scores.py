# Copyright (c) monai_usfm contributors
# SPDX-License-Identifier: Apache-2.0
"""Scores of predicted classes and label maps: the numbers that probes and label-efficiency curves report."""

from __future__ import annotations

import numpy as np
import torch
from monai.metrics import CalibrationErrorMetric
from scipy.stats import rankdata

__all__ = ["classification_scores", "overlap_scores"]


def classification_scores(probabilities: torch.Tensor, labels: torch.Tensor, bins: int | None = 15) -> dict[str, float]:
    """Accuracy, balanced accuracy, macro-F1, AUC and expected calibration error of predicted class probabilities.

    Balanced accuracy is the mean recall over the classes that occur in ``labels``; macro-F1 is the mean over the
    classes that occur in ``labels`` or among the predictions. AUC is that of class 1 where there are two classes, else
    the mean of one class against the rest; it is not a number while a class is missing from ``labels``. The calibration
    error compares the largest probability with the accuracy in equal bins (Guo et al. 2017,
    https://arxiv.org/abs/1706.04599).

    Args:
        probabilities: ``(M, K)``, rows sum to one.
        labels: ``(M,)`` class indices.
        bins: confidence bins of the calibration error; None leaves it out, for a bootstrap of another score.

    Raises:
        ValueError: unless there is one label in ``[0, K)`` for each row, and all rows hold numbers in [0, 1].
    """
    p = np.asarray(torch.as_tensor(probabilities).double().cpu())
    y = np.asarray(torch.as_tensor(labels).long().cpu())
    if p.ndim != 2 or y.shape != p.shape[:1] or len(y) == 0:
        raise ValueError(f"need probabilities (M, K) and labels (M,), got {p.shape} and {y.shape}.")
    if not ((p >= 0) & (p <= 1)).all():
        raise ValueError("probabilities must be in [0, 1]; of logits take the softmax first.")
    num_classes = p.shape[1]
    if y.min() < 0 or y.max() >= num_classes:
        raise ValueError(f"labels run from {y.min()} to {y.max()}, outside the {num_classes} classes predicted.")
    confidence, predicted = p.max(axis=1), p.argmax(axis=1)
    confusion = confusion_counts(y, predicted, num_classes)
    hits, actual = confusion.diagonal(), confusion.sum(1)
    seen = actual > 0

    correct = predicted == y
    scores = {
        "accuracy": float(correct.mean()),
        "balanced_accuracy": float((hits[seen] / actual[seen]).mean()),
        "macro_f1": float(macro_f1(confusion)),
        "auc": _auc(p, y, actual),
    }
    if bins is None:
        return scores
    # one image whose pixels are the cases, one class: whether the prediction is right
    calibration = CalibrationErrorMetric(num_bins=bins, right=True)  # bins (0, 1/bins], ... as in the paper's code
    # without aggregate(), which waits for all processes: a report is written by one
    error = calibration(
        y_pred=torch.from_numpy(confidence)[None, None], y=torch.from_numpy(correct)[None, None].double()
    )
    return {**scores, "ece": torch.as_tensor(error).item()}


def confusion_counts(labels: np.ndarray, predicted: np.ndarray, num_classes: int) -> np.ndarray:
    """Counts ``(K, K)``; rows are true classes, columns predictions."""
    counts = np.bincount(labels * num_classes + predicted, minlength=num_classes**2)
    return counts.reshape(num_classes, num_classes).astype(float)


def macro_f1(confusion: np.ndarray) -> np.ndarray:
    """``(..., K, K)`` counts -> ``(...)`` mean F1 over classes that occur in the labels or the predictions."""
    hits, total = np.diagonal(confusion, axis1=-2, axis2=-1), confusion.sum(-1) + confusion.sum(-2)
    f1 = np.divide(2 * hits, total, out=np.full(total.shape, np.nan), where=total > 0)
    return np.nanmean(f1, axis=-1)


def _auc(probabilities: np.ndarray, labels: np.ndarray, actual: np.ndarray) -> float:
    """From rank sums (Mann and Whitney): a bootstrap calls it thousands of times, and MONAI's loops over cases."""
    if (actual == 0).any() or len(actual) == 1:
        return float("nan")
    classes = range(len(actual)) if len(actual) > 2 else [1]
    areas = []
    for c in classes:
        positives, negatives = actual[c], len(labels) - actual[c]
        ranks = rankdata(probabilities[:, c])[labels == c].sum()
        areas.append((ranks - positives * (positives + 1) / 2) / (positives * negatives))
    return float(np.mean(areas))


def check_classes(prediction: torch.Tensor, label: torch.Tensor, num_classes: int) -> None:
    """Refuse label maps with values that are no class."""
    for name, found in (("prediction", prediction), ("label", label)):
        if found.numel() and not 0 <= int(found.min()) <= int(found.max()) < num_classes:
            raise ValueError(
                f"the {name} holds {int(found.min())} to {int(found.max())}, outside the {num_classes} classes."
            )


def overlap_scores(prediction: torch.Tensor, label: torch.Tensor, num_classes: int) -> dict[str, float]:
    """Dice and intersection over union of one label map, each the mean over the foreground classes.

    A class that is in neither map is left out; where no foreground class is in either, both scores are 1.

    Args:
        prediction: class indices ``(*S)``.
        label: class indices ``(*S)``.
        num_classes: classes including background 0.

    Raises:
        ValueError: for maps of different shapes, or with values that are no class.
    """
    if prediction.shape != label.shape:
        raise ValueError(f"prediction {tuple(prediction.shape)} and label {tuple(label.shape)} must have one shape.")
    check_classes(prediction, label, num_classes)
    wanted, found = (np.asarray(classes.flatten().long().cpu()) for classes in (label, prediction))
    confusion = confusion_counts(wanted, found, num_classes)
    hits = confusion.diagonal()[1:]
    total = (confusion.sum(0) + confusion.sum(1))[1:]
    present = total > 0
    if not present.any():
        return {"dice": 1.0, "iou": 1.0}
    hits, total = hits[present], total[present]
    return {"dice": float((2 * hits / total).mean()), "iou": float((hits / (total - hits)).mean())}
