# Copyright (c) monai_usfm contributors
# SPDX-License-Identifier: Apache-2.0
"""Texture as a target of pretraining: statistics of the gray values and of the spectrum of each patch."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
import torch.nn as nn

from monai_usfm.physics.spectrum import frequency_radius

__all__ = ["PatchTexture"]


class PatchTexture(nn.Module):
    """Statistics of each patch in the form of a teacher's tokens, see :class:`TokenDistillation`.

    - Of the gray values: mean, standard deviation, skewness.
    - Of the echo intensity, taken as 60 dB below white at black: the logarithm of the Nakagami shape
      ``E[I]^2 / Var[I]`` (Shankar 2000, https://doi.org/10.1109/58.842062).
    - Of the spectrum: the logarithm of the power in four bands of the radial frequency, and for each axis but the last
      the logarithm of the power nearer to it than to the last over that of the rest.

    The class token holds the means over the patches. There is nothing to learn and nothing to store.

    Args:
        patch_size: size of a patch in each axis, at least 4.

    Raises:
        ValueError: for a smaller patch.
    """

    window: torch.Tensor
    bands: torch.Tensor

    def __init__(self, patch_size: Sequence[int]) -> None:
        super().__init__()
        self.patch_size = tuple(patch_size)
        if min(self.patch_size) < 4:
            raise ValueError(f"texture needs patches of at least 4 samples in each axis, got {self.patch_size}.")
        self.hidden_size = 8 + len(self.patch_size) - 1
        window = torch.ones(())
        for size in self.patch_size:
            window = window[..., None] * torch.hann_window(size, periodic=False)
        radius = frequency_radius(self.patch_size)
        axes = [torch.fft.fftfreq(size).abs() for size in self.patch_size[:-1]]
        axes.append(torch.fft.rfftfreq(self.patch_size[-1]))
        *others, last = torch.meshgrid(*axes, indexing="ij")
        bands = [(low < radius) & (radius <= high) for low, high in pairwise((0.0, 0.25, 0.5, 0.75, 2.0))]
        bands += [side for axis in others for side in (axis > last, axis < last)]
        self.register_buffer("window", window, persistent=False)
        self.register_buffer("bands", torch.stack(bands).float(), persistent=False)

    def statistics(self, patches: torch.Tensor) -> torch.Tensor:
        """``(..., *P)`` in [0, 1] to ``(..., hidden_size)``."""
        axes = tuple(range(-len(self.patch_size), 0))
        mean = patches.mean(axes, keepdim=True)
        centered = patches - mean
        std = centered.square().mean(axes).sqrt()
        skewness = centered.pow(3).mean(axes) / (std.pow(3) + 1e-6)
        intensity = 10 ** (6 * (patches - 1))
        shape = intensity.mean(axes).square() / (intensity.var(axes, correction=0) + 1e-12)
        power = torch.fft.rfftn(centered * self.window, dim=axes, norm="ortho").abs().square()
        power = power.unsqueeze(axes[0] - 1) * self.bands
        logs = (power.mean(axes) + 1e-7).log()
        moments = torch.stack([mean.flatten(axes[0])[..., 0], std, skewness, shape.clamp(1e-3, 1e3).log()], dim=-1)
        return torch.cat([moments, logs[..., :4], logs[..., 4::2] - logs[..., 5::2]], dim=-1)

    @torch.no_grad()
    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """``(B, C, *S)`` in [0, 1] to ``(B, 1 + N, hidden_size)``; ``S``: multiples of the patch, ``C``: averaged."""
        with torch.autocast(image.device.type, enabled=False):
            patches = image.float().mean(1)
            for axis, size in enumerate(self.patch_size, start=1):
                patches = patches.unfold(axis, size, size)
            found = self.statistics(patches.flatten(1, len(self.patch_size)))
        return torch.cat([found.mean(1, keepdim=True), found], dim=1)
