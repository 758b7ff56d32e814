# Copyright (c) monai_usfm contributors
# SPDX-License-Identifier: Apache-2.0
"""What TensorBoard and MLflow are given of a training, read back by their own readers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from monai.bundle import ConfigWorkflow
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from monai_usfm.workflow import TASKS, load_bundle, run_bundle
from tests.tables import rows

METRICS = {
    "pretraining": "val_loss",
    "segmentation": "val_mean_dice",
    "classification": "val_balanced_accuracy",
    "enhancement": "val_psnr",
}
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")


@pytest.fixture
def train(simulated_images, tiny_training) -> Callable[..., None]:
    """Two short epochs of a bundle."""

    def run(task: str, output: Path, **options) -> None:
        places = {"dataset_dir": str(simulated_images), "output_dir": str(output)}
        run_bundle(task, **{**tiny_training, **places, "val_interval": 1, **options})

    return run


def test_tensorboard_has_losses_scores_figures_and_the_rate_of_every_layer(train, tmp_path):
    train("segmentation", tmp_path, figure_interval=1)
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    tags = events.Tags()
    rates = {f"rate/{name}" for name in ("learning_rate", "rate_embedding", "rate_block_1", "rate_head")}
    assert set(tags["scalars"]) >= {*rates, "train_loss", "train_loss/epoch", "val_mean_dice"}
    losses = [event.value for event in events.Scalars("train_loss/epoch")]
    assert losses == pytest.approx([float(row["train_loss"]) for row in rows(tmp_path / "metrics.csv")])
    assert tags["images"] == ["segmentation"]
    assert [event.step for event in events.Images("segmentation")] == [1, 2]


def test_tensorboard_has_the_confusion_of_each_validation_of_a_classification(train, tmp_path):
    train("classification", tmp_path)
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert [event.step for event in events.Images("confusion")] == [1, 2]


def test_each_number_is_written_once_in_a_training_of_several_rounds(simulated_images, tiny_training, tmp_path):
    places = {"dataset_dir": str(simulated_images), "output_dir": str(tmp_path), "max_epochs": 1}
    trainer = run_bundle("segmentation", **{**tiny_training, **places}).parser.get_parsed_content("train#trainer")
    trainer.state.max_epochs = 2
    trainer.run()
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    for name, steps in (("train_loss/epoch", [1, 2]), ("train_loss", list(range(1, trainer.state.iteration + 1)))):
        assert [event.step for event in events.Scalars(name)] == steps


def test_the_switch_of_monai_reaches_its_workflow(monkeypatch, tmp_path):
    seen = {}
    monkeypatch.setattr(
        ConfigWorkflow, "patch_bundle_tracking", staticmethod(lambda parser, settings: seen.update(settings))
    )
    load_bundle("segmentation", tracking="mlflow", output_dir=str(tmp_path))
    assert "handlers_id" in seen


@pytest.mark.parametrize("task", TASKS)
def test_mlflow_has_parameters_metrics_figures_and_the_card(train, tmp_path, task):
    """By MONAI's own switch, with its own settings: a SQLite store below the results."""
    mlflow = pytest.importorskip("mlflow", reason="MLflow is not installed: pip install mlflow")
    train(task, tmp_path, tracking="mlflow")
    client = mlflow.MlflowClient(f"sqlite:///{tmp_path}/mlruns.db")
    experiment = client.get_experiment_by_name("monai_experiment")
    runs = client.search_runs([experiment.experiment_id])
    assert {run.info.status for run in runs} == {"FINISHED"}
    (run,) = [run for run in runs if "max_epochs" in run.data.params]
    assert run.data.params["max_epochs"] == "2" and "learning_rate" in run.data.params
    metrics = {name for run in runs for name in run.data.metrics}
    assert any("loss" in name for name in metrics) and METRICS[task] in metrics
    files = {file.path for file in client.list_artifacts(run.info.run_id)}
    assert files >= {"metrics.png", "model.pt", "model.json"}
    assert any(name.endswith(("_epoch_0001.png", "_epoch_0000.png", "confusion.png")) for name in files)
