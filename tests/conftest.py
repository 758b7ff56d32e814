# Copyright (c) monai_usfm contributors
# SPDX-License-Identifier: Apache-2.0
"""Fixtures shared by all tests."""

from __future__ import annotations

import logging
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from monai_usfm.simulation import write_synthetic_dataset

REPOSITORY = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def repository() -> Path:
    """Root of the checkout."""
    return REPOSITORY


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Folder of the openly licensed development images; the test is skipped where it is absent."""
    folder = Path(os.environ.get("MONAI_USFM_DATA", REPOSITORY.parent / "shared" / "data"))
    if not (folder / "busbra" / "dataset.json").is_file():
        pytest.skip(f"no development images at {folder}; set MONAI_USFM_DATA to the folder that holds busbra/")
    return folder


@pytest.fixture(scope="session")
def simulated_images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight simulated images to train on, four to validate and four to test, with their ``dataset.json``."""
    folder = tmp_path_factory.mktemp("simulated")
    file = write_synthetic_dataset(folder, 8, 4, 4, image_size=(40, 40), organs=("breast",))
    (folder / "dataset.json").write_text(file.read_text())
    return folder


@pytest.fixture(scope="session")
def tiny_training() -> dict[str, Any]:
    """Options of every bundle's ``train.json`` for a training of a second."""
    network = {"num_layers": 1, "hidden_size": 24, "mlp_dim": 48, "num_heads": 3}
    return {
        "pretrained": None,
        **{f"network_options#{name}": value for name, value in network.items()},
        "spatial_size": [32, 32],
        "batch_size": 4,
        "max_epochs": 2,
        "num_workers": 0,
        "device": "cpu",
        "amp": "fp32",
    }


@pytest.fixture(scope="session")
def copy_bundle(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Copies a bundle's folder, without its weights, to where nothing of the checkout is."""
    logging.getLogger("ignite").setLevel(logging.WARNING)
    unwanted = shutil.ignore_patterns("output", "eval", "*.pt")

    def copy(name: str) -> Path:
        target = tmp_path_factory.mktemp("elsewhere") / name
        return Path(shutil.copytree(REPOSITORY / "bundles" / name, target, ignore=unwanted))

    return copy


@pytest.fixture(scope="session")
def train_in_two_processes() -> Callable[..., str]:
    """Trains a copied bundle by torchrun on two processes, without ``device``: each takes its own."""

    def train(root: Path, **settings) -> str:
        """What the run printed to standard error."""
        names = str([str(root / "configs" / f"{name}.json") for name in ("train", "demo")])
        settings = {"bundle_root": root} | {key: value for key, value in settings.items() if key != "device"}
        # MONAI passes over an option that is None, so None is said as null
        said = {key: "null" if value is None else str(value) for key, value in settings.items()}
        arguments = [text for key, value in said.items() for text in (f"--{key}", value)]
        launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", "-m", "monai.bundle", "run"]
        command = [sys.executable, *launcher, "--config_file", names, *arguments]
        environment = {**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())}
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-3000:]
        return done.stderr

    return train
