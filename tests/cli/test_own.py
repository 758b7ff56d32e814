# Copyright (c) monai_usfm contributors
# SPDX-License-Identifier: Apache-2.0
"""A copy of a bundle with other weights is a bundle of what these weights are."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

from monai.bundle import verify_net_in_out

from monai_usfm import build_network, save_network
from monai_usfm.cards.card import sha256_of
from monai_usfm.cli.weights import own_bundle, serve_label
from monai_usfm.files import write_text_atomically
from monai_usfm.workflow import load_bundle


def test_a_pretraining_bundle_goes_on_from_the_start_that_it_brings(repository, tmp_path):
    source = repository / "bundles" / "usfm_pretraining"
    copy = own_bundle(source, tmp_path / "apps" / "more", repository / "bundles/usfm_segmentation/models/model.pt")
    flow = load_bundle("", bundle_root=copy)
    start = Path(flow.parser.get_parsed_content("start"))
    assert start.parent == copy / "models"
    assert sha256_of(start) == sha256_of(source / "models" / "model.pt")


def test_a_bundle_of_volumes_needs_nothing_but_its_weights(repository, tmp_path):
    source = repository / "bundles" / "usfm_segmentation"
    weights = source / "models" / "prostate.pt"
    copy = own_bundle(source, tmp_path / "apps" / "gland_segmentation", weights)
    assert sorted(file.name for file in (copy / "models").iterdir()) == [
        "foundation.json", "foundation.pt", "model.json", "model.pt",
    ]  # fmt: skip
    metadata = json.loads((copy / "configs" / "metadata.json").read_text())
    assert "As it stands: background, prostate in 3D." in metadata["description"]
    formats = metadata["network_data_format"]
    assert formats["inputs"]["image"]["spatial_shape"] == [48, 64, 48]
    assert formats["post_processed_outputs"]["pred"]["spatial_shape"] == ["*", "*", "*"]
    verify_net_in_out(
        "network_def",
        meta_file=str(copy / "configs" / "metadata.json"),
        config_file=str(copy / "configs" / "inference.json"),
        device="cpu",
        bundle_root=str(copy),
    )


def test_a_class_may_have_any_name(repository, tmp_path):
    network = build_network("segmentation", num_layers=1, hidden_size=24, mlp_dim=48, num_heads=3, spatial_size=32)
    save_network(tmp_path / "x.pt", network, class_names=["background", r"a\d"])
    copy = own_bundle(repository / "bundles" / "usfm_segmentation", tmp_path / "copy", tmp_path / "x.pt")
    assert json.loads((copy / "configs" / "metadata.json").read_text())["label_classes"] == r"0 background, 1 a\d"


def test_a_served_copy_with_other_weights_is_told(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("monai_usfm.cli.weights.find_spec", lambda _: True)
    monkeypatch.setattr("subprocess.run", lambda *_, **__: SimpleNamespace(returncode=0))
    bundle = tmp_path / "gland_segmentation"
    write_text_atomically(bundle / "configs" / "inference.json", '{"network_def": {"task": "segmentation"}}')
    for weights, told in (("old", False), ("old", False), ("new", True)):
        write_text_atomically(bundle / "models" / "model.pt", weights)
        assert serve_label([str(bundle)], studies=".", app=str(tmp_path / "app")) == 0
        assert ("has other weights" in capsys.readouterr().out) is told
