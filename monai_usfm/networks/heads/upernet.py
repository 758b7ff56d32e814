# Copyright (c) monai_usfm contributors
# SPDX-License-Identifier: Apache-2.0
"""UPerNet: pyramid pooling on the deepest map, a feature pyramid over all of them."""

from collections.abc import Sequence

import torch
import torch.nn as nn
import torch.nn.functional as F
from monai.networks.layers.factories import Conv, Dropout, Pool
from monai.networks.layers.utils import get_norm_layer

__all__ = ["UPerNetHead"]

POOL_SIZES = (1, 2, 3, 6)
AUXILIARY_WIDTH = 256


def _double(hidden_size: int, patch_size: Sequence[int], at_least: int) -> nn.Module:
    """Transposed convolution that doubles the axes whose patches are ``at_least`` pixels long."""
    factor = [2 if patch >= at_least else 1 for patch in patch_size]
    return Conv[Conv.CONVTRANS, len(patch_size)](hidden_size, hidden_size, kernel_size=factor, stride=factor)


def finer_by_four(hidden_size: int, patch_size: Sequence[int], norm: str | tuple) -> nn.Sequential:
    """Four times finer map, ``fpn1`` of the official backbone; an axis never gets finer than the pixel."""
    return nn.Sequential(
        _double(hidden_size, patch_size, 2),
        get_norm_layer(norm, len(patch_size), hidden_size),
        nn.GELU(),
        _double(hidden_size, patch_size, 4),
    )


def finer_by_two(hidden_size: int, patch_size: Sequence[int]) -> nn.Sequential:
    """Twice finer map, ``fpn2`` of the official backbone."""
    return nn.Sequential(_double(hidden_size, patch_size, 2))


class AdaptiveMean(nn.Module):
    """Adaptive average pooling, ``(B, C, *S) -> (B, C, *[cells] * len(S))``, one axis after the other.

    Equal to PyTorch's; as matrix products it goes to ONNX in 3D and for sizes that ``cells`` does not divide.
    """

    def __init__(self, spatial_dims: int, cells: int) -> None:
        super().__init__()
        self.spatial_dims = spatial_dims
        self.cells = cells

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for axis in range(2, 2 + self.spatial_dims):
            length = x.shape[axis]
            cell = torch.arange(self.cells, device=x.device).unsqueeze(1)
            start = torch.div(cell * length, self.cells, rounding_mode="floor")
            stop = torch.div((cell + 1) * length + self.cells - 1, self.cells, rounding_mode="floor")
            place = torch.arange(length, device=x.device).unsqueeze(0)
            weights = ((place >= start) & (place < stop)).to(x.dtype) / (stop - start).to(x.dtype)
            x = torch.matmul(x.movedim(axis, -1), weights.t()).movedim(-1, axis)
        return x


class _ConvNormReLU(nn.Module):
    """Convolution without bias, norm, ReLU; named as in the published files (``conv``, ``bn``)."""

    def __init__(self, dims: int, in_channels: int, out_channels: int, kernel_size: int, norm: str | tuple) -> None:
        super().__init__()
        self.conv = Conv[Conv.CONV, dims](
            in_channels, out_channels, kernel_size=kernel_size, padding=kernel_size // 2, bias=False
        )
        self.bn = get_norm_layer(norm, dims, out_channels)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.relu(self.bn(self.conv(x)))


