# Copyright (c) monai_usfm contributors
# SPDX-License-Identifier: Apache-2.0
"""Every option of a network: what is given, what the weights to start from say, what is left to the default."""

from __future__ import annotations

import difflib
import inspect
import os
from collections.abc import Mapping, Sequence
from typing import Any

import torch.nn as nn
from monai.utils import ensure_tuple_rep

from monai_usfm.cards.card import NO_CLASSES, TASKS, find_card
from monai_usfm.networks.nets import (
    FeatureExtractor,
    MaskedAutoencoder,
    MaskedImageModel,
    UltrasoundClassifier,
    UltrasoundEnhancer,
    UltrasoundSegmenter,
    UltrasoundViT,
)
from monai_usfm.networks.nets.segmentation import HEADS
from monai_usfm.networks.nets.vit import SIZES
from monai_usfm.networks.weights import encoder_arguments, read_checkpoint, source_layout
from monai_usfm.networks.weights.read import names_file

__all__ = ["ENCODER", "NETWORKS", "OBJECTIVES", "WIDTHS", "encoder_options", "named_options", "network_options"]

# Options of the encoder, as the bundles name them; `layer_scale` 0 builds none, since None means "not given".
ENCODER = {
    "network_size": "tiny",
    "spatial_dims": 2,
    "spatial_size": {2: [192, 192], 3: [48, 96, 96]},
    "patch_size": {2: [16, 16], 3: [8, 16, 16]},
    "in_channels": 1,
    "pos_embed": "relative",
    "layer_scale": 0.1,
    "num_registers": 0,
}
WIDTHS = ("hidden_size", "mlp_dim", "num_layers", "num_heads")
# What a task adds to the encoder; further options are those of the network and of its named head.
DEFAULTS: dict[str, dict[str, Any]] = {
    "encoder": {},
    "features": {"pool": "mean"},
    "pretraining": {"objective": "usfm"},
    "segmentation": {"num_classes": 2, "head": "pyramid"},
    "classification": {"num_classes": 2, "pool": "pyramid"},
    "enhancement": {"out_channels": 1},
}
NETWORKS: dict[str, type[nn.Module]] = {
    "encoder": UltrasoundViT,
    "features": FeatureExtractor,
    "segmentation": UltrasoundSegmenter,
    "classification": UltrasoundClassifier,
    "enhancement": UltrasoundEnhancer,
}
OBJECTIVES: dict[str, type[nn.Module]] = {
    "usfm": MaskedImageModel,
    "pyramid": MaskedImageModel,
    "mae": MaskedAutoencoder,
    "sparse": MaskedAutoencoder,
}
# Published encoders trained at a larger size than this, such as DINOv2's 518 pixels, are used at about 224.
LARGEST = 256


def network_options(
    task: str, pretrained: str | os.PathLike | Mapping[str, Any] | None = None, **options: Any
) -> dict[str, Any]:
    """Every option of a network, resolved: given ones, else those of ``pretrained``, else the defaults.

    The encoder's options come from the card or the tensors of ``pretrained``; those of the head only from a card of the
    same task. ``build_network(task, pretrained, **network_options(task, pretrained, ...))`` is
    ``build_network(task, pretrained, ...)``, with the same ``landmarks``, ``values`` and ``prompts`` in each.

    Args:
        task: see :func:`build_network`.
        pretrained: see :func:`build_network`.
        options: see :func:`build_network`; None stands for "not given". ``fold_normalization``, ``landmarks``,
            ``values`` and ``prompts`` are no options of the network and are not returned.

    Returns:
        Options with ``spatial_dims``, ``spatial_size`` and ``patch_size`` (lists with a number for each axis) and all
        others of the encoder, and those of the task.

    Raises:
        ValueError: for an unknown task, an unknown option (with the nearest right name), or options that contradict
            each other or the encoder in ``pretrained``.
    """
    if task not in TASKS:
        raise ValueError(f"task must be one of {', '.join(TASKS)}, got {task!r}.")
    given = {name: value for name, value in options.items() if value is not None}
    given.pop("fold_normalization", None)
    meaning = {name: given.pop(name, None) for name in NO_CLASSES}
    source, theirs = _source_options(pretrained)
    if theirs and theirs.get("prompts") and not meaning["prompts"]:
        source = {**source, "in_channels": 1}
    merged = _encoder_options(given, source, pretrained)
    extra = {name: value for name, value in given.items() if name not in merged and name not in WIDTHS}
    same = theirs if theirs and theirs.get("task") == task else {}
    kept = dict(same.get("network", {}))
    for name in encoder_options(kept):
        del kept[name]
    if theirs and other_outputs(theirs, **meaning):
        kept.pop("num_classes", None)
    if any(name in given and given[name] != kept.get(name) for name in ("head", "pool")):
        kept = {name: value for name, value in kept.items() if name == "num_classes"}
    merged |= {**DEFAULTS[task], **kept, **extra}
    _check_names(task, merged, extra)
    if task == "pretraining" and merged["objective"] == "mae" and not source:
        merged["pos_embed"] = given.get("pos_embed", "sincos")
        merged["layer_scale"] = given.get("layer_scale", 0)
    return merged


