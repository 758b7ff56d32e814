# Copyright (c) monai_usfm contributors
# SPDX-License-Identifier: Apache-2.0
"""Verbs that convert files: DICOM to NIfTI or PNG, weights between layouts."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from monai_usfm.bundle.inference import FAILED

__all__ = ["convert_dicom", "convert_weights"]


def convert_dicom(
    inputs: Sequence[str],
    *,
    output: str,
    format: Literal["nii.gz", "nii", "png", "dcm"] = "nii.gz",
    region: str = "largest_tissue",
    crop: bool = False,
    frame: int | None = None,
    color: bool = False,
    deidentify: Literal["check", "strip"] | None = None,
    key: str | None = None,
    no_regions: Literal["refuse", "blacken"] = "refuse",
    text: Literal["keep", "blacken", "refuse"] = "keep",
    beam: bool = False,
    review: str | None = None,
) -> int:
    """Convert ultrasound DICOM files to NIfTI or PNG with their spacing in mm, or to DICOM without names.

    Folders are searched. Outputs lie below ``output`` as the inputs did, with ``strip`` under pseudonyms. A file that
    cannot be converted is named with the reason, the others go on, and the exit status is 3.

    Args:
        inputs: files or folders.
        output: folder.
        format: type of the files.
        region: ``largest_tissue``, an index, a kind (``tissue``, ``color_flow``, ``m_mode``, ``doppler``, ``trace``) or
            ``none``. A file without a region of that kind is not converted.
        crop: cut to the region.
        frame: write this frame; default: all (NIfTI) or the middle one (PNG).
        color: keep RGB instead of luma.
        deidentify: refuse or strip what names a person.
        key: file with the key of the pseudonyms, made if missing, for ``strip``; keep it.
        no_regions: with ``strip``, a file whose ultrasound regions do not tell image from screen: refuse it, or keep
            its field of view alone.
        text: with ``strip``, text in the pixels that stay: keep it, blacken what is recognized, or refuse the file.
        beam: with ``strip``, blacken all outside the fitted beam.
        review: with ``strip``, a folder for a person's eyes: images before and after, and what was refused.

    Returns:
        The exit status.
    """
    from monai_usfm.data import convert_dicom_folder

    failed = convert_dicom_folder(
        inputs,
        output,
        format=format,
        key=key,
        deidentify=deidentify,
        no_regions=no_regions,
        text=text,
        beam=beam,
        review=review,
        region=None if region == "none" else int(region) if region.lstrip("-").isdigit() else region,
        crop=crop,
        frame=frame,
        gray=not color,
    )
    return FAILED if failed else 0


def convert_weights(
    source: Path,
    output: Path,
    *,
    to: Literal["ours", "usfm", "mae"],
    network_size: Literal["tiny", "small", "base"] | None = None,
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
        network_size: named size of the encoder.
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
    from monai_usfm.networks.nets.vit import UltrasoundViT, usfm_vit
    from monai_usfm.networks.weights import decoder_arguments

    keep_apart(output, source)
    settings: dict[str, Any] = encoder_arguments(source)
    if network_size is not None:
        for name in ("hidden_size", "mlp_dim", "num_layers", "num_heads"):
            del settings[name]
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
    network = encoder = UltrasoundViT(**settings) if network_size is None else usfm_vit(network_size, **settings)
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
