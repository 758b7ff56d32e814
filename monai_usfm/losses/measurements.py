# Copyright (c) monai_usfm contributors
# SPDX-License-Identifier: Apache-2.0
"""Losses of networks that measure: where a point lies, and a number with its uncertainty."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn as nn

__all__ = ["HeatmapLoss", "ValueLoss"]


class HeatmapLoss(nn.Module):
    """Cross-entropy between heatmaps and the network's distribution over the pixels, less the entropy of the former.

    That is the Kullback-Leibler divergence; 0 for a perfect prediction. Heatmaps without a maximum above one half, of
    points that an image does not show or a crop has cut away, do not count.

    Raises:
        ValueError: for heatmaps of another shape than the logits.
    """

    def forward(self, input: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        """``(B, K, *S)`` logits and heatmaps that are not negative -> a scalar."""
        if input.shape != target.shape:
            raise ValueError(f"logits {tuple(input.shape)} and heatmaps {tuple(target.shape)} must have one shape.")
        heat = target.flatten(2).float()
        shown = heat.amax(2) > 0.5
        share = heat / heat.sum(2, keepdim=True).clamp(min=0.5)
        terms = torch.xlogy(share, share) - share * input.flatten(2).float().log_softmax(2)
        return (terms.sum(2) * shown).sum() / shown.sum().clamp(min=1)


class ValueLoss(nn.Module):
    """Negative log-likelihood of numbers under normal distributions whose mean and variance the network gives.

    Nix and Weigend 1994, https://doi.org/10.1109/ICNN.1994.374138. Numbers are standardized, so that those of different
    units count alike. Numbers that are NaN or infinite do not count.

    Args:
        mean: of each number over the training images.
        std: standard deviation of each.

    Raises:
        ValueError: for an output that is not ``(B, 2K)`` or numbers that are not ``(B, K)``.
    """

    mean: torch.Tensor
    std: torch.Tensor

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.mean, self.std = torch.tensor(mean), torch.tensor(std)

    def forward(self, input: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        """``(B, 2K)``, the means and then the logarithms of the variances, and ``(B, K)`` -> a scalar."""
        size = (len(input), len(self.mean))
        if input.shape != (size[0], 2 * size[1]) or target.shape != size:
            raise ValueError(
                f"of {size[1]} numbers the output must be (B, {2 * size[1]}) and the target (B, {size[1]}), got "
                f"{tuple(input.shape)} and {tuple(target.shape)}."
            )
        mean, log_variance = input.float().chunk(2, 1)
        wanted = (target.float() - self.mean.to(mean)) / self.std.to(mean)
        known = wanted.isfinite()
        log_variance = log_variance.clamp(-8, 8)
        terms = 0.5 * ((mean - torch.where(known, wanted, 0.0)).square() * torch.exp(-log_variance) + log_variance)
        return (terms * known).sum() / known.sum().clamp(min=1)

    def estimate(self, output: torch.Tensor) -> torch.Tensor:
        """What the network says of one image, ``(2K,) -> (K, 2)``: each number and its standard deviation."""
        mean, log_variance = output.float().chunk(2)
        std = torch.exp(0.5 * log_variance.clamp(-8, 8)) * self.std.to(mean)
        return torch.stack([mean * self.std.to(mean) + self.mean.to(mean), std], 1)
