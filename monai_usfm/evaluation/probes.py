# Copyright (c) monai_usfm contributors
# SPDX-License-Identifier: Apache-2.0
"""Probes of frozen features: nearest neighbors, linear, dense linear and attentive.

A probe says what an encoder has learned without training it further. None of them looks at the test data before the
scores: standardization, the strength of regularization and the weights come from the training data alone.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import torch
import torch.nn as nn
import torch.nn.functional as F
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss
from sklearn.model_selection import StratifiedGroupKFold
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler

from monai_usfm.metrics.scores import classification_scores, overlap_scores
from monai_usfm.networks.nets.classifier import AttentionPool

__all__ = [
    "L2_GRID",
    "ProbeResult",
    "attentive_probe",
    "dense_linear_probe",
    "grouped_folds",
    "knn_probe",
    "linear_probe",
]

L2_GRID: tuple[float, ...] = (1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0)
"""Strengths tried by the linear probes, relative to the mean cross-entropy of standardized features."""


@dataclass
class ProbeResult:
    """What a probe found.

    Args:
        metrics: scores on the test data.
        output: class probabilities ``(M, K)``, or predicted label maps ``(M, *S)`` for the dense probe.
        cases: the scores that exist for each test image alone, (M,) each.
        settings: what the probe chose on the training data, and its fixed settings.
    """

    metrics: dict[str, float]
    output: torch.Tensor
    cases: dict[str, torch.Tensor] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)


def knn_probe(
    train_x: torch.Tensor,
    train_y: torch.Tensor,
    test_x: torch.Tensor,
    test_y: torch.Tensor,
    k: int = 20,
    temperature: float = 0.07,
) -> ProbeResult:
    """Weighted nearest-neighbor vote: the ``k`` nearest by cosine similarity ``s``, each with weight ``exp(s / T)``.

    Wu et al. 2018, https://arxiv.org/abs/1805.01978. With fewer than ``k`` training images all of them vote.

    Args:
        train_x: features ``(M, E)``.
        train_y: class indices (M,).
        test_x: features ``(M', E)``.
        test_y: class indices (M',).
        k: neighbors.
        temperature: ``T`` above.

    Raises:
        ValueError: for features and labels that do not fit together, or unless ``k`` and ``temperature`` are positive.
    """
    if k < 1 or temperature <= 0:
        raise ValueError(f"k and temperature must be positive, got k={k}, temperature={temperature}.")
    num_classes = _checked_classes(train_x, train_y, test_x, test_y)
    k = min(k, len(train_x))

    def votes(distance: np.ndarray) -> np.ndarray:  # less the nearest, without overflow at low temperatures
        return np.exp((distance.min(axis=1, keepdims=True) - distance) / temperature)

    model = KNeighborsClassifier(k, metric="cosine", weights=votes).fit(_rows(train_x), _array(train_y))
    probabilities = _all_classes(model.predict_proba(_rows(test_x)), model.classes_, num_classes)
    return _classified(probabilities, test_y, {"k": k, "temperature": temperature})


def linear_probe(
    train_x: torch.Tensor,
    train_y: torch.Tensor,
    test_x: torch.Tensor,
    test_y: torch.Tensor,
    train_groups: Sequence[Hashable] | None = None,
    l2: Sequence[float] = L2_GRID,
    folds: int = 5,
    seed: int = 0,
) -> ProbeResult:
    """Multinomial logistic regression on standardized features; the L2 penalty is swept on training folds only.

    scikit-learn's ``LogisticRegression`` with ``C = 1 / (l2 * M)``: it minimizes ``mean cross-entropy + l2 / 2 *
    ||W||^2``, the offset without penalty. The penalty is the one with the lowest cross-entropy on held-out training
    folds (:func:`grouped_folds`); the features are standardized within each fold.

    Args:
        train_x: features ``(M, E)``.
        train_y: class indices (M,).
        test_x: features ``(M', E)``.
        test_y: class indices (M',).
        train_groups: the patient of each training image; None takes every image for a patient.
        l2: penalties to choose from; a single one is used as it is.
        folds: folds of the choice; fewer where the rarest class has fewer patients.
        seed: of the folds.

    Raises:
        ValueError: for features and labels that do not fit together, no penalty, or a class with one patient only while
            there is a choice of penalties.
    """
    num_classes = _checked_classes(train_x, train_y, test_x, test_y)
    classes = _array(train_y)
    splits = grouped_folds(classes.tolist(), train_groups, folds, seed) if len(l2) > 1 else []
    model, chosen, losses = _logistic_regression(_rows(train_x), classes, np.ones(len(classes)), l2, splits)
    probabilities = _all_classes(model.predict_proba(_rows(test_x)), model.classes_, num_classes)
    return _classified(probabilities, test_y, {"l2": chosen, "cross_validation_loss": losses})


def dense_linear_probe(
    train_x: torch.Tensor,
    train_y: torch.Tensor,
    test_x: torch.Tensor,
    test_y: torch.Tensor,
    train_groups: Sequence[Hashable] | None = None,
    num_classes: int = 2,
    l2: Sequence[float] = (1e-4, 1e-3, 1e-2, 1e-1),
    folds: int = 3,
    seed: int = 0,
) -> ProbeResult:
    """Linear segmentation from single tokens: logistic regression per token, its logits upsampled to pixels.

    The target of a token is the share of each class in its patch, so the fit is convex and has no seed of its own. A
    fraction (0, 0.25 ... 1) of the log class frequencies is taken off the logits, the one with the best Dice on up to
    100 training images; without it a structure that covers little of the image would rarely win a pixel. Dice and IoU
    are those of the label map at the resolution of ``test_y``, per image, mean over foreground classes.

    Args:
        train_x: feature maps ``(M, E, *grid)``, from ``extract_features(..., pool="tokens")``.
        train_y: label maps ``(M, *S)`` of class indices.
        test_x: feature maps ``(M', E, *grid)``.
        test_y: label maps ``(M', *S)``.
        train_groups: the patient of each training image; None takes every image for a patient.
        num_classes: classes including background 0.
        l2: penalties to choose from on training folds, as in :func:`linear_probe`.
        folds: folds of the choice.
        seed: of the folds.

    Raises:
        ValueError: for maps that do not fit together or labels outside the classes.
    """
    for x, y, name in ((train_x, train_y, "train"), (test_x, test_y, "test")):
        if x.ndim not in (4, 5) or y.ndim != x.ndim - 1 or len(x) != len(y) or len(x) == 0:
            raise ValueError(
                f"{name}: need maps (M, E, *grid) and label maps (M, *S), got {tuple(x.shape)} and {tuple(y.shape)}."
            )
        if int(y.max()) >= num_classes or int(y.min()) < 0:
            raise ValueError(
                f"{name} label maps hold {int(y.min())} to {int(y.max())}, outside the {num_classes} classes; "
                "set num_classes, or map the values to class indices."
            )
    groups = list(train_groups) if train_groups is not None else list(range(len(train_x)))
    if len(groups) != len(train_x):
        raise ValueError(f"train_groups has {len(groups)} entries for {len(train_x)} images; give one for each.")
    shares = torch.stack([_patch_share(train_y, c, train_x.shape[2:]) for c in range(num_classes)], dim=1)
    # scikit-learn takes one class a row: a token is a row for each class that it has a share of, with that weight
    weights = _token_rows(shares).cpu().numpy()
    tokens, classes = weights.nonzero()
    owner = tokens // (len(weights) // len(train_x))
    splits = []
    if len(l2) > 1:  # folds over images; all tokens of an image follow it
        for _, held_out in grouped_folds([0] * len(train_x), groups, folds, seed):
            inside = np.isin(owner, held_out)
            splits.append((np.flatnonzero(~inside), np.flatnonzero(inside)))
    features = _token_rows(train_x).cpu().numpy()[tokens]
    model, chosen, losses = _logistic_regression(features, classes, weights[tokens, classes], l2, splits)
    logits_of = partial(_logits, model, num_classes=num_classes)

    # a small structure rarely gets the largest probability; how far to even out the classes is read off training images
    prior = torch.from_numpy(weights.mean(0)).clamp_min(1e-6).log()
    sample = torch.linspace(0, len(train_x) - 1, min(100, len(train_x))).long().unique()
    evenness = {}
    for share in (0.0, 0.25, 0.5, 0.75, 1.0):
        found = (_label_map(logits_of, train_x[i], train_y[i].shape, share * prior) for i in sample)
        scores = [overlap_scores(f, train_y[i].cpu(), num_classes)["dice"] for f, i in zip(found, sample, strict=True)]
        evenness[share] = sum(scores) / len(scores)
    share = max(evenness, key=evenness.__getitem__)

    maps, cases = [], []
    for maps_of_image, label in zip(test_x, test_y, strict=True):
        maps.append(_label_map(logits_of, maps_of_image, label.shape, share * prior))
        cases.append(overlap_scores(maps[-1], label.cpu(), num_classes))
    per_case = {name: torch.tensor([case[name] for case in cases]) for name in cases[0]}
    return ProbeResult(
        metrics={name: values.mean().item() for name, values in per_case.items()},
        output=torch.stack(maps),
        cases=per_case,
        settings={"l2": chosen, "cross_validation_loss": losses, "prior_correction": share},
    )


def attentive_probe(
    train_x: torch.Tensor,
    train_y: torch.Tensor,
    test_x: torch.Tensor,
    test_y: torch.Tensor,
    steps: int = 400,
    batch_size: int = 64,
    learning_rate: float = 1e-3,
    weight_decay: float = 0.1,
    num_heads: int = 1,
    seed: int = 0,
) -> ProbeResult:
    """One learned query attends to the frozen tokens; a linear layer reads the class from what it collected.

    After the attentive probe of V-JEPA (Bardes et al. 2024, https://arxiv.org/abs/2404.08471), with a single query and
    no MLP. AdamW with a cosine schedule for a fixed number of steps; nothing is selected afterwards.

    Args:
        train_x: feature maps ``(M, E, *grid)``, from ``extract_features(..., pool="tokens")``.
        train_y: class indices (M,).
        test_x: feature maps ``(M', E, *grid)``.
        test_y: class indices (M',).
        steps: optimizer steps.
        batch_size: images per step.
        learning_rate: at the start.
        weight_decay: of all weights but offsets, norms and the query.
        num_heads: attention heads; must divide ``E``.
        seed: of the initial weights and of the order of images.

    Raises:
        ValueError: for features and labels that do not fit together.
    """
    num_classes = _checked_classes(train_x, train_y, test_x, test_y)
    if train_x.ndim < 3:
        raise ValueError(f'need feature maps (M, E, *grid), got {tuple(train_x.shape)}; extract with pool="tokens".')
    train, test = train_x.float().flatten(2).transpose(1, 2), test_x.float().flatten(2).transpose(1, 2)
    mean, std = _moments(train.flatten(0, 1))
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):  # the caller's random state stays as it was
        torch.manual_seed(seed)
        width = train.shape[2]
        head = nn.Sequential(AttentionPool(width, num_heads), nn.LayerNorm(width), nn.Linear(width, num_classes))
        head.to(train.device)
    decayed = [p for p in head.parameters() if p.ndim == 2]
    kept = [p for p in head.parameters() if p.ndim != 2]
    optimizer = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": weight_decay}, {"params": kept, "weight_decay": 0.0}], lr=learning_rate
    )
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    generator = torch.Generator().manual_seed(seed)
    order: list[int] = []
    for _ in range(steps):
        if len(order) < min(batch_size, len(train)):
            order = torch.randperm(len(train), generator=generator).tolist()
        rows, order = order[:batch_size], order[batch_size:]
        loss = F.cross_entropy(head((train[rows] - mean) / std), train_y[rows].long())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    with torch.no_grad():
        logits = torch.cat([head((part - mean) / std) for part in test.split(256)])
    return _classified(
        torch.softmax(logits.double(), dim=1),
        test_y,
        {"steps": steps, "learning_rate": learning_rate, "weight_decay": weight_decay, "seed": seed},
    )


def grouped_folds(
    strata: Sequence[Hashable], groups: Sequence[Hashable] | None, folds: int, seed: int = 0
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Folds that keep each patient together and the classes in proportion: scikit-learn's ``StratifiedGroupKFold``.

    Args:
        strata: the class of each image.
        groups: the patient of each image; None takes every image for a patient.
        folds: number of folds; fewer where the rarest class has fewer patients.
        seed: of the shuffle.

    Returns:
        For each fold the indices of the images to fit on and of those held out.

    Raises:
        ValueError: if fewer than two folds are possible, naming the class.
    """
    groups = list(groups) if groups is not None else list(range(len(strata)))
    if len(groups) != len(strata):
        raise ValueError(f"{len(groups)} patients for {len(strata)} images; give one for each image.")
    patients = {stratum: len({g for s, g in zip(strata, groups, strict=True) if s == stratum}) for stratum in strata}
    scarce = min(patients, key=patients.__getitem__)
    folds = min(folds, patients[scarce])
    if folds < 2:
        raise ValueError(
            f"class {scarce} has {patients[scarce]} patient(s) and at most {folds} fold(s) can be made; "
            "two are needed to choose a penalty. Add patients, or give a single l2."
        )
    splitter = StratifiedGroupKFold(folds, shuffle=True, random_state=seed)
    numbers = {group: number for number, group in enumerate(dict.fromkeys(groups))}
    classes = {stratum: number for number, stratum in enumerate(sorted(patients, key=str))}
    return list(splitter.split(strata, [classes[s] for s in strata], [numbers[g] for g in groups]))


def _logistic_regression(
    x: np.ndarray,
    y: np.ndarray,
    weights: np.ndarray,
    l2: Sequence[float],
    splits: Sequence[tuple[np.ndarray, np.ndarray]],
) -> tuple[Pipeline, float, dict[float, float]]:
    """The model with the penalty of the lowest held-out cross-entropy, the penalty, and the loss of each."""
    if len(l2) == 0 or min(l2) <= 0:
        raise ValueError(f"l2 must hold at least one penalty, all positive, got {list(l2)}.")

    def fitted(penalty: float, rows: np.ndarray | slice) -> Pipeline:
        model = LogisticRegression(C=1 / (penalty * weights[rows].sum()), tol=1e-6, max_iter=5000)
        names = {f"{name}__sample_weight": weights[rows] for name in ("standardscaler", "logisticregression")}
        return make_pipeline(StandardScaler(), model).fit(x[rows], y[rows], **names)

    losses = {}
    for penalty in map(float, l2) if len(l2) > 1 else ():
        total = 0.0
        for inside, held_out in splits:
            model = fitted(penalty, inside)
            probabilities = model.predict_proba(x[held_out])
            total += weights[held_out].sum() * log_loss(
                y[held_out], probabilities, sample_weight=weights[held_out], labels=model.classes_
            )
        losses[penalty] = total / weights.sum()
    chosen = min(losses, key=losses.__getitem__) if losses else float(l2[0])
    return fitted(chosen, slice(None)), chosen, losses


def _logits(model: Pipeline, x: torch.Tensor, num_classes: int) -> torch.Tensor:
    """``(M, E) -> (M, K)``; a class that no training token has a share of is never the largest."""
    values = model.decision_function(x.cpu().numpy())
    if values.ndim == 1:  # two classes: the logit of the second against the first
        values = np.stack([np.zeros_like(values), values], axis=1)
    return torch.from_numpy(_all_classes(values, model.classes_, num_classes, -np.inf)).float()


def _all_classes(values: np.ndarray, classes: np.ndarray, num_classes: int, missing: float = 0.0) -> np.ndarray:
    """Columns of the classes that training had -> columns of all classes."""
    result = np.full((len(values), num_classes), missing)
    result[:, classes] = values
    return result


def _label_map(
    logits_of: Callable[[torch.Tensor], torch.Tensor],
    features: torch.Tensor,
    shape: Sequence[int],
    offset: torch.Tensor,
) -> torch.Tensor:
    """Class of each pixel from one feature map ``(E, *grid)``: logits less ``offset``, upsampled, the largest."""
    logits = (logits_of(_token_rows(features[None])) - offset).T.reshape(1, len(offset), *features.shape[1:])
    mode = "bilinear" if len(shape) == 2 else "trilinear"
    pixels = F.interpolate(logits, size=tuple(shape), mode=mode, align_corners=False)[0].argmax(dim=0)
    return pixels.to(torch.uint8 if len(offset) < 256 else torch.int64).cpu()


def _moments(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and standard deviation per feature; constant features keep the value zero."""
    std, mean = torch.std_mean(x, dim=0, correction=0)
    return mean, torch.where(std > 1e-6 * (1 + mean.abs()), std, torch.inf)


def _rows(features: torch.Tensor) -> np.ndarray:
    """``(M, ...) -> (M, E)`` in double precision, on the CPU."""
    return features.double().flatten(1).cpu().numpy()


def _array(labels: torch.Tensor) -> np.ndarray:
    return labels.long().cpu().numpy()


def _token_rows(maps: torch.Tensor) -> torch.Tensor:
    """``(M, E, *grid) -> (M * N, E)``, float32."""
    return maps.float().flatten(2).transpose(1, 2).flatten(0, 1)


def _patch_share(labels: torch.Tensor, value: int, grid: Sequence[int]) -> torch.Tensor:
    """Share of the pixels of each patch that hold ``value``: ``(M, *S) -> (M, *grid)``."""
    pool: Callable[..., torch.Tensor] = F.adaptive_avg_pool2d if len(grid) == 2 else F.adaptive_avg_pool3d
    return torch.cat([pool((part == value).float(), tuple(grid)) for part in labels.split(64)])


def _checked_classes(train_x: torch.Tensor, train_y: torch.Tensor, test_x: torch.Tensor, test_y: torch.Tensor) -> int:
    """Number of classes, once features and labels are known to fit together."""
    for x, y, name in ((train_x, train_y, "train"), (test_x, test_y, "test")):
        if y.ndim != 1 or len(x) != len(y) or len(x) == 0:
            raise ValueError(
                f"{name}: need one class index per feature row, got {tuple(x.shape)} and {tuple(y.shape)}."
            )
        if not bool(torch.isfinite(x).all()):
            raise ValueError(f"the {name} features hold NaN or infinite values; check the encoder's weights.")
        if int(y.min()) < 0:
            raise ValueError(f"the {name} labels hold {int(y.min())}; class indices start at 0.")
    if train_x.shape[1:] != test_x.shape[1:]:
        raise ValueError(
            f"train and test features differ in shape: {tuple(train_x.shape[1:])} and {tuple(test_x.shape[1:])}."
        )
    return max(int(train_y.max()), int(test_y.max())) + 1


def _classified(output: np.ndarray | torch.Tensor, labels: torch.Tensor, settings: dict[str, Any]) -> ProbeResult:
    probabilities = torch.as_tensor(output).double().cpu()
    probabilities = probabilities / probabilities.sum(dim=1, keepdim=True)  # rounding must not push one over one
    labels = labels.long().cpu()
    return ProbeResult(
        metrics=classification_scores(probabilities, labels),
        output=probabilities,
        cases={"correct": (probabilities.argmax(dim=1) == labels).double()},
        settings=settings,
    )
