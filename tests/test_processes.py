# Copyright (c) monai_usfm contributors
# SPDX-License-Identifier: Apache-2.0
"""Trainings by torchrun on two small processes against one with batches twice as large."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest

from monai_usfm import load_network
from monai_usfm.simulation import write_synthetic_dataset
from monai_usfm.workflow import TASKS, run_bundle

OPTIONS = {"spatial_size": [64, 64], "max_epochs": 4, "warmup_epochs": 1, "amp": "fp32", "figure_interval": 0}
TOLERANCE = 0.1  # of the loss of an epoch: augmentation and masks are drawn by each process for itself


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("simulated")
    write_synthetic_dataset(folder, 64, 8, 8, image_size=(72, 72))
    return folder / "datalist.json"


def options(task: str, data: Path, output_dir: Path, batch_size: int) -> dict:
    whole = {"epoch_length": 64} if task in ("pretraining", "enhancement") else {}
    start = {} if task in ("pretraining", "enhancement") else {"pretrained": None}
    places = {"dataset_dir": str(data.parent), "datalist": str(data), "output_dir": str(output_dir)}
    own = {k: v for k, v in OPTIONS.items() if k != "figure_interval" or task != "classification"}
    return {**own, **whole, **start, **places, "batch_size": batch_size}


def losses(folder: Path) -> list[float]:
    with open(folder / "metrics.csv", newline="", encoding="utf-8") as stream:
        return [float(row["train_loss"]) for row in csv.DictReader(stream)]


@pytest.mark.slow
@pytest.mark.parametrize("task", TASKS)
def test_two_processes_follow_the_losses_of_one_and_one_writes(
    task, data, copy_bundle, train_in_two_processes, tmp_path
):
    printed = train_in_two_processes(copy_bundle(f"usfm_{task}"), **options(task, data, tmp_path / "two", 8))
    assert printed.count("epoch 4/4") == 1
    run_bundle(task, overlays=["demo"], device="cpu", **options(task, data, tmp_path / "one", 16))
    print(task, losses(tmp_path / "one"), losses(tmp_path / "two"))
    assert losses(tmp_path / "two") == pytest.approx(losses(tmp_path / "one"), rel=TOLERANCE)


@pytest.mark.slow
def test_a_killed_process_leaves_a_checkpoint_that_one_process_goes_on_from(
    data, copy_bundle, train_in_two_processes, tmp_path
):
    root = copy_bundle("usfm_segmentation")
    condition = "os.kill(os.getpid(), 9) if bundle.rank() == 1 and @lr_scheduler.last_epoch == 10 else @loss(out, y)"
    kill = json.dumps({"train#trainer#loss_function": f"$lambda out, y: {condition}"})
    (root / "configs" / "demo.json").write_text(json.dumps(json.loads(kill) | {"imports": ["$import os"]}))
    with pytest.raises(AssertionError, match=r"exitcode *: -9"):
        train_in_two_processes(root, **options("segmentation", data, tmp_path, 8))
    assert len(losses(tmp_path)) == 2
    settings = options("segmentation", data, tmp_path, 16) | {"resume": True, "resume_anyway": True, "device": "cpu"}
    run_bundle("segmentation", **settings)
    run_bundle("segmentation", device="cpu", **options("segmentation", data, tmp_path / "one", 16))
    print(losses(tmp_path), losses(tmp_path / "one"))
    assert losses(tmp_path) == pytest.approx(losses(tmp_path / "one"), rel=TOLERANCE)
    load_network(tmp_path / "model.pt")
