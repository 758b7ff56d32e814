# Copyright (c) monai_usfm contributors
# SPDX-License-Identifier: Apache-2.0
"""Probes of frozen features: nearest neighbors, linear, dense linear and attentive; ``monai-usfm probe``.

A probe says what an encoder has learned without training it further. None of them looks at the test data before the
scores: standardization, the strength of regularization and the weights come from the training data alone.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
import torch
import torch.nn as nn
import torch.nn.functional as F
from matplotlib.figure import Figure
from monai.networks.layers import Pool
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss
from sklearn.model_selection import StratifiedGroupKFold
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler

from monai_usfm.cards import build_network
from monai_usfm.evaluation.images import ImageSet, extract_features, load_images, read_items
from monai_usfm.evaluation.report import conditions_of_run, file_digest, markdown_table
from monai_usfm.evaluation.statistics import Interval, bootstrap_interval
from monai_usfm.files import save_figure, write_csv, write_text_atomically
from monai_usfm.metrics.scores import classification_scores, overlap_scores
from monai_usfm.networks.nets.classifier import AttentionPool
from monai_usfm.settings import split_named_path

__all__ = ["ProbeResult", "attentive_probe", "dense_linear_probe", "grouped_folds", "knn_probe", "linear_probe"]

# Strengths tried by the linear probe, relative to the mean cross-entropy of standardized features.
L2_GRID = (1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0)


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


def probe(
    datalist: str,
    encoders: Sequence[str],
    *,
    probes: Sequence[Literal["knn", "linear", "attentive", "dense"]] = ("knn", "linear"),
    pool: Literal["mean", "class", "statistics"] = "mean",
    split: str = "test",
    dataset_dir: str | None = None,
    spatial_size: tuple[int, ...] = (224, 224),
    num_classes: int = 2,
    label_values: Sequence[int] | None = None,
    limit: int | None = None,
    device: str = "cuda" if torch.cuda.is_available() else "cpu",
    amp: bool = False,
    output_dir: str = "probes",
) -> Path:
    """Probe frozen encoders: nearest neighbors, linear, attentive (classes) and dense linear (label maps).

    Every encoder sees the same images. Writes ``probes.csv`` with 95 % bootstrap intervals over patients, ``probes.md``
    and ``probes.png``.

    Args:
        datalist: JSON file with ``training`` and the split that is scored.
        encoders: weights, own or published, as FILE or NAME=FILE; ``random`` is the untrained tiny encoder.
        probes: which ones; ``dense`` needs label maps, the others need classes.
        pool: features of ``knn`` and ``linear``: mean of the patch tokens, class token, or both and the standard
            deviation of the patch tokens.
        split: the split to score; ``validation`` while settings are being chosen.
        dataset_dir: folder the paths of the datalist start from; default: that of the file.
        spatial_size: pixels (H, W) or (D, H, W).
        num_classes: classes of the label maps, with background.
        label_values: file values of the classes; default: 0, 1, ...
        limit: use only so many images of each split, for a trial.
        device: where the encoders run.
        amp: bfloat16 autocast.
        output_dir: folder of the results.

    Returns:
        The table.
    """
    sets: list[ImageSet] = []
    white: float | None = None
    for name in ("training", split):
        items = read_items(datalist, name, dataset_dir, limit, white)
        white = white or next(iter(items), {}).get("full_scale")  # as the training images are read
        sets.append(load_images(items, spatial_size, num_classes if "dense" in probes else 0, label_values))
        if sets[-1].classes is None and set(probes) - {"dense"}:
            raise ValueError(f"{datalist}: not every item of {name!r} has an integer 'class'; only dense needs none.")
    train, test = sets
    rows = []
    for entry in encoders:
        title, path = split_named_path(entry)
        title, weights = title or Path(path).stem, None if path == "random" else path
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            encoder = build_network("encoder", weights, spatial_size=list(spatial_size))
        features: dict[str, list[torch.Tensor]] = {}
        for kind in probes:
            form = "tokens" if kind in ("attentive", "dense") else pool
            if form not in features:
                features[form] = [extract_features(encoder, s.images, form, device=device, amp=amp) for s in sets]
            result = _run(kind, features[form], train, test, num_classes)
            for metric, value in result.metrics.items():
                span = _interval(result, metric, test)
                rows.append(
                    {
                        "encoder": title,
                        "weights": f"sha256:{file_digest(weights)}" if weights else "",
                        "probe": kind,
                        "metric": metric,
                        "value": value,
                        "low": span.low,
                        "high": span.high,
                        "patients": span.count,
                        "split": split,
                        "training_images": len(train.images),
                        "test_images": len(test.images),
                        "size": "x".join(map(str, spatial_size)),
                        "pool": form,
                        "l2": result.settings.get("l2", ""),
                        **conditions_of_run(device),
                    }
                )
            print(f"{title}, {kind}: " + ", ".join(f"{k} {v:.3f}" for k, v in result.metrics.items()), flush=True)
    folder = Path(output_dir)
    shown = [
        (r["encoder"], r["probe"], r["metric"], str(Interval(r["value"], r["low"], r["high"], r["patients"])))
        for r in rows
    ]
    text = markdown_table(["encoder", "probe", "metric", f"{split}, 95 % interval over patients"], shown)
    write_text_atomically(folder / "probes.md", text)
    _plot(folder / "probes.png", pd.DataFrame(rows))
    return write_csv(folder / "probes.csv", rows)


def _run(kind: str, x: Sequence[torch.Tensor], train: ImageSet, test: ImageSet, num_classes: int) -> ProbeResult:
    """One probe, fitted on the training split and scored on the other."""
    if kind == "dense":
        assert train.labels is not None and test.labels is not None  # read when the dense probe is wanted
        return dense_linear_probe(x[0], train.labels, x[1], test.labels, train.patients, num_classes)
    assert train.classes is not None and test.classes is not None  # checked when they were read
    if kind == "linear":
        return linear_probe(x[0], train.classes, x[1], test.classes, train.patients)
    fit = knn_probe if kind == "knn" else attentive_probe
    return fit(x[0], train.classes, x[1], test.classes)


def _interval(result: ProbeResult, metric: str, test: ImageSet) -> Interval:
    """95 % interval of the metric over the patients of the test split; none of one patient."""
    if metric in result.cases:
        values = result.cases[metric].numpy()
        return bootstrap_interval(lambda rows: float(values[rows].mean()), test.patients)

    def score(rows: np.ndarray) -> float:
        bins = 15 if metric == "ece" else None
        return classification_scores(result.output[rows], test.classes[rows], bins)[metric]  # type: ignore[index]

    return bootstrap_interval(score, test.patients, resamples=1000)


def _plot(path: Path, table: pd.DataFrame) -> None:
    """Bars of macro-F1 and Dice, a group for each probe."""
    shown = table[table["metric"].isin(["macro_f1", "dice"])]
    shown = shown.assign(group=shown["probe"] + "\n" + shown["metric"].str.replace("_", " "))
    value, low, high = (
        shown.pivot(index="group", columns="encoder", values=v).reindex(shown["group"].unique())
        for v in ("value", "low", "high")
    )
    error = np.nan_to_num(np.stack([(value - low).to_numpy().T, (high - value).to_numpy().T], axis=1)).clip(0)
    figure = Figure(figsize=(1.6 + 1.4 * len(value), 3.6))
    value.plot.bar(ax=figure.add_subplot(), yerr=error, capsize=2, rot=0, ylim=(0, 1), xlabel="")
    save_figure(path, figure)


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
        ValueError: for features and labels that do not fit together.
    """
    num_classes = _checked_classes(train_x, train_y, test_x, test_y)
    k = min(k, len(train_x))

    def votes(distance: np.ndarray) -> np.ndarray:  # less the nearest, without overflow at low temperatures
        return np.exp((distance.min(axis=1, keepdims=True) - distance) / temperature)

    model = KNeighborsClassifier(k, metric="cosine", weights=votes).fit(_rows(train_x), train_y.long().cpu().numpy())
    probabilities = _all_classes(model.predict_proba(_rows(test_x)), model.classes_, num_classes)
    return _classified(probabilities, test_y, {"k": k, "temperature": temperature})


