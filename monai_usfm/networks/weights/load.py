# Copyright (c) monai_usfm contributors
# SPDX-License-Identifier: Apache-2.0
"""Filling a network: every group of its weights is made from the source by itself, all is checked, then copied."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import cast

import torch
import torch.nn as nn

from monai_usfm.networks.nets.vit import UltrasoundViT, find_encoder
from monai_usfm.networks.weights import adapt
from monai_usfm.networks.weights.describe import Checkpoint, is_sincos, token_grid
from monai_usfm.networks.weights.layouts import BESIDE_ENCODER, IMAGENET, POSITIONS, PYRAMID, TABLE, Source, parse
from monai_usfm.networks.weights.read import names_file, read_checkpoint

__all__ = ["LoadReport", "load_pretrained"]

DECODER_POSITIONS = "decoder_pos_embed.table"
PIXELS = re.compile(r"decoder\.stem\.0\.(conv\.unit0\.conv|residual)\.weight")  # what a decoder sees of the image
OUTPUT = re.compile(r"head\.to_pixels\.(weight|bias)$")  # classes of a pyramid decoder
Tensors = dict[str, torch.Tensor]


@dataclass
class LoadReport:
    """What :func:`load_pretrained` did.

    Args:
        layout: recognized layout of the source.
        loaded: weights of the network that were filled, by their names in the network.
        missing: weights of the network that the source does not have; they kept their values.
        unexpected: tensors of the source that were not used, by their names in the source.
        resized: for every weight whose shape was adapted, what was done to it.
        notes: everything else worth knowing, for example conversions that keep the function.
        anew: weights of the network that have another shape in the source, such as those of a head for other classes,
            with both shapes; they kept their values, or, behind a decoder of the source, are zero.
    """

    layout: str
    loaded: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    unexpected: list[str] = field(default_factory=list)
    resized: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    anew: dict[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        lines = [f"layout: {self.layout}", f"loaded: {len(self.loaded)} weights"]
        lines += [f"missing: {name}" for name in summarize(self.missing)]
        lines += [f"other shape, started anew: {name}: {shapes}" for name, shapes in self.anew.items()]
        lines += [f"unexpected: {name}" for name in summarize(self.unexpected)]
        lines += [f"resized: {name}: {what}" for name, what in self.resized.items()]
        lines += [f"note: {note}" for note in self.notes]
        return "\n".join(lines)


def summarize(names: Sequence[str]) -> list[str]:
    """Names that differ only in their block numbers on one line: ``blocks.*.gamma_1 (12)``."""
    groups: dict[str, list[str]] = {}
    for name in names:
        groups.setdefault(re.sub(r"\.\d+\.", ".*.", name), []).append(name)
    return [members[0] if len(members) == 1 else f"{group} ({len(members)})" for group, members in groups.items()]


@dataclass
class _Target:
    """The bare network to fill, and how."""

    net: nn.Module
    encoder: UltrasoundViT
    prefix: str  # of the encoder's names in the network
    own: Tensors  # the network's state dict
    fold: bool  # whether the source's normalization is absorbed
    source_grid: Sequence[int] | None  # as given by the user

    @property
    def has_decoder(self) -> bool:
        return "decoder_embed.weight" in self.own


def bare(net: nn.Module) -> nn.Module:
    """A network out of the wrappers of data parallelism and of :func:`torch.compile`."""
    while isinstance(net, nn.DataParallel | nn.parallel.DistributedDataParallel) or hasattr(net, "_orig_mod"):
        net = cast(nn.Module, net._orig_mod if hasattr(net, "_orig_mod") else net.module)
    return net


# Groups of weights: each function makes those of one group from the source, and none looks at what another made.


def _fit_blocks(source: Source, stem: str, key_bias: bool, layer_scale: bool, report: LoadReport) -> Tensors:
    fitted: Tensors = {}
    for i in range(source.blocks(stem)):
        start = f"{stem}.{i}."
        block = {name.removeprefix(start): t for name, t in source.tensors.items() if name.startswith(start)}
        block, done = adapt.fit_block(block, key_bias, layer_scale)
        fitted |= {start + name: tensor for name, tensor in block.items()}
        report.notes += done
    report.notes[:] = dict.fromkeys(report.notes)
    return fitted


def _fit_table(source: Source, target: _Target, report: LoadReport) -> Tensors:
    """Relative position tables: for one or every block, of the network's grid."""
    bias, layers = target.encoder.rel_pos_bias, target.encoder.num_layers
    if bias is None or TABLE not in source.tensors:
        return {}
    tables = source.tensors[TABLE]
    if bias.num_tables == 1 and len(tables) > 1:
        if not torch.equal(tables, tables[:1].expand_as(tables)):
            raise ValueError(
                f"the source has a different relative position table in each of its {len(tables)} blocks, the "
                'network one for all: build it with pos_embed="relative_per_block".'
            )
        tables = tables[:1]
        report.notes.append("the equal tables of all blocks became the shared one.")
    if bias.num_tables > 1:
        if len(tables) == 1:
            tables = tables.expand(layers, -1, -1)
            report.notes.append("the shared relative position table was copied to every block.")
        elif len(tables) < layers:
            raise ValueError(
                f"the source has relative position tables for {len(tables)} blocks, the network has {layers}: "
                f"build it with num_layers={len(tables)}."
            )
        tables = tables[:layers]
    fitted = _on_grid(source, TABLE, tables, target, report)
    return {TABLE: fitted if bias.num_tables > 1 else fitted[0]}


