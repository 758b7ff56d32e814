# Copyright (c) monai_usfm contributors
# SPDX-License-Identifier: Apache-2.0
"""Weights and their card, from a file to a network and back."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn as nn

from monai_usfm.cards.build import assemble, describe_network, without_prompts
from monai_usfm.cards.card import NO_CLASSES, TASKS, card_path, card_text, find_card, full_scale_of, sha256_of
from monai_usfm.cards.options import encoder_options, network_options
from monai_usfm.files import atomic_write
from monai_usfm.networks.blocks.position import RelativePositionBias, TokenPositions
from monai_usfm.networks.fine_tuning import require_merged
from monai_usfm.networks.nets import UltrasoundViT
from monai_usfm.networks.nets.task import module_path
from monai_usfm.networks.weights import halved, read_checkpoint
from monai_usfm.networks.weights.adapt import fit_grid
from monai_usfm.networks.weights.layouts import RESTORED
from monai_usfm.networks.weights.load import bare
from monai_usfm.networks.weights.read import names_file

__all__ = ["average_networks", "load_network", "save_network"]

logger = logging.getLogger(__name__)

OUTPUTS = ("class_names", "label_values", *NO_CLASSES)
"""Fields of a card that say what the outputs mean."""
OUTDATED = ("temperature", "calibration", "presence_threshold", "scores", "recipe", "sha256")
"""Fields that hold for the very weights alone."""


@names_file("path")
def load_network(path: str | os.PathLike, task: str | None = None, **options: Any) -> nn.Module:
    """The network of a weight file of this package, in evaluation mode.

    Its card says what it is. Weights without one load too, where ``task`` and options say it; the encoder is then read
    from the tensors.

    Args:
        path: weights, as :func:`save_network` writes them.
        task: what is expected; None takes what the card says. Weights of every task give ``"features"``, the encoder
            with one embedding for an image, or ``"encoder"``; those of pretraining give nothing else.
        options: as of :func:`build_network`; None stands for "as the card says". Another ``spatial_size`` than the
            card's is no contradiction: positions are resized.

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
        if kind != card["task"] and wanted not in ("features", "encoder"):
            raise ValueError(
                f"{path} holds weights for {card['task']} (so says its card), not for {wanted}: choose other weights; "
                f"to train from these, give them as pretrained."
            )
        task = "features" if wanted == "pretraining" else wanted
        described = card["network"]
        if kind == "pretraining":  # a decoder beside the encoder is of no use here
            described = encoder_options(described)
        if kind != card["task"]:
            if card.get("prompts"):  # an image alone has none
                state, described = without_prompts(state, card), {**described, "in_channels": 1}
                card = {name: value for name, value in card.items() if name != "prompts"}
            card = {**card, "task": task, "network": described}
        resolved = network_options(task, **{**described, **_agree(path, card, options)})
    network: Any = assemble(task, resolved)
    resizable = options.get("spatial_size") is not None
    _fill(network, state, path, bool(card), only_encoder=task in ("encoder", "features"), resizable=resizable)
    said, size = card.get("network", resolved)["spatial_size"], resolved["spatial_size"]
    if said != size:
        logger.info("%s: positions resized from spatial_size %s of the card to %s.", path, said, size)
        card = {**card, "network": {**card["network"], "spatial_size": size}}
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
        if name == "spatial_size" and len(value) == len(there):
            continue  # positions are resized
        if name == "layer_scale":
            value, there = bool(value), bool(there)
        if isinstance(value, nn.Module):  # a head or pool of the user's
            value = module_path(value)
        value = list(value) if isinstance(value, tuple) else value
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


def _fill(
    network: nn.Module, state: Mapping[str, Any], path: Any, card: bool, only_encoder: bool, resizable: bool
) -> None:
    """Copy weights that must fit exactly, but for the grid of positions, after having looked at all of them."""
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
    for place, module in network.named_modules() if resizable else ():
        grid = tensors.get(f"{place}.native_grid")
        if grid is not None and isinstance(module, RelativePositionBias | TokenPositions):
            name = f"{place}.{next(iter(dict(module.named_parameters())))}"
            relative = isinstance(module, RelativePositionBias)
            tensors[name] = fit_grid(tensors[name], grid.tolist(), module.grid, relative)
            tensors[f"{place}.native_grid"] = torch.tensor(module.grid)
    missing = [name for name in own if name not in tensors and not name.endswith(".native_grid")]
    surplus = [n for n in tensors if n not in own and not n.startswith(RESTORED)] if not only_encoder else []
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
    path, network = Path(path).expanduser(), bare(network)
    state = {name: value.detach().cpu() for name, value in (state_dict or network.state_dict()).items()}
    require_merged(state)
    if half:
        state = halved(state)
    broken = [name for name, value in state.items() if value.is_floating_point() and not value.isfinite().all()]
    if broken:
        raise ValueError(
            f"nothing was written to {path}: {len(broken)} tensors hold NaN or infinite values ({broken[0]}, ...)."
        )
    card = {**getattr(network, "card", {}), **describe_network(network), **fields}
    # The weights are renamed first; a card left from before names another SHA-256 and is refused.
    with atomic_write(card_path(path)) as card_part, atomic_write(path) as part:
        torch.save(state, part)
        card_part.write_text(card_text(card, sha256_of(part), card_path(path)), encoding="utf-8")
    return path


def average_networks(paths: Sequence[str | os.PathLike]) -> nn.Module:
    """The network whose weights are the mean of those of several trainings from one start.

    Trainings that part from a common start stay in one valley, where the mean is often better than any of them and as
    fast. Wortsman et al. 2022 (model soups), https://arxiv.org/abs/2203.05482.

    Args:
        paths: weights with their cards, two or more of the same network.

    Returns:
        The network in evaluation mode. Its ``card`` is that of the first without what only holds for it (temperature,
        calibration, presence threshold, scores), and with ``averaged``, the SHA-256 of each.

    Raises:
        ValueError: for a single file, and networks, classes or tasks that differ.
    """
    if len(paths) < 2:
        raise ValueError(f"a mean needs two weight files or more, got {len(paths)}.")
    networks: list[Any] = [load_network(path) for path in paths]
    first = networks[0]
    for path, other in zip(paths, networks, strict=True):
        if full_scale_of(other.card) != full_scale_of(first.card):
            raise ValueError(f"{path} and {paths[0]} saw images with another value of white: they have no mean.")
        for name in ("task", "network", *OUTPUTS):
            here, there = other.card.get(name), first.card.get(name)
            if here != there and None not in (here, there):
                raise ValueError(f"{path} and {paths[0]} differ in {name}: only trainings of one network have a mean.")
    states = [network.state_dict() for network in networks]
    mean = {
        name: torch.stack([state[name] for state in states]).mean(0) if value.is_floating_point() else value
        for name, value in states[0].items()
    }
    first.load_state_dict(mean)
    kept = {name: value for name, value in first.card.items() if name not in OUTDATED}
    first.card = {**kept, "averaged": [sha256_of(Path(path).expanduser()) for path in paths]}
    return first
