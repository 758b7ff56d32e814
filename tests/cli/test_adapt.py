# Copyright (c) monai_usfm contributors
# SPDX-License-Identifier: Apache-2.0
"""Weights fitted to images without labels."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from monai_usfm import build_network, load_network, read_card, save_network
from monai_usfm.cli import main

TINY = {"network_size": "custom", "hidden_size": 24, "mlp_dim": 48, "num_layers": 4, "num_heads": 3}


@pytest.fixture
def place(tmp_path):
    rng = np.random.default_rng(0)
    (tmp_path / "images").mkdir()
    for number in range(6):
        Image.fromarray(rng.integers(0, 255, (40, 40), dtype=np.uint8)).save(tmp_path / "images" / f"{number}.png")
    torch.manual_seed(0)
    network = build_network("segmentation", spatial_size=[32, 32], **TINY)
    save_network(tmp_path / "m.pt", network, class_names=["background", "lesion"])
    return tmp_path


def adapt_arguments(place) -> list[str]:
    files = [str(place / name) for name in ("images", "m.pt", "out")]
    return ["adapt", files[0], "--checkpoint", files[1], "--output_dir", files[2]]


def changed(place) -> set[str]:
    before, after = load_network(place / "m.pt"), load_network(place / "out" / "model.pt")
    new = after.state_dict()
    return {name for name, value in before.state_dict().items() if not torch.equal(value, new[name])}


def test_pretraining_changes_the_encoder_and_leaves_head_and_card(place):
    arguments = adapt_arguments(place)
    assert (
        main([*arguments, "--max_epochs", "1", "--batch_size", "3", "--device", "cpu", "--figure_interval", "0"]) == 0
    )
    names = changed(place)
    assert names and all(name.startswith("encoder.") for name in names)
    card = read_card(place / "out" / "model.pt")
    assert card["class_names"] == ["background", "lesion"]
    assert card["adapted"] == {"method": "pretrain", "images": 6, "share": 0.5}
    full, half = (
        load_network(place / "out" / "encoder.pt", "encoder").state_dict(),
        load_network(place / "out" / "model.pt"),
    )
    old = load_network(place / "m.pt").encoder.state_dict()["blocks.0.mlp.fc1.weight"]
    mean = (old + full["blocks.0.mlp.fc1.weight"]) / 2
    assert torch.allclose(half.encoder.state_dict()["blocks.0.mlp.fc1.weight"], mean, atol=1e-3)


def test_entropy_changes_norms_alone_and_gets_smaller(place):
    arguments = adapt_arguments(place)
    assert main([*arguments, "--method", "entropy"]) == 0
    names = changed(place)
    assert names and not any(part in name for name in names for part in (".mlp.", ".qkv", "to_pixels", "proj"))
    image = torch.rand(4, 1, 32, 32, generator=torch.Generator().manual_seed(0))
    entropy = [
        torch.special.entr(load_network(file)(image).softmax(1)).sum(1).mean().item()
        for file in (place / "m.pt", place / "out" / "model.pt")
    ]
    assert entropy[1] < entropy[0]
    assert main([*arguments, "--method", "entropy", "--max_epochs", "3"]) == 1
