# Copyright (c) monai_usfm contributors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from monai_usfm.networks import UltrasoundSegmenter, UltrasoundViT, load_pretrained
from monai_usfm.networks.heads import ATMHead, PyramidDecoder, UPerNetHead
from monai_usfm.networks.heads.pyramid import pyramid_strides
from monai_usfm.networks.heads.upernet import AdaptiveMean

E, CLASSES = 64, 3


def conv_block(state, name, x):
    """ConvModule of mmsegmentation in evaluation: convolution without bias, batch norm, ReLU."""
    weight = state[f"{name}.conv.weight"]
    x = F.conv2d(x, weight, padding=weight.shape[-1] // 2)
    bn = [state[f"{name}.bn.{key}"] for key in ("running_mean", "running_var", "weight", "bias")]
    return F.relu(F.batch_norm(x, *bn, eps=1e-5))


def resize(x, size):
    return F.interpolate(x, size=size, mode="bilinear", align_corners=False)


def finer(state, maps):
    """fpn1 and fpn2 of the official backbone."""
    bn = [state[f"backbone.fpn1.1.{key}"] for key in ("running_mean", "running_var", "weight", "bias")]
    x4 = F.conv_transpose2d(maps[0], state["backbone.fpn1.0.weight"], state["backbone.fpn1.0.bias"], stride=2)
    x4 = F.gelu(F.batch_norm(x4, *bn, eps=1e-5))
    x4 = F.conv_transpose2d(x4, state["backbone.fpn1.3.weight"], state["backbone.fpn1.3.bias"], stride=2)
    x2 = F.conv_transpose2d(maps[1], state["backbone.fpn2.0.weight"], state["backbone.fpn2.0.bias"], stride=2)
    return x4, x2


def naive_upernet(state, maps, size):
    """UPerHead and FCNHead as mmsegmentation defines them, on the maps of the official backbone."""
    x4, x2 = finer(state, maps)
    levels = [x4, x2, maps[2], F.max_pool2d(maps[3], 2)]
    head = "decode_head"
    context = [levels[3]]
    for i, cells in enumerate((1, 2, 3, 6)):
        pooled = conv_block(state, f"{head}.psp_modules.{i}.1", F.adaptive_avg_pool2d(levels[3], cells))
        context.append(resize(pooled, levels[3].shape[2:]))
    laterals = [conv_block(state, f"{head}.lateral_convs.{i}", levels[i]) for i in range(3)]
    laterals.append(conv_block(state, f"{head}.bottleneck", torch.cat(context, 1)))
    for i in (3, 2, 1):
        laterals[i - 1] = laterals[i - 1] + resize(laterals[i], laterals[i - 1].shape[2:])
    outs = [conv_block(state, f"{head}.fpn_convs.{i}", laterals[i]) for i in range(3)] + [laterals[3]]
    outs = [resize(x, outs[0].shape[2:]) for x in outs]
    x = conv_block(state, f"{head}.fpn_bottleneck", torch.cat(outs, 1))
    logits = F.conv2d(x, state[f"{head}.conv_seg.weight"], state[f"{head}.conv_seg.bias"])
    side = conv_block(state, "auxiliary_head.convs.0", maps[2])
    side = F.conv2d(side, state["auxiliary_head.conv_seg.weight"], state["auxiliary_head.conv_seg.bias"])
    return resize(logits, size), resize(side, size)


def naive_atm(state, maps, size):
    """ATM head from its description, one query and one head at a time: scores of classes and of pixels."""
    x4, x2 = finer(state, maps)
    width = state["decode_head.q.weight"].shape[1]
    heads = width // 32

    def linear(name, x):
        return x @ state[f"decode_head.{name}.weight"].T + state[f"decode_head.{name}.bias"]

    def norm(name, x):
        return F.layer_norm(x, x.shape[-1:], state[f"decode_head.{name}.weight"], state[f"decode_head.{name}.bias"])

    def attend(q, k, v):
        outs, scores = [], []
        for h in range(heads):
            part = slice(32 * h, 32 * h + 32)
            s = q[:, part] @ k[:, part].T / 32**0.5
            scores.append(s)
            outs.append(s.softmax(-1) @ v[:, part])
        return torch.cat(outs, 1), sum(scores) / heads

    results = []
    for b in range(maps[0].shape[0]):
        q = state["decode_head.q.weight"]
        total = 0
        for stage, level in enumerate((maps[2], x2, x4), start=1):
            grid = level.shape[2:]
            tokens = level[b].flatten(1).T
            tokens = norm(f"proj_norm_{stage}", linear(f"input_proj_{stage}", tokens))
            for i in range(3):
                name = f"decoder_{stage}.layers.{i}"
                qkv = (
                    q @ state[f"decode_head.{name}.self_attn.in_proj_weight"].T
                    + state[f"decode_head.{name}.self_attn.in_proj_bias"]
                )
                out, _ = attend(*qkv.split(width, dim=1))
                q = norm(f"{name}.norm1", q + linear(f"{name}.self_attn.out_proj", out))
                cross = f"{name}.multihead_attn"
                out, scores = attend(
                    linear(f"{cross}.q", q), linear(f"{cross}.k", tokens), linear(f"{cross}.v", tokens)
                )
                q = norm(f"{name}.norm2", q + linear(f"{cross}.proj", out))
                q = norm(f"{name}.norm3", q + linear(f"{name}.linear2", linear(f"{name}.linear1", q).relu()))
            total = total + resize(scores.reshape(1, -1, *grid), x4.shape[2:])
        mask = resize(total, size).sigmoid()[0]
        classes = linear("class_embed", q).softmax(-1)[:, :-1]
        results.append(sum(classes[k][:, None, None] * mask[k] for k in range(len(q))))
    return torch.stack(results)


def random_like(shapes):
    generator = torch.Generator().manual_seed(0)
    state = {}
    for name, shape in shapes.items():
        noise = torch.randn(shape, generator=generator)
        if name.endswith(("running_var", "bn.weight", "fpn1.1.weight")):
            state[name] = 0.5 + noise.abs()
        elif "norm" in name and name.endswith("weight"):
            state[name] = 1 + 0.1 * noise
        else:
            state[name] = noise * (shape[1:].numel() ** -0.5 if len(shape) > 1 else 0.1)
    return state


def batch_norm(name, channels):
    return {f"{name}.{key}": torch.Size([channels]) for key in ("weight", "bias", "running_mean", "running_var")}


def official(net, state):
    """A checkpoint of the whole network: the backbone beside the head."""
    return state | {f"backbone.{name}": tensor for name, tensor in net.encoder.state_dict().items()}


def backbone_shapes():
    shapes = {f"backbone.fpn1.{i}.weight": torch.Size([E, E, 2, 2]) for i in (0, 3)}
    shapes |= {f"backbone.fpn1.{i}.bias": torch.Size([E]) for i in (0, 3)} | batch_norm("backbone.fpn1.1", E)
    return shapes | {"backbone.fpn2.0.weight": torch.Size([E, E, 2, 2]), "backbone.fpn2.0.bias": torch.Size([E])}


def upernet_state(width):
    """Names and shapes of REFERENCE: UPerHead (74 tensors) and its auxiliary head."""
    shapes = backbone_shapes()
    blocks = {f"decode_head.psp_modules.{i}.1": (width, E, 1) for i in range(4)}
    blocks["decode_head.bottleneck"] = (width, E + 4 * width, 3)
    blocks |= {f"decode_head.lateral_convs.{i}": (width, E, 1) for i in range(3)}
    blocks |= {f"decode_head.fpn_convs.{i}": (width, width, 3) for i in range(3)}
    blocks["decode_head.fpn_bottleneck"] = (width, 4 * width, 3)
    blocks["auxiliary_head.convs.0"] = (256, E, 3)
    for name, (out, inputs, kernel) in blocks.items():
        shapes[f"{name}.conv.weight"] = torch.Size([out, inputs, kernel, kernel])
        shapes |= batch_norm(f"{name}.bn", out)
    for name, inputs in (("decode_head", width), ("auxiliary_head", 256)):
        shapes[f"{name}.conv_seg.weight"] = torch.Size([CLASSES, inputs, 1, 1])
        shapes[f"{name}.conv_seg.bias"] = torch.Size([CLASSES])
    return random_like(shapes)


def atm_state(width):
    """Names and shapes of the ATM head (214 tensors)."""
    shapes = {}
    linears = {f"input_proj_{s}": (width, E) for s in (1, 2, 3)} | {"class_embed": (CLASSES + 1, width)}
    norms = [f"proj_norm_{s}" for s in (1, 2, 3)]
    for s in (1, 2, 3):
        for i in range(3):
            name = f"decoder_{s}.layers.{i}"
            linears |= {f"{name}.multihead_attn.{x}": (width, width) for x in ("q", "k", "v", "proj")}
            linears |= {f"{name}.self_attn.out_proj": (width, width)}
            linears |= {f"{name}.linear1": (4 * width, width), f"{name}.linear2": (width, 4 * width)}
            norms += [f"{name}.norm{k}" for k in (1, 2, 3)]
            shapes[f"decode_head.{name}.self_attn.in_proj_weight"] = torch.Size([3 * width, width])
            shapes[f"decode_head.{name}.self_attn.in_proj_bias"] = torch.Size([3 * width])
    for name, shape in linears.items():
        shapes[f"decode_head.{name}.weight"] = torch.Size(shape)
        shapes[f"decode_head.{name}.bias"] = torch.Size(shape[:1])
    for name in norms:
        shapes |= {f"decode_head.{name}.{key}": torch.Size([width]) for key in ("weight", "bias")}
    shapes["decode_head.q.weight"] = torch.Size([CLASSES, width])
    shapes["decode_head.loss_decode.criterion.empty_weight"] = torch.Size([CLASSES + 1])
    assert len(shapes) == 214
    return random_like(shapes | backbone_shapes())


def segmenter(head, **options):
    encoder = UltrasoundViT((64, 96), hidden_size=E, mlp_dim=64, num_layers=5, num_heads=2)
    return UltrasoundSegmenter(encoder, CLASSES, head, **options).eval()


def random_maps(count, grid=(4, 6)):
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(2, E, *grid, generator=generator) for _ in range(count)]


