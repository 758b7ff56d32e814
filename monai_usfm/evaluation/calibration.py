# Copyright (c) monai_usfm contributors
# SPDX-License-Identifier: Apache-2.0
"""Temperature and presence threshold of trained weights, fitted on validation images and kept on their card."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from monai.utils import convert_to_tensor

from monai_usfm.bundle.start import checked_options
from monai_usfm.cards import full_scale_of, load_network, read_card, require_classes, write_card
from monai_usfm.metrics.scores import classification_scores
from monai_usfm.networks import TemperatureScaling
from monai_usfm.options import warn_without_effect
from monai_usfm.transforms import presence_score
from monai_usfm.workflow import load_bundle

__all__ = ["calibrate"]

READ = ("device", "validate::inferer", "validate::dataloader")  # entries of train.json
MAX_PIXELS = 20_000  # of one image: more tell nothing new
PLAUSIBLE = (0.05, 20.0)  # beyond, the network says nothing about these images, or is never wrong about them


def calibrate(
    checkpoint: str, *, bundle_root: str | None = None, sensitivity: float | None = None, **options: Any
) -> dict[str, float]:
    """Fit the temperature of a segmentation or classification network on its validation images.

    The temperature goes to the card of the weights, where ``evaluate``, ``predict``, MONAI Label and MONAI Deploy find
    it, with the expected calibration error and the likelihood before and after.

    Args:
        checkpoint: weights with a card.
        bundle_root: folder of the bundle; default: that of the task on the card.
        sensitivity: also fit ``presence_threshold``, below which the mask of an image is empty, so that this share of
            the validation images with a structure keeps its mask (:func:`monai_usfm.transforms.presence_score`).
        options: options of the bundle's ``train.json``, such as ``dataset_dir`` and ``datalist``.

    Returns:
        ``temperature``, ``ece_before``, ``ece_after``, ``nll_before``, ``nll_after`` and ``samples`` (images, pixels);
        with ``sensitivity`` also ``presence_threshold`` and, of images that show nothing, ``false_positive_rate``.

    Raises:
        ValueError: for options that ``train.json`` refuses, a task without probabilities, a temperature that is no
            calibration, or a ``sensitivity`` that cannot be fitted; the card stays as it was.
    """
    card = read_card(checkpoint)
    require_classes(card, checkpoint)
    if sensitivity is not None and (card["task"] != "segmentation" or not 0.01 <= sensitivity <= 1):
        raise ValueError(
            f"sensitivity must be in [0.01, 1], and of a segmentation; got {sensitivity} for {card['task']}."
        )
    options = {**options, "pretrained": checkpoint, "cache_dir": None}  # a byte a pixel is not what inference reads
    if card.get("label_values"):  # the files hold what the network was trained on
        options.setdefault("label_values", card["label_values"])
    flow = load_bundle(card["task"], "train", bundle_root=bundle_root, **options)
    config: Any = flow.parser.config
    if "full_scale" in config and "full_scale" not in options:  # bundles before 0.16 have no such option
        config["full_scale"] = full_scale_of(card)
    flow.parser.parse(reset=True)
    checked_options(flow.parser)
    warn_without_effect(config, options, READ)
    logits, labels, presence, shown = _collect(
        flow.parser, load_network(checkpoint, spatial_size=options.get("spatial_size"))
    )
    result = _fit(logits, labels)
    fitted = {"temperature": round(result["temperature"], 4)}
    if sensitivity is not None:
        if not shown.any():
            raise ValueError("no validation image shows a structure: a presence threshold cannot be fitted.")
        threshold = threshold_at(presence[shown], sensitivity)
        fitted["presence_threshold"] = result["presence_threshold"] = threshold
        if not shown.all():
            result["false_positive_rate"] = float((presence[~shown] >= threshold).float().mean())
    if not PLAUSIBLE[0] <= result["temperature"] <= PLAUSIBLE[1]:
        raise ValueError(
            f"the temperature {result['temperature']:.4g} is no calibration: the network is no better than chance on "
            "these images, or never wrong. Train longer, or take more validation images; nothing was written."
        )
    write_card(checkpoint, {**card, **fitted, "calibration": result})
    for name, value in result.items():
        print(f"{name}: {value:.4g}")
    return result


def threshold_at(scores: torch.Tensor, sensitivity: float) -> float:
    """The largest threshold that this share of the presence scores ``(N,)`` reaches."""
    return float(scores.sort().values[int((1 - sensitivity) * len(scores) + 1e-6)])


@torch.no_grad()
def _collect(parser: Any, network: torch.nn.Module) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Logits ``(M, K)`` and classes ``(M,)`` of the validation images, or of a sample of their pixels.

    Of a segmentation also the presence score of each image, and whether its label shows anything.
    """
    place, inferer, loader = (parser.get_parsed_content(entry) for entry in READ)
    device = torch.device(place)
    network.to(device)
    generator = torch.Generator().manual_seed(0)
    logits, labels, presence, shown = [], [], [torch.empty(0)], [torch.empty(0, dtype=torch.bool)]
    for batch in loader:
        output = inferer(convert_to_tensor(batch["image"]).to(device), network).cpu()
        truth = convert_to_tensor(batch["class" if output.dim() == 2 else "label"])
        if output.dim() > 2:
            presence.append(presence_score(output))
            shown.append(truth.flatten(1).any(1))
        output, truth = output.movedim(1, -1).reshape(-1, output.shape[1]), truth.reshape(-1).long()
        if len(truth) > MAX_PIXELS * len(batch["image"]):
            chosen = torch.randperm(len(truth), generator=generator)[: MAX_PIXELS * len(batch["image"])]
            output, truth = output[chosen], truth[chosen]
        logits.append(output)
        labels.append(truth)
    return torch.cat(logits), torch.cat(labels), torch.cat(presence), torch.cat(shown)


def _fit(logits: torch.Tensor, labels: torch.Tensor) -> dict[str, float]:
    """Fitted temperature, and both scores with and without it."""
    temperature = TemperatureScaling().fit(logits, labels).temperature.item()
    result = {"temperature": temperature}
    for name, scaled in (("before", logits), ("after", logits / temperature)):
        result[f"ece_{name}"] = classification_scores(scaled.softmax(1), labels)["ece"]
        result[f"nll_{name}"] = F.cross_entropy(scaled, labels).item()
    return {**result, "samples": len(labels)}
