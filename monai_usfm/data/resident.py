# Copyright (c) monai_usfm contributors
# SPDX-License-Identifier: Apache-2.0
"""All images of a data set in the memory of the device, so that no loader stands between them and the network."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from monai.data import Dataset
from torch.utils.data import DataLoader, default_collate

from .dataset import first_random

__all__ = ["ResidentImages"]


class ResidentImages(torch.utils.data.Dataset):
    """All items of a dataset on the device, a byte a pixel, of which a ``DataLoader`` takes batches by index.

    The loader has no workers and collates nothing. Images in [0, 1] come back to 1/510, with a store exactly; bytes
    (labels, and images that are bytes) as they are; what is no tensor collated as PyTorch does. The items are read at
    the first batch.

    Args:
        dataset: without random transforms of single items; batches are augmented on the device.
        device: where the images lie.
        num_workers: processes that read them.

    Raises:
        ValueError: for a dataset with random transforms; on the first batch for labels that are no bytes, images of
            several sizes or out of range.
        RuntimeError: on the first batch, when they do not fit in the memory of the device.
    """

    def __init__(self, dataset: Dataset, device: torch.device | str, num_workers: int = 0) -> None:
        super().__init__()
        if first_random(dataset.transform) is not None:
            raise ValueError("a resident data set has no random transforms of single items: leave resident out.")
        self.dataset, self.device, self.num_workers = dataset, device, num_workers
        self._tensors: dict[str, torch.Tensor] = {}
        self._others: dict[str, list[Any]] = {}
        self._fraction = False  # whether the images were in [0, 1]

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitems__(self, indices: Sequence[int]) -> dict[str, Any]:
        """A batch: tensors ``(N, C, *S)`` on the device, images in [0, 1] unless they are bytes, and the rest."""
        if not self._tensors:
            self._tensors, self._others, self._fraction = self._read()
        places = torch.tensor(indices, device=self.device)
        batch: dict[str, Any] = {name: values[places] for name, values in self._tensors.items()}
        if self._fraction:
            batch["image"] = batch["image"].float().div_(255)
        return batch | {name: default_collate([v[i] for i in indices]) for name, v in self._others.items()}

    def _read(self) -> tuple[dict[str, torch.Tensor], dict[str, list[Any]], bool]:
        """All tensors, what is none, and whether the images were fractions."""
        first = self.dataset[0]
        shapes = {name: value.shape for name, value in first.items() if isinstance(value, torch.Tensor)}
        try:
            shown = {name: (len(self), *shape) for name, shape in shapes.items()}
            tensors = {name: torch.empty(shape, dtype=torch.uint8, device=self.device) for name, shape in shown.items()}
        except torch.OutOfMemoryError as error:
            size = len(self) * sum(math.prod(shape) for shape in shapes.values()) / 1e9
            raise RuntimeError(
                f"{size:.1f} GB of images do not fit in the memory of {self.device}: leave resident out."
            ) from error
        others: dict[str, list[Any]] = {name: [] for name in first if name not in shapes}
        # Workers hand over many items at once: one by one, handing over takes longer than reading. With a generator of
        # its own the state of PyTorch's stays as it is.
        own, stack, start = torch.Generator(), partial(_stacked, shapes=shapes), 0
        for batch in DataLoader(self.dataset, 64, num_workers=self.num_workers, collate_fn=stack, generator=own):
            for name, kept in tensors.items():
                kept[start : start + len(batch[name])] = batch[name].to(self.device)
            for name, values in others.items():
                values += batch[name]
            start += len(batch["image"])
        return tensors, others, first["image"].is_floating_point()


def _stacked(items: Sequence[dict[str, Any]], shapes: dict[str, torch.Size]) -> dict[str, Any]:
    """Name -> tensor of all items, fractions as bytes; what is no tensor as a list."""
    batch: dict[str, Any] = {}
    for name in items[0]:
        values = [item[name] for item in items]
        if name not in shapes:
            batch[name] = values
            continue
        for item, value in zip(items, values, strict=True):
            file = item.get("file", "an item")
            if value.shape != shapes[name]:
                sizes = f"{name} of {file} is {list(value.shape)}, the first {list(shapes[name])}"
                raise ValueError(f"a resident data set has one size, but {sizes}: leave resident out.")
            if name == "image" and value.is_floating_point():
                fits = value.min() >= -1 / 510 and value.max() <= 1 + 1 / 510  # not-a-number does not
            else:
                fits = value.dtype in (torch.uint8, torch.bool)
            if not fits:
                raise ValueError(
                    f"a resident data set holds bytes and images in [0, 1], not the {name} of {file} "
                    f"({str(value.dtype)[6:]}, {value.min():g} to {value.max():g}): leave resident out."
                )
        stacked = torch.stack([value.as_subclass(torch.Tensor) for value in values])
        batch[name] = (255 * stacked.clamp(0, 1)).round().byte() if stacked.is_floating_point() else stacked
    return batch
