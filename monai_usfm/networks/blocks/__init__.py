# Copyright (c) monai_usfm contributors
# SPDX-License-Identifier: Apache-2.0
"""Pieces of the encoder: patch embedding, positions, transformer blocks."""

from __future__ import annotations

from monai_usfm.networks.blocks.patch_embed import *
from monai_usfm.networks.blocks.position import *
from monai_usfm.networks.blocks.precision import *
from monai_usfm.networks.blocks.transformer import *
