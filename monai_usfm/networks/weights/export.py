# Copyright (c) monai_usfm contributors
# SPDX-License-Identifier: Apache-2.0
"""Our weights in published layouts."""

from __future__ import annotations

import math
import re

import torch
import torch.nn as nn

from monai_usfm.networks.blocks.position import _relative_index
from monai_usfm.networks.fine_tuning import require_merged
from monai_usfm.networks.nets.vit import UltrasoundViT, find_encoder
from monai_usfm.networks.weights.adapt import fit_block, fit_channels, fit_prediction, fold_normalization, inverse
from monai_usfm.networks.weights.layouts import BLOCK_TABLE, IMAGENET, TABLE
from monai_usfm.networks.weights.load import bare

__all__ = ["to_mae_state_dict", "to_usfm_state_dict"]


def _export(net: nn.Module, imagenet_input: bool) -> tuple[nn.Module, UltrasoundViT, dict[str, torch.Tensor]]:
    """Copy of an image encoder's weights, the patch embedding optionally for normalized RGB."""
    net = bare(net)
    _, encoder = find_encoder(net)
    require_merged(net.state_dict())
    if encoder.num_registers:
        raise ValueError("the layouts of USFM and MAE have no registers, the network has.")
    if encoder.spatial_dims != 2:
        raise ValueError("published layouts are of image encoders: a network with spatial_dims=3 has no counterpart.")
    state = {k: v.detach().clone() for k, v in encoder.state_dict().items() if not k.endswith(".native_grid")}
    if imagenet_input:
        weight, bias = state["patch_embed.proj.weight"], state["patch_embed.proj.bias"]
        wide, shifted = fold_normalization(fit_channels(weight.double(), 3), bias, inverse(IMAGENET))
        state["patch_embed.proj.weight"], state["patch_embed.proj.bias"] = wide.to(weight.dtype), shifted.to(bias.dtype)
    return net, encoder, state


def to_usfm_state_dict(net: nn.Module, *, imagenet_input: bool = True) -> dict[str, torch.Tensor]:
    """Weights of an encoder in the layout of the official USFM file.

    A shared bias table gives the layout of ``USFM_latest.pth``, one per block that of the official classifiers. A
    network without layer scale gets scales of one.

    Args:
        net: image encoder with relative positions, or a network with one as its ``encoder``.
        imagenet_input: write a patch embedding for RGB by ImageNet's mean and standard deviation, which is
            what the official code feeds and :func:`load_pretrained` expects of this layout, from one for images in
            [0, 1]. False writes the patch embedding as it is.

    Raises:
        ValueError: for a 3D network, one with low-rank updates or one without relative positions.
    """
    net, encoder, state = _export(net, imagenet_input)
    if encoder.rel_pos_bias is None:
        raise ValueError(
            f'the layout of USFM has relative positions, the network pos_embed="{encoder.position}"'
            + (": use MAE's." if encoder.pos_embed is not None else ".")
        )
    index = _relative_index(encoder.grid, torch.arange(math.prod(encoder.grid)))
    table = state.pop(TABLE)
    if encoder.rel_pos_bias.num_tables == 1:
        state[TABLE], state["rel_pos_bias.relative_position_index"] = table, index
    for i in range(encoder.num_layers):
        for gamma in (f"blocks.{i}.gamma_1", f"blocks.{i}.gamma_2"):
            state.setdefault(gamma, torch.ones_like(state[f"blocks.{i}.norm1.weight"]))
        if encoder.rel_pos_bias.num_tables > 1:
            state[BLOCK_TABLE.format(i)] = table[i].clone()
            state[f"blocks.{i}.attn.relative_position_index"] = index.clone()
    mask_token = getattr(net, "mask_token", None)
    if isinstance(mask_token, torch.Tensor) and mask_token.shape == encoder.cls_token.shape:
        state["mask_token"] = mask_token.detach().clone()
    return state


def to_mae_state_dict(net: nn.Module, *, imagenet_input: bool = True) -> dict[str, torch.Tensor]:
    """Weights of an encoder, or of a masked autoencoder with its decoder, in the layout of facebookresearch/mae.

    Layer scale, which that layout lacks, is multiplied into the last layer of its branch.

    Args:
        net: image encoder with absolute positions, or a network with one as its ``encoder``.
        imagenet_input: see :func:`to_usfm_state_dict`; the decoder then predicts normalized RGB.

    Raises:
        ValueError: for a 3D network, one with low-rank updates or one with relative positions.
    """
    net, encoder, state = _export(net, imagenet_input)
    if encoder.pos_embed is None:
        raise ValueError(
            f'the layout of MAE has absolute positions, the network pos_embed="{encoder.position}"'
            + (": use USFM's." if encoder.rel_pos_bias is not None else ".")
        )
    whole = net.state_dict()
    if "decoder_embed.weight" in whole:
        for name, tensor in whole.items():
            if name.startswith(("decoder_", "mask_token")) and not name.endswith(".native_grid"):
                state[name] = tensor.detach().clone()
        if imagenet_input:
            normalization = None if getattr(net, "normalize_patches", False) else inverse(IMAGENET)
            for name in ("decoder_pred.weight", "decoder_pred.bias"):
                state[name] = fit_prediction(state[name], encoder.in_channels, 3, 0, normalization)
    for i in range(encoder.num_layers):
        start = f"blocks.{i}."
        block = {name.removeprefix(start): state.pop(name) for name in list(state) if name.startswith(start)}
        state |= {start + name: tensor for name, tensor in fit_block(block, True, False)[0].items()}
    dtype = encoder.cls_token.dtype
    return {re.sub(r"pos_embed\.table$", "pos_embed", name): tensor.to(dtype) for name, tensor in state.items()}
