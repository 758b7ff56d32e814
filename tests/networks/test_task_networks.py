# Copyright (c) monai_usfm contributors
# SPDX-License-Identifier: Apache-2.0
"""What the networks for segmentation, classification and enhancement have in common, and each has alone."""

from __future__ import annotations

import copy
import warnings

import numpy as np
import pytest
import torch
from monai.data import DataLoader, Dataset
from monai.engines import SupervisedTrainer
from monai.inferers import SlidingWindowInferer
from monai.losses import DeepSupervisionLoss, DiceCELoss
from monai.utils import optional_import

from monai_usfm.losses import ATMLoss
from monai_usfm.networks import (
    UltrasoundClassifier,
    UltrasoundEnhancer,
    UltrasoundSegmenter,
    UltrasoundViT,
    usfm_vit,
)

onnxruntime, has_onnxruntime = optional_import("onnxruntime")
_, has_onnxscript = optional_import("onnxscript")

PATCH = {2: (16, 16), 3: (4, 16, 16)}
SIZE = {2: (48, 64), 3: (8, 32, 48)}

NETWORKS = {
    "pyramid": lambda encoder: UltrasoundSegmenter(encoder, 3, width=16),
    "pyramid at half resolution": lambda encoder: UltrasoundSegmenter(encoder, 3, width=16, finest=2),
    "upernet": lambda encoder: UltrasoundSegmenter(encoder, 3, "upernet", width=16, auxiliary=True),
    "segvit": lambda encoder: UltrasoundSegmenter(encoder, 3, "segvit"),
    "mean": lambda encoder: UltrasoundClassifier(encoder, 3),
    "class": lambda encoder: UltrasoundClassifier(encoder, 3, pool="class"),
    "attention": lambda encoder: UltrasoundClassifier(encoder, 3, pool="attention"),
    "pyramid classes": lambda encoder: UltrasoundClassifier(encoder, 3, pool="pyramid"),
    "enhancer": lambda encoder: UltrasoundEnhancer(encoder, width=16),
}
# Exporting takes seconds: by default one of a kind, `-m slow` for the rest.
EXPORTED_BY_DEFAULT = {("pyramid", 3), ("attention", 2)}
EXPORTED = [
    pytest.param(kind, dims, marks=() if (kind, dims) in EXPORTED_BY_DEFAULT else pytest.mark.slow)
    for kind in ("pyramid", "upernet", "segvit", "mean", "attention", "enhancer")
    for dims in (2, 3)
]


def encoder(dims=2, **options):
    settings = {"hidden_size": 32, "mlp_dim": 64, "num_layers": 4, "num_heads": 2} | options
    return UltrasoundViT(SIZE[dims], PATCH[dims], spatial_dims=dims, **settings)


def build(kind, dims):
    """A network whose every weight matters: nothing is left at zero."""
    torch.manual_seed(0)
    net = NETWORKS[kind](encoder(dims)).eval()
    with torch.no_grad():
        for name, parameter in net.named_parameters():
            if name.startswith(("correction", "head")):
                parameter.add_(0.1 * torch.randn_like(parameter))
    return net


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("kind", NETWORKS)
def test_any_size_gives_one_tensor_of_that_size(kind, dims):
    net = build(kind, dims)
    x = torch.rand(2, 1, *[s - 5 for s in SIZE[dims]])
    with torch.no_grad():
        out = net(x)
    channels = 1 if kind == "enhancer" else 3
    expected = (2, channels) if isinstance(net, UltrasoundClassifier) else (2, channels, *x.shape[2:])
    assert isinstance(out, torch.Tensor) and out.shape == expected


@pytest.mark.parametrize("kind", NETWORKS)
def test_padding_repeats_the_border(kind):
    net = build(kind, 2)
    x = torch.rand(1, 1, 40, 50)
    padded = torch.nn.functional.pad(x, (0, 14, 0, 8), mode="replicate")
    with torch.no_grad():
        whole, part = net(padded), net(x)
    if not isinstance(net, UltrasoundClassifier):
        whole = whole[..., :40, :50]
    torch.testing.assert_close(part, whole)


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("kind", NETWORKS)
def test_every_trainable_parameter_gets_a_gradient(kind, dims):
    """Distributed training stops where one gets none."""
    net = build(kind, dims).train()
    out = net(torch.rand(2, 1, *SIZE[dims]))
    if kind == "segvit":
        loss = ATMLoss()(out, torch.randint(0, 3, (2, 1, *SIZE[dims])))
    else:
        loss = sum(o.square().mean() for o in (out if isinstance(out, list) else [out]))
    loss.backward()
    assert not [name for name, p in net.named_parameters() if p.requires_grad and p.grad is None]


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("kind", NETWORKS)
def test_torchscript_gives_the_same_at_two_sizes(kind, dims):
    net = build(kind, dims)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        scripted = torch.jit.script(net)
    with torch.no_grad():
        for size in (SIZE[dims], [s - 3 for s in SIZE[dims]]):
            x = torch.rand(1, 1, *size)
            torch.testing.assert_close(scripted(x), net(x))


