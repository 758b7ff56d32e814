# Copyright (c) monai_usfm contributors
# SPDX-License-Identifier: Apache-2.0
"""What the configurations of the bundles share: checks of their options, clear errors, the parts of a run."""

from __future__ import annotations

from monai_usfm.bundle.inference import *
from monai_usfm.bundle.items import *
from monai_usfm.bundle.records import *
from monai_usfm.bundle.start import *
from monai_usfm.bundle.training import *
from monai_usfm.errors import *
from monai_usfm.options import *
