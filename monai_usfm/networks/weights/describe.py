# Copyright (c) monai_usfm contributors
# SPDX-License-Identifier: Apache-2.0
"""What a source is: the arguments that build its network."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from monai_usfm.networks.blocks.position import sincos_position_table
from monai_usfm.networks.weights.layouts import OWN, POSITIONS, REGISTERS, TABLE, Source, parse
from monai_usfm.networks.weights.read import names_file, read_checkpoint

__all__ = ["decoder_arguments", "encoder_arguments", "source_layout"]

Checkpoint = str | os.PathLike | Mapping[str, Any]


@names_file("source")
def encoder_arguments(source: Checkpoint, *, source_grid: Sequence[int] | None = None) -> dict[str, Any]:
    """Arguments of :class:`UltrasoundViT` for an encoder into which a source loads without any adaptation.

    Source and grid are as for :func:`load_pretrained`.

    Returns:
        Keyword arguments. ``num_heads`` is read from bias tables; without any it is taken to be 64 channels per head,
        as in all published encoders.

    Raises:
        ValueError: see :func:`load_pretrained`; also for an encoder without positions.
    """
    found = parse(read_checkpoint(source))
    patch = found.tensors["patch_embed.proj.weight"]
    width = patch.shape[0]
    if TABLE in found.tensors:
        table = found.tensors[TABLE]
        grid = token_grid(found, [], TABLE, source_grid)
        position, heads = "relative_per_block" if len(table) > 1 else "relative", table.shape[-1]
    elif POSITIONS in found.tensors:
        grid = token_grid(found, [], POSITIONS, source_grid)
        sincos = is_sincos(found.tensors[POSITIONS], grid)
        position, heads = "sincos" if sincos else "learnable", max(width // 64, 1)
    elif found.rotary:
        grid = list(source_grid or found.grid or (224 // n for n in found.patch_size))  # any grid has its rotations
        position, heads = "rotary", max(width // 64, 1)
    else:
        raise ValueError(f"the source ({found.layout.name}) has no positions.")
    arguments = {
        "img_size": tuple(n * p for n, p in zip(grid, found.patch_size, strict=True)),
        "patch_size": found.patch_size,
        "in_channels": patch.shape[1],
        "spatial_dims": found.spatial_dims,
        "hidden_size": width,
        "mlp_dim": found.tensors["blocks.0.mlp.fc1.weight"].shape[0],
        "num_layers": found.blocks(),
        "num_heads": heads,
        "pos_embed": position,
        "layer_scale": 0.1 if "blocks.0.gamma_1" in found.tensors else None,
    }
    if REGISTERS[0] in found.tensors:
        arguments["num_registers"] = found.tensors[REGISTERS[0]].shape[1]
    return arguments


@names_file("source")
def decoder_arguments(source: Checkpoint) -> dict[str, Any] | None:
    """Arguments of :class:`MaskedAutoencoder` for the decoder in a source, or None where there is none.

    The number of heads is not in a file; it is taken to be 32 channels per head, as in the published decoders.
    """
    found = parse(read_checkpoint(source))
    if "decoder_embed.weight" not in found.tensors:
        return None
    width = found.tensors["decoder_embed.weight"].shape[0]
    return {
        "decoder_hidden_size": width,
        "decoder_num_layers": found.blocks("decoder_blocks"),
        "decoder_num_heads": max(width // 32, 1),
    }


@names_file("source")
def source_layout(source: Checkpoint) -> str:
    """Name of the layout of a source, as :func:`load_pretrained` reports it."""
    return parse(read_checkpoint(source)).layout.name


def is_sincos(table: torch.Tensor, grid: Sequence[int]) -> bool:
    """Whether position codes ``(1, 1 + N, E)`` are the fixed sine-cosine table of a grid."""
    codes = sincos_position_table(grid, table.shape[-1])
    # files in half precision hold rounded codes: bfloat16 by up to 0.002
    return table.shape[1] == len(codes) + 1 and torch.allclose(table[0, 1:].float(), codes, rtol=0, atol=3e-3)


def token_grid(source: Source, target: list[int], name: str, given: Sequence[int] | None) -> list[int]:
    """Token grid of a position table: given, stored, that of the network, or a square."""
    table, relative = source.tensors[name], name == TABLE
    count = table.shape[1] - (3 if relative else 1)

    def entries(grid: Sequence[int]) -> int:
        return math.prod(2 * n - 1 for n in grid) if relative else math.prod(grid)

    dims = source.spatial_dims
    stored = given if given is not None else source.grid
    if stored is not None:
        if len(stored) != dims or entries(stored) != count:
            raise ValueError(
                f"{source.called(name)} has {count} positions, which does not fit a token grid of {tuple(stored)}."
            )
        return list(stored)
    side = round(count ** (1 / dims))
    square = [(side + 1) // 2 if relative else side] * dims
    candidates = [square] if entries(square) == count else []
    # Published encoders are square; one of ours that does not say so may also have the grid of the network.
    plane = target[-dims:]
    if entries(plane) == count and plane not in candidates and (not candidates or source.layout.name == OWN):
        candidates.append(plane)
    if len(candidates) == 1:
        return candidates[0]
    reason = f"could be {' or '.join(str(tuple(c)) for c in candidates)}" if candidates else "not square"
    raise ValueError(
        f"the token grid behind the {count} positions of {source.called(name)} is not known ({reason}): pass "
        "source_grid, the image size that they were trained at divided by the patch size."
    )
