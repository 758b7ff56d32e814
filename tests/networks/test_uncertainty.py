# Copyright (c) monai_usfm contributors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from monai_usfm.inferers import DropoutInferer
from monai_usfm.networks import (
    FlipInferer,
    TemperatureScaling,
    UltrasoundClassifier,
    UltrasoundSegmenter,
    UltrasoundViT,
)
from monai_usfm.networks.uncertainty import predictive_entropy


def encoder():
    return UltrasoundViT(32, hidden_size=32, mlp_dim=32, num_layers=4, num_heads=2)


def test_mean_over_dropout_is_the_expectation_over_masks():
    """A linear layer behind dropout 0.5 on two inputs has four equally likely outputs."""
    net = nn.Sequential(nn.Dropout(0.5), nn.Linear(2, 1, bias=False))
    with torch.no_grad():
        net[1].weight.copy_(torch.tensor([[1.0, 2.0]]))
    mean = DropoutInferer(4000)(torch.tensor([[1.0, 1.0]]), net).sigmoid()
    logits = [0.0, 2.0, 4.0, 6.0]
    assert mean.item() == pytest.approx(sum(1 / (1 + math.exp(-v)) for v in logits) / 4, abs=0.01)


@pytest.mark.parametrize("kind", ["segmenter", "classifier"])
def test_networks_of_classes_have_dropout_to_draw(kind):
    torch.manual_seed(0)
    net = {
        "segmenter": lambda: UltrasoundSegmenter(encoder(), 3, dropout=0.5),
        "classifier": lambda: UltrasoundClassifier(encoder(), 3, dropout=0.5),
    }[kind]()
    for parameter in net.parameters():
        nn.init.normal_(parameter, std=0.2)
    x = torch.rand(2, 1, 40, 32)
    with torch.no_grad():
        plain = net.eval()(x)
    mean = DropoutInferer(3)(x, net)
    assert mean.shape == plain.shape and torch.isfinite(mean).all()
    assert not torch.allclose(mean.softmax(1), plain.softmax(1), atol=1e-3)


def test_modes_and_global_random_state_are_kept_and_the_seed_decides():
    net = UltrasoundSegmenter(encoder(), 2, dropout=0.5).train()
    net.head.decoder.eval()
    modes = [m.training for m in net.modules()]
    x = torch.rand(1, 1, 32, 32)
    state = torch.get_rng_state()
    first, second, other = (DropoutInferer(3, seed)(x, net) for seed in (0, 0, 1))
    assert torch.equal(state, torch.get_rng_state()) and modes == [m.training for m in net.modules()]
    assert torch.equal(first, second) and not torch.equal(first, other)


def test_entropy_is_zero_for_certainty_and_one_for_ignorance():
    certain, ignorant = torch.tensor([[1.0, 0.0, 0.0]]), torch.full((1, 3), 1 / 3)
    assert predictive_entropy(certain).item() == 0
    assert predictive_entropy(ignorant).item() == pytest.approx(1)
    assert predictive_entropy(torch.tensor([[0.5]])).item() == pytest.approx(1)


@pytest.mark.parametrize("shape", [(2, 1, 6, 5), (1, 1, 4, 6, 5)])
def test_flips_of_an_equivariant_network_change_nothing_and_else_give_the_mean_probability(shape):
    x = torch.rand(shape)
    axes = tuple(range(len(shape) - 2))

    def equivariant(image):
        return torch.cat([image, 1 - 2 * image], dim=1)

    torch.testing.assert_close(FlipInferer(axes)(x, equivariant).softmax(1), equivariant(x).softmax(1))

    def ramp(image):  # reads the position, so that each flip counts
        weight = torch.linspace(-1, 1, image.shape[-1])
        return torch.cat([image * weight, image * 0], dim=1)

    last = len(shape) - 3
    mirrored = ramp(x.flip(-1)).flip(-1)
    expected = (ramp(x).softmax(1) + mirrored.softmax(1)) / 2
    torch.testing.assert_close(FlipInferer((last,))(x, ramp).softmax(1), expected)
    torch.testing.assert_close(FlipInferer((last,), classes=False)(x, ramp), (ramp(x) + mirrored) / 2)


def test_flips_of_a_classifier_average_probabilities():
    x = torch.rand(3, 1, 4, 4)

    def network(image):  # the first column decides
        return image[:, :, :, 0].flatten(1)[:, :2] * 5

    expected = (network(x).softmax(1) + network(x.flip(-1)).softmax(1)) / 2
    torch.testing.assert_close(FlipInferer((1,), spatial=False)(x, network).softmax(1), expected)
    single = FlipInferer((1,), spatial=False)(x, lambda image: network(image)[:, :1])
    torch.testing.assert_close(
        single.sigmoid(), (network(x)[:, :1].sigmoid() + network(x.flip(-1))[:, :1].sigmoid()) / 2
    )


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
        (lambda: DropoutInferer(samples=1), "samples"),
        (lambda: FlipInferer(()), "spatial_axes"),
        (lambda: FlipInferer((0, 0)), "spatial_axes"),
        (lambda: FlipInferer((2,))(torch.rand(1, 1, 4, 4), nn.Identity()), "spatial axes"),
        (lambda: TemperatureScaling(0.0), "positive"),
        (lambda: TemperatureScaling().fit(torch.rand(2, 3), torch.zeros(3)), "do not match"),
        (lambda: TemperatureScaling().fit(torch.rand(2, 3), torch.full((2,), 255)), "no label"),
    ],
)
def test_bad_input_gives_one_clear_error(call, message):
    with pytest.raises(ValueError, match=message):
        call()
