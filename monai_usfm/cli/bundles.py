# Copyright (c) monai_usfm contributors
# SPDX-License-Identifier: Apache-2.0
"""Verbs that run a bundle's workflow: what is not an argument here is an option of the bundle's config."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from cyclopts import Parameter
from monai.bundle import ConfigWorkflow

from monai_usfm.cards import find_card
from monai_usfm.files import FAILED
from monai_usfm.options import DESCRIPTIONS, warn_without_effect, without_effect
from monai_usfm.settings import parse_options
from monai_usfm.workflow import load_bundle, run_loaded

__all__ = ["calibrate", "evaluate", "predict", "pretrain", "train"]

Task = Literal["pretraining", "segmentation", "classification", "enhancement"]
Options = Annotated[str, Parameter(show=False, allow_leading_hyphen=True)]


@Parameter(name="*")
@dataclass(frozen=True)
class Bundle:
    """Which configs are run, and how.

    Args:
        overlays: names of further configs of the bundle, for example ``demo``; of an evaluation those of the training.
        bundle_root: folder of the bundle; default: that of the package.
        list_options: only list the options that this verb reads, and their values.
    """

    overlays: tuple[str, ...] = ()
    bundle_root: str | None = None
    list_options: bool = False


DEFAULT = Bundle()


def train(*options: Options, task: Task, bundle: Bundle = DEFAULT) -> None:
    """Train a network for a task, from pretrained weights or from scratch.

    Writes the weights ``model.pt`` with their card ``model.json``, tables and figures to ``--output_dir``, by default
    ``output/TASK`` in the current folder. All options of the bundle's ``train.json`` are taken, for example::

        monai-usfm train --task segmentation --dataset_dir DATA --pretrained encoder.pt --max_epochs 30

    Args:
        task: what the network is for.
    """
    _run(task, "train", options, bundle)


def pretrain(*options: Options, bundle: Bundle = DEFAULT) -> None:
    """Train an encoder on images without labels: ``train --task pretraining``.

    Writes what ``train`` writes, by default to ``output/pretraining``; further overlays are ``foundation`` and
    ``distill``. For example::

        monai-usfm pretrain --dataset_dir DATA --network_size small --max_epochs 100
    """
    _run("pretraining", "train", options, bundle)


def evaluate(
    *options: Options, task: Task | None = None, checkpoint: str | None = None, bundle: Bundle = DEFAULT
) -> None:
    """Score trained weights on a split of a datalist.

    Takes the weights that ``train`` left in ``--output_dir`` (or ``--checkpoint FILE``), and writes tables and figures
    to its folder ``evaluation``. All options of the bundle's ``evaluate.json`` are taken, for example::

        monai-usfm evaluate --task segmentation --dataset_dir DATA --split test

    Args:
        task: what the network is for; default: what the card of ``checkpoint`` says.
        checkpoint: weights; default: those in ``--output_dir``.
    """
    _run_weights(task, checkpoint, "evaluate", options, bundle)


def predict(
    *options: Options, task: Task | None = None, checkpoint: str | None = None, bundle: Bundle = DEFAULT
) -> int:
    """Apply trained weights to a folder of images.

    Writes one result for each image to ``--output_dir``, by default ``output/predictions``. All options of the bundle's
    ``inference.json`` are taken, for example::

        monai-usfm predict --checkpoint output/segmentation/model.pt --dataset_dir IMAGES

    Args:
        task: what the network is for; default: what the card of ``checkpoint`` says.
        checkpoint: weights; default: those of the bundle.

    Returns:
        The exit status: 3 where files could not be read, which ``failed.csv`` lists.
    """
    flow = _run_weights(task, checkpoint, "predict", options, bundle)
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

    given = parse_options(options)
    given.setdefault("output_dir", "output/calibration")  # of simulated images
    calibrate(checkpoint, bundle_root=bundle_root, sensitivity=sensitivity, **given)


def _run_weights(
    task: str | None, checkpoint: str | None, workflow: str, options: tuple[str, ...], bundle: Bundle
) -> ConfigWorkflow | None:
    """Run the workflow of a task, or of what the card of the weights says."""
    name = task or ""
    if task is None and (bundle.bundle_root is None or workflow == "evaluate"):
        folder = parse_options(options).get("output_dir") if workflow == "evaluate" else None
        weights = checkpoint or (f"{folder}/model.pt" if folder else None)
        card = find_card(weights) if weights else None
        if card is None:
            raise ValueError(f"{weights or 'without --checkpoint'}: no card tells the task; give --task.")
        name = "pretraining" if card["task"] in ("features", "encoder") else card["task"]
    given = () if checkpoint is None else ("--checkpoint", checkpoint)
    return _run(name, workflow, (*options, *given), bundle)


def _run(name: str, workflow: str, tokens: tuple[str, ...], bundle: Bundle) -> ConfigWorkflow | None:
    options = parse_options(tokens)
    # a bundle writes below its own folder unless told otherwise, which in an installed package is the wrong place
    options.setdefault("output_dir", "output/predictions" if workflow == "predict" else f"output/{name}")
    flow = load_bundle(name, workflow, overlays=bundle.overlays, bundle_root=bundle.bundle_root, **options)
    config: Any = flow.parser.config
    if not bundle.list_options:
        warn_without_effect(config, options)
        return run_loaded(flow)
    idle = without_effect(config, config[DESCRIPTIONS])  # of an evaluation those of its training
    for option, meaning in config[DESCRIPTIONS].items():
        if option not in idle:
            print(f"--{option} {json.dumps(config.get(option), default=str)}\n    {meaning}")
    return None
