# Copyright (c) monai_usfm contributors
# SPDX-License-Identifier: Apache-2.0
"""Networks, heads and published-weight loading."""

from __future__ import annotations

from monai_usfm.networks.fine_tuning import *
from monai_usfm.networks.nets import *
from monai_usfm.networks.uncertainty import *
from monai_usfm.networks.weights import *
