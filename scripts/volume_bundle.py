#!/usr/bin/env python
# Copyright (c) monai_usfm contributors
# SPDX-License-Identifier: Apache-2.0
"""Copy a bundle with its overlays for volumes joined in, for programs that read inference.json and train.json alone.

    python scripts/volume_bundle.py bundles/usfm_segmentation APPS/monaibundle/model/liver_segmentation \\
        --weights OUT/model.pt --classes background liver --set network_size=small

MONAI Label and MONAI Deploy take the copy as it is, ``monai.bundle run`` takes it without overlays. The weights are
those of a training with ``volume.json``; --set repeats what that training was told and inference has to know.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from monai.bundle import ConfigParser

from monai_usfm.networks.weights import read_checkpoint
from monai_usfm.settings import parse_settings

OVERLAYS = {"train.json": "volume.json", "inference.json": "inference_volume.json"}


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path, help="folder of the bundle")
    parser.add_argument("copy", type=Path, help="new folder; MONAI Label takes the task from its name")
    parser.add_argument("--weights", type=Path, required=True, help="exported weights of a training with volume.json")
    parser.add_argument("--classes", nargs="+", help="names in the order of their indices; default: the bundle's")
    parser.add_argument("--set", nargs="*", default=[], metavar="ID=VALUE", help="settings of the training")
    return parser.parse_args(arguments)


def settings_of(args: argparse.Namespace) -> dict[str, Any]:
    """What --set and --classes change in the configs."""
    named = {"num_classes": len(args.classes)} if args.classes else {}
    return {**named, **parse_settings(args.set)}


def joined(folder: Path, settings: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The configs of the copy by file name."""
    configs = {file.name: ConfigParser.load_config_file(file) for file in sorted(folder.glob("*.json"))}
    volume = {key: value for key, value in configs["volume.json"].items() if key != "_desc_"}
    known = {name.split("#")[0] for base in OVERLAYS for name in configs[base]}
    for name in settings:
        if name.split("#")[0] not in known:
            raise SystemExit(f"{name} is no setting of {' or '.join(OVERLAYS)}.")
    for base, overlay in OVERLAYS.items():
        description = configs[base]["_desc_"]
        parser = ConfigParser(ConfigParser.load_config_files([folder / base, folder / overlay]))
        for name, value in settings.items():
            if name.split("#")[0] in configs[base]:
                parser[name] = value
        configs[base] = {**parser.get(), "_desc_": f"{description} With {overlay} joined in."}
        del configs[overlay]
    for name, config in configs.items():  # volume.json is given last, so it wins over evaluate.json and demo.json
        if name not in OVERLAYS and name != "metadata.json":
            configs[name] = {**config, **{key: value for key, value in volume.items() if key in config}}
    return configs


def describe(metadata: dict[str, Any], size: list[int], classes: Sequence[str] | None) -> None:
    """Make the metadata that of a network of volumes; scores of the old weights are left out."""
    formats = metadata["network_data_format"]
    flat = len(formats["inputs"]["image"]["spatial_shape"])
    for group in formats.values():
        for entry in group.values():
            if len(entry["spatial_shape"]) == flat and entry["type"] == "image":
                entry["spatial_shape"] = ["*"] * len(size) if "*" in entry["spatial_shape"] else size
    if classes:
        for group in ("outputs", "post_processed_outputs"):
            for entry in formats.get(group, {}).values():
                entry["channel_def"] = {str(index): name for index, name in enumerate(classes)}
                if entry["type"] == "probabilities":
                    entry["spatial_shape"] = [1, len(classes)]
        formats["outputs"]["pred"]["num_channels"] = len(classes)
        named = ", ".join(f"{index} {name}" for index, name in enumerate(classes))
        metadata.update({key: named for key in ("label_classes", "pred_classes") if key in metadata})
    metadata["eval_metrics"] = {}


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line."""
    args = parse(arguments)
    folder = args.bundle / "configs"
    for file in (*(folder / name for pair in OVERLAYS.items() for name in pair), args.weights):
        if not file.is_file():
            raise SystemExit(f"there is no file {file}.")
    if args.copy.exists():
        raise SystemExit(f"{args.copy} is there already: name a new folder.")
    configs = joined(folder, settings_of(args))
    parser = ConfigParser(configs["inference.json"])
    try:
        parser.get_parsed_content("network_def").load_state_dict(read_checkpoint(args.weights))
    except ValueError as error:
        raise SystemExit(str(error)) from None
    except RuntimeError as error:
        raise SystemExit(
            f"{args.weights} does not fit the network of volumes; give by --set what its training was told.\n{error}"
        ) from None
    describe(configs["metadata.json"], list(parser.get_parsed_content("spatial_size")), args.classes)
    args.copy.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=args.copy.parent) as temporary:  # the copy is there whole or not at all
        part = Path(temporary) / "bundle"
        shutil.copytree(args.bundle, part, ignore=shutil.ignore_patterns("*.pt", "*.ts", "*.json", "output", "eval"))
        for name, config in configs.items():
            (part / "configs" / name).write_text(json.dumps(config, indent=4) + "\n", encoding="utf-8")
        (part / "models").mkdir(exist_ok=True)
        shutil.copyfile(args.weights, part / "models" / "model.pt")
        os.replace(part, args.copy)
    print(f"{args.copy}: {configs['metadata.json']['name']} for volumes")


if __name__ == "__main__":
    main()
