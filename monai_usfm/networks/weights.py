# Copyright (c) monai_usfm contributors
# SPDX-License-Identifier: Apache-2.0
"""Published checkpoints into our encoder, and our encoder into published layouts.

Loading takes four steps, each a small function: read the file, find the encoder in it and rename its tensors to ours,
adapt them to the network (channels, grid, axes, biases, layer scale) so that it computes the same function, copy and
report. Nothing is copied before everything fits.
"""

from __future__ import annotations

import argparse
import math
import os
import pickle
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.nn as nn
from monai.utils import optional_import

from monai_usfm.networks.blocks.position import (
    _relative_index,
    resize_position_table,
    resize_relative_table,
    sincos_position_table,
)
from monai_usfm.networks.nets.vit import UltrasoundViT

__all__ = [
    "LoadReport",
    "decoder_arguments",
    "encoder_arguments",
    "load_pretrained",
    "read_checkpoint",
    "source_layout",
    "to_mae_state_dict",
    "to_usfm_state_dict",
]

safetensors_torch, has_safetensors = optional_import("safetensors.torch")

# What published encoders were fed with: (image - mean) / std of RGB images in [0, 1].
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

SHARED_TABLE = "rel_pos_bias.relative_position_bias_table"
POSITIONS = "pos_embed.table"
DECODER_POSITIONS = "decoder_pos_embed.table"

# Keys under which trainers keep the state dict among other things.
WRAPPERS = ("model", "state_dict", "module", "network", "net", "model_state_dict", "encoder")

# The tensor by which an encoder is found, as ours and as Hugging Face's.
ANCHORS = ("patch_embed.proj.weight", "embeddings.patch_embeddings.projection.weight")

EXPECTED = (
    "USFM_latest.pth or an official USFM classifier or segmentation backbone, MAE/USF-MAE with or without decoder, "
    "timm BEiT or ViT, Hugging Face BEiT, ViT or ViTMAE, or a checkpoint of this package (an encoder, or a network "
    "with an 'encoder.'); the state dict may be under 'model', 'state_dict', 'module' or 'network', its keys prefixed"
)


@dataclass
class LoadReport:
    """What :func:`load_pretrained` did.

    Args:
        layout: recognised layout of the source.
        loaded: weights of the network that were filled, by their names in the network.
        missing: weights of the network that the source does not have; they kept their values.
        unexpected: tensors of the source that were not used, by their names in the source.
        resized: for every weight whose shape was adapted, what was done to it.
        notes: everything else worth knowing, for example conversions that keep the function.
    """

    layout: str
    loaded: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    unexpected: list[str] = field(default_factory=list)
    resized: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        lines = [f"layout: {self.layout}", f"loaded: {len(self.loaded)} weights"]
        lines += [f"missing: {name}" for name in _summary(self.missing)]
        lines += [f"unexpected: {name}" for name in _summary(self.unexpected)]
        lines += [f"resized: {name}: {what}" for name, what in self.resized.items()]
        lines += [f"note: {note}" for note in self.notes]
        return "\n".join(lines)


def _summary(names: Sequence[str]) -> list[str]:
    """Names that differ only in their block numbers on one line: ``blocks.*.gamma_1 (12)``."""
    groups: dict[str, list[str]] = {}
    for name in names:
        groups.setdefault(re.sub(r"\.\d+\.", ".*.", name), []).append(name)
    return [members[0] if len(members) == 1 else f"{group} ({len(members)})" for group, members in groups.items()]


@dataclass
class _Checkpoint:
    """A source whose tensors carry our names; ``origin`` keeps the names they had.

    ``parts`` are the tensors beside the encoder that only another network of this package has a place for: name ->
    (name in the source, tensor).
    """

    layout: str
    tensors: dict[str, torch.Tensor]
    origin: dict[str, list[str]]
    others: list[str]
    grid: list[int] | None = None
    parts: dict[str, tuple[str, torch.Tensor]] = field(default_factory=dict)

    def move(self, old: str | Sequence[str], new: str, tensor: torch.Tensor) -> None:
        """Replace one or several tensors by one made of them."""
        names = [old] if isinstance(old, str) else list(old)
        origin = [source for name in names for source in self.origin.get(name, [])]
        for name in names:
            self.tensors.pop(name, None)
            self.origin.pop(name, None)
        self.tensors[new] = tensor
        self.origin[new] = origin

    def blocks(self, stem: str = "blocks") -> int:
        """Number of transformer blocks."""
        numbers = [int(m.group(1)) for name in self.tensors if (m := re.match(rf"{stem}\.(\d+)\.", name))]
        return max(numbers, default=-1) + 1

    @property
    def spatial_dims(self) -> int:
        return self.tensors["patch_embed.proj.weight"].dim() - 2


# ---------------------------------------------------------------------------------------------------------------------
# Reading


def read_checkpoint(source: str | os.PathLike | Mapping[str, Any]) -> Mapping[str, Any]:
    """The object in a checkpoint file, read without running code from it; a mapping is returned as it is.

    Args:
        source: PyTorch or safetensors file, or what such a file holds.

    Raises:
        FileNotFoundError: where there is no such file; IsADirectoryError for a folder.
        ValueError: for a file that is damaged, a TorchScript program, holds no state dict, or holds Python objects
            whose reading could run code. Every message names the file.
    """
    if isinstance(source, Mapping):
        return source
    if not isinstance(source, str | os.PathLike):
        raise TypeError(f"source must be a path or a state dict, got {type(source).__name__}.")
    path = Path(source).expanduser()
    if path.is_dir():
        raise IsADirectoryError(f"{path} is a folder: name the checkpoint file in it.")
    if not path.is_file():
        raise FileNotFoundError(f"no checkpoint file at {path}.")
    if path.suffix == ".safetensors":
        return _read_safetensors(path)
    try:
        # MAE's trainer stores its command line; a Namespace is plain data.
        with torch.serialization.safe_globals([argparse.Namespace]):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        if re.search(r"GLOBAL |Unsupported class|instantiate|reduce", str(error)):
            raise ValueError(
                f"{path} holds Python objects besides tensors, and reading them could run code. If you trust its "
                "origin, save the tensors alone: torch.save(torch.load(path, weights_only=False)['model'], new_path)."
            ) from error
        raise ValueError(f"{path} is no PyTorch checkpoint, or it is damaged.") from error
    except Exception as error:  # a damaged archive raises almost anything, from OSError to KeyError
        if "TorchScript" in str(error):
            raise ValueError(f"{path} is a TorchScript program: pass torch.jit.load(path).state_dict().") from error
        raise ValueError(f"{path} is no PyTorch checkpoint, or it is truncated: download or copy it again.") from error
    if not isinstance(content, Mapping):
        raise ValueError(f"{path} holds a {type(content).__name__}, not a state dict.")
    return content


