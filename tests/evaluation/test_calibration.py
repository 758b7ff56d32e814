# Copyright (c) monai_usfm contributors
# SPDX-License-Identifier: Apache-2.0
"""Calibration: the network is the one that an evaluation with the same options scores."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import monai_usfm.evaluation.calibration as calibration
from monai_usfm import build_network, save_network


def test_the_network_has_the_size_that_is_asked_for(
    simulated_images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny = {"network_size": "custom", "num_layers": 4, "hidden_size": 48, "mlp_dim": 96, "num_heads": 3}
    file = save_network(tmp_path / "x.pt", build_network("segmentation", **tiny, spatial_size=32))
    sizes = []

    def collect(parser: Any, network: Any) -> None:
        sizes.extend([network.card["network"]["spatial_size"], parser.get_parsed_content("plan")["spatial_size"]])
        raise ValueError("enough")

    monkeypatch.setattr(calibration, "_collect", collect)
    with pytest.raises(ValueError, match="enough"):
        calibration.calibrate(str(file), dataset_dir=str(simulated_images), spatial_size=[48, 48])
    assert sizes == [[48, 48], [48, 48]]
