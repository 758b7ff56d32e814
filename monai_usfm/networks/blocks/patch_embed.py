# Copyright (c) monai_usfm contributors
# SPDX-License-Identifier: Apache-2.0
"""Image to tokens and back, for 2D and 3D in one code path."""

from collections.abc import Sequence

import torch
import torch.nn as nn
from monai.networks.layers.factories import Conv

__all__ = ["PatchEmbedding", "patch_grid", "patchify", "unpatchify"]


def patch_grid(spatial_shape: list[int], patch_size: list[int]) -> list[int]:
    """Number of patches along each axis.

    Raises:
        ValueError: if a size is not a positive multiple of its patch size.
    """
    grid: list[int] = []
    for axis, patch in enumerate(patch_size):  # a plain loop, which TorchScript can compile
        if spatial_shape[axis] < patch or spatial_shape[axis] % patch != 0:
            raise ValueError(
                f"image size {spatial_shape} is not a multiple of patch size {patch_size}: "
                "resize or pad the image (for example with monai.transforms.DivisiblePadd)."
            )
        grid.append(spatial_shape[axis] // patch)
    return grid


def patchify(image: torch.Tensor, patch_size: Sequence[int]) -> torch.Tensor:
    """Cut an image into flat patches: ``(B, C, *S) -> (B, N, prod(patch) * C)``.

    Patches are in row-major order and each is laid out (``*patch``, channel), the layout of the MAE reference.
    """
    dims = len(patch_size)
    grid = patch_grid(list(image.shape[2:]), list(patch_size))
    split = [n for pair in zip(grid, patch_size, strict=True) for n in pair]
    order = [0, *range(2, 2 + 2 * dims, 2), *range(3, 3 + 2 * dims, 2), 1]
    return image.reshape(*image.shape[:2], *split).permute(order).flatten(1 + dims).flatten(1, dims)


def unpatchify(patches: torch.Tensor, grid: Sequence[int], patch_size: Sequence[int]) -> torch.Tensor:
    """Inverse of :func:`patchify`: ``(B, N, prod(patch) * C) -> (B, C, *S)``."""
    dims = len(grid)
    image = patches.reshape(patches.shape[0], *grid, *patch_size, -1)
    order = [0, 1 + 2 * dims]
    for axis in range(dims):
        order += [1 + axis, 1 + dims + axis]
    image = image.permute(order)
    size = [g * p for g, p in zip(grid, patch_size, strict=True)]
    return image.reshape(patches.shape[0], -1, *size)


class PatchEmbedding(nn.Module):
    """Linear embedding of non-overlapping patches: ``(B, C, *S) -> (B, N, E)``, ``N = prod(S // patch_size)``.

    Tokens are in row-major order. The weights are those of a strided convolution (``proj``), as in published ViT files.
    """

    def __init__(self, in_channels: int, hidden_size: int, patch_size: Sequence[int]) -> None:
        super().__init__()
        self.spatial_dims = len(patch_size)
        self.patch_size = [int(n) for n in patch_size]
        self.in_channels = in_channels
        self.proj = Conv[Conv.CONV, self.spatial_dims](
            in_channels, hidden_size, kernel_size=self.patch_size, stride=self.patch_size
        )

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """``(B, C, *S) -> (B, N, E)``.

        Raises:
            ValueError: for another number of channels or axes, or a size that is no multiple of the patch size.
        """
        if image.dim() != self.spatial_dims + 2:
            raise ValueError(
                f"expected an image batch (B, C, *S) with {self.spatial_dims} spatial axes, got shape {image.shape}."
            )
        if image.shape[1] != self.in_channels:
            raise ValueError(
                f"the network takes {self.in_channels} channel(s), the image batch of shape {image.shape} has "
                f"{image.shape[1]}: set in_channels, or convert the image."
            )
        patch_grid(list(image.shape[2:]), self.patch_size)  # refuses other sizes
        return self.proj(image).flatten(2).transpose(1, 2)