def other_outputs(card: Mapping[str, Any], **meaning: Any) -> bool:
    """Whether outputs of this ``meaning`` (landmarks, values; neither for classes) are others than those of a card."""
    return any(list(meaning.get(name) or ()) != list(card.get(name) or ()) for name in ("landmarks", "values"))


def encoder_options(network: Mapping[str, Any]) -> dict[str, Any]:
    """Those options of a network that are the encoder's."""
    return {name: value for name, value in network.items() if name in ENCODER or name in WIDTHS}


@names_file("pretrained")
def _source_options(pretrained: Any) -> tuple[dict[str, Any], dict[str, Any] | None]:
    """The encoder's options in a file or state dict, and its card."""
    if not pretrained:
        return {}, None
    card = None if isinstance(pretrained, Mapping) else find_card(pretrained)
    if card is not None:
        return encoder_options(card["network"]), card
    content = read_checkpoint(pretrained)
    options = named_options(encoder_arguments(content))
    if source_layout(content) != "monai_usfm":
        options["in_channels"] = 1  # gray images, to which the weights are adapted exactly
        size = [patch * round(224 / patch) if n > LARGEST else n for n, patch in _axes(options)]
        options["spatial_size"] = size
    return options, None


def _axes(options: Mapping[str, Any]) -> list[tuple[int, int]]:
    return list(zip(options["spatial_size"], options["patch_size"], strict=True))


