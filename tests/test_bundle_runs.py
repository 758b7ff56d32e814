# Copyright (c) monai_usfm contributors
# SPDX-License-Identifier: Apache-2.0
"""What all bundles do alike: stop and resume, train in workers and processes, have their properties, be exported."""

from __future__ import annotations

import csv
import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from ignite.engine import Events
from monai.bundle import ckpt_export
from monai.data import load_net_with_metadata

from monai_usfm import build_network, load_network, save_network
from monai_usfm.workflow import TASKS, load_bundle, run_bundle

pytestmark = [pytest.mark.filterwarnings("ignore::UserWarning"), pytest.mark.parametrize("task", TASKS)]
KILLED = """
import json, os, sys
from ignite.engine import Events
from monai_usfm.workflow import load_bundle
flow = load_bundle(sys.argv[1], **json.loads(sys.argv[2]))
flow.initialize()
trainer = flow.parser.get_parsed_content("train#trainer")
trainer.add_event_handler(Events.ITERATION_STARTED(once=4), lambda: os.kill(os.getpid(), 9))
flow.run()
"""


@pytest.fixture
def options(simulated_images: Path, tiny_training: dict[str, Any], tmp_path: Path) -> dict[str, Any]:
    """Two epochs of two steps."""
    places = {"dataset_dir": str(simulated_images), "output_dir": str(tmp_path / "whole")}
    return {**tiny_training, **places, "val_interval": 1}


def table(folder: Any) -> list[dict[str, str]]:
    """The rows of the epochs, without what a clock said."""
    with open(Path(folder) / "metrics.csv", newline="", encoding="utf-8") as stream:
        return [{k: v for k, v in row.items() if k != "seconds"} for row in csv.DictReader(stream)]


def assert_equal_runs(first: Any, second: Any) -> None:
    assert table(first) == table(second) and len(table(first)) == 2
    left, right = (torch.load(Path(folder) / "model.pt", weights_only=True) for folder in (first, second))
    assert all(torch.equal(value, right[name]) for name, value in left.items())


@pytest.mark.parametrize("save_interval", [None, 1])
def test_a_run_that_crashed_in_mid_epoch_resumes_to_the_same_scores_and_weights(task, save_interval, options, tmp_path):
    def crash() -> None:
        raise ZeroDivisionError

    options["save_interval"] = save_interval
    run_bundle(task, **options)
    broken = {**options, "output_dir": str(tmp_path / "broken")}
    flow = load_bundle(task, **broken)
    flow.initialize()
    flow.parser.get_parsed_content("train#trainer").add_event_handler(Events.ITERATION_STARTED(once=4), crash)
    with pytest.raises(RuntimeError) as caught:
        flow.run()
    assert isinstance(caught.value.__cause__, ZeroDivisionError)
    assert len(table(broken["output_dir"])) == 1
    run_bundle(task, **broken, resume=True)
    assert_equal_runs(options["output_dir"], broken["output_dir"])


@pytest.mark.slow
def test_a_killed_process_resumes_to_the_same_scores_and_weights(task, options, tmp_path):
    run_bundle(task, **options)
    broken = {**options, "output_dir": str(tmp_path / "broken"), "resume": True}
    done = subprocess.run([sys.executable, "-c", KILLED, task, json.dumps(broken)], capture_output=True, text=True)
    assert done.returncode == -signal.SIGKILL, done.stderr[-2000:]
    run_bundle(task, **broken)
    assert_equal_runs(options["output_dir"], broken["output_dir"])


def test_numbers_do_not_depend_on_the_number_of_workers(task, options, tmp_path):
    run_bundle(task, **options)
    run_bundle(task, **{**options, "num_workers": 2, "output_dir": str(tmp_path / "two")})
    assert_equal_runs(options["output_dir"], tmp_path / "two")


@pytest.mark.slow
def test_two_processes_train_and_one_writes(task, options, copy_bundle, train_in_two_processes):
    printed = train_in_two_processes(copy_bundle(f"usfm_{task}"), **{**options, "batch_size": 2})
    assert len(table(options["output_dir"])) == 2
    checkpoints = (Path(options["output_dir"]) / "checkpoints").iterdir()
    assert sorted(file.name for file in checkpoints) == ["best.pt", "last.pt", "previous.pt"]
    assert printed.count(f"{task} epoch 2/2") == 1


def test_the_properties_of_a_training_are_those_of_the_specification(task, options):
    flow = load_bundle(task, **options)
    flow.initialize()
    assert not flow.check_properties()


def test_the_exported_program_gives_the_same_and_carries_its_configs(task, repository, tmp_path):
    configs, weights = repository / "bundles" / f"usfm_{task}" / "configs", tmp_path / "model.pt"
    torch.manual_seed(0)
    kind = "features" if task == "pretraining" else task  # what its training exports
    network = build_network(kind, spatial_size=32, num_layers=1, hidden_size=24, mlp_dim=48, num_heads=3)
    save_network(weights, network, half=False)
    ckpt_export(
        "network_def",
        filepath=str(tmp_path / "model.ts"),
        ckpt_file=str(weights),
        meta_file=str(configs / "metadata.json"),
        config_file=str(configs / "inference.json"),
        checkpoint=str(weights),
        device="cpu",
    )
    scripted, meta, extra = load_net_with_metadata(str(tmp_path / "model.ts"), more_extra_files=["inference.json"])
    image = torch.rand(2, 1, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(scripted.eval()(image), load_network(weights)(image))
    assert meta["version"] == json.loads((configs / "metadata.json").read_text())["version"]
    assert b"preprocessing" in extra["inference.json"]
