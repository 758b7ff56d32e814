# Copyright (c) monai_usfm contributors
# SPDX-License-Identifier: Apache-2.0
"""Networks whose every weight matters, and how their outputs are compared."""

from __future__ import annotations

import torch
import torch.nn as nn

__all__ = ["assert_same", "randomized"]


def randomized(net: nn.Module, seed: int = 0) -> nn.Module:
    """Every parameter random and of the order of one where it acts; evaluation mode."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in net.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        scale_like = "norm" in name and name.endswith("weight")
        parameter.data = 1 + 0.2 * noise if scale_like else 0.15 * noise
    return net.eval()


def assert_same(a: torch.Tensor, b: torch.Tensor, atol: float = 1e-5) -> None:
    torch.testing.assert_close(a.detach(), b.detach(), atol=atol, rtol=1e-5)
