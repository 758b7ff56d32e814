# Copyright (c) monai_usfm contributors
# SPDX-License-Identifier: Apache-2.0
"""Encoder and segmentation head: a class for every pixel or voxel."""

from collections.abc import Sequence
from typing import Any

import torch

from monai_usfm.networks.heads.pyramid import PyramidHead
from monai_usfm.networks.nets.task import TaskNetwork, crop_to, even_blocks, pad_to_patches
from monai_usfm.networks.nets.vit import UltrasoundViT

__all__ = ["UltrasoundSegmenter"]


class UltrasoundSegmenter(TaskNetwork):
    """Segmentation of images and volumes: ``(B, C, *S) -> (B, num_classes, *S)`` for any size ``S``.

    Args:
        encoder: the encoder.
        num_classes: output channels; with background, or 1 for a single class decided by a sigmoid.
        head: ``"pyramid"``.
        indices: blocks whose outputs the head takes, in the order of depth.
        head_options: further keywords of the head.

    Raises:
        ValueError: for fewer than one class, an unknown head, or block indices that the encoder does not have.
    """

    def __init__(
        self,
        encoder: UltrasoundViT,
        num_classes: int,
        head: str = "pyramid",
        indices: Sequence[int] | None = None,
        **head_options: Any,
    ) -> None:
        if num_classes < 1:
            raise ValueError(f"num_classes must be at least 1, got {num_classes}.")
        if head not in ("pyramid",):
            raise ValueError(f"unknown head {head!r}")
        indices = list(indices) if indices is not None else even_blocks(encoder.num_layers, 4)
        super().__init__(encoder, indices)
        self.indices = indices
        self.head = PyramidHead(
            encoder.hidden_size, num_classes, encoder.in_channels, encoder.patch_size, len(indices), **head_options
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor | list[torch.Tensor]:
        size = x.shape[2:]
        image = pad_to_patches(x, self.patch_size)
        outputs = self.head(image, self.encoder.forward_intermediates(image, self.indices))
        outputs = [crop_to(output, size) for output in outputs]
        if self.training and len(outputs) > 1:
            return outputs
        return outputs[0]
