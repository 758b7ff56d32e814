# Copyright (c) monai_usfm contributors
# SPDX-License-Identifier: Apache-2.0
"""Inference under mixed precision, over dropout masks, flips and scales."""

from __future__ import annotations

import math

import pytest
import torch
from monai.inferers import SlidingWindowInferer
from torch import nn

from monai_usfm.bundle import class_inferer
from monai_usfm.inferers import (
    AutocastInferer,
    DropoutInferer,
    FlipInferer,
    ImagePredictor,
    ScaleInferer,
    WindowInferer,
    mean_entropy,
    probabilities,
)
from monai_usfm.networks import UltrasoundClassifier, UltrasoundSegmenter, UltrasoundViT


def coin(width: float) -> nn.Module:
    """Pixel-wise logits (0, w) of a one-channel image, where ``w`` is 0 or ``2 * width`` by dropout 0.5."""
    net = nn.Sequential(nn.Dropout2d(0.5), nn.Conv2d(1, 2, 1, bias=False))
    with torch.no_grad():
        net[1].weight.copy_(torch.tensor([0.0, width]).reshape(2, 1, 1, 1))
    return net.eval()


def test_the_entropy_of_an_image_is_that_of_its_calibrated_classes_whatever_the_presence_threshold():
    sure, even = torch.tensor([6.0, 0.0]), torch.zeros(2)
    logits = torch.stack([torch.stack([sure, even], 1)[..., None], torch.stack([even, even], 1)[..., None]])
    p = 1 / (1 + math.exp(-6 / 1.5))
    one = -(p * math.log2(p) + (1 - p) * math.log2(1 - p))
    found = mean_entropy({"temperature": 1.5, "presence_threshold": 3.0}, logits)
    assert found.tolist() == pytest.approx([(one + 1) / 2, 1.0], abs=1e-5)


def test_frames_are_smoothed_over_time_alone_and_stay_probabilities_at_both_ends():
    logits = torch.tensor([4.0, 0.0]).reshape(2, 1, 1, 1).repeat(1, 11, 6, 7)
    logits[:, 5, 2, 3] = torch.tensor([0.0, 4.0])
    before = logits.softmax(0)
    after = probabilities({}, frames=True, temporal_sigma=1.0)({"pred": logits})["pred"].as_subclass(torch.Tensor)
    torch.testing.assert_close(after.sum(0), torch.ones(11, 6, 7))
    rise = (after - before[:, :1, :1, :1])[1]
    assert (rise.abs() > 1e-5).any(0).nonzero().tolist() == [[2, 3]]
    share = rise[:, 2, 3] / rise[:, 2, 3].sum()
    assert (share * (torch.arange(11) - 5) ** 2).sum().sqrt().item() == pytest.approx(1, abs=0.06)
    still = probabilities({}, frames=False, temporal_sigma=1.0)({"pred": logits})["pred"]
    torch.testing.assert_close(still.as_subclass(torch.Tensor), before)


class Bright(nn.Module):
    """Two classes: the second is the more likely the brighter the image."""

    card = {  # noqa: RUF012
        "task": "segmentation", "temperature": 2.0,
        "network": {"num_classes": 2, "spatial_size": [8, 8], "in_channels": 3},
    }  # fmt: skip

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.seen = x.shape
        return torch.cat([torch.zeros_like(x[:, :1]), 4 * x[:, :1]], 1)


def test_a_predictor_gives_calibrated_probabilities_at_the_size_of_the_images():
    images = torch.tensor([0.5, 1.0]).reshape(2, 1, 1, 1).expand(2, 1, 16, 24)
    network = Bright()
    found = ImagePredictor(network)(images)
    assert network.seen == (2, 3, 8, 8) and found.shape == (2, 2, 16, 24) and not network.training
    wanted = torch.tensor([1.0, 2.0]).sigmoid().reshape(2, 1, 1).expand(2, 4, 6)
    torch.testing.assert_close(found[:, 1, 6:10, 9:15], wanted)  # MONAI's antialiasing takes zeros for what is beyond
    for wrong in (255 * images, images[:, 0], images.expand(2, 3, -1, -1), images[:0]):
        with pytest.raises(ValueError, match="image"):
            ImagePredictor(network)(wrong)


@pytest.mark.parametrize("inferer", [None, SlidingWindowInferer((4, 4), sw_batch_size=4, overlap=0)])
def test_probabilities_are_those_of_the_mean_over_dropout_masks(inferer):
    image = torch.ones(1, 1, 8, 8)
    net = coin(1.0)
    logits = DropoutInferer(samples=1500, inferer=inferer)(image, net)
    assert logits.shape == (1, 2, 8, 8)
    wanted = (0.5 + 1 / (1 + math.exp(-2.0))) / 2  # the mean of the probabilities, not of the logits
    assert logits.softmax(1)[:, 1].mean().item() == pytest.approx(wanted, abs=0.02)
    assert abs(wanted - 1 / (1 + math.exp(-1.0))) > 0.03
    assert not net.training


def test_network_without_dropout_is_refused():
    with pytest.raises(ValueError, match=r"no dropout with a positive rate"):
        DropoutInferer()(torch.ones(1, 1, 4, 4), nn.Conv2d(1, 2, 1))


def test_autocast_computes_in_bfloat16_and_returns_float32():
    seen = []

    def network(x: torch.Tensor) -> dict[str, torch.Tensor]:
        seen.append((x @ x).dtype)
        return {"loss": x @ x}

    for amp, dtype in (("bf16", torch.bfloat16), ("fp32", torch.float32)):
        assert AutocastInferer(amp, "cpu")(torch.ones(2, 2), network)["loss"].dtype == torch.float32
        assert seen.pop() == dtype


