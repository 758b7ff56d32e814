# Copyright (c) monai_usfm contributors
# SPDX-License-Identifier: Apache-2.0
"""Encoder, pooling and one linear layer: a class for an image or volume."""

from typing import Any, cast

import torch
import torch.nn as nn

from monai_usfm.networks.blocks.precision import in_float32
from monai_usfm.networks.heads.pyramid import PyramidPool
from monai_usfm.networks.nets.task import TaskNetwork, even_blocks, module_path, pad_to_patches
from monai_usfm.networks.nets.vit import UltrasoundViT

__all__ = ["UltrasoundClassifier"]

POOLS = ("mean", "class", "attention", "pyramid")


class AttentionPool(nn.Module):
    """One learned query attends to all tokens: ``(B, N, E) -> (B, E)``."""

    def __init__(self, hidden_size: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.query = nn.Parameter(torch.zeros(1, 1, hidden_size))
        nn.init.trunc_normal_(self.query, std=0.02)
        self.key_value = nn.Linear(hidden_size, 2 * hidden_size)
        self.proj = nn.Linear(hidden_size, hidden_size)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        batch, count = tokens.shape[0], tokens.shape[1]
        k, v = self.key_value(tokens).reshape(batch, count, 2, self.num_heads, -1).permute(2, 0, 3, 1, 4).unbind(0)
        q = self.query.to(k.dtype).expand(batch, -1, -1).reshape(batch, 1, self.num_heads, -1).transpose(1, 2)
        pooled = nn.functional.scaled_dot_product_attention(q, k, v)
        return self.proj(pooled.transpose(1, 2).reshape(batch, -1))


class UltrasoundClassifier(TaskNetwork):
    """Classification of images and volumes: ``(B, C, *S) -> (B, num_classes)`` logits, for any size ``S``.

    Parameter names are those of the official fine-tuned classifiers (``fc_norm``, ``head``) beside ``encoder``.

    Args:
        num_classes: number of logits.
        pool: ``"mean"``, as in USFM: mean over the raw patch tokens of the last block, then ``fc_norm``; the encoder's
            own norm is unused and frozen. ``"class"``: the class token after the encoder's norm. ``"attention"``: a
            learned query attends to all tokens after the encoder's norm, then ``fc_norm``. ``"pyramid"``: the decoder
            of the segmentation network, pooled at every level (:class:`PyramidPool`), then ``fc_norm``; it sees pixels
            besides tokens, and starts from the weights of a segmentation network where they are given. Or a module of
            your own: called with the image ``(B, C, *S)`` and the maps of four blocks ``(B, E, *grid)`` by depth, it
            returns ``(B, out_channels)``, and has that attribute.
        dropout: rate of the dropout before the last layer.

    Raises:
        ValueError: for fewer than one class or an unknown ``pool``.
    """

    def __init__(
        self, encoder: UltrasoundViT, num_classes: int, pool: str | nn.Module = "mean", dropout: float = 0.0
    ) -> None:
        if num_classes < 1:
            raise ValueError(f"num_classes must be at least 1, got {num_classes}.")
        own = isinstance(pool, nn.Module)
        if not own and pool not in POOLS:
            raise ValueError(f"pool must be one of {', '.join(POOLS)}, or a module, got {pool!r}.")
        indices = even_blocks(encoder.num_layers, 4 if own or pool == "pyramid" else 1)
        super().__init__(encoder, indices if own or pool in ("mean", "pyramid") else None)
        self.num_classes = num_classes
        self.pooling = module_path(pool) if isinstance(pool, nn.Module) else pool
        self.indices = indices
        width = encoder.hidden_size
        self.pyramid_pool: nn.Module | None = None  # or the user's, which is called in the same way
        if isinstance(pool, nn.Module):
            self.pyramid_pool = pool
        elif pool == "pyramid":
            self.pyramid_pool = PyramidPool(width, encoder.in_channels, encoder.patch_size, len(indices))
        if self.pyramid_pool is not None:
            width = int(cast(Any, self.pyramid_pool).out_channels)
        self.attention_pool = AttentionPool(width, encoder.num_heads) if pool == "attention" else None
        self.fc_norm = nn.LayerNorm(width, eps=1e-6) if pool != "class" else None
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(width, num_classes)
        with torch.no_grad():  # as official: logits start near zero, and the encoder's first gradients are small
            nn.init.trunc_normal_(self.head.weight, std=0.02)
            self.head.weight.mul_(0.001)
            self.head.bias.zero_()

    def options(self) -> dict[str, Any]:
        """What beside the encoder builds this network."""
        return {"num_classes": self.num_classes, "pool": self.pooling}

    def forward_features(self, x: torch.Tensor) -> torch.Tensor:
        """Pooled embedding ``(B, C, *S) -> (B, F)``: what the last layer sees."""
        image = pad_to_patches(x, self.patch_size)
        if self.pyramid_pool is not None:
            maps = self.encoder.forward_intermediates(image, self.indices)
            pooled = self._pool(image, maps)
        elif self.pooling == "mean":
            pooled = self.encoder.forward_intermediates(image, self.indices)[0].flatten(2).mean(2)
        else:
            tokens = self.encoder.forward_features(image)
            pooled = tokens[:, 0] if self.attention_pool is None else self.attention_pool(tokens)
        return pooled if self.fc_norm is None else self.fc_norm(pooled)

    @in_float32
    def _pool(self, image: torch.Tensor, maps: list[torch.Tensor]) -> torch.Tensor:
        return self.pyramid_pool(image, maps)  # type: ignore[misc]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """``(B, C, *S) -> (B, num_classes)``."""
        return self.head(self.dropout(self.forward_features(x)))
