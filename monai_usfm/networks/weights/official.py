# Copyright (c) monai_usfm contributors
# SPDX-License-Identifier: Apache-2.0
"""Heads of the official fine-tuned segmentation checkpoints into ours."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch

from monai_usfm.networks.heads.atm import ATMHead
from monai_usfm.networks.heads.upernet import UPerNetHead
from monai_usfm.networks.nets.segmentation import UltrasoundSegmenter
from monai_usfm.networks.weights.report import LoadReport

__all__ = ["load_official_head"]

# These have one row per class (one more for "no object"); with other classes they are learned anew.
_PER_CLASS = ("conv_seg.weight", "conv_seg.bias", "q.weight", "class_embed.weight", "class_embed.bias")


def load_official_head(segmenter: UltrasoundSegmenter, state_dict: Mapping[str, Any]) -> LoadReport:
    """Fill the head of a segmenter from an official UPerNet or SegViT checkpoint (mmsegmentation names).

    Recognized are ``decode_head.*``, ``auxiliary_head.*`` and ``backbone.fpn*.*``, also under ``model`` or
    ``state_dict``. The encoder is not touched: that is what
    :func:`monai_usfm.networks.load_pretrained` is for.
    Layers with one row per class keep their values when the number of classes differs, which the report says.

    Args:
        segmenter: with ``head="upernet"`` or ``"segvit"`` and, for the published files, ``width=768`` or ``384``.
        state_dict: the loaded checkpoint.

    Returns:
        A report; print it.

    Raises:
        ValueError: for another head, a source without a decode head, or other shapes; the network then stays as it is.
    """
    head = segmenter.head
    if not isinstance(head, UPerNetHead | ATMHead):
        raise ValueError(f'official weights exist for head="upernet" and "segvit", this one is {type(head).__name__}.')
    for wrapper in ("model", "state_dict"):
        if isinstance(state_dict.get(wrapper), Mapping):
            state_dict = state_dict[wrapper]
    found = {
        ours: (name, tensor)
        for name, tensor in state_dict.items()
        if isinstance(tensor, torch.Tensor) and (ours := _our_name(name)) is not None
    }
    own = head.state_dict()
    kind = "UPerNet" if "fpn_bottleneck.conv.weight" in found else "SegViT"
    report = LoadReport(f"official {kind} head")
    copies: list[tuple[torch.Tensor, torch.Tensor]] = []
    for ours, (name, tensor) in found.items():
        if ours not in own:
            report.unexpected.append(name)
        elif own[ours].shape == tensor.shape:
            copies.append((own[ours], tensor))
            report.loaded.append(f"head.{ours}")
        elif ours.endswith(_PER_CLASS) and own[ours].shape[1:] == tensor.shape[1:]:
            report.notes.append(
                f"head.{ours}: another number of classes in the source, {tuple(tensor.shape)}; not loaded."
            )
        else:
            raise ValueError(
                f"{name} is {tuple(tensor.shape)} in the source and {tuple(own[ours].shape)} in the network: build the "
                "segmenter with the encoder, the spatial_dims and the `width` of the source."
            )
    if not any(name in own and name.startswith(("psp_modules.", "decoder.")) for name in found):
        raise ValueError(
            f"the source holds no decode head for {type(head).__name__}: expected keys such as "
            "'decode_head.psp_modules.0.1.conv.weight' (UPerNet) or 'decode_head.input_proj_1.weight' (SegViT)."
        )
    report.missing = [f"head.{name}" for name in own if f"head.{name}" not in report.loaded]
    with torch.no_grad():
        for target, source in copies:
            target.copy_(source)
    return report


def _our_name(name: str) -> str | None:
    """Name within our head of a tensor of an official checkpoint; None where it belongs to something else."""
    name = name.removeprefix("module.")
    if name.startswith("backbone.fpn"):
        return name.removeprefix("backbone.")
    if name.startswith("auxiliary_head."):
        return name
    if name.startswith("decode_head."):
        # Stages are counted from 1 and stand in the attribute's name.
        return re.sub(
            r"^(input_proj|proj_norm|decoder)_(\d+)\.",
            lambda match: f"{match.group(1)}.{int(match.group(2)) - 1}.",
            name.removeprefix("decode_head."),
        )
    return None
