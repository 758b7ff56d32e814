# Copyright (c) monai_usfm contributors
# SPDX-License-Identifier: Apache-2.0
"""Pretraining objectives: against Hugging Face's ViTMAE, and by what each promises."""

from __future__ import annotations

import pytest
import torch

from monai_usfm.losses import SpatialFrequencyLoss
from monai_usfm.networks import MaskedAutoencoder, MaskedImageModel, RandomBandStop, UltrasoundViT
from monai_usfm.networks.blocks import patchify, unpatchify

SIZES = [(2, (32, 48), (16, 16)), (3, (16, 32, 32), (4, 16, 16))]


def tiny(spatial_dims=2, img_size=(32, 48), patch_size=(16, 16), in_channels=1, **settings):
    settings = {"pos_embed": "relative", **settings}
    return UltrasoundViT(img_size, patch_size, in_channels, spatial_dims, 48, 96, 3, 3, **settings)


@pytest.mark.parametrize("normalize_patches", [False, True])
@pytest.mark.parametrize("channels", [1, 3])
def test_masked_autoencoder_equals_the_reference_for_equal_weights_and_noise(normalize_patches, channels):
    transformers = pytest.importorskip("transformers", reason="test-only reference implementation")
    config = transformers.ViTMAEConfig(
        hidden_size=48,
        num_hidden_layers=3,
        num_attention_heads=3,
        intermediate_size=96,
        image_size=64,
        patch_size=16,
        num_channels=channels,
        decoder_hidden_size=32,
        decoder_num_hidden_layers=2,
        decoder_num_attention_heads=2,
        decoder_intermediate_size=128,
        layer_norm_eps=1e-6,
        norm_pix_loss=normalize_patches,
    )
    theirs = transformers.ViTMAEForPreTraining(config).eval()
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.normal_(0, 0.2)
    encoder = tiny(img_size=(64, 64), in_channels=channels, pos_embed="sincos", layer_scale=None)
    ours = MaskedAutoencoder(encoder, 32, 2, 2, normalize_patches=normalize_patches)
    ours.load_state_dict(_from_hugging_face(theirs.state_dict()))
    image, noise = torch.rand(3, channels, 64, 64), torch.rand(3, 16)
    with torch.no_grad():
        expected = theirs(image, noise=noise)
        result = ours.eval()(image, noise)
    torch.testing.assert_close(result["loss"], expected.loss, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(result["prediction"], expected.logits, rtol=1e-5, atol=2e-5)
    torch.testing.assert_close(result["mask"], expected.mask)
    # Training computes less, and the same loss and gradient.
    ours.train()(image, noise)["loss"].backward()
    theirs.train()(image, noise=noise).loss.backward()
    torch.testing.assert_close(
        encoder.blocks[0].mlp.fc1.weight.grad, theirs.vit.layers[0].mlp.fc1.weight.grad, rtol=1e-3, atol=1e-6
    )
    torch.testing.assert_close(
        ours.decoder_pred.weight.grad, theirs.decoder.decoder_pred.weight.grad, rtol=1e-3, atol=1e-6
    )


def _from_hugging_face(state):
    new = {
        "encoder.cls_token": state["vit.embeddings.cls_token"],
        "encoder.pos_embed.table": state["vit.embeddings.position_embeddings"],
        "mask_token": state["decoder.mask_token"],
        "decoder_pos_embed.table": state["decoder.decoder_pos_embed"],
    }
    blocks = {f"vit.layers.{i}": f"encoder.blocks.{i}" for i in range(3)}
    blocks |= {f"decoder.decoder_layers.{i}": f"decoder_blocks.{i}" for i in range(2)}
    parts = {"attention.o_proj": "attn.proj", "mlp.fc1": "mlp.fc1", "mlp.fc2": "mlp.fc2"}
    parts |= {"layernorm_before": "norm1", "layernorm_after": "norm2"}
    for kind in ("weight", "bias"):
        for theirs, ours in blocks.items():
            new[f"{ours}.attn.qkv.{kind}"] = torch.cat([state[f"{theirs}.attention.{n}_proj.{kind}"] for n in "qkv"])
            for a, b in parts.items():
                new[f"{ours}.{b}.{kind}"] = state[f"{theirs}.{a}.{kind}"]
        new[f"encoder.norm.{kind}"] = state[f"vit.layernorm.{kind}"]
        new[f"encoder.patch_embed.proj.{kind}"] = state[f"vit.embeddings.patch_embeddings.projection.{kind}"]
        for name in ("decoder_embed", "decoder_norm", "decoder_pred"):
            new[f"{name}.{kind}"] = state[f"decoder.{name}.{kind}"]
    return new


@pytest.mark.parametrize(("dims", "size", "patch"), SIZES)
def test_hidden_pixels_do_not_reach_the_autoencoder(dims, size, patch):
    model = MaskedAutoencoder(tiny(dims, size, patch, pos_embed="sincos"), 32, 1, 2).eval()
    image = torch.rand(1, 1, *size)
    noise = torch.rand(1, 6 if dims == 2 else 16)
    with torch.no_grad():
        first = model(image, noise)
        patches = patchify(image, patch)
        hidden = torch.where(first["mask"][..., None] > 0, torch.rand_like(patches), patches)
        grid = [s // p for s, p in zip(size, patch, strict=True)]
        second = model(unpatchify(hidden, grid, patch), noise)
    torch.testing.assert_close(first["prediction"], second["prediction"])
    assert not torch.isclose(first["loss"], second["loss"])


@pytest.mark.parametrize("fill", ["speckle", "mean", "token"])
@pytest.mark.parametrize(("dims", "size", "patch"), SIZES)
def test_what_a_masked_patch_held_does_not_reach_the_encoder(dims, size, patch, fill):
    """Only its mean may (speckle), or the mean of the image (mean)."""
    model = MaskedImageModel(tiny(dims, size, patch), fill=fill, mask_unit=1, band_stop=None).eval()
    image = 0.2 + 0.6 * torch.rand(1, 1, *size)
    noise = torch.rand(1, 6 if dims == 2 else 16)
    torch.manual_seed(0)
    with torch.no_grad():
        first = model(image, noise)
        patches = patchify(image, patch)
        shuffled = patches[..., torch.randperm(patches.shape[-1])]  # same mean, another image
        other = torch.where(first["mask"][..., None] > 0, shuffled, patches)
        grid = [s // p for s, p in zip(size, patch, strict=True)]
        torch.manual_seed(0)
        second = model(unpatchify(other, grid, patch), noise)
    torch.testing.assert_close(first["prediction"], second["prediction"], rtol=1e-4, atol=1e-5)


def test_mean_fill_is_the_mean_of_the_whole_image_and_visible_patches_stay():
    model = MaskedImageModel(tiny(), fill="mean", mask_unit=1, band_stop=None)
    image, noise = torch.rand(2, 1, 32, 48), torch.rand(2, 6)
    output = model(image, noise)
    corrupted = patchify(output["corrupted"], (16, 16))
    mask = output["mask"].bool()
    means = image.mean(dim=(1, 2, 3))[:, None, None].expand_as(corrupted)
    torch.testing.assert_close(corrupted[mask], means[mask])
    torch.testing.assert_close(corrupted[~mask], patchify(image, (16, 16))[~mask])


def test_speckle_fill_has_the_statistics_of_fully_developed_speckle_at_the_patch_mean():
    model = MaskedImageModel(tiny(img_size=(256, 256)), fill="speckle", mask_unit=1, band_stop=None)
    image = torch.full((4, 1, 256, 256), 0.6)
    output = model(image)
    hidden = patchify(output["corrupted"], (16, 16))[output["mask"].bool()]
    assert 60 * hidden.std().item() == pytest.approx(5.57, rel=0.03)  # log-Rayleigh at a display range of 60 dB
    assert 60 * (hidden.mean().item() - 0.6) == pytest.approx(-2.51, abs=0.15)


def test_smallest_noise_stays_and_the_share_is_simmims():
    model = MaskedImageModel(tiny(img_size=(224, 224)), band_stop=None)
    assert model(torch.rand(2, 1, 224, 224))["mask"].sum(1).tolist() == [120.0, 120.0]  # ceil(0.6 * 49) blocks of 4
    noise = torch.arange(6.0).flip(0).expand(2, -1)
    mask = MaskedImageModel(tiny(), mask_unit=1, band_stop=None)(torch.rand(2, 1, 32, 48), noise)["mask"]
    assert mask[0].tolist() == [1, 1, 1, 1, 0, 0]
    mask = MaskedAutoencoder(tiny(), 32, 1, 2, mask_ratio=0.5)(torch.rand(2, 1, 32, 48), noise)["mask"]
    assert mask[0].tolist() == [1, 1, 1, 0, 0, 0]


def test_usfm_loss_compares_with_the_clean_image_before_any_corruption():
    model = MaskedImageModel(tiny(), mask_unit=1).eval()
    image, noise = torch.rand(2, 1, 32, 48), torch.rand(2, 6)
    output = model(image, noise)
    pixels = unpatchify(output["mask"][..., None].expand(-1, -1, 256), [2, 3], (16, 16))
    expected = SpatialFrequencyLoss()(output["prediction"], image, pixels)
    torch.testing.assert_close(output["loss"], expected)
    visible = pixels == 0
    assert not torch.allclose(output["corrupted"][visible], image[visible], atol=1e-3)  # the band-stop was at work


def test_sparse_objective_counts_frequency_errors_of_the_completed_image():
    torch.manual_seed(0)
    settings = {"decoder_hidden_size": 32, "decoder_num_layers": 1, "decoder_num_heads": 2, "norm": "l1"}
    model = MaskedAutoencoder(tiny(), **settings, frequency_weight=0.3).eval()
    image, noise = torch.rand(2, 1, 32, 48), torch.rand(2, 6)
    output = model(image, noise)
    patches = torch.where(output["mask"][..., None] > 0, output["prediction"], patchify(image, (16, 16)))
    loss = SpatialFrequencyLoss(1.0, 0.3)
    pixels = unpatchify(output["mask"][..., None].expand(-1, -1, 256), [2, 3], (16, 16))
    torch.testing.assert_close(output["loss"], loss(unpatchify(patches, [2, 3], (16, 16)), image, pixels))


@pytest.mark.parametrize(("dims", "size", "patch"), SIZES)
@pytest.mark.parametrize("make", ["usfm", "pyramid", "mae", "sparse"])
def test_every_objective_overfits_one_image(dims, size, patch, make):
    torch.manual_seed(0)
    encoder = tiny(dims, size, patch, pos_embed="sincos", layer_scale=None)
    if make == "usfm":
        model = MaskedImageModel(encoder, band_stop=None, fill="token")
    elif make == "pyramid":
        model = MaskedImageModel(encoder, band_stop=None, decoder="pyramid")
    elif make == "mae":
        model = MaskedAutoencoder(encoder, 32, 1, 2)
    else:
        model = MaskedAutoencoder(encoder, 32, 1, 2, band_stop=RandomBandStop(), frequency_weight=0.1, norm="l1")
    axes = [torch.linspace(0, 3.1, n) for n in size]
    image = torch.stack(torch.meshgrid(*axes, indexing="ij")).sum(0).sin().abs()[None, None]
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    losses = []
    for _ in range(300):
        loss = model(image)["loss"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
        if learned := sum(losses[-5:]) < 0.5 * sum(losses[:5]):
            break
    assert learned
    assert model.panels(image)["reconstruction"].shape == image.shape


BUILD = [
    MaskedImageModel,
    lambda encoder: MaskedImageModel(encoder, decoder="pyramid"),
    lambda encoder: MaskedAutoencoder(encoder, 32, 1, 2, band_stop=RandomBandStop()),
]


@pytest.mark.parametrize("build", BUILD)
def test_every_trainable_parameter_gets_a_gradient(build):
    """Distributed training stops where one gets none."""
    model = build(tiny())
    model(torch.rand(2, 1, 32, 48))["loss"].backward()
    assert not [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None]


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
@pytest.mark.parametrize("build", BUILD)
def test_the_network_may_be_of_another_precision(build, dtype):
    model = build(tiny()).to(dtype)
    out = model(torch.rand(2, 1, 32, 48, dtype=dtype))
    assert out["loss"].isfinite() and out["prediction"].isfinite().all()


def test_pretraining_runs_in_bf16_and_its_loss_is_close():
    torch.manual_seed(0)
    model = MaskedImageModel(tiny())
    image, noise = torch.rand(2, 1, 32, 48), torch.rand(2, 6)
    torch.manual_seed(1)
    full = model(image, noise)["loss"]
    torch.manual_seed(1)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half = model(image, noise)["loss"]
    assert half.dtype == torch.float32
    assert half.item() == pytest.approx(full.item(), rel=0.02)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: MaskedImageModel(tiny(), fill="black"), "fill must be one of"),
        (lambda: MaskedImageModel(tiny(), mask_ratio=1.0), "mask ratio"),
        (lambda: MaskedAutoencoder(tiny(), mask_kind="stripes"), "mask kind"),
        (lambda: MaskedAutoencoder(tiny(), frequency_weight=1, normalize_patches=True), "use one of the two"),
        (lambda: MaskedAutoencoder(tiny(), 32, 1, 2)(torch.rand(1, 1, 32, 40)), "multiple of patch size"),
        (lambda: MaskedImageModel(tiny())(torch.rand(1, 3, 32, 48)), "channel"),
        (lambda: MaskedImageModel(tiny())(torch.rand(1, 1, 32, 48), torch.rand(1, 5)), "noise must have"),
    ],
)
def test_bad_settings_and_inputs_are_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


class LeftHalf(torch.nn.Module):
    """Hides the right half of the tokens; those of the last row do not count."""

    def forward(self, image, patch_size, noise=None):
        rows, columns = (n // p for n, p in zip(image.shape[2:], patch_size, strict=True))
        index = torch.arange(rows * columns).reshape(rows, columns)
        keep, hidden = (part.reshape(1, -1).expand(len(image), -1) for part in index.tensor_split(2, dim=1))
        return keep, hidden, (hidden < (rows - 1) * columns).float()


class LastError(torch.nn.Module):
    def forward(self, prediction, target, mask):
        self.mask = mask
        return (prediction - target).square().sum() * 7


@pytest.mark.parametrize("make", [MaskedImageModel, MaskedAutoencoder])
def test_mask_and_loss_may_be_modules_of_ones_own(make):
    loss = LastError()
    net = make(tiny(img_size=(32, 64)), mask_kind=LeftHalf(), loss_function=loss)
    output = net(torch.rand(2, 1, 32, 64))
    hidden = torch.tensor([[0, 0, 1, 1], [0, 0, 1, 1]]).float()
    if make is MaskedImageModel:  # what does not count is not overwritten either
        hidden[1] = 0
        assert loss.mask.shape == (2, 1, 32, 64) and loss.mask.sum() == 2 * 2 * 256
    else:
        assert loss.mask.tolist() == [[1, 1, 0, 0]] * 2
    assert output["mask"].tolist() == [hidden.flatten().tolist()] * 2
    assert output["loss"].item() > 0


def test_a_pyramid_decoder_begins_with_the_image_as_it_was_corrupted():
    output = MaskedImageModel(tiny(), decoder="pyramid")(torch.rand(2, 1, 32, 48))
    torch.testing.assert_close(output["prediction"], output["corrupted"])


def test_a_pyramid_decoder_refuses_what_is_hidden_from_the_encoder_alone():
    with pytest.raises(ValueError, match='a pyramid decoder sees the pixels that fill "token" hides'):
        MaskedImageModel(tiny(), fill="token", decoder="pyramid")
