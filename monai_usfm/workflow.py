# Copyright (c) monai_usfm contributors
# SPDX-License-Identifier: Apache-2.0
"""Runs the workflows of the bundles from Python: for the command line, label-efficiency curves and the ablation.

Each is a thin form of :class:`monai.bundle.ConfigWorkflow`, so that a number measured here is one that
``python -m monai.bundle run`` gives with the same options.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from ignite.engine import Events
from monai.bundle import ConfigWorkflow
from monai.config import PathLike

from monai_usfm.errors import root_cause
from monai_usfm.options import set_options

__all__ = ["TASKS", "find_bundle", "load_bundle", "run_bundle", "steps_within"]

TASKS = ("pretraining", "segmentation", "classification", "enhancement")
WORKFLOWS = {"train": "train", "evaluate": "inference", "predict": "inference"}
"""Name of a workflow -> its type for MONAI."""


def find_bundle(bundle: str, bundle_root: PathLike | None = None) -> Path:
    """Folder of a bundle.

    Args:
        bundle: a task (``"segmentation"``), a bundle's name (``"usfm_segmentation"``) or its folder.
        bundle_root: the folder, whatever the name; for bundles that lie elsewhere.

    Raises:
        FileNotFoundError: where there is none, with the folders that were searched.
    """
    if bundle_root is not None or "/" in str(bundle) or Path(bundle).joinpath("configs").is_dir():
        folder = Path(bundle_root if bundle_root is not None else bundle)
        if not (folder / "configs").is_dir():
            raise FileNotFoundError(f"{folder} is no bundle: it has no folder configs.")
        return folder
    name = bundle if bundle.startswith("usfm_") else f"usfm_{bundle}"
    package = Path(__file__).resolve().parent
    places = (package.parent / "bundles", package / "bundles")  # of a checkout; of a wheel
    for place in places:
        if (place / name / "configs").is_dir():
            return place / name
    raise FileNotFoundError(
        f"there is no bundle {name!r} in {' or '.join(map(str, places))}; choose one of {', '.join(TASKS)}, or name a "
        "folder by bundle_root."
    )


def load_bundle(
    bundle: str,
    workflow: str = "train",
    *,
    overlays: Sequence[str] = (),
    bundle_root: PathLike | None = None,
    **options: Any,
) -> ConfigWorkflow:
    """A bundle's workflow with its options, not initialized.

    Args:
        bundle: task, name or folder, see :func:`find_bundle`.
        workflow: ``"train"`` (``train.json``), ``"evaluate"`` (``evaluate.json`` over it) or ``"predict"``
            (``inference.json``).
        overlays: names of further configs of the bundle, laid over ``train.json`` or ``inference.json`` in this order.
        bundle_root: folder of the bundle, if ``bundle`` does not tell.
        options: config entries by id, such as ``max_epochs=5`` or ``**{"plan#width": 64}``. For training
            also ``steps``: the optimizer steps of the whole training, whatever the number of images, in equal parts
            with a validation each: ``max_epochs`` of them, or somewhat fewer, so that the parts add up.

    Raises:
        FileNotFoundError: for a bundle or config that is not there.
        ValueError: for another workflow. Unknown options are refused when it is initialized.
    """
    folder = find_bundle(bundle, bundle_root)
    if workflow not in WORKFLOWS:
        raise ValueError(f"workflow must be one of {', '.join(WORKFLOWS)}, got {workflow!r}.")
    names = ["inference", *overlays] if workflow == "predict" else ["train", *overlays]
    if workflow == "evaluate":
        names.append("evaluate")
    files = [folder / "configs" / f"{name}.json" for name in names]
    for file in files:
        if not file.is_file():
            known = ", ".join(sorted(f.stem for f in (folder / "configs").glob("*.json") if f.stem != "metadata"))
            raise FileNotFoundError(f"{folder.name} has no config {file.stem!r}; it has {known}.")
    steps = options.pop("steps", None)
    if steps is not None and (workflow != "train" or int(steps) < 1):
        raise ValueError(f"steps are for training, and at least 1; got {steps!r} for {workflow!r}.")
    tracking = options.pop("tracking", None)  # MONAI's own switch, no entry; it keeps the configuration at once
    flow = ConfigWorkflow(
        config_file=[str(file) for file in files],
        meta_file=str(folder / "configs" / "metadata.json"),
        logging_file=str(folder / "configs" / "logging.conf"),
        workflow_type=WORKFLOWS[workflow],
        bundle_root=str(folder),
        tracking=tracking,
        **(options if tracking else {}),
    )
    set_options(flow.parser, options)
    if steps is not None:
        epochs = flow.parser.get_parsed_content("train#trainer#max_epochs")  # where the option is null, the default
        epochs, per_epoch = _parts(int(steps), int(epochs))
        lengths = {"train#trainer#epoch_length": per_epoch, "steps_per_epoch": per_epoch}  # the second before 0.16
        flow.parser.update(pairs={**lengths, "train#trainer#max_epochs": epochs})
    return flow


def _parts(steps: int, epochs: int) -> tuple[int, int]:
    """Epochs, at most so many, and steps of each: exactly ``steps``, but where that would halve the validations."""
    most = min(steps, epochs)
    exact = max(count for count in range(1, most + 1) if steps % count == 0)
    return (exact, steps // exact) if 2 * exact >= most else (most, round(steps / most))


def run_bundle(bundle: str, workflow: str = "train", **options: Any) -> ConfigWorkflow:
    """Run a bundle's workflow in this process, from its initialization to its end.

    The arguments are those of :func:`load_bundle`.

    Returns:
        The workflow, whose ``parser.get_parsed_content("network_def")`` and the like are what was used. The results
        are the files in its ``output_dir``.
    """
    return run_loaded(load_bundle(bundle, workflow, **options))


def run_loaded(flow: ConfigWorkflow) -> ConfigWorkflow:
    """Run what :func:`load_bundle` gave, from its initialization to its end; an error is the cause itself."""
    try:
        flow.initialize()
        flow.run()
        flow.finalize()
    except RuntimeError as error:  # MONAI's frame around it says where, not what
        cause = root_cause(error)
        raise cause from cause.__cause__
    return flow


def steps_within(seconds: float, bundle: str, *, overlays: Sequence[str] = (), **options: Any) -> int:
    """Optimizer steps that a training does in some computing time, for comparisons at equal time.

    The first of a few steps are left out, because they build what later ones reuse. On a CPU the time is that of the
    process, which other work on the machine does not lengthen. Validation is not counted.

    Args:
        seconds: computing time of the whole training.
        bundle: task, name or folder, see :func:`find_bundle`.
        overlays: see :func:`load_bundle`.
        options: those of the training, see :func:`load_bundle`.

    Returns:
        At least 1.
    """
    with tempfile.TemporaryDirectory() as folder:
        trial = {**options, "output_dir": folder, "export_path": f"{folder}/model.pt", "max_epochs": 1, "steps": 8}
        flow = load_bundle(bundle, overlays=overlays, **trial)
        flow.initialize()
        trainer = flow.parser.get_parsed_content("train#trainer")
        on_cpu = torch.device(flow.parser.get_parsed_content("device")).type == "cpu"
        times: list[float] = []
        clock = time.process_time if on_cpu else time.perf_counter
        trainer.add_event_handler(Events.ITERATION_COMPLETED, lambda: times.append(clock()))
        flow.run()
        flow.finalize()
    return max(1, round(seconds * (len(times) - 3) / (times[-1] - times[2])))
