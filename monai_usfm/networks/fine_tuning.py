# Copyright (c) monai_usfm contributors
# SPDX-License-Identifier: Apache-2.0
"""What of an encoder is trained, and how fast: layer-wise learning rates, freezing, LoRA."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from typing import Any, TypeVar

import torch
import torch.nn as nn
from torch.nn.utils import parametrize

from monai_usfm.networks.nets.vit import UltrasoundViT, find_encoder

__all__ = ["LowRankUpdate", "apply_lora", "freeze", "layer_decay_groups", "merge_lora"]

Network = TypeVar("Network", bound=nn.Module)

_EMBEDDING = ("patch_embed.", "cls_token", "register_tokens", "pos_embed")


def layer_decay_groups(
    net: nn.Module, learning_rate: float, weight_decay: float = 0.05, layer_decay: float = 0.65
) -> list[dict[str, Any]]:
    """Parameter groups whose learning rate falls from the head to the embedding, for any ``torch.optim`` optimizer.

    Layer 0 is the embedding with its positions, layers 1 to ``L`` are the blocks, layer ``L + 1`` is all else: head,
    norm and, as in BEiT, the relative position tables. Layer ``i`` learns at
    ``learning_rate * layer_decay ** (L + 1 - i)``.
    One-dimensional parameters, biases and those of ``encoder.no_weight_decay()`` are not decayed. Frozen parameters are
    left out. Schedulers that scale the rate of each group (``LambdaLR``, MONAI's ``WarmupCosineSchedule``) keep the
    ratios. Bao et al. 2022, https://arxiv.org/abs/2106.08254.

    In a bundle: ``{"_target_": "AdamW", "params": {"_target_": "monai_usfm.networks.layer_decay_groups", "net":
    "@network", "learning_rate": "@learning_rate"}, "lr": "@learning_rate"}``.

    Args:
        net: a network that holds an :class:`UltrasoundViT`; with a ``layer_decay`` of 1, any network.
        learning_rate: rate of the head.
        weight_decay: decay of what is decayed.
        layer_decay: ratio between the rates of neighboring layers, in (0, 1]; 1 gives one rate.

    Returns:
        Groups with ``params``, ``lr``, ``weight_decay`` and ``layer``, in the order of ``layer``.

    Raises:
        ValueError: without an encoder to decay along, without a trainable parameter, or for a ratio outside (0, 1].
    """
    if not 0 < layer_decay <= 1:
        raise ValueError(f"layer_decay must be in (0, 1], got {layer_decay}.")
    prefix, spared, last = "", set[str](), 0
    if layer_decay < 1 or any(isinstance(module, UltrasoundViT) for module in net.modules()):
        prefix, encoder = find_encoder(net)
        spared = {prefix + name for name in encoder.no_weight_decay()}
        last = encoder.num_layers + 1
    groups: dict[tuple[int, bool], dict[str, Any]] = {}
    for name, parameter in net.named_parameters():
        if not parameter.requires_grad:
            continue
        layer = _layer_of(name[len(prefix) :], last) if last and name.startswith(prefix) else last
        decays = parameter.dim() > 1 and not name.endswith("bias") and name not in spared
        group = groups.setdefault(
            (layer, decays),
            {
                "params": [],
                "lr": learning_rate * layer_decay ** (last - layer),
                "weight_decay": weight_decay if decays else 0.0,
                "layer": layer,
            },
        )
        group["params"].append(parameter)
    if not groups:
        raise ValueError(f"{type(net).__name__} has no trainable parameter.")
    return [groups[key] for key in sorted(groups)]


def _layer_of(name: str, last: int) -> int:
    """Layer of a parameter of the encoder by its name."""
    block = re.match(r"blocks\.(\d+)\.", name)
    if block:
        return int(block.group(1)) + 1
    return 0 if name.startswith(_EMBEDDING) else last


def freeze(net: Network) -> Network:
    """Exclude the encoder from training (linear probe).

    It stays in evaluation mode in the task networks of this package, whatever ``net.train()`` is told.

    Args:
        net: an encoder or a network that holds one; changed in place.

    Returns:
        ``net``, so that a config can wrap it.
    """
    _, encoder = find_encoder(net)
    encoder.requires_grad_(False).eval()
    return net


class LowRankUpdate(nn.Module):
    """Parametrisation ``W -> W + alpha / rank * B A`` of a linear layer; ``B`` starts at zero.

    Args:
        out_features: rows of ``W``.
        in_features: columns of ``W``.
        rank: rows of ``A`` and columns of ``B``.
        alpha: scale of the update is ``alpha / rank``.
    """

    def __init__(self, out_features: int, in_features: int, rank: int, alpha: float) -> None:
        super().__init__()
        self.lora_a = nn.Parameter(torch.empty(rank, in_features))
        self.lora_b = nn.Parameter(torch.zeros(out_features, rank))
        self.scale = alpha / rank
        nn.init.kaiming_uniform_(self.lora_a, a=math.sqrt(5))

    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        """``(out, in) -> (out, in)``."""
        return weight + self.scale * (self.lora_b @ self.lora_a)


def apply_lora(
    net: Network, rank: int = 8, alpha: float = 16.0, targets: Sequence[str] = ("qkv", "proj", "fc1", "fc2")
) -> Network:
    """Freeze the encoder and train low-rank updates of its linear layers.

    Hu et al. 2022, https://arxiv.org/abs/2106.09685.

    Updates are parametrisations of PyTorch, not the layers that ``peft`` puts in place of ``nn.Linear``: attention here
    uses ``qkv.weight`` together with BEiT's two separate biases and never calls ``qkv`` itself, so that ``peft``'s
    update of it would be ignored without a word. A parametrised weight is right wherever it is used. Load
    pretrained weights before; call :func:`merge_lora` before TorchScript or ONNX export.

    Args:
        net: an encoder or a network that holds one; changed in place. What is outside the encoder trains as before.
        rank: rank of the updates.
        alpha: updates are scaled by ``alpha / rank``.
        targets: names of the linear layers within a block.

    Returns:
        ``net``, so that a config can wrap it.

    Raises:
        ValueError: for a rank below 1, a target that no block has, or an encoder that has updates already.
    """
    if rank < 1:
        raise ValueError(f"rank must be at least 1, got {rank}.")
    _, encoder = find_encoder(net)
    if _updated_layers(encoder):
        raise ValueError("the encoder has LoRA updates already: merge them with merge_lora first.")
    used = encoder.blocks[: max(getattr(net, "indices", [encoder.num_layers - 1])) + 1]  # others get no gradient
    layers = {name: module for name, module in used.named_modules() if isinstance(module, nn.Linear)}
    unknown = set(targets) - {name.rpartition(".")[2] for name in layers}
    if unknown:
        raise ValueError(f"no linear layer of a block is called {', '.join(sorted(unknown))}.")
    freeze(encoder)
    for name, layer in layers.items():
        if name.rpartition(".")[2] in targets:
            update = LowRankUpdate(layer.out_features, layer.in_features, rank, alpha).to(layer.weight)
            parametrize.register_parametrization(layer, "weight", update)
    return net


def merge_lora(net: Network) -> Network:
    """Write the updates into the weights they update: same outputs, parameter names as before, nothing of LoRA left.

    Args:
        net: a network after :func:`apply_lora`; changed in place. Without updates nothing happens.

    Returns:
        ``net``.
    """
    for layer in _updated_layers(net):
        parametrize.remove_parametrizations(layer, "weight", leave_parametrized=True)
    return net


def require_merged(names: Iterable[str]) -> None:
    """Refuse, by a ValueError, a state dict of these names that has low-rank updates: no other program knows them."""
    if any(".parametrizations." in name for name in names):
        raise ValueError("the network has low-rank updates: call merge_lora before it is saved.")


def _updated_layers(net: nn.Module) -> list[nn.Module]:
    return [
        module
        for module in net.modules()
        if parametrize.is_parametrized(module, "weight")
        and any(isinstance(p, LowRankUpdate) for p in module.parametrizations["weight"])  # type: ignore[index]
    ]
