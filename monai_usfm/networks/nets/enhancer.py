# Copyright (c) monai_usfm contributors
# SPDX-License-Identifier: Apache-2.0
"""Encoder and pyramid decoder that predict a correction of the image."""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn as nn
from monai.networks.layers.factories import Dropout

from monai_usfm.networks.blocks.precision import in_float32
from monai_usfm.networks.heads.pyramid import PyramidDecoder, upsampling
from monai_usfm.networks.nets.task import TaskNetwork, crop_to, even_blocks, pad_to_patches
from monai_usfm.networks.nets.vit import UltrasoundViT

__all__ = ["UltrasoundEnhancer"]


class UltrasoundEnhancer(TaskNetwork):
    """Image enhancement and despeckling: ``(B, C, *S) -> (B, out_channels, *S)`` for any size ``S``, 2D and 3D.

    The network predicts a correction that is added to its input, and starts as the identity: the last layer is zero.
    In evaluation the sum is clamped to [0, 1], the range of images here; in training it is not, so that gradients reach
    values beyond. There is no normalization over the window in the decoder, so the mean brightness of the window
    reaches a pixel through the attention of the encoder alone; sliding windows are blended.

    The design is ours (USFM publishes no enhancement network): residual restoration as in Zhang et al. 2017,
    https://arxiv.org/abs/1608.03981; no batch statistics as in Lim et al. 2017, https://arxiv.org/abs/1707.02921.

    Args:
        out_channels: channels of the output: those of the image, or 1, which corrects the mean over its channels.
        indices: encoder blocks whose outputs are decoded, by depth; None takes four at equal distances.
        width, finest: see :class:`PyramidDecoder`.
        dropout: rate of the channel dropout before the last layer, for Monte-Carlo dropout.

    Raises:
        ValueError: for another number of output channels, or block indices that the encoder does not have.
    """

    def __init__(
        self,
        encoder: UltrasoundViT,
        out_channels: int = 1,
        indices: Sequence[int] | None = None,
        width: int = 128,
        finest: int = 1,
        dropout: float = 0.0,
    ) -> None:
        if out_channels not in (1, encoder.in_channels):
            raise ValueError(
                f"out_channels must be 1 or the {encoder.in_channels} channel(s) of the encoder, got {out_channels}."
            )
        chosen = even_blocks(encoder.num_layers, 4) if indices is None else list(indices)
        super().__init__(encoder, chosen)
        self.indices = chosen
        self.out_channels = out_channels
        self.width = width
        self.finest = finest
        self.gray = out_channels != encoder.in_channels
        dims = encoder.spatial_dims
        self.decoder = PyramidDecoder(
            encoder.hidden_size, encoder.in_channels, encoder.patch_size, len(chosen), width, finest, normalize=False
        )
        self.dropout = Dropout[Dropout.DROPOUT, dims](dropout)
        self.correction = upsampling(dims, self.decoder.out_channels, out_channels, self.decoder.strides[-1])
        for parameter in self.correction.parameters():
            nn.init.zeros_(parameter)

    def options(self) -> dict[str, Any]:
        """What beside the encoder builds this network."""
        return {name: getattr(self, name) for name in ("out_channels", "indices", "width", "finest")}

    @in_float32
    def _correction(self, image: torch.Tensor, maps: list[torch.Tensor]) -> torch.Tensor:
        return self.correction(self.dropout(self.decoder(image, maps)))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """``(B, C, *S) -> (B, out_channels, *S)``; within [0, 1] in evaluation."""
        image = pad_to_patches(x, self.patch_size)
        maps = self.encoder.forward_intermediates(image, self.indices)
        base = x.mean(1, keepdim=True) if self.gray else x
        enhanced = base + crop_to(self._correction(image, maps), list(x.shape[2:]))
        return enhanced if self.training else enhanced.clamp(0.0, 1.0)
