# Copyright (c) monai_usfm contributors
# SPDX-License-Identifier: Apache-2.0
"""How sure is a network: entropy, temperature scaling."""

import math

import torch
import torch.nn as nn
import torch.nn.functional as F
from scipy.optimize import minimize_scalar

__all__ = ["TemperatureScaling", "predictive_entropy", "to_probabilities"]


def to_probabilities(logits: torch.Tensor) -> torch.Tensor:
    """``(B, K, ...)`` logits to probabilities: softmax over channels, sigmoid where there is one."""
    return logits.softmax(1) if logits.shape[1] > 1 else logits.sigmoid()


def to_logits(probabilities: torch.Tensor) -> torch.Tensor:
    """Logits of which :func:`to_probabilities` is the inverse."""
    tiny = torch.finfo(probabilities.dtype).tiny
    if probabilities.shape[1] > 1:
        return probabilities.clamp_min(tiny).log()
    return probabilities.clamp_min(tiny).log() - (1 - probabilities).clamp_min(tiny).log()


def predictive_entropy(probabilities: torch.Tensor) -> torch.Tensor:
    """Entropy over channels as a share of its maximum: ``(B, K, ...) -> (B, 1, ...)``; one channel is binary."""
    if probabilities.shape[1] == 1:
        probabilities = torch.cat([probabilities, 1 - probabilities], dim=1)
    entropy = torch.special.entr(probabilities).sum(1, keepdim=True)
    return (entropy / math.log(probabilities.shape[1])).clamp(0.0, 1.0)


class TemperatureScaling(nn.Module):
    """Divide logits by one number, fitted on validation data, so that probabilities are calibrated.

    The arg max stays. Guo et al. 2017, https://arxiv.org/abs/1706.04599. It takes ``(K, ...)`` and ``(B, K, ...)``
    alike, so that it serves as the ``func`` of MONAI's ``Lambdad`` before the softmax, or as the last layer of a
    network; ``temperature`` is a buffer and is saved with it.

    Args:
        temperature: positive; 1 changes nothing.
    """

    temperature: torch.Tensor

    def __init__(self, temperature: float = 1.0) -> None:
        super().__init__()
        if not 0 < temperature < math.inf:
            raise ValueError(f"temperature must be positive and finite, got {temperature}.")
        self.register_buffer("temperature", torch.tensor(float(temperature)))

    def forward(self, logits: torch.Tensor) -> torch.Tensor:
        """Logits of any shape -> logits of that shape."""
        return logits / self.temperature.to(logits.dtype)

    @torch.no_grad()
    def fit(self, logits: torch.Tensor, labels: torch.Tensor, ignore_index: int = 255) -> "TemperatureScaling":
        """Set the temperature that minimizes the negative log-likelihood; returns itself.

        Args:
            logits: ``(B, K, ...)``; one channel means a sigmoid. Of many pixels a random sample is enough.
            labels: class indices ``(B, ...)`` or ``(B, 1, ...)``.
            ignore_index: label to leave out.

        Raises:
            ValueError: if shapes do not match, logits are not finite, or no label is left.
        """
        classes = logits.shape[1]
        scores = logits.detach().movedim(1, -1).reshape(-1, classes).double()
        truth = labels.reshape(-1).long()
        if len(scores) != len(truth):
            raise ValueError(f"logits {tuple(logits.shape)} and labels {tuple(labels.shape)} do not match.")
        scores, truth = scores[truth != ignore_index], truth[truth != ignore_index]
        if len(truth) == 0:
            raise ValueError(f"no label is left without {ignore_index}: nothing to fit.")
        if not bool(scores.isfinite().all()):
            raise ValueError("the logits hold NaN or infinite values: no temperature fits them.")
        if classes == 1:  # a sigmoid is a softmax against zero
            scores = torch.cat([torch.zeros_like(scores), scores], dim=1)

        def loss(log_temperature: float) -> float:
            return F.cross_entropy(scores * math.exp(-log_temperature), truth).item()

        self.temperature.fill_(math.exp(minimize_scalar(loss, bounds=(-7, 7), method="bounded").x))
        return self
