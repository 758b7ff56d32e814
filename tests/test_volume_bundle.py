# Copyright (c) monai_usfm contributors
# SPDX-License-Identifier: Apache-2.0
"""scripts/volume_bundle.py: a copy of a bundle is what its overlays for volumes make of it."""

from __future__ import annotations

import json
import runpy
from pathlib import Path
from typing import Any

import pytest
import torch
from monai.bundle import ConfigParser, verify_net_in_out

BUNDLES = ("pretraining", "segmentation", "classification", "enhancement")


@pytest.fixture(scope="module")
def module(repository: Path) -> dict[str, Any]:
    return runpy.run_path(str(repository / "scripts" / "volume_bundle.py"))


@pytest.fixture(scope="module")
def weights(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Untrained weights of volumes of three classes."""
    configs = repository / "bundles" / "usfm_segmentation" / "configs"
    names = [configs / "inference.json", configs / "inference_volume.json"]
    parser = ConfigParser({**ConfigParser.load_config_files(names), "num_classes": 3})
    path = tmp_path_factory.mktemp("weights") / "trained.pt"
    torch.save(parser.get_parsed_content("network_def").state_dict(), path)
    return path


def merged(folder: Path, *names: str) -> dict[str, Any]:
    """What ``monai.bundle run`` makes of these files, without the description."""
    return {k: v for k, v in ConfigParser.load_config_files([folder / n for n in names]).items() if k != "_desc_"}


@pytest.mark.parametrize("bundle", BUNDLES)
def test_configs_are_those_that_overlays_make(module, repository, tmp_path, bundle):
    source = repository / "bundles" / f"usfm_{bundle}" / "configs"
    for name, config in module["joined"](source, {}).items():
        (tmp_path / name).write_text(json.dumps(config))
    assert merged(tmp_path, "inference.json") == merged(source, "inference.json", "inference_volume.json")
    assert merged(tmp_path, "train.json") == merged(source, "train.json", "volume.json")
    for overlay in ("evaluate.json", "demo.json"):
        wanted = merged(source, "train.json", overlay, "volume.json")
        assert merged(tmp_path, "train.json", overlay) == wanted
    assert {p.name for p in source.glob("*.json")} - {p.name for p in tmp_path.glob("*.json")} == {
        "volume.json",
        "inference_volume.json",
    }


def test_the_copy_is_a_bundle_of_volumes(module, repository, weights, tmp_path):
    source, copy = repository / "bundles" / "usfm_segmentation", tmp_path / "apps" / "liver_segmentation"
    names = ["background", "liver", "vessel"]
    module["main"]([str(source), str(copy), "--weights", str(weights), "--classes", *names, "--set", "batch_size=2"])
    assert [p.name for p in copy.parent.iterdir()] == [copy.name]
    assert (copy / "models" / "model.pt").read_bytes() == weights.read_bytes()
    assert [p.name for p in (copy / "models").iterdir()] == ["model.pt"]
    assert {p.name for p in copy.iterdir()} == {p.name for p in source.iterdir()} - {"output", "eval"}
    metadata = json.loads((copy / "configs" / "metadata.json").read_text())
    formats = metadata["network_data_format"]
    assert formats["inputs"]["image"]["spatial_shape"] == [48, 96, 96]
    assert formats["post_processed_outputs"]["pred"]["spatial_shape"] == ["*", "*", "*"]
    assert formats["outputs"]["pred"]["channel_def"] == dict(zip("012", names, strict=True))
    assert metadata["eval_metrics"] == {}  # those of the weights that are not in the copy
    for name in ("train.json", "inference.json"):
        config = json.loads((copy / "configs" / name).read_text())
        assert config["num_classes"] == 3 and config["batch_size"] == 2
    meta, config = str(copy / "configs" / "metadata.json"), str(copy / "configs" / "inference.json")
    verify_net_in_out("network_def", meta_file=meta, config_file=config, device="cpu")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({}, "does not fit the network of volumes"),  # three classes, two by default
        ({"weights": "none.pt"}, "there is no file none.pt"),
        ({"weights": __file__}, "is no PyTorch checkpoint"),
        ({"bundle": "nowhere"}, "there is no file nowhere"),
        ({"copy": "."}, "is there already"),
        ({"set": "sizes=3"}, "sizes is no setting"),
    ],
)
def test_what_cannot_be_joined_is_named_and_nothing_is_left(module, repository, weights, tmp_path, change, message):
    given = {"bundle": repository / "bundles" / "usfm_segmentation", "copy": tmp_path / "copy", "weights": weights}
    given |= change
    arguments = [str(given["bundle"]), str(given["copy"]), "--weights", str(given["weights"])]
    with pytest.raises(SystemExit) as end:
        module["main"]([*arguments, "--set", given["set"]] if "set" in given else arguments)
    assert message in str(end.value)
    assert not list(tmp_path.iterdir())
