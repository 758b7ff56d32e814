# Copyright (c) monai_usfm contributors
# SPDX-License-Identifier: Apache-2.0
"""Scores against scikit-learn, MONAI and plain loops."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from monai.metrics import compute_dice, compute_iou
from torch.nn.functional import one_hot

from monai_usfm.handlers import score_case
from monai_usfm.metrics.scores import classification_scores, overlap_scores


def draw(num_classes: int, count: int = 200) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(num_classes)
    labels = torch.randint(num_classes, (count,), generator=generator)
    logits = torch.randn(count, num_classes, generator=generator) + 1.2 * one_hot(labels, num_classes)
    return torch.softmax(logits, 1), labels


@pytest.mark.parametrize("num_classes", [2, 4])
def test_class_scores_equal_those_of_scikit_learn(num_classes):
    metrics = pytest.importorskip("sklearn.metrics")
    probabilities, labels = draw(num_classes)
    scores, predicted = classification_scores(probabilities, labels), probabilities.argmax(1)
    assert scores["accuracy"] == pytest.approx(metrics.accuracy_score(labels, predicted))
    assert scores["balanced_accuracy"] == pytest.approx(metrics.balanced_accuracy_score(labels, predicted))
    assert scores["macro_f1"] == pytest.approx(metrics.f1_score(labels, predicted, average="macro"))
    shown = probabilities[:, 1] if num_classes == 2 else probabilities.double() / probabilities.double().sum(1, True)
    assert scores["auc"] == pytest.approx(metrics.roc_auc_score(labels, shown, multi_class="ovr"), abs=1e-6)


def test_calibration_error_equals_a_loop_over_bins():
    probabilities, labels = draw(3)
    confidence, predicted = probabilities.double().max(1)
    confidence, right = confidence.numpy(), (predicted == labels).numpy()
    expected = 0.0
    for low in np.arange(15) / 15:
        inside = (confidence > low) & (confidence <= low + 1 / 15)
        if inside.any():
            expected += inside.mean() * abs(right[inside].mean() - confidence[inside].mean())
    assert classification_scores(probabilities, labels)["ece"] == pytest.approx(expected, abs=1e-6)


def test_one_process_can_score_alone(monkeypatch):
    def wait(*_):
        raise AssertionError("a process that waits for others, which do not write the report, waits for ever")

    monkeypatch.setattr("monai.metrics.metric.evenly_divisible_all_gather", wait)
    assert classification_scores(torch.eye(2), torch.arange(2))["ece"] == 0


def test_auc_is_not_a_number_while_a_class_is_missing():
    scores = classification_scores(torch.tensor([[0.9, 0.1], [0.2, 0.8]]), torch.tensor([0, 0]))
    assert math.isnan(scores["auc"])
    assert scores["balanced_accuracy"] == 0.5
    assert scores["macro_f1"] == pytest.approx((2 / 3 + 0) / 2)


def test_labels_outside_the_classes_are_refused():
    with pytest.raises(ValueError, match="2 classes"):
        classification_scores(torch.full((2, 2), 0.5), torch.tensor([0, 2]))


@pytest.mark.parametrize("value", [float("nan"), -1.0, 3.0])
def test_what_is_no_probability_is_refused(value):
    with pytest.raises(ValueError, match=r"in \[0, 1\]"):
        classification_scores(torch.tensor([[0.5, 0.5], [0.5, value]]), torch.tensor([0, 1]))


@pytest.mark.parametrize("shape", [(9, 11), (4, 5, 6)])
def test_overlap_equals_that_of_monai(shape):
    generator = torch.Generator().manual_seed(0)
    prediction, label = torch.randint(3, (2, *shape), generator=generator)
    hot = [one_hot(x, 3).movedim(-1, 0)[None] for x in (prediction, label)]
    scores = overlap_scores(prediction, label, 3)
    assert scores["dice"] == pytest.approx(compute_dice(*hot, include_background=False).mean().item(), abs=1e-6)
    assert scores["iou"] == pytest.approx(compute_iou(*hot, include_background=False).mean().item(), abs=1e-6)


def test_overlap_of_empty_maps():
    empty, one = torch.zeros(4, 4, dtype=torch.uint8), torch.eye(4, dtype=torch.uint8)
    assert overlap_scores(empty, empty, 2) == {"dice": 1.0, "iou": 1.0}
    assert overlap_scores(empty, one, 2) == {"dice": 0.0, "iou": 0.0}
    assert overlap_scores(one, empty, 3) == {"dice": 0.0, "iou": 0.0}
    with pytest.raises(ValueError, match="one shape"):
        overlap_scores(one[:2], one[:, :2], 2)
    with pytest.raises(ValueError, match="the label holds 0 to 255"):
        score_case(one[None], 255 * one[None], 2)
