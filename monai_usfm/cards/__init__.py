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

from monai_usfm.cards.build import *
from monai_usfm.cards.card import *
from monai_usfm.cards.load import *
from monai_usfm.cards.options import *
