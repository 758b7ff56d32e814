# Copyright (c) monai_usfm contributors
# SPDX-License-Identifier: Apache-2.0
"""A data set in the memory of the device, for trainings that a loader could not feed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch.utils.data import Dataset

from .dataset import UltrasoundDataset

__all__ = ["ResidentImages"]


class ResidentImages(Dataset):
    """All images of a dataset on the device, a byte a pixel, of which a ``DataLoader`` takes batches by index.

    The loader has no workers and collates nothing. With a store the values are those of the dataset, else to 1/510. The
    images are read at the first batch.

    Args:
        dataset: without random transforms of single items; batches are augmented on the device.
        device: where the images lie.

    Raises:
        ValueError: for a dataset with random transforms; on the first batch for labels, and images of several sizes.
    """

    def __init__(self, dataset: UltrasoundDataset, device: torch.device | str) -> None:
        if dataset.draws:
            raise ValueError("a resident data set has no random transforms of single items: leave resident out.")
        self.dataset, self.device = dataset, device
        self._images: torch.Tensor | None = None

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitems__(self, indices: Sequence[int]) -> dict[str, Any]:
        """``image``, ``(N, C, *S)`` in [0, 1], and each ``file``; PyTorch's loader looks for this method."""
        images = self._images = self._read() if self._images is None else self._images
        files = [str(self.dataset.data[index][self.dataset.image_key]) for index in indices]
        return {"image": images[torch.tensor(indices, device=self.device)].float().div_(255), "file": files}

    def _read(self) -> torch.Tensor:
        first = self.dataset[0]
        others = [key for key, value in first.items() if isinstance(value, torch.Tensor) and key != "image"]
        if others:
            raise ValueError(f"a resident data set holds images alone, not {', '.join(others)}: leave resident out.")
        self.dataset.read_all()
        shape = first["image"].shape
        images = torch.empty((len(self.dataset), *shape), dtype=torch.uint8, device=self.device)
        for index in range(len(images)):
            image = self.dataset[index]["image"].as_subclass(torch.Tensor)
            if image.shape != shape:
                sizes = f"item {index} is {list(image.shape)}, the first {list(shape)}"
                raise ValueError(f"a resident data set has one size, but {sizes}: leave resident out.")
            images[index] = (255 * image).round()
        return images
