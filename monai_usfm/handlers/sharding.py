# Copyright (c) monai_usfm contributors
# SPDX-License-Identifier: Apache-2.0
"""Weights, gradients and optimizer spread over processes (PyTorch's FSDP2) in MONAI's engines.

Checkpoints hold whole tensors, as one process writes and reads them: any number of processes goes on with them.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from ignite.engine import Engine, Events

from monai_usfm.networks.blocks import TransformerBlock

__all__ = ["gather", "scatter", "shard", "validate_whole"]


def shard(network: torch.nn.Module) -> torch.nn.Module:
    """Spread a network in place, each transformer block by itself; an optimizer takes its parameters afterwards."""
    from torch.distributed.fsdp import fully_shard

    mesh = dist.init_device_mesh(next(network.parameters()).device.type, (dist.get_world_size(),))
    for block in [module for module in network.modules() if isinstance(module, TransformerBlock)]:
        fully_shard(block, mesh=mesh)
    fully_shard(network, mesh=mesh)
    return network


def gather(state: Any) -> Any:
    """A state with whole tensors on the CPU instead of parts, in the first process; all must call it."""
    if isinstance(state, dict):
        return type(state)((key, gather(value)) for key, value in state.items())
    if not hasattr(state, "full_tensor"):
        return state
    whole = state.full_tensor()
    return whole.detach().cpu() if dist.get_rank() == 0 else None


def scatter(state: dict[str, Any], thing: Any) -> dict[str, Any]:
    """Parts of the whole tensors of ``state`` that ``thing``, a network or its optimizer, holds in this process."""
    if isinstance(thing, torch.optim.Optimizer):
        held = dict(enumerate(parameter for group in thing.param_groups for parameter in group["params"]))
        moments = {n: {k: _part(v, held.get(n)) for k, v in entry.items()} for n, entry in state["state"].items()}
        return {**state, "state": moments}
    own = thing.state_dict() if isinstance(thing, torch.nn.Module) else {}
    return {name: _part(value, own.get(name)) for name, value in state.items()}


def _part(value: Any, like: Any) -> Any:
    if not hasattr(like, "full_tensor") or value.shape != like.shape:  # such as the number of steps
        return value
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(value.to(like.device), like.device_mesh, like.placements)


def validate_whole(network: torch.nn.Module, evaluator: Engine) -> None:
    """Hold the whole of a spread network in every process while ``evaluator`` runs.

    Processes have different numbers of images there, and the first alone draws. Other networks are left alone.
    """
    parts: list[Any] = [module for module in network.modules() if hasattr(module, "unshard")]

    def hold(_: Engine, whole: bool) -> None:
        for part in parts:
            part.set_reshard_after_forward(not whole, recurse=False)
            part.unshard() if whole else part.reshard()

    evaluator.add_event_handler(Events.STARTED, hold, True)
    evaluator.add_event_handler(Events.COMPLETED, hold, False)
