# Copyright (c) monai_usfm contributors
# SPDX-License-Identifier: Apache-2.0
"""Which tokens a pretraining step hides."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn as nn
import torch.nn.functional as F

KINDS = ("uniform", "block", "tube", "texture")


def _pool(image: torch.Tensor, patch_size: Sequence[int]) -> torch.Tensor:
    """Mean over every patch: ``(B, 1, *S) -> (B, N)``."""
    pool = F.avg_pool2d if len(patch_size) == 2 else F.avg_pool3d
    return pool(image, tuple(patch_size), tuple(patch_size)).flatten(1)


class TokenMask(nn.Module):
    """Draws random token orders; the tokens that come first stay visible, the others are hidden.

    A mask of your own is any module with this call: ``(image, patch_size, noise) -> (keep, hidden, counts)``.

    Args:
        kind: ``"uniform"`` (MAE), ``"block"`` (cubes of ``unit`` tokens are hidden together; SimMIM, USFM), ``"tube"``
            (a token is hidden at all times or never; for cines, whose first axis is time; Tong et al. 2022,
            https://arxiv.org/abs/2203.12602), or ``"texture"`` (patches with much local variation are more likely to
            stay visible, so that what is hidden can be told from them).
        ratio: share of tokens that are hidden.
        unit: side of a block, in tokens.
        fov_aware: spend no visible token outside the field of view: such tokens always come last, do not count for
            ``ratio`` and should not count in a loss.

    Raises:
        ValueError: for an unknown kind, a ratio outside (0, 1) or a unit below 1.
    """

    def __init__(self, kind: str = "uniform", ratio: float = 0.75, unit: int = 1, fov_aware: bool = False) -> None:
        super().__init__()
        if kind not in KINDS:
            raise ValueError(f"mask kind must be one of {', '.join(KINDS)}, got {kind!r}.")
        if not 0.0 < ratio < 1.0:
            raise ValueError(f"mask ratio must lie between 0 and 1, got {ratio}.")
        if unit < 1:
            raise ValueError(f"mask unit must be at least one token, got {unit}.")
        self.kind = kind
        self.ratio = ratio
        self.unit = unit if kind == "block" else 1
        self.fov_aware = fov_aware

    @staticmethod
    def of(kind: str | nn.Module, ratio: float, unit: int, fov_aware: bool) -> nn.Module:
        """A mask of a named kind, or the module that was given instead of a name."""
        return kind if isinstance(kind, nn.Module) else TokenMask(kind, ratio, unit, fov_aware)

    def draw(self, image: torch.Tensor, patch_size: Sequence[int]) -> torch.Tensor:
        """Random numbers ``(B, N)``, on the image's device: sorting them gives the order of the tokens."""
        batch = image.shape[0]
        grid = [size // patch for size, patch in zip(image.shape[2:], patch_size, strict=True)]
        if self.kind == "tube":
            still = torch.rand(batch, 1, *grid[1:], device=image.device)
            return still.expand(batch, *grid).reshape(batch, -1)
        if self.kind == "block":
            units = [-(-n // self.unit) for n in grid]
            noise = torch.rand(batch, 1, *units, device=image.device)
            noise = F.interpolate(noise, scale_factor=float(self.unit), mode="nearest")
            window = (slice(None), slice(0, 1), *(slice(0, n) for n in grid))
            return noise[window].reshape(batch, -1)
        noise = torch.rand(batch, *grid, device=image.device).flatten(1)
        if self.kind == "texture":
            # Exponential race: -log(u) / w sorts like drawing without replacement with probability proportional to w.
            gray = image.float().mean(dim=1, keepdim=True)
            mean = _pool(gray, patch_size)
            spread = (_pool(gray.square(), patch_size) - mean.square()).clamp(min=0).sqrt()
            noise = -torch.log(noise.clamp(min=torch.finfo(noise.dtype).tiny)) / (spread + 1e-3)
        return noise

    def hidden_count(self, grid: Sequence[int]) -> int:
        """How many tokens of a grid are hidden.

        Blocks follow SimMIM: the number of hidden blocks is rounded up. A tube hides whole columns of tokens. Otherwise
        the visible count is rounded down, as in MAE. One block, column or token stays visible at least.
        """
        total = math.prod(grid)
        blocks = self.kind == "block" and all(n % self.unit == 0 for n in grid)
        size = self.unit ** len(grid) if blocks else grid[0] if self.kind == "tube" else 1  # what is hidden together
        count = total // size
        hidden = -int(-count * self.ratio // 1) if blocks else count - int(count * (1 - self.ratio))
        return min(min(max(hidden, 1), max(count - 1, 1)) * size, total - 1)

    def forward(
        self, image: torch.Tensor, patch_size: Sequence[int], noise: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Visible and hidden token indices of images ``(B, C, *S)``, and which hidden ones enter the loss (1).

        ``noise`` (B, N) fixes the draw: the tokens with the smallest values stay; of another shape it is a ValueError.

        Returns:
            ``(keep (B, K), hidden (B, N - K), counts (B, N - K))``.
        """
        grid = [size // patch for size, patch in zip(image.shape[2:], patch_size, strict=True)]
        total = math.prod(grid)
        if noise is None:
            noise = self.draw(image, patch_size)
        elif noise.shape != (image.shape[0], total):
            raise ValueError(
                f"noise must have one number per token, {(image.shape[0], total)}, got {tuple(noise.shape)}."
            )
        visible = total - self.hidden_count(grid)
        inside = torch.ones_like(noise, dtype=torch.bool)
        if self.fov_aware:
            # a patch that is black throughout lies outside the field of view
            inside = _pool((image.float().amax(dim=1, keepdim=True) > 1.5 / 255).float(), patch_size) > 0
            unit, usable = 1, inside
            if self.kind == "tube":  # whole ones, wherever they are inside at any time
                unit = grid[0]
                usable = inside.unflatten(1, (unit, -1)).any(1, keepdim=True).expand(-1, unit, -1).flatten(1)
            noise = torch.where(usable, noise, torch.inf)
            # All samples of a batch keep equally many tokens: what the smallest field of view affords. A black image
            # has none and teaches nothing; it is no reason to hide the others.
            sizes = usable.sum(1)
            smallest = int(torch.where(sizes > 0, sizes, total).min().item())
            visible = max(unit, min(visible, int(smallest // unit * (1 - self.ratio)) * unit))
        order = torch.argsort(noise, dim=1, stable=True)
        keep, hidden = order[:, :visible], order[:, visible:]
        return keep, hidden, torch.gather(inside, 1, hidden).float()
