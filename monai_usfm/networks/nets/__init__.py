# Copyright (c) monai_usfm contributors
# SPDX-License-Identifier: Apache-2.0
"""Whole networks: the encoder, its pretraining wrappers and the task networks."""

from __future__ import annotations

from monai_usfm.networks.nets.classifier import *
from monai_usfm.networks.nets.distillation import *
from monai_usfm.networks.nets.enhancer import *
from monai_usfm.networks.nets.foundation import *
from monai_usfm.networks.nets.masked import *
from monai_usfm.networks.nets.pairs import *
from monai_usfm.networks.nets.segmentation import *
from monai_usfm.networks.nets.texture import *
from monai_usfm.networks.nets.vit import *
