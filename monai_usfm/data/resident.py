# Copyright (c) monai_usfm contributors
# SPDX-License-Identifier: Apache-2.0
"""A data set in the memory of the device, for trainings that a loader could not feed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch.utils.data import Sampler

from .dataset import UltrasoundDataset

__all__ = ["ResidentLoader"]


class ResidentLoader:
    """Batches by index from all images of a dataset, which lie on the device as bytes: ``B`` of ``(N, C, *S)``.

    In place of a ``DataLoader``: the same images in the same order, with a store the same values, else to 1/510. They
    are read at the first batch.

    Args:
        dataset: without random transforms of single items; batches are augmented on the device.
        batch_size: images in a batch.
        sampler: order of an epoch.
        device: where the images lie.
        drop_last: leave out a last batch that is smaller.

    Raises:
        ValueError: for a dataset with random transforms; on the first batch for labels, and images of several sizes.
    """

    def __init__(
        self,
        dataset: UltrasoundDataset,
        batch_size: int,
        sampler: Sampler | Sequence[int],
        device: torch.device | str,
        drop_last: bool = False,
    ) -> None:
        if dataset.draws:
            raise ValueError("a resident data set has no random transforms of single items: leave resident out.")
        self.dataset, self.sampler = dataset, sampler
        self.batch_size, self.drop_last = batch_size, drop_last
        self.device = device
        self._images: torch.Tensor | None = None

    def __len__(self) -> int:
        """Batches in an epoch."""
        number = len(self.sampler)  # type: ignore[arg-type]
        return number // self.batch_size if self.drop_last else -(-number // self.batch_size)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        torch.empty((), dtype=torch.int64).random_()  # as PyTorch's loader draws, so that what follows is the same
        images = self._images = self._read() if self._images is None else self._images
        order = list(self.sampler)
        for first in range(0, len(order), self.batch_size):
            chosen = order[first : first + self.batch_size]
            if self.drop_last and len(chosen) < self.batch_size:
                return
            files = [str(self.dataset.data[index][self.dataset.image_key]) for index in chosen]
            yield {"image": images[torch.tensor(chosen, device=self.device)].float().div_(255), "file": files}

    def _read(self) -> torch.Tensor:
        others = [key for key, value in self.dataset[0].items() if isinstance(value, torch.Tensor) and key != "image"]
        if others:
            raise ValueError(f"a resident data set holds images alone, not {', '.join(others)}: leave resident out.")

        def image(index: int) -> torch.Tensor:
            return (255 * self.dataset[index]["image"].as_subclass(torch.Tensor)).round().to(torch.uint8)

        self.dataset.read_all()
        first = image(0)
        images = torch.empty((len(self.dataset), *first.shape), dtype=torch.uint8, device=self.device)
        images[0] = first
        for index in range(1, len(images)):
            one = image(index)
            if one.shape != first.shape:
                sizes = f"item {index} is {list(one.shape)}, the first {list(first.shape)}"
                raise ValueError(f"a resident data set has one size, but {sizes}: leave resident out.")
            images[index] = one
        return images
