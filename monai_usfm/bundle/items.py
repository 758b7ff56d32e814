# Copyright (c) monai_usfm contributors
# SPDX-License-Identifier: Apache-2.0
"""What is trained on: lists of images, their record, samplers, and how a batch is handed to the network."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.distributed as dist
from ignite import distributed as idist
from monai.data import DataLoader, Dataset, DistributedSampler
from torch.utils.data import Sampler

from monai_usfm.bundle.start import options
from monai_usfm.data import OrganBalancedSampler, ResidentImages, UltrasoundDataset, label_fraction, load_splits

__all__ = [
    "check_data",
    "enhancement_items",
    "fingerprint",
    "labeled_batch",
    "mixed_batch",
    "pair_keys",
    "preprocessing_of",
    "record",
    "simulated",
    "training_items",
    "training_loader",
    "training_sampler",
    "validation_sampler",
]

logger = logging.getLogger(__name__)


def simulated(spatial_dims: int, image_size: Sequence[int], volumes: int = 8, **more: Any) -> dict[str, Any]:
    """Settings of the images that stand in for a missing ``dataset_dir``, see :func:`write_synthetic_dataset`.

    Args:
        spatial_dims: 2 for 64 training images, 3 for some volumes; a fourth of them for each other split.
        image_size: of each.
        volumes: training volumes.
        more: further settings, or others than these.
    """
    training = volumes if spatial_dims == 3 else 64
    sizes = {"num_training": training, "num_validation": training // 4, "num_test": training // 4}
    return {**sizes, "spatial_dims": spatial_dims, "image_size": list(image_size), **more}


def training_items(items: Sequence[dict[str, Any]], fraction: float = 1.0, seed: int = 0) -> list[dict[str, Any]]:
    """The items, or a :func:`~monai_usfm.data.label_fraction` of them, each with the name of its ``file``."""
    chosen = label_fraction(items, fraction, seed=seed) if fraction != 1 else items
    return [{**item, "file": str(item["image"])} for item in chosen]


def fingerprint(items: Sequence[Mapping[str, Any]]) -> str:
    """Hash of the images, their frames and what they are labeled with, wherever their folder lies: two runs on the same
    data have the same."""
    names = [os.path.abspath(str(item["image"])) for item in items]
    root = os.path.commonpath(names) if len(names) > 1 else os.path.dirname(names[0])

    def line(item: Mapping[str, Any], name: str) -> str:
        told = ("class", "label", "landmarks", "values", "frame")
        labels = {key: item[key] for key in told if item.get(key) is not None}
        if isinstance(files := labels.get("label"), str):
            labels["label"] = os.path.relpath(files, root)
        elif isinstance(files, list):  # masks that are joined
            labels["label"] = [os.path.relpath(str(file), root) for file in files]
        return os.path.relpath(name, root) + (json.dumps(labels, sort_keys=True, default=str) if labels else "")

    text = "\n".join(map(line, items, names))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def preprocessing_of(items: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """How the pixels of training items became network inputs, for the card."""
    white = next((item["full_scale"] for item in items if item.get("full_scale")), None)
    return {"intensity": "gray, 0 to 1", **({"full_scale": float(white)} if white else {})}


def record(training: Dataset, validation: Dataset) -> dict[str, Any]:
    """What ``run.json`` tells of a run, and a resumed one compares: its options and its data."""
    lists = {"training": training.data, "validation": validation.data}  # type: ignore[attr-defined]
    sizes = {f"{split}_items": len(items) for split, items in lists.items()}
    return {**options(), **sizes, **{f"{split}_data": fingerprint(items) for split, items in lists.items()}}


def check_data(*datasets: UltrasoundDataset) -> None:
    """Read all files of the lists before the first step, and keep what was read where the dataset has a store."""
    for dataset in datasets:
        start = time.perf_counter()
        if count := dataset.read_all(idist.get_rank(), idist.get_world_size()):
            logger.info("%d of %d items read and checked, %.0f s.", count, len(dataset), time.perf_counter() - start)


def training_sampler(dataset: Dataset, seed: int = 0, num_samples: int | None = None) -> Sampler:
    """Each image once in random order, or ``num_samples`` of them.

    Of several processes each takes its part: a step sees the images that one process would see in a batch as large.
    """
    length = len(dataset)  # type: ignore[arg-type]
    return OrganBalancedSampler(["any"] * length, num_samples=num_samples, seed=seed)


def training_loader(
    dataset: Dataset,
    batch_size: int,
    sampler: Sampler,
    device: torch.device | str,
    resident: bool = False,
    drop_last: bool = False,
    num_workers: int = 0,
) -> DataLoader:
    """MONAI's loader, of files or of images that lie on the device, see :class:`~monai_usfm.data.ResidentImages`."""
    shared: dict[str, Any] = {"batch_size": batch_size, "sampler": sampler, "drop_last": drop_last}
    if resident:
        kept = ResidentImages(dataset, device, num_workers)
        return DataLoader(kept, collate_fn=lambda batch: batch, **shared)
    return DataLoader(dataset, num_workers=num_workers, pin_memory=torch.device(device).type == "cuda", **shared)


