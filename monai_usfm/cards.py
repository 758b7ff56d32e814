# Copyright (c) monai_usfm contributors
# SPDX-License-Identifier: Apache-2.0
"""Weights that know their network: beside ``X.pt`` lies its card ``X.json``, and a network is built from the two.

A card holds the task, every option that builds the network, what its outputs mean (class names, label values,
temperature), how pixels are prepared, the origin of the weights, their scores, and the SHA-256 of the file that it
describes. nnU-Net's ``plans.json`` and timm's ``pretrained_cfg`` are the models.

Longer than other modules: options, building, reading and writing share one table of what a network is made of.
"""

from __future__ import annotations

import difflib
import hashlib
import inspect
import json
import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import torch
import torch.nn as nn
from monai.utils import ensure_tuple_rep

import monai_usfm
from monai_usfm.files import atomic_write
from monai_usfm.networks.nets import (
    FeatureExtractor,
    MaskedAutoencoder,
    MaskedImageModel,
    RandomBandStop,
    UltrasoundClassifier,
    UltrasoundEnhancer,
    UltrasoundSegmenter,
    UltrasoundViT,
    usfm_vit,
)
from monai_usfm.networks.nets.segmentation import HEADS
from monai_usfm.networks.nets.task import module_path
from monai_usfm.networks.nets.vit import SIZES
from monai_usfm.networks.weights import (
    decoder_arguments,
    encoder_arguments,
    load_pretrained,
    read_checkpoint,
    source_layout,
)

__all__ = [
    "build_network",
    "card_path",
    "describe_network",
    "find_card",
    "load_network",
    "network_options",
    "read_card",
    "save_network",
    "write_card",
]

logger = logging.getLogger(__name__)

VERSION = 1
TASKS = ("encoder", "features", "pretraining", "segmentation", "classification", "enhancement")
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
    "mae": MaskedAutoencoder,
    "sparse": MaskedAutoencoder,
}
# Change no weight and no output of a trained network, so they are not on a card.
TRAINING_ONLY = ("dropout", "drop_path_rate")
# Published encoders trained at a larger size than this, such as DINOv2's 518 pixels, are used at about 224.
LARGEST = 256


# ---------------------------------------------------------------------------------------------------------------------
# Cards


def card_path(path: str | os.PathLike) -> Path:
    """Where the card of a weight file lies: the same name ending in ``.json``."""
    return Path(path).expanduser().with_suffix(".json")


