# Copyright (c) monai_usfm contributors
# SPDX-License-Identifier: Apache-2.0
"""The light decoder: encoder maps from below, a shallow convolutional stem from the image itself, 2D and 3D."""

import math
from collections.abc import Sequence

import torch
import torch.nn as nn
import torch.nn.functional as F
from monai.networks.blocks import Convolution
from monai.networks.layers.factories import Conv, Dropout
from monai.utils import InterpolateMode, ensure_tuple

__all__ = ["PyramidDecoder", "PyramidHead", "pyramid_strides"]

ACTIVATION = ("leakyrelu", {"inplace": True, "negative_slope": 0.01})  # as DynUNet; a GELU costs 10 % of a CPU step


def pyramid_strides(patch_size: Sequence[int], finest: int = 1) -> list[tuple[int, ...]]:
    """Strides of the levels of a decoder in pixels, one per axis, from the patch size down to ``finest``.

    At each step the axes with the largest stride are refined by their smallest prime factor, so that anisotropic
    patches become isotropic first: (4, 16, 16) -> (4, 8, 8) -> (4, 4, 4) -> (2, 2, 2) -> (1, 1, 1).
    """
    levels = [tuple(int(p) for p in patch_size)]
    while max(levels[-1]) > finest:
        largest = max(levels[-1])
        levels.append(tuple(s // _smallest_factor(s) if s == largest else s for s in levels[-1]))
    return levels


def _smallest_factor(number: int) -> int:
    return next(f for f in range(2, number + 1) if number % f == 0)


def _upsample(spatial_dims: int, in_channels: int, out_channels: int, factor: Sequence[int]) -> nn.Module:
    """Each input element becomes a block of ``factor`` output elements by its own linear map."""
    if max(factor) == 1:
        return Conv[Conv.CONV, spatial_dims](in_channels, out_channels, kernel_size=1)
    return Conv[Conv.CONVTRANS, spatial_dims](in_channels, out_channels, kernel_size=factor, stride=factor)


class _MapInput(nn.Module):
    """Encoder map to a decoder level, ``(B, E, *grid) -> (B, C, *grid * factor)``: LayerNorm over E, then upsampling.

    Block outputs are not normalised in the encoder, and their scale grows with depth.
    """

    def __init__(self, spatial_dims: int, hidden_size: int, channels: int, factor: Sequence[int]) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(hidden_size, eps=1e-6)
        self.up = _upsample(spatial_dims, hidden_size, channels, factor)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.up(self.norm(x.movedim(1, -1)).movedim(-1, 1))


class PyramidDecoder(nn.Module):
    """Fuses encoder maps and a convolutional stem into features at (or near) full resolution.

    Levels run from the patch size to the pixel (see :func:`pyramid_strides`). Each level is the sum of the level below,
    upsampled, one encoder map and the stem, then one 3x3 convolution. The deepest map enters at the patch size, earlier
    blocks at finer levels, as in UNETR (Hatamizadeh et al. 2022, https://arxiv.org/abs/2103.10504); sums and single
    convolutions in place of its concatenations and residual blocks keep the cost below that of a ViT-tiny encoder.
    The stem sees the pixels, so that boundaries are not limited by the patch size.

    Args:
        hidden_size: channels ``E`` of the encoder maps.
        in_channels: channels of the image.
        patch_size: patch size of the encoder, one number per spatial axis.
        num_maps: encoder maps, in the order of their depth.
        width: channels of the coarse levels; halved at stride 2 and again at stride 1.
        finest: stride in pixels of the finest level: 1, 2 or 4.
        normalize: GroupNorm after each convolution. Without it, features do not depend on statistics of the window.
    """

    def __init__(
        self,
        hidden_size: int,
        in_channels: int,
        patch_size: Sequence[int],
        num_maps: int = 4,
        width: int = 64,
        finest: int = 1,
        normalize: bool = True,
    ) -> None:
        super().__init__()
        if finest not in (1, 2, 4):
            raise ValueError(f"finest must be 1, 2 or 4 pixels, got {finest}.")
        if width < 8 or width % 4 != 0:
            raise ValueError(f"width must be a multiple of 4 and at least 8, got {width}.")
        dims = len(patch_size)
        self.strides = pyramid_strides(patch_size, finest)
        channels = [max(4, round(width * min(1.0, max(stride) / 4))) for stride in self.strides]
        factors = [
            tuple(a // b for a, b in zip(p, q, strict=True))
            for p, q in zip(self.strides[:-1], self.strides[1:], strict=True)
        ]
        self.out_channels = channels[-1]

        def convolution(inputs: int, outputs: int, stride: Sequence[int]) -> Convolution:
            kernel = [max(3, s + 1 - s % 2) for s in stride]  # odd, and no pixel is stepped over
            norm = ("group", {"num_groups": math.gcd(8, outputs)}) if normalize else None
            return Convolution(
                dims, inputs, outputs, tuple(stride), kernel, adn_ordering="NA", act=ACTIVATION, norm=norm
            )

        # Map k (from the deepest) enters at level k; what is left over enters at the finest.
        levels = [min(k, len(factors)) for k in range(num_maps)]
        self.map_levels = levels
        self.maps = nn.ModuleList(
            _MapInput(
                dims,
                hidden_size,
                channels[level],
                [a // b for a, b in zip(self.strides[0], self.strides[level], strict=True)],
            )
            for level in levels
        )
        # The stem runs from fine to coarse and serves every level but the coarsest.
        stem = []
        inputs, stride = in_channels, (1,) * dims
        for level in range(len(factors), 0, -1):
            step = [max(1, b // a) for a, b in zip(stride, self.strides[level], strict=True)]
            stem.append(convolution(inputs, channels[level], step))
            inputs, stride = channels[level], self.strides[level]
        self.stem = nn.ModuleList(stem)
        self.up = nn.ModuleList(_upsample(dims, channels[i], channels[i + 1], f) for i, f in enumerate(factors))
        self.fuse = nn.ModuleList(convolution(c, c, (1,) * dims) for c in channels)

    def forward(self, image: torch.Tensor, maps: list[torch.Tensor]) -> torch.Tensor:
        """``(B, C, *S)`` and ``num_maps`` maps ``(B, E, *grid)`` by depth -> ``(B, out_channels, *S / finest)``."""
        skips: list[torch.Tensor] = []
        detail = image
        for stem in self.stem:
            detail = stem(detail)
            skips.append(detail)
        inputs: list[list[torch.Tensor]] = [[] for _ in range(len(skips) + 1)]
        for k, project in enumerate(self.maps):
            inputs[self.map_levels[k]].append(project(maps[len(maps) - 1 - k]))
        x = inputs[0][0]
        for other in inputs[0][1:]:
            x = x + other
        for level, fuse in enumerate(self.fuse):
            if level > 0:
                x = x + skips[len(skips) - level]
                for other in inputs[level]:
                    x = x + other
            x = fuse(x)
            for i, up in enumerate(self.up):  # TorchScript indexes a ModuleList by constants only
                if i == level:
                    x = up(x)
        return x


class PyramidHead(nn.Module):
    """Segmentation head: :class:`PyramidDecoder`, dropout and one linear layer per pixel.

    Args:
        hidden_size: channels of the encoder maps.
        num_classes: channels of the output.
        in_channels: channels of the image.
        patch_size: patch size of the encoder, one number per spatial axis.
        num_maps: encoder maps.
        width: channels of the coarse levels, see :class:`PyramidDecoder`.
        finest: stride in pixels at which classes are decided: 1, 2 or 4; above 1, logits are interpolated.
        dropout: rate of the channel dropout before the last layer.
    """

    def __init__(
        self,
        hidden_size: int,
        num_classes: int,
        in_channels: int,
        patch_size: Sequence[int],
        num_maps: int = 4,
        width: int = 64,
        finest: int = 1,
        dropout: float = 0.1,
    ) -> None:
        super().__init__()
        dims = len(ensure_tuple(patch_size))
        self.decoder = PyramidDecoder(hidden_size, in_channels, patch_size, num_maps, width, finest)
        self.dropout = Dropout[Dropout.DROPOUT, dims](dropout)
        self.conv_seg = Conv[Conv.CONV, dims](self.decoder.out_channels, num_classes, kernel_size=1)
        self.mode = str(InterpolateMode.BILINEAR if dims == 2 else InterpolateMode.TRILINEAR)
        self.finest = finest

    def forward(self, image: torch.Tensor, maps: list[torch.Tensor]) -> list[torch.Tensor]:
        """``(B, C, *S)`` and maps ``(B, E, *grid)`` by depth -> one entry, logits ``(B, num_classes, *S)``."""
        logits = self.conv_seg(self.dropout(self.decoder(image, maps)))
        if self.finest > 1:
            logits = F.interpolate(logits, size=image.shape[2:], mode=self.mode, align_corners=False)
        return [logits]
