# Copyright (c) monai_usfm contributors
# SPDX-License-Identifier: Apache-2.0
"""What the inferences of the four bundles have in common: weights by their card, files that cannot be read."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import torch
from monai.data import list_data_collate
from monai.engines import SupervisedEvaluator
from monai.inferers import Inferer

import monai_usfm
from monai_usfm.cards import NO_CLASSES, encoder_options, find_card, full_scale_of
from monai_usfm.data import InferenceDataset, UnreadableImageError, list_images
from monai_usfm.data.splits import READING, with_full_scale
from monai_usfm.errors import under_command_line
from monai_usfm.files import FAILED, write_csv
from monai_usfm.inferers import AutocastInferer, DropoutInferer, FlipInferer, ScaleInferer, probabilities
from monai_usfm.networks.uncertainty import predictive_entropy
from monai_usfm.networks.weights import read_checkpoint
from monai_usfm.workflow import find_bundle

__all__ = [
    "InferenceDataset",  # where bundles that were packed before 0.16 look for it
    "InferenceEvaluator",
    "agreed",
    "card_of",
    "class_indices",
    "class_inferer",
    "collate_readable",
    "default_checkpoint",
    "entropy_map",
    "finish",
    "full_scale_of",
    "inference_items",
    "inference_network",
    "plan_of",
    "probabilities",
]

logger = logging.getLogger(__name__)


def default_checkpoint(export_path: str, bundle_root: str) -> str:
    """The weights that a training left at ``export_path``, or else those that came with the bundle."""
    shipped = f"{bundle_root}/models/model.pt"
    if os.path.exists(export_path) or not os.path.exists(shipped):
        return export_path
    logger.warning("no trained weights at %s: those that came with the bundle are taken, %s.", export_path, shipped)
    return shipped


def inference_network(checkpoint: str, task: str, bundle_root: str = ".", **options: Any) -> torch.nn.Module:
    """The network of a weight file by its card, see :func:`monai_usfm.load_network`.

    A bundle without weights of its own, as it is when its parts are checked or filled by another program, gives the
    network of its card, or else of the shipped one, with random ones and says so.

    Args:
        checkpoint: the weights.
        task: what the bundle does.
        bundle_root: its folder.
        options: of the network, for weights without a card; None stands for "as the card says".
    """
    if not os.path.exists(checkpoint) and Path(checkpoint) == Path(bundle_root, "models", "model.pt"):
        logger.warning("no weights at %s: the network is random.", checkpoint)
        card = find_card(checkpoint)
        if card is None:  # of the shipped one what it builds; its classes and threshold belong to its weights
            shipped = find_card(find_bundle("pretraining" if task == "features" else task) / "models" / "model.pt")
            card = {"network": shipped["network"] if shipped else {}}
        given = {name: value for name, value in options.items() if value is not None}
        described = encoder_options(card["network"]) if task == "features" else card["network"]
        network: Any = monai_usfm.build_network(task, **{**described, **given}).eval()
        network.card = {**network.card, **{n: v for n, v in card.items() if n not in ("network", "task")}}
        return network
    return monai_usfm.load_network(checkpoint, task, **options)


def plan_of(network: torch.nn.Module, task: str, **options: Any) -> dict[str, Any]:
    """Options of a network: those on its card; of another package's network those that are given, else defaults."""
    card = getattr(network, "card", None)
    return dict(card["network"]) if card else monai_usfm.network_options(task, **options)


def card_of(network: torch.nn.Module, checkpoint: str | None = None) -> dict[str, Any]:
    """The card of a network; of one of another package an empty one, after ``checkpoint`` was loaded into it."""
    card = getattr(network, "card", None)
    if card is None and checkpoint is not None:
        network.load_state_dict(read_checkpoint(checkpoint))
    return dict(card or {})


def agreed(card: Mapping[str, Any], field: str, given: Sequence[str] | None = None) -> Sequence[str] | None:
    """Names of the outputs: those on the card, else those that are given.

    Args:
        card: see :func:`card_of`.
        field: ``class_names``, ``landmarks`` or ``values``.
        given: value of the option of that name; None for none.

    Raises:
        ValueError: for names that are not those of the card, or in another order, which would be given to other
            outputs; and for landmarks or values of weights whose card says that they have none.
    """
    there = card.get(field)
    if given and (there or (field in NO_CLASSES and "card_version" in card)) and list(given) != there:
        raise ValueError(
            f"--{field} {list(given)} contradicts the card of the weights, which has {there or 'none'}: leave the "
            "option out, or choose other weights."
        )
    return there or given