def _fit_positions(source: Source, name: str, target: _Target, report: LoadReport) -> Tensors:
    """Absolute codes of the encoder or of a decoder, of the network's grid."""
    if name not in source.tensors:
        return {}
    return {name: _on_grid(source, name, source.tensors[name], target, report)}


def _on_grid(source: Source, name: str, table: torch.Tensor, target: _Target, report: LoadReport) -> torch.Tensor:
    """Position codes or bias tables of the network's grid."""
    grid, wanted = token_grid(source, target.encoder.grid, name, target.source_grid), target.encoder.grid
    fitted = adapt.fit_grid(table, grid, wanted, relative=name == TABLE)
    if grid != wanted:
        how = "repeated along the new axis" if len(grid) < len(wanted) else "resized"
        kinds = (source.tensors[name], fitted)  # of one table for all blocks, without the axis of the blocks
        before, after = (tuple(t.shape[1:] if name == TABLE and len(t) == 1 else t.shape) for t in kinds)
        report.resized[name] = f"{before} -> {after}: grid {tuple(grid)} -> {tuple(wanted)}, {how}"
    return fitted


def _fit_patch_embedding(source: Source, target: _Target, report: LoadReport) -> Tensors:
    name = "patch_embed.proj.weight"
    weight = source.tensors[name]
    bias = source.tensors.get("patch_embed.proj.bias", torch.zeros(weight.shape[0]))
    before, channels = tuple(weight.shape), weight.shape[1]
    normalization = source.layout.normalization or IMAGENET
    if target.fold and channels == 3:
        weight, bias = adapt.fold_normalization(weight, bias, normalization)
        report.notes.append("normalization of RGB folded into the patch embedding: feed images in [0, 1].")
    elif target.fold:
        report.notes.append(f"no normalization folded: the source takes {channels} channel(s), not RGB.")
    elif channels == 3 and source.layout.normalization is not None:
        report.notes.append("the weights expect normalized RGB; fold_normalization=None makes them take [0, 1].")
    weight, done = adapt.fit_patches(weight, target.encoder.in_channels, target.encoder.patch_size)
    if done:
        report.resized[name] = f"{before} -> {tuple(weight.shape)}: {'; '.join(done)}"
    return {name: weight, "patch_embed.proj.bias": bias}


def _fit_norms(source: Source, target: _Target, report: LoadReport) -> Tensors:
    """Official classifiers have ``fc_norm`` after pooling instead of the final ``norm``; one initializes the other."""
    fitted = {}
    for part in ("weight", "bias"):
        norm, pooled = (source.tensors.get(f"{name}.{part}") for name in ("norm", "fc_norm"))
        final, after_pool = (pooled if norm is None else norm), (norm if pooled is None else pooled)
        wanted = target.own.get(f"fc_norm.{part}")
        if final is not None:
            fitted[f"norm.{part}"] = final
        if wanted is not None and after_pool is not None and after_pool.shape == wanted.shape:
            fitted[f"fc_norm.{part}"] = after_pool
        elif wanted is not None and pooled is not None:  # of another pooling
            report.anew[f"fc_norm.{part}"] = f"{tuple(pooled.shape)} -> {tuple(wanted.shape)}"
    if "norm.weight" not in source.tensors and fitted:
        report.notes.append(
            "no final norm in the source: filled from fc_norm, which its network applies after pooling."
        )
    if "fc_norm.weight" not in source.tensors and "fc_norm.weight" in fitted:
        report.notes.append("no fc_norm in the source: initialized from the final norm.")
    return fitted


