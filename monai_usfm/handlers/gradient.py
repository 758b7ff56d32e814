# Copyright (c) monai_usfm contributors
# SPDX-License-Identifier: Apache-2.0
"""Guards of a training step: gradient clipping, and a stop on a loss or gradient that is not a number."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from ignite.engine import Engine
from monai.engines.utils import IterationEvents

__all__ = ["FiniteLoss", "GradientClip", "batch_files", "loss_of", "require_finite"]

ADVICE = "lower learning_rate, use amp fp32, or look for unusual images among"


def loss_of(engine: Engine) -> float:
    """The loss in the output of a trainer, decollated or not."""
    output = engine.state.output
    loss = (output[0] if isinstance(output, list) else output)["loss"]
    return float(loss.detach() if isinstance(loss, torch.Tensor) else loss)


def batch_files(engine: Engine) -> str:
    """Names of the files in the batch at hand, for a message; items name theirs under ``file``."""
    batch = engine.state.batch
    names: Any = batch.get("file") if isinstance(batch, Mapping) else None
    return ", ".join(map(str, names)) if isinstance(names, list | tuple) else "the images of this batch"


def require_finite(state: Mapping[str, Any], what: str) -> None:
    """Raise unless every number of a state dict, nested ones included, is finite.

    Raises:
        FloatingPointError: naming the first entry that is not.
    """
    for name, value in state.items():
        if isinstance(value, Mapping):
            require_finite({f"{name}.{key}": entry for key, entry in value.items()}, what)
        elif isinstance(value, torch.Tensor) and value.is_floating_point() and not torch.isfinite(value).all():
            raise FloatingPointError(f"{name} of {what} holds NaN or infinite values.")


class FiniteLoss:
    """Stops training when the loss is NaN or infinite, before it reaches the weights.

    Raises:
        FloatingPointError: naming the iteration.
    """

    def attach(self, engine: Engine) -> None:
        engine.add_event_handler(IterationEvents.LOSS_COMPLETED, self)

    def __call__(self, engine: Engine) -> None:
        loss = loss_of(engine)
        if not math.isfinite(loss):
            raise FloatingPointError(
                f"the loss is {loss} at iteration {engine.state.iteration}, epoch {engine.state.epoch}: {ADVICE} "
                f"{batch_files(engine)}. Weights and checkpoints are as before this step."
            )


class GradientClip:
    """Scales the gradient to a maximum norm before each optimizer step; knows the trainer's loss scaling and
    accumulation. A gradient that is not a number stops the training before it reaches the weights.

    Args:
        network: whose gradients are clipped.
        max_norm: largest L2 norm over all parameters.

    Raises:
        ValueError: unless ``max_norm`` is positive.
        FloatingPointError: during the run, for a gradient with NaN or infinite values. Under fp16 loss scaling these
            are part of the search for a scale, and the scaler leaves the step out.
    """

    def __init__(self, network: torch.nn.Module, max_norm: float) -> None:
        if max_norm <= 0:
            raise ValueError(f"max_norm must be positive, got {max_norm}; leave the handler out to clip nothing.")
        self.network = network
        self.max_norm = max_norm

    def attach(self, engine: Engine) -> None:
        engine.add_event_handler(IterationEvents.BACKWARD_COMPLETED, self)

    def __call__(self, engine: Engine) -> None:
        length, every = engine.state.epoch_length, engine.accumulation_steps
        done = engine.state.iteration if length is None else (engine.state.iteration - 1) % length + 1
        if done % every != 0 and done != length:  # as MONAI's trainer steps, with a loader without a length too
            return  # gradients are still being summed
        scaled = engine.amp and engine.scaler is not None and engine.scaler.is_enabled()
        if scaled:
            engine.scaler.unscale_(engine.optimizer)
        norm: Any = torch.nn.utils.clip_grad_norm_(self.network.parameters(), self.max_norm)
        norm = norm.full_tensor() if hasattr(norm, "full_tensor") else norm  # of a network spread over processes
        if not scaled and not torch.isfinite(norm):
            raise FloatingPointError(
                f"the gradient is {float(norm)} though the loss is finite, at iteration {engine.state.iteration}, "
                f"epoch {engine.state.epoch}: {ADVICE} {batch_files(engine)}. Weights and checkpoints are as before "
                "this step."
            )
