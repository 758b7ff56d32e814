# Copyright (c) monai_usfm contributors
# SPDX-License-Identifier: Apache-2.0
"""Clipping with and without accumulation; a stop on a loss that is no number."""

from __future__ import annotations

import warnings

import pytest
import torch
from ignite.engine import Engine, Events
from monai.engines import SupervisedTrainer

from monai_usfm.handlers import FiniteLoss, GradientClip
from monai_usfm.handlers.gradient import loss_of


def trained_weight(targets: list[float], accumulation: int, max_norm: float | None, handlers=()) -> torch.Tensor:
    """A weight after one epoch of plain gradient descent on ``mean((w - target) ** 2)``, one target a batch."""
    network = torch.nn.Linear(1, 3, bias=False)
    torch.nn.init.zeros_(network.weight)
    SupervisedTrainer(
        device=torch.device("cpu"),
        max_epochs=1,
        train_data_loader=[{"image": torch.ones(1, 1), "label": torch.full((1, 3), t)} for t in targets],
        network=network,
        optimizer=torch.optim.SGD(network.parameters(), lr=1.0),
        loss_function=torch.nn.MSELoss(),
        accumulation_steps=accumulation,
        decollate=False,
        train_handlers=[*([GradientClip(network, max_norm)] if max_norm else []), *handlers],
    ).run()
    return network.weight.detach()


def test_step_has_the_maximum_norm_and_the_direction_of_the_gradient() -> None:
    weight = trained_weight([30.0], 1, 0.5)
    assert weight.norm().item() == pytest.approx(0.5, rel=1e-5)
    assert torch.allclose(weight, weight[0].expand_as(weight))  # the gradient was the same along every axis


def test_small_gradient_is_left_alone() -> None:
    assert torch.equal(trained_weight([0.1], 1, 100.0), trained_weight([0.1], 1, None))


def test_accumulated_gradient_is_clipped_once_as_a_whole() -> None:
    # Two opposite batches cancel: clipped one by one before summing, the larger would not win as it does here.
    gradient = (-2 * 30.0 / 3 + 2 * 24.0 / 3) / 2  # per weight, mean over the two batches
    norm = abs(gradient) * 3**0.5
    weight = trained_weight([30.0, -24.0], 2, 0.5)
    assert norm > 0.5
    assert weight.norm().item() == pytest.approx(0.5, rel=1e-5)
    assert (weight > 0).all()
    assert torch.allclose(trained_weight([30.0, -24.0], 2, 10.0), torch.full((3, 1), -gradient), rtol=1e-5)


def test_flush_at_the_end_of_an_epoch_is_clipped_too() -> None:
    # Three batches, steps of two: the third is flushed alone; both steps have norm 0.5, the second turns back.
    weight = trained_weight([30.0, 30.0, -30.0], 2, 0.5)
    assert weight.norm().item() == pytest.approx(0.0, abs=1e-5)


def test_a_loader_without_a_length_is_clipped_as_the_trainer_steps() -> None:
    network = torch.nn.Linear(1, 3, bias=False)
    torch.nn.init.zeros_(network.weight)
    batches = ({"image": torch.ones(1, 1), "label": torch.full((1, 3), t)} for t in (30.0, 30.0))
    SupervisedTrainer(
        device=torch.device("cpu"),
        max_epochs=1,
        train_data_loader=batches,
        network=network,
        optimizer=torch.optim.SGD(network.parameters(), lr=1.0),
        loss_function=torch.nn.MSELoss(),
        decollate=False,
        train_handlers=[GradientClip(network, 0.5)],
    ).run()
    assert network.weight.norm().item() == pytest.approx(1.0, abs=1e-5)


@pytest.mark.parametrize("norm", [0.0, -1.0])
def test_norm_that_is_not_positive_is_refused(norm: float) -> None:
    with pytest.raises(ValueError, match=str(norm)):
        GradientClip(torch.nn.Linear(1, 1), norm)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_loss_that_is_no_number_stops_before_the_weights_change(bad: float) -> None:
    seen: list[torch.Tensor] = []

    class Look:  # after the guard: what the weights are when it stops
        def attach(self, engine: Engine) -> None:
            engine.add_event_handler(Events.EXCEPTION_RAISED, self)

        def __call__(self, engine: Engine, error: Exception) -> None:
            seen.append(engine.network.weight.detach().clone())
            raise error

    with pytest.raises(FloatingPointError, match=r"at iteration 2, epoch 1.*learning_rate"):
        trained_weight([1.0, bad, 1.0], 1, None, [FiniteLoss(), Look()])
    assert torch.equal(seen[0], trained_weight([1.0], 1, None))


class NotANumber(torch.autograd.Function):
    """Identity whose gradient is NaN, as that of a square root at 0 may be: the loss is finite."""

    @staticmethod
    def forward(_, x):
        return x.clone()

    @staticmethod
    def backward(_, grad):
        return grad * float("nan")


def test_gradient_that_is_no_number_stops_before_the_weights_change_and_names_the_files() -> None:
    network = torch.nn.Linear(1, 3, bias=False)
    before = network.weight.detach().clone()
    trainer = SupervisedTrainer(
        device=torch.device("cpu"),
        max_epochs=1,
        train_data_loader=[{"image": torch.ones(1, 1), "label": torch.ones(1, 3), "file": ["a/bad.png"]}],
        network=network,
        optimizer=torch.optim.SGD(network.parameters(), lr=1.0),
        loss_function=lambda y, target: torch.nn.functional.mse_loss(NotANumber.apply(y), target),
        decollate=False,
        train_handlers=[FiniteLoss(), GradientClip(network, 1.0)],
    )
    with pytest.raises(FloatingPointError, match=r"gradient is nan though the loss is finite.*a/bad\.png"):
        trainer.run()
    assert torch.equal(network.weight, before)


def test_noting_the_loss_of_a_step_does_not_warn() -> None:
    engine = Engine(lambda _, batch: {"loss": torch.ones(1, requires_grad=True).sum() * batch})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        notes: list[float] = []
        engine.add_event_handler(Events.ITERATION_COMPLETED, lambda e: notes.append(loss_of(e)))
        engine.run([2.0, 3.0])
    assert notes == [2.0, 3.0]