def find_card(path: str | os.PathLike) -> dict[str, Any] | None:
    """The card beside a weight file, checked against it; None where there is none.

    Raises:
        ValueError: for a card that cannot be read, or that was written for other weights.
    """
    place = card_path(path)
    if not place.is_file():
        return None
    try:
        card = json.loads(place.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{place} is no readable card ({error}): write it again, or remove it.") from error
    if not isinstance(card, dict) or "card_version" not in card:
        return None  # some other file that happens to have this name
    if card["card_version"] > VERSION:
        raise ValueError(
            f"{place} is a card of version {card['card_version']}, this package reads up to {VERSION}: "
            "update monai_usfm."
        )
    _check_card(card, place)
    weights = Path(path).expanduser()
    if weights != place and weights.is_file() and card.get("sha256") not in (None, _sha256(weights)):
        raise ValueError(
            f"the card {place} does not belong to {weights}: it was written for other weights (another SHA-256). Copy "
            "the card that goes with them, or remove it and say by options what the network is."
        )
    return card


def read_card(path: str | os.PathLike) -> dict[str, Any]:
    """The card of a weight file.

    Args:
        path: the weights, or the card itself.

    Raises:
        FileNotFoundError: where there is none.
        ValueError: see :func:`find_card`.
    """
    card = find_card(path)
    if card is None:
        raise FileNotFoundError(f"{path} has no card: {card_path(path)} is missing, or no card of this package.")
    return card


def write_card(path: str | os.PathLike, card: Mapping[str, Any]) -> Path:
    """Write the card of weights that exist, with their SHA-256; an old card is replaced as a whole.

    Args:
        path: the weight file.
        card: ``task`` and ``network`` (see :func:`describe_network`), and any of ``class_names``, ``label_values``,
            ``temperature``, ``presence_threshold``, ``preprocessing``, ``data``, ``license``, ``scores``, ``start``.

    Raises:
        ValueError: for a card that contradicts itself. FileNotFoundError: where the weights are missing.
    """
    weights = Path(path).expanduser()
    if not weights.is_file():
        raise FileNotFoundError(f"no weights at {weights} for a card to describe.")
    with atomic_write(card_path(weights)) as part:
        part.write_text(_card_text(card, _sha256(weights), card_path(weights)), encoding="utf-8")
    return card_path(weights)


def _card_text(card: Mapping[str, Any], sha256: str, place: Path) -> str:
    full = {"card_version": VERSION, **card, "package": f"monai_usfm {monai_usfm.__version__}", "sha256": sha256}
    full = {name: value for name, value in full.items() if value is not None}
    _check_card(full, place)
    return json.dumps(full, indent=1, ensure_ascii=False) + "\n"


def _check_card(card: Mapping[str, Any], place: Path) -> None:
    """Raise ValueError unless the fields agree with each other."""
    problem = ""
    network = card.get("network")
    if card.get("task") not in TASKS:
        problem = f"its task is {card.get('task')!r}, expected one of {', '.join(TASKS)}"
    elif not isinstance(network, Mapping):
        problem = "it has no 'network', the options that build it"
    else:
        classes = network.get("num_classes")
        for name in ("class_names", "label_values"):
            # A single output, decided by a sigmoid, tells two classes apart.
            if card.get(name) is not None and classes is not None and len(card[name]) not in {classes, max(classes, 2)}:
                problem = f"it has {len(card[name])} {name} and {classes} classes"
    temperature = card.get("temperature", 1.0)
    if not isinstance(temperature, int | float) or not 0 < temperature < float("inf"):
        problem = f"its temperature is {temperature!r}, expected a positive number"
    presence = card.get("presence_threshold", 0.0)
    if not isinstance(presence, int | float) or not abs(presence) < float("inf"):
        problem = f"its presence_threshold is {presence!r}, expected a number"
    if problem:
        raise ValueError(f"the card {place} is unusable: {problem}.")


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest() if hasattr(hashlib, "file_digest") else _digest(file)


def _digest(file: Any) -> str:
    """``hashlib.file_digest`` for Python 3.10."""
    digest = hashlib.sha256()
    while block := file.read(1 << 20):
        digest.update(block)
    return digest.hexdigest()


# ---------------------------------------------------------------------------------------------------------------------
# Options


def network_options(
    task: str, pretrained: str | os.PathLike | Mapping[str, Any] | None = None, **options: Any
) -> dict[str, Any]:
    """Every option of a network, resolved: given ones, else those of ``pretrained``, else the defaults.

    The encoder's options come from the card or the tensors of ``pretrained``; those of the head only from a card of the
    same task. ``build_network(task, pretrained, **network_options(task, pretrained, ...))`` is
    ``build_network(task, pretrained, ...)``.

    Args:
        task: see :func:`build_network`.
        pretrained: see :func:`build_network`.
        options: see :func:`build_network`; None stands for "not given".

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
    source, theirs = _source_options(pretrained)
    merged = _encoder_options(given, source, pretrained)
    extra = {name: value for name, value in given.items() if name not in merged and name not in WIDTHS}
    same = theirs if theirs and theirs.get("task") == task else {}
    kept = {
        name: value for name, value in same.get("network", {}).items() if name not in ENCODER and name not in WIDTHS
    }
    if any(name in given and given[name] != kept.get(name) for name in ("head", "pool")):
        kept = {name: value for name, value in kept.items() if name == "num_classes"}
    merged |= {**DEFAULTS[task], **kept, **extra}
    _check_names(task, merged, extra)
    if task == "pretraining" and merged["objective"] == "mae" and not source:
        merged["pos_embed"] = given.get("pos_embed", "sincos")
        merged["layer_scale"] = given.get("layer_scale", 0)
    return merged


def _source_options(pretrained: Any) -> tuple[dict[str, Any], dict[str, Any] | None]:
    """The encoder's options in a file or state dict, and its card."""
    if not pretrained:
        return {}, None
    card = None if isinstance(pretrained, Mapping) else find_card(pretrained)
    if card is not None:
        return {name: value for name, value in card["network"].items() if name in ENCODER or name in WIDTHS}, card
    content = read_checkpoint(pretrained)
    options = _named(encoder_arguments(content))
    if source_layout(content) != "monai_usfm":
        options["in_channels"] = 1  # gray images, to which the weights are adapted exactly
        size = [patch * round(224 / patch) if n > LARGEST else n for n, patch in _axes(options)]
        options["spatial_size"] = size
    return options, None


def _axes(options: Mapping[str, Any]) -> list[tuple[int, int]]:
    return list(zip(options["spatial_size"], options["patch_size"], strict=True))


def _named(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of :class:`UltrasoundViT` -> options of the bundles: a named size where there is one."""
    widths = {name: arguments[name] for name in WIDTHS}
    named = [size for size in SIZES if _widths(size) == widths]
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


def _widths(network_size: str) -> dict[str, int]:
    width, heads = SIZES[network_size]
    return {"hidden_size": width, "mlp_dim": 4 * width, "num_layers": 12, "num_heads": heads}


def _encoder_options(given: Mapping[str, Any], source: Mapping[str, Any], pretrained: Any) -> dict[str, Any]:
    """All options of the encoder."""
    name = "the pretrained state dict" if isinstance(pretrained, Mapping) else f"pretrained {pretrained}"
    axes = {len(given[n]) for n in ("spatial_size", "patch_size") if isinstance(given.get(n), Sequence)}
    dims = given.get("spatial_dims", axes.pop() if len(axes) == 1 else source.get("spatial_dims", 2))
    if dims not in (2, 3):
        raise ValueError(f"spatial_dims must be 2 or 3, got {dims!r}.")
    if source and dims < source["spatial_dims"]:
        raise ValueError(f"{name} holds an encoder of volumes: leave spatial_dims out, or choose weights of images.")
    inflated = source and dims > source["spatial_dims"]
    merged: dict[str, Any] = {}
    for option, default in ENCODER.items():
        found = source.get(option)
        if option == "spatial_dims" or (inflated and option in ("spatial_size", "patch_size")):
            found = None
        merged[option] = given.get(option, default[dims] if found is None and isinstance(default, dict) else found)
        if merged[option] is None:
            merged[option] = default
    merged["spatial_dims"] = dims
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
    for size, patch in _axes(merged):
        if size % patch:
            near = [max(p, p * round(n / p)) for n, p in _axes(merged)]
            raise ValueError(
                f"spatial_size {merged['spatial_size']} is not a multiple of patch_size {merged['patch_size']}"
                f"{f' of {name}' if source and 'patch_size' not in given else ''}: use spatial_size {near}."
            )
    if merged["network_size"] == "custom":
        missing = [width for width in WIDTHS if width not in given and width not in source]
        if missing:
            raise ValueError(f"network_size custom needs {', '.join(missing)} too.")
    elif merged["network_size"] not in SIZES:
        raise ValueError(f"network_size must be one of {', '.join(SIZES)}, got {merged['network_size']!r}.")
    if merged["network_size"] == "custom" or any(width in given for width in WIDTHS):
        base = {} if merged["network_size"] == "custom" else _widths(merged["network_size"])
        merged |= {w: given.get(w, source.get(w, base.get(w))) for w in WIDTHS}
    if source:
        wanted, there = _encoder_widths(merged), _encoder_widths(source)
        for width in ("hidden_size", "mlp_dim"):
            if wanted[width] != there[width]:
                raise ValueError(
                    f"network_size {merged['network_size']} ({width} {wanted[width]}) contradicts {name}, an encoder "
                    f"of size {source['network_size']} ({width} {there[width]}): leave network_size out."
                )
    return merged


def _encoder_widths(options: Mapping[str, Any]) -> dict[str, int]:
    base = {} if options["network_size"] == "custom" else _widths(options["network_size"])
    return {**base, **{name: options[name] for name in WIDTHS if name in options}}


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


# ---------------------------------------------------------------------------------------------------------------------
# Building


def build_network(
    task: str, pretrained: str | os.PathLike | Mapping[str, Any] | None = None, **options: Any
) -> nn.Module:
    """A network for training, filled from ``pretrained`` as far as that goes.

    Args:
        task: ``"segmentation"``, ``"classification"``, ``"enhancement"``; ``"pretraining"``, the encoder with an
            ``objective`` (``"usfm"``, ``"mae"`` or ``"sparse"``, the former on visible tokens alone); ``"features"``,
            one embedding for an image; ``"encoder"``, the encoder alone.
        pretrained: weights to start from, own or published: see :func:`monai_usfm.networks.load_pretrained`. They say
            what the encoder is, and with a card of the same task what the head is, where no option does.
        options: ``network_size`` (``tiny``, ``small``, ``base``, or ``custom`` with ``hidden_size``, ``mlp_dim``,
            ``num_layers``, ``num_heads``), ``spatial_dims``, ``spatial_size``, ``patch_size``, ``in_channels``,
            ``pos_embed``, ``layer_scale`` (0 builds none), ``num_registers``, ``drop_path_rate``; those of the network
            of the task and of its head (``num_classes``, ``head``, ``pool``, ``width``, ...); and
            ``fold_normalization`` of :func:`~monai_usfm.networks.load_pretrained`. None stands for "not given".

    Returns:
        The network, with ``card`` (see :func:`describe_network`) and ``load_report``, what was loaded of
        ``pretrained``, or None.

    Raises:
        ValueError: see :func:`network_options` and :func:`monai_usfm.networks.load_pretrained`.
    """
    resolved = network_options(task, pretrained, **options)
    network: Any = _assemble(task, resolved, pretrained)
    network.load_report = None
    fields: dict[str, Any] = {}
    if pretrained:
        fold = options.get("fold_normalization")
        network.load_report = load_pretrained(network, pretrained, fold_normalization=fold)
        logger.info("weights to start from:\n%s", network.load_report)
        fields["start"] = _provenance(pretrained, network.load_report.layout)
    network.card = {**describe_network(network), **fields}
    return network


def _provenance(pretrained: Any, layout: str) -> dict[str, Any]:
    """What the card of a trained network says about the weights that training started from."""
    if isinstance(pretrained, Mapping):
        return {"file": "state dict", "layout": layout}
    card = find_card(pretrained) or {}
    kept: dict[str, Any] = {name: card[name] for name in ("sha256", "data", "license", "start") if name in card}
    return {"file": Path(pretrained).name, "layout": layout, **kept}


def _assemble(task: str, options: Mapping[str, Any], pretrained: Any = None) -> nn.Module:
    """The network of resolved options, with random weights."""
    rest = {name: value for name, value in options.items() if name not in ENCODER and name not in WIDTHS}
    encoder = usfm_vit(
        "tiny" if options["network_size"] == "custom" else options["network_size"],
        img_size=options["spatial_size"],
        patch_size=options["patch_size"],
        in_channels=options["in_channels"],
        spatial_dims=options["spatial_dims"],
        pos_embed=options["pos_embed"],
        layer_scale=options["layer_scale"] or None,
        num_registers=options["num_registers"],
        drop_path_rate=rest.pop("drop_path_rate", 0.0),
        **{name: options[name] for name in WIDTHS if name in options},
    )
    if task == "encoder":
        return encoder
    if task == "pretraining":
        objective = rest.pop("objective")
        settings: dict[str, Any] = {}
        if objective != "usfm" and pretrained:
            settings = decoder_arguments(pretrained) or {}
        if objective == "sparse":
            stop = RandomBandStop(stop_ratio=(0.25, 0.75))
            settings = {"decoder_num_layers": 4, "norm": "l1", "band_stop": stop, "frequency_weight": 0.1, **settings}
        return OBJECTIVES[objective](encoder, **{**settings, **rest})
    return NETWORKS[task](encoder, **rest)


def describe_network(network: nn.Module) -> dict[str, Any]:
    """``task`` and ``network`` of a card, as :func:`load_network` needs them, read from the network itself.

    Raises:
        TypeError: for a network of another package.
    """
    encoder = network if isinstance(network, UltrasoundViT) else getattr(network, "encoder", None)
    if not isinstance(encoder, UltrasoundViT):
        raise TypeError(f"{type(network).__name__} has no UltrasoundViT as its encoder, so no card can describe it.")
    block: Any = encoder.blocks[0]
    options = _named(
        {
            "img_size": encoder.img_size,
            "patch_size": encoder.patch_size,
            "in_channels": encoder.in_channels,
            "spatial_dims": encoder.spatial_dims,
            "hidden_size": encoder.hidden_size,
            "mlp_dim": block.mlp.fc1.out_features,
            "num_layers": encoder.num_layers,
            "num_heads": encoder.num_heads,
            "pos_embed": encoder.position,
            "layer_scale": 0.1 if block.gamma_1 is not None else 0,
            "num_registers": encoder.num_registers,
        }
    )
    if not encoder.num_registers:
        del options["num_registers"]
    tasks = [t for t in ("segmentation", "classification", "enhancement") if isinstance(network, NETWORKS[t])]
    if not tasks:
        return {"task": "pretraining", "network": options}
    options |= cast(Any, network).options()
    return {"task": tasks[0], "network": {k: v for k, v in options.items() if k not in TRAINING_ONLY}}


def load_network(path: str | os.PathLike, task: str | None = None, **options: Any) -> nn.Module:
    """The network of a weight file of this package, in evaluation mode.

    Its card says what it is. Weights without one load too, where ``task`` and options say it; the encoder is then read
    from the tensors.

    Args:
        path: weights, as :func:`save_network` writes them.
        task: what is expected; None takes what the card says. Weights of pretraining give ``"features"``, the encoder
            with one embedding for an image, or ``"encoder"``.
        options: as of :func:`build_network`; None stands for "as the card says".

    Returns:
        The network, with ``card``, the whole card.

    Raises:
        ValueError: for an option that contradicts the card (both are named), weights of another task, a card of other
            weights, a damaged file, NaN in the weights, or weights that do not fit.
        FileNotFoundError: where there is no such file.
    """
    state = read_checkpoint(path)
    card = find_card(path)
    if card is None:
        if task is None:
            raise ValueError(
                f"{path} has no card ({card_path(path).name} beside it), so what network it holds is not known: name "
                f"the task ({', '.join(TASKS)}) and the options of the network."
            )
        card = {}
        resolved = network_options(task, path, **options)
    else:
        wanted = task or {"pretraining": "features"}.get(card["task"], card["task"])
        kind = "pretraining" if wanted in ("features", "encoder", "pretraining") else wanted
        if kind != card["task"]:
            raise ValueError(
                f"{path} holds weights for {card['task']} (so says its card), not for {wanted}: choose other weights; "
                f"to train from these, give them as pretrained."
            )
        task = "features" if wanted == "pretraining" else wanted
        described = card["network"]
        if kind == "pretraining":  # a decoder beside the encoder is of no use here
            described = {name: value for name, value in described.items() if name in ENCODER or name in WIDTHS}
        resolved = network_options(task, path, **{**described, **_agree(path, card, options)})
    network: Any = _assemble(task, resolved)
    _fill(network, state, path, bool(card), only_encoder=task in ("encoder", "features"))
    network.card = {**describe_network(network), **card}
    return network.eval()


def _agree(path: str | os.PathLike, card: Mapping[str, Any], options: Mapping[str, Any]) -> dict[str, Any]:
    """The options that were given, if none contradicts the card."""
    given = {name: value for name, value in options.items() if value is not None}
    ours = card["network"]
    differing = []
    for name, value in given.items():
        there = ours.get(name, value)
        if name in ("spatial_size", "patch_size") and isinstance(value, int):
            value = [value] * len(there)
        if name == "layer_scale":
            value, there = bool(value), bool(there)
        if isinstance(value, nn.Module):  # a head or pool of the user's
            value = module_path(value)
        value = list(value) if isinstance(value, tuple) else value
        there = list(there) if isinstance(there, tuple) else there
        if value != there:
            differing.append(f"{name} {given[name]} (the card says {ours[name]})")
    for name in ("head", "pool"):
        if name not in given and str(ours.get(name)).startswith("module "):
            raise ValueError(f"{path} was trained with a {name} of its own, {ours[name]}: pass it as {name}.")
    if differing:
        raise ValueError(
            f"{', '.join(differing)} contradicts the card of {path}: leave the option out, or choose other weights."
        )
    return given


def _fill(network: nn.Module, state: Mapping[str, Any], path: Any, card: bool, only_encoder: bool) -> None:
    """Copy weights that must fit exactly, after having looked at all of them."""
    own = network.state_dict()
    prefix = "encoder." if only_encoder and isinstance(network, UltrasoundViT) else ""
    tensors = {
        str(name).removeprefix(prefix): value for name, value in state.items() if isinstance(value, torch.Tensor)
    }
    hint = "the file and its card do not belong together" if card else "give the options it was trained with"
    broken = [name for name, value in tensors.items() if value.is_floating_point() and not value.isfinite().all()]
    if broken:
        raise ValueError(
            f"{path} is unusable: {len(broken)} of its tensors hold NaN or infinite values ({broken[0]}, ...). Export "
            "the weights of an earlier checkpoint."
        )
    missing = [name for name in own if name not in tensors and not name.endswith(".native_grid")]
    surplus = [name for name in tensors if name not in own] if not only_encoder else []
    shapes = [name for name in own if name in tensors and tensors[name].shape != own[name].shape]
    if missing or surplus or shapes:
        what = [
            f"{len(names)} {kind} ({names[0]}{', ...' if len(names) > 1 else ''})"
            for kind, names in (("missing", missing), ("unexpected", surplus), ("of another shape", shapes))
            if names
        ]
        raise ValueError(
            f"{path} does not hold the weights of this {type(network).__name__}: {', '.join(what)}; {hint}."
        )
    try:
        network.load_state_dict({name: tensors[name] for name in own if name in tensors}, strict=False)
    except RuntimeError as error:  # a position table of another grid
        raise ValueError(f"{path} does not fit: {error}") from error


def save_network(
    path: str | os.PathLike,
    network: nn.Module,
    *,
    state_dict: Mapping[str, torch.Tensor] | None = None,
    half: bool = True,
    **fields: Any,
) -> Path:
    """Write weights and their card. At no moment do new weights lie beside a card that is taken for theirs.

    Args:
        path: the weight file, ``X.pt``; the card becomes ``X.json``.
        network: the network; what it is is read from it, further fields from its ``card``.
        state_dict: weights to write instead of the present ones, such as those of the best checkpoint.
        half: store floating tensors as float16; loading converts them back.
        fields: of the card, see :func:`write_card`; they replace those of ``network.card``. None removes one.

    Returns:
        ``path``.

    Raises:
        ValueError: for weights that are not finite, or low-rank updates that have not been merged.
    """
    path = Path(path).expanduser()
    state = {name: value.detach().cpu() for name, value in (state_dict or network.state_dict()).items()}
    if any(".parametrizations." in name for name in state):
        raise ValueError("the network has low-rank updates: call merge_lora before it is saved.")
    if half:
        state = {name: value.half() if value.is_floating_point() else value for name, value in state.items()}
    broken = [name for name, value in state.items() if value.is_floating_point() and not value.isfinite().all()]
    if broken:
        raise ValueError(
            f"nothing was written to {path}: {len(broken)} tensors hold NaN or infinite values ({broken[0]}, ...)."
        )
    card = {**getattr(network, "card", {}), **describe_network(network), **fields}
    # The weights are renamed first; a card left from before names another SHA-256 and is refused.
    with atomic_write(card_path(path)) as card_part, atomic_write(path) as part:
        torch.save(state, part)
        card_part.write_text(_card_text(card, _sha256(part), card_path(path)), encoding="utf-8")
    return path