def _fit_prediction(source: Source, target: _Target, report: LoadReport) -> Tensors:
    """Last layer of an MAE decoder: one number for each pixel and channel of a patch."""
    channels, encoder = source.tensors["patch_embed.proj.weight"].shape[1], target.encoder
    depth = encoder.patch_size[0] if source.spatial_dims < encoder.spatial_dims else 0
    # Targets normalized patch by patch do not depend on the scale of the image, so there is nothing to undo.
    unfold = target.fold and channels == 3 and not getattr(target.net, "normalize_patches", False)
    fitted = {}
    for name in ("decoder_pred.weight", "decoder_pred.bias"):
        old = source.tensors.get(name)
        if old is not None and old.shape[0] == channels * math.prod(source.patch_size):
            normalization = (source.layout.normalization or IMAGENET) if unfold else None
            fitted[name] = adapt.fit_prediction(old, channels, encoder.in_channels, depth, normalization)
            if fitted[name].shape != old.shape:
                report.resized[name] = (
                    f"{tuple(old.shape)} -> {tuple(fitted[name].shape)}: one prediction for each pixel and channel"
                )
    return fitted


def _fit_parts(source: Source, target: _Target, report: LoadReport) -> tuple[Tensors, set[str]]:
    """The decoder of another network of this package, and layers of equal name and shape (the head of equal classes).

    Convolutions of images are inflated for a network of volumes, and those of pixels fitted to other channels. A
    decoder is taken whole or not at all, and without it no layer behind it. Several structures begin as the one of the
    source; other classes behind a trained decoder begin at zero.

    Returns:
        tensors by their names in the network, and the names in the source that were understood.
    """
    wanted = {
        PYRAMID.sub("decoder.", name): name
        for name in target.own
        if not name.startswith(target.prefix or "\0") and not _in_layout(name)
    }
    parts = {name: source.parts[name] for name in wanted if name in source.parts}
    inflated, fitted = [], {}
    for name, (origin, tensor) in parts.items():
        own = target.own[wanted[name]]
        if tensor.dim() == 4 and own.dim() == 5:
            layer = target.net.get_submodule(wanted[name].rpartition(".")[0])
            tensor = adapt.inflate(tensor, own.shape[2], isinstance(layer, nn.ConvTranspose3d))
            inflated.append(name)
        if PIXELS.match(name) and tensor.shape[1] != own.shape[1]:
            fitted[wanted[name]] = f"{tensor.shape[1]} -> {own.shape[1]} channel(s), equal for equal channels"
            tensor = adapt.fit_channels(tensor, own.shape[1])
        parts[name] = origin, tensor
    ours = {name: target.own[own].shape for name, own in wanted.items() if name.startswith("decoder.")}
    theirs = {name: tensor.shape for name, (_, tensor) in source.parts.items() if name.startswith("decoder.")}
    theirs |= {name: parts[name][1].shape for name in parts if name.startswith("decoder.")}
    if ours and theirs and ours != theirs:
        differing = sorted(name for name in {**ours, **theirs} if ours.get(name) != theirs.get(name))
        report.notes.append(
            f"the decoder of the source has another shape ({', '.join(summarize(differing)[:3])}) and is not used."
        )
        return {}, set()
    report.resized |= fitted
    taken = {}
    for name, (_, tensor) in parts.items():
        own = target.own[wanted[name]]
        several = adapt.split_structure(tensor, own.shape) if OUTPUT.search(name) else None
        if tensor.shape == own.shape:
            taken[wanted[name]] = tensor
        elif several is not None:
            taken[wanted[name]] = several
            shapes = f"{tuple(tensor.shape)} -> {tuple(own.shape)}"
            report.resized[wanted[name]] = f"{shapes}: a share of the structure for each"
        else:
            report.anew[wanted[name]] = f"{tuple(tensor.shape)} -> {tuple(own.shape)}"
    for name in wanted.values() if ours and theirs else ():
        if OUTPUT.search(name) and name not in taken:  # random weights on trained features are confident, and wrong
            taken[name] = torch.zeros_like(target.own[name])
            report.anew[name] = f"{report.anew.get(name, tuple(taken[name].shape))}, from zero"
    if count := sum(wanted[name] in taken for name in inflated):
        report.notes.append(
            f"{count} convolutions beside the encoder inflated: they begin by treating slices one by one."
        )
    return taken, {origin for origin, _ in parts.values()}


def _in_layout(name: str) -> bool:
    """Whether a weight beside the encoder is one that published layouts have too."""
    return bool(BESIDE_ENCODER.match(name)) and not name.startswith("head.")


