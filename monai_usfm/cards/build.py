# Copyright (c) monai_usfm contributors
# SPDX-License-Identifier: Apache-2.0
"""A network from its options, and its options from a network."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import torch.nn as nn

from monai_usfm.cards.card import NO_CLASSES, find_card
from monai_usfm.cards.options import (
    ENCODER,
    NETWORKS,
    OBJECTIVES,
    WIDTHS,
    named_options,
    network_options,
    other_outputs,
)
from monai_usfm.networks.nets import RandomBandStop, UltrasoundViT, usfm_vit
from monai_usfm.networks.weights import LoadReport, decoder_arguments, load_pretrained, read_checkpoint
from monai_usfm.networks.weights.load import bare
from monai_usfm.networks.weights.read import names_file

__all__ = ["assemble", "build_network", "describe_network"]

logger = logging.getLogger(__name__)

# Change no weight and no output of a trained network, so they are not on a card.
TRAINING_ONLY = ("dropout", "drop_path_rate")


def build_network(
    task: str, pretrained: str | os.PathLike | Mapping[str, Any] | None = None, **options: Any
) -> nn.Module:
    """A network for training, filled from ``pretrained`` as far as that goes.

    Args:
        task: ``"segmentation"``, ``"classification"``, ``"enhancement"``; ``"pretraining"``, the encoder with an
            ``objective`` (``"usfm"``; ``"pyramid"``, the same through the decoder of the segmenter; ``"mae"``;
            ``"sparse"``, USFM's on visible tokens alone); ``"features"``, one embedding for an image; ``"encoder"``,
            the encoder alone.
        pretrained: weights to start from, own or published: see :func:`monai_usfm.networks.load_pretrained`. They say
            what the encoder is, and with a card of the same task what the head is, where no option does.
        options: ``network_size`` (``tiny``, ``small``, ``base``, or ``custom`` with ``hidden_size``, ``mlp_dim``,
            ``num_layers``, ``num_heads``), ``spatial_dims``, ``spatial_size``, ``patch_size``, ``in_channels``,
            ``pos_embed``, ``layer_scale`` (0 builds none), ``num_registers``, ``drop_path_rate``; those of the network
            of the task and of its head (``num_classes``, ``head``, ``pool``, ``width``, ...);
            ``fold_normalization`` of :func:`~monai_usfm.networks.load_pretrained`; and ``landmarks``, ``values`` or
            ``prompts``, as the card shall have them: an output layer of another meaning than that on the card of
            ``pretrained`` starts anew, and without ``prompts`` the image's channel is taken alone. None stands for
            "not given".

    Returns:
        The network, with ``card`` (see :func:`describe_network`) and ``load_report``, what was loaded of
        ``pretrained``, or None.

    Raises:
        ValueError: see :func:`network_options` and :func:`monai_usfm.networks.load_pretrained`.
    """
    resolved = network_options(task, pretrained, **options)
    network: Any = assemble(task, resolved, pretrained)
    network.load_report = None
    fields: dict[str, Any] = {}
    if pretrained:
        network.load_report = _load(network, pretrained, task, resolved, **options)
        logger.info("weights to start from:\n%s", network.load_report)
        fields["start"] = _provenance(pretrained, network.load_report.layout)
    network.card = {**describe_network(network), **fields}
    return network


@names_file("pretrained")
def _load(network: nn.Module, pretrained: Any, task: str, resolved: Mapping[str, Any], **options: Any) -> LoadReport:
    """Fill a network with what has the same meaning in weights to start from, by their card."""
    card = None if isinstance(pretrained, Mapping) else find_card(pretrained)
    source, notes = pretrained, list[str]()
    if card and card.get("prompts") and not options.get("prompts"):
        source = without_prompts(read_checkpoint(source), card)
        notes.append(f"the channels of prompts ({', '.join(card['prompts'])}) were left out.")
    if card and "num_classes" in resolved and other_outputs(card, **{n: options.get(n) for n in NO_CLASSES}):
        wider = assemble(task, {**resolved, "num_classes": resolved["num_classes"] + 1}).state_dict()
        outputs = {name for name, tensor in network.state_dict().items() if tensor.shape != wider[name].shape}
        tensors = read_checkpoint(source)
        if other := [name for name in tensors if name in outputs]:
            source = {name: tensor for name, tensor in tensors.items() if name not in outputs}
            notes.append(f"the outputs of the source have another meaning: {', '.join(other)} started anew.")
    report = load_pretrained(network, source, fold_normalization=options.get("fold_normalization"))
    report.notes += notes
    return report


def without_prompts(state: Mapping[str, Any], card: Mapping[str, Any]) -> dict[str, Any]:
    """Weights of a network with channels of prompts -> those of the gray network that it is where no prompt is given.

    The image comes before the prompts, so what it goes through is the first part of each tensor.
    """
    gray = assemble(card["task"], network_options(card["task"], **{**card["network"], "in_channels": 1})).state_dict()
    return {n: t[tuple(map(slice, gray[n].shape))] if n in gray else t for n, t in state.items()}


def _provenance(pretrained: Any, layout: str) -> dict[str, Any]:
    """What the card of a trained network says about the weights that training started from; not what those began with:
    their own card does, by its SHA-256."""
    if isinstance(pretrained, Mapping):
        return {"file": "state dict", "layout": layout}
    card = find_card(pretrained) or {}
    kept: dict[str, Any] = {name: card[name] for name in ("sha256", "data", "license") if name in card}
    return {"file": Path(pretrained).name, "layout": layout, **kept}


def assemble(task: str, options: Mapping[str, Any], pretrained: Any = None) -> nn.Module:
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
        settings: dict[str, Any] = {"decoder": "pyramid"} if objective == "pyramid" else {}
        if objective in ("mae", "sparse") and pretrained:
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
    network = bare(network)
    encoder = network if isinstance(network, UltrasoundViT) else getattr(network, "encoder", None)
    if not isinstance(encoder, UltrasoundViT):
        raise TypeError(f"{type(network).__name__} has no UltrasoundViT as its encoder, so no card can describe it.")
    block: Any = encoder.blocks[0]
    options = named_options(
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
