# Copyright (c) monai_usfm contributors
# SPDX-License-Identifier: Apache-2.0
"""Transformer block of BEiT, USFM and MAE: one implementation, and one place that chooses how attention is computed."""

import torch
import torch.nn as nn
import torch.nn.functional as F
from monai.networks.layers import DropPath
from torch.utils.checkpoint import checkpoint

__all__ = ["Attention", "TransformerBlock", "dot_product_attention"]


def dot_product_attention(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, bias: torch.Tensor | None = None
) -> torch.Tensor:
    """``softmax(q k^T / sqrt(d) + bias) v`` for ``(B, heads, N, d)`` tensors, by whichever kernel is fastest.

    On a CPU the fused kernel wins without gradients, but its backward loses to explicit products in reduced precision
    and where the bias is trained. On a GPU it always wins. All paths give the same values.
    """
    trained_bias = bias is not None and bias.requires_grad
    if bias is not None:
        bias = bias.to(q.dtype)
    if q.is_cuda or not q.requires_grad or not (q.dtype != torch.float32 or trained_bias):
        return F.scaled_dot_product_attention(q, k, v, attn_mask=bias)
    scores = torch.matmul(q * q.shape[-1] ** -0.5, k.transpose(-2, -1))
    if bias is not None:
        scores = scores + bias
    return torch.matmul(scores.softmax(dim=-1).to(v.dtype), v)


def rotate(x: torch.Tensor, rotation: torch.Tensor) -> torch.Tensor:
    """Turn channels k and k + d / 2 of ``(B, heads, N, d)`` by the angles of :class:`RotaryPositions`."""
    cosine, sine = rotation.to(x.dtype).unbind(0)
    first, second = x.chunk(2, dim=-1)
    return x * cosine + torch.cat([-second, first], dim=-1) * sine


class Attention(nn.Module):
    """Multi-head self-attention.

    Args:
        hidden_size: token width.
        num_heads: heads; must divide ``hidden_size``.
        key_bias: True gives one fused bias for q, k and v (``qkv.bias``); False gives BEiT's ``q_bias`` and ``v_bias``.
    """

    def __init__(self, hidden_size: int, num_heads: int, key_bias: bool) -> None:
        super().__init__()
        if hidden_size % num_heads != 0:
            raise ValueError(f"hidden_size {hidden_size} is not divisible by num_heads {num_heads}.")
        self.num_heads = num_heads
        self.qkv = nn.Linear(hidden_size, 3 * hidden_size, bias=key_bias)
        self.q_bias = None if key_bias else nn.Parameter(torch.zeros(hidden_size))
        self.v_bias = None if key_bias else nn.Parameter(torch.zeros(hidden_size))
        self.proj = nn.Linear(hidden_size, hidden_size)

    def forward(
        self, x: torch.Tensor, bias: torch.Tensor | None = None, rotation: torch.Tensor | None = None
    ) -> torch.Tensor:
        """``(B, N, E) -> (B, N, E)``; ``bias`` broadcasts to ``(B, heads, N, N)``, ``rotation`` see :func:`rotate`."""
        bias_qkv: torch.Tensor | None = self.qkv.bias
        if self.q_bias is not None and self.v_bias is not None:
            bias_qkv = torch.cat([self.q_bias, torch.zeros_like(self.q_bias), self.v_bias])
        qkv = F.linear(x, self.qkv.weight, bias_qkv)
        batch, count, width = x.shape[0], x.shape[1], x.shape[2]
        q, k, v = qkv.reshape(batch, count, 3, self.num_heads, width // self.num_heads).permute(2, 0, 3, 1, 4).unbind(0)
        if rotation is not None:
            q, k = rotate(q, rotation), rotate(k, rotation)
        attended = dot_product_attention(q, k, v, bias)
        return self.proj(attended.transpose(1, 2).reshape(batch, count, width))


class MLP(nn.Module):
    """Two linear layers with an exact GELU between, named as in published files (``fc1``, ``fc2``)."""

    def __init__(self, hidden_size: int, mlp_dim: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(hidden_size, mlp_dim)
        self.fc2 = nn.Linear(mlp_dim, hidden_size)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc2(F.gelu(self.fc1(x)))


class TransformerBlock(nn.Module):
    """Pre-norm block with optional layer scale and drop path.

    MONAI's block has neither layer scale, drop path nor an additive bias, and its LayerNorm epsilon is not the
    published 1e-6, so the weights of USFM and MAE need this one.

    Args:
        hidden_size: token width.
        mlp_dim: hidden width of the MLP.
        num_heads: attention heads.
        key_bias: see :class:`Attention`.
        layer_scale: initial value of ``gamma_1`` and ``gamma_2``; None builds neither.
        drop_path_rate: probability that a residual branch is dropped for a sample in training.
        eps: of the norms; 1e-6 as in most published networks.

    Attributes:
        use_checkpoint: keep the input alone and compute the block again for the gradient; False at first.
    """

    def __init__(
        self,
        hidden_size: int,
        mlp_dim: int,
        num_heads: int,
        key_bias: bool = True,
        layer_scale: float | None = None,
        drop_path_rate: float = 0.0,
        eps: float = 1e-6,
    ) -> None:
        super().__init__()
        self.use_checkpoint = False
        self.norm1 = nn.LayerNorm(hidden_size, eps=eps)
        self.attn = Attention(hidden_size, num_heads, key_bias)
        self.norm2 = nn.LayerNorm(hidden_size, eps=eps)
        self.mlp = MLP(hidden_size, mlp_dim)
        self.drop_path = DropPath(drop_path_rate) if drop_path_rate > 0 else nn.Identity()
        self.gamma_1 = None if layer_scale is None else nn.Parameter(torch.full((hidden_size,), float(layer_scale)))
        self.gamma_2 = None if layer_scale is None else nn.Parameter(torch.full((hidden_size,), float(layer_scale)))

    def forward(
        self, x: torch.Tensor, bias: torch.Tensor | None = None, rotation: torch.Tensor | None = None
    ) -> torch.Tensor:
        """``(B, N, E) -> (B, N, E)``; ``bias`` is added to the attention logits, ``rotation`` see :func:`rotate`."""
        if not torch.jit.is_scripting() and self.use_checkpoint and torch.is_grad_enabled():
            return checkpoint(self._compute, x, bias, rotation, use_reentrant=False)
        return self._compute(x, bias, rotation)

    def _compute(self, x: torch.Tensor, bias: torch.Tensor | None, rotation: torch.Tensor | None) -> torch.Tensor:
        x = self._add(x, self.gamma_1, self.attn(self.norm1(x), bias, rotation))
        return self._add(x, self.gamma_2, self.mlp(self.norm2(x)))

    def _add(self, x: torch.Tensor, gamma: torch.Tensor | None, branch: torch.Tensor) -> torch.Tensor:
        branch = self.drop_path(branch)
        return x + branch if gamma is None else torch.addcmul(x, gamma, branch)