def class_inferer(
    amp: str,
    device: torch.device | str,
    window: Inferer | None = None,
    uncertainty: bool = False,
    dropout_samples: int = 0,
    flip_axes: Sequence[int] = (),
    spatial: bool = True,
    views: Sequence[float] = (),
    multiple: int | Sequence[int] = 1,
    landmarks: bool = False,
) -> Inferer:
    """How a network that gives classes is run: precision, windows, and means over sizes, flips and dropout masks.

    Args:
        amp, device: see :class:`~monai_usfm.inferers.AutocastInferer`.
        window: runs it in windows; None on the whole image.
        uncertainty: mean over dropout masks and flips.
        dropout_samples: random dropout masks of it; 0 for none.
        flip_axes: spatial axes of flip test-time augmentation, of ``uncertainty`` and ``views``.
        spatial: whether the output has the axes of the image, as a segmentation has.
        views: mean over these sizes and flips, see :class:`~monai_usfm.inferers.ScaleInferer`.
        multiple: of what the sizes are multiples.
        landmarks: the network finds landmarks.

    Raises:
        ValueError: for views of landmarks, which mirrored images would swap.
    """
    if views and landmarks:
        raise ValueError("views are for masks; mirrored images would swap landmarks: leave views out.")
    inferer: Inferer = AutocastInferer(amp, device, window)
    if views:
        inferer = ScaleInferer(views, multiple, inferer)
    elif not uncertainty:
        return inferer
    if uncertainty and dropout_samples:
        inferer = DropoutInferer(dropout_samples, inferer=inferer)
    return FlipInferer(list(flip_axes), inferer, not views, spatial) if flip_axes else inferer


def class_indices(probabilities: torch.Tensor) -> torch.Tensor:
    """The most probable class ``(K, *S) -> (1, *S)``, the first of equal ones.

    As ``argmax``, which takes ten times as long on a CPU where the classes are the first axis.
    """
    best, index = probabilities[:1], torch.zeros_like(probabilities[:1], dtype=torch.uint8)
    for number in range(1, len(probabilities)):
        value = probabilities[number : number + 1]
        index = torch.where(value > best, torch.full_like(index, number), index)
        best = torch.maximum(best, value)
    return index


def entropy_map(probabilities: torch.Tensor) -> torch.Tensor:
    """Entropy over the classes ``(K, *S)`` as gray levels ``(1, *S)``: 255 is the maximum, all classes alike."""
    return (255 * predictive_entropy(probabilities[None])[0]).round()


class _Items(list):
    """A list of images, with the error that looking for them met."""

    error: Exception | None = None


def inference_items(
    dataset_dir: str,
    datalist: str | None = None,
    split: str = "test",
    full_scale: float | None = None,
    image_key: str = "image",
) -> list[dict[str, Any]]:
    """See :func:`monai_usfm.data.list_images`; where that fails, an empty list that fails when it is run.

    So a bundle can be looked at where no images are. Without ``full_scale``, the value of white of the images that the
    network was trained on, one is decided for all (:func:`~monai_usfm.data.splits.common_full_scale`).
    """
    try:
        items = list_images(dataset_dir, datalist, split, image_key)
    except (FileNotFoundError, ValueError) as error:
        failed = _Items()
        failed.error = error
        return failed
    return with_full_scale(items, full_scale)


def collate_readable(items: Sequence[Any]) -> dict[str, Any]:
    """MONAI's collation of those that could be read; the errors of the others under ``failed``.

    What an item told for reading its file is left behind: other items need not have it.
    """
    failed = [(item.path, item.reason) for item in items if isinstance(item, UnreadableImageError)]
    readable = [
        {key: value for key, value in item.items() if key not in READING}
        for item in items
        if not isinstance(item, UnreadableImageError)
    ]
    return {**(cast(dict, list_data_collate(readable)) if readable else {}), "failed": failed}


class InferenceEvaluator(SupervisedEvaluator):
    """MONAI's evaluator, which goes on where files could not be read and lists them in ``failed.csv``.

    Args:
        output_dir: folder of the list; None keeps none.
        arguments: those of :class:`monai.engines.SupervisedEvaluator`, whose loader collates by
            :func:`collate_readable`.
    """

    def __init__(self, output_dir: str | None = None, **arguments: Any) -> None:
        super().__init__(**arguments)
        self.output_dir = output_dir
        self.failures: list[dict[str, str]] = []

    def run(self, global_epoch: int = 1) -> None:  # type: ignore[override]
        """Run it once.

        Raises:
            FileNotFoundError, ValueError: where there are no images, see :func:`inference_items`.
        """
        error = getattr(getattr(getattr(self.data_loader, "dataset", None), "data", None), "error", None)
        if error is not None:
            raise error
        self.failures = []
        if self.output_dir is not None:
            Path(self.output_dir, "failed.csv").unlink(missing_ok=True)
        super().run(global_epoch)

    def _iteration(self, engine: Any, batchdata: Any) -> Any:
        for path, reason in batchdata.pop("failed", ()) if isinstance(batchdata, dict) else ():
            engine.logger.warning(f"left out: {path}: {reason}")
            self.failures.append({"file": path, "reason": reason})
            if self.output_dir is not None:
                write_csv(Path(self.output_dir, "failed.csv"), self.failures)
        if not batchdata:
            engine.state.batch = []
            return []
        return super()._iteration(engine, batchdata)


def finish(evaluator: Any) -> None:
    """Last entry of an inference: say how many files were left out; MONAI's command line then ends with status 3."""
    failures = getattr(evaluator, "failures", [])
    if not failures:
        return
    logger.warning(
        "%d files could not be read, see failed.csv in %s; the first: %s: %s",
        len(failures),
        evaluator.output_dir,
        failures[0]["file"],
        failures[0]["reason"],
    )
    if under_command_line():
        sys.exit(FAILED)
