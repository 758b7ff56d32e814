# Copyright (c) monai_usfm contributors
# SPDX-License-Identifier: Apache-2.0
"""All images of a data set in the memory of the device, so that no loader stands between them and the network."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from monai.data import Dataset
from monai.transforms import Transform
from monai.transforms.traits import RandomizableTrait
from torch.utils.data import DataLoader, default_collate

__all__ = ["ResidentImages"]


class ResidentImages(Dataset):
    """All items of a dataset on the device, a byte a pixel, of which a ``DataLoader`` takes batches by index.

    The loader has no workers and collates nothing. Images in [0, 1] come back to 1/510, with a store exactly; bytes
    (labels, and images that are bytes) as they are; what is no tensor collated as PyTorch does. The items are read at
    the first batch.

    Args:
        dataset: without random transforms of single items; batches are augmented on the device.
        device: where the images lie.
        num_workers: processes that read them.

    Raises:
        ValueError: for a dataset with random transforms; on the first batch for labels that are no bytes, and images
            of several sizes.
    """

    def __init__(self, dataset: Dataset, device: torch.device | str, num_workers: int = 0) -> None:
        super().__init__(dataset.data)
        known = dataset.transform.get_index_of_first(
            lambda t: isinstance(t, RandomizableTrait) or not isinstance(t, Transform)
        )
        if known is not None:
            raise ValueError("a resident data set has no random transforms of single items: leave resident out.")
        self.dataset, self.device, self.num_workers = dataset, device, num_workers
        self._tensors: dict[str, torch.Tensor] = {}
        self._others: dict[str, list[Any]] = {}
        self._fractions: set[str] = set()

    def __getitems__(self, indices: Sequence[int]) -> dict[str, Any]:
        """A batch: tensors ``(N, C, *S)`` on the device, images in [0, 1] unless they are bytes, and the rest."""
        if not self._tensors:
            self._read()
        places = torch.tensor(indices, device=self.device)
        batch: dict[str, Any] = {name: values[places] for name, values in self._tensors.items()}
        for name in self._fractions:
            batch[name] = batch[name].float().div_(255)
        return batch | {name: default_collate([v[i] for i in indices]) for name, v in self._others.items()}

    def _read(self) -> None:
        # With a generator of its own the state of PyTorch's stays as it is.
        own = torch.Generator()
        items = DataLoader(self.dataset, batch_size=None, num_workers=self.num_workers, generator=own)
        for index, item in enumerate(items):
            for name, value in item.items():
                if not isinstance(value, torch.Tensor):
                    self._others.setdefault(name, []).append(value)
                    continue
                plain = value.as_subclass(torch.Tensor)
                if plain.is_floating_point():
                    if name != "image":
                        raise ValueError(f"a resident data set holds images and bytes, not {name}: leave resident out.")
                    self._fractions.add(name)
                    plain = (255 * plain).round().byte()
                if index == 0:
                    shape = (len(self), *plain.shape)
                    self._tensors[name] = torch.empty(shape, dtype=plain.dtype, device=self.device)
                kept = self._tensors[name]
                if plain.shape != kept.shape[1:]:
                    sizes = f"item {index} is {list(plain.shape)}, the first {list(kept.shape[1:])}"
                    raise ValueError(f"a resident data set has one size, but {sizes}: leave resident out.")
                kept[index] = plain