def linear_probe(
    train_x: torch.Tensor,
    train_y: torch.Tensor,
    test_x: torch.Tensor,
    test_y: torch.Tensor,
    train_groups: Sequence[Hashable] | None = None,
    l2: Sequence[float] = L2_GRID,
    seed: int = 0,
) -> ProbeResult:
    """Multinomial logistic regression on standardized features; the L2 penalty is swept on training folds only.

    scikit-learn's ``LogisticRegression`` with ``C = 1 / (l2 * M)``: it minimizes ``mean cross-entropy + l2 / 2 *
    ||W||^2``, the offset without penalty. The penalty is the one with the lowest cross-entropy on held-out training
    folds (:func:`grouped_folds`); the features are standardized within each fold.

    Args:
        train_x, train_y, test_x, test_y: see :func:`knn_probe`.
        train_groups: the patient of each training image; None takes every image for a patient.
        l2: penalties to choose from; a single one is used as it is.
        seed: of the five folds; fewer where the rarest class has fewer patients.

    Raises:
        ValueError: for features and labels that do not fit, no penalty, or one patient of a class to choose it by.
    """
    num_classes = _checked_classes(train_x, train_y, test_x, test_y)
    classes = train_y.long().cpu().numpy()
    splits = grouped_folds(classes.tolist(), train_groups, 5, seed) if len(l2) > 1 else []
    model, settings = _logistic_regression(_rows(train_x), classes, np.ones(len(classes)), l2, splits)
    probabilities = _all_classes(model.predict_proba(_rows(test_x)), model.classes_, num_classes)
    return _classified(probabilities, test_y, settings)


