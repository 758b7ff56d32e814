# Copyright (c) monai_usfm contributors
# SPDX-License-Identifier: Apache-2.0
"""Convert a checkpoint between the layouts of this package, USFM and MAE, and print what was done.

python scripts/convert_weights.py USFM_latest.pth usfm_grey.pt --to ours --in-channels 1
python scripts/convert_weights.py models/model.pt for_usfm.pth --to usfm

What is not given (size, image size, axes, channels, positions) is as in the source. The source may be any file that
``monai_usfm.networks.load_pretrained`` reads; an MAE keeps its decoder in the layouts "ours" and "mae". Published
layouts take RGB normalized with ImageNet's mean and standard deviation, ours images in [0, 1]; both ways the function
is kept.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch

from monai_usfm import save_network
from monai_usfm.files import whole_file
from monai_usfm.networks import (
    UltrasoundViT,
    encoder_arguments,
    load_pretrained,
    to_mae_state_dict,
    to_usfm_state_dict,
    usfm_vit,
)
from monai_usfm.networks.nets.masked import MaskedAutoencoder
from monai_usfm.networks.nets.vit import SIZES
from monai_usfm.networks.weights import decoder_arguments


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path, help="checkpoint to read")
    parser.add_argument("output", type=Path, help="file to write; replaced only when everything has worked")
    parser.add_argument("--to", choices=["ours", "usfm", "mae"], required=True, help="layout to write")
    parser.add_argument("--size", choices=sorted(SIZES), help="named size of the encoder")
    parser.add_argument("--img-size", type=int, nargs="+", help="native image size in pixels, one or one per axis")
    parser.add_argument("--patch-size", type=int, nargs="+", help="patch size in pixels, one or one per axis")
    parser.add_argument("--spatial-dims", type=int, choices=[2, 3], help="3 turns an image encoder into one of volumes")
    parser.add_argument("--in-channels", type=int, help="channels of the encoder")
    parser.add_argument(
        "--fold-normalization",
        action=argparse.BooleanOptionalAction,
        help="whether the source takes normalized RGB; by default its layout says so",
    )
    parser.add_argument(
        "--imagenet-input",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="usfm, mae: write weights for normalized RGB",
    )
    parser.add_argument("--strict", action="store_true", help="fail if a weight is missing or has no place")
    return parser.parse_args(arguments)


def build(options: argparse.Namespace) -> torch.nn.Module:
    """The network between the two layouts: that of the source, with what the command line changes."""
    settings = encoder_arguments(options.source)
    if options.size is not None:
        for name in ("hidden_size", "mlp_dim", "num_layers", "num_heads"):
            del settings[name]
    if options.spatial_dims == 3 and settings["spatial_dims"] == 2:
        # A volume encoder is as deep as it is wide unless told otherwise, with cubic patches.
        settings["img_size"] = (settings["img_size"][0], *settings["img_size"])
        settings["patch_size"] = (settings["patch_size"][0], *settings["patch_size"])
        settings["spatial_dims"] = 3
    for name in ("img_size", "patch_size"):
        given = getattr(options, name)
        if given is not None:
            settings[name] = given[0] if len(given) == 1 else tuple(given)
    if options.in_channels is not None:
        settings["in_channels"] = options.in_channels
    encoder = UltrasoundViT(**settings) if options.size is None else usfm_vit(options.size, **settings)
    decoder = decoder_arguments(options.source)
    return encoder if decoder is None or options.to == "usfm" else MaskedAutoencoder(encoder, **decoder)


def main(arguments: list[str] | None = None) -> int:
    """Convert; 0 on success, 1 with one line on standard error otherwise."""
    options = parse(arguments)
    try:
        net = build(options)
        report = load_pretrained(
            net, options.source, strict=options.strict, fold_normalization=options.fold_normalization
        )
        print(report)
        if options.to == "ours":
            start = {"file": options.source.name, "layout": report.layout}
            save_network(options.output, net, half=False, start=start)
        else:
            writer = to_usfm_state_dict if options.to == "usfm" else to_mae_state_dict
            with whole_file(options.output) as part:
                torch.save(writer(net, imagenet_input=options.imagenet_input), part)
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"wrote {options.output}{' and its card' if options.to == 'ours' else ''}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
