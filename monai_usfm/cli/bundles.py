# Copyright (c) monai_usfm contributors
# SPDX-License-Identifier: Apache-2.0
"""Verbs that run a bundle's workflow: what is not an argument here is an option of the bundle's config."""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal

from cyclopts import Parameter
from monai.bundle import ConfigWorkflow

from monai_usfm.bundle.inference import FAILED
from monai_usfm.cli.options import parse_options
from monai_usfm.workflow import load_bundle, run_bundle

__all__ = ["calibrate", "evaluate", "predict", "pretrain", "train"]

Task = Literal["pretraining", "segmentation", "classification", "enhancement"]
Options = Annotated[str, Parameter(show=False, allow_leading_hyphen=True)]


def train(
    *options: Options,
    task: Task,
    overlays: tuple[str, ...] = (),
    bundle_root: str | None = None,
    list_options: bool = False,
) -> None:
    """Train a network for a task, from pretrained weights or from scratch.

    Writes the weights ``model.pt`` with their card ``model.json``, tables and figures to ``--output_dir``, by default
    ``output/TASK`` in the current folder. All options of the bundle's ``train.json`` are taken, for example::

        monai-usfm train --task segmentation --dataset_dir DATA --pretrained encoder.pt --max_epochs 30

    Args:
        task: what the network is for.
        overlays: names of further configs of the bundle, for example ``demo``.
        bundle_root: folder of the bundle; default: that of the package.
        list_options: only list the options and their values.
    """
    _run(task, "train", options, overlays, bundle_root, list_options)


def pretrain(
    *options: Options, overlays: tuple[str, ...] = (), bundle_root: str | None = None, list_options: bool = False
) -> None:
    """Train an encoder on images without labels: ``train --task pretraining``.

    Writes the weights ``model.pt`` with their card ``model.json``, tables and figures to ``--output_dir``, by default
    ``output/pretraining``. All options of the bundle's ``train.json`` are taken, for example::

        monai-usfm pretrain --dataset_dir DATA --network_size small --max_epochs 100

    Args:
        overlays: names of further configs of the bundle, for example ``foundation`` or ``demo``.
        bundle_root: folder of the bundle; default: that of the package.
        list_options: only list the options and their values.
    """
    _run("pretraining", "train", options, overlays, bundle_root, list_options)


def evaluate(
    *options: Options,
    task: Task,
    overlays: tuple[str, ...] = (),
    bundle_root: str | None = None,
    list_options: bool = False,
) -> None:
    """Score trained weights on a split of a datalist.

    Takes the weights that ``train`` left in ``--output_dir`` (or ``--checkpoint FILE``), and writes tables and figures
    to its folder ``evaluation``. All options of the bundle's ``evaluate.json`` are taken, for example::

        monai-usfm evaluate --task segmentation --dataset_dir DATA --split test

    Args:
        task: what the network is for.
        overlays: those of the training.
        bundle_root: folder of the bundle; default: that of the package.
        list_options: only list the options and their values.
    """
    _run(task, "evaluate", options, overlays, bundle_root, list_options)


def predict(
    *options: Options,
    task: Task | None = None,
    checkpoint: str | None = None,
    overlays: tuple[str, ...] = (),
    bundle_root: str | None = None,
    list_options: bool = False,
) -> int:
    """Apply trained weights to a folder of images.

    Writes one result for each image to ``--output_dir``, by default ``output/predictions``. All options of the bundle's
    ``inference.json`` are taken, for example::

        monai-usfm predict --checkpoint output/segmentation/model.pt --dataset_dir IMAGES

    Args:
        task: what the network is for; default: what the card of ``checkpoint`` says.
        checkpoint: weights; default: those of the bundle.
        overlays: names of further configs of the bundle.
        bundle_root: folder of the bundle; default: that of the package.
        list_options: only list the options and their values.

    Returns:
        The exit status: 3 where files could not be read, which ``failed.csv`` lists.
    """
    if task is None and bundle_root is None:
        task = _task_of(checkpoint)
    given = () if checkpoint is None else ("--checkpoint", checkpoint)
    flow = _run(task or "", "predict", (*options, *given), overlays, bundle_root, list_options)
    return FAILED if flow is not None and flow.parser.get_parsed_content("evaluator").failures else 0


def calibrate(
    *options: Options, checkpoint: str, bundle_root: str | None = None, sensitivity: float | None = None
) -> None:
    """Fit the temperature of trained weights on validation images and put it on their card.

    ``evaluate``, ``predict``, MONAI Label and MONAI Deploy find it there. All options of the bundle's ``train.json``
    are taken, for example::

        monai-usfm calibrate --checkpoint output/classification/model.pt --dataset_dir DATA

    Args:
        checkpoint: weights with a card, of a segmentation or classification.
        bundle_root: folder of the bundle; default: that of the package.
        sensitivity: also fit the presence threshold, below which a mask is empty, so that this share of the validation
            images that show a structure keeps its mask, for example 0.95.
    """
    from monai_usfm.evaluation import calibrate

    calibrate(checkpoint, bundle_root=bundle_root, sensitivity=sensitivity, **parse_options(options))


def _task_of(checkpoint: str | None) -> Any:
    """Task on the card of a weight file."""
    if checkpoint is None:
        raise ValueError("give --task, or --checkpoint with weights whose card tells the task.")
    from monai_usfm.cards import find_card

    card = find_card(checkpoint)
    if card is None:
        raise ValueError(f"{checkpoint} has no card that tells its task; give --task.")
    return "pretraining" if card["task"] in ("features", "encoder") else card["task"]


def _run(
    bundle: str,
    workflow: str,
    tokens: tuple[str, ...],
    overlays: tuple[str, ...],
    bundle_root: str | None,
    list_options: bool,
) -> ConfigWorkflow | None:
    options = parse_options(tokens)
    # a bundle writes below its own folder unless told otherwise, which in an installed package is the wrong place
    options.setdefault("output_dir", "output/predictions" if workflow == "predict" else f"output/{bundle}")
    if not list_options:
        return run_bundle(bundle, workflow, overlays=overlays, bundle_root=bundle_root, **options)
    config = load_bundle(bundle, workflow, overlays=overlays, bundle_root=bundle_root, **options).parser.get()
    for name, meaning in config["_options_"].items():
        print(f"--{name} {json.dumps(config.get(name), default=str)}\n    {meaning}")
    return None
