# Copyright (c) monai_usfm contributors
# SPDX-License-Identifier: Apache-2.0
"""Published checkpoints into our encoder, and our encoder into published layouts.

``read`` opens files; ``layouts`` has a record for each published layout and gives tensors our names; ``adapt`` holds
the maps between encoders that keep the function; ``load`` fills a network by them;
``describe`` says which network a file is for; ``export`` writes published layouts.
"""

from __future__ import annotations

from monai_usfm.networks.weights.describe import *
from monai_usfm.networks.weights.export import *
from monai_usfm.networks.weights.load import *
from monai_usfm.networks.weights.read import *
