# Copyright (c) monai_usfm contributors
# SPDX-License-Identifier: Apache-2.0
"""Reading, listing, sampling and simulating ultrasound images."""

from __future__ import annotations

from monai_usfm.simulation import SyntheticUltrasound, write_synthetic_dataset  # noqa: F401
from monai_usfm.transforms.dictionary import add_aliases

from .classes import *
from .convert import *
from .datalist import *
from .dataset import *
from .deidentify import *
from .dicom import *
from .dicom_geometry import *
from .folders import *
from .formats import *
from .joint import *
from .listing import *
from .loading import *
from .patients import *
from .reader import *
from .resident import *
from .sampler import *
from .splits import *
from .store import *
from .upright import *

add_aliases(globals())  # LoadUltrasoundD and LoadUltrasoundDict beside LoadUltrasoundd, as in MONAI