def _read_safetensors(path: Path) -> Mapping[str, Any]:
    if not has_safetensors:
        raise ImportError(f"reading {path} needs the package safetensors: pip install safetensors.")
    try:
        return safetensors_torch.load_file(str(path))
    except Exception as error:
        raise ValueError(f"{path} is no safetensors file, or it is truncated: download or copy it again.") from error


def _unwrap(content: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    """The state dict itself, out of the wrappers of trainers; half precision becomes single, for exact arithmetic."""
    for _ in range(len(WRAPPERS)):
        tensors = {str(k): v.detach().cpu() for k, v in content.items() if isinstance(v, torch.Tensor)}
        inner = [key for key in WRAPPERS if isinstance(content.get(key), Mapping)]
        if not inner or any(name.endswith(ANCHORS) for name in tensors):
            break
        content = content[inner[0]]
    if not any(name.endswith(ANCHORS) for name in tensors):
        first = ", ".join(str(key) for key in list(content)[:8]) or "none"
        raise ValueError(f"unknown checkpoint layout. Expected {EXPECTED}. First keys found: {first}.")
    return {k: v.float() if v.dtype in (torch.float16, torch.bfloat16) else v for k, v in tensors.items()}


# ---------------------------------------------------------------------------------------------------------------------
# Finding the encoder and giving its tensors our names

_ENCODER_LEVEL = re.compile(r"(cls_token|reg_token|dist_token|patch_embed\.|pos_embed|rel_pos_bias\.|blocks\.|norm\.)")
# Weights of a PyramidDecoder, wherever a network keeps it (head.decoder., pyramid_pool.decoder., decoder.).
_PYRAMID = re.compile(r"^(?:.+\.)?decoder\.(?=(?:stem|maps|up|fuse)\.)")
_WRAPPER_LEVEL = re.compile(r"(mask_token|fc_norm\.|head\.(weight|bias)$|decoder_(embed|pos_embed|blocks|norm|pred)\b)")

# Hugging Face names of files (`encoder.layer.0.attention.attention.query`) and modules (`layers.0.attention.q_proj`).
_HUGGING_FACE = [
    (r"^embeddings\.position_embeddings$", "pos_embed"),
    (r"^embeddings\.patch_embeddings\.projection\.", "patch_embed.proj."),
    (r"^embeddings\.", ""),
    (r"^(encoder\.relative_position_bias|shared_position_bias)\.", "rel_pos_bias."),
    (r"^(encoder\.)?layers?\.(\d+)\.", r"blocks.\2."),
    (r"^decoder\.decoder_(?:layers|encoder\.layer)\.(\d+)\.", r"decoder_blocks.\1."),
    (r"^decoder\.", ""),
    (
        r"\.(attention\.attention\.)?relative_position_bias\.relative_position_bias_table$",
        r".attn.relative_position_bias_table",
    ),
    (r"\.attention\.(attention\.)?(query|q_proj)\.", ".attn.q."),
    (r"\.attention\.(attention\.)?(key|k_proj)\.", ".attn.k."),
    (r"\.attention\.(attention\.)?(value|v_proj)\.", ".attn.v."),
    (r"\.attention\.(output\.dense|o_proj)\.", ".attn.proj."),
    (r"\.intermediate\.dense\.", ".mlp.fc1."),
    (r"(blocks\.\d+)\.output\.dense\.", r"\1.mlp.fc2."),
    (r"\.layernorm_before\.", ".norm1."),
    (r"\.layernorm_after\.", ".norm2."),
    (r"\.lambda_([12])$", r".gamma_\1"),
    (r"^layernorm\.", "norm."),
    (r"^pooler\.layernorm\.", "fc_norm."),
]


def _find_encoder(state: Mapping[str, torch.Tensor]) -> tuple[str, bool]:
    """Prefix of the encoder's keys, and whether its names are those of Hugging Face."""
    anchors = [name for name in state if name.endswith(ANCHORS)]
    if len(anchors) > 1:
        raise ValueError(
            f"the source holds {len(anchors)} encoders ({', '.join(anchors)}): pass a dict of one of them."
        )
    hugging_face = anchors[0].endswith(ANCHORS[1])
    return anchors[0].removesuffix(ANCHORS[1] if hugging_face else ANCHORS[0]), hugging_face


def _rename(name: str, hugging_face: bool) -> str:
    if hugging_face:
        for pattern, replacement in _HUGGING_FACE:
            name = re.sub(pattern, replacement, name)
    name = re.sub(r"\.ls([12])\.gamma$", r".gamma_\1", name)  # timm's vision transformers
    return re.sub(r"^((?:decoder_)?pos_embed)$", r"\1.table", name)


def _parse(state: Mapping[str, torch.Tensor]) -> _Checkpoint:
    """Give every tensor of the encoder, and of an MAE decoder beside it, our name."""
    prefix, hugging_face = _find_encoder(state)
    outer = prefix.removesuffix("vit." if hugging_face else "encoder.")
    found = _Checkpoint("", {}, {}, [])
    for name, tensor in state.items():
        if name.startswith(prefix):
            ours = _rename(name.removeprefix(prefix), hugging_face)
        elif name.startswith(outer):
            ours = _rename(name.removeprefix(outer), hugging_face)
            if not _WRAPPER_LEVEL.match(ours):
                found.others.append(name)
                found.parts[_PYRAMID.sub("decoder.", ours)] = name, tensor
                continue
        else:
            found.others.append(name)
            continue
        if ours.endswith(".attn.k_bias"):
            continue  # a buffer of zeros in timm's BEiT
        if ours.endswith("relative_position_index"):
            found.grid = _grid_of_index(tensor)  # derived from the grid, so not a weight
        elif ours.endswith(".native_grid"):
            found.grid = [int(n) for n in tensor] if not ours.startswith("decoder") else found.grid
        elif ours in found.tensors:
            found.others.append(name)
        else:
            found.tensors[ours] = tensor
            found.origin[ours] = [name]
    if outer != prefix and "fc_norm.weight" not in found.tensors:
        # A head beside the encoder is a class layer only where its norm is there too, else a pretraining head.
        for name in [n for n in found.tensors if n.startswith("head.")]:
            del found.tensors[name]
            found.others += found.origin.pop(name)
    found.layout = _layout(found.tensors, state, hugging_face)
    _join_projections(found)
    return found


def _layout(tensors: Mapping[str, torch.Tensor], state: Mapping[str, torch.Tensor], hugging_face: bool) -> str:
    beit = SHARED_TABLE in tensors or "blocks.0.attn.relative_position_bias_table" in tensors
    if hugging_face:
        if beit or "blocks.0.gamma_1" in tensors:
            return "Hugging Face BEiT"
        return "Hugging Face ViTMAE with decoder" if "decoder_embed.weight" in tensors else "Hugging Face ViT"
    if any(name.endswith(("pos_embed.table", ".native_grid")) for name in state):
        return "monai_usfm"
    if SHARED_TABLE in tensors:
        index = any(name.endswith("relative_position_index") for name in state)
        published = (index or "mask_token" in tensors) and tensors[SHARED_TABLE].dim() == 2
        return "USFM" if published else "monai_usfm"
    if beit:
        return "USFM or BEiT with a bias table per block"
    if "decoder_embed.weight" in tensors:
        return "MAE with decoder"
    if POSITIONS in tensors:
        return "MAE or ViT"
    return "vision transformer without positions"


def _join_projections(found: _Checkpoint) -> None:
    """Separate query, key and value projections (Hugging Face) -> ``qkv``; an absent key bias stays absent."""
    for name in [n for n in found.tensors if n.endswith(".attn.q.weight")]:
        stem = name.removesuffix("q.weight")
        parts = [stem + f"{p}.weight" for p in "qkv"]
        found.move(parts, stem + "qkv.weight", torch.cat([found.tensors[p] for p in parts]))
        biases = [stem + f"{p}.bias" for p in "qkv" if stem + f"{p}.bias" in found.tensors]
        if len(biases) == 3:
            found.move(biases, stem + "qkv.bias", torch.cat([found.tensors[p] for p in biases]))
        else:
            for bias in biases:
                found.move(bias, stem + f"{bias[-6]}_bias", found.tensors[bias])


def _grid_of_index(index: torch.Tensor) -> list[int]:
    """Token grid (rows, columns) behind BEiT's index buffer: along a row the index falls by one from key to key."""
    first = index[1, 1:].long()
    falls = first[:-1] - first[1:]
    ends = torch.nonzero(falls != 1)
    columns = int(ends[0]) + 1 if len(ends) else len(first)
    return [len(first) // columns, columns]


# ---------------------------------------------------------------------------------------------------------------------
# Adapting tensors. Every step keeps the function that the network computes, as far as its shape allows.


def _fold_normalization(weight: torch.Tensor, bias: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Patch embedding of normalised RGB -> the same embedding of RGB in [0, 1]."""
    shape = (1, 3) + (1,) * (weight.dim() - 2)
    mean, std = (torch.tensor(v, dtype=torch.float64).reshape(shape) for v in (IMAGENET_MEAN, IMAGENET_STD))
    scaled = weight.double() / std
    return scaled, bias.double() - (scaled * mean).flatten(1).sum(1)


def _unfold_normalization(weight: torch.Tensor, bias: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Inverse of :func:`_fold_normalization`."""
    shape = (1, 3) + (1,) * (weight.dim() - 2)
    mean, std = (torch.tensor(v, dtype=torch.float64).reshape(shape) for v in (IMAGENET_MEAN, IMAGENET_STD))
    return weight.double() * std, bias.double() + (weight.double() * mean).flatten(1).sum(1)


def _fit_channels(weight: torch.Tensor, channels: int) -> torch.Tensor:
    """Another number of input channels, with the same output for images whose channels are equal."""
    if weight.shape[1] == channels:
        return weight
    spread = weight.double().sum(1, keepdim=True) / channels
    return spread.repeat(1, channels, *[1] * (weight.dim() - 2))


def _fit_patch_embedding(source: _Checkpoint, encoder: UltrasoundViT, fold: bool, report: LoadReport) -> None:
    name = "patch_embed.proj.weight"
    weight, wanted = source.tensors[name], encoder.patch_embed.proj.weight
    bias = source.tensors.get("patch_embed.proj.bias", torch.zeros(weight.shape[0]))
    before, channels = tuple(weight.shape), weight.shape[1]
    if fold and channels == 3:
        weight, bias = _fold_normalization(weight, bias)
        source.tensors["patch_embed.proj.bias"] = bias
        source.origin.setdefault("patch_embed.proj.bias", [])
        report.notes.append("ImageNet normalisation folded into the patch embedding: feed images in [0, 1].")
    elif fold:
        report.notes.append(f"no normalisation folded: the source takes {channels} channel(s), not RGB.")
    elif channels == 3 and report.layout != "monai_usfm":
        report.notes.append(
            "published weights expect images normalised with ImageNet's mean and deviation; "
            "fold_normalization=True makes them take images in [0, 1]."
        )
    done: list[str] = []
    if channels != encoder.in_channels:
        weight = _fit_channels(weight, encoder.in_channels)
        done.append(f"{channels} -> {encoder.in_channels} channel(s), equal for images with equal channels")
    if source.spatial_dims == 2 and encoder.spatial_dims == 3:
        depth = encoder.patch_size[0]
        weight = (weight.double() / depth).unsqueeze(2).repeat(1, 1, depth, 1, 1)
        done.append(f"spread over a depth of {depth}")
    if done:
        report.resized[name] = f"{before} -> {tuple(weight.shape)}: {'; '.join(done)}"
    if tuple(weight.shape[2:]) != tuple(wanted.shape[2:]):
        raise ValueError(
            f"{source.origin[name][0]} has patches of {before[2:]}, the network of {tuple(wanted.shape[2:])}: "
            f"build it with patch_size={_argument(before[2:])}."
        )
    source.tensors[name] = weight


def _argument(sizes: Sequence[int]) -> str:
    """A size as one would write it in a call."""
    return str(sizes[0]) if len(set(sizes)) == 1 else str(tuple(sizes))


def _source_grid(
    source: _Checkpoint, target: list[int], count: int, relative: bool, given: Sequence[int] | None, name: str
) -> list[int]:
    """Token grid of a position table with ``count`` entries: given, stored, that of the network, or a square."""

    def entries(grid: Sequence[int]) -> int:
        return math.prod(2 * n - 1 for n in grid) if relative else math.prod(grid)

    dims = source.spatial_dims
    if given is not None or source.grid is not None:
        grid = list(given) if given is not None else list(source.grid or [])
        if len(grid) != dims or entries(grid) != count:
            raise ValueError(f"{name} has {count} positions, which does not fit a token grid of {tuple(grid)}.")
        return grid
    side = round(count ** (1 / dims))
    square = [(side + 1) // 2 if relative else side] * dims
    candidates = [square] if entries(square) == count else []
    # Published encoders are square; one of ours that does not say so may also have the grid of the network.
    plane = target[-dims:]
    if entries(plane) == count and plane not in candidates and (not candidates or source.layout == "monai_usfm"):
        candidates.append(plane)
    if len(candidates) == 1:
        return candidates[0]
    reason = f"could be {' or '.join(str(tuple(c)) for c in candidates)}" if candidates else "not square"
    raise ValueError(
        f"the token grid behind the {count} positions of {name} is not known ({reason}): pass source_grid, the image "
        "size that they were trained at divided by the patch size."
    )


def _fit_grid(table: torch.Tensor, grid: list[int], target: list[int], relative: bool) -> torch.Tensor:
    """Position codes ``(1, prod(grid), E)`` or bias tables -> those of another grid, repeated along a new axis."""
    table = table.double()
    plane = target[-len(grid) :]
    if not relative:
        if plane != grid:
            table = resize_position_table(table, grid, plane)
        return table.repeat(1, math.prod(target) // math.prod(plane), 1)
    if plane != grid:
        table = resize_relative_table(table, grid, plane)
    if len(target) > len(grid):
        offsets = table[..., :-3, :]
        repeats = [1] * (table.dim() - 2) + [2 * target[0] - 1, 1]
        table = torch.cat([offsets.repeat(repeats), table[..., -3:, :]], dim=-2)
    return table


def _fit_bias_tables(
    source: _Checkpoint, encoder: UltrasoundViT, grid: Sequence[int] | None, report: LoadReport
) -> None:
    """Shared and per-block tables of the source -> the kind and the grid of the network."""
    names = [f"blocks.{i}.attn.relative_position_bias_table" for i in range(source.blocks())]
    names = [name for name in names if name in source.tensors]
    if encoder.rel_pos_bias is None:
        return
    layers = encoder.num_layers
    if names:
        tables = torch.stack([source.tensors[name] for name in names])
        if SHARED_TABLE in source.tensors:  # the official network adds the two
            tables = tables + source.tensors[SHARED_TABLE]
    elif SHARED_TABLE in source.tensors:
        tables = source.tensors[SHARED_TABLE]
        tables = tables if tables.dim() == 3 else tables.unsqueeze(0)
    else:
        return
    used = [name for name in [*names, SHARED_TABLE] if name in source.tensors]
    before = tuple(source.tensors[used[0]].shape)
    if encoder.rel_pos_bias.num_tables == 1 and tables.shape[0] > 1:
        if not torch.equal(tables, tables[:1].expand_as(tables)):
            raise ValueError(
                f"the source has a different relative position table in each of its {tables.shape[0]} blocks, the "
                'network one for all: build it with pos_embed="relative_per_block".'
            )
        tables = tables[:1]
        report.notes.append("the equal tables of all blocks became the shared one.")
    if encoder.rel_pos_bias.num_tables > 1:
        if tables.shape[0] == 1:
            tables = tables.expand(layers, -1, -1)
            report.notes.append("the shared relative position table was copied to every block.")
        elif tables.shape[0] < layers:
            raise ValueError(
                f"the source has relative position tables for {tables.shape[0]} blocks, the network has {layers}: "
                f"build it with num_layers={tables.shape[0]}."
            )
        tables = tables[:layers]
    found = _source_grid(source, encoder.grid, tables.shape[1] - 3, True, grid, used[0])
    fitted = _fit_grid(tables, found, encoder.grid, relative=True)
    fitted = fitted if encoder.rel_pos_bias.num_tables > 1 else fitted[0]
    _note_resize(report, SHARED_TABLE, before, fitted, found, encoder.grid)
    source.move(used, SHARED_TABLE, fitted)


def _fit_positions(
    source: _Checkpoint, name: str, target: list[int], grid: Sequence[int] | None, report: LoadReport
) -> None:
    """Absolute codes with a row for the class token -> those of another grid."""
    if name not in source.tensors:
        return
    table = source.tensors[name]
    found = _source_grid(source, target, table.shape[1] - 1, False, grid, source.origin[name][0])
    fitted = torch.cat([table[:, :1].double(), _fit_grid(table[:, 1:], found, target, relative=False)], dim=1)
    _note_resize(report, name, tuple(table.shape), fitted, found, target)
    source.tensors[name] = fitted


def _note_resize(
    report: LoadReport, name: str, before: tuple[int, ...], after: torch.Tensor, grid: list[int], target: list[int]
) -> None:
    if grid != target:
        how = "repeated along the new axis" if len(grid) < len(target) else "resized"
        report.resized[name] = f"{before} -> {tuple(after.shape)}: grid {tuple(grid)} -> {tuple(target)}, {how}"


def _fit_attention_biases(source: _Checkpoint, stem: str, key_bias: bool, report: LoadReport) -> None:
    """One bias for q, k and v, or BEiT's two, without the keys': that adds a constant to the logits of a query."""
    dropped = zeros = False
    for name in [n for n in source.tensors if n.startswith(f"{stem}.") and n.endswith(".attn.qkv.weight")]:
        base = name.removesuffix("qkv.weight")
        width = source.tensors[name].shape[0] // 3
        fused, pair = base + "qkv.bias", [base + "q_bias", base + "v_bias"]
        if key_bias and fused not in source.tensors:
            zeros = zeros or pair[0] not in source.tensors
            q, v = (source.tensors.get(p, torch.zeros(width)) for p in pair)
            source.move([*pair, base + "k_bias"], fused, torch.cat([q, torch.zeros_like(q), v]))
        elif not key_bias and fused in source.tensors:
            q, k, v = source.tensors[fused].chunk(3)
            dropped = dropped or bool(k.any())
            source.move(fused, pair[0], q)
            source.move([], pair[1], v)
        elif not key_bias and pair[0] not in source.tensors:
            source.move([], pair[0], torch.zeros(width))
            source.move([], pair[1], torch.zeros(width))
            zeros = True
    if zeros:
        report.notes.append(f"the source has no biases of queries and values in its {stem}: set to zero.")
    if dropped:
        report.notes.append(
            "biases of the keys dropped: they add a constant to all logits of a query, which softmax ignores."
        )


def _fit_layer_scale(source: _Checkpoint, stem: str, wanted: bool, report: LoadReport) -> None:
    """Absent scales become ones; scales without a place are multiplied into the last layer of their branch."""
    added, folded = False, False
    for i in range(source.blocks(stem)):
        for gamma, layer in ((f"{stem}.{i}.gamma_1", "attn.proj"), (f"{stem}.{i}.gamma_2", "mlp.fc2")):
            weight, bias = f"{stem}.{i}.{layer}.weight", f"{stem}.{i}.{layer}.bias"
            if weight not in source.tensors:
                continue
            if wanted and gamma not in source.tensors:
                source.move([], gamma, torch.ones(source.tensors[weight].shape[0]))
                added = True
            elif not wanted and gamma in source.tensors:
                scale = source.tensors[gamma].double()
                if bias in source.tensors:
                    source.tensors[bias] = source.tensors[bias].double() * scale
                source.move([gamma, weight], weight, source.tensors[weight].double() * scale.unsqueeze(1))
                folded = True
    if added:
        report.notes.append("the source has no layer scale: gamma_1 and gamma_2 set to one, which keeps its function.")
    if folded:
        report.notes.append(
            "the network has no layer scale: gamma_1 and gamma_2 multiplied into attn.proj and mlp.fc2."
        )


def _fit_norm(source: _Checkpoint, own: Mapping[str, torch.Tensor], report: LoadReport) -> None:
    """Official classifiers have ``fc_norm`` after pooling instead of the final ``norm``; one initialises the other."""
    for part in ("weight", "bias"):
        norm, fc_norm = f"norm.{part}", f"fc_norm.{part}"
        if norm not in source.tensors and fc_norm in source.tensors:
            source.tensors[norm], source.origin[norm] = source.tensors[fc_norm], source.origin[fc_norm]
            if part == "weight":
                report.notes.append(
                    "no final norm in the source: filled from fc_norm, which its network applies after pooling."
                )
        elif (
            fc_norm not in source.tensors
            and norm in source.tensors
            and fc_norm in own
            and own[fc_norm].shape == source.tensors[norm].shape
        ):
            source.tensors[fc_norm], source.origin[fc_norm] = source.tensors[norm], source.origin[norm]
            if part == "weight":
                report.notes.append("no fc_norm in the source: initialised from the final norm.")


def _normalizes_patches(net: nn.Module) -> bool:
    """Whether an autoencoder predicts patches standardised by their own mean and variance."""
    return bool(getattr(getattr(net, "loss_function", None), "normalize_patches", False))


def _fit_decoder(source: _Checkpoint, net: nn.Module, encoder: UltrasoundViT, fold: bool, report: LoadReport) -> None:
    """Decoder of a masked autoencoder; its last layer predicts (*patch, channel) and is adapted to the network's."""
    _fit_attention_biases(source, "decoder_blocks", True, report)
    _fit_layer_scale(source, "decoder_blocks", False, report)
    patch = source.tensors["patch_embed.proj.weight"]
    channels, wanted = patch.shape[1], encoder.in_channels
    inflate = source.spatial_dims == 2 and encoder.spatial_dims == 3
    # Per-patch normalised targets do not depend on the scale of the image, so there is nothing to undo.
    unfold = fold and channels == 3 and not _normalizes_patches(net)
    mean, std = (torch.tensor(v, dtype=torch.float64) for v in (IMAGENET_MEAN, IMAGENET_STD))
    for name in ("decoder_pred.weight", "decoder_pred.bias"):
        old = source.tensors.get(name)
        if old is None or old.shape[0] != patch[0].numel():
            continue
        new = old.double().reshape(-1, channels, *old.shape[1:])
        if unfold:
            new = new * (std if old.dim() == 1 else std.unsqueeze(1))
            new = new + mean if old.dim() == 1 else new
        if channels != wanted:
            new = new.mean(1, keepdim=True).repeat(1, wanted, *[1] * (old.dim() - 1))
        if inflate:
            new = new.repeat(encoder.patch_size[0], *[1] * old.dim())
        new = new.flatten(0, 1)
        if new.shape != old.shape:
            report.resized[name] = (
                f"{tuple(old.shape)} -> {tuple(new.shape)}: one prediction per pixel and channel of our patches"
            )
        source.tensors[name] = new


# ---------------------------------------------------------------------------------------------------------------------
# Loading


def _encoder_of(net: nn.Module) -> tuple[nn.Module, UltrasoundViT, str]:
    """The bare network (out of data-parallel wrappers), its encoder, and the prefix of the encoder's names."""
    while isinstance(net, nn.DataParallel | nn.parallel.DistributedDataParallel):
        net = net.module
    if isinstance(net, UltrasoundViT):
        return net, net, ""
    encoder = getattr(net, "encoder", None)
    if isinstance(encoder, UltrasoundViT):
        return net, encoder, "encoder."
    raise TypeError(f"{type(net).__name__} is neither an UltrasoundViT nor a network with one as its .encoder.")


def _wanted(own: Mapping[str, torch.Tensor], prefix: str, source: _Checkpoint) -> dict[str, str]:
    """Names of weights to fill: ours without prefix -> those in the network's state dict."""
    names: dict[str, str] = {}
    for name in own:
        if name.endswith(".native_grid"):
            continue
        if name.startswith(prefix):
            names[name.removeprefix(prefix)] = name
        elif name.startswith("head."):
            if _same_shape(own, source.tensors, name):  # as many classes
                names[name] = name
        elif name.startswith("fc_norm.") and name in source.tensors and not _same_shape(own, source.tensors, name):
            continue  # another pooling
        elif _WRAPPER_LEVEL.match(name):
            names[name] = name
    return names


def _inflate(weight: torch.Tensor, depth: int, upsamples: bool) -> torch.Tensor:
    """Weights of a 2D convolution -> those of the same layer in 3D, equal on volumes whose slices are all alike.

    A convolution gets the kernel as its middle slice, so that it begins by treating slices one by one; one that
    upsamples gets it as every slice, since its kernel lays an element out as a block.
    """
    if upsamples:
        return weight.unsqueeze(2).repeat(1, 1, depth, 1, 1)
    padding = (0, 0, 0, 0, depth // 2, depth - 1 - depth // 2)
    return nn.functional.pad(weight.unsqueeze(2), padding)


def _fit_parts(
    source: _Checkpoint,
    net: nn.Module,
    own: Mapping[str, torch.Tensor],
    names: Mapping[str, str],
    prefix: str,
    report: LoadReport,
) -> dict[str, str]:
    """The decoder of another network of this package, and layers of equal name and shape (the head of equal classes).

    Convolutions of images are inflated for a network of volumes. A decoder is taken whole or not at all, and without it
    no layer behind it. Like :func:`_wanted`, what is returned maps names to those of the network.
    """
    filled = set(names.values())
    wanted = {
        _PYRAMID.sub("decoder.", name): name for name in own if name not in filled and not name.startswith(prefix)
    }
    inflated = []
    for name, target in wanted.items():
        if name in source.parts and source.parts[name][1].dim() == 4 and own[target].dim() == 5:
            origin, tensor = source.parts[name]
            upsamples = isinstance(net.get_submodule(target.rpartition(".")[0]), nn.ConvTranspose3d)
            source.parts[name] = origin, _inflate(tensor, own[target].shape[2], upsamples)
            inflated.append(name)
    ours = {name: own[target].shape for name, target in wanted.items() if name.startswith("decoder.")}
    theirs = {name: tensor.shape for name, (_, tensor) in source.parts.items() if name.startswith("decoder.")}
    if ours and theirs and ours != theirs:
        differing = sorted(name for name in {**ours, **theirs} if ours.get(name) != theirs.get(name))
        report.notes.append(
            f"the decoder of the source has another shape ({', '.join(_summary(differing)[:3])}) and is not used."
        )
        return {}
    taken = {}
    for name, target in wanted.items():
        if name in source.parts and source.parts[name][1].shape == own[target].shape:
            origin, source.tensors[name] = source.parts[name]
            source.origin[name] = [origin]
            source.others.remove(origin)
            taken[name] = target
    if count := sum(name in taken for name in inflated):
        report.notes.append(
            f"{count} convolutions beside the encoder inflated: they begin by treating slices one by one."
        )
    return taken


def _drop_foreign_decoder(source: _Checkpoint, own: Mapping[str, torch.Tensor]) -> None:
    """A mask token beside a decoder has the decoder's width, else the encoder's: never take one for the other."""
    if ("decoder_embed.weight" in own) != ("decoder_embed.weight" in source.tensors):
        for name in [n for n in source.tensors if n.startswith(("decoder_", "mask_token"))]:
            del source.tensors[name]
            source.others += source.origin.pop(name)


def _same_shape(a: Mapping[str, torch.Tensor], b: Mapping[str, torch.Tensor], name: str) -> bool:
    return name in b and a[name].shape == b[name].shape


def _origin(source: _Checkpoint, name: str) -> str:
    return " + ".join(source.origin.get(name) or [name])


def _check(source: _Checkpoint, own: Mapping[str, torch.Tensor], names: Mapping[str, str]) -> None:
    """Raise unless everything that is about to be copied is finite and of the right shape."""
    for name, target in names.items():
        tensor = source.tensors.get(name)
        if tensor is None:
            continue
        if not torch.isfinite(tensor).all():
            raise ValueError(f"{_origin(source, name)} of the source holds NaN or infinite values: it is unusable.")
        if tensor.shape == own[target].shape:
            continue
        decoder = name.startswith("decoder") or (name == "mask_token" and "decoder_embed.weight" in own)
        stem, lead = ("decoder_blocks", "decoder_") if decoder else ("blocks", "")
        fix = [f"{lead}num_layers={source.blocks(stem)}"]
        if f"{stem}.0.attn.proj.weight" in source.tensors:
            fix.insert(0, f"{lead}hidden_size={source.tensors[f'{stem}.0.attn.proj.weight'].shape[0]}")
        if not decoder and "blocks.0.mlp.fc1.weight" in source.tensors:
            fix.append(f"mlp_dim={source.tensors['blocks.0.mlp.fc1.weight'].shape[0]}")
        if not decoder and SHARED_TABLE in source.tensors:
            fix.append(f"num_heads={source.tensors[SHARED_TABLE].shape[-1]}")
        raise ValueError(
            f"{_origin(source, name)} of the source has shape {tuple(tensor.shape)}, {target} of "
            f"the network {tuple(own[target].shape)}: build the network with {', '.join(fix)}."
        )


def _note_positions(source: _Checkpoint, encoder: UltrasoundViT, report: LoadReport) -> None:
    """Say when the position encoding of the source is not that of the network."""
    absolute, relative = POSITIONS in source.tensors, SHARED_TABLE in source.tensors
    relative = relative or "blocks.0.attn.relative_position_bias_table" in source.tensors
    if encoder.rel_pos_bias is not None and not relative:
        report.notes.append(
            f'the source has no relative positions and the network has pos_embed="{encoder.position}": its tables '
            "keep their values, so the two networks differ."
        )
    if encoder.pos_embed is not None:
        if not absolute:
            report.notes.append(
                f'the source has no absolute positions and the network has pos_embed="{encoder.position}": its codes '
                "keep their values, so the two networks differ."
            )
            return
        sincos = _is_sincos(source.tensors[POSITIONS], encoder.grid)
        if encoder.position == "sincos" and not sincos:
            report.notes.append(
                "the fixed position codes now hold those of the source, which are not the sine-cosine table."
            )
        if encoder.position == "learnable" and sincos:
            report.notes.append("the learnable position codes start from the sine-cosine table of the source.")


def load_pretrained(
    net: nn.Module,
    source: str | os.PathLike | Mapping[str, Any],
    *,
    strict: bool = False,
    fold_normalization: bool | None = None,
    source_grid: Sequence[int] | None = None,
) -> LoadReport:
    """Fill an encoder with published or own weights, adapting them so that it computes the same function.

    Adapted are: the token grid (positions are resized), the number of channels (equal for images with equal channels),
    2D weights for a 3D network (positions are repeated along the new first axis and patch weights spread over it: a
    volume one patch deep and constant along that axis gives the 2D features; convolutions of a decoder or head begin by
    treating slices one by one, so that it gives the 2D output too), shared and per-block bias tables, fused and
    separate biases of q, k and v, and layer scale. On any error the network is left as it was. Files are read with
    ``torch.load(weights_only=True)``.

    Args:
        net: :class:`UltrasoundViT`, or a network with one as its ``encoder``. A masked autoencoder also gets its
            decoder from a file that has one, and a classifier its ``fc_norm`` from a fine-tuned classifier. Networks
            for segmentation, classification and enhancement get the decoder of each other, where it has the same shape,
            and the layers behind it that have the same name and shape: the output layer for as many classes.
        source: path of a checkpoint (``.safetensors`` too, where that package is installed), or a state dict.
        strict: raise when a weight of the network would keep its value, or a tensor of the source's encoder has no
            place. The source's heads, decoder and mask token do not count.
        fold_normalization: the source was trained on RGB images normalised with ImageNet's mean and standard
            deviation; absorb this into the patch embedding, so that the network takes images in [0, 1]. None does so
            for published layouts and not for own weights. Does nothing to a source that does not take three channels.
        source_grid: token grid that the positions of the source belong to; needed only where it cannot be told from
            the file, such as a non-square one without its index buffer.

    Returns:
        A report of what was loaded, missing, unexpected and resized; print it.

    Raises:
        ValueError: for an unknown layout, a damaged file or one with code in it, shapes that do not fit, or ``strict``.
        FileNotFoundError, IsADirectoryError: if there is no file at the path.
    """
    net, encoder, prefix = _encoder_of(net)
    found = _parse(_unwrap(read_checkpoint(source)))
    report = LoadReport(found.layout)
    fold = found.layout != "monai_usfm" if fold_normalization is None else fold_normalization
    if found.spatial_dims > encoder.spatial_dims:
        raise ValueError(
            "the source is an encoder of volumes, the network one of images: build it with spatial_dims=3."
        )
    if found.blocks() > encoder.num_layers:
        report.notes.append(f"only the first {encoder.num_layers} of {found.blocks()} blocks are used.")

    own = net.state_dict()
    _drop_foreign_decoder(found, own)
    _fit_decoder(found, net, encoder, fold, report)
    _fit_norm(found, own, report)
    _fit_attention_biases(found, "blocks", encoder.rel_pos_bias is None, report)
    _fit_layer_scale(found, "blocks", encoder.blocks[0].gamma_1 is not None, report)
    names = _wanted(own, prefix, found)
    if encoder.rel_pos_bias is not None:
        _fit_bias_tables(found, encoder, source_grid, report)
    if encoder.pos_embed is not None:
        _fit_positions(found, POSITIONS, encoder.grid, source_grid, report)
    if DECODER_POSITIONS in names:
        _fit_positions(found, DECODER_POSITIONS, encoder.grid, source_grid, report)
    _fit_patch_embedding(found, encoder, fold, report)
    names |= _fit_parts(found, net, own, names, prefix, report)
    _check(found, own, names)
    _note_positions(found, encoder, report)

    used = [name for name in names if name in found.tensors]
    origins = {source_name for name in used for source_name in found.origin[name]}
    report.loaded = [names[name] for name in used]
    report.missing = [target for name, target in names.items() if name not in found.tensors]
    unused = {source_name: name for name, sources in found.origin.items() for source_name in sources}
    report.unexpected = [source_name for source_name in unused if source_name not in origins] + found.others
    if not used:
        raise ValueError(f"nothing in the source fits the network. {report}")
    lost = [s for s in report.unexpected if s in unused and _ENCODER_LEVEL.match(unused[s])]
    if strict and (report.missing or lost):
        raise ValueError(
            f"strict loading: missing {_summary(report.missing) or 'nothing'}, "
            f"without a place {_summary(lost) or 'nothing'}."
        )
    with torch.no_grad():
        for name in used:
            own[names[name]].copy_(found.tensors[name])
    return report


def encoder_arguments(
    source: str | os.PathLike | Mapping[str, Any], *, source_grid: Sequence[int] | None = None
) -> dict[str, Any]:
    """Arguments of :class:`UltrasoundViT` for an encoder into which a source loads without any adaptation.

    Args:
        source: see :func:`load_pretrained`.
        source_grid: see :func:`load_pretrained`.

    Returns:
        Keyword arguments. ``num_heads`` is read from bias tables; without any it is taken to be 64 channels per head,
        as in all published encoders.

    Raises:
        ValueError: see :func:`load_pretrained`; also for an encoder without positions.
    """
    found = _parse(_unwrap(read_checkpoint(source)))
    patch = found.tensors["patch_embed.proj.weight"]
    block_table = found.tensors.get("blocks.0.attn.relative_position_bias_table")
    table = found.tensors.get(SHARED_TABLE, block_table)
    width = patch.shape[0]
    if table is not None:
        per_block = block_table is not None or table.dim() == 3
        position, heads = "relative_per_block" if per_block else "relative", table.shape[-1]
        grid = _source_grid(found, [], table.shape[-2] - 3, True, source_grid, SHARED_TABLE)
    elif POSITIONS in found.tensors:
        codes = found.tensors[POSITIONS]
        grid = _source_grid(found, [], codes.shape[1] - 1, False, source_grid, found.origin[POSITIONS][0])
        position, heads = "sincos" if _is_sincos(codes, grid) else "learnable", max(width // 64, 1)
    else:
        raise ValueError(f"the source ({found.layout}) has no positions.")
    patch_size = tuple(patch.shape[2:])
    return {
        "img_size": tuple(n * p for n, p in zip(grid, patch_size, strict=True)),
        "patch_size": patch_size,
        "in_channels": patch.shape[1],
        "spatial_dims": found.spatial_dims,
        "hidden_size": width,
        "mlp_dim": found.tensors["blocks.0.mlp.fc1.weight"].shape[0],
        "num_layers": found.blocks(),
        "num_heads": heads,
        "pos_embed": position,
        "layer_scale": 0.1 if "blocks.0.gamma_1" in found.tensors else None,
    }


def source_layout(source: str | os.PathLike | Mapping[str, Any]) -> str:
    """Name of the layout of a source, as :func:`load_pretrained` reports it."""
    return _parse(_unwrap(read_checkpoint(source))).layout


def decoder_arguments(source: str | os.PathLike | Mapping[str, Any]) -> dict[str, Any] | None:
    """Arguments of :class:`MaskedAutoencoder` for the decoder in a source, or None where there is none.

    The number of heads is not in a file; it is taken to be 32 channels per head, as in the published decoders.
    """
    found = _parse(_unwrap(read_checkpoint(source)))
    if "decoder_embed.weight" not in found.tensors:
        return None
    width = found.tensors["decoder_embed.weight"].shape[0]
    return {
        "decoder_hidden_size": width,
        "decoder_num_layers": found.blocks("decoder_blocks"),
        "decoder_num_heads": max(width // 32, 1),
    }


def _is_sincos(table: torch.Tensor, grid: Sequence[int]) -> bool:
    codes = sincos_position_table(grid, table.shape[-1])
    # files in half precision hold rounded codes: bfloat16 by up to 0.002
    return table.shape[1] == len(codes) + 1 and torch.allclose(table[0, 1:].float(), codes, rtol=0, atol=3e-3)


# ---------------------------------------------------------------------------------------------------------------------
# Our weights in published layouts


def _export(net: nn.Module, imagenet_input: bool) -> tuple[nn.Module, UltrasoundViT, dict[str, torch.Tensor]]:
    """Copy of an image encoder's weights, the patch embedding optionally for normalised RGB."""
    net, encoder, _ = _encoder_of(net)
    if encoder.spatial_dims != 2:
        raise ValueError("published layouts are of image encoders: a network with spatial_dims=3 has no counterpart.")
    state = {k: v.detach().clone() for k, v in encoder.state_dict().items() if not k.endswith(".native_grid")}
    if imagenet_input:
        weight, bias = state["patch_embed.proj.weight"], state["patch_embed.proj.bias"]
        wide, shifted = _unfold_normalization(_fit_channels(weight.double(), 3), bias)
        state["patch_embed.proj.weight"], state["patch_embed.proj.bias"] = wide.to(weight.dtype), shifted.to(bias.dtype)
    return net, encoder, state


def to_usfm_state_dict(net: nn.Module, *, imagenet_input: bool = True) -> dict[str, torch.Tensor]:
    """Weights of an encoder in the layout of the official USFM file.

    A shared bias table gives the layout of ``USFM_latest.pth``, one per block that of the official classifiers. A
    network without layer scale gets scales of one.

    Args:
        net: image encoder with relative positions, or a network with one as its ``encoder``.
        imagenet_input: write a patch embedding for RGB normalised with ImageNet's mean and standard deviation, which is
            what the official code feeds and :func:`load_pretrained` expects of this layout, from one for images in
            [0, 1]. False writes the patch embedding as it is.

    Raises:
        ValueError: for a 3D network or one without relative positions.
    """
    net, encoder, state = _export(net, imagenet_input)
    if encoder.rel_pos_bias is None:
        raise ValueError(
            f'the layout of USFM has relative positions, the network pos_embed="{encoder.position}": use MAE\'s.'
        )
    index = _relative_index(encoder.grid, torch.arange(math.prod(encoder.grid)))
    table = state.pop(SHARED_TABLE)
    if encoder.rel_pos_bias.num_tables == 1:
        state[SHARED_TABLE], state["rel_pos_bias.relative_position_index"] = table, index
    for i in range(encoder.num_layers):
        for gamma in (f"blocks.{i}.gamma_1", f"blocks.{i}.gamma_2"):
            state.setdefault(gamma, torch.ones_like(state[f"blocks.{i}.norm1.weight"]))
        if encoder.rel_pos_bias.num_tables > 1:
            state[f"blocks.{i}.attn.relative_position_bias_table"] = table[i].clone()
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
        imagenet_input: see :func:`to_usfm_state_dict`; the decoder then predicts normalised RGB.

    Raises:
        ValueError: for a 3D network or one with relative positions.
    """
    net, encoder, state = _export(net, imagenet_input)
    if encoder.pos_embed is None:
        raise ValueError(
            f'the layout of MAE has absolute positions, the network pos_embed="{encoder.position}": use USFM\'s.'
        )
    whole = net.state_dict()
    if "decoder_embed.weight" in whole:
        for name, tensor in whole.items():
            if name.startswith(("decoder_", "mask_token")) and not name.endswith(".native_grid"):
                state[name] = tensor.detach().clone()
        if imagenet_input:
            for name in ("decoder_pred.weight", "decoder_pred.bias"):
                state[name] = _predict_rgb(state[name], encoder.in_channels, _normalizes_patches(net))
    plain = _Checkpoint("", state, {}, [])
    _fit_layer_scale(plain, "blocks", False, LoadReport(""))
    dtype = encoder.cls_token.dtype
    return {re.sub(r"pos_embed\.table$", "pos_embed", name): tensor.to(dtype) for name, tensor in state.items()}


def _predict_rgb(tensor: torch.Tensor, channels: int, normalised_patches: bool) -> torch.Tensor:
    """Last layer of a decoder, from channels in [0, 1] to RGB normalised with ImageNet's mean and deviation."""
    rows = tensor.double().reshape(-1, channels, *tensor.shape[1:])
    if channels != 3:
        rows = rows.mean(1, keepdim=True).repeat(1, 3, *[1] * (tensor.dim() - 1))
    if not normalised_patches:
        mean, std = (torch.tensor(v, dtype=torch.float64) for v in (IMAGENET_MEAN, IMAGENET_STD))
        rows = (rows - mean) / std if tensor.dim() == 1 else rows / std.unsqueeze(1)
    return rows.flatten(0, 1).to(tensor.dtype)
