# Copyright (c) monai_usfm contributors
# SPDX-License-Identifier: Apache-2.0
"""Published layouts of encoders, one record each, and what they have in common: :func:`parse` gives all our names."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from monai_usfm.networks.blocks.position import rotary_periods

TABLE = "rel_pos_bias.relative_position_bias_table"
POSITIONS = "pos_embed.table"
BLOCK_TABLE = "blocks.{}.attn.relative_position_bias_table"

# What published encoders were fed with: (image - mean) / std of RGB images in [0, 1].
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
HALVES = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))

# Hugging Face names of files (`encoder.layer.0.attention.attention.query`) and modules (`layers.0.attention.q_proj`).
HUGGING_FACE = (
    (r"^embeddings\.position_embeddings$", "pos_embed"),
    (r"^embeddings\.patch_embeddings\.(projection\.)?", "patch_embed.proj."),
    (r"^embeddings\.", ""),
    (r"^(encoder\.relative_position_bias|shared_position_bias)\.", "rel_pos_bias."),
    (r"^(?:encoder\.|model\.)?layers?\.(\d+)\.", r"blocks.\1."),
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
    (r"\.mlp\.up_proj\.", ".mlp.fc1."),
    (r"\.mlp\.down_proj\.", ".mlp.fc2."),
    (r"\.layernorm_before\.", ".norm1."),
    (r"\.layernorm_after\.", ".norm2."),
    (r"\.lambda_([12])$", r".gamma_\1"),
    (r"\.layer_scale([12])\.lambda1$", r".gamma_\1"),
    (r"^layernorm\.", "norm."),
    (r"^pooler\.layernorm\.", "fc_norm."),
)
# Those of facebookresearch, timm and ours.
FACEBOOK = (
    (r"^blocks\.\d+\.(\d+)\.", r"blocks.\1."),  # DINOv2 keeps its blocks in chunks where trained with FSDP
    (r"\.ls([12])\.gamma$", r".gamma_\1"),
)


@dataclass(frozen=True)
class Layout:
    """How a family of files names its tensors, and what images it takes."""

    name: str  # as reports call it
    has: tuple[str, ...]  # regular expressions; for each, the encoder has a tensor whose name it finds
    renames: tuple[tuple[str, str], ...] = FACEBOOK  # expression and replacement, in turn, from its names to ours
    normalization: tuple[tuple[float, ...], tuple[float, ...]] | None = IMAGENET  # mean and std of its RGB images
    refusal: str = ""  # why the encoder of monai_usfm cannot compute its function
    rotary: bool = False  # positions turn queries and keys, and are no weights


GATED = (
    "its MLPs have gates (SwiGLU), as those of DINOv2's giant and DINOv3's plus and 7B sizes, and ours have none; use "
    "another size"
)
HF = r"^embeddings\.patch_embeddings\."
# The first one that fits is taken.
LAYOUTS = (
    Layout("monai_usfm", (r"(pos_embed\.table|\.native_grid)$",), normalization=None),
    Layout("vision transformer with SwiGLU", (r"\.mlp\.(w12|w1|weights_in|fc1_g|gate_proj)\.",), refusal=GATED),
    Layout("DINOv3", (r"^storage_tokens$|^rope_embed\.",), rotary=True),
    Layout("Hugging Face DINOv3", (r"^embeddings\.patch_embeddings\.weight$",), HUGGING_FACE, rotary=True),
    Layout("Hugging Face DINOv2", (HF, r"\.layer_scale1\.lambda1$"), HUGGING_FACE),
    Layout("Hugging Face BEiT", (HF, r"relative_position_bias_table$|\.lambda_1$"), HUGGING_FACE, HALVES),
    Layout("Hugging Face ViTMAE with decoder", (HF, r"(^|\.)decoder_embed\.weight$"), HUGGING_FACE),
    Layout("Hugging Face ViT", (HF,), HUGGING_FACE, HALVES),
    Layout("USFM", (rf"^{TABLE}$", r"relative_position_index$|mask_token$")),
    Layout("monai_usfm", (rf"^{TABLE}$",), normalization=None),  # of version 0.1, which kept no grid
    Layout("USFM or BEiT with a bias table per block", (r"^blocks\.0\.attn\.relative_position_bias_table$",)),
    Layout("DINOv2", (r"^blocks\.(\d+\.)?0\.ls1\.gamma$", r"^pos_embed$")),
    Layout("MAE with decoder", (r"^decoder_embed\.weight$",)),
    Layout("MAE or ViT", (r"^pos_embed$",)),
    Layout("timm DINOv3", (r"^reg_token$",), rotary=True),
    Layout("vision transformer without positions", ()),
)
OWN = "monai_usfm"

EXPECTED = (
    "USFM_latest.pth or an official USFM classifier or segmentation backbone, MAE/USF-MAE with or without decoder, "
    "DINOv2, DINOv3, timm BEiT or ViT, Hugging Face BEiT, DINOv2, DINOv3, ViT or ViTMAE, or a checkpoint of this "
    "package (an encoder, or a network with an 'encoder.'); the state dict may be under 'model', 'state_dict', "
    "'module' or 'network', its keys prefixed"
)
# Keys under which trainers keep the state dict among other things.
WRAPPERS = ("model", "state_dict", "module", "network", "net", "model_state_dict", "encoder", "teacher")
# The tensor by which an encoder is found, as ours and as Hugging Face's.
ANCHORS = (
    "patch_embed.proj.weight",
    "embeddings.patch_embeddings.projection.weight",
    "embeddings.patch_embeddings.weight",
)
# Weights of a PyramidDecoder, wherever a network keeps it (head.decoder., pyramid_pool.decoder., decoder.).
PYRAMID = re.compile(r"^(?:.+\.)?decoder\.(?=(?:stem|maps|up|fuse)\.)")
# Output of joint pretraining that restores pixels: it lies in the file beside any network and is never missed.
RESTORED = "to_image."
# Heads of the official segmentation checkpoints (mmsegmentation); stages are counted from 1, in the attribute's name.
OFFICIAL_HEAD = (
    (r"^(module\.)?(decode_head\.|backbone\.(?=fpn))", "head."),
    (r"^(module\.)?(?=auxiliary_head\.)", "head."),
    (r"^head\.(input_proj|proj_norm|decoder)_(\d)\.", lambda m: f"head.{m[1]}.{int(m[2]) - 1}."),
)
BESIDE_ENCODER = re.compile(r"(mask_token|fc_norm\.|head\.(weight|bias)$|decoder_(embed|pos_embed|blocks|norm|pred)\b)")
TIMM_REGISTERS = "reg_token"
REGISTERS = ("register_tokens", TIMM_REGISTERS, "storage_tokens")
PERIODS = "rope_embed.periods"


@dataclass
class Source:
    """A source whose tensors carry our names, in one form whatever the layout.

    Projections of query, key and value are joined (``attn.qkv.weight``, and ``attn.qkv.bias`` where there is any bias),
    bias tables stacked (``(1 or blocks, rows, heads)``), positions have a row for the class token.
    """

    layout: Layout
    # encoder, and what belongs to it in the layout: decoder of an MAE, class layer of a classifier
    tensors: dict[str, torch.Tensor] = field(default_factory=dict)
    origin: dict[str, list[str]] = field(default_factory=dict)  # name -> names in the source
    others: list[str] = field(default_factory=list)  # names of what was not understood
    grid: list[int] | None = None  # of tokens, where the source tells it
    rotary: bool = False  # positions turn queries and keys
    # name -> (name in the source, tensor) beside the encoder that only another network of this package has a place for
    parts: dict[str, tuple[str, torch.Tensor]] = field(default_factory=dict)

    def join(self, names: Sequence[str], new: str, tensor: torch.Tensor) -> None:
        """Replace one or several tensors by one made of them."""
        origin = [source for name in names for source in self.origin.pop(name, [])]
        for name in names:
            self.tensors.pop(name, None)
        self.tensors[new], self.origin[new] = tensor, origin

    def blocks(self, stem: str = "blocks") -> int:
        """Number of transformer blocks."""
        numbers = [int(m.group(1)) for name in self.tensors if (m := re.match(rf"{stem}\.(\d+)\.", name))]
        return max(numbers, default=-1) + 1

    def called(self, name: str) -> str:
        """What the source calls a tensor, for messages."""
        return " + ".join(self.origin.get(name) or [name])

    @property
    def patch_size(self) -> tuple[int, ...]:
        return tuple(self.tensors["patch_embed.proj.weight"].shape[2:])

    @property
    def spatial_dims(self) -> int:
        return len(self.patch_size)


def unwrap(content: Mapping[str, Any]) -> dict[str, torch.Tensor]:
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


def recognize(names: Iterable[str]) -> Layout:
    """The layout of an encoder with these names, which start where the encoder does, or a ValueError."""
    names = list(names)
    layout = next(x for x in LAYOUTS if all(any(re.search(p, name) for name in names) for p in x.has))
    if layout.refusal:
        raise ValueError(f"the source is a {layout.name}, which cannot be loaded: {layout.refusal}.")
    return layout


def _rename(name: str, renames: Iterable[tuple[str, Any]]) -> str:
    for pattern, replacement in renames:
        name = re.sub(pattern, replacement, name)
    return name


def parse(content: Mapping[str, Any]) -> Source:
    """A checkpoint's content -> its encoder and what is beside it, under our names."""
    state = unwrap(content)
    anchors = [name for name in state if name.endswith(ANCHORS)]
    if len(anchors) > 1:
        raise ValueError(
            f"the source holds {len(anchors)} encoders ({', '.join(anchors)}): pass a dict of one of them."
        )
    anchor = next(a for a in ANCHORS if anchors[0].endswith(a))
    prefix = anchors[0].removesuffix(anchor)
    layout = recognize(name.removeprefix(prefix) for name in state)
    outer = prefix.removesuffix("encoder." if anchor == ANCHORS[0] else "vit.")

    def ours(name: str) -> str:
        return re.sub(r"^((?:decoder_)?pos_embed)$", r"\1.table", _rename(name, layout.renames))

    found = Source(layout, rotary=layout.rotary)
    for name, tensor in state.items():
        if (head := _rename(name, OFFICIAL_HEAD)) != name:
            found.others.append(name)
            found.parts[head] = name, tensor
            continue
        if name.startswith(prefix):
            new = ours(name.removeprefix(prefix))
        elif name.startswith(outer):
            new = ours(name.removeprefix(outer))
            if not BESIDE_ENCODER.match(new):
                if not new.startswith(RESTORED):
                    found.others.append(name)
                found.parts[PYRAMID.sub("decoder.", new)] = name, tensor
                continue
        else:
            found.others.append(name)
            continue
        if new.endswith(".attn.k_bias"):
            continue  # a buffer of timm's BEiT
        found.rotary |= new.startswith("rope_embed.")
        if new.endswith("relative_position_index"):
            found.grid = _grid_of_index(tensor)  # derived from the grid, so not a weight
        elif new.endswith(".native_grid"):
            found.grid = [int(n) for n in tensor] if not new.startswith("decoder") else found.grid
        elif new in found.tensors:
            found.others.append(name)
        else:
            found.tensors[new], found.origin[new] = tensor, [name]
    if outer != prefix and "fc_norm.weight" not in found.tensors:
        # A head beside the encoder is a class layer only where its norm is there too, else a pretraining head.
        for name in [n for n in found.tensors if n.startswith("head.")]:
            del found.tensors[name]
            found.others += found.origin.pop(name)
    first, second = (found.tensors.get(f"blocks.0.mlp.{name}.weight") for name in ("fc1", "fc2"))
    if first is not None and second is not None and first.shape[0] == 2 * second.shape[1]:
        raise ValueError(f"the source is a {layout.name}, which cannot be loaded: {GATED}.")
    if "mask_token" in found.tensors:
        found.tensors["mask_token"] = found.tensors["mask_token"].reshape(1, 1, -1)
    _mask_biases(found)
    _check_rotations(found)
    _join_attention(found)
    _join_tables(found)
    _place_registers(found)
    return found


