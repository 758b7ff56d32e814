# Copyright (c) monai_usfm contributors
# SPDX-License-Identifier: Apache-2.0
"""Weights that know their network: beside ``X.pt`` lies its card ``X.json``, and a network is built from the two.

A card holds the task, every option that builds the network, what its outputs mean (class names, label values,
temperature), how pixels are prepared, the origin of the weights, their scores, and the SHA-256 of the file that it
describes. nnU-Net's ``plans.json`` and timm's ``pretrained_cfg`` are the models.

From the file up: :mod:`card <monai_usfm.cards.card>` reads and writes it, :mod:`options <monai_usfm.cards.options>`
resolves what a network is made of, :mod:`build <monai_usfm.cards.build>` makes it, and
:mod:`load <monai_usfm.cards.load>` fills it from a file or saves it.
"""

from __future__ import annotations

from monai_usfm.cards.build import build_network, describe_network
from monai_usfm.cards.card import card_path, find_card, read_card, write_card
from monai_usfm.cards.load import load_network, save_network
from monai_usfm.cards.options import ENCODER, WIDTHS, network_options

__all__ = [
    "ENCODER",
    "WIDTHS",
    "build_network",
    "card_path",
    "describe_network",
    "find_card",
    "load_network",
    "network_options",
    "read_card",
    "save_network",
    "write_card",
]