@pytest.mark.skipif(not (has_onnxruntime and has_onnxscript), reason="needs onnxruntime and onnxscript")
@pytest.mark.parametrize(("kind", "dims"), EXPORTED)
def test_torch_export_and_onnx_give_the_same(kind, dims, tmp_path):
    net = build(kind, dims)
    x = torch.rand(1, 1, *SIZE[dims])
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = net(x)
        program = torch.export.export(net, (x,))
        torch.testing.assert_close(program.module()(x), expected)
        torch.onnx.export(program, (x,), tmp_path / "net.onnx", dynamo=True, verbose=False)
    session = onnxruntime.InferenceSession(tmp_path / "net.onnx")
    (out,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    torch.testing.assert_close(torch.from_numpy(out), expected, rtol=1e-3, atol=1e-5)


# Segmentation


@pytest.mark.parametrize(
    ("layers", "head", "blocks"),
    [
        (12, "pyramid", [2, 5, 8, 11]),
        (12, "upernet", [3, 5, 7, 11]),
        (12, "segvit", [5, 7, 11]),
        (24, "upernet", [7, 11, 15, 23]),
        (4, "pyramid", [0, 1, 2, 3]),
        (2, "pyramid", [0, 1]),
    ],
)
def test_default_blocks_are_the_published_ones(layers, head, blocks):
    assert UltrasoundSegmenter(encoder(num_layers=layers), 2, head).indices == blocks


@pytest.mark.parametrize(
    ("head", "options", "loss"),
    [
        ("pyramid", {"width": 16}, DiceCELoss(to_onehot_y=True, softmax=True)),
        (
            "upernet",
            {"width": 16, "auxiliary": True},
            DeepSupervisionLoss(DiceCELoss(to_onehot_y=True, softmax=True), weights=[1.0, 0.4]),
        ),
        ("segvit", {}, ATMLoss()),
    ],
)
def test_each_head_learns_squares_in_a_supervised_trainer(head, options, loss):
    torch.manual_seed(0)
    image = 0.1 * torch.rand(4, 1, 48, 48)
    label = torch.zeros(4, 1, 48, 48)
    for i, (row, column) in enumerate([(4, 4), (20, 8), (10, 24), (26, 26)]):
        image[i, :, row : row + 18, column : column + 18] += 0.8
        label[i, :, row : row + 18, column : column + 18] = 1
    net = UltrasoundSegmenter(encoder(num_layers=5), 2, head, dropout=0.0, **options)
    data = Dataset([{"image": i, "label": m} for i, m in zip(image, label, strict=True)])
    trainer = SupervisedTrainer(
        device=torch.device("cpu"),
        max_epochs=40,
        train_data_loader=DataLoader(data, batch_size=4),
        network=net,
        optimizer=torch.optim.AdamW(net.parameters(), 3e-3),
        loss_function=loss,
    )
    trainer.run()
    assert isinstance(trainer.state.output[0]["pred"], torch.Tensor if head == "pyramid" else list)
    net.eval()
    with torch.no_grad():
        found = net(image).argmax(1, keepdim=True)
    dice = 2 * (found * label).sum() / (found.sum() + label.sum())
    assert dice > 0.85


def test_the_first_entry_in_training_is_the_prediction_in_evaluation():
    net = UltrasoundSegmenter(encoder(), 3, "segvit", dropout=0.0, norm="instance").eval()
    x = torch.rand(1, 1, 40, 60)
    with torch.no_grad():
        expected = net(x)
        outputs = net.train()(x)
    torch.testing.assert_close(outputs[0], expected)
    torch.testing.assert_close(expected.exp().sum(1), torch.ones(1, 40, 60))
    assert [tuple(o.shape) for o in outputs[1:]] == 3 * [(1, 3, 4), (1, 3, 40, 60)]


def test_the_light_head_costs_less_than_the_tiny_encoder():
    flop_counter = pytest.importorskip("torch.utils.flop_counter")
    costs = []
    x = torch.rand(1, 1, 224, 224)
    small = usfm_vit("tiny")
    for net in (small, UltrasoundSegmenter(small, 2)):
        with torch.no_grad(), flop_counter.FlopCounterMode(display=False) as counter:
            net(x)
        costs.append(counter.get_total_flops())
    assert costs[1] < 1.7 * costs[0]


# Classification


def test_pooling_reads_the_tokens_it_names():
    x = torch.rand(2, 1, 48, 64)
    shared = encoder().eval()
    tokens = []
    shared.blocks[-1].register_forward_hook(lambda module, inputs, output: tokens.append(output))
    with torch.no_grad():
        mean = UltrasoundClassifier(shared, 2).eval()
        features = mean.forward_features(x)
        expected = torch.nn.functional.layer_norm(tokens[-1][:, 1:].mean(1), (32,), eps=1e-6)
        torch.testing.assert_close(features, expected)
        features = UltrasoundClassifier(shared, 2, pool="class").eval().forward_features(x)
        torch.testing.assert_close(features, shared.norm(tokens[-1])[:, 0])


def test_attention_pooling_equals_pytorch():
    net = build("attention", 2)
    pool = net.attention_pool
    reference = torch.nn.MultiheadAttention(32, pool.num_heads, batch_first=True).eval()
    tokens = torch.randn(2, 7, 32)
    with torch.no_grad():
        reference.in_proj_weight.copy_(torch.cat([torch.eye(32), pool.key_value.weight]))
        reference.in_proj_bias.copy_(torch.cat([torch.zeros(32), pool.key_value.bias]))
        reference.out_proj.load_state_dict(pool.proj.state_dict())
        expected = reference(pool.query.expand(2, -1, -1), tokens, tokens)[0][:, 0]
        torch.testing.assert_close(pool(tokens), expected)


@pytest.mark.parametrize("dims", [2, 3])
def test_pyramid_pooling_is_a_weighted_mean_and_the_maximum_of_each_level(dims):
    torch.manual_seed(0)
    pool = UltrasoundClassifier(encoder(dims), 3, pool="pyramid").eval().pyramid_pool
    image = torch.rand(2, 1, *SIZE[dims])
    grid = [s // p for s, p in zip(SIZE[dims], PATCH[dims], strict=True)]
    maps = [torch.randn(2, 32, *grid) for _ in pool.decoder.maps]
    with torch.no_grad():
        start = pool(image, maps)
        levels = [level.flatten(2).numpy() for level in pool.decoder.levels(image, maps)]
        means = [np.concatenate([level.mean(-1), level.max(-1)], axis=1) for level in levels]
        np.testing.assert_allclose(start, np.concatenate(means, axis=1), rtol=1e-4, atol=1e-5)
        for score in pool.scores:
            score.weight.normal_()
        found = pool(image, maps)
        parts = []
        for level, score in zip(levels, pool.scores, strict=True):
            logits = np.einsum("bcn,c->bn", level, score.weight[0].numpy())
            weights = np.exp(logits - logits.max(1, keepdims=True))
            weights /= weights.sum(1, keepdims=True)
            parts.append(np.concatenate([np.einsum("bcn,bn->bc", level, weights), level.max(-1)], axis=1))
        np.testing.assert_allclose(found, np.concatenate(parts, axis=1), rtol=1e-4, atol=1e-4)


def test_a_new_classifier_is_undecided():
    with torch.no_grad():
        logits = UltrasoundClassifier(encoder(), 3).eval()(torch.rand(2, 1, 48, 64))
    assert 0 < logits.abs().max() < 1e-2


# Enhancement


@pytest.mark.parametrize("dims", [2, 3])
def test_a_new_enhancer_is_the_identity(dims):
    x = torch.rand(2, 1, *[s - 1 for s in SIZE[dims]])
    net = UltrasoundEnhancer(encoder(dims))
    assert torch.equal(net.train()(x), x) and torch.equal(net.eval()(x), x)


def test_a_new_enhancer_of_color_images_with_one_output_is_their_mean():
    x = torch.rand(1, 3, 48, 64)
    net = UltrasoundEnhancer(encoder(in_channels=3)).eval()
    torch.testing.assert_close(net(x), x.mean(1, keepdim=True))


def test_enhanced_images_are_in_range_in_evaluation_and_free_in_training():
    net = UltrasoundEnhancer(encoder())
    torch.nn.init.constant_(net.correction.bias, 2.0)
    x = torch.rand(1, 1, 48, 64)
    assert torch.equal(net.eval()(x), torch.ones_like(x))
    assert net.train()(x).min() > 1


def test_an_enhancer_learns_to_remove_noise():
    torch.manual_seed(0)
    rows = torch.linspace(0, 6, 48).sin().reshape(1, 1, 48, 1) * 0.3 + 0.5
    clean = rows.expand(4, 1, 48, 64)
    noisy = clean + 0.1 * torch.randn(4, 1, 48, 64)
    net = UltrasoundEnhancer(encoder(), width=32)
    optimizer = torch.optim.AdamW(net.parameters(), 3e-3)
    for _ in range(60):
        optimizer.zero_grad()
        loss = (net(noisy) - clean).square().mean()
        loss.backward()
        optimizer.step()
    fresh = (clean + 0.1 * torch.randn(4, 1, 48, 64)).clamp(0, 1)
    net.eval()
    with torch.no_grad():
        gain = (net(fresh) - clean).square().mean() / (fresh - clean).square().mean()
    assert gain < 0.5


def test_sliding_windows_leave_no_seam_in_a_uniform_image():
    """Where all windows see the same, their edges must not show: the pattern within a window repeats, no more."""
    net = build("enhancer", 2)
    x = torch.full((1, 1, 96, 96), 0.5)
    window = SlidingWindowInferer((48, 64), overlap=0.5, mode="gaussian")
    with torch.no_grad():
        whole = window(x, net)
        single = net(x[..., :48, :64])
    assert whole.std() <= 1.5 * single.std() + 1e-6


# Errors


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: UltrasoundSegmenter(encoder(), 0), "num_classes must be at least 1, got 0"),
        (lambda: UltrasoundSegmenter(encoder(), 2, "unet"), "pyramid, segvit, upernet, or a module, got 'unet'"),
        (lambda: UltrasoundSegmenter(encoder(), 2, indices=[0, 4]), r"block index 4 is outside 0\.\.3"),
        (lambda: UltrasoundSegmenter(encoder(), 2, indices=[-1]), r"outside 0\.\.3"),
        (lambda: UltrasoundSegmenter(encoder(), 2, indices=[]), "got 0 block indices"),
        (lambda: UltrasoundSegmenter(encoder(), 2, "upernet", indices=[0, 1]), "takes 4 maps, got 2"),
        (lambda: UltrasoundSegmenter(encoder(num_layers=2), 2, "segvit"), "takes 3 maps, got 2"),
        (lambda: UltrasoundClassifier(encoder(), 0), "num_classes must be at least 1, got 0"),
        (
            lambda: UltrasoundClassifier(encoder(), 2, pool="max"),
            "mean, class, attention, pyramid, or a module, got 'max'",
        ),
        (lambda: UltrasoundEnhancer(encoder(in_channels=3), 2), "1 or the 3 channel"),
        (lambda: UltrasoundEnhancer(encoder(), indices=[9]), r"outside 0\.\.3"),
        (lambda: UltrasoundEnhancer(encoder())(torch.rand(1, 3, 48, 64)), "1 channel"),
        (lambda: UltrasoundSegmenter(encoder(), 2)(torch.rand(1, 1, 8, 48, 64)), "2 spatial axes"),
    ],
)
def test_bad_input_gives_one_clear_error(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_networks_can_be_copied():
    net = build("pyramid", 2)
    x = torch.rand(1, 1, 48, 64)
    with torch.no_grad():
        torch.testing.assert_close(copy.deepcopy(net)(x), net(x))


@pytest.mark.parametrize("training", [False, True])
def test_in_evaluation_a_pyramid_sees_the_image_and_gives_its_logits_in_float32(training):
    net, seen = build("pyramid", 2).train(training), {}
    decoder = net.head.decoder
    middle = next(part for part in decoder.fuse[-1].modules() if isinstance(part, torch.nn.Conv2d))
    parts = {"first": decoder.stem[0], "middle": middle, "last": net.head.to_pixels}
    for name, part in parts.items():
        part.register_forward_hook(lambda _, __, output, name=name: seen.update({name: output.dtype}))
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        net(torch.rand(1, 1, *SIZE[2]))
    edge = torch.bfloat16 if training else torch.float32
    assert seen == {"first": edge, "middle": torch.bfloat16, "last": edge}


@pytest.mark.parametrize("kind", ["upernet", "segvit", "pyramid classes", "enhancer"])
def test_in_evaluation_autocast_reaches_the_encoder_alone(kind):
    net, seen = build(kind, 2), []
    head = net.decoder if kind == "enhancer" else net.pyramid_pool if kind == "pyramid classes" else net.head

    def look(module, inputs):
        seen.append({inputs[0].dtype, inputs[1][0].dtype, torch.is_autocast_enabled("cpu")})

    head.register_forward_pre_hook(look)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        net(torch.rand(1, 1, *SIZE[2]))
    assert seen == [{torch.float32, False}]
