# Copyright (c) monai_usfm contributors
# SPDX-License-Identifier: Apache-2.0
"""Frozen features: one embedding per image, or feature maps."""

import torch
import torch.nn as nn

from monai_usfm.networks.nets.vit import UltrasoundViT

__all__ = ["FeatureExtractor"]


class FeatureExtractor(nn.Module):
    """One embedding per image: ``(B, C, *S) -> (B, E)``.

    Args:
        encoder: any :class:`UltrasoundViT`.
        pool: ``"mean"`` of the patch tokens (as USFM's classifier), or the ``"class"`` token.

    Raises:
        ValueError: for an unknown pool.
    """

    def __init__(self, encoder: UltrasoundViT, pool: str = "mean") -> None:
        super().__init__()
        if pool not in ("mean", "class"):
            raise ValueError(f'pool must be "mean" or "class", got {pool!r}.')
        self.encoder = encoder
        self.pool = pool

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """``(B, C, *S) -> (B, E)``."""
        tokens = self.encoder(x)
        return tokens[:, 0] if self.pool == "class" else tokens[:, 1:].mean(dim=1)

    def feature_maps(self, x: torch.Tensor, indices: list[int]) -> list[torch.Tensor]:
        """Maps ``(B, E, *grid)`` after the blocks ``indices``, see :meth:`UltrasoundViT.forward_intermediates`."""
        return self.encoder.forward_intermediates(x, indices)