def named_options(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of :class:`UltrasoundViT` -> options of the bundles: a named size where there is one."""
    widths = {name: arguments[name] for name in WIDTHS}
    named = [size for size in SIZES if _widths({"network_size": size}) == widths]
    return {
        "network_size": named[0] if named else "custom",
        "spatial_dims": arguments["spatial_dims"],
        "spatial_size": [int(n) for n in arguments["img_size"]],
        "patch_size": [int(n) for n in arguments["patch_size"]],
        "in_channels": arguments["in_channels"],
        "pos_embed": arguments["pos_embed"],
        "layer_scale": arguments["layer_scale"] or 0,
        "num_registers": arguments.get("num_registers", 0),
        **({} if named else widths),
    }


def _encoder_options(given: Mapping[str, Any], source: Mapping[str, Any], pretrained: Any) -> dict[str, Any]:
    """All options of the encoder: given, else those of ``source``, else the defaults."""
    name = "the pretrained state dict" if isinstance(pretrained, Mapping) else f"pretrained {pretrained}"
    axes = {len(given[n]) for n in ("spatial_size", "patch_size") if isinstance(given.get(n), Sequence)}
    dims = given.get("spatial_dims", axes.pop() if len(axes) == 1 else source.get("spatial_dims", 2))
    if dims not in (2, 3):
        sizes = [
            f"{n} {given[n]}" for n in ("spatial_size", "patch_size") if given.get(n) and "spatial_dims" not in given
        ]
        said = " and ".join(sizes) or f"spatial_dims {dims!r}"
        raise ValueError(f"spatial_dims must be 2 or 3; {said} cannot be: give one number for each axis.")
    if source and dims < source["spatial_dims"]:
        raise ValueError(f"{name} holds an encoder of volumes: leave spatial_dims out, or choose weights of images.")
    defaults = {option: value[dims] if isinstance(value, dict) else value for option, value in ENCODER.items()}
    found = {option: value for option, value in source.items() if option in ENCODER and value is not None}
    if source and dims > source["spatial_dims"]:  # weights of images become those of volumes, of the default size
        found = {option: value for option, value in found.items() if option not in ("spatial_size", "patch_size")}
    merged = {**defaults, **found, **{option: given[option] for option in ENCODER if option in given}}
    merged["spatial_dims"] = dims
    _check_sizes(merged, f" of {name}" if source and "patch_size" not in given else "")
    if merged["network_size"] not in (*SIZES, "custom"):
        raise ValueError(f"network_size must be one of {', '.join(SIZES)}, got {merged['network_size']!r}.")
    custom = merged["network_size"] == "custom"
    missing = [width for width in WIDTHS if width not in given and width not in source]
    if custom and missing:
        raise ValueError(f"network_size custom needs {', '.join(missing)} too.")
    widths = _widths(merged)
    if custom or any(width in given for width in WIDTHS):
        merged |= {width: given.get(width, source.get(width, widths.get(width))) for width in WIDTHS}
    for width in ("hidden_size", "mlp_dim") if source else ():
        wanted, there = _widths(merged)[width], _widths(source)[width]
        if wanted != there:
            raise ValueError(
                f"network_size {merged['network_size']} ({width} {wanted}) contradicts {name}, an encoder "
                f"of size {source['network_size']} ({width} {there}): leave network_size out."
            )
    return merged


def _check_sizes(merged: dict[str, Any], origin: str) -> None:
    """Bring image and patch size to one number for each axis; one must be a multiple of the other."""
    dims = merged["spatial_dims"]
    for option in ("spatial_size", "patch_size"):
        try:
            merged[option] = [int(n) for n in ensure_tuple_rep(merged[option], dims)]
        except ValueError as error:
            raise ValueError(
                f"{option} {merged[option]} does not have {dims} axes, as spatial_dims says: give one number, or "
                f"{dims}."
            ) from error
        if min(merged[option]) < 1:
            raise ValueError(f"{option} must be positive, got {merged[option]}.")
    if any(size % patch for size, patch in _axes(merged)):
        near = [max(patch, patch * round(size / patch)) for size, patch in _axes(merged)]
        raise ValueError(
            f"spatial_size {merged['spatial_size']} is not a multiple of patch_size {merged['patch_size']}{origin}: "
            f"use spatial_size {near}."
        )


def _widths(options: Mapping[str, Any]) -> dict[str, int]:
    """Widths and depths of a named size, and those that are given beside it."""
    named: dict[str, int] = {}
    if options["network_size"] in SIZES:
        width, heads = SIZES[options["network_size"]]
        named = {"hidden_size": width, "mlp_dim": 4 * width, "num_layers": 12, "num_heads": heads}
    return {**named, **{name: options[name] for name in WIDTHS if name in options}}


def _parameters(kind: type[nn.Module]) -> dict[str, inspect.Parameter]:
    return {
        name: parameter
        for name, parameter in list(inspect.signature(kind.__init__).parameters.items())[1:]
        if parameter.kind is not inspect.Parameter.VAR_KEYWORD
    }


def _task_options(task: str, merged: Mapping[str, Any]) -> list[str]:
    """Names of the options of a task beside those of the encoder."""
    derived = {"encoder", "hidden_size", "patch_size", "in_channels", "num_maps", "img_size"}
    if task == "encoder":
        names = ["drop_path_rate"]
    elif task == "pretraining":
        kind = OBJECTIVES.get(str(merged["objective"]))
        if kind is None:
            raise ValueError(f"objective must be one of {', '.join(OBJECTIVES)}, got {merged['objective']!r}.")
        names = ["objective", "drop_path_rate", *_parameters(kind)]
    else:
        names = ["drop_path_rate", *_parameters(NETWORKS[task])]
        if task == "segmentation" and isinstance(merged["head"], str):
            if merged["head"] not in HEADS:
                raise ValueError(f"head must be one of {', '.join(HEADS)}, got {merged['head']!r}.")
            names += _parameters(HEADS[merged["head"]])
    return [name for name in dict.fromkeys(names) if name not in derived]


def _check_names(task: str, merged: Mapping[str, Any], extra: Mapping[str, Any]) -> None:
    known = _task_options(task, merged)
    for name in extra:
        if name not in known:
            near = difflib.get_close_matches(name, [*known, *ENCODER, *WIDTHS], 1)
            raise ValueError(
                f"a network for {task} has no option {name!r}"
                f"{f'; did you mean {near[0]!r}?' if near else ': it has ' + ', '.join([*ENCODER, *known]) + '.'}"
            )
