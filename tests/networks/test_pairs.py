# Copyright (c) monai_usfm contributors
# SPDX-License-Identifier: Apache-2.0
"""Frames of one sequence as positive pairs: against the formula, and what the gradient does to features."""

from __future__ import annotations

import pytest
import torch

from monai_usfm.networks import FramePairs, UltrasoundViT


class Still(torch.nn.Module):
    """An objective that asks for nothing."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.encoder = UltrasoundViT(
            img_size=(16, 16), patch_size=(8, 8), hidden_size=24, mlp_dim=24, num_layers=1, num_heads=3
        )

    def forward(self, image: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"loss": torch.zeros(())}


def test_the_loss_is_that_of_simclr_on_neighbors_of_the_batch():
    pairs = FramePairs(Still(), weight=0.5, temperature=0.1).train()
    image = torch.rand(6, 1, 16, 16)
    output = pairs(image)
    features = torch.nn.functional.normalize(pairs.project(pairs.encoder(image)[:, 1:].mean(1)), dim=1)
    likeness = (features @ features.T / 0.1).fill_diagonal_(-torch.inf)
    expected = torch.nn.functional.cross_entropy(likeness, torch.tensor([1, 0, 3, 2, 5, 4]))
    torch.testing.assert_close(output["pair_loss"], expected)
    torch.testing.assert_close(output["loss"], 0.5 * expected)


def test_training_brings_frames_of_a_sequence_together():
    pairs = FramePairs(Still()).train()
    scene = torch.rand(4, 1, 16, 16).repeat_interleave(2, 0)
    optimizer = torch.optim.Adam(pairs.parameters(), lr=1e-3)
    losses = []
    for _ in range(30):
        loss = pairs((scene + 0.1 * torch.randn_like(scene)).clamp(0, 1))["loss"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.5 * losses[0]


def test_validation_is_the_objective_alone_and_odd_batches_are_refused():
    pairs = FramePairs(Still())
    assert set(pairs.eval()(torch.rand(3, 1, 16, 16))) == {"loss"}
    with pytest.raises(ValueError, match="batch_size must be even, got 3"):
        pairs.train()(torch.rand(3, 1, 16, 16))
