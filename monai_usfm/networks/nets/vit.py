# Copyright (c) monai_usfm contributors
# SPDX-License-Identifier: Apache-2.0
"""The encoder: a vision transformer for ultrasound images, cines and volumes."""

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn as nn
from monai.utils import ensure_tuple_rep

from monai_usfm.networks.blocks.patch_embed import PatchEmbedding, patch_grid
from monai_usfm.networks.blocks.position import RelativePositionBias, RotaryPositions, TokenPositions
from monai_usfm.networks.blocks.transformer import TransformerBlock

__all__ = ["FeatureExtractor", "UltrasoundViT", "usfm_vit"]

POSITIONS = ("relative", "relative_per_block", "sincos", "learnable", "rotary")


class UltrasoundViT(nn.Module):
    """Vision transformer of USFM (``pos_embed="relative"``) and of MAE/USF-MAE (``pos_embed="sincos"``), in 2D and 3D.

    Any input whose size is a multiple of the patch size works: positions are resized to its token grid. Parameter names
    are those of the published USFM file, so that its weights need no renaming.

    Jiao et al. 2024, https://arxiv.org/abs/2401.00153; He et al. 2022, https://arxiv.org/abs/2111.06377;
    Bao et al. 2022, https://arxiv.org/abs/2106.08254.

    Args:
        img_size: native image size in pixels, which sets the position table; one number or one per axis.
        patch_size: patch size in pixels; one number or one per axis.
        in_channels: image channels.
        spatial_dims: 2 for images (H, W), 3 for volumes (D, H, W) and cines (T, H, W).
        hidden_size: token width ``E``.
        mlp_dim: hidden width of the MLPs.
        num_layers: transformer blocks.
        num_heads: attention heads.
        pos_embed: ``"relative"`` (BEiT bias, one table shared by all blocks), ``"relative_per_block"`` (one table
            for each block, as in the official fine-tuned classifiers), ``"sincos"`` (fixed table), ``"learnable"`` or
            ``"rotary"`` (:class:`RotaryPositions`, and norms with an epsilon of 1e-5, as in DINOv3).
        layer_scale: initial scale of the residual branches; None builds no layer scale.
        drop_path_rate: stochastic depth of the last block; it grows linearly from zero.
        num_registers: tokens after the class token that no output shows, as of DINOv2 with registers (Darcet et al.
            2023, https://arxiv.org/abs/2309.16588); not with relative positions.

    Raises:
        ValueError: for registers with relative positions, an unknown ``pos_embed``, ``spatial_dims`` or a size that is
            no multiple of the patch size.
    """

    def __init__(
        self,
        img_size: Sequence[int] | int,
        patch_size: Sequence[int] | int = 16,
        in_channels: int = 1,
        spatial_dims: int = 2,
        hidden_size: int = 768,
        mlp_dim: int = 3072,
        num_layers: int = 12,
        num_heads: int = 12,
        pos_embed: str = "relative",
        layer_scale: float | None = 0.1,
        drop_path_rate: float = 0.0,
        num_registers: int = 0,
    ) -> None:
        super().__init__()
        if spatial_dims not in (2, 3):
            raise ValueError(f"spatial_dims must be 2 or 3, got {spatial_dims}.")
        if pos_embed not in POSITIONS:
            raise ValueError(f"pos_embed must be one of {', '.join(POSITIONS)}, got {pos_embed!r}.")
        self.spatial_dims = spatial_dims
        self.img_size = ensure_tuple_rep(img_size, spatial_dims)
        self.patch_size = ensure_tuple_rep(patch_size, spatial_dims)
        self.in_channels = in_channels
        self.hidden_size = hidden_size
        self.num_layers = num_layers
        self.num_heads = num_heads
        self.position = pos_embed
        self.grid = patch_grid(list(self.img_size), list(self.patch_size))
        self.num_registers = num_registers
        relative, rotary = pos_embed.startswith("relative"), pos_embed == "rotary"
        if relative and num_registers > 0:
            raise ValueError(f"registers have no relative positions: num_registers must be 0, got {num_registers}.")

        self.patch_embed = PatchEmbedding(in_channels, hidden_size, self.patch_size)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, hidden_size))
        registers = torch.zeros(1, num_registers, hidden_size) if num_registers > 0 else None
        self.register_tokens = None if registers is None else nn.Parameter(registers)
        tables = num_layers if pos_embed == "relative_per_block" else 1
        self.rel_pos_bias = RelativePositionBias(self.grid, num_heads, tables) if relative else None
        self.rope_embed = RotaryPositions(self.grid, hidden_size // num_heads) if rotary else None
        absolute = not relative and not rotary
        self.pos_embed = TokenPositions(self.grid, hidden_size, pos_embed == "learnable") if absolute else None
        rates = [drop_path_rate * i / max(num_layers - 1, 1) for i in range(num_layers)]
        eps = 1e-5 if rotary else 1e-6  # as published, and so are biases of the keys
        blocks = [TransformerBlock(hidden_size, mlp_dim, num_heads, absolute, layer_scale, r, eps) for r in rates]
        self.blocks = nn.ModuleList(blocks)
        self.norm = nn.LayerNorm(hidden_size, eps=eps)
        self._initialize(blocks)

    @torch.no_grad()
    def _initialize(self, blocks: Sequence[TransformerBlock]) -> None:
        """Truncated normal 0.02; the last layer of every branch shrinks with depth, as in BEiT."""
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Conv2d | nn.Conv3d):
                nn.init.trunc_normal_(module.weight, std=0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        nn.init.trunc_normal_(self.cls_token, std=0.02)
        if self.register_tokens is not None:
            nn.init.normal_(self.register_tokens, std=1e-6)
        for depth, block in enumerate(blocks, start=1):
            block.attn.proj.weight.div_(math.sqrt(2.0 * depth))
            block.mlp.fc2.weight.div_(math.sqrt(2.0 * depth))

    def no_weight_decay(self) -> set[str]:
        """Names of the parameters beyond biases and one-dimensional ones that optimizers should not decay."""
        return {"cls_token", "register_tokens", "pos_embed.table"}

    def token_grid(self, x: torch.Tensor) -> list[int]:
        """Token grid of an image batch ``(B, C, *S)``."""
        return [x.shape[axis + 2] // patch for axis, patch in enumerate(self.patch_size)]

    def _place(
        self, tokens: torch.Tensor, grid: list[int], keep: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None]:
        """Class token, registers and tokens with positions; bias of :class:`RelativePositionBias`; rotations."""
        cls_token = self.cls_token.to(tokens.dtype)
        bias: torch.Tensor | None = None
        rotation: torch.Tensor | None = None
        if self.pos_embed is not None:
            codes = self.pos_embed(grid).to(tokens.dtype)
            patch_codes = codes[:, 1:]
            if keep is not None:
                patch_codes = patch_codes[0][keep]
            tokens = tokens + patch_codes
            cls_token = cls_token + codes[:, :1]
        if self.rel_pos_bias is not None:
            bias = self.rel_pos_bias(grid, keep)
        if self.rope_embed is not None:
            rotation = self.rope_embed(grid, keep, 1 + self.num_registers)
        parts = [cls_token.expand(tokens.shape[0], -1, -1), tokens]
        if self.register_tokens is not None:
            parts.insert(1, self.register_tokens.to(tokens.dtype).expand(tokens.shape[0], -1, -1))
        return torch.cat(parts, dim=1), bias, rotation

    def run(
        self, tokens: torch.Tensor, grid: list[int], keep: torch.Tensor | None, indices: list[int], last: int
    ) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """Embedded patches ``(B, K, E)`` -> raw tokens ``(B, 1 + K, E)`` after block ``last``, and maps.

        The maps ``(B, E, *grid)`` are the outputs of the blocks ``indices`` without the class token; with ``keep``
        there are none.
        """
        x, bias, rotation = self._place(tokens, grid, keep)
        maps: dict[int, torch.Tensor] = {}
        for i, block in enumerate(self.blocks):
            if i <= last:
                x = block(x, _block_bias(bias, i), rotation)
                if i in indices:
                    patches = x[:, 1 + self.num_registers :]
                    maps[i] = patches.transpose(1, 2).reshape([x.shape[0], self.hidden_size] + grid)
        if self.num_registers > 0:
            x = torch.cat([x[:, :1], x[:, 1 + self.num_registers :]], dim=1)
        return x, [maps[index] for index in indices]

    def encode(self, tokens: torch.Tensor, grid: list[int], keep: torch.Tensor | None = None) -> torch.Tensor:
        """Embedded patches ``(B, K, E)`` of a token grid -> normalized tokens ``(B, 1 + K, E)``, class token first.

        ``keep`` (B, K) says which tokens of the grid they are; None means all, in row-major order.
        """
        no_maps: list[int] = []
        return self.norm(self.run(tokens, grid, keep, no_maps, self.num_layers - 1)[0])

    def forward_features(self, x: torch.Tensor, keep: torch.Tensor | None = None) -> torch.Tensor:
        """Normalized tokens, class token first.

        Args:
            x: images ``(B, C, *S)``, ``S`` a multiple of the patch size.
            keep: token indices ``(B, K)`` in row-major order of the grid; only those tokens go through the blocks, with
                their positions and relative biases. None keeps all.

        Returns:
            ``(B, 1 + N, E)``, or ``(B, 1 + K, E)`` in the order of ``keep``.
        """
        tokens = self.patch_embed(x)
        if keep is not None:
            tokens = tokens.gather(1, keep.unsqueeze(-1).expand(-1, -1, self.hidden_size))
        return self.encode(tokens, self.token_grid(x), keep)

    def forward_intermediates(self, x: torch.Tensor, indices: list[int]) -> list[torch.Tensor]:
        """Raw outputs of some blocks as maps: a list of ``(B, E, *grid)`` in the order of ``indices``.

        The class token is dropped and the final norm not applied.

        Raises:
            ValueError: for no index, or one that is not a block of this network.
        """
        if len(indices) == 0:
            raise ValueError("forward_intermediates needs the index of one block or more.")
        for index in indices:
            if index < 0 or index >= self.num_layers:
                raise ValueError(f"block index {index} (feature_blocks, indices) is outside 0..{self.num_layers - 1}.")
        return self.run(self.patch_embed(x), self.token_grid(x), None, indices, max(indices))[1]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """``(B, C, *S) -> (B, 1 + N, E)``: class token, then patch tokens in row-major order, after the final norm."""
        return self.forward_features(x)


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


def find_encoder(net: nn.Module) -> tuple[str, UltrasoundViT]:
    """Prefix of the encoder's parameters in a network, and the encoder; the network itself may be it."""
    for name, module in net.named_modules():
        if isinstance(module, UltrasoundViT):
            return (f"{name}." if name else ""), module
    raise ValueError(f"{type(net).__name__} holds no UltrasoundViT.")


def _block_bias(bias: torch.Tensor | None, block: int) -> torch.Tensor | None:
    """Bias of one block out of ``(tables, ...)``: its own table, or the only one."""
    if bias is None:
        return None
    return bias[block if bias.shape[0] > 1 else 0]


# Width and heads; the MLP is four times as wide and there are 12 blocks.
SIZES = {"tiny": (192, 3), "small": (384, 6), "base": (768, 12)}


def usfm_vit(network_size: str, **overrides: Any) -> UltrasoundViT:
    """Encoder of a named size: ``"tiny"`` (5.4 million parameters), ``"small"`` (21) or ``"base"`` (85, as USFM and
    USF-MAE); keywords override those of :class:`UltrasoundViT`.

    Raises:
        ValueError: for an unknown size.
    """
    if network_size not in SIZES:
        raise ValueError(f"network_size must be one of {', '.join(SIZES)}, got {network_size!r}.")
    width, heads = SIZES[network_size]
    settings: dict[str, Any] = {"img_size": 224, "hidden_size": width, "mlp_dim": 4 * width, "num_heads": heads}
    return UltrasoundViT(**{**settings, **overrides})
