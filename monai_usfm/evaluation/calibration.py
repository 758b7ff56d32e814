# Copyright (c) monai_usfm contributors
# SPDX-License-Identifier: Apache-2.0
"""The temperature of trained weights, fitted on validation images and kept on their card."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F

from monai_usfm.cards import load_network, read_card, write_card
from monai_usfm.evaluation.scores import classification_scores
from monai_usfm.networks import TemperatureScaling
from monai_usfm.workflow import load_bundle

__all__ = ["calibrate"]

MAX_PIXELS = 20_000  # of one image: more tell nothing new
PLAUSIBLE = (0.05, 20.0)  # beyond, the network says nothing about these images, or is never wrong about them


def calibrate(checkpoint: str, *, bundle_root: str | None = None, **options: Any) -> dict[str, float]:
    """Fit the temperature of a segmentation or classification network on its validation images.

    The temperature goes to the card of the weights, where ``evaluate``, ``predict``, MONAI Label and MONAI Deploy find
    it, with the expected calibration error and the likelihood before and after.

    Args:
        checkpoint: weights with a card.
        bundle_root: folder of the bundle; default: that of the task on the card.
        options: options of the bundle's ``train.json``, such as ``dataset_dir`` and ``datalist``.

    Returns:
        ``temperature``, ``ece_before``, ``ece_after``, ``nll_before``, ``nll_after`` and ``samples`` (images, pixels).

    Raises:
        ValueError: for a task without probabilities, or a temperature that is no calibration; the card stays as it was.
    """
    card = read_card(checkpoint)
    if card["task"] not in ("segmentation", "classification"):
        raise ValueError(
            f"{checkpoint} is for {card['task']}: only segmentation and classification have probabilities."
        )
    flow = load_bundle(card["task"], "train", bundle_root=bundle_root, pretrained=checkpoint, **options)
    flow.parser.parse(reset=True)
    result = _fit(*_collect(flow.parser, load_network(checkpoint)))
    if not PLAUSIBLE[0] <= result["temperature"] <= PLAUSIBLE[1]:
        raise ValueError(
            f"the temperature {result['temperature']:.4g} is no calibration: the network is no better than chance on "
            "these images, or never wrong. Train longer, or take more validation images; nothing was written."
        )
    write_card(checkpoint, {**card, "temperature": round(result["temperature"], 4), "calibration": result})
    for name, value in result.items():
        print(f"{name}: {value:.4g}")
    return result


@torch.no_grad()
def _collect(parser: Any, network: torch.nn.Module) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits ``(M, K)`` and classes ``(M,)`` of the validation images, or of a sample of their pixels."""
    device = torch.device(parser.get_parsed_content("device"))
    inferer = parser.get_parsed_content("validate#inferer")
    network.to(device)
    generator = torch.Generator().manual_seed(0)
    logits, labels = [], []
    for batch in parser.get_parsed_content("validate#dataloader"):
        output = inferer(torch.as_tensor(batch["image"]).as_subclass(torch.Tensor).to(device), network).cpu()
        truth = torch.as_tensor(batch["class" if output.dim() == 2 else "label"]).as_subclass(torch.Tensor)
        output, truth = output.movedim(1, -1).reshape(-1, output.shape[1]), truth.reshape(-1).long()
        if len(truth) > MAX_PIXELS * len(batch["image"]):
            chosen = torch.randperm(len(truth), generator=generator)[: MAX_PIXELS * len(batch["image"])]
            output, truth = output[chosen], truth[chosen]
        logits.append(output)
        labels.append(truth)
    return torch.cat(logits), torch.cat(labels)


def _fit(logits: torch.Tensor, labels: torch.Tensor) -> dict[str, float]:
    """Fitted temperature, and both scores with and without it."""
    temperature = TemperatureScaling().fit(logits, labels).temperature.item()
    result = {"temperature": temperature}
    for name, scaled in (("before", logits), ("after", logits / temperature)):
        result[f"ece_{name}"] = classification_scores(scaled.softmax(1), labels)["ece"]
        result[f"nll_{name}"] = F.cross_entropy(scaled, labels).item()
    return {**result, "samples": len(labels)}
