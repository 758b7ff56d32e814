# Copyright (c) monai_usfm contributors
# SPDX-License-Identifier: Apache-2.0
"""The classes of a datalist: read, checked before training starts, and counted into loss weights."""

from __future__ import annotations

import math
import os
import warnings
from collections.abc import Sequence
from typing import Any

import torch

from .dataset import UltrasoundDataset
from .splits import load_splits

__all__ = ["class_weights", "load_class_splits", "value_scale", "warn_absent_classes"]

Item = dict[str, Any]


def load_class_splits(
    dataset_dir: str | os.PathLike | None = None,
    datalist: str | os.PathLike | None = None,
    *,
    num_classes: int,
    values: Sequence[str] | None = None,
    synthetic_dir: str | os.PathLike,
    synthetic: dict[str, Any] | None = None,
    splits: Sequence[str] = ("training", "validation"),
    full_scale: float | None = None,
) -> dict[str, list[Item]]:
    """:func:`load_splits` for classification: every item has a valid ``class``, all have a ``patient`` or none has.

    Args:
        dataset_dir, datalist, synthetic_dir, synthetic, splits, full_scale: see :func:`load_splits`.
        num_classes: classes are the integers from 0 to ``num_classes - 1``.
        values: entries that are numbers, to be predicted instead of classes: ``class`` becomes a tensor ``(K,)`` of
            them; an absent or null one is NaN.

    Raises:
        FileNotFoundError, ValueError: see :func:`load_splits`.
        ValueError: for fewer than two classes; an item whose class is missing, no integer or out of range; a value that
            is no number, or an item without any; a list in which only some items name their patient.
    """
    if num_classes < 2:
        raise ValueError(f"num_classes must be at least 2, got {num_classes}.")
    lists = load_splits(
        dataset_dir,
        datalist,
        synthetic_dir=synthetic_dir,
        synthetic=synthetic,
        splits=splits,
        required=("image",) if values else ("image", "class"),
        full_scale=full_scale,
    )
    for split, items in lists.items():
        for index, item in enumerate(items):
            if values:
                items[index] = _with_values(item, values)
                continue
            class_of(item, num_classes, f"item {index} of {split!r}")
        unnamed = sum(item.get("patient") is None for item in items)
        if 0 < unnamed < len(items):
            raise ValueError(f"{unnamed} of {len(items)} items of {split!r} lack `patient`: name it for all or none.")
        for index, item in enumerate(items):  # 1 and "1" in one list would not collate, nor would null
            patient = {} if unnamed else {"patient": str(item["patient"])}
            items[index] = {**{key: value for key, value in item.items() if key != "patient"}, **patient}
    for split, items in lists.items() if not values else ():
        if absent := sorted(set(range(num_classes)) - {item["class"] for item in items}):
            lost = "the network cannot learn it" if split == "training" else "scores such as macro-F1 leave it out"
            warnings.warn(
                f"no item of {split!r} has class {', '.join(map(str, absent))}: {lost}. Correct the datalist, or "
                "num_classes.",
                stacklevel=2,
            )
    return lists


def class_of(item: Item, num_classes: int, place: str) -> int:
    """The ``class`` of an item.

    Raises:
        ValueError: naming ``place`` and image, where it is no integer from 0 to ``num_classes - 1``.
    """
    number = item["class"]
    if isinstance(number, bool) or not isinstance(number, int) or not 0 <= number < num_classes:
        names = ", which monai-usfm datalist --classes makes of names" if isinstance(number, str) else ""
        raise ValueError(
            f"{place} ({item['image']}) has the class {number!r}; expected an integer from 0 to "
            f"{num_classes - 1}{names}. Correct the datalist or num_classes."
        )
    return number


def warn_absent_classes(training: UltrasoundDataset, validation: UltrasoundDataset, num_classes: int) -> None:
    """Warn of classes that no label map of one of the two holds, after their files were read and checked."""
    lost = "the network cannot learn it. Correct the datalist, num_classes or label_values"
    counted = "in their mean Dice it counts as 1 where the network does not draw it, else as 0"
    for name, dataset, effect in (("training", training, lost), ("validation", validation, counted)):
        if absent := dataset.absent_classes(num_classes):
            classes = ", ".join(map(str, absent))
            warnings.warn(f"no label of the {name} images shows class {classes}: {effect}.", stacklevel=2)


def _with_values(item: Item, names: Sequence[str]) -> Item:
    numbers = [math.nan if item.get(name) is None else item[name] for name in names]
    wrong = [repr(n) for n in numbers if isinstance(n, bool) or not isinstance(n, int | float) or math.isinf(n)]
    if wrong or all(math.isnan(n) for n in numbers):
        raise ValueError(
            f"{item['image']}: needs numbers under {', '.join(names)}, has {', '.join(wrong) or 'none'}; correct the "
            "datalist, or --values."
        )
    return {**item, "class": torch.tensor(numbers, dtype=torch.float32)}


def value_scale(items: Sequence[Item]) -> dict[str, list[float]]:
    """``mean`` and ``std`` of each number of the training items of :func:`load_class_splits`; 1 for a std of 0.

    Raises:
        ValueError: for a number that no item has.
    """
    table = torch.stack([item["class"] for item in items]).double()
    if absent := table.isnan().all(0).nonzero().flatten().tolist():
        raise ValueError(
            f"no training item has number {', '.join(str(1 + place) for place in absent)} of --values, so the network "
            "cannot learn it; correct the datalist, or --values."
        )
    mean = table.nanmean(0)
    std = (table - mean).square().nanmean(0).sqrt()
    return {"mean": mean.tolist(), "std": torch.where(std > 0, std, torch.ones_like(std)).tolist()}


def class_weights(items: Sequence[Item], num_classes: int) -> torch.Tensor:
    """Loss weights that make all classes count alike: inverse frequencies in training ``items`` with ``class``,
    1 on average over them.

    A class without items gets weight 0: nothing is known about it, so label smoothing should not favor it either.

    Returns:
        ``(num_classes,)`` float32.

    Raises:
        ValueError: for no items, or a class outside ``[0, num_classes)``.
    """
    if not items:
        raise ValueError("there are no items to weigh the classes of.")
    classes = torch.tensor([int(item["class"]) for item in items])
    if not 0 <= int(classes.min()) <= int(classes.max()) < num_classes:
        raise ValueError(f"classes run from {classes.min()} to {classes.max()}, outside the {num_classes} that count.")
    counts = torch.bincount(classes, minlength=num_classes).float()
    weights = len(items) / ((counts > 0).sum() * counts)
    return torch.where(counts > 0, weights, torch.zeros(()))
