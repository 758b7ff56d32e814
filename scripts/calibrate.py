#!/usr/bin/env python
# Copyright (c) monai_usfm contributors
# SPDX-License-Identifier: Apache-2.0
"""Fit the temperature of a trained segmentation or classification bundle on its validation images.

    python scripts/calibrate.py bundles/usfm_classification --dataset_dir DATA --checkpoint OUT/model.pt

Prints the temperature with the calibration error and likelihood before and after, and writes it to the card of the
weights, from which inference and evaluation take it.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from monai.bundle import ConfigParser

from monai_usfm import load_network, read_card, write_card
from monai_usfm.evaluation import classification_scores
from monai_usfm.networks import TemperatureScaling
from monai_usfm.settings import parse_settings

MAX_PIXELS = 20_000  # of one image: more tell nothing new
PLAUSIBLE = (0.05, 20.0)  # beyond, the network says nothing about these images, or is never wrong about them


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path, help="folder of the bundle")
    parser.add_argument("--dataset_dir", help="as in training")
    parser.add_argument("--datalist", help="as in training")
    parser.add_argument("--checkpoint", type=Path, help="weights; default models/model.pt in the bundle")
    parser.add_argument("--set", nargs="*", default=[], metavar="ID=VALUE", help="further settings of the training")
    return parser.parse_args(arguments)


def configure(args: argparse.Namespace) -> ConfigParser:
    """The bundle's training config, with the network of the weights."""
    config = ConfigParser(ConfigParser.load_config_file(args.bundle / "configs" / "train.json"))
    config["bundle_root"], config["pretrained"] = str(args.bundle), str(weights_of(args))
    for name in ("dataset_dir", "datalist"):
        if getattr(args, name) is not None:
            config[name] = getattr(args, name)
    for name, value in parse_settings(args.set).items():
        config[name] = value
    return config


def weights_of(args: argparse.Namespace) -> Path:
    """The weights that are calibrated."""
    return Path(args.checkpoint or args.bundle / "models" / "model.pt")


@torch.no_grad()
def collect(config: ConfigParser, checkpoint: Path) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits ``(M, K)`` and classes ``(M,)`` of the validation images, or of a sample of their pixels."""
    device = torch.device(config.get_parsed_content("device"))
    network = load_network(checkpoint).to(device)
    inferer = config.get_parsed_content("validate#inferer")
    generator = torch.Generator().manual_seed(0)
    logits, labels = [], []
    for batch in config.get_parsed_content("validate#dataloader"):
        output = inferer(torch.as_tensor(batch["image"]).as_subclass(torch.Tensor).to(device), network).cpu()
        truth = torch.as_tensor(batch["class" if output.dim() == 2 else "label"]).as_subclass(torch.Tensor)
        output, truth = output.movedim(1, -1).reshape(-1, output.shape[1]), truth.reshape(-1).long()
        if len(truth) > MAX_PIXELS * len(batch["image"]):
            chosen = torch.randperm(len(truth), generator=generator)[: MAX_PIXELS * len(batch["image"])]
            output, truth = output[chosen], truth[chosen]
        logits.append(output)
        labels.append(truth)
    return torch.cat(logits), torch.cat(labels)


def report(logits: torch.Tensor, labels: torch.Tensor) -> dict[str, float]:
    """Fitted temperature, and both scores with and without it."""
    temperature = TemperatureScaling().fit(logits, labels).temperature.item()
    result = {"temperature": temperature}
    for name, scaled in (("before", logits), ("after", logits / temperature)):
        result[f"ece_{name}"] = classification_scores(scaled.softmax(1), labels)["ece"]
        result[f"nll_{name}"] = F.cross_entropy(scaled, labels).item()
    return {**result, "samples": len(labels)}


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    """Run the command line."""
    args = parse(arguments)
    checkpoint = weights_of(args)
    if not os.path.isfile(checkpoint):
        raise SystemExit(f"no weights at {checkpoint}: train the bundle first or give --checkpoint.")
    result = report(*collect(configure(args), checkpoint))
    print(json.dumps(result, indent=1))
    if not PLAUSIBLE[0] <= result["temperature"] <= PLAUSIBLE[1]:
        raise SystemExit(
            f"the temperature {result['temperature']:.4g} is no calibration: the network is no better than chance on "
            "these images, or never wrong. Train longer, or take more validation images; nothing was written."
        )
    write_card(checkpoint, {**read_card(checkpoint), "temperature": round(result["temperature"], 4)})
    return result


if __name__ == "__main__":
    main()
