# Copyright (c) monai_usfm contributors
# SPDX-License-Identifier: Apache-2.0
"""Decoders that sit on the encoder's maps."""

from __future__ import annotations

from monai_usfm.networks.heads.atm import *
from monai_usfm.networks.heads.pyramid import *
from monai_usfm.networks.heads.upernet import *
