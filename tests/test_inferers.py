# Copyright (c) monai_usfm contributors
# SPDX-License-Identifier: Apache-2.0
"""Inference under mixed precision and over dropout masks."""

from __future__ import annotations

import math

import pytest
import torch
from monai.inferers import SlidingWindowInferer
from torch import nn

from monai_usfm.inferers import AutocastInferer, DropoutInferer


def coin(width: float) -> nn.Module:
    """Pixel-wise logits (0, w) of a one-channel image, where ``w`` is 0 or ``2 * width`` by dropout 0.5."""
    net = nn.Sequential(nn.Dropout2d(0.5), nn.Conv2d(1, 2, 1, bias=False))
    with torch.no_grad():
        net[1].weight.copy_(torch.tensor([0.0, width]).reshape(2, 1, 1, 1))
    return net.eval()


@pytest.mark.parametrize("inferer", [None, SlidingWindowInferer((4, 4), sw_batch_size=4, overlap=0)])
def test_probabilities_are_those_of_the_mean_over_dropout_masks(inferer):
    image = torch.ones(1, 1, 8, 8)
    net = coin(1.0)
    logits = DropoutInferer(samples=1500, inferer=inferer)(image, net)
    assert logits.shape == (1, 2, 8, 8)
    wanted = (0.5 + 1 / (1 + math.exp(-2.0))) / 2  # the mean of the probabilities, not of the logits
    assert logits.softmax(1)[:, 1].mean().item() == pytest.approx(wanted, abs=0.02)
    assert abs(wanted - 1 / (1 + math.exp(-1.0))) > 0.03
    assert not net.training


def test_network_without_dropout_is_refused():
    with pytest.raises(ValueError, match=r"no dropout with a positive rate"):
        DropoutInferer()(torch.ones(1, 1, 4, 4), nn.Conv2d(1, 2, 1))


def test_autocast_computes_in_bfloat16_and_returns_float32():
    seen = []

    def network(x: torch.Tensor) -> dict[str, torch.Tensor]:
        seen.append((x @ x).dtype)
        return {"loss": x @ x}

    for amp, dtype in (("bf16", torch.bfloat16), ("fp32", torch.float32)):
        assert AutocastInferer(amp, "cpu")(torch.ones(2, 2), network)["loss"].dtype == torch.float32
        assert seen.pop() == dtype


def test_unknown_precision_is_refused():
    with pytest.raises(ValueError, match=r"amp must be one of auto, fp32, bf16, fp16, got 'half'"):
        AutocastInferer("half", "cpu")
    with pytest.raises(ValueError, match=r'"fp16" needs a GPU'):
        AutocastInferer("fp16", "cpu")