def _mask_biases(found: Source) -> None:
    """Official files of DINOv3 have a bias of the keys, and a mask that switches it off."""
    for mask in [n for n in found.tensors if n.endswith(".attn.qkv.bias_mask")]:
        bias = mask.removesuffix("_mask")
        found.join([bias, mask], bias, found.tensors[bias] * found.tensors[mask])


def _check_rotations(found: Source) -> None:
    """Rotary positions must be those of DINOv3, whose frequencies are no weights, and its keys without bias."""
    if not found.rotary:
        return
    keys = [t for n, t in found.tensors.items() if n.endswith(".attn.k.bias")]
    keys += [t.chunk(3)[1] for n, t in found.tensors.items() if n.endswith(".attn.qkv.bias")]
    found.origin.pop(PERIODS, None)
    periods = found.tensors.pop(PERIODS, None)
    # published ones are rounded to bfloat16
    other = periods is not None and not torch.allclose(periods, rotary_periods(4 * len(periods)), rtol=0.01)
    if other or any(bias.any() for bias in keys):
        what = "other frequencies" if other else "biases of the keys"
        raise ValueError(f"the source has rotary positions with {what}, as DINOv3 has not: it cannot be loaded.")


def _join_attention(found: Source) -> None:
    """Separate projections -> ``qkv``; biases of some of the three -> one for all, zero for the others."""
    for name in [n for n in found.tensors if n.endswith(".attn.q.weight")]:
        parts = [name.removesuffix("q.weight") + f"{p}.weight" for p in "qkv"]
        found.join(parts, name.removesuffix("q.weight") + "qkv.weight", torch.cat([found.tensors[p] for p in parts]))
    for name in [n for n in found.tensors if n.endswith(".attn.qkv.weight")]:
        stem = name.removesuffix("qkv.weight")
        biases = [next((stem + n for n in (f"{p}_bias", f"{p}.bias") if stem + n in found.tensors), "") for p in "qkv"]
        if any(biases):
            zeros = torch.zeros(found.tensors[name].shape[0] // 3)
            joined = torch.cat([found.tensors[b] if b else zeros for b in biases])
            found.join([b for b in biases if b], stem + "qkv.bias", joined)


def _join_tables(found: Source) -> None:
    """One bias table for all blocks, one for each, or both, which are added: (1 or blocks, rows, heads)."""
    names = [n for i in range(found.blocks()) if (n := BLOCK_TABLE.format(i)) in found.tensors]
    tables = torch.stack([found.tensors[name] for name in names]) if names else None
    if TABLE in found.tensors:
        shared = found.tensors[TABLE]
        shared = shared if shared.dim() == 3 else shared.unsqueeze(0)
        tables = shared if tables is None else tables + shared
        names.append(TABLE)
    if tables is not None:
        found.join(names, TABLE, tables)


def _place_registers(found: Source) -> None:
    """timm's DINOv2 with registers has no position for the class token, which is to say zero."""
    registers = next((name for name in REGISTERS if name in found.tensors), None)
    if registers is None:
        return
    if registers != REGISTERS[0]:
        found.join([registers], REGISTERS[0], found.tensors[registers])
    codes = found.tensors.get(POSITIONS)
    # Of others 49 positions are those of 8 x 6 tokens and the class token.
    if registers == TIMM_REGISTERS and codes is not None and math.isqrt(codes.shape[1]) ** 2 == codes.shape[1]:
        found.tensors[POSITIONS] = torch.cat([torch.zeros_like(codes[:, :1]), codes], 1)


def _grid_of_index(index: torch.Tensor) -> list[int]:
    """Token grid (rows, columns) behind BEiT's index buffer: along a row the index falls by one from key to key."""
    first = index[1, 1:].long()
    falls = first[:-1] - first[1:]
    ends = torch.nonzero(falls != 1)
    columns = int(ends[0]) + 1 if len(ends) else len(first)
    return [len(first) // columns, columns]