def _fit(source: Source, target: _Target, report: LoadReport) -> Tensors:
    """All weights that the source has for the network, by our names."""
    encoder = target.encoder
    available = dict(source.tensors)
    if target.has_decoder != ("decoder_embed.weight" in available):
        # A mask token beside a decoder has the decoder's width, else the encoder's: never take one for the other.
        available = {n: t for n, t in available.items() if not n.startswith(("decoder_", "mask_token"))}
    reduced = Source(source.layout, available, source.origin, [], source.grid)
    adapted = re.compile(
        r"(decoder_)?blocks\.|norm\.|fc_norm\.|patch_embed\.|decoder_pred\.|(decoder_)?pos_embed\.|rel_pos_bias\."
    )
    fitted = {name: tensor for name, tensor in available.items() if not adapted.match(name)}
    fitted |= _fit_blocks(
        reduced, "blocks", encoder.pos_embed is not None, encoder.blocks[0].gamma_1 is not None, report
    )
    fitted |= _fit_blocks(reduced, "decoder_blocks", True, False, report)
    fitted |= _fit_table(reduced, target, report)
    fitted |= _fit_positions(reduced, POSITIONS, target, report) if encoder.pos_embed is not None else {}
    fitted |= _fit_positions(reduced, DECODER_POSITIONS, target, report) if target.has_decoder else {}
    fitted |= _fit_patch_embedding(reduced, target, report)
    fitted |= _fit_norms(reduced, target, report)
    fitted |= _fit_prediction(reduced, target, report)
    return fitted


def _used(source: Source, filled: set[str]) -> set[str]:
    """Names in the source of what went into weights of the network: a block as a whole, all else by name."""
    used = set()
    for name, origin in source.origin.items():
        block = re.match(r"(decoder_)?blocks\.\d+\.", name)
        if block:
            taken = block.group() + "attn.proj.weight" in filled
        else:
            norm = name.replace("fc_norm.", "norm.")
            taken = name in filled or (norm != name and norm in filled and norm not in source.tensors)
        if taken:
            used |= set(origin)
    return used


def _check(source: Source, target: _Target, fitted: Tensors, names: Mapping[str, str]) -> None:
    """Raise unless everything that is about to be copied is of the right shape."""
    for name, own_name in names.items():
        tensor, own = fitted[name], target.own[own_name]
        if tensor.shape == own.shape:
            continue
        decoder = name.startswith("decoder") or (name == "mask_token" and target.has_decoder)
        stem, lead = ("decoder_blocks", "decoder_") if decoder else ("blocks", "")
        fix = [f"{lead}num_layers={source.blocks(stem)}"]
        if f"{stem}.0.attn.proj.weight" in source.tensors:
            fix.insert(0, f"{lead}hidden_size={source.tensors[f'{stem}.0.attn.proj.weight'].shape[0]}")
        if not decoder and "blocks.0.mlp.fc1.weight" in source.tensors:
            fix.append(f"mlp_dim={source.tensors['blocks.0.mlp.fc1.weight'].shape[0]}")
        if not decoder and TABLE in source.tensors:
            fix.append(f"num_heads={source.tensors[TABLE].shape[-1]}")
        raise ValueError(
            f"{source.called(name)} of the source has shape {tuple(tensor.shape)}, {own_name} of "
            f"the network {tuple(own.shape)}: build the network with {', '.join(fix)}."
        )


def _note_positions(source: Source, encoder: UltrasoundViT, report: LoadReport) -> None:
    """Say when the position encoding of the source is not that of the network."""
    kinds = ((encoder.rel_pos_bias, TABLE, "relative", "tables"), (encoder.pos_embed, POSITIONS, "absolute", "codes"))
    for own, name, kind, what in kinds:
        if own is not None and name not in source.tensors:
            report.notes.append(
                f'the source has no {kind} positions and the network has pos_embed="{encoder.position}": its {what} '
                "keep their values, so the two networks differ."
            )
    if encoder.position == "rotary" and not source.rotary:
        report.notes.append('the source has no rotary positions, as pos_embed="rotary": the two networks differ.')
    if encoder.pos_embed is not None and POSITIONS in source.tensors:
        sincos = is_sincos(source.tensors[POSITIONS], encoder.grid)
        if encoder.position == "sincos" and not sincos:
            report.notes.append(
                "the fixed position codes now hold those of the source, which are not the sine-cosine table."
            )
        if encoder.position == "learnable" and sincos:
            report.notes.append("the learnable position codes start from the sine-cosine table of the source.")


