# Copyright (c) monai_usfm contributors
# SPDX-License-Identifier: Apache-2.0
"""Pieces of the encoder: patch embedding, positions, transformer blocks."""

from __future__ import annotations

from monai_usfm.networks.blocks.patch_embed import PatchEmbedding, patch_grid, patchify, unpatchify
from monai_usfm.networks.blocks.position import RelativePositionBias, TokenPositions
from monai_usfm.networks.blocks.transformer import TransformerBlock

__all__ = [
    "PatchEmbedding",
    "RelativePositionBias",
    "TokenPositions",
    "TransformerBlock",
    "patch_grid",
    "patchify",
    "unpatchify",
]
