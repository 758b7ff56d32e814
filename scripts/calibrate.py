#!/usr/bin/env python
# Copyright (c) monai_usfm contributors
# SPDX-License-Identifier: Apache-2.0
"""Fit the temperature of a trained segmentation or classification bundle on its validation images.

    python scripts/calibrate.py bundles/usfm_classification --dataset_dir DATA --set network_size=base

Prints the temperature with the calibration error and likelihood before and after, and writes them to
``models/calibration.json`` in the bundle. Use the number as ``temperature`` in ``inference.json`` and
``evaluate.json``; ``--write`` puts it there.
"""

from __future__ import annotations

import argparse
import json
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from monai.bundle import ConfigParser

from monai_usfm.evaluation import classification_scores
from monai_usfm.files import write_text_atomically
from monai_usfm.networks import TemperatureScaling
from monai_usfm.networks.weights import read_checkpoint
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
    parser.add_argument("--overlays", nargs="*", default=[], help="names of configs given to training after train.json")
    parser.add_argument("--set", nargs="*", default=[], metavar="ID=VALUE", help="further settings of the training")
    parser.add_argument("--write", action="store_true", help="put the temperature into the bundle's configs")
    return parser.parse_args(arguments)


def configure(args: argparse.Namespace) -> ConfigParser:
    """The bundle's training config, as it was trained."""
    names = ["train", *args.overlays]
    config = ConfigParser(ConfigParser.load_config_files([args.bundle / "configs" / f"{n}.json" for n in names]))
    config["bundle_root"] = str(args.bundle)
    for name in ("dataset_dir", "datalist"):
        if getattr(args, name) is not None:
            config[name] = getattr(args, name)
    for name, value in parse_settings(args.set).items():
        config[name] = value
    return config


@torch.no_grad()
def collect(config: ConfigParser, checkpoint: Path) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits ``(M, K)`` and classes ``(M,)`` of the validation images, or of a sample of their pixels."""
    device = torch.device(config.get_parsed_content("device"))
    network = config.get_parsed_content("network_def")
    network.load_state_dict(read_checkpoint(checkpoint))
    network.eval().to(device)
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


def write_temperature(file: Path, temperature: float) -> None:
    """Replace the number in a config and nothing else."""
    text, count = re.subn(r'("temperature": )[-+.\deE]+', rf"\g<1>{temperature:.4f}", file.read_text(encoding="utf-8"))
    if count != 1:
        raise SystemExit(f"{file} has {count} settings called temperature, expected one: set it by hand.")
    write_text_atomically(file, text)


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    """Run the command line."""
    args = parse(arguments)
    checkpoint = args.checkpoint or args.bundle / "models" / "model.pt"
    if not os.path.isfile(checkpoint):
        raise SystemExit(f"no weights at {checkpoint}: train the bundle first or give --checkpoint.")
    result = report(*collect(configure(args), checkpoint))
    print(json.dumps(result, indent=1))
    if not PLAUSIBLE[0] <= result["temperature"] <= PLAUSIBLE[1]:
        raise SystemExit(
            f"the temperature {result['temperature']:.4g} is no calibration: the network is no better than chance on "
            "these images, or never wrong. Train longer, or take more validation images; nothing was written."
        )
    write_text_atomically(args.bundle / "models" / "calibration.json", json.dumps(result, indent=1) + "\n")
    if args.write:
        for name in ("inference", "evaluate"):
            file = args.bundle / "configs" / f"{name}.json"
            if '"temperature"' in file.read_text(encoding="utf-8"):
                write_temperature(file, result["temperature"])
    return result


if __name__ == "__main__":
    main()
