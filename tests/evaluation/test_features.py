# Copyright (c) monai_usfm contributors
# SPDX-License-Identifier: Apache-2.0
"""Frozen features of a data set."""

from __future__ import annotations

import pytest
import torch
import torch.nn as nn

from monai_usfm.evaluation import extract_features
from monai_usfm.networks.nets.vit import UltrasoundViT


def small_vit(spatial_dims: int = 2) -> UltrasoundViT:
    torch.manual_seed(0)
    return UltrasoundViT(
        32, 16, spatial_dims=spatial_dims, hidden_size=24, mlp_dim=48, num_layers=2, num_heads=2, drop_path_rate=0.5
    )


class PatchMeans(nn.Linear):
    """Token i holds the mean of patch i in all its values; the class token holds -1."""

    def __init__(self) -> None:
        super().__init__(1, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        tokens = nn.functional.avg_pool2d(x, 8).flatten(2).transpose(1, 2).expand(-1, -1, 3)
        return torch.cat([torch.full_like(tokens[:, :1], -1.0), tokens], dim=1)

    def token_grid(self, x: torch.Tensor) -> list[int]:
        return [x.shape[2] // 8, x.shape[3] // 8]


@pytest.mark.parametrize("spatial_dims", [2, 3])
def test_pooled_features_equal_one_forward_per_image(spatial_dims):
    net = small_vit(spatial_dims)
    images = torch.rand(5, 1, *[32] * spatial_dims)
    net.eval()
    with torch.no_grad():
        tokens = torch.cat([net(image[None]) for image in images])
    net.train()
    mean = extract_features(net, images, "mean", batch_size=2)
    cls = extract_features(net, images, "class", batch_size=2)
    torch.testing.assert_close(mean, tokens[:, 1:].mean(1), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(cls, tokens[:, 0], rtol=1e-4, atol=1e-5)
    both = extract_features(net, images, "statistics", batch_size=2)
    wanted = torch.cat([tokens[:, 0], tokens[:, 1:].mean(1), tokens[:, 1:].std(1, correction=0)], dim=1)
    torch.testing.assert_close(both, wanted, rtol=1e-4, atol=1e-5)
    with pytest.raises(ValueError, match="must be mean, class, statistics or tokens, got 'max'"):
        extract_features(net, images, "max")


def test_token_maps_keep_the_place_of_each_patch():
    images = torch.rand(3, 1, 16, 40)
    maps = extract_features(PatchMeans(), images, "tokens")
    torch.testing.assert_close(maps, nn.functional.avg_pool2d(images, 8).expand(-1, 3, -1, -1))


def test_the_encoder_is_handed_back_in_its_mode():
    net = small_vit()
    for training in (True, False):
        net.train(training)
        extract_features(net, torch.rand(1, 1, 32, 32))
        assert net.training is training and net.blocks[0].training is training


def test_reduced_precision_gives_nearly_the_same_features_in_float32():
    net, images = small_vit(), torch.rand(2, 1, 32, 32)
    full, half = extract_features(net, images), extract_features(net, images, amp=True)
    assert half.dtype == torch.float32 and not torch.equal(full, half)
    assert nn.functional.cosine_similarity(full, half).min() > 0.999
