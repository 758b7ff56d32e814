# Copyright (c) monai_usfm contributors
# SPDX-License-Identifier: Apache-2.0
"""The verb that converts weights between layouts."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

__all__ = ["convert_weights"]


def convert_weights(
    source: Path,
    output: Path,
    *,
    to: Literal["ours", "usfm", "mae"],
    spatial_dims: Literal[2, 3] | None = None,
    spatial_size: tuple[int, ...] | None = None,
    patch_size: tuple[int, ...] | None = None,
    in_channels: int | None = None,
    fold_normalization: bool | None = None,
    imagenet_input: bool = True,
    strict: bool = False,
) -> None:
    """Convert a weight file between the layouts of this package, USFM and MAE.

    What is not given is as in the source. An MAE keeps its decoder in the layouts ``ours`` and ``mae``. Published
    layouts take RGB normalized with ImageNet's mean and standard deviation, ours images in [0, 1]. The function of the
    network is kept both ways. For example::

        monai-usfm convert-weights USFM_latest.pth usfm_gray.pt --to ours --in_channels 1

    Args:
        source: weights in any layout that ``load_pretrained`` reads.
        output: file to write, replaced only when everything has worked; ``ours`` has a card beside it.
        to: layout to write.
        spatial_dims: 3 turns an encoder of images into one of volumes.
        spatial_size: native size of the images in pixels, one number or one for each axis.
        patch_size: patch in pixels, one number or one for each axis.
        in_channels: channels of the encoder.
        fold_normalization: whether the source takes normalized RGB; default: as its layout says.
        imagenet_input: of ``usfm`` and ``mae``: write weights for normalized RGB; ``--imagenet_input=false`` does not.
        strict: fail where a weight is missing or has no place.
    """
    import torch

    from monai_usfm.cards import save_network
    from monai_usfm.files import keep_apart
    from monai_usfm.handlers import save_atomically
    from monai_usfm.networks import encoder_arguments, load_pretrained, to_mae_state_dict, to_usfm_state_dict
    from monai_usfm.networks.nets.masked import MaskedAutoencoder
    from monai_usfm.networks.nets.vit import UltrasoundViT
    from monai_usfm.networks.weights import decoder_arguments

    keep_apart(output, source)
    settings: dict[str, Any] = encoder_arguments(source)
    if spatial_dims == 3 and settings["spatial_dims"] == 2:
        # an encoder of volumes is as deep as it is wide unless told otherwise, with cubic patches
        settings["img_size"] = (settings["img_size"][0], *settings["img_size"])
        settings["patch_size"] = (settings["patch_size"][0], *settings["patch_size"])
        settings["spatial_dims"] = 3
    for name, given in (("img_size", spatial_size), ("patch_size", patch_size)):
        if given:
            settings[name] = given[0] if len(given) == 1 else given
    if in_channels is not None:
        settings["in_channels"] = in_channels
    network: torch.nn.Module
    network = encoder = UltrasoundViT(**settings)
    decoder = decoder_arguments(source)
    if decoder is not None and to != "usfm":
        network = MaskedAutoencoder(encoder, **decoder)
    report = load_pretrained(network, source, strict=strict, fold_normalization=fold_normalization)
    print(report)
    if to == "ours":
        save_network(output, network, half=False, start={"file": source.name, "layout": report.layout})
    else:
        writer = to_usfm_state_dict if to == "usfm" else to_mae_state_dict
        save_atomically(writer(network, imagenet_input=imagenet_input), output)
    print(f"wrote {output}{' and its card' if to == 'ours' else ''}")
