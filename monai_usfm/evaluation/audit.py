# Copyright (c) monai_usfm contributors
# SPDX-License-Identifier: Apache-2.0
"""Audits of trained weights: how much worse is a network when an image is shown as another scanner or screen would?

What remains of the score is no substitute for another hospital's images, but what is lost here would be lost there.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure
from monai.config import PathLike
from monai.utils import convert_to_tensor

from monai_usfm.cards import full_scale_of, load_network, require_classes
from monai_usfm.data import LoadUltrasound, LoadUltrasoundd
from monai_usfm.data.classes import class_of
from monai_usfm.evaluation.changes import CHANGES, SHORTCUTS, Change
from monai_usfm.evaluation.images import read_items
from monai_usfm.evaluation.report import conditions_of_run, file_digest, markdown_table
from monai_usfm.evaluation.statistics import bootstrap_interval
from monai_usfm.files import save_figure, write_csv, write_text_atomically
from monai_usfm.inferers import ImagePredictor
from monai_usfm.metrics.scores import classification_scores, confusion_counts, macro_f1, overlap_scores
from monai_usfm.transforms import LabelIndices

__all__ = ["audit_classifier", "audit_segmenter"]

Predict = Callable[[torch.Tensor], torch.Tensor]
Example = tuple[torch.Tensor, list[torch.Tensor], str]
"""What a figure shows of a change: an altered image, contours of the label and of the prediction, a title."""
SHOWN = {
    "segmentation": ["change", "images", "dice", "loss", "loss_low", "loss_high", "failed"],
    "classification": ["change", "images", "macro_f1", "loss", "loss_low", "loss_high", "auc", "flips"],
}


def audit(
    checkpoint: str,
    datalist: str,
    *,
    kind: Literal["robustness", "shortcuts"] = "robustness",
    split: str = "test",
    dataset_dir: str | None = None,
    label_values: Sequence[int] | None = None,
    limit: int | None = None,
    device: str = "cuda" if torch.cuda.is_available() else "cpu",
    output_dir: str = "audit",
) -> Path:
    """Say how trained weights answer to images that another scanner, or another operator, would have made.

    ``robustness`` changes margins, scale, gain, texture and burned-in annotations one at a time and scores the
    segmentation or classification again. ``shortcuts`` counts how often a classifier changes its mind when calipers,
    text or the edge of the field of view come or go. Writes ``KIND.csv``, ``KIND.md`` and a figure of the images that
    suffered most. 2D networks only, calibrated as their card says.

    Args:
        checkpoint: weights with a card.
        datalist: JSON file with ``label`` (segmentation) or ``class`` (classification).
        kind: what is audited.
        split: split of the datalist.
        dataset_dir: folder its paths start from; default: that of the file.
        label_values: file values of the classes; default: those on the card, else 0, 1, ...
        limit: use only so many images, evenly chosen.
        device: where the network runs.
        output_dir: folder of the results.

    Returns:
        The table.

    Raises:
        ValueError: for weights of another task, or items without what the audit needs.
    """
    network = load_network(checkpoint)
    card: dict[str, Any] = network.card  # type: ignore[assignment]
    tasks = ("segmentation", "classification") if kind == "robustness" else ("classification",)
    require_classes(card, checkpoint, *tasks, spatial_dims=2)
    items = read_items(datalist, split, dataset_dir, limit, full_scale_of(card))
    wanted = "class" if card["task"] == "classification" else "label"
    lacking = [str(item["image"]) for item in items if item.get(wanted) is None]
    if lacking:
        raise ValueError(f"{datalist}: {len(lacking)} items lack '{wanted}', for example {lacking[0]}.")
    num_classes, place = card["network"]["num_classes"], f"{datalist}: an item of {split!r}"
    classes = [class_of(item, num_classes, place) for item in items] if wanted == "class" else []
    read: Any = LoadUltrasoundd("image")
    read_label = LoadUltrasound(2, scale=None)
    images = convert_to_tensor([read(item)["image"] for item in items])
    patients = [item["patient"] for item in items]
    marked = all(item.get("label") for item in items)
    labels = [read_label(item["label"], item.get("frame")) for item in items] if marked else []
    predictor = ImagePredictor(network, device)

    def predict(image: torch.Tensor) -> torch.Tensor:
        return predictor(image[None])[0]

    if card["task"] == "classification":
        changes = CHANGES if kind == "robustness" else SHORTCUTS
        masks = [label[0] for label in convert_to_tensor(labels)] if marked else None
        rows, examples = audit_classifier(predict, images, classes, patients, masks, changes)
    else:
        to_indices = LabelIndices(num_classes, label_values if label_values is not None else card.get("label_values"))
        maps = [convert_to_tensor(to_indices(label))[0].long() for label in labels]
        rows, examples = audit_segmenter(lambda image: predict(image).argmax(0), images, maps, patients, num_classes)
    folder = Path(output_dir)
    _save_examples(folder / f"{kind}.png", examples)
    run = {"model": f"sha256:{file_digest(checkpoint)}", "split": split, **conditions_of_run(device)}
    table = write_csv(folder / f"{kind}.csv", rows.assign(**run).to_dict("records"))
    shown = rows[SHOWN[card["task"]]]
    text = markdown_table(shown.columns, shown.values.tolist())
    write_text_atomically(folder / f"{kind}.md", text)
    print(text)
    return table


@torch.no_grad()
def audit_segmenter(
    segment: Predict,
    images: Sequence[torch.Tensor],
    labels: Sequence[torch.Tensor],
    patients: Sequence[Hashable] | None = None,
    num_classes: int = 2,
    changes: Mapping[str, Change] = CHANGES,
    seed: int = 0,
) -> tuple[pd.DataFrame, dict[str, Example]]:
    """Alter every image in each way and score its segmentation against the label map that was altered with it.

    Args:
        segment: image ``(C, H, W)`` in [0, 1] of any size -> class indices ``(H, W)``.
        images: images ``(C, H, W)`` in [0, 1], of any sizes.
        labels: class indices ``(H, W)`` of each; images without any foreground class are not scored.
        patients: the patient of each image, for the interval; None takes every image for a patient.
        num_classes: classes including background 0.
        changes: name -> change.
        seed: of the changes; image ``i`` is altered alike whatever the others are.

    Returns:
        A row for the images as they are and one for each change: ``change``, ``images`` that it altered,
        ``dice_before``, ``dice``, ``loss`` with the ends of its 95 % bootstrap interval over patients (``loss_low``,
        ``loss_high``), and ``failed``, the share with a Dice below 0.5; and for each change the image that lost most.

    Raises:
        ValueError: for no images, another number of label maps, or an image whose label map has another size.
    """
    _check_pairs(images, labels, "label maps")
    for i, (image, label) in enumerate(zip(images, labels, strict=True)):
        if image.dim() != 3 or label.shape != image.shape[1:]:
            shapes = f"{tuple(image.shape)} and {tuple(label.shape)}"
            raise ValueError(f"image {i}: need an image (C, H, W) and a label map (H, W), got {shapes}.")
    if not any(bool((label > 0).any()) for label in labels):
        raise ValueError("every label map is empty: there is nothing to score.")
    dice: dict[str, dict[int, float]] = {name: {} for name in ("unchanged", *changes)}
    examples: dict[str, Example] = {}
    for name, i, image, label in _altered(images, labels, changes, seed):
        if not bool((label > 0).any()):
            continue
        prediction = segment(image)
        score = overlap_scores(prediction, label, num_classes)["dice"]
        if name != "unchanged" and score < min(dice[name].values(), default=np.inf):
            examples[name] = image, [label, prediction], f"{name}: Dice {score:.2f}"
        dice[name][i] = score

    def row(index: list[int], before: Sequence[float], after: Sequence[float]) -> dict[str, float]:
        lost = np.subtract(before, after)
        means = {"dice_before": float(np.mean(before)), "dice": float(np.mean(after))}
        failed = float(np.mean(np.less(after, 0.5)))
        return means | _spread("loss", lost, patients, index, seed) | {"failed": failed}

    return _table(dice, row), examples


@torch.no_grad()
def audit_classifier(
    classify: Predict,
    images: Sequence[torch.Tensor],
    classes: Sequence[int],
    patients: Sequence[Hashable] | None = None,
    labels: Sequence[torch.Tensor] | None = None,
    changes: Mapping[str, Change] = CHANGES,
    seed: int = 0,
) -> tuple[pd.DataFrame, dict[str, Example]]:
    """The same for a classifier, which also may change its mind without being wrong.

    Args:
        classify: image ``(C, H, W)`` in [0, 1] of any size -> probabilities ``(K,)``.
        images, patients, changes, seed: see :func:`audit_segmenter`.
        classes: class index of each.
        labels: where the finding is, ``(H, W)`` for each image, for the changes that look at it; the whole image where
            there is none.

    Returns:
        A row for the images as they are and one for each change, on the images that it altered: ``change``, ``images``,
        ``macro_f1_before``, ``macro_f1``, ``loss`` with ``loss_low`` and ``loss_high``, ``auc_before``, ``auc``,
        ``flips``, the share of predictions that change, with ``flips_low`` and ``flips_high``, and ``mean_change`` of
        the probability of the class predicted before; and for each change the image with the largest such change.

    Raises:
        ValueError: for no images, or another number of classes.
    """
    _check_pairs(images, classes, "classes")
    truth = torch.as_tensor(list(classes))
    masks = list(labels) if labels is not None else [torch.zeros(image.shape[1:]) for image in images]
    masks = [mask if bool((mask > 0).any()) else torch.ones_like(mask) for mask in masks]
    found: dict[str, dict[int, torch.Tensor]] = {name: {} for name in ("unchanged", *changes)}
    examples: dict[str, Example] = {}
    largest = dict.fromkeys(found, -1.0)
    for name, i, image, _ in _altered(images, masks, changes, seed):
        found[name][i] = after = classify(image).cpu()
        before = found["unchanged"][i]
        chosen = int(before.argmax())
        change = float((after - before)[chosen].abs())
        if name != "unchanged" and change > largest[name]:
            largest[name] = change
            title = f"{name}: p(class {chosen})\n{before[chosen]:.2f} to {after[chosen]:.2f}"
            examples[name] = image, [], title

    def row(index: list[int], *outputs: Sequence[torch.Tensor]) -> dict[str, float]:
        before, after = (torch.stack([*given]) for given in outputs)
        predicted, labels = [p.argmax(1).numpy() for p in (before, after)], truth[index].numpy()

        def lost(rows: np.ndarray) -> float:
            f1 = [macro_f1(confusion_counts(labels[rows], p[rows], before.shape[1])) for p in predicted]
            return float(f1[0] - f1[1])

        first, second = (classification_scores(p, truth[index], bins=None) for p in (before, after))
        return {
            "macro_f1_before": first["macro_f1"],
            "macro_f1": second["macro_f1"],
            **_spread("loss", lost, patients, index, seed),
            "auc_before": first["auc"],
            "auc": second["auc"],
            **_spread("flips", (predicted[0] != predicted[1]).astype(float), patients, index, seed),
            "mean_change": (after - before).gather(1, before.argmax(1, keepdim=True)).abs().mean().item(),
        }

    return _table(found, row), examples


def _table(found: Mapping[str, Mapping[int, Any]], row: Callable[..., dict[str, float]]) -> pd.DataFrame:
    """A row for each change: of the images that it altered the numbers, and what they gave before and after."""
    rows = []
    for name, after in found.items():
        numbers = row([*after], [found["unchanged"][i] for i in after], [*after.values()]) if after else {}
        rows.append({"change": name, "images": len(after), **numbers})
    return pd.DataFrame(rows)


def _spread(
    name: str, values: Any, patients: Sequence[Hashable] | None, index: Iterable[int], seed: int
) -> dict[str, float]:
    """A statistic, or the mean of the values of the cases ``index``, with its interval over patients."""
    statistic = values if callable(values) else lambda rows: float(values[rows].mean())
    span = bootstrap_interval(statistic, [i if patients is None else patients[i] for i in index], seed=seed)
    return {name: span.value, f"{name}_low": span.low, f"{name}_high": span.high}


def _check_pairs(images: Sequence[Any], others: Sequence[Any], what: str) -> None:
    if not images or len(images) != len(others):
        raise ValueError(f"need images and as many {what}, got {len(images)} and {len(others)}.")


def _altered(
    images: Sequence[torch.Tensor], labels: Sequence[torch.Tensor], changes: Mapping[str, Change], seed: int
) -> Iterator[tuple[str, int, torch.Tensor, torch.Tensor]]:
    """Each image as it is, then in each way that alters it: name, number, image and label map."""
    for i, (image, label) in enumerate(zip(images, labels, strict=True)):
        yield "unchanged", i, image, label
        for name, change in changes.items() if bool((label > 0).any()) else ():
            altered, mask = change(image, label[None], torch.Generator().manual_seed(seed + i))
            if altered.shape != image.shape or not torch.equal(altered, image):
                yield name, i, altered, mask[0]


def _save_examples(path: PathLike, examples: Mapping[str, Example]) -> None:
    """For each change the image that suffered most: contour of the label (green) and of the prediction (red)."""
    columns = 5
    lines = max(1, -(-len(examples) // columns))
    figure = Figure(figsize=(2.6 * columns, 2.8 * lines))
    axes = figure.subplots(lines, columns, squeeze=False).ravel()
    for ax in axes:
        ax.axis("off")
    for ax, (image, contours, title) in zip(axes, examples.values(), strict=False):
        ax.imshow(image[0].float(), cmap="gray", vmin=0, vmax=1)
        for mask, color in zip(contours, ("lime", "red"), strict=False):
            if bool((mask > 0).any()):
                ax.contour(mask > 0, levels=[0.5], colors=color, linewidths=0.8)
        ax.set_title(title, fontsize=8)
    save_figure(path, figure)