@torch.no_grad()
def test_upernet_with_official_weights_equals_mmsegmentation_on_a_grid_that_is_not_square():
    state = upernet_state(16)
    net = segmenter("upernet", width=16, auxiliary=True)
    report = load_pretrained(net, {"model": official(net, state)})
    assert not report.unexpected and not report.anew
    maps = random_maps(4)
    logits, auxiliary = naive_upernet(state, maps, (64, 96))
    torch.testing.assert_close(net.head(torch.zeros(2, 1, 64, 96), maps)[0], logits, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(resize(net.head.auxiliary_head(maps[2]), (64, 96)), auxiliary, rtol=1e-4, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("grid", [(4, 6), (3, 5)])  # the official code drops a token of the second
def test_atm_with_official_weights_equals_its_description(grid):
    state = atm_state(64)
    net = segmenter("segvit", width=64)
    report = load_pretrained(net, official(net, state))
    assert report.unexpected == ["decode_head.loss_decode.criterion.empty_weight"]
    maps = random_maps(3, grid)
    size = (16 * grid[0], 16 * grid[1])
    expected = naive_atm(state, maps, size)
    out = net.head(torch.zeros(2, 1, *size), maps)[0]
    torch.testing.assert_close(out.softmax(1), expected / expected.sum(1, keepdim=True), rtol=1e-4, atol=1e-5)
    assert torch.equal(out.argmax(1), expected.argmax(1))


def test_official_weights_with_another_number_of_classes_load_but_for_the_last_layer():
    state = upernet_state(16)
    encoder = UltrasoundViT(32, hidden_size=E, mlp_dim=64, num_layers=5, num_heads=2)
    net = UltrasoundSegmenter(encoder, CLASSES + 1, "upernet", width=16)
    report = load_pretrained(net, official(net, state))
    assert list(report.anew) == ["head.conv_seg.weight", "head.conv_seg.bias"]
    assert torch.equal(net.head.bottleneck.conv.weight, state["decode_head.bottleneck.conv.weight"])


@pytest.mark.parametrize("size", [(7, 5), (2, 4, 9), (1, 1)])
@pytest.mark.parametrize("cells", [1, 2, 3, 6])
def test_adaptive_mean_equals_pytorch(size, cells):
    x = torch.randn(2, 3, *size)
    pool = F.adaptive_avg_pool2d if len(size) == 2 else F.adaptive_avg_pool3d
    torch.testing.assert_close(AdaptiveMean(len(size), cells)(x), pool(x, cells))


@pytest.mark.parametrize(
    ("patch", "finest", "strides"),
    [
        ((16, 16), 1, [(16, 16), (8, 8), (4, 4), (2, 2), (1, 1)]),
        ((4, 16, 16), 1, [(4, 16, 16), (4, 8, 8), (4, 4, 4), (2, 2, 2), (1, 1, 1)]),
        ((14, 14), 2, [(14, 14), (7, 7), (1, 1)]),
        ((16, 16), 4, [(16, 16), (8, 8), (4, 4)]),
    ],
)
def test_decoder_refines_the_coarsest_axes_first(patch, finest, strides):
    assert pyramid_strides(patch, finest) == strides


@pytest.mark.parametrize("finest", [1, 2])
def test_decoder_sees_pixels_and_maps_at_the_place_they_belong_to(finest):
    torch.manual_seed(0)
    decoder = PyramidDecoder(8, 1, (4, 8), num_maps=2, width=8, finest=finest, normalize=False).eval()
    image = torch.zeros(1, 1, 256, 256, requires_grad=True)
    maps = [torch.randn(1, 8, 64, 32, requires_grad=True) for _ in range(2)]
    features = decoder(image, maps)
    assert features.shape[2:] == (256 // finest, 256 // finest)
    at = 128 // finest
    grads = torch.autograd.grad(features[0, :, at, at].square().sum(), [image, *maps])
    # Far pixels and tokens have no influence, the place itself and its neighbors on all sides have.
    rows, columns = grads[0][0, 0].nonzero().unbind(1)
    for found in (rows, columns):
        assert 128 in found and 40 < found.min() < 120 and 136 < found.max() < 216
    for grad in grads[1:]:
        rows, columns = grad[0].abs().sum(0).nonzero().unbind(1)
        assert 32 in rows and 16 in columns
        assert 20 < rows.min() < 32 < rows.max() < 44 and 8 < columns.min() < 16 < columns.max() < 24


def test_segmenter_takes_a_window_of_one_patch():
    encoder = UltrasoundViT(16, 8, hidden_size=24, mlp_dim=48, num_layers=4, num_heads=2)
    net = UltrasoundSegmenter(encoder, 2, "pyramid", width=8).train()
    assert net(torch.rand(1, 1, 8, 8)).shape == (1, 2, 8, 8)


@pytest.mark.parametrize("head", ["upernet", "segvit"])
def test_maps_never_get_finer_than_a_pixel_of_an_anisotropic_patch(head):
    build = {"upernet": UPerNetHead, "segvit": ATMHead}[head]
    fpn1 = build(32, 2, (2, 16, 16), width=32).fpn1
    assert fpn1(torch.zeros(2, 32, 3, 2, 2)).shape[2:] == (6, 8, 8)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: PyramidDecoder(8, 1, (4, 4), width=6), "width"),
        (lambda: PyramidDecoder(8, 1, (4, 4), finest=3), "finest"),
        (lambda: ATMHead(64, 1, (16, 16)), "background"),
        (lambda: ATMHead(64, 2, (16, 16), width=40), "multiple of 32"),
        (lambda: UPerNetHead(64, 2, (16, 16), width=0), "width"),
    ],
)
def test_heads_refuse_what_they_cannot_build(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize("dims", [2, 3])
def test_upernet_with_batch_norm_names_what_a_batch_of_one_needs(dims):
    shape = (1, 1, *[32] * dims)
    encoder = UltrasoundViT(32, 8, spatial_dims=dims, hidden_size=24, mlp_dim=48, num_layers=4, num_heads=2)
    net = UltrasoundSegmenter(encoder, 2, "upernet", width=8).train()
    with pytest.raises(ValueError, match=r"batch of one image: use a batch_size of 2 or more, or group norm"):
        net(torch.rand(shape))
    assert net(torch.rand(2, *shape[1:])).shape == (2, 2, *shape[2:])
    assert net.eval()(torch.rand(shape)).shape == (1, 2, *shape[2:])
    grouped = UltrasoundSegmenter(encoder, 2, "upernet", width=8, norm=("group", {"num_groups": 2})).train()
    assert grouped(torch.rand(shape)).shape == (1, 2, *shape[2:])
