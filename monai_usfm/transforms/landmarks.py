# Copyright (c) monai_usfm contributors
# SPDX-License-Identifier: Apache-2.0
"""Landmarks of an image as heatmaps to learn, and back from heatmaps to points below a pixel."""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import MapTransform

from monai_usfm.transforms.dictionary import TORCH

__all__ = ["Landmarksd", "draw_heatmaps", "landmarks_of_logits", "soft_argmax", "spatial_softmax"]


def draw_heatmaps(points: torch.Tensor, size: Sequence[int], sigma: float) -> torch.Tensor:
    """Gaussians with maximum 1 at points: ``(K, 2) -> (K, H, W)``; zero everywhere for a point that is NaN.

    Points are row and column from the center of the first pixel; ``sigma`` is the standard deviation in pixels.
    """
    rows, columns = (torch.arange(n, dtype=torch.float32) for n in size)
    across = [((axis - points[:, i, None]) / sigma).square() for i, axis in enumerate((rows, columns))]
    return torch.exp(-0.5 * (across[0][:, :, None] + across[1][:, None, :])).nan_to_num(0.0)


def spatial_softmax(logits: torch.Tensor) -> torch.Tensor:
    """A distribution over the pixels for each channel, ``(K, H, W) -> (K, H, W)``."""
    return logits.flatten(1).float().softmax(1).reshape(logits.shape)


def soft_argmax(heatmaps: torch.Tensor, window: float = 0.1) -> torch.Tensor:
    """Points and their spread from heatmaps that are not negative: ``(K, H, W) -> (K, 3)``.

    The mean of a heatmap around its maximum is a point below a pixel, and exact for a symmetric one. Far values, which
    would draw a mean of the whole towards the center, do not count (Luvizon et al. 2019,
    https://arxiv.org/abs/1710.02322, use the whole), nor do those that have no counterpart because the image ends.

    Args:
        heatmaps: channels first.
        window: half the side of the window around the maximum, as a share of the longer side of the image; along an
            axis no more than fits between the maximum and the border.

    Returns:
        Row, column and standard deviation (the root mean of both variances) in pixels; NaN for an empty heatmap.
    """
    plain = heatmaps.as_subclass(torch.Tensor).double()
    height, width = plain.shape[-2:]
    radius = max(1, round(window * max(height, width)))
    peak = plain.flatten(1).argmax(1)
    grid = torch.stack(torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")).to(plain)
    center = torch.stack([peak // width, peak % width], 1).to(plain)
    reach = torch.minimum(center, torch.tensor([height - 1, width - 1]).to(plain) - center).clamp(max=radius)
    offsets = (grid[None] - center[:, :, None, None]).abs()
    near, even = (plain * (offsets <= limit).all(1) for limit in (radius, reach[:, :, None, None]))
    mean = (even[:, None] * grid).flatten(2).sum(2) / even.flatten(1).sum(1, keepdim=True)
    square = (grid[None] - mean[:, :, None, None]).square()
    variance = (near[:, None] * square).flatten(2).sum(2) / near.flatten(1).sum(1, keepdim=True)
    return torch.cat([mean, variance.mean(1, keepdim=True).sqrt()], 1).float()


def landmarks_of_logits(logits: torch.Tensor) -> torch.Tensor:
    """:func:`soft_argmax` of the :func:`spatial_softmax`: ``(K, H, W) -> (K, 3)``."""
    return soft_argmax(spatial_softmax(logits))


class Landmarksd(MapTransform):
    """The named points of an item as a target: heatmaps for training, coordinates for scores.

    The item holds ``{name: [x, y]}`` in pixels of its upright image, from the center of the first pixel. A name that is
    absent or null is a point that the image does not show.

    Args:
        keys: the item that holds the points.
        names: of the points, in the order of the channels.
        target_key: where the target is put.
        image_key: the image, before it is resized.
        spatial_size: ``(H, W)`` that the image will have; None leaves it as it is.
        sigma: of the heatmaps, as a share of the longer side; None gives coordinates ``(K, 2)``, row and column.
        allow_missing_keys: do not raise where the item has no points.

    Raises:
        ValueError: for an image that is not 2D, points that are not two numbers, outside of the image, or of a name
            that is not in ``names``.
    """

    backend = TORCH

    def __init__(
        self,
        keys: KeysCollection,
        names: Sequence[str],
        target_key: str = "label",
        image_key: str = "image",
        spatial_size: Sequence[int] | None = None,
        sigma: float | None = 0.02,
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.names = [str(name) for name in names or ()]
        self.target_key, self.image_key = target_key, image_key
        self.spatial_size, self.sigma = spatial_size, sigma

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        d = dict(data)
        for key in self.key_iterator(d):
            image = d[self.image_key]
            old = list(image.shape[1:])
            new = old if self.spatial_size is None else [int(n) for n in self.spatial_size]
            points = torch.tensor(self._read(d[key], old, image))
            points = (points + 0.5) * torch.tensor(new) / torch.tensor(old) - 0.5
            if self.sigma is not None:
                points = draw_heatmaps(points, new, self.sigma * max(new))
            d[self.target_key] = points
        return d

    def _read(self, given: Any, size: Sequence[int], image: torch.Tensor) -> list[list[float]]:
        file = image.meta.get("filename_or_obj", "an item") if isinstance(image, MetaTensor) else "an item"
        if len(size) != 2:
            raise ValueError(f"{file}: landmarks are found in 2D images alone; leave spatial_dims 2.")
        if not isinstance(given, Mapping) or set(given) - set(self.names):
            raise ValueError(
                f"{file}: its landmarks are {given!r}, expected an object with {', '.join(self.names)} as names; "
                "correct the datalist, or --landmarks."
            )
        points = []
        for name in self.names:
            point = given.get(name)
            if point is None:
                points.append([math.nan, math.nan])
                continue
            try:
                x, y = (float(value) for value in point)
            except (TypeError, ValueError):
                x = y = math.nan
            if not (-0.5 <= x <= size[1] - 0.5 and -0.5 <= y <= size[0] - 0.5):
                raise ValueError(
                    f"{file}: the landmark {name!r} is {point!r}, expected [x, y] within {size[1]} x {size[0]} pixels."
                )
            points.append([y, x])
        return points
