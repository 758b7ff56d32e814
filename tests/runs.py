# Copyright (c) monai_usfm contributors
# SPDX-License-Identifier: Apache-2.0
"""Runs of a copied bundle by its config files."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
from monai.bundle import ConfigWorkflow

__all__ = ["files", "run", "training_error", "workflow"]


def files(root: Path, *names: str) -> list[str]:
    """Config files of a bundle by their names without ``.json``."""
    return [str(root / "configs" / f"{name}.json") for name in names]


def workflow(bundle: Path, kind: str, names: list[str], **settings) -> ConfigWorkflow:
    """Of config files of the bundle, or of another folder; not initialized."""
    return ConfigWorkflow(
        config_file=[str(bundle / "configs" / name) for name in names],
        meta_file=str(bundle / "configs" / "metadata.json"),
        logging_file=False,
        workflow_type=kind,
        bundle_root=str(bundle),
        **settings,
    )


def run(flow: ConfigWorkflow) -> None:
    flow.initialize()
    flow.run()
    flow.finalize()


def training_error(bundle: Path, folder: Path, output: Path, **settings) -> str:
    """The whole chain of messages of a training run that fails."""
    logging.getLogger("ignite.engine").setLevel(logging.CRITICAL)
    data = {"dataset_dir": str(folder), "output_dir": str(output)}
    with pytest.raises(Exception) as caught:
        run(workflow(bundle, "train", ["train.json", "demo.json"], **{**data, **settings}))
    messages, error = [], caught.value
    while error is not None:
        messages.append(str(error))
        error = error.__cause__
    return "\n".join(messages)