@names_file("source")
def load_pretrained(
    net: nn.Module,
    source: Checkpoint,
    *,
    strict: bool = False,
    fold_normalization: bool | None = None,
    source_grid: Sequence[int] | None = None,
) -> LoadReport:
    """Fill an encoder with published or own weights, adapting them so that it computes the same function.

    Adapted are: the token grid (positions are resized), the patch size (kernels are resized by the pseudo-inverse, as
    in FlexiViT), the number of channels (equal for images with equal channels), 2D weights for a 3D network (positions
    are repeated along the new first axis and patch weights spread over it: a volume one patch deep and constant along
    that axis gives the 2D features; convolutions of a decoder or head begin by treating slices one by one, so that it
    gives the 2D output too), shared and per-block bias tables, fused and separate biases of q, k and v, and layer
    scale. On any error the network is left as it was. Files are read with ``torch.load(weights_only=True)``.

    Args:
        net: :class:`UltrasoundViT`, or a network with one as its ``encoder``. A masked autoencoder also gets its
            decoder from a file that has one, and a classifier its ``fc_norm`` from a fine-tuned classifier. Networks
            for segmentation, classification and enhancement get the decoder of each other, where it has the same shape,
            and the layers behind it that have the same name and shape: the output layer for as many classes.
        source: path of a checkpoint (``.safetensors`` too, where that package is installed), or a state dict.
        strict: raise when a weight of the network would keep its value, or a tensor of the source's encoder has no
            place. The source's heads, decoder and mask token do not count.
        fold_normalization: the source was trained on normalized RGB images; absorb this into the patch embedding, so
            that the network takes images in [0, 1]. None does so for published layouts, by the mean and standard
            deviation that they are known for, and not for own weights. Does nothing to a source that does not take
            three channels.
        source_grid: token grid that the positions of the source belong to; needed only where it cannot be told from
            the file, such as a non-square one without its index buffer.

    Returns:
        A report of what was loaded, missing, unexpected, started anew and resized; print it.

    Raises:
        ValueError: for an unknown layout, one whose function the encoder cannot compute (SwiGLU), a damaged file or one
            with code in it, shapes that do not fit, or ``strict``.
        FileNotFoundError, IsADirectoryError: if there is no file at the path.
    """
    net = bare(net)
    prefix, encoder = find_encoder(net)
    found = parse(read_checkpoint(source))
    report = LoadReport(found.layout.name)
    if found.spatial_dims > encoder.spatial_dims:
        raise ValueError(
            "the source is an encoder of volumes, the network one of images: build it with spatial_dims=3."
        )
    if found.blocks() > encoder.num_layers:
        report.notes.append(f"only the first {encoder.num_layers} of {found.blocks()} blocks are used.")
    fold = found.layout.normalization is not None if fold_normalization is None else fold_normalization
    target = _Target(net, encoder, prefix, net.state_dict(), fold, source_grid)

    fitted = _fit(found, target, report)
    wanted = {
        name.removeprefix(prefix): name
        for name in target.own
        if not name.endswith(".native_grid") and (name.startswith(prefix) or _in_layout(name))
    }
    for name in ("head.weight", "head.bias"):  # the class layer of official classifiers
        if name in fitted and name in target.own:
            if fitted[name].shape == target.own[name].shape:
                wanted[name] = name
            else:
                report.anew[name] = f"{tuple(fitted[name].shape)} -> {tuple(target.own[name].shape)}"
    optional = {name for name in wanted if name.startswith("fc_norm.") and name in found.tensors}
    names = {name: own for name, own in wanted.items() if name in fitted}
    _check(found, target, fitted, names)
    _note_positions(found, encoder, report)
    parts, understood = _fit_parts(found, target, report)
    filled = {own: fitted[name] for name, own in names.items()} | parts
    for own, tensor in filled.items():
        if not torch.isfinite(tensor).all():
            raise ValueError(f"{own} would become NaN or infinite by the source: it is unusable.")

    report.loaded = [name for name in filled if name not in report.anew]
    report.missing = [own for name, own in wanted.items() if name not in fitted and name not in optional]
    used = _used(found, set(names) | set(report.anew)) | understood
    encoder_names = [origin for origins in found.origin.values() for origin in origins]
    report.unexpected = [name for name in [*encoder_names, *found.others] if name not in used]
    if not names:
        raise ValueError(f"nothing in the source fits the network. {report}")
    beside = ("head.", "fc_norm.", "mask_token", "decoder_")
    lost = [
        o for name, origins in found.origin.items() if not name.startswith(beside) for o in origins if o not in used
    ]
    if strict and (report.missing or lost):
        raise ValueError(
            f"strict loading: missing {summarize(report.missing) or 'nothing'}, "
            f"without a place {summarize(lost) or 'nothing'}."
        )
    with torch.no_grad():
        for own, tensor in filled.items():
            target.own[own].copy_(tensor)
    return report
