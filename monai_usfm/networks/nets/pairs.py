# Copyright (c) monai_usfm contributors
# SPDX-License-Identifier: Apache-2.0
"""Frames of one sequence as positive pairs, beside any objective of pretraining."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn as nn
from monai.losses import ContrastiveLoss
from monai.networks.blocks import MLPBlock

from monai_usfm.networks.nets.vit import UltrasoundViT

__all__ = ["FramePairs"]


class FramePairs(nn.Module):
    """An objective of pretraining, and beside it: frames of one sequence have like features, other frames others.

    In training images 0 and 1, 2 and 3, ... of a batch belong together, as
    :class:`~monai_usfm.data.OrganBalancedSampler` draws them by ``sequences``: two frames, or two views of an image
    that has no other frame. The mean of the patch tokens goes through a small perceptron into MONAI's
    :class:`~monai.losses.ContrastiveLoss`. In validation, where nothing is paired, the objective is alone. Chen et al.
    2020 (SimCLR), https://arxiv.org/abs/2002.05709; frames as pairs: Chen et al. 2021 (USCL),
    https://arxiv.org/abs/2011.13066.

    Two pairs of one sequence in a batch count as unlike: an epoch should have many more sequences than a batch pairs.

    Args:
        network: the objective, with an ``encoder``; called with images, it gives a dictionary with ``loss``.
        weight: of the pairs beside the objective.
        temperature: of the contrast.
    """

    def __init__(self, network: Any, weight: float = 0.3, temperature: float = 0.2) -> None:
        super().__init__()
        self.network = network
        self.weight = weight
        width = network.encoder.hidden_size
        self.project = nn.Sequential(MLPBlock(width, width), nn.LayerNorm(width))
        self.contrast = ContrastiveLoss(temperature)

    @property
    def encoder(self) -> UltrasoundViT:
        return self.network.encoder

    def forward(self, image: torch.Tensor) -> dict[str, torch.Tensor]:
        """One step on images ``(B, C, *S)`` in [0, 1].

        Returns:
            What the objective gives, its ``loss`` with that of the pairs; in training also ``pair_loss`` (scalar).

        Raises:
            ValueError: in training for an odd number of images.
        """
        output = self.network(image)
        if not self.training:
            return output
        if len(image) % 2:
            raise ValueError(f"frames come in pairs: batch_size must be even, got {len(image)} images.")
        features = self.project(self.encoder(image)[:, 1:].mean(1)).float()
        with torch.autocast(image.device.type, enabled=False):
            pair_loss = self.contrast(features[0::2], features[1::2])
        return {**output, "loss": output["loss"] + self.weight * pair_loss, "pair_loss": pair_loss.detach()}

    @torch.no_grad()
    def panels(self, image: torch.Tensor) -> dict[str, torch.Tensor]:
        """Those of the objective."""
        return self.network.panels(image)
