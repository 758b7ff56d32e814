# Copyright (c) monai_usfm contributors
# SPDX-License-Identifier: Apache-2.0
"""What NVFlare starts at each site: receive weights, train a round, send weights."""

from __future__ import annotations

from pathlib import Path

import nvflare.client as flare
import torch
from federated import SMALL, Site, client_parser
from nvflare.app_common.app_constant import AlgorithmConstants

given = client_parser().parse_args()

flare.init()
name = flare.get_site_name()
site = Site(
    name, given.task, Path(given.images, name), Path(given.output, name), given.rounds, given.local_epochs,
    **SMALL,
)  # fmt: skip
while flare.is_running():
    received = flare.receive()
    if received is None:
        break
    site.proximal = float(received.meta.get(AlgorithmConstants.FEDPROX_MU) or 0.0)
    weights, steps = site.train({name: torch.as_tensor(value) for name, value in received.params.items()})
    flare.send(flare.FLModel(params=weights, meta={"NUM_STEPS_CURRENT_ROUND": steps}))
