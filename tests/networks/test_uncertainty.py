# Copyright (c) monai_usfm contributors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest
import torch
from torch import nn

from monai_usfm.networks import TemperatureScaling
from monai_usfm.networks.uncertainty import predictive_entropy


def test_entropy_is_zero_for_certainty_and_one_for_ignorance():
    certain, ignorant = torch.tensor([[1.0, 0.0, 0.0]]), torch.full((1, 3), 1 / 3)
    assert predictive_entropy(certain).item() == 0
    assert predictive_entropy(ignorant).item() == pytest.approx(1)
    assert predictive_entropy(torch.tensor([[0.5]])).item() == pytest.approx(1)


def calibrated_sample(temperature, classes, shape=(4000,)):
    """Labels drawn from the probabilities of logits, and those logits made overconfident by ``temperature``."""
    generator = torch.Generator().manual_seed(0)
    logits = 2 * torch.randn(*shape, max(classes, 1), generator=generator)
    if classes == 1:
        labels = torch.bernoulli(logits[..., 0].sigmoid(), generator=generator)
    else:
        labels = torch.multinomial(logits.softmax(-1).flatten(0, -2), 1, generator=generator).reshape(shape)
    return (temperature * logits).movedim(-1, 1), labels.long()


@pytest.mark.parametrize("classes", [1, 2, 5])
@pytest.mark.parametrize("temperature", [0.5, 3.0])
def test_fit_recovers_a_known_temperature(classes, temperature):
    logits, labels = calibrated_sample(temperature, classes)
    fitted = TemperatureScaling().fit(logits, labels)
    assert fitted.temperature.item() == pytest.approx(temperature, rel=0.07)


def test_fit_lowers_the_likelihood_loss_and_keeps_the_arg_max_of_pixels():
    logits, labels = calibrated_sample(3.0, 4, (2, 30, 40))
    labels[:, :10] = 255
    scaling = TemperatureScaling().fit(logits, labels.unsqueeze(1))
    loss = nn.CrossEntropyLoss(ignore_index=255)
    assert loss(scaling(logits), labels) < 0.8 * loss(logits, labels)
    assert torch.equal(scaling(logits).argmax(1), logits.argmax(1))
    torch.testing.assert_close(scaling(logits[0]), scaling(logits)[0])


def test_temperature_is_saved_with_a_network_and_scripts():
    scaling = TemperatureScaling(2.5)
    other = TemperatureScaling()
    other.load_state_dict(scaling.state_dict())
    x = torch.randn(2, 3, 4)
    torch.testing.assert_close(torch.jit.script(other)(x), x / 2.5)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: TemperatureScaling(0.0), "positive"),
        (lambda: TemperatureScaling().fit(torch.rand(2, 3), torch.zeros(3)), "do not match"),
        (lambda: TemperatureScaling().fit(torch.rand(2, 3), torch.full((2,), 255)), "no label"),
    ],
)
def test_bad_input_gives_one_clear_error(call, message):
    with pytest.raises(ValueError, match=message):
        call()
