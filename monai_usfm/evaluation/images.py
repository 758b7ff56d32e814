# Copyright (c) monai_usfm contributors
# SPDX-License-Identifier: Apache-2.0
"""A split in memory for probes and audits, read and resized as the bundles do, and its frozen features."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn as nn
from monai.networks import eval_mode
from monai.transforms import Compose
from monai.utils import convert_to_tensor

from monai_usfm.data import LoadUltrasoundd, UltrasoundDataset, add_patients, load_datalist
from monai_usfm.data.splits import with_full_scale
from monai_usfm.transforms import LabelIndicesd, SeparableResized

__all__ = ["ImageSet", "extract_features", "load_images", "read_items"]


@dataclass
class ImageSet:
    """Images of one size.

    Args:
        images: ``(M, 1, *S)`` in [0, 1].
        patients: the patient of each image.
        classes: class index of each image (M,), or None where not all have one.
        labels: class index of each pixel ``(M, *S)``, or None.
    """

    images: torch.Tensor
    patients: list[Any]
    classes: torch.Tensor | None = None
    labels: torch.Tensor | None = None


def read_items(
    datalist: str,
    split: str,
    dataset_dir: str | None = None,
    limit: int | None = None,
    full_scale: float | None = None,
) -> list[dict[str, Any]]:
    """Items of a split of a datalist with absolute paths, ``patient`` and where needed ``full_scale``.

    Args:
        datalist: JSON file.
        split: ``training``, ``validation`` or ``test``.
        dataset_dir: folder its paths start from; default: that of the file.
        limit: take only so many items, evenly chosen.
        full_scale: see :func:`~monai_usfm.data.splits.with_full_scale`.

    Raises:
        ValueError: for a limit below 1; and see :func:`~monai_usfm.data.load_datalist`.
    """
    if limit is not None and limit < 1:
        raise ValueError(f"--limit must be at least 1; got {limit}.")
    folder = Path(dataset_dir) if dataset_dir else Path(datalist).parent
    items = load_datalist(datalist, folder, split)
    if limit and limit < len(items):
        items = [items[n] for n in np.linspace(0, len(items) - 1, limit).round().astype(int)]
    return with_full_scale(add_patients(items, folder), full_scale)


def load_images(
    items: Sequence[dict[str, Any]],
    spatial_size: Sequence[int],
    num_classes: int = 0,
    label_values: Sequence[int] | None = None,
) -> ImageSet:
    """Read items into memory.

    Args:
        items: with ``image``, ``patient`` and where wanted ``label`` and ``class``, as :func:`read_items` gives them.
        spatial_size: (H, W) or (D, H, W) of the images.
        num_classes: classes of the label maps, including background; 0 reads none.
        label_values: file values of the classes, see :class:`~monai_usfm.transforms.LabelIndices`.

    Raises:
        ValueError: for no items, or items without ``label`` where label maps are wanted.
        UnreadableImageError: naming the file.
    """
    if not items:
        raise ValueError("there are no items to load.")
    lacking = [item["image"] for item in items if num_classes and not item.get("label")]
    if lacking:
        raise ValueError(f"{len(lacking)} items lack the key 'label', the first is {lacking[0]}; give all of them one.")
    keys = ["image", "label"] if num_classes else ["image"]
    modes, scales = (["bilinear", "nearest"], ["auto", None]) if num_classes else (["bilinear"], ["auto"])
    read = Compose(
        [
            LoadUltrasoundd(keys, spatial_dims=len(spatial_size), dtype=[torch.float32] * len(keys), scale=scales),
            *([LabelIndicesd("label", num_classes, label_values)] if num_classes else []),
            SeparableResized(keys, spatial_size, mode=modes, anti_aliasing=[mode == "bilinear" for mode in modes]),
        ]
    )
    told = [{key: item[key] for key in (*keys, "frame", "full_scale") if key in item} for item in items]
    dataset = UltrasoundDataset(told, read)  # whose error is that of the file
    loaded = [dataset[index] for index in range(len(dataset))]
    has_class = all(isinstance(item.get("class"), int) for item in items)
    return ImageSet(
        images=torch.stack(convert_to_tensor([data["image"] for data in loaded])),
        patients=[item["patient"] for item in items],
        classes=torch.tensor([item["class"] for item in items]) if has_class else None,
        labels=torch.cat(convert_to_tensor([data["label"] for data in loaded])).long() if num_classes else None,
    )


def _statistics(tokens: torch.Tensor) -> torch.Tensor:
    deviation, mean = torch.std_mean(tokens[:, 1:], dim=1, correction=0)
    return torch.cat([tokens[:, 0], mean, deviation], dim=1)


# Tokens (B, 1 + N, E) with the class token first -> features (B, F).
POOLS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "mean": lambda tokens: tokens[:, 1:].mean(dim=1),
    "class": lambda tokens: tokens[:, 0],
    "statistics": _statistics,
}


def extract_features(
    encoder: nn.Module,
    images: torch.Tensor,
    pool: str = "mean",
    *,
    device: torch.device | str | None = None,
    amp: bool = False,
    batch_size: int = 32,
) -> torch.Tensor:
    """Run a frozen encoder over images, in their order; the encoder stays on ``device``, in the mode it came.

    Args:
        encoder: gives tokens ``(B, 1 + N, E)``, the class token first, and has ``token_grid``, as
            :class:`~monai_usfm.networks.UltrasoundViT`.
        images: ``(M, C, *S)``.
        pool: ``"mean"`` of the patch tokens, ``"class"`` token, ``"statistics"``: class token, mean and standard
            deviation of the patch tokens in a row, or ``"tokens"``: all of them as a map.
        device: where to run; None stays on the encoder's device.
        amp: run in bfloat16 autocast; features are float32 in any case.
        batch_size: images in a step.

    Returns:
        Features on the CPU, ``(M, E)``, for ``"statistics"`` ``(M, 3 * E)``, for ``"tokens"`` ``(M, E, *grid)``.

    Raises:
        ValueError: for an unknown ``pool``.
    """
    if pool not in ("tokens", *POOLS):
        raise ValueError(f"pool must be {', '.join(POOLS)} or tokens, got {pool!r}.")
    place = torch.device(device) if device is not None else next(encoder.parameters()).device
    features: list[torch.Tensor] = []
    with eval_mode(encoder.to(place)):
        for batch in images.split(batch_size):
            image = batch.to(place)
            with torch.autocast(place.type, dtype=torch.bfloat16, enabled=amp):
                tokens = encoder(image).float().cpu()
            if pool == "tokens":
                grid: Any = encoder.token_grid(image)  # type: ignore[operator]
                features.append(tokens[:, 1:].transpose(1, 2).unflatten(2, list(grid)))
            else:
                features.append(POOLS[pool](tokens))
    return torch.cat(features)
