# Copyright (c) monai_usfm contributors
# SPDX-License-Identifier: Apache-2.0
"""Trainings by torchrun on two small processes against one with batches twice as large."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
import torch

from monai_usfm.simulation import write_synthetic_dataset
from monai_usfm.workflow import run_bundle

OPTIONS = {"spatial_size": [64, 64], "max_epochs": 4, "warmup_epochs": 1, "amp": "fp32", "figure_interval": 0}
TOLERANCE = 0.1  # of the loss of an epoch: augmentation and masks are drawn by each process for itself


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("simulated")
    write_synthetic_dataset(folder, 64, 8, 8, image_size=(72, 72))
    return folder / "datalist.json"


def options(task: str, data: Path, output_dir: Path, batch_size: int) -> dict:
    own = {"pretrained": None, **({"epoch_length": 64} if task == "pretraining" else {})}
    places = {"dataset_dir": str(data.parent), "datalist": str(data), "output_dir": str(output_dir)}
    return {**OPTIONS, **own, **places, "batch_size": batch_size}


def losses(folder: Path) -> list[float]:
    with open(folder / "metrics.csv", newline="", encoding="utf-8") as stream:
        return [float(row["train_loss"]) for row in csv.DictReader(stream)]


@pytest.mark.slow
@pytest.mark.parametrize("task", ["pretraining", "segmentation"])
def test_two_processes_follow_the_losses_of_one_and_one_writes(
    task, data, copy_bundle, train_in_two_processes, tmp_path
):
    printed = train_in_two_processes(copy_bundle(f"usfm_{task}"), **options(task, data, tmp_path / "two", 8))
    assert printed.count("epoch 4/4") == 1
    run_bundle(task, overlays=["demo"], device="cpu", **options(task, data, tmp_path / "one", 16))
    assert losses(tmp_path / "two") == pytest.approx(losses(tmp_path / "one"), rel=TOLERANCE)


@pytest.mark.slow
def test_weights_spread_over_processes_train_as_copies_do_and_one_process_goes_on(
    data, copy_bundle, train_in_two_processes, tmp_path
):
    bundle = copy_bundle("usfm_segmentation")
    for name in ("copies", "spread"):
        settings = {**options("segmentation", data, tmp_path / name, 8), "max_epochs": 2, "sharded": name == "spread"}
        train_in_two_processes(bundle, **settings)
    assert losses(tmp_path / "spread") == pytest.approx(losses(tmp_path / "copies"), rel=1e-4)
    weights = [torch.load(tmp_path / name / "model.pt", weights_only=True) for name in ("spread", "copies")]
    assert all(torch.allclose(value, weights[1][name], atol=1e-3) for name, value in weights[0].items())
    more = {**options("segmentation", data, tmp_path / "spread", 16), "max_epochs": 3}
    run_bundle("segmentation", overlays=["demo"], device="cpu", resume=True, resume_anyway=True, **more)
    assert losses(tmp_path / "spread")[2] < losses(tmp_path / "copies")[1]
