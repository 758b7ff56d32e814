# Copyright (c) monai_usfm contributors
# SPDX-License-Identifier: Apache-2.0
"""Guards of a training step: gradient clipping and a stop on a loss that is not a number."""

from __future__ import annotations

import math

import torch
from ignite.engine import Engine
from monai.engines.utils import IterationEvents

__all__ = ["FiniteLoss", "GradientClip", "loss_of"]


def loss_of(engine: Engine, name: str = "loss") -> float:
    """The loss in the output of a trainer, decollated or not."""
    output = engine.state.output
    loss = (output[0] if isinstance(output, list) else output)[name]
    return float(loss.detach() if isinstance(loss, torch.Tensor) else loss)


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
                f"the loss is {loss} at iteration {engine.state.iteration}, epoch {engine.state.epoch}: lower "
                "learning_rate, use amp fp32, or look for unusual images in this batch. The last checkpoint is intact."
            )


class GradientClip:
    """Scales the gradient to a maximum norm before each optimiser step; knows the trainer's loss scaling and
    accumulation.

    Args:
        network: whose gradients are clipped.
        max_norm: largest L2 norm over all parameters.

    Raises:
        ValueError: unless ``max_norm`` is positive.
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
        done = (engine.state.iteration - 1) % length + 1
        if done % every != 0 and done != length:
            return  # gradients are still being summed
        if engine.amp and engine.scaler is not None:
            engine.scaler.unscale_(engine.optimizer)
        torch.nn.utils.clip_grad_norm_(self.network.parameters(), self.max_norm)
