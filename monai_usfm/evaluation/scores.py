# Copyright (c) monai_usfm contributors
# SPDX-License-Identifier: Apache-2.0
"""Scores of predicted classes and label maps: the numbers that probes and label-efficiency curves report."""

from __future__ import annotations

import torch
from monai.metrics import compute_roc_auc
from torch.nn.functional import one_hot

__all__ = ["classification_scores", "overlap_scores"]


def classification_scores(probabilities: torch.Tensor, labels: torch.Tensor, bins: int = 15) -> dict[str, float]:
    """Accuracy, balanced accuracy, macro-F1, AUC and expected calibration error of predicted class probabilities.

    Balanced accuracy is the mean recall over the classes that occur in ``labels``; macro-F1 is the mean over the
    classes that occur in ``labels`` or among the predictions. AUC is that of class 1 where there are two classes, else
    the mean of one class against the rest; it is not a number while a class is missing from ``labels``. The calibration
    error compares the largest probability with the accuracy in equal bins (Guo et al. 2017,
    https://arxiv.org/abs/1706.04599).

    Args:
        probabilities: ``(M, K)``, rows sum to one.
        labels: ``(M,)`` class indices.
        bins: confidence bins of the calibration error.

    Raises:
        ValueError: unless there is one label in ``[0, K)`` for each row.
    """
    probabilities = torch.as_tensor(probabilities).double().cpu()
    labels = torch.as_tensor(labels).long().cpu()
    if probabilities.ndim != 2 or labels.shape != probabilities.shape[:1] or len(labels) == 0:
        raise ValueError(
            f"need probabilities (M, K) and labels (M,), got {tuple(probabilities.shape)} and {tuple(labels.shape)}."
        )
    num_classes = probabilities.shape[1]
    if int(labels.min()) < 0 or int(labels.max()) >= num_classes:
        raise ValueError(
            f"labels run from {int(labels.min())} to {int(labels.max())}, outside the {num_classes} classes predicted."
        )
    confidence, predicted = probabilities.max(dim=1)
    confusion = torch.bincount(labels * num_classes + predicted, minlength=num_classes**2)
    confusion = confusion.reshape(num_classes, num_classes).double()
    hits, actual, claimed = confusion.diagonal(), confusion.sum(1), confusion.sum(0)
    seen, either = actual > 0, actual + claimed > 0

    correct = (predicted == labels).double()
    # right-closed bins (0, 1/bins], ... as in the paper's code
    which = (confidence * bins).ceil().long().sub(1).clamp(0, bins - 1)
    gaps = torch.zeros(bins, dtype=torch.float64).index_add_(0, which, correct - confidence)
    return {
        "accuracy": correct.mean().item(),
        "balanced_accuracy": (hits[seen] / actual[seen]).mean().item(),
        "macro_f1": (2 * hits[either] / (actual + claimed)[either]).mean().item(),
        "auc": _auc(probabilities, labels, seen),
        "ece": (gaps.abs().sum() / len(labels)).item(),
    }


def _auc(probabilities: torch.Tensor, labels: torch.Tensor, seen: torch.Tensor) -> float:
    if not bool(seen.all()):
        return float("nan")
    if probabilities.shape[1] == 2:
        return float(compute_roc_auc(probabilities[:, 1], labels))
    return float(compute_roc_auc(probabilities, one_hot(labels, probabilities.shape[1]), average="macro"))


def overlap_scores(prediction: torch.Tensor, label: torch.Tensor, num_classes: int) -> dict[str, float]:
    """Dice and intersection over union of one label map, each the mean over the foreground classes.

    A class that is in neither map is left out; where no foreground class is in either, both scores are 1.

    Args:
        prediction: class indices ``(*S)``.
        label: class indices ``(*S)``.
        num_classes: classes including background 0.
    """
    pairs = torch.bincount(label.flatten().long() * num_classes + prediction.flatten().long(), minlength=num_classes**2)
    confusion = pairs.reshape(num_classes, num_classes).double()
    hits = confusion.diagonal()[1:]
    total = (confusion.sum(0) + confusion.sum(1))[1:]
    present = total > 0
    if not bool(present.any()):
        return {"dice": 1.0, "iou": 1.0}
    hits, total = hits[present], total[present]
    return {"dice": (2 * hits / total).mean().item(), "iou": (hits / (total - hits)).mean().item()}