def validation_sampler(dataset: Dataset) -> Sampler | None:
    """Of several processes each takes its part; None, every image in order, for one."""
    if dist.is_available() and dist.is_initialized():
        return DistributedSampler(dataset, even_divisible=False, shuffle=False)
    return None


def mixed_batch(
    batch: Any,
    device: Any = None,
    non_blocking: bool = False,
    *,
    augmentation: Callable,
    num_classes: int,
    alpha: float = 0.0,
) -> tuple[torch.Tensor, torch.Tensor]:
    """``prepare_batch`` that mixes images and their classes with those of the neighbor in the shuffled batch.

    Zhang et al. 2018, https://arxiv.org/abs/1710.09412.

    Args:
        batch, device, non_blocking: as MONAI's engines give them.
        augmentation: ``prepare_batch`` that gives images and class indices.
        num_classes: classes.
        alpha: of the Beta distribution of the share; 0 mixes nothing.

    Returns:
        Images, and class indices or, mixed, shares ``(B, num_classes)``.
    """
    image, label = augmentation(batch, device, non_blocking)
    if alpha <= 0:
        return image, label
    share = float(torch.distributions.Beta(alpha, alpha).sample())
    numbers = label.is_floating_point()  # what is predicted are no classes
    classes = label if numbers else torch.nn.functional.one_hot(label, num_classes).float()
    mixed = [share * x + (1 - share) * x.roll(1, 0) for x in (image, classes)]
    return mixed[0], mixed[1]


def labeled_batch(
    batch: Mapping[str, Any], device: Any = None, non_blocking: bool = False, label_key: str = "label"
) -> tuple[torch.Tensor, torch.Tensor]:
    """``prepare_batch`` of images and the labels under ``label_key``, unchanged."""
    image, label = (batch[key].to(device, non_blocking=non_blocking) for key in ("image", label_key))
    return image, label


def enhancement_items(
    split: str,
    dataset_dir: str | None = None,
    datalist: str | None = None,
    pairs: bool = False,
    input_key: str | None = None,
    target_key: str | None = None,
    roi: str | None = None,
    background: str | None = None,
    **options: Any,
) -> list[dict[str, Any]]:
    """A list of images, or of recorded pairs under ``image`` (low quality) and ``label`` (high).

    Args:
        split: of the list.
        dataset_dir, datalist: see :func:`~monai_usfm.data.load_splits`.
        pairs: whether pairs are wanted.
        input_key: entry of an item that names the low-quality file; None is ``image``, of simulated pairs ``low``.
        target_key: entry that names the high-quality file; None is ``label``, of simulated pairs ``image``.
        roi, background: entries that name masks, which become ``roi`` and ``background``; None for none.
        options: further ones of :func:`~monai_usfm.data.load_splits`.

    Raises:
        ValueError: for one entry that is both files of a pair, or items without the mask that ``roi`` or
            ``background`` names; and see :func:`~monai_usfm.data.load_splits`.
    """
    source, target = ("image", "label") if dataset_dir or datalist else ("low", "image")
    names = {"image": input_key or source, "label": target_key or target} if pairs else {"image": "image"}
    if names["image"] == names.get("label"):
        raise ValueError(
            f"the low- and the high-quality file of a pair are both {names['image']!r}: name two entries by "
            "--input_key and --target_key."
        )
    required = tuple(dict.fromkeys(("image", *names.values())))
    found = load_splits(dataset_dir, datalist, splits=(split,), required=required, apart=required, **options)[split]
    for option, key in (("roi_key", roi), ("background_key", background)):
        lacking = [str(item["image"]) for item in found if key and not item.get(key)]
        if lacking:
            raise ValueError(
                f"{lacking[0]}: has no {key!r}, as {len(lacking)} of {len(found)} items of {split!r}; name the mask of "
                f"each in the datalist, or leave --{option} out."
            )
    names |= {name: key for name, key in (("roi", roi), ("background", background)) if key}
    return [{**item, **{name: item[key] for name, key in names.items()}} for item in found]


def pair_keys(
    card: Mapping[str, Any], input_key: str | None = None, target_key: str | None = None
) -> dict[str, str | None]:
    """The entries that name the files of a pair: as given, else as on the card of weights that learned from pairs."""
    known = card.get("pairs") or {}
    return {"input_key": input_key or known.get("input_key"), "target_key": target_key or known.get("target_key")}
