# Copyright (c) monai_usfm contributors
# SPDX-License-Identifier: Apache-2.0
"""Published checkpoints into our encoder, and our encoder into published layouts.

``read`` opens files; ``layouts`` has a record for each published layout and gives tensors our names; ``adapt`` holds
the maps between encoders that keep the function; ``load`` fills a network by them, ``official`` a published head;
``describe`` says which network a file is for; ``export`` writes published layouts.
"""

from __future__ import annotations

from monai_usfm.networks.weights.describe import decoder_arguments, encoder_arguments, source_layout
from monai_usfm.networks.weights.export import to_mae_state_dict, to_usfm_state_dict
from monai_usfm.networks.weights.load import load_pretrained
from monai_usfm.networks.weights.official import load_official_head
from monai_usfm.networks.weights.read import read_checkpoint
from monai_usfm.networks.weights.report import LoadReport

__all__ = [
    "LoadReport",
    "decoder_arguments",
    "encoder_arguments",
    "load_official_head",
    "load_pretrained",
    "read_checkpoint",
    "source_layout",
    "to_mae_state_dict",
    "to_usfm_state_dict",
]
