# Copyright (c) monai_usfm contributors
# SPDX-License-Identifier: Apache-2.0
"""Tensors of one encoder -> those of another that computes the same function, as far as its shape allows.

Every function here is pure: tensors in, tensors out, in double precision where it calculates.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn as nn
import torch.nn.functional as F

from monai_usfm.networks.blocks.position import resize_position_table, resize_relative_table

Normalization = tuple[Sequence[float], Sequence[float]]


def fold_normalization(
    weight: torch.Tensor, bias: torch.Tensor, normalization: Normalization
) -> tuple[torch.Tensor, torch.Tensor]:
    """Patch embedding of normalized RGB -> the same embedding of RGB in [0, 1]; back by the :func:`inverse`."""
    mean, std = (torch.tensor(v, dtype=torch.float64).reshape(1, 3, *[1] * (weight.dim() - 2)) for v in normalization)
    scaled = weight.double() / std
    return scaled, bias.double() - (scaled * mean).flatten(1).sum(1)


def inverse(normalization: Normalization) -> Normalization:
    """The normalization that undoes another."""
    mean, std = normalization
    return [-m / s for m, s in zip(mean, std, strict=True)], [1 / s for s in std]


def fit_channels(weight: torch.Tensor, channels: int) -> torch.Tensor:
    """Another number of input channels, with the same output for images whose channels are equal."""
    if weight.shape[1] == channels:
        return weight
    spread = weight.double().sum(1, keepdim=True) / channels
    return spread.repeat(1, channels, *[1] * (weight.dim() - 2))


def resize_patches(weight: torch.Tensor, patch_size: Sequence[int]) -> torch.Tensor:
    """Kernels ``(E, C, *old)`` -> ``(E, C, *patch_size)`` by the pseudo-inverse of resizing (FlexiViT).

    Where patches grow, the new kernels give a patch that was enlarged linearly what the old ones gave the patch itself;
    where they shrink, nearly so, by least squares. The map is the product of one map for each axis.
    Beyer et al. 2023, https://arxiv.org/abs/2212.08013, equation 3.
    """
    for axis, (old, new) in enumerate(zip(weight.shape[2:], patch_size, strict=True), start=2):
        if old != new:
            eye = torch.eye(old, dtype=torch.float64)[None, None]
            resize = F.interpolate(eye, (new, old), mode="bilinear", antialias=True)[0, 0]  # (new, old)
            weight = torch.tensordot(weight.double(), torch.linalg.pinv(resize.T), ([axis], [1])).movedim(-1, axis)
    return weight


def fit_patches(weight: torch.Tensor, channels: int, patch_size: Sequence[int]) -> tuple[torch.Tensor, list[str]]:
    """Kernels ``(E, C, *old)`` for other channels, patches and axes, and what was done.

    A new axis comes first; weights are spread over it, so that a volume constant along it gives the same embedding.
    """
    done: list[str] = []
    if weight.shape[1] != channels:
        done.append(f"{weight.shape[1]} -> {channels} channel(s), equal for images with equal channels")
        weight = fit_channels(weight, channels)
    plane = tuple(patch_size[-(weight.dim() - 2) :])
    if tuple(weight.shape[2:]) != plane:
        done.append(f"patches of {tuple(weight.shape[2:])} resized to {plane} by the pseudo-inverse")
        weight = resize_patches(weight, plane)
    if weight.dim() - 2 < len(patch_size):
        depth = patch_size[0]
        weight = (weight.double() / depth).unsqueeze(2).repeat(1, 1, depth, 1, 1)
        done.append(f"spread over a depth of {depth}")
    return weight, done


def fit_grid(table: torch.Tensor, grid: list[int], target: list[int], relative: bool) -> torch.Tensor:
    """Position codes ``(1, 1 + prod(grid), E)`` or bias tables -> those of another grid, repeated along a new axis."""
    table = table.double()
    plane = target[-len(grid) :]
    if not relative:
        class_code, codes = table[:, :1], table[:, 1:]
        if plane != grid:
            codes = resize_position_table(codes, grid, plane)
        return torch.cat([class_code, codes.repeat(1, math.prod(target) // math.prod(plane), 1)], dim=1)
    if plane != grid:
        table = resize_relative_table(table, grid, plane)
    if len(target) > len(grid):
        offsets = table[..., :-3, :]
        repeats = [1] * (table.dim() - 2) + [2 * target[0] - 1, 1]
        table = torch.cat([offsets.repeat(repeats), table[..., -3:, :]], dim=-2)
    return table


def fit_block(
    block: dict[str, torch.Tensor], key_bias: bool, layer_scale: bool
) -> tuple[dict[str, torch.Tensor], list[str]]:
    """A transformer block with other parameters for the same function, and what was done.

    Args:
        block: tensors by their names in the block, with one bias for q, k and v or none.
        key_bias: keep that bias, else split off those of q and v: that of the keys adds a constant to the logits of a
            query, which softmax ignores.
        layer_scale: keep ``gamma_1`` and ``gamma_2``, or add ones; else multiply them into the last layer of a branch.
    """
    block, done = dict(block), list[str]()
    if "attn.qkv.weight" in block:
        bias = block.pop("attn.qkv.bias", None)
        if bias is None:
            done.append("the source has no biases of queries and values: set to zero.")
            bias = torch.zeros(block["attn.qkv.weight"].shape[0])
        if key_bias:
            block["attn.qkv.bias"] = bias
        else:
            block["attn.q_bias"], keys, block["attn.v_bias"] = bias.chunk(3)
            if keys.any():
                done.append(
                    "biases of the keys dropped: they add a constant to all logits of a query, which softmax ignores."
                )
    for gamma, layer in (("gamma_1", "attn.proj"), ("gamma_2", "mlp.fc2")):
        weight = block.get(f"{layer}.weight")
        if weight is None:
            continue
        if layer_scale and gamma not in block:
            block[gamma] = torch.ones(weight.shape[0])
            done.append("the source has no layer scale: gamma_1 and gamma_2 set to one, which keeps its function.")
        elif not layer_scale and gamma in block:
            scale = block.pop(gamma).double()
            block[f"{layer}.weight"] = weight.double() * scale.unsqueeze(1)
            if f"{layer}.bias" in block:
                block[f"{layer}.bias"] = block[f"{layer}.bias"].double() * scale
            done.append("the network has no layer scale: gamma_1 and gamma_2 multiplied into attn.proj and mlp.fc2.")
    return block, done


def fit_prediction(
    tensor: torch.Tensor, channels: int, wanted: int, depth: int, normalization: Normalization | None
) -> torch.Tensor:
    """Last layer of an MAE decoder, rows (*patch, channel), for other channels and along a new axis.

    Args:
        tensor: weight or bias that predicts ``channels`` and shall predict ``wanted``; gray is their mean.
        depth: new first axis of a patch; 0 adds none.
        normalization: predict RGB in [0, 1] instead of RGB normalized by this; the :func:`inverse` does the reverse.
    """
    rows = tensor.double().reshape(-1, channels, *tensor.shape[1:])
    if normalization is not None:
        mean, std = (torch.tensor(v, dtype=torch.float64) for v in normalization)
        rows, channels = rows if channels == 3 else rows.mean(1, keepdim=True).repeat_interleave(3, 1), 3
        rows = rows * std + mean if tensor.dim() == 1 else rows * std.unsqueeze(1)
    if channels != wanted:
        rows = rows.mean(1, keepdim=True).repeat(1, wanted, *[1] * (tensor.dim() - 1))
    if depth:
        rows = rows.repeat(depth, *[1] * tensor.dim())
    return rows.flatten(0, 1)


def inflate(weight: torch.Tensor, depth: int, upsamples: bool) -> torch.Tensor:
    """Weights of a 2D convolution -> those of the same layer in 3D, equal on volumes whose slices are all alike.

    A convolution gets the kernel as its middle slice, so that it begins by treating slices one by one; one that
    upsamples gets it as every slice, since its kernel lays an element out as a block.
    """
    if upsamples:
        return weight.unsqueeze(2).repeat(1, 1, depth, 1, 1)
    return nn.functional.pad(weight.unsqueeze(2), (0, 0, 0, 0, depth // 2, depth - 1 - depth // 2))


def split_structure(tensor: torch.Tensor, shape: Sequence[int]) -> torch.Tensor | None:
    """Weight or bias of an output of background and one structure -> of background and several, of this ``shape``.

    Each structure begins with an equal share of the probability of the one, so that the background keeps its own. None
    where the output is another.
    """
    axes = [axis for axis, (old, new) in enumerate(zip(tensor.shape, shape, strict=True)) if old != new]
    if len(axes) != 1 or tensor.shape[axes[0]] != 2 or shape[axes[0]] < 3:
        return None
    background, structure = tensor.double().split(1, axes[0])
    count = shape[axes[0]] - 1
    if tensor.dim() == 1:
        structure = structure - math.log(count)
    return torch.cat([background, *[structure] * count], axes[0])
