# Copyright (c) monai_usfm contributors
# SPDX-License-Identifier: Apache-2.0
"""What the networks for segmentation, classification and enhancement share."""

import inspect
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn as nn
import torch.nn.functional as F

from monai_usfm.networks.nets.vit import UltrasoundViT


def defaults_of(kind: type[nn.Module]) -> dict[str, Any]:
    """Arguments of a module that have a default, without ``num_maps``, which follows from other choices."""
    parameters = inspect.signature(kind).parameters.values()
    return {p.name: p.default for p in parameters if p.default is not p.empty and p.name != "num_maps"}


def module_path(module: nn.Module) -> str:
    """How a card names a module of the user: ``"module package.Class"``."""
    return f"module {type(module).__module__}.{type(module).__qualname__}"


def even_blocks(num_layers: int, count: int) -> list[int]:
    """Block indices at equal distances up to the last block: (12, 4) -> [2, 5, 8, 11]; all if there are fewer."""
    count = min(count, num_layers)
    return [num_layers * (k + 1) // count - 1 for k in range(count)]


def pad_to_patches(x: torch.Tensor, patch_size: list[int]) -> torch.Tensor:
    """Repeat the last row, column or plane until each size is a multiple of the patch size."""
    if x.dim() != len(patch_size) + 2:
        raise ValueError(
            f"expected an image batch (B, C, *S) with {len(patch_size)} spatial axes, got shape {list(x.shape)}."
        )
    pad: list[int] = []
    needed = False
    for axis in range(len(patch_size) - 1, -1, -1):
        extra = -x.shape[axis + 2] % patch_size[axis]
        pad.append(0)
        pad.append(extra)
        needed = needed or extra > 0
    if needed:
        return F.pad(x, pad, mode="replicate")
    return x


def crop_to(x: torch.Tensor, size: list[int]) -> torch.Tensor:
    """The leading ``size`` elements of each spatial axis: undoes :func:`pad_to_patches`."""
    for axis, length in enumerate(size):
        if x.shape[axis + 2] != length:
            x = x.narrow(axis + 2, 0, length)
    return x


class TaskNetwork(nn.Module):
    """An encoder and what is built on it.

    In evaluation under autocast what is built on the encoder runs in float32, see
    :func:`~monai_usfm.networks.blocks.in_float32`: of a segmentation's pyramid the stem and the last layer, of a
    classifier the pooling of several maps.

    Parts of the encoder in which nothing is trainable stay in evaluation mode (no drop path), whatever ``train`` says.

    Args:
        encoder: becomes part of the network and is not copied.
        indices: blocks whose outputs are used, or None where the final norm is used. What comes after the last of them
            gets no gradient and is therefore frozen: distributed training needs no search for unused parameters.

    Raises:
        ValueError: if an index is not a block of the encoder.
    """

    def __init__(self, encoder: UltrasoundViT, indices: Sequence[int] | None = None) -> None:
        super().__init__()
        self.encoder = encoder
        self.patch_size = [int(p) for p in encoder.patch_size]
        if indices is not None:
            for index in indices:
                if not 0 <= index < encoder.num_layers:
                    raise ValueError(f"block index {index} is outside 0..{encoder.num_layers - 1} of this encoder.")
            encoder.norm.requires_grad_(False)
            for block in list(encoder.blocks)[max(indices) + 1 :]:
                block.requires_grad_(False)

    def train(self, mode: bool = True) -> "TaskNetwork":
        """Training mode for all but the frozen parts of the encoder."""
        super().train(mode)
        for part in self.encoder.modules() if mode else ():
            parameters = list(part.parameters())
            if parameters and not any(p.requires_grad for p in parameters):
                part.eval()
        return self
