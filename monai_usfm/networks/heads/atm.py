# Copyright (c) monai_usfm contributors
# SPDX-License-Identifier: Apache-2.0
"""SegViT's attention-to-mask head: where the query of a class attends is the mask of that class."""

from collections.abc import Sequence

import torch
import torch.nn as nn
import torch.nn.functional as F

from monai_usfm.networks.heads.upernet import finer_by_four, finer_by_two

__all__ = ["ATMHead"]

STAGES = 3
LAYERS_PER_STAGE = 3
HEAD_WIDTH = 32


class _MaskAttention(nn.Module):
    """Attention of class queries to tokens that also returns its logits, averaged over heads."""

    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.q = nn.Linear(width, width)
        self.k = nn.Linear(width, width)
        self.v = nn.Linear(width, width)
        self.proj = nn.Linear(width, width)

    def _heads(self, x: torch.Tensor) -> torch.Tensor:
        return x.reshape(x.shape[0], x.shape[1], self.num_heads, -1).transpose(1, 2)

    def forward(self, queries: torch.Tensor, tokens: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """``(B, Q, W), (B, N, W) -> (B, Q, W), (B, Q, N)``."""
        q, k, v = self._heads(self.q(queries)), self._heads(self.k(tokens)), self._heads(self.v(tokens))
        scores = torch.matmul(q * q.shape[-1] ** -0.5, k.transpose(-2, -1))
        out = torch.matmul(scores.softmax(dim=-1), v).transpose(1, 2).reshape(queries.shape)
        return self.proj(out), scores.mean(dim=1)


class _DecoderLayer(nn.Module):
    """Self-attention among queries, attention to tokens, MLP; post-norm, as published."""

    def __init__(self, width: int, num_heads: int, dropout: float) -> None:
        super().__init__()
        self.self_attn = nn.MultiheadAttention(width, num_heads, dropout=dropout, batch_first=True)
        self.multihead_attn = _MaskAttention(width, num_heads)
        self.linear1 = nn.Linear(width, 4 * width)
        self.linear2 = nn.Linear(4 * width, width)
        self.norm1 = nn.LayerNorm(width)
        self.norm2 = nn.LayerNorm(width)
        self.norm3 = nn.LayerNorm(width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, queries: torch.Tensor, tokens: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        attended, _ = self.self_attn(queries, queries, queries, need_weights=False)
        queries = self.norm1(queries + self.dropout(attended))
        attended, scores = self.multihead_attn(queries, tokens)
        queries = self.norm2(queries + self.dropout(attended))
        hidden = self.dropout(F.relu(self.linear1(queries)))
        return self.norm3(queries + self.dropout(self.linear2(hidden))), scores


class _Decoder(nn.Module):
    """The layers of one stage; the scores are those of the last layer."""

    def __init__(self, width: int, num_heads: int, dropout: float) -> None:
        super().__init__()
        self.layers = nn.ModuleList(_DecoderLayer(width, num_heads, dropout) for _ in range(LAYERS_PER_STAGE))

    def forward(self, queries: torch.Tensor, tokens: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        scores = queries
        for layer in self.layers:
            queries, scores = layer(queries, tokens)
        return queries, scores


class ATMHead(nn.Module):
    """Attention-to-mask head of SegViT as configured by USFM: one query per class, three stages, in 2D and 3D.

    Maps are made 4x, 2x and 1x as fine as the token grid and visited from the deepest. In each stage the queries go
    through three decoder layers; the logits of the last attention, averaged over heads, are the mask logits of the
    stage, and those of the stages add up. Zhang et al. 2022, https://arxiv.org/abs/2210.05844.

    The prediction is ``log p``. ``p`` is the sum over queries of ``softmax(class logits)``, "no object" left out, times
    ``sigmoid(mask logits)``, normalized over classes: its softmax is ``p``, its arg max the published one.

    Args:
        hidden_size, patch_size: see :class:`~monai_usfm.networks.heads.PyramidDecoder`.
        num_classes: classes with background; at least 2.
        width: channels of queries and tokens, a multiple of 32; None takes half of ``hidden_size`` (384 for ViT-B, as
            published) rounded up to one.
        norm: MONAI norm name in the finer maps.
        dropout: rate of the dropouts in the decoder layers.
    """

    def __init__(
        self,
        hidden_size: int,
        num_classes: int,
        patch_size: Sequence[int],
        width: int | None = None,
        norm: str | tuple = "batch",
        dropout: float = 0.1,
    ) -> None:
        super().__init__()
        if num_classes < 2:
            raise ValueError(f'head "segvit" needs a background and at least one other class, got {num_classes} class.')
        if width is None:
            width = -(-hidden_size // (2 * HEAD_WIDTH)) * HEAD_WIDTH
        if width < HEAD_WIDTH or width % HEAD_WIDTH != 0:
            raise ValueError(f"width must be a multiple of {HEAD_WIDTH}, got {width}.")
        self.fpn1 = finer_by_four(hidden_size, patch_size, norm)
        self.fpn2 = finer_by_two(hidden_size, patch_size)
        self.input_proj = nn.ModuleList(nn.Linear(hidden_size, width) for _ in range(STAGES))
        self.proj_norm = nn.ModuleList(nn.LayerNorm(width) for _ in range(STAGES))
        self.decoder = nn.ModuleList(_Decoder(width, width // HEAD_WIDTH, dropout) for _ in range(STAGES))
        self.q = nn.Embedding(num_classes, width)
        self.class_embed = nn.Linear(width, num_classes + 1)
        self.mode = "bilinear" if len(patch_size) == 2 else "trilinear"

    def forward(self, image: torch.Tensor, maps: list[torch.Tensor]) -> list[torch.Tensor]:
        """Three maps ``(B, E, *grid)`` by depth, image ``(B, C, *S)`` -> log-probabilities ``(B, num_classes, *S)``.

        In training the outputs of the stages follow, for :class:`monai_usfm.losses.ATMLoss`: class logits
        ``(B, Q, num_classes + 1)`` and mask logits ``(B, Q, *S)`` of the first stage, of the second, of the third.
        """
        levels = [maps[2], self.fpn2(maps[1]), self.fpn1(maps[0])]
        finest = levels[2].shape[2:]
        queries = self.q.weight.unsqueeze(0).expand(image.shape[0], -1, -1)
        states: list[torch.Tensor] = []
        masks: list[torch.Tensor] = []
        for stage, (project, norm, decoder) in enumerate(
            zip(self.input_proj, self.proj_norm, self.decoder, strict=True)
        ):
            level = levels[stage]
            queries, scores = decoder(queries, norm(project(level.flatten(2).transpose(1, 2))))
            mask = F.interpolate(scores.reshape(list(scores.shape[:2]) + list(level.shape[2:])), finest, mode=self.mode)
            masks.append(mask if stage == 0 else masks[stage - 1] + mask)
            states.append(queries)
        outputs: list[torch.Tensor] = []
        last = F.interpolate(masks[2], list(image.shape[2:]), mode=self.mode)
        outputs.append(self._predict(self.class_embed(states[2]), last))
        if self.training:
            for stage in range(2):
                outputs.append(self.class_embed(states[stage]))
                outputs.append(F.interpolate(masks[stage], list(image.shape[2:]), mode=self.mode))
            outputs.append(self.class_embed(states[2]))
            outputs.append(last)
        return outputs

    def _predict(self, classes: torch.Tensor, masks: torch.Tensor) -> torch.Tensor:
        """``(B, Q, K + 1), (B, Q, *S) -> (B, K, *S)`` log-probabilities."""
        weights = classes.float().softmax(dim=-1)[..., :-1].transpose(1, 2)
        scores = torch.matmul(weights, masks.float().sigmoid().flatten(2))
        # A class that no query votes for still has a finite logarithm.
        log_p = scores.clamp_min(1e-8).log().log_softmax(dim=1)
        return log_p.reshape(list(log_p.shape[:2]) + list(masks.shape[2:]))
