# Copyright (c) monai_usfm contributors
# SPDX-License-Identifier: Apache-2.0
"""Workflows of the bundles from Python."""

from __future__ import annotations

import csv
import json

import pytest

import monai_usfm.data
from monai_usfm.bundle import describe
from monai_usfm.cli import main
from monai_usfm.workflow import TASKS, find_bundle, load_bundle, run_bundle


@pytest.mark.parametrize("task", TASKS)
def test_a_bundle_is_found_by_task_name_and_folder(repository, task):
    folder = repository / "bundles" / f"usfm_{task}"
    assert find_bundle(task) == find_bundle(f"usfm_{task}") == find_bundle(str(folder)) == folder


def test_a_bundle_that_is_not_there_is_told_with_those_that_are(tmp_path):
    with pytest.raises(FileNotFoundError, match="segmentation"):
        find_bundle("registration")
    with pytest.raises(FileNotFoundError, match="no folder configs"):
        find_bundle("segmentation", tmp_path)


@pytest.mark.parametrize(
    ("option", "near"), [("max_epoch", "max_epochs"), ("learning_rates", "learning_rate"), ("bach_size", "batch_size")]
)
def test_a_misspelled_option_is_refused_with_the_right_one(option, near, tmp_path):
    flow = load_bundle("segmentation", "train", output_dir=str(tmp_path), **{option: 1})
    with pytest.raises(RuntimeError) as failure:
        flow.initialize()
    assert f"Did you mean --{near}" in describe(failure.value)


def test_an_error_in_python_is_the_sentence_itself(tmp_path):
    with pytest.raises(ValueError, match=r"^There is no option --max_epoch\."):
        run_bundle("segmentation", "train", output_dir=str(tmp_path), max_epoch=1)


def test_an_epoch_of_another_length_is_that_of_the_schedule(tmp_path):
    flow = load_bundle("classification", output_dir=str(tmp_path), **{"train#trainer#epoch_length": 3}, max_epochs=2)
    flow.parser.parse(reset=True)
    assert flow.parser.get_parsed_content("steps_per_epoch") == 3


def test_an_unknown_overlay_is_refused_with_those_of_the_bundle():
    with pytest.raises(FileNotFoundError, match="demo"):
        load_bundle("segmentation", overlays=["dem"])


def test_training_for_steps_takes_so_many_in_equal_epochs(tmp_path):
    options = {"output_dir": str(tmp_path), "spatial_size": [32, 32], "batch_size": 2, "device": "cpu"}
    options |= {f"synthetic#num_{split}": 4 for split in ("training", "validation", "test")}
    flow = run_bundle("segmentation", overlays=["demo"], steps=6, max_epochs=2, **options)
    trainer = flow.parser.get_parsed_content("train#trainer")
    assert (trainer.state.epoch, trainer.state.iteration) == (2, 6)
    assert (tmp_path / "model.pt").is_file()
    run_bundle("segmentation", "evaluate", overlays=["demo"], **options)
    with (tmp_path / "evaluation" / "cases.csv").open() as stream:
        assert len(list(csv.DictReader(stream))) == 4


@pytest.mark.parametrize("steps, epochs, found", [
    (100, 60, (50, 2)), (400, 60, (50, 8)), (2, 60, (2, 1)), (100, 4, (4, 25)), (401, 60, (60, 7)),
])  # fmt: skip
def test_parts_of_the_steps_add_up_where_validations_are_not_lost(steps, epochs, found):
    flow = load_bundle("segmentation", steps=steps, max_epochs=epochs, output_dir="none")
    parser = flow.parser
    assert (parser.get_parsed_content("train#trainer#max_epochs"), parser["train#trainer#epoch_length"]) == found


def test_steps_are_parts_of_the_default_epochs_where_the_option_is_null():
    flow = load_bundle("pretraining", steps=4000)
    assert flow.parser["max_epochs"] is None
    epochs = flow.parser.get_parsed_content("train#trainer#max_epochs")
    assert flow.parser["train#trainer#epoch_length"] * epochs == 4000


def test_a_bundle_packed_before_finds_its_dataset():
    assert monai_usfm.bundle.InferenceDataset is monai_usfm.data.InferenceDataset


def records(folder):
    return {name: (folder / name).read_bytes() for name in ("config.json", "run.json", "metrics.csv", "model.json")}


def test_records_of_a_training_are_not_those_of_what_came_after(simulated_images, tiny_training, tmp_path):
    options = {**tiny_training, "dataset_dir": str(simulated_images), "output_dir": str(tmp_path)}
    run_bundle("segmentation", **options)
    kept = records(tmp_path)
    with pytest.raises(ValueError, match="batch_size is 2, was 4"):
        run_bundle("segmentation", **{**options, "batch_size": 2, "resume": True})
    with pytest.raises(ValueError, match=r"--class_names has 4 names for 2 classes: .*, the background first"):
        run_bundle("segmentation", **options, class_names=["a", "b", "c", "d"])
    assert (tmp_path / "checkpoints" / "last.pt").is_file()
    run_bundle("segmentation", "evaluate", **options)
    found = json.loads((tmp_path / "evaluation" / "run.json").read_text())["options"]
    assert found["checkpoint"] == str(tmp_path / "model.pt")
    assert found["sha256"] == json.loads(kept["model.json"])["sha256"]
    run_bundle("segmentation", "predict", **{k: options[k] for k in ("dataset_dir", "output_dir", "device")})
    assert (tmp_path / "inference_run.json").is_file() and records(tmp_path) == kept
    assert main(["evaluate", "--dataset_dir", str(simulated_images), "--output_dir", str(tmp_path)]) == 0  # by the card


def test_checkpoints_that_are_not_resumed_are_kept(simulated_images, tiny_training, tmp_path):
    options = {**tiny_training, "dataset_dir": str(simulated_images), "output_dir": str(tmp_path)}
    run_bundle("segmentation", **options)
    last = (tmp_path / "checkpoints" / "last.pt").read_bytes()
    run_bundle("segmentation", **{**options, "max_epochs": 1})
    assert (tmp_path / "checkpoints" / "former_last.pt").read_bytes() == last