def dense_linear_probe(
    train_x: torch.Tensor,
    train_y: torch.Tensor,
    test_x: torch.Tensor,
    test_y: torch.Tensor,
    train_groups: Sequence[Hashable] | None = None,
    num_classes: int = 2,
    l2: Sequence[float] = (1e-4, 1e-3, 1e-2, 1e-1),
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
        train_groups, l2, seed: see :func:`linear_probe`.
        num_classes: classes including background 0.

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
    shares = torch.stack([_patch_share(train_y, c, train_x.shape[2:]) for c in range(num_classes)], dim=1)
    # scikit-learn takes one class a row: a token is a row for each class that it has a share of, with that weight
    weights = _token_rows(shares)
    tokens, classes = weights.nonzero()
    owner = tokens // (len(weights) // len(train_x))
    splits = []
    if len(l2) > 1:  # folds over images; all tokens of an image follow it
        for _, held_out in grouped_folds([0] * len(train_x), train_groups, 3, seed):
            inside = np.isin(owner, held_out)
            splits.append((np.flatnonzero(~inside), np.flatnonzero(inside)))
    features = _token_rows(train_x)[tokens]
    model, settings = _logistic_regression(features, classes, weights[tokens, classes], l2, splits)
    prior = np.log(weights.mean(0).clip(1e-6))

    def label_map(image: torch.Tensor, shape: Sequence[int], evenness: float) -> torch.Tensor:
        """Class of each pixel from one feature map ``(E, *grid)``: logits less the offset, upsampled, the largest."""
        values = model.decision_function(_token_rows(image[None]))
        if values.ndim == 1:  # two classes: the logit of the second against the first
            values = np.stack([np.zeros_like(values), values], axis=1)
        logits = torch.from_numpy(_all_classes(values, model.classes_, num_classes, -np.inf) - evenness * prior)
        maps = logits.float().T.reshape(1, num_classes, *image.shape[1:])
        mode = "bilinear" if len(shape) == 2 else "trilinear"
        return F.interpolate(maps, size=tuple(shape), mode=mode)[0].argmax(0).to(torch.uint8)

    def scored(x: torch.Tensor, y: torch.Tensor, evenness: float) -> tuple[list[torch.Tensor], pd.DataFrame]:
        maps = [label_map(image, label.shape, evenness) for image, label in zip(x, y, strict=True)]
        cases = [overlap_scores(found, label.cpu(), num_classes) for found, label in zip(maps, y, strict=True)]
        return maps, pd.DataFrame(cases)

    # a small structure rarely gets the largest probability; how far to even out the classes is read off training images
    sample = torch.linspace(0, len(train_x) - 1, min(100, len(train_x))).long().unique()
    choices = (0.0, 0.25, 0.5, 0.75, 1.0)
    share = max(choices, key=lambda share: scored(train_x[sample], train_y[sample], share)[1]["dice"].mean())
    maps, cases = scored(test_x, test_y, share)
    return ProbeResult(
        metrics=cases.mean().to_dict(),
        output=torch.stack(maps),
        cases={name: torch.tensor(column.to_list()) for name, column in cases.items()},
        settings={**settings, "prior_correction": share},
    )


def attentive_probe(
    train_x: torch.Tensor,
    train_y: torch.Tensor,
    test_x: torch.Tensor,
    test_y: torch.Tensor,
    steps: int = 400,
    learning_rate: float = 1e-3,
    seed: int = 0,
) -> ProbeResult:
    """One learned query attends to the frozen tokens; a linear layer reads the class from what it collected.

    After the attentive probe of V-JEPA (Bardes et al. 2024, https://arxiv.org/abs/2404.08471), with a single query and
    no MLP. AdamW with a cosine schedule for a fixed number of steps of 64 images, and a weight decay of 0.1 of all but
    offsets, norms and the query; nothing is selected afterwards.

    Args:
        train_x: feature maps ``(M, E, *grid)``, from ``extract_features(..., pool="tokens")``.
        train_y: class indices (M,).
        test_x: feature maps ``(M', E, *grid)``.
        test_y: class indices (M',).
        steps: optimizer steps.
        learning_rate: at the start.
        seed: of the initial weights and of the order of images.

    Raises:
        ValueError: for features and labels that do not fit together.
    """
    num_classes = _checked_classes(train_x, train_y, test_x, test_y)
    if train_x.ndim < 3:
        raise ValueError(f'need feature maps (M, E, *grid), got {tuple(train_x.shape)}; extract with pool="tokens".')
    train, test = (x.float().flatten(2).transpose(1, 2) for x in (train_x, test_x))
    std, mean = torch.std_mean(train.flatten(0, 1), dim=0, correction=0)
    std = torch.where(std > 1e-6 * (1 + mean.abs()), std, torch.inf)  # constant features keep the value zero
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):  # the caller's random state stays as it was
        torch.manual_seed(seed)
        width = train.shape[2]
        head = nn.Sequential(AttentionPool(width, 1), nn.LayerNorm(width), nn.Linear(width, num_classes))
        head.to(train.device)
    decayed, kept = ([p for p in head.parameters() if (p.ndim == 2) == matrix] for matrix in (True, False))
    groups = [{"params": decayed, "weight_decay": 0.1}, {"params": kept, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=learning_rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    generator = torch.Generator().manual_seed(seed)
    order: list[int] = []
    for _ in range(steps):
        if len(order) < min(64, len(train)):
            order = torch.randperm(len(train), generator=generator).tolist()
        rows, order = order[:64], order[64:]
        loss = F.cross_entropy(head((train[rows] - mean) / std), train_y[rows].long())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    with torch.no_grad():
        logits = torch.cat([head((part - mean) / std) for part in test.split(256)])
    settings = {"steps": steps, "learning_rate": learning_rate, "seed": seed}
    return _classified(logits.double().softmax(1), test_y, settings)


def grouped_folds(
    strata: Sequence[Hashable], groups: Sequence[Hashable] | None, folds: int, seed: int = 0
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Indices to fit on and held out, patients together, classes in proportion: scikit-learn's StratifiedGroupKFold.

    Args:
        strata: the class of each image.
        groups: the patient of each image; None takes every image for a patient.
        folds: number of folds; fewer where the rarest class has fewer patients.
        seed: of the shuffle.

    Raises:
        ValueError: if fewer than two folds are possible, naming the class.
    """
    groups = list(groups) if groups is not None else list(range(len(strata)))
    if len(groups) != len(strata):
        raise ValueError(f"{len(groups)} patients for {len(strata)} images; give one for each image.")
    patients = pd.DataFrame({"class": list(strata), "patient": groups}).groupby("class")["patient"].nunique()
    scarce, most = patients.idxmin(), int(min(folds, patients.min()))
    if most < 2:
        raise ValueError(
            f"class {scarce} has {patients[scarce]} patient(s) and at most {most} fold(s) can be made; "
            "two are needed to choose a penalty. Add patients, or give a single l2."
        )
    splitter = StratifiedGroupKFold(most, shuffle=True, random_state=seed)
    return list(splitter.split(strata, pd.factorize(pd.Series(strata))[0], pd.factorize(pd.Series(groups))[0]))


def _logistic_regression(
    x: np.ndarray,
    y: np.ndarray,
    weights: np.ndarray,
    l2: Sequence[float],
    splits: Sequence[tuple[np.ndarray, np.ndarray]],
) -> tuple[Pipeline, dict[str, Any]]:
    """The model with the penalty of the lowest held-out cross-entropy; the penalty, and the loss of each.

    A fold whose training part lacks a class that is held out has no probability of it, and is left out.
    """
    if len(l2) == 0 or min(l2) <= 0:
        raise ValueError(f"l2 must hold at least one penalty, all positive, got {list(l2)}.")
    splits = [(inside, held_out) for inside, held_out in splits if np.isin(y[held_out], y[inside]).all()]
    if len(l2) > 1 and not splits:
        raise ValueError("no fold can choose a penalty: each lacks a class. Add patients, or give a single l2.")

    def fitted(penalty: float, rows: np.ndarray | slice) -> Pipeline:
        model = LogisticRegression(C=1 / (penalty * weights[rows].sum()), tol=1e-6, max_iter=5000)
        names = {f"{name}__sample_weight": weights[rows] for name in ("standardscaler", "logisticregression")}
        return make_pipeline(StandardScaler(), model).fit(x[rows], y[rows], **names)

    def held_out_loss(penalty: float) -> float:
        total = 0.0
        for inside, held_out in splits:
            model, weight = fitted(penalty, inside), weights[held_out]
            probabilities = model.predict_proba(x[held_out])
            total += weight.sum() * log_loss(y[held_out], probabilities, sample_weight=weight, labels=model.classes_)
        return total / weights.sum()

    losses = {float(penalty): held_out_loss(penalty) for penalty in l2} if len(l2) > 1 else {}
    chosen = min(losses, key=losses.__getitem__, default=float(l2[0]))
    return fitted(chosen, slice(None)), {"l2": chosen, "cross_validation_loss": losses}


def _all_classes(values: np.ndarray, classes: np.ndarray, num_classes: int, missing: float = 0.0) -> np.ndarray:
    """Columns of the classes that training had -> columns of all classes."""
    result = np.full((len(values), num_classes), missing)
    result[:, classes] = values
    return result


def _rows(features: torch.Tensor) -> np.ndarray:
    """``(M, ...) -> (M, E)`` in double precision, on the CPU."""
    return features.double().flatten(1).cpu().numpy()


def _token_rows(maps: torch.Tensor) -> np.ndarray:
    """``(M, E, *grid) -> (M * N, E)``, float32, on the CPU."""
    return maps.float().flatten(2).transpose(1, 2).flatten(0, 1).cpu().numpy()


def _patch_share(labels: torch.Tensor, value: int, grid: Sequence[int]) -> torch.Tensor:
    """Share of the pixels of each patch that hold ``value``: ``(M, *S) -> (M, *grid)``."""
    pool = Pool[Pool.ADAPTIVEAVG, len(grid)](tuple(grid))
    return torch.cat([pool((part == value).float()) for part in labels.split(64)])


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
    return max(int(train_y.max()), int(test_y.max())) + 1


def _classified(output: np.ndarray | torch.Tensor, labels: torch.Tensor, settings: dict[str, Any]) -> ProbeResult:
    probabilities = torch.as_tensor(output).double().cpu()
    probabilities = probabilities / probabilities.sum(dim=1, keepdim=True)  # rounding must not push one over one
    labels = labels.long().cpu()
    cases = {"correct": (probabilities.argmax(dim=1) == labels).double()}
    return ProbeResult(classification_scores(probabilities, labels), probabilities, cases, settings)