@pytest.mark.parametrize("size", [(2, 4, 4), (2, 2, 2), (4, 4, 4)])
def test_gradients_of_thin_volumes_do_not_depend_on_what_the_memory_held(size):
    conv = nn.Conv3d(16, 16, 3, padding=1)
    image = torch.randn(2, 16, *size)
    conv(image).square().sum().backward()
    wanted, conv.weight.grad = conv.weight.grad, None

    def dirty() -> None:
        for count in (64, 1000, 10_000, 160_000):
            del [torch.full((count,), math.nan) for _ in range(8)][:]

    for _ in range(3):
        dirty()
        output = AutocastInferer("bf16", "cpu")(image, conv)
        dirty()
        output.square().sum().backward()
        torch.testing.assert_close(conv.weight.grad, wanted, atol=0.02 * wanted.abs().max().item(), rtol=0.05)
        conv.weight.grad = None


def test_what_is_not_thin_stays_in_bfloat16():
    seen = []
    conv = nn.Conv3d(1, 1, 3, padding=1)
    conv.register_forward_hook(lambda module, inputs, output: seen.append(output.dtype))
    for depth in (2, 3):
        AutocastInferer("bf16", "cpu")(torch.rand(1, 1, depth, 4, 4), conv)
    assert seen == [torch.float32, torch.bfloat16]


def test_unknown_precision_is_refused():
    with pytest.raises(ValueError, match=r"amp must be one of auto, fp32, bf16, fp16, got 'half'"):
        AutocastInferer("half", "cpu")
    with pytest.raises(ValueError, match=r'"fp16" needs a GPU'):
        AutocastInferer("fp16", "cpu")


def test_black_windows_go_through_the_network_once_and_the_result_is_that_of_all_windows():
    seen = []

    def network(windows):
        seen.append(len(windows))
        return torch.cat([windows + 1, windows.mean((2, 3), keepdim=True).expand_as(windows)], 1)

    image = torch.zeros(1, 1, 64, 64)
    image[..., 20:30, 30:50] = torch.rand(10, 20)
    options = {"roi_size": (16, 16), "sw_batch_size": 4, "overlap": 0.5, "mode": "gaussian"}
    wanted = SlidingWindowInferer(**options)(image, network)
    every = sum(seen)
    seen.clear()
    torch.testing.assert_close(WindowInferer(**options)(image, network), wanted)
    assert sum(seen) < every / 2


def test_views_average_the_logits_of_sizes_and_mirrored_images():
    seen = []

    def network(x: torch.Tensor) -> torch.Tensor:
        """As sure of the second class as the image is narrow, on its left half alone."""
        seen.append(tuple(x.shape[2:]))
        odds = torch.zeros_like(x)
        odds[..., : x.shape[-1] // 2] = 96.0 / x.shape[-1]
        return torch.cat([torch.zeros_like(x), odds], 1)

    image = torch.rand(2, 1, 48, 48)
    run = class_inferer("fp32", "cpu", views=[0.7, 1.0, 1.3], multiple=16, flip_axes=[1])
    found = run(image, network)
    assert seen == [(32, 32), (48, 48), (64, 64)] * 2
    sure = (96 / 32 + 96 / 48 + 96 / 64) / 3
    torch.testing.assert_close(found[:, 1, :, 5], torch.full((2, 48), sure / 2))  # left in one, right when mirrored
    torch.testing.assert_close(found, found.flip(-1))
    torch.testing.assert_close(ScaleInferer([1.0])(image, network), network(image))


def test_views_that_are_no_size_are_refused():
    with pytest.raises(ValueError, match=r"scales must be one positive number or more \(--views\), got \[0\.5, 0\]"):
        ScaleInferer([0.5, 0])
    with pytest.raises(ValueError, match="one positive number or more"):
        ScaleInferer([])
    with pytest.raises(ValueError, match="volumes and cines are segmented at one size"):
        ScaleInferer([1.0])(torch.zeros(1, 1, 4, 4, 4), lambda x: x)
    with pytest.raises(ValueError, match="would swap landmarks"):
        class_inferer("fp32", "cpu", views=[1.0], landmarks=True)


def encoder():
    return UltrasoundViT(32, hidden_size=32, mlp_dim=32, num_layers=4, num_heads=2)


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


def test_flips_of_a_sure_network_in_bfloat16_keep_its_logits():
    def network(image):  # 1 - sigmoid(6) is less than bfloat16 tells from 0.5 %
        return torch.full((1, 1), 6.0, dtype=torch.bfloat16)

    assert FlipInferer((1,), spatial=False)(torch.rand(1, 1, 4, 4), network).item() == pytest.approx(6, abs=1e-3)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: mean_entropy({"network": {"num_classes": 1}}, torch.zeros(1, 1, 4, 4)), "one output"),
        (lambda: DropoutInferer(samples=1), "samples"),
        (lambda: FlipInferer(()), "spatial_axes"),
        (lambda: FlipInferer((0, 0)), "spatial_axes"),
        (lambda: FlipInferer((2,))(torch.rand(1, 1, 4, 4), nn.Identity()), "spatial axes"),
    ],
)
def test_bad_input_gives_one_clear_error(call, message):
    with pytest.raises(ValueError, match=message):
        call()
