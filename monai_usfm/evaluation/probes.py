# Copyright (c) monai_usfm contributors
# SPDX-License-Identifier: Apache-2.0
"""Probes of frozen features: nearest neighbours, linear, dense linear and attentive.

A probe says what an encoder has learnt without training it further. None of them looks at the test data before the
scores: standardisation, the strength of regularisation and the weights come from the training data alone.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn as nn
import torch.nn.functional as F

from monai_usfm.evaluation.scores import classification_scores, overlap_scores
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
"""Strengths tried by the linear probes, relative to the mean cross-entropy of standardised features."""


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
    """Weighted nearest-neighbour vote: the ``k`` nearest by cosine similarity ``s``, each with weight ``exp(s / T)``.

    Wu et al. 2018, https://arxiv.org/abs/1805.01978. With fewer than ``k`` training images all of them vote.

    Args:
        train_x: features ``(M, E)``.
        train_y: class indices (M,).
        test_x: features ``(M', E)``.
        test_y: class indices (M',).
        k: neighbours.
        temperature: ``T`` above.

    Raises:
        ValueError: for features and labels that do not fit together, or unless ``k`` and ``temperature`` are positive.
    """
    if k < 1 or temperature <= 0:
        raise ValueError(f"k and temperature must be positive, got k={k}, temperature={temperature}.")
    num_classes = _checked_classes(train_x, train_y, test_x, test_y)
    k = min(k, len(train_x))
    train = F.normalize(train_x.double().flatten(1), dim=1)
    probabilities = torch.zeros(len(test_x), num_classes, dtype=torch.float64, device=test_x.device)
    for start in range(0, len(test_x), 1024):  # the similarity matrix of a large set would not fit into memory
        rows = slice(start, start + 1024)
        similarity, index = (F.normalize(test_x[rows].double().flatten(1), dim=1) @ train.T).topk(k, dim=1)
        # softmax is the vote divided by its sum, without overflow at low temperatures
        votes = torch.softmax(similarity / temperature, dim=1)
        probabilities[rows].scatter_add_(1, train_y.long()[index], votes)
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
    """Multinomial logistic regression on standardised features; the L2 penalty is swept on training folds only.

    Minimises ``mean cross-entropy + l2 / 2 * ||W||^2`` (the offset is not penalised) with L-BFGS in double precision.
    The penalty is the one with the lowest cross-entropy on held-out training folds, which keep patients together and
    the classes in proportion; mean and deviation of the features come from the training part of each fold.

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
    x, targets = train_x.double().flatten(1), F.one_hot(train_y.long(), num_classes).double()
    strata = train_y.tolist()
    chosen, losses = _choose_l2(x, targets, strata, train_groups, l2, folds, seed)
    model = _SoftmaxRegression(x, targets, chosen)
    probabilities = torch.softmax(model(test_x.double().flatten(1)), dim=1)
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
    grid = train_x.shape[2:]
    shares = torch.stack([_patch_share(train_y, c, grid) for c in range(num_classes)], dim=1)
    x, targets = _token_rows(train_x), _token_rows(shares).to(train_x.device)
    tokens = len(x) // len(train_x)
    groups = list(train_groups) if train_groups is not None else list(range(len(train_x)))
    if len(groups) != len(train_x):
        raise ValueError(f"train_groups has {len(groups)} entries for {len(train_x)} images; give one for each.")
    # folds over images; all tokens of an image follow it
    strata = [0] * len(train_x)
    chosen, losses = _choose_l2(x, targets, strata, groups, l2, folds, seed, repeat=tokens)
    model = _SoftmaxRegression(x, targets, chosen)

    # a small structure rarely gets the largest probability; how far to even out the classes is read off training images
    prior = targets.mean(0).clamp_min(1e-6).log()
    sample = torch.linspace(0, len(train_x) - 1, min(100, len(train_x))).long().unique()
    evenness = {}
    for share in (0.0, 0.25, 0.5, 0.75, 1.0):
        found = (_label_map(model, train_x[i], train_y[i].shape, share * prior) for i in sample)
        scores = [overlap_scores(f, train_y[i].cpu(), num_classes)["dice"] for f, i in zip(found, sample, strict=True)]
        evenness[share] = sum(scores) / len(scores)
    share = max(evenness, key=evenness.__getitem__)

    maps, cases = [], []
    for features, label in zip(test_x, test_y, strict=True):
        maps.append(_label_map(model, features, label.shape, share * prior))
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
        steps: optimiser steps.
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
) -> list[list[int]]:
    """Split images into folds that keep each patient together and the classes in proportion.

    Patients of a class are shuffled and dealt out one by one, so the number of patients of a class differs by one at
    most between folds. A patient with images of several classes counts as the rarest of them.

    Args:
        strata: the class of each image.
        groups: the patient of each image; None takes every image for a patient.
        folds: number of folds; fewer where the rarest class has fewer patients.
        seed: of the shuffle.

    Returns:
        The image indices of each fold.

    Raises:
        ValueError: if fewer than two folds are possible, naming the class.
    """
    groups = list(groups) if groups is not None else list(range(len(strata)))
    if len(groups) != len(strata):
        raise ValueError(f"{len(groups)} patients for {len(strata)} images; give one for each image.")
    members: dict[Hashable, list[int]] = {}
    for i, group in enumerate(groups):
        members.setdefault(group, []).append(i)
    count = {s: sum(other == s for other in strata) for s in set(strata)}
    by_class: dict[Hashable, list[list[int]]] = {}
    for rows in members.values():
        rarest = min((strata[i] for i in rows), key=lambda s: (count[s], str(s)))
        by_class.setdefault(rarest, []).append(rows)
    scarce = min(by_class, key=lambda s: len(by_class[s]))
    folds = min(folds, len(by_class[scarce]))
    if folds < 2:
        raise ValueError(
            f"class {scarce} has {len(by_class[scarce])} patient(s) and at most {folds} fold(s) can be made; "
            "two are needed to choose a penalty. Add patients, or give a single l2."
        )
    generator = torch.Generator().manual_seed(seed)
    result: list[list[int]] = [[] for _ in range(folds)]
    dealt = 0  # goes on over classes, so that the last folds are not short of every class
    for stratum in sorted(by_class, key=str):
        patients = by_class[stratum]
        for p in torch.randperm(len(patients), generator=generator).tolist():
            result[dealt % folds].extend(patients[p])
            dealt += 1
    return [sorted(rows) for rows in result]


class _SoftmaxRegression:
    """Softmax regression on features standardised with their own mean and deviation; ``start`` warms a path up."""

    def __init__(
        self, x: torch.Tensor, targets: torch.Tensor, l2: float, start: _SoftmaxRegression | None = None
    ) -> None:
        self.mean, self.std = _moments(x)
        z = (x - self.mean) / self.std
        if start is None:
            self.weight = torch.zeros(x.shape[1], targets.shape[1], dtype=x.dtype, device=x.device)
            self.offset = targets.mean(0).clamp_min(1e-6).log().to(x.dtype)
        else:
            self.weight, self.offset = start.weight.clone(), start.offset.clone()
        parameters = [self.weight.requires_grad_(), self.offset.requires_grad_()]
        optimizer = torch.optim.LBFGS(
            parameters, max_iter=500, tolerance_grad=1e-6, tolerance_change=1e-9, line_search_fn="strong_wolfe"
        )

        def closure() -> torch.Tensor:
            optimizer.zero_grad()
            loss = F.cross_entropy(z @ self.weight + self.offset, targets) + 0.5 * l2 * self.weight.square().sum()
            loss.backward()
            return loss

        with torch.enable_grad():
            optimizer.step(closure)
        self.weight, self.offset = self.weight.detach(), self.offset.detach()

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """Logits ``(M, K)``."""
        return (x.to(self.mean.dtype) - self.mean) / self.std @ self.weight + self.offset


def _label_map(
    model: _SoftmaxRegression, features: torch.Tensor, shape: Sequence[int], offset: torch.Tensor
) -> torch.Tensor:
    """Class of each pixel from one feature map ``(E, *grid)``: logits less ``offset``, upsampled, the largest."""
    logits = (model(_token_rows(features[None])) - offset).T.reshape(1, len(offset), *features.shape[1:])
    mode = "bilinear" if len(shape) == 2 else "trilinear"
    pixels = F.interpolate(logits, size=tuple(shape), mode=mode, align_corners=False)[0].argmax(dim=0)
    return pixels.to(torch.uint8 if len(offset) < 256 else torch.int64).cpu()


def _choose_l2(
    x: torch.Tensor,
    targets: torch.Tensor,
    strata: Sequence[Hashable],
    groups: Sequence[Hashable] | None,
    grid: Sequence[float],
    folds: int,
    seed: int,
    repeat: int = 1,
) -> tuple[float, dict[float, float]]:
    """The penalty with the lowest held-out cross-entropy, and that of all; an image has ``repeat`` rows in ``x``."""
    if len(grid) == 0 or min(grid) < 0:
        raise ValueError(f"l2 must hold at least one penalty, none negative, got {list(grid)}.")
    if len(grid) == 1:
        return float(grid[0]), {}
    totals = dict.fromkeys(sorted(map(float, grid), reverse=True), 0.0)
    for held_out in grouped_folds(strata, groups, folds, seed):
        test = torch.zeros(len(strata), dtype=torch.bool, device=x.device)
        test[held_out] = True
        test = test.repeat_interleave(repeat)
        model: _SoftmaxRegression | None = None
        for l2 in totals:  # from strong to weak: each fit starts near its solution
            model = _SoftmaxRegression(x[~test], targets[~test], l2, start=model)
            totals[l2] += F.cross_entropy(model(x[test]), targets[test], reduction="sum").item()
    losses = {l2: total / len(x) for l2, total in totals.items()}
    return min(losses, key=losses.__getitem__), losses


def _moments(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and deviation per feature; constant features keep the value zero."""
    std, mean = torch.std_mean(x, dim=0, correction=0)
    return mean, torch.where(std > 1e-6 * (1 + mean.abs()), std, torch.inf)


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


def _classified(probabilities: torch.Tensor, labels: torch.Tensor, settings: dict[str, Any]) -> ProbeResult:
    # rounding must not push a probability over one
    probabilities = (probabilities / probabilities.sum(dim=1, keepdim=True)).cpu()
    labels = labels.long().cpu()
    return ProbeResult(
        metrics=classification_scores(probabilities, labels),
        output=probabilities,
        cases={"correct": (probabilities.argmax(dim=1) == labels).double()},
        settings=settings,
    )
