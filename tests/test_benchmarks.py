# Copyright (c) monai_usfm contributors
# SPDX-License-Identifier: Apache-2.0
"""Experiments of the benchmarks: their targets against closed forms, and that they run."""

from __future__ import annotations

import importlib.util
import json
import math
import sys
from pathlib import Path

import pytest
import torch

from monai_usfm.data import write_synthetic_dataset

ROOT = Path(__file__).parents[1]


def script(name):
    spec = importlib.util.spec_from_file_location(name, ROOT / "benchmarks" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_a_region_is_as_likely_as_its_organs_together():
    tree = script("objectives").OrganTree(3)
    torch.nn.init.zeros_(tree.to_organs.weight)
    torch.nn.init.zeros_(tree.to_organs.bias)
    found = tree(torch.ones(3, 3), torch.tensor([tree.places["lung"], tree.places["liver"], -1]))
    count = len(tree.places)
    assert found.item() == pytest.approx((2 * math.log(count) + math.log(count) + math.log(count / 5)) / 2, rel=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["objectives", "synthesis"])
def test_it_runs(name, tmp_path, monkeypatch):
    datalist = write_synthetic_dataset(tmp_path / "data", 4, 2, 2, image_size=(32, 32), organs=("breast",))
    small = ["--size", "32", "--steps", "2", "--batch_size", "4", "--images", "4"]
    more = {"objectives": ["--pretrained", str(ROOT / "bundles/usfm_pretraining/models/model.pt")]}
    options = more.get(name, ["--number", "2", "--sampling_steps", "2"])
    monkeypatch.setattr(sys, "argv", [name, str(datalist), str(datalist), str(tmp_path / "out"), *small, *options])
    script(name).main()
    if name == "objectives":
        assert {f.stem for f in (tmp_path / "out").glob("*.pt")} == set(script(name).WEIGHTS)
    else:
        counts = {f.stem: len(json.loads(f.read_text())["training"]) for f in (tmp_path / "out").glob("*.json")}
        assert counts == {"labeled": 4, "drawn": 6, "simulated": 6}
