# Copyright (c) monai_usfm contributors
# SPDX-License-Identifier: Apache-2.0
"""Embeddings as NPZ and CSV."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
import torch
from ignite.engine import Engine
from monai.data import MetaTensor

from monai_usfm.handlers import EmbeddingSaver
from monai_usfm.networks import FeatureExtractor, usfm_vit


def outputs(named: bool = True) -> list[list[dict[str, torch.Tensor]]]:
    """Two batches, of two images and of one."""
    torch.manual_seed(0)
    items = []
    for number in range(3):
        image = torch.rand(1, 32, 32)
        image = MetaTensor(image, meta={"filename_or_obj": f"/x/scan.{number}.nii.gz"}) if named else image
        items.append({"image": image, "pred": torch.rand(4)})
    return [items[:2], items[2:]]


def saved(handler: EmbeddingSaver, batches: list) -> None:
    engine = Engine(lambda _, batch: batch)
    handler.attach(engine)
    engine.run(batches)


def test_files_hold_every_vector_with_its_name_in_order(tmp_path: Path) -> None:
    batches = outputs()
    saved(EmbeddingSaver(str(tmp_path)), batches)
    wanted = torch.stack([item["pred"] for batch in batches for item in batch]).numpy()
    found = np.load(tmp_path / "embeddings.npz")
    np.testing.assert_array_equal(found["embeddings"], wanted)
    assert list(found["images"]) == [f"/x/scan.{n}.nii.gz" for n in range(3)]
    with open(tmp_path / "embeddings.csv", newline="") as file:
        head, *lines = list(csv.reader(file))
    assert head == ["image", "feature_0", "feature_1", "feature_2", "feature_3"]
    np.testing.assert_allclose(np.array([line[1:] for line in lines], dtype=float), wanted, rtol=1e-5)


def test_second_run_starts_anew(tmp_path: Path) -> None:
    handler = EmbeddingSaver(str(tmp_path))
    saved(handler, outputs())
    saved(handler, outputs()[:1])
    assert len(np.load(tmp_path / "embeddings.npz")["embeddings"]) == 2


def test_images_without_a_name_are_numbered(tmp_path: Path) -> None:
    saved(EmbeddingSaver(str(tmp_path)), outputs(named=False))
    assert list(np.load(tmp_path / "embeddings.npz")["images"])[2] == "image_000002"


def test_maps_are_those_of_the_encoder(tmp_path: Path) -> None:
    encoder = usfm_vit("tiny", img_size=32, hidden_size=24, mlp_dim=48, num_heads=2, num_layers=2)
    network = FeatureExtractor(encoder).eval()
    batches = outputs()
    saved(EmbeddingSaver(str(tmp_path), network, [1]), batches)
    with torch.no_grad():
        wanted = encoder.forward_intermediates(batches[1][0]["image"].as_tensor()[None], [1])[0][0]
    np.testing.assert_allclose(np.load(tmp_path / "000002_scan.2_maps.npz")["block_1"], wanted.numpy(), atol=1e-6)


def test_maps_need_a_network(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="feature_blocks need the network"):
        EmbeddingSaver(str(tmp_path), feature_blocks=[1])
