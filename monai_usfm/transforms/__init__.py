# Copyright (c) monai_usfm contributors
# SPDX-License-Identifier: Apache-2.0
"""Ultrasound transforms in array and dictionary form."""

from __future__ import annotations

from monai_usfm.physics.speckle import *
from monai_usfm.physics.spectrum import *
from monai_usfm.transforms.acquisition import *
from monai_usfm.transforms.annotation import *
from monai_usfm.transforms.artifacts import *
from monai_usfm.transforms.band_stop import *
from monai_usfm.transforms.batch import *
from monai_usfm.transforms.beam import *
from monai_usfm.transforms.dictionary import add_aliases
from monai_usfm.transforms.field_of_view import *
from monai_usfm.transforms.labels import *
from monai_usfm.transforms.landmarks import *
from monai_usfm.transforms.noise_recovery import *
from monai_usfm.transforms.presence import *
from monai_usfm.transforms.prompts import *
from monai_usfm.transforms.resize import *
from monai_usfm.transforms.speckle import *

add_aliases(globals())  # RandGainD and RandGainDict beside RandGaind, as in MONAI
