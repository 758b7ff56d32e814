# Copyright (c) monai_usfm contributors
# SPDX-License-Identifier: Apache-2.0
"""Runs the workflows of the bundles from Python: for the command line, label-efficiency curves and the ablation.

Each is a thin form of :class:`monai.bundle.ConfigWorkflow`, so that a number measured here is one that
``python -m monai.bundle run`` gives with the same options.
"""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from monai.bundle import ConfigWorkflow
from monai.config import PathLike

__all__ = ["TASKS", "find_bundle", "load_bundle", "run_bundle"]

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
        options: config entries by id, such as ``max_epochs=5`` or ``**{"network_def#width": 64}``. For training
            also ``steps``: the optimizer steps of the whole training, in ``max_epochs`` equal parts with a validation
            each, whatever the number of images.

    Raises:
        FileNotFoundError: for a bundle or config that is not there.
        ValueError: for an option that the config does not have, with the nearest that it has.
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
    flow = ConfigWorkflow(
        config_file=[str(file) for file in files],
        meta_file=str(folder / "configs" / "metadata.json"),
        logging_file=str(folder / "configs" / "logging.conf"),
        workflow_type=WORKFLOWS[workflow],
        bundle_root=str(folder),
    )
    check_options(flow, options)
    if steps is not None:
        options.setdefault("max_epochs", flow.parser["max_epochs"])
        per_epoch = max(1, round(int(steps) / int(options["max_epochs"])))
        options.update({"train#trainer#epoch_length": per_epoch, "steps_per_epoch": per_epoch})
    flow.parser.update(pairs=options)
    return flow


def check_options(flow: ConfigWorkflow, options: dict[str, Any]) -> None:
    """Refuse options that the config does not have; MONAI would take them as new entries that nothing reads.

    Raises:
        ValueError: naming the option and the nearest right one.
    """
    known = [name for name in flow.parser.get() if not name.startswith("_")]
    for option in options:
        head, _, rest = option.partition("#")
        if head in known and (not rest or option.rpartition("#")[0] in flow.parser):
            continue
        near = difflib.get_close_matches(head, known, 1, 0.5)
        raise ValueError(f"there is no option {option!r}" + (f"; did you mean {near[0]!r}?" if near else "."))


def run_bundle(
    bundle: str,
    workflow: str = "train",
    *,
    overlays: Sequence[str] = (),
    bundle_root: PathLike | None = None,
    **options: Any,
) -> ConfigWorkflow:
    """Run a bundle's workflow in this process, from its initialization to its end.

    The arguments are those of :func:`load_bundle`.

    Returns:
        The workflow, whose ``parser.get_parsed_content("network_def")`` and the like are what was used. The results
        are the files in its ``output_dir``.
    """
    flow = load_bundle(bundle, workflow, overlays=overlays, bundle_root=bundle_root, **options)
    flow.initialize()
    flow.run()
    flow.finalize()
    return flow