class _FCNHead(nn.Module):
    """Auxiliary head of the official configuration: one 3x3 convolution, dropout, one linear layer per pixel."""

    def __init__(self, dims: int, hidden_size: int, num_classes: int, norm: str | tuple, dropout: float) -> None:
        super().__init__()
        self.convs = nn.Sequential(_ConvNormReLU(dims, hidden_size, AUXILIARY_WIDTH, 3, norm))
        self.dropout = Dropout[Dropout.DROPOUT, dims](dropout)
        self.conv_seg = Conv[Conv.CONV, dims](AUXILIARY_WIDTH, num_classes, kernel_size=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.conv_seg(self.dropout(self.convs(x)))


class UPerNetHead(nn.Module):
    """UPerNet on four maps of a plain ViT, as in the segmentation configuration of USFM, in 2D and 3D.

    The maps are made 4x, 2x, 1x and 1/2x as fine as the token grid; the last one gets pooled context (1, 2, 3 and 6
    cells per axis), context flows from coarse to fine, and all levels are fused at the finest. Parameter names are
    those of the published files. Xiao et al. 2018, https://arxiv.org/abs/1807.10221.

    Args:
        hidden_size, patch_size: see :class:`~monai_usfm.networks.heads.PyramidDecoder`.
        num_classes: channels of the output.
        width: channels inside the head. The official 768 costs 85 % of a ViT-B segmenter's operations.
        norm: MONAI norm name; ``("group", {"num_groups": 8})`` suits small batches, and batches of one image.
        dropout: rate of the channel dropout before the last layers.
        auxiliary: also classify the third map, in training: :meth:`forward` then returns ``[logits, auxiliary
            logits]``, which ``monai.losses.DeepSupervisionLoss(loss, weights=[1.0, 0.4])`` takes.
    """

    def __init__(
        self,
        hidden_size: int,
        num_classes: int,
        patch_size: Sequence[int],
        width: int = 256,
        norm: str | tuple = "batch",
        dropout: float = 0.1,
        auxiliary: bool = False,
    ) -> None:
        super().__init__()
        if width < 1:
            raise ValueError(f"width must be at least 1, got {width}.")
        dims = len(patch_size)
        self.fpn1 = finer_by_four(hidden_size, patch_size, norm)
        self.fpn2 = finer_by_two(hidden_size, patch_size)
        # Odd grids keep their last line, and a single plane stays one.
        self.fpn4 = Pool[Pool.MAX, dims](kernel_size=2, stride=2, ceil_mode=True)
        self.psp_modules = nn.ModuleList(
            nn.Sequential(AdaptiveMean(dims, size), _ConvNormReLU(dims, hidden_size, width, 1, norm))
            for size in POOL_SIZES
        )
        self.bottleneck = _ConvNormReLU(dims, hidden_size + len(POOL_SIZES) * width, width, 3, norm)
        self.lateral_convs = nn.ModuleList(_ConvNormReLU(dims, hidden_size, width, 1, norm) for _ in range(3))
        self.fpn_convs = nn.ModuleList(_ConvNormReLU(dims, width, width, 3, norm) for _ in range(3))
        self.fpn_bottleneck = _ConvNormReLU(dims, 4 * width, width, 3, norm)
        self.dropout = Dropout[Dropout.DROPOUT, dims](dropout)
        self.conv_seg = Conv[Conv.CONV, dims](width, num_classes, kernel_size=1)
        self.auxiliary_head = _FCNHead(dims, hidden_size, num_classes, norm, dropout) if auxiliary else None
        self.mode = "bilinear" if dims == 2 else "trilinear"
        self.needs_two = isinstance(self.bottleneck.bn, nn.BatchNorm2d | nn.BatchNorm3d)  # one pooled cell per image

    def forward(self, image: torch.Tensor, maps: list[torch.Tensor]) -> list[torch.Tensor]:
        """Four maps ``(B, E, *grid)`` by depth, image ``(B, C, *S)`` -> logits ``(B, num_classes, *S)``.

        In training, and with ``auxiliary``, the auxiliary logits follow.

        Raises:
            ValueError: for one image in training with batch norm, which has nothing to normalize the pooled image by.
        """
        if self.training and self.needs_two and image.shape[0] == 1:
            raise ValueError(
                "UPerNet with batch norm cannot be trained on a batch of one image: use a batch_size of 2 or more, or "
                "group norm (plan#norm)."
            )
        deepest = self.fpn4(maps[3])
        context = [deepest]
        for pool in self.psp_modules:
            context.append(F.interpolate(pool(deepest), list(deepest.shape[2:]), mode=self.mode))
        levels = [self.fpn1(maps[0]), self.fpn2(maps[1]), maps[2]]
        laterals: list[torch.Tensor] = []
        for i, lateral in enumerate(self.lateral_convs):
            laterals.append(lateral(levels[i]))
        laterals.append(self.bottleneck(torch.cat(context, dim=1)))
        for i in range(3, 0, -1):
            finer = laterals[i - 1]
            laterals[i - 1] = finer + F.interpolate(laterals[i], list(finer.shape[2:]), mode=self.mode)
        fused = [laterals[3]]
        for i, convolution in enumerate(self.fpn_convs):
            fused.insert(i, convolution(laterals[i]))
        fused = [fused[0]] + [F.interpolate(x, list(fused[0].shape[2:]), mode=self.mode) for x in fused[1:]]
        features = self.fpn_bottleneck(torch.cat(fused, dim=1))
        outputs = [F.interpolate(self.conv_seg(self.dropout(features)), list(image.shape[2:]), mode=self.mode)]
        if self.auxiliary_head is not None and self.training:
            outputs.append(F.interpolate(self.auxiliary_head(maps[2]), list(image.shape[2:]), mode=self.mode))
        return outputs
