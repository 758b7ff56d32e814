# Copyright (c) monai_usfm contributors
# SPDX-License-Identifier: Apache-2.0
"""Weights in and out, against the BEiT and ViTMAE of `transformers` with every parameter randomized."""

from __future__ import annotations

import argparse
import os
import warnings
from functools import partial

import pytest
import torch
import torch.nn as nn

from monai_usfm.cli import main
from monai_usfm.networks import (
    LoadReport,
    UltrasoundViT,
    apply_lora,
    encoder_arguments,
    load_pretrained,
    to_mae_state_dict,
    to_usfm_state_dict,
)
from monai_usfm.networks.nets.classifier import UltrasoundClassifier
from monai_usfm.networks.nets.enhancer import UltrasoundEnhancer
from monai_usfm.networks.nets.masked import MaskedAutoencoder, MaskedImageModel
from monai_usfm.networks.nets.segmentation import UltrasoundSegmenter
from tests.random_networks import assert_same, randomized

WIDTH, LAYERS, HEADS, MLP = 32, 2, 2, 48
SIZE = {"hidden_size": WIDTH, "mlp_dim": MLP, "num_layers": LAYERS, "num_heads": HEADS}
MEAN = torch.tensor([0.485, 0.456, 0.406]).reshape(3, 1, 1)
STD = torch.tensor([0.229, 0.224, 0.225]).reshape(3, 1, 1)
TABLE = "rel_pos_bias.relative_position_bias_table"
POSITIONS = ["relative", "relative_per_block", "sincos", "learnable", "rotary"]


def vit(img_size=64, pos_embed="relative", **settings) -> UltrasoundViT:
    return randomized(UltrasoundViT(img_size, pos_embed=pos_embed, **{**SIZE, **settings}), seed=1)


def fresh(img_size=64, pos_embed="relative", **settings) -> UltrasoundViT:
    return UltrasoundViT(img_size, pos_embed=pos_embed, **{**SIZE, **settings}).eval()


def imagenet(x: torch.Tensor) -> torch.Tensor:
    """What published encoders were fed with, for gray or RGB images in [0, 1]."""
    return (x.expand(-1, 3, -1, -1) - MEAN) / STD


def halves(x: torch.Tensor) -> torch.Tensor:
    """What Hugging Face's BEiT and ViT were fed with."""
    return (x.expand(-1, 3, -1, -1) - 0.5) / 0.5


def plain(net: nn.Module) -> dict[str, torch.Tensor]:
    """Names of the official file, tensors as they are."""
    return to_usfm_state_dict(net, imagenet_input=False)


def images(*shape: int, seed: int = 2) -> torch.Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


# --- references and name maps written here, independently of the package ------------------------------------------


def beit(per_block: bool = False, **settings):
    transformers = pytest.importorskip("transformers")
    config = transformers.BeitConfig(
        hidden_size=WIDTH, num_hidden_layers=LAYERS, num_attention_heads=HEADS, intermediate_size=MLP, image_size=64,
        patch_size=16, layer_norm_eps=1e-6, layer_scale_init_value=0.1, drop_path_rate=0.0, use_mask_token=True,
        use_relative_position_bias=per_block, use_shared_relative_position_bias=not per_block,
        use_absolute_position_embeddings=False, **{"use_mean_pooling": False, **settings},
    )  # fmt: skip
    return transformers, config


def beit_model(per_block: bool = False) -> nn.Module:
    transformers, config = beit(per_block)
    return randomized(transformers.BeitModel(config, add_pooling_layer=False))


def usfm_file(model: nn.Module) -> dict[str, torch.Tensor]:
    """A BeitModel's weights in the layout of USFM_latest.pth, or of official fine-tuning (one table per block)."""
    theirs = model.state_dict()
    file = {
        "cls_token": theirs["embeddings.cls_token"],
        "mask_token": theirs["embeddings.mask_token"],
        "patch_embed.proj.weight": theirs["embeddings.patch_embeddings.projection.weight"],
        "patch_embed.proj.bias": theirs["embeddings.patch_embeddings.projection.bias"],
    }
    index = model.layers[0].relative_position_bias or model.shared_position_bias
    index = index.generate_relative_position_index((4, 4))
    if model.shared_position_bias is not None:
        file[TABLE] = theirs["shared_position_bias.relative_position_bias_table"]
        file["rel_pos_bias.relative_position_index"] = index
    if "layernorm.weight" in theirs:
        file["norm.weight"], file["norm.bias"] = theirs["layernorm.weight"], theirs["layernorm.bias"]
    for i in range(LAYERS):
        old, new = f"layers.{i}.", f"blocks.{i}."
        file[new + "gamma_1"], file[new + "gamma_2"] = theirs[old + "lambda_1"], theirs[old + "lambda_2"]
        parts = [theirs[old + f"attention.{p}_proj.weight"] for p in "qkv"]
        file[new + "attn.qkv.weight"] = torch.cat(parts)
        file[new + "attn.q_bias"] = theirs[old + "attention.q_proj.bias"]
        file[new + "attn.v_bias"] = theirs[old + "attention.v_proj.bias"]
        if model.shared_position_bias is None:
            table = old + "relative_position_bias.relative_position_bias_table"
            file[new + "attn.relative_position_bias_table"] = theirs[table]
            file[new + "attn.relative_position_index"] = index
        _copy_rest(theirs, old, file, new)
    return file


def _copy_rest(theirs, old, file, new) -> None:
    names = {"attention.o_proj": "attn.proj", "layernorm_before": "norm1", "layernorm_after": "norm2"}
    for a, b in {**names, "mlp.fc1": "mlp.fc1", "mlp.fc2": "mlp.fc2"}.items():
        for part in ("weight", "bias"):
            file[f"{new}{b}.{part}"] = theirs[f"{old}{a}.{part}"]


def beit_from_usfm(file: dict[str, torch.Tensor], model: nn.Module) -> None:
    """Fill a BeitModel from a USFM file: the inverse of `usfm_file`, every tensor of the model demanded."""
    theirs = {
        "embeddings.cls_token": file["cls_token"],
        "embeddings.mask_token": torch.zeros(1, 1, WIDTH),
        "embeddings.patch_embeddings.projection.weight": file["patch_embed.proj.weight"],
        "embeddings.patch_embeddings.projection.bias": file["patch_embed.proj.bias"],
        "layernorm.weight": file["norm.weight"],
        "layernorm.bias": file["norm.bias"],
    }
    if TABLE in file:
        theirs["shared_position_bias.relative_position_bias_table"] = file[TABLE]
    for i in range(LAYERS):
        new, old = f"layers.{i}.", f"blocks.{i}."
        theirs[new + "lambda_1"], theirs[new + "lambda_2"] = file[old + "gamma_1"], file[old + "gamma_2"]
        for p, weight in zip("qkv", file[old + "attn.qkv.weight"].chunk(3), strict=True):
            theirs[new + f"attention.{p}_proj.weight"] = weight
        theirs[new + "attention.q_proj.bias"] = file[old + "attn.q_bias"]
        theirs[new + "attention.v_proj.bias"] = file[old + "attn.v_bias"]
        if TABLE not in file:
            table = file[old + "attn.relative_position_bias_table"]
            theirs[new + "relative_position_bias.relative_position_bias_table"] = table
        names = {"attn.proj": "attention.o_proj", "norm1": "layernorm_before", "norm2": "layernorm_after"}
        for a, b in {**names, "mlp.fc1": "mlp.fc1", "mlp.fc2": "mlp.fc2"}.items():
            for part in ("weight", "bias"):
                theirs[f"{new}{b}.{part}"] = file[f"{old}{a}.{part}"]
    model.load_state_dict(theirs, strict=True)


def vit_mae(channels: int = 3, normalized: bool = False) -> nn.Module:
    transformers = pytest.importorskip("transformers")
    config = transformers.ViTMAEConfig(
        hidden_size=WIDTH, num_hidden_layers=LAYERS, num_attention_heads=HEADS, intermediate_size=MLP, image_size=64,
        patch_size=16, layer_norm_eps=1e-6, num_channels=channels, decoder_hidden_size=16, norm_pix_loss=normalized,
        decoder_num_hidden_layers=2, decoder_num_attention_heads=2, decoder_intermediate_size=64,
    )  # fmt: skip
    return randomized(transformers.ViTMAEForPreTraining(config))


def mae_names() -> dict[str, str | list[str]]:
    """facebookresearch/mae name -> name(s) in ViTMAEForPreTraining (several are concatenated)."""
    names: dict[str, str | list[str]] = {
        "cls_token": "vit.embeddings.cls_token",
        "pos_embed": "vit.embeddings.position_embeddings",
        "mask_token": "decoder.mask_token",
        "decoder_pos_embed": "decoder.decoder_pos_embed",
    }
    pairs = [("patch_embed.proj", "vit.embeddings.patch_embeddings.projection"), ("norm", "vit.layernorm")]
    pairs += [(f"decoder_{n}", f"decoder.decoder_{n}") for n in ("embed", "norm", "pred")]
    stacks = [(f"blocks.{i}.", f"vit.layers.{i}.") for i in range(LAYERS)]
    stacks += [(f"decoder_blocks.{i}.", f"decoder.decoder_layers.{i}.") for i in range(2)]
    for ours, theirs in stacks:
        pairs += [(ours + "norm1", theirs + "layernorm_before"), (ours + "norm2", theirs + "layernorm_after")]
        pairs += [(ours + f"mlp.{m}", theirs + f"mlp.{m}") for m in ("fc1", "fc2")]
        pairs += [(ours + "attn.proj", theirs + "attention.o_proj")]
        for part in ("weight", "bias"):
            names[ours + f"attn.qkv.{part}"] = [theirs + f"attention.{p}_proj.{part}" for p in "qkv"]
    for ours, theirs in pairs:
        for part in ("weight", "bias"):
            names[f"{ours}.{part}"] = f"{theirs}.{part}"
    return names


def mae_file(model: nn.Module) -> dict[str, torch.Tensor]:
    theirs = model.state_dict()
    return {a: torch.cat([theirs[n] for n in b]) if isinstance(b, list) else theirs[b] for a, b in mae_names().items()}


def mae_from_file(file: dict[str, torch.Tensor], model: nn.Module) -> None:
    theirs: dict[str, torch.Tensor] = {}
    for name, target in mae_names().items():
        if isinstance(target, list):
            theirs.update(zip(target, file[name].chunk(3), strict=True))
        else:
            theirs[target] = file[name]
    model.load_state_dict(theirs, strict=True)


def autoencoder(img_size=64, in_channels=3, **settings) -> MaskedAutoencoder:
    encoder = fresh(img_size, "sincos", in_channels=in_channels, layer_scale=None, **settings)
    return MaskedAutoencoder(encoder, decoder_hidden_size=16, decoder_num_layers=2, decoder_num_heads=2).eval()


# --- published layouts ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("per_block", [False, True])
def test_usfm_files_give_the_features_of_beit(per_block):
    model = beit_model(per_block)
    net = fresh(pos_embed="relative_per_block" if per_block else "relative", in_channels=3)
    report = load_pretrained(net, usfm_file(model), strict=True)
    assert (report.missing, report.unexpected, report.resized) == ([], ["mask_token"], {})
    assert report.layout == ("USFM or BEiT with a bias table per block" if per_block else "USFM")
    x = images(2, 3, 64, 64)
    assert_same(net(x), model(imagenet(x)).last_hidden_state, 3e-5)


@pytest.mark.parametrize("wrapper", [None, "model", "state_dict", "module", "network"])
@pytest.mark.parametrize("prefix", ["", "encoder.", "backbone.", "module.", "model.", "transformer.", "module.model."])
def test_wrappers_and_prefixes_do_not_matter(wrapper, prefix):
    source = plain(vit())
    content = {prefix + name: tensor for name, tensor in source.items()}
    content["decode_head.conv_seg.weight"] = torch.zeros(2, 3)
    net = fresh()
    report = load_pretrained(net, {"epoch": 3, "optimizer": {"lr": 1.0}, wrapper: content} if wrapper else content)
    assert report.missing == [] and report.unexpected == ["decode_head.conv_seg.weight"]
    for name, tensor in net.state_dict().items():
        if "native_grid" not in name:
            assert torch.equal(tensor, source[name]), name


def test_a_shared_table_serves_every_block_of_a_per_block_network():
    source, net = vit(), fresh(pos_embed="relative_per_block")
    report = load_pretrained(net, plain(source), strict=True)
    assert any("copied to every block" in note for note in report.notes)
    assert_same(net(images(1, 1, 64, 64)), source(images(1, 1, 64, 64)), 1e-6)


def test_equal_tables_become_the_shared_one_and_unequal_ones_are_refused():
    source, net = vit(pos_embed="relative_per_block"), fresh()
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    with pytest.raises(ValueError, match='pos_embed="relative_per_block"'):
        load_pretrained(net, plain(source))
    assert all(torch.equal(tensor, before[name]) for name, tensor in net.state_dict().items())
    with torch.no_grad():
        source.rel_pos_bias.relative_position_bias_table[1:] = source.rel_pos_bias.relative_position_bias_table[:1]
    load_pretrained(net, plain(source), strict=True)
    assert_same(net(images(1, 1, 64, 64)), source(images(1, 1, 64, 64)), 1e-6)


def test_shared_and_per_block_tables_in_one_file_add_up():
    source, extra = vit(pos_embed="relative_per_block"), vit()
    file = plain(source)
    file[TABLE] = extra.rel_pos_bias.relative_position_bias_table.detach()
    net = fresh(pos_embed="relative_per_block")
    load_pretrained(net, file, strict=True)
    assert_same(
        net.rel_pos_bias.relative_position_bias_table, source.rel_pos_bias.relative_position_bias_table + file[TABLE]
    )


def test_mae_files_give_the_features_of_vitmae():
    model = vit_mae()
    model.vit.config.mask_ratio = 0.0
    net = fresh(pos_embed="sincos", in_channels=3, layer_scale=None)
    report = load_pretrained(net, mae_file(model), strict=True)
    assert report.layout == "MAE with decoder" and "decoder_embed.weight" in report.unexpected
    x, order = images(2, 3, 64, 64), torch.arange(16.0).repeat(2, 1)
    assert_same(net(x), model.vit(imagenet(x), noise=order).last_hidden_state, 3e-5)


@pytest.mark.parametrize("normalized", [False, True])
def test_mae_files_fill_the_decoder_too(normalized):
    model, net = vit_mae(normalized=normalized), autoencoder()
    net.normalize_patches = net.loss_function.normalize_patches = normalized
    report = load_pretrained(net, {"model": mae_file(model)}, strict=True, fold_normalization=False)
    assert (report.missing, report.unexpected, report.resized) == ([], [], {})
    x, noise = images(2, 3, 64, 64), images(2, 16, seed=3)
    theirs, ours = model(x, noise=noise), net(x, noise)
    assert_same(ours["prediction"], theirs.logits)
    assert_same(ours["loss"], theirs.loss)


def test_a_file_without_decoder_leaves_the_decoder_and_says_so():
    file = {k: v for k, v in mae_file(vit_mae()).items() if "decoder" not in k and k != "mask_token"}
    net = autoencoder()
    before = net.mask_token.clone()
    report = load_pretrained(net, file)
    assert report.layout == "MAE or ViT" and "mask_token" in report.missing and "decoder_pred.bias" in report.missing
    assert torch.equal(net.mask_token, before)
    with pytest.raises(ValueError, match="strict"):
        load_pretrained(net, file, strict=True)


def test_the_mask_token_of_an_encoder_is_never_taken_for_that_of_a_decoder():
    file = plain(vit())
    file["mask_token"] = torch.ones(1, 1, WIDTH)
    masked = MaskedImageModel(fresh(), fill="token")
    assert load_pretrained(masked, file).missing == []
    assert torch.equal(masked.mask_token, file["mask_token"])
    report = load_pretrained(MaskedAutoencoder(fresh(), 16, 1, 2), file)
    assert "mask_token" in report.missing and "mask_token" in report.unexpected


@pytest.mark.parametrize("kind", ["beit", "beit per block", "mae"])
@pytest.mark.parametrize("stored", ["module", "file"])
def test_hugging_face_names_are_understood(kind, stored, tmp_path):
    model = vit_mae() if kind == "mae" else beit_model(kind != "beit")
    source = model.state_dict()
    if stored == "file":  # older names, in a safetensors file
        pytest.importorskip("safetensors")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model.save_pretrained(tmp_path)
        source = tmp_path / "model.safetensors"
    x, noise = images(2, 3, 64, 64), images(2, 16, seed=3)
    if kind == "mae":
        net = autoencoder()
        report = load_pretrained(net, source, strict=True, fold_normalization=False)
        assert report.layout == "Hugging Face ViTMAE with decoder"
        assert_same(net(x, noise)["prediction"], model(x, noise=noise).logits)
    else:
        net = fresh(pos_embed="relative" if kind == "beit" else "relative_per_block", in_channels=3)
        report = load_pretrained(net, source, strict=True)
        assert report.layout == "Hugging Face BEiT"
        assert_same(net(x), model(halves(x)).last_hidden_state, 3e-5)
    assert report.missing == []


def test_hugging_face_names_of_older_files_are_understood():
    model = beit_model()
    old = {}
    for name, tensor in model.state_dict().items():
        for new, before in {
            "layers.": "encoder.layer.", "shared_position_bias.": "encoder.relative_position_bias.",
            "attention.q_proj": "attention.attention.query", "attention.k_proj": "attention.attention.key",
            "attention.v_proj": "attention.attention.value", "attention.o_proj": "attention.output.dense",
            "mlp.fc1": "intermediate.dense", "mlp.fc2": "output.dense",
        }.items():  # fmt: skip
            name = name.replace(new, before)
        old["beit." + name] = tensor
    net = fresh(in_channels=3)
    load_pretrained(net, old, strict=True)
    x = images(1, 3, 64, 64)
    assert_same(net(x), model(halves(x)).last_hidden_state, 3e-5)


def test_layer_scale_in_the_names_of_timm_vision_transformers_is_understood():
    source = vit(pos_embed="learnable")
    file = {
        name.replace("gamma_1", "ls1.gamma").replace("gamma_2", "ls2.gamma").replace(".table", ""): tensor
        for name, tensor in source.state_dict().items()
        if "native_grid" not in name
    }
    net = fresh(pos_embed="learnable")
    assert load_pretrained(net, file, strict=True).layout == "DINOv2"
    assert_same(net(images(1, 1, 64, 64)), source(images(1, 1, 64, 64)), 1e-6)


@pytest.mark.parametrize("patches", [(14, 16), (8, 16), (14, (16, 18)), ((4, 8, 8), (6, 12, 10))])
def test_larger_patches_see_an_enlarged_patch_as_the_old_ones_saw_it(patches):
    # The definition: the new kernel on the resized patch is the old kernel on the patch. Beyer et al. 2023, equation 2.
    dims = 3 if isinstance(patches[0], tuple) else 2
    settings = {"pos_embed": "learnable", "spatial_dims": dims}
    old, new = (p if isinstance(p, tuple) else (p,) * dims for p in patches)
    source = vit(tuple(2 * p for p in old), patch_size=old, in_channels=3, **settings)
    net = fresh(tuple(2 * p for p in new), patch_size=new, in_channels=3, **settings)
    report = load_pretrained(net, source.state_dict(), strict=True)
    assert list(report.resized) == ["patch_embed.proj.weight"]
    patch = images(5, 3, *old).double()
    enlarged = patch
    for axis, size in enumerate(new, start=2):  # a patch is enlarged by itself, axis by axis
        moved = enlarged.movedim(axis, -1)
        lines = torch.nn.functional.interpolate(moved.flatten(1, -2), size, mode="linear", align_corners=False)
        enlarged = lines.reshape(*moved.shape[:-1], size).movedim(-1, axis)
    with torch.no_grad():
        expected = source.double().patch_embed.proj(patch).flatten(1)
        assert_same(net.double().patch_embed.proj(enlarged).flatten(1), expected, 1e-5)


def test_smaller_patches_are_the_least_squares_ones():
    source, net = vit(28, patch_size=14, in_channels=1), fresh(16, patch_size=8, in_channels=1)
    load_pretrained(net, source.state_dict())
    eye = torch.eye(14, dtype=torch.float64)[None, None]
    resize = torch.nn.functional.interpolate(eye, (8, 14), mode="bilinear", antialias=True)[0, 0]
    whole = torch.kron(resize, resize).T  # (196, 64): pixels of a patch, row by row
    old = source.patch_embed.proj.weight.detach().double().reshape(WIDTH, -1)
    expected = torch.linalg.lstsq(whole, old.T).solution.T.reshape(WIDTH, 1, 8, 8)
    assert_same(net.patch_embed.proj.weight, expected.float(), 1e-5)


def dino(registers: int = 0, **settings):
    transformers = pytest.importorskip("transformers")
    kind = "Dinov2WithRegisters" if registers else "Dinov2"
    config = getattr(transformers, kind + "Config")(
        hidden_size=WIDTH, num_hidden_layers=LAYERS, num_attention_heads=HEADS, mlp_ratio=2, image_size=56,
        patch_size=14, layer_norm_eps=1e-6, **({"num_register_tokens": registers} if registers else {}), **settings,
    )  # fmt: skip
    return randomized(getattr(transformers, kind + "Model")(config))


def dino_file(model: nn.Module) -> dict[str, torch.Tensor]:
    """The names of facebookresearch/dinov2."""
    theirs, file = model.state_dict(), {}
    pairs = {"embeddings.cls_token": "cls_token", "embeddings.mask_token": "mask_token", "layernorm": "norm",
             "embeddings.position_embeddings": "pos_embed", "embeddings.register_tokens": "register_tokens",
             "embeddings.patch_embeddings.projection": "patch_embed.proj"}  # fmt: skip
    for name, tensor in theirs.items():
        for old, new in pairs.items():
            name = name.replace(old, new)
        name = name.replace("encoder.layer.", "blocks.").replace("layer_scale", "ls").replace("lambda1", "gamma")
        file[name.replace("attention.o_proj", "attn.proj")] = tensor
    for i in range(LAYERS):
        for part in ("weight", "bias"):
            parts = [file.pop(f"blocks.{i}.attention.{p}_proj.{part}") for p in "qkv"]
            file[f"blocks.{i}.attn.qkv.{part}"] = torch.cat(parts)
    return file


@pytest.mark.parametrize("registers", [0, 4])
@pytest.mark.parametrize("names", ["Hugging Face", "official"])
def test_dinov2_gives_its_features(registers, names):
    model = dino(registers)
    file = model.state_dict() if names == "Hugging Face" else dino_file(model)
    arguments = {**encoder_arguments(file), "num_heads": HEADS}
    net = UltrasoundViT(**arguments).eval()
    report = load_pretrained(net, file, strict=True)
    assert report.layout == ("Hugging Face DINOv2" if names == "Hugging Face" else "DINOv2")
    assert report.missing == [] and report.unexpected[0].endswith("mask_token")
    x = images(2, 3, 56, 56)
    tokens = model(imagenet(x)).last_hidden_state
    assert_same(net(x), torch.cat([tokens[:, :1], tokens[:, 1 + registers :]], 1), 5e-5)
    torch.testing.assert_close(torch.jit.script(net)(x), net(x))
    hidden = model(imagenet(x), output_hidden_states=True).hidden_states[1][:, 1 + registers :]
    assert_same(net.forward_intermediates(x, [0])[0].flatten(2).transpose(1, 2), hidden, 5e-5)


def dinov3(**settings):
    transformers = pytest.importorskip("transformers")
    if not hasattr(transformers, "DINOv3ViTModel"):
        pytest.skip("transformers without DINOv3")
    config = transformers.DINOv3ViTConfig(
        hidden_size=WIDTH, num_hidden_layers=LAYERS, num_attention_heads=HEADS, intermediate_size=MLP,
        num_register_tokens=4, **settings,
    )  # fmt: skip
    return randomized(transformers.DINOv3ViTModel(config))


def dinov3_file(model: nn.Module, names: str) -> dict[str, torch.Tensor]:
    """The names of facebookresearch/dinov3 or of timm, with what else their files hold."""
    official, file = names == "official", {}
    for name, tensor in model.state_dict().items():
        name = name.removeprefix("embeddings.").replace("patch_embeddings", "patch_embed.proj")
        name = name.replace("register_tokens", "storage_tokens" if official else "reg_token")
        name = name.replace("model.layer.", "blocks.").replace("o_proj", "proj").replace("attention", "attn")
        name = name.replace("mlp.up_proj", "mlp.fc1").replace("mlp.down_proj", "mlp.fc2")
        for i in "12":
            name = name.replace(f"layer_scale{i}.lambda1", f"ls{i}.gamma" if official else f"gamma_{i}")
        file[name] = tensor
    for i in range(LAYERS):
        at = f"blocks.{i}.attn."
        file[at + "qkv.weight"] = torch.cat([file.pop(f"{at}{p}_proj.weight") for p in "qkv"])
        query, value = (file.pop(f"{at}{p}_proj.bias") for p in "qv")
        if official:  # the bias of the keys is there, and masked
            file[at + "qkv.bias"] = torch.cat([query, images(WIDTH), value])
            file[at + "qkv.bias_mask"] = torch.tensor([1.0, 0.0, 1.0]).repeat_interleave(WIDTH)
        else:
            file |= {at + "q_bias": query, at + "v_bias": value}
    if official:
        quarter = WIDTH // HEADS // 4
        file["rope_embed.periods"] = (100 ** (torch.arange(quarter) / quarter)).bfloat16()
    else:
        del file["mask_token"]
    return file


@pytest.mark.parametrize("names", ["Hugging Face", "official", "timm"])
def test_dinov3_gives_its_features(names):
    model = dinov3()
    file = model.state_dict() if names == "Hugging Face" else dinov3_file(model, names)
    arguments = encoder_arguments(file)
    assert (arguments["pos_embed"], arguments["num_registers"], arguments["img_size"]) == ("rotary", 4, (224, 224))
    net = UltrasoundViT(**{**arguments, "num_heads": HEADS, "img_size": 64}).eval()
    report = load_pretrained(net, file, strict=True)
    assert report.layout == {"official": "DINOv3"}.get(names, f"{names} DINOv3")
    assert report.missing == [] and [n for n in report.unexpected if "mask_token" not in n] == []
    for size in ((64, 64), (48, 80)):
        x = images(2, 3, *size)
        tokens = model(imagenet(x)).last_hidden_state
        assert_same(net(x), torch.cat([tokens[:, :1], tokens[:, 5:]], 1), 5e-5)
        torch.testing.assert_close(torch.jit.script(net)(x), net(x))
    hidden = model(imagenet(x), output_hidden_states=True).hidden_states[1][:, 5:]
    assert_same(net.forward_intermediates(x, [0])[0].flatten(2).transpose(1, 2), hidden, 5e-5)
    # a network of its own, and one of another patch and of volumes, begin with it
    again = fresh(pos_embed="rotary", in_channels=3, num_registers=4)
    assert load_pretrained(again, net.state_dict(), strict=True).notes == []
    assert_same(again(x), net(x), 1e-6)
    gray = x.mean(1, keepdim=True)
    flat = fresh((16, 64, 64), pos_embed="rotary", spatial_dims=3, num_registers=4)
    load_pretrained(flat, file, strict=True)
    assert_same(flat(gray[:, :, None].expand(-1, -1, 16, -1, -1)), net(gray.expand(-1, 3, -1, -1)), 5e-5)
    load_pretrained(fresh(56, patch_size=14, pos_embed="rotary", num_registers=4), file, strict=True)


def test_tokens_of_rotary_positions_know_their_places():
    net = vit(pos_embed="rotary", num_registers=2)
    x = images(2, 1, 64, 64)
    everything = torch.arange(16).flip(0).expand(2, -1)
    whole = net(x)
    assert_same(net.forward_features(x, everything), torch.cat([whole[:, :1], whole[:, 1:].flip(1)], 1), 1e-5)
    volume = vit((32, 64, 64), pos_embed="rotary", spatial_dims=3)
    upright = volume(torch.stack([x, x.flip(3)], 2).repeat_interleave(16, 2))
    turned = volume(torch.stack([x.flip(3), x], 2).repeat_interleave(16, 2))
    assert not torch.allclose(upright[:, 0], turned[:, 0], atol=1e-3)  # slices have places too
    with pytest.raises(ValueError, match="a head has 10"):
        UltrasoundViT(64, hidden_size=20, num_heads=2, pos_embed="rotary")


def test_what_this_encoder_cannot_compute_is_refused_by_name():
    with pytest.raises(ValueError, match=r"SwiGLU.*another size"):
        load_pretrained(fresh(), dino(use_swiglu_ffn=True).state_dict())
    with pytest.raises(ValueError, match=r"SwiGLU.*another size"):
        load_pretrained(fresh(), dinov3(use_gated_mlp=True, hidden_act="silu").state_dict())
    with pytest.raises(ValueError, match="biases of the keys"):
        load_pretrained(fresh(), dinov3(key_bias=True).state_dict())
    file = dinov3_file(dinov3(), "official")
    with pytest.raises(ValueError, match="other frequencies"):
        load_pretrained(fresh(), {**file, "rope_embed.periods": 2 * file["rope_embed.periods"]})
    report = load_pretrained(fresh(in_channels=3), file)
    assert any("no relative positions" in note for note in report.notes)
    report = load_pretrained(fresh(56, patch_size=14, in_channels=3, pos_embed="rotary", mlp_dim=64), dino_file(dino()))
    assert any("no rotary positions" in note for note in report.notes)


def test_registers_need_absolute_positions():
    with pytest.raises(ValueError, match="num_registers must be 0"):
        UltrasoundViT(64, num_registers=4, **SIZE)


def test_official_classifiers_give_their_logits():
    transformers, config = beit(per_block=True, use_mean_pooling=True, num_labels=5)
    model = randomized(transformers.BeitForImageClassification(config))
    file = usfm_file(model.beit)
    del file["mask_token"]
    for part in ("weight", "bias"):
        file[f"fc_norm.{part}"] = getattr(model.beit.pooler.layernorm, part).detach()
        file[f"head.{part}"] = getattr(model.classifier, part).detach()
    net = UltrasoundClassifier(fresh(pos_embed="relative_per_block", in_channels=3), num_classes=5).eval()
    report = load_pretrained(net, {"model": file, "epoch": 7}, strict=True)
    assert report.unexpected == [] and any("no final norm" in note for note in report.notes)
    x = images(2, 3, 64, 64)
    assert_same(net(x), model(imagenet(x)).logits, 3e-5)
    other = UltrasoundClassifier(fresh(pos_embed="relative_per_block", in_channels=3), num_classes=3)
    report = load_pretrained(other, file)
    assert report.unexpected == [] and report.anew["head.weight"] == "(5, 32) -> (3, 32)"
    assert "other shape, started anew: head.weight" in str(report)


def test_a_pretrained_norm_initializes_fc_norm_and_the_report_says_so():
    source, net = vit(), UltrasoundClassifier(fresh(), num_classes=2)
    report = load_pretrained(net, plain(source))
    assert torch.equal(net.fc_norm.weight, source.norm.weight) and any("fc_norm" in note for note in report.notes)
    assert report.missing == []


# --- own checkpoints -----------------------------------------------------------------------------------------------


def test_the_norm_of_another_pooling_is_left_and_the_report_says_so():
    source, net = UltrasoundClassifier(fresh(), 2, "pyramid"), UltrasoundClassifier(fresh(), 2, "mean")
    report = load_pretrained(net, randomized(source).state_dict())
    assert {"fc_norm.weight", "fc_norm.bias", "head.weight"} <= set(report.anew)
    assert net.fc_norm.weight.eq(1).all() and "fc_norm.weight" not in report.unexpected


@pytest.mark.parametrize("wrap", [MaskedImageModel, lambda e: UltrasoundClassifier(e, 256), lambda e: e])
def test_an_encoder_comes_out_of_any_network_of_ours(wrap):
    source = vit()
    trained = wrap(source)
    net = fresh()
    report = load_pretrained(net, {"network": trained.state_dict(), "epoch": 1}, strict=True)
    assert report.layout == "monai_usfm"
    assert_same(net(images(1, 1, 64, 64)), source(images(1, 1, 64, 64)), 0)


def task_network(kind, classes=2, **options):
    encoder = UltrasoundViT(64, hidden_size=WIDTH, mlp_dim=MLP, num_layers=4, num_heads=HEADS)
    if kind == "classifier":
        return UltrasoundClassifier(encoder, classes, pool="pyramid", **options).eval()
    return UltrasoundSegmenter(encoder, classes, **options).eval()


@pytest.mark.parametrize("options", [{}, {"head": "upernet"}, {"head": "segvit"}])
def test_a_segmenter_of_ours_loads_whole(options):
    source, net = task_network("segmenter", **options), task_network("segmenter", **options)
    report = load_pretrained(net, {f"module.{k}": v for k, v in source.state_dict().items()})
    assert report.unexpected == []
    assert torch.equal(net(images(2, 1, 64, 64)), source(images(2, 1, 64, 64)))


def test_other_classes_keep_the_decoder_but_not_the_output_layer():
    source, net = task_network("segmenter", 4), task_network("segmenter", 3)
    report = load_pretrained(net, source.state_dict())
    assert list(report.anew) == ["head.to_pixels.weight", "head.to_pixels.bias"] and report.unexpected == []
    assert torch.equal(net.head.decoder.stem[0].residual.weight, source.head.decoder.stem[0].residual.weight)
    assert not any(parameter.any() for parameter in net.head.to_pixels.parameters())
    assert "head.to_pixels.weight: (16, 4, 2, 2) -> (16, 3, 2, 2), from zero" in str(report)
    assert not [name for name in report.loaded if "to_pixels" in name]


@pytest.mark.parametrize("options", [{}, {"finest": 1}])
@pytest.mark.parametrize("dims", [2, 3])
def test_several_structures_begin_as_shares_of_the_one_of_the_source(dims, options):
    source = network_of("pyramid", 2, 16, num_classes=2, **options)
    net = network_of("pyramid", dims, 16, num_classes=5, **options)
    report = load_pretrained(net, source.state_dict(), strict=True)
    assert report.anew == {} and report.unexpected == [] and report.missing == []
    assert "a share of the structure for each" in report.resized["head.to_pixels.bias"]
    x = images(2, 1, 64, 64)
    expected = source(x).softmax(1)
    expected = expected if dims == 2 else expected.unsqueeze(2).expand(-1, -1, 16, -1, -1)
    found = net(x if dims == 2 else x.unsqueeze(2).expand(-1, -1, 16, -1, -1)).softmax(1)
    assert_same(found[:, :1], expected[:, :1], 1e-3)
    assert_same(found[:, 1:], expected[:, 1:].expand_as(found[:, 1:]) / 4, 1e-3)


def test_a_classifier_gets_the_decoder_of_a_segmenter():
    source, net = task_network("segmenter"), task_network("classifier")
    load_pretrained(net, source.state_dict())
    theirs = source.head.decoder.state_dict()
    assert theirs and all(torch.equal(v, theirs[k]) for k, v in net.pyramid_pool.decoder.state_dict().items())


def test_a_decoder_of_another_shape_is_left_whole_and_the_report_says_so():
    source, net = task_network("segmenter"), task_network("segmenter", width=64)
    before = {k: v.clone() for k, v in net.head.state_dict().items()}
    report = load_pretrained(net, source.state_dict())
    assert "the decoder of the source has another shape" in str(report)
    assert all(torch.equal(v, before[k]) for k, v in net.head.state_dict().items())
    assert torch.equal(net.encoder.cls_token, source.encoder.cls_token)


@pytest.mark.parametrize("kind", ["segmenter", "classifier"])
def test_color_images_get_the_decoder_of_gray_ones(kind):
    source = randomized(task_network(kind))
    encoder = UltrasoundViT(64, in_channels=3, hidden_size=WIDTH, mlp_dim=MLP, num_layers=4, num_heads=HEADS)
    build = {"segmenter": UltrasoundSegmenter, "classifier": partial(UltrasoundClassifier, pool="pyramid")}[kind]
    net = build(encoder, 2).eval()
    report = load_pretrained(net, source.state_dict(), strict=True)
    assert report.unexpected == [] and report.anew == {}
    assert sum("1 -> 3 channel(s)" in what for what in report.resized.values()) == 3  # patches and the decoder's stem
    x = images(2, 1, 64, 64)
    expected = source(x)
    assert_same(net(x.expand(-1, 3, -1, -1)) / expected.std(), expected / expected.std(), 1e-4)
    back = task_network(kind)
    load_pretrained(back, net.state_dict(), strict=True)
    assert_same(back(x) / expected.std(), expected / expected.std(), 1e-4)


def network_of(kind, spatial_dims, depth, num_classes=3, **options):
    """A network for one task with random weights: 64 x 64, or one patch of ``depth`` deep."""
    size = (64, 64) if spatial_dims == 2 else (depth, 64, 64)
    patch = 16 if spatial_dims == 2 else (depth, 16, 16)
    encoder = UltrasoundViT(
        size, patch_size=patch, spatial_dims=spatial_dims, hidden_size=WIDTH, mlp_dim=MLP, num_layers=4, num_heads=HEADS
    )
    if kind == "classifier":
        return randomized(UltrasoundClassifier(encoder, num_classes, pool="pyramid", **options))
    if kind == "enhancer":
        return randomized(UltrasoundEnhancer(encoder, **options))
    return randomized(UltrasoundSegmenter(encoder, num_classes, head=kind, **options))


@pytest.mark.parametrize("depth", [4, 16])
@pytest.mark.parametrize("kind", ["pyramid", "upernet", "segvit", "classifier", "enhancer"])
def test_a_network_of_images_is_inflated_with_all_its_layers(kind, depth):
    source, net = network_of(kind, 2, depth), network_of(kind, 3, depth)
    report = load_pretrained(net, source.state_dict(), strict=True)
    assert report.missing == report.unexpected == []
    assert "inflated" in str(report)
    x = images(2, 1, 64, 64)
    expected = source(x)
    expected = expected if kind == "classifier" else expected.unsqueeze(2).expand(-1, -1, depth, -1, -1)
    size = expected.std()
    assert_same(net(x.unsqueeze(2).expand(-1, -1, depth, -1, -1)) / size, expected / size, 1e-4)


def test_an_inflated_decoder_of_other_strides_is_left_whole():
    # Deeper than wide, the patch needs a level that the decoder of images does not have.
    source, net = network_of("pyramid", 2, 16), network_of("pyramid", 3, 32)
    before = {k: v.clone() for k, v in net.head.state_dict().items()}
    report = load_pretrained(net, source.state_dict())
    assert "the decoder of the source has another shape" in str(report) and "inflated" not in str(report)
    assert all(torch.equal(v, before[k]) for k, v in net.head.state_dict().items() if k.startswith("decoder."))


def test_a_pretraining_head_is_not_taken_for_a_class_layer():
    # One pixel layer of 256 outputs, and 256 classes: the shapes agree, the meaning does not.
    trained, net = randomized(MaskedImageModel(fresh())), UltrasoundClassifier(fresh(), num_classes=256, pool="class")
    before = net.head.weight.clone()
    report = load_pretrained(net, trained.state_dict())
    assert torch.equal(net.head.weight, before) and "head.weight" in report.unexpected


def test_an_autoencoder_of_ours_loads_whole():
    trained, net = randomized(autoencoder()), autoencoder()
    report = load_pretrained(net, trained.state_dict(), strict=True)
    assert report.missing == report.unexpected == []
    x, noise = images(1, 3, 64, 64), images(1, 16)
    assert_same(net(x, noise)["loss"], trained(x, noise)["loss"], 0)


@pytest.mark.parametrize("pos_embed", POSITIONS)
@pytest.mark.parametrize("grids", [((32, 96), (64, 48)), ((32, 64, 64), (64, 48, 32))])
def test_another_grid_equals_the_source_at_that_size(pos_embed, grids):
    dims = len(grids[0])
    source = vit(grids[0], pos_embed, spatial_dims=dims)
    net = fresh(grids[1], pos_embed, spatial_dims=dims)
    report = load_pretrained(net, source.state_dict(), strict=True)
    resized = [name for name, _ in net.named_parameters() if name in ("pos_embed.table", TABLE)]  # no rotations
    assert list(report.resized) == resized
    x = images(1, 1, *grids[1])
    assert_same(net(x), source(x))


@pytest.mark.parametrize("grid", [(128, 96), (96, 80), (32, 48, 64)])
def test_registers_beside_positions_of_any_grid_load(grid):
    # 8 x 6 and 6 x 5 tokens, the latter no square with the class token: timm's files have no position for that
    options = {"spatial_dims": len(grid), "pos_embed": "learnable", "num_registers": 2}
    source, net = vit(grid, **options), fresh(grid, **options)
    load_pretrained(net, source.state_dict(), strict=True)
    x = images(1, 1, *grid)
    assert_same(net(x), source(x), 0)


def test_a_file_that_does_not_say_its_grid_needs_it():
    source, net = vit((32, 96)), fresh((64, 64))
    file = {name: tensor for name, tensor in source.state_dict().items() if "native_grid" not in name}
    with pytest.raises(ValueError, match="source_grid"):
        load_pretrained(net, file)
    load_pretrained(net, file, source_grid=(2, 6))
    x = images(1, 1, 64, 64)
    assert_same(net(x), source(x))
    with pytest.raises(ValueError, match=r"does not fit a token grid of \(3, 6\)"):
        load_pretrained(net, file, source_grid=(3, 6))


def test_equal_counts_of_two_grids_are_not_confused():
    # 4 x 4 and 2 x 8 tokens have as many absolute positions.
    source, net = vit((64, 64), "learnable"), fresh((32, 128), "learnable")
    load_pretrained(net, source.state_dict())
    assert_same(net(images(1, 1, 32, 128)), source(images(1, 1, 32, 128)))
    file = {name: tensor for name, tensor in source.state_dict().items() if "native_grid" not in name}
    with pytest.raises(ValueError, match=r"could be \(4, 4\) or \(2, 8\)"):
        load_pretrained(net, file)


def test_the_index_buffer_of_a_file_tells_its_grid():
    source, net = vit((48, 96)), fresh((64, 64))
    load_pretrained(net, plain(source))
    x = images(1, 1, 64, 64)
    assert_same(net(x), source(x))


def test_half_precision_files_are_read():
    source, net = vit(), fresh()
    load_pretrained(net, {name: tensor.half() for name, tensor in source.state_dict().items()}, strict=True)
    assert net.cls_token.dtype == torch.float32
    assert torch.equal(net.cls_token, source.cls_token.half().float())


# --- conversions that keep the function ------------------------------------------------------------------------------


@pytest.mark.parametrize(("old", "channels"), [(3, 1), (3, 2), (3, 4), (1, 3)])
def test_other_channel_counts_equal_replicated_gray(old, channels):
    source, net = vit(in_channels=old), fresh(in_channels=channels)
    report = load_pretrained(net, source.state_dict(), strict=True)
    assert list(report.resized) == ["patch_embed.proj.weight"]
    gray = images(2, 1, 64, 64)
    assert_same(net(gray.expand(-1, channels, -1, -1)), source(gray.expand(-1, old, -1, -1)))


@pytest.mark.parametrize("channels", [1, 3])
def test_folded_normalization_equals_normalized_input(channels):
    source, net = vit(in_channels=3), fresh(in_channels=channels)
    load_pretrained(net, plain(source), strict=True)
    x = images(2, channels, 64, 64)
    assert_same(net(x), source(imagenet(x)), 3e-5)


def test_own_weights_are_never_folded():
    source, net = vit(in_channels=3), fresh(in_channels=3)
    load_pretrained(net, source.state_dict(), strict=True)
    x = images(1, 3, 64, 64)
    assert_same(net(x), source(x), 0)


def test_folding_leaves_a_gray_source_alone():
    source, net = vit(), fresh()
    report = load_pretrained(net, source.state_dict(), fold_normalization=True)
    assert torch.equal(net.patch_embed.proj.weight, source.patch_embed.proj.weight)
    assert any("no normalization folded" in note for note in report.notes)


def test_a_folded_autoencoder_predicts_gray_levels():
    model, net = vit_mae(), autoencoder(in_channels=1)
    load_pretrained(net, mae_file(model), strict=True, fold_normalization=True)
    x, noise = images(2, 1, 64, 64), images(2, 16, seed=3)
    theirs = model(imagenet(x), noise=noise).logits.unflatten(2, (256, 3))
    assert_same(net(x, noise)["prediction"], (theirs * STD.flatten() + MEAN.flatten()).mean(-1), 3e-5)


@pytest.mark.parametrize("pos_embed", POSITIONS)
@pytest.mark.parametrize("depth", [(1, 1), (4, 4), (4, 16), (16, 64)], ids=lambda d: f"patch{d[0]}-native{d[1]}")
def test_an_inflated_encoder_equals_the_2d_one_on_a_slab(pos_embed, depth):
    patch, native = depth
    source = vit(64, pos_embed, in_channels=3)
    net = fresh((native, 48, 80), pos_embed, spatial_dims=3, patch_size=(patch, 16, 16))
    report = load_pretrained(net, source.state_dict(), strict=True, fold_normalization=True)
    assert len(report.resized) == 2 - (pos_embed == "rotary")
    x = images(2, 1, 48, 80)
    slab = x.unsqueeze(2).expand(-1, -1, patch, -1, -1)
    assert_same(net(slab), source(imagenet(x)), 1e-4)


def test_an_inflated_autoencoder_predicts_the_2d_patches_at_every_depth():
    model = vit_mae(channels=1)
    net = autoencoder((16, 64, 64), 1, spatial_dims=3, patch_size=(4, 16, 16))
    load_pretrained(net, mae_file(model), strict=True)
    x, noise = images(1, 1, 64, 64), images(1, 16, seed=3)
    theirs = model(x, noise=noise).logits
    ours = net(x.unsqueeze(2).expand(-1, -1, 4, -1, -1), noise)["prediction"].unflatten(2, (4, 256))
    assert_same(ours, theirs.unsqueeze(2).expand(-1, -1, 4, -1), 1e-4)


def with_fused_biases(net: UltrasoundViT) -> UltrasoundViT:
    """The same architecture with one bias for q, k and v in every block."""
    for block in net.blocks:
        block.attn.q_bias = block.attn.v_bias = None
        block.attn.qkv = nn.Linear(WIDTH, 3 * WIDTH)
    return randomized(net, seed=4)


def test_a_bias_of_the_keys_changes_nothing_and_its_loss_is_reported():
    source, net = with_fused_biases(fresh()), fresh()
    report = load_pretrained(net, source.state_dict(), strict=True)
    assert any("keys dropped" in note for note in report.notes)
    assert_same(net(images(2, 1, 64, 64)), source(images(2, 1, 64, 64)))


def test_biases_of_query_and_value_fill_a_fused_bias_with_zero_for_the_keys():
    source, net = vit(), fresh(pos_embed="sincos")
    load_pretrained(net, source.state_dict())
    q, k, v = net.blocks[1].attn.qkv.bias.chunk(3)
    assert torch.equal(q, source.blocks[1].attn.q_bias) and torch.equal(v, source.blocks[1].attn.v_bias)
    assert not k.any()


def test_a_backbone_without_biases_and_layer_scale_keeps_its_function():
    # The official SegVit configuration builds such a one.
    source = vit(layer_scale=None)
    for block in source.blocks:
        block.attn.q_bias.data.zero_()
        block.attn.v_bias.data.zero_()
    file = {name: tensor for name, tensor in source.state_dict().items() if "_bias" not in name or "rel_pos" in name}
    net = fresh()
    report = load_pretrained(net, file, strict=True)
    assert len(report.notes) == 2
    assert_same(net(images(1, 1, 64, 64)), source(images(1, 1, 64, 64)), 1e-6)


@pytest.mark.parametrize("source_scale, net_scale", [(None, 0.1), (0.1, None)])
def test_layer_scale_may_be_absent_on_either_side(source_scale, net_scale):
    source, net = vit(layer_scale=source_scale), fresh(layer_scale=net_scale)
    report = load_pretrained(net, source.state_dict(), strict=True)
    assert any("no layer scale" in note for note in report.notes)
    assert_same(net(images(2, 1, 64, 64)), source(images(2, 1, 64, 64)))


@pytest.mark.parametrize("pair", [("sincos", "learnable"), ("learnable", "sincos")])
def test_fixed_and_learnable_positions_load_into_each_other(pair):
    source, net = vit(pos_embed=pair[0]), fresh(pos_embed=pair[1])
    if pair[0] == "sincos":
        source.pos_embed.table.data = fresh(pos_embed="sincos").pos_embed.table.data
    report = load_pretrained(net, source.state_dict(), strict=True)
    assert any("position codes" in note for note in report.notes)
    assert_same(net(images(1, 1, 64, 64)), source(images(1, 1, 64, 64)), 0)
    assert net.pos_embed.table.requires_grad == (pair[1] == "learnable")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_fixed_positions_in_half_precision_are_still_known_as_such(dtype):
    net = fresh(pos_embed="sincos", layer_scale=None)
    state = {k: v.to(dtype) if v.is_floating_point() else v for k, v in net.state_dict().items()}
    assert encoder_arguments(state)["pos_embed"] == "sincos"
    assert not any("not the sine-cosine" in note for note in load_pretrained(net, state, strict=True).notes)


def test_positions_of_another_kind_are_reported_and_refused_by_strict():
    source, net = vit(pos_embed="sincos"), fresh()
    report = load_pretrained(net, source.state_dict())
    assert report.missing == [TABLE] and report.unexpected == ["pos_embed.table"]
    assert any("two networks differ" in note for note in report.notes)
    with pytest.raises(ValueError, match=r"pos_embed.table"):
        load_pretrained(net, source.state_dict(), strict=True)


# --- errors ----------------------------------------------------------------------------------------------------------


def test_another_width_names_tensor_shapes_and_fix():
    net = UltrasoundViT(64, hidden_size=64, mlp_dim=64, num_layers=2, num_heads=2)
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    message = r"cls_token.*\(1, 1, 32\).*\(1, 1, 64\).*hidden_size=32, num_layers=2, mlp_dim=48, num_heads=2"
    with pytest.raises(ValueError, match=message):
        load_pretrained(net, plain(vit()))
    assert all(torch.equal(tensor, before[name]) for name, tensor in net.state_dict().items())


def test_other_heads_or_decoder_width_are_named_too():
    with pytest.raises(ValueError, match="num_heads=2"):
        load_pretrained(fresh(num_heads=4), plain(vit()))
    net = MaskedAutoencoder(fresh(pos_embed="sincos", in_channels=3, layer_scale=None), 32, 2, 2)
    with pytest.raises(ValueError, match="decoder_hidden_size=16, decoder_num_layers=2"):
        load_pretrained(net, randomized(autoencoder()).state_dict())


def test_an_encoder_of_volumes_does_not_load_into_one_of_images():
    with pytest.raises(ValueError, match="spatial_dims=3"):
        load_pretrained(fresh(), vit((32, 32, 32), spatial_dims=3).state_dict())


@pytest.mark.parametrize(
    "content", [{}, {"conv1.weight": torch.ones(1)}, {"model": {"layer1.0.weight": torch.ones(1)}}]
)
def test_an_unknown_layout_lists_what_was_expected_and_found(content):
    with pytest.raises(ValueError, match=r"unknown checkpoint layout.*USFM_latest.*MAE.*First keys found") as error:
        load_pretrained(fresh(), content)
    assert ("none" if not content else "weight") in str(error.value)


def test_two_encoders_in_one_file_are_refused():
    state = vit().state_dict()
    both = {f"{who}.{name}": tensor for who in ("student", "teacher") for name, tensor in state.items()}
    with pytest.raises(ValueError, match="2 encoders"):
        load_pretrained(fresh(), both)


def test_values_that_are_not_finite_are_refused_by_name():
    state = plain(vit())
    state["blocks.1.norm2.bias"][3] = float("nan")
    with pytest.raises(ValueError, match=r"blocks\.1\.norm2\.bias.*NaN"):
        load_pretrained(fresh(), state)


def test_neither_network_nor_source_may_be_of_another_type():
    with pytest.raises(ValueError, match="Linear holds no"):
        load_pretrained(nn.Linear(2, 2), vit().state_dict())
    with pytest.raises(TypeError, match="int"):
        load_pretrained(fresh(), 3)


class Payload:
    """Runs code when it is unpickled."""

    def __init__(self, target):
        self.target = str(target)

    def __reduce__(self):
        return os.mkdir, (self.target,)


def test_code_in_a_file_is_refused_and_does_not_run(tmp_path):
    path = tmp_path / "bad.pth"
    torch.save({"model": vit().state_dict(), "hook": Payload(tmp_path / "ran")}, path)
    with pytest.raises(ValueError, match=r"bad\.pth holds Python objects besides tensors"):
        load_pretrained(fresh(), path)
    assert not (tmp_path / "ran").exists()


def test_the_command_line_that_mae_stores_is_no_obstacle(tmp_path):
    torch.save({"model": mae_file(vit_mae()), "args": argparse.Namespace(lr=1.0), "epoch": 2}, tmp_path / "mae.pth")
    assert load_pretrained(autoencoder(), tmp_path / "mae.pth", strict=True).missing == []


@pytest.mark.parametrize("damage", ["truncated", "text", "empty", "list", "safetensors"])
def test_unusable_files_give_one_error_that_names_them(damage, tmp_path):
    path = tmp_path / ("w.safetensors" if damage == "safetensors" else "w.pth")
    if damage == "truncated":
        torch.save(vit().state_dict(), path)
        path.write_bytes(path.read_bytes()[:5000])
    elif damage == "list":
        torch.save([torch.ones(2)], path)
    else:
        path.write_bytes(b"" if damage == "empty" else b"not a checkpoint")
    with pytest.raises(ValueError, match=path.name.replace(".", r"\.")):
        load_pretrained(fresh(), path)


def test_missing_files_and_folders_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="absent"):
        load_pretrained(fresh(), tmp_path / "absent.pth")
    with pytest.raises(IsADirectoryError, match="folder"):
        load_pretrained(fresh(), tmp_path)


def test_a_path_may_be_text_and_a_network_parallel(tmp_path):
    source = vit()
    torch.save({"state_dict": source.state_dict()}, tmp_path / "w.pt")
    net = fresh()
    load_pretrained(nn.DataParallel(net), str(tmp_path / "w.pt"), strict=True)
    assert torch.equal(net.cls_token, source.cls_token)


@pytest.mark.parametrize("wrap", [torch.compile, nn.DataParallel])
def test_a_wrapped_network_is_filled_and_written_whole(wrap):
    source, net = randomized(UltrasoundClassifier(fresh(), 3, "mean")), UltrasoundClassifier(fresh(), 3, "mean")
    load_pretrained(wrap(net), source.state_dict(), strict=True)
    assert torch.equal(net.head.weight, source.head.weight) and torch.equal(net.fc_norm.weight, source.fc_norm.weight)
    decoder = autoencoder()
    assert to_mae_state_dict(wrap(decoder)).keys() == to_mae_state_dict(decoder).keys()


def test_fewer_blocks_are_reported():
    report = load_pretrained(fresh(num_layers=1), vit().state_dict())
    assert any("first 1 of 2 blocks" in note for note in report.notes)
    report = load_pretrained(fresh(num_layers=3), vit().state_dict())
    assert "blocks.2.mlp.fc1.weight" in report.missing


def test_the_report_prints_what_matters_in_few_lines():
    report = LoadReport("USFM", ["norm.weight"], [f"blocks.{i}.gamma_1" for i in range(12)], ["mask_token"])
    assert str(report).splitlines() == [
        "layout: USFM",
        "loaded: 1 weights",
        "missing: blocks.*.gamma_1 (12)",
        "unexpected: mask_token",
    ]


# --- writing published layouts ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("per_block", [False, True])
@pytest.mark.parametrize("layer_scale", [0.1, None])
def test_our_encoder_works_in_beit(per_block, layer_scale):
    net = vit(pos_embed="relative_per_block" if per_block else "relative", in_channels=3, layer_scale=layer_scale)
    file, model = plain(net), beit_model(per_block)
    beit_from_usfm(file, model)
    x = images(2, 3, 64, 64)
    assert_same(model(x).last_hidden_state, net(x))


def test_the_written_index_is_that_of_beit():
    position = beit_model().shared_position_bias
    index = to_usfm_state_dict(vit((48, 64)))["rel_pos_bias.relative_position_index"]
    assert index.dtype == torch.int64 and torch.equal(index, position.generate_relative_position_index((3, 4)))


def test_twelve_blocks_have_the_tensors_of_the_published_file():
    net = UltrasoundViT(224, in_channels=3, hidden_size=24, mlp_dim=24, num_layers=12, num_heads=12)
    file = to_usfm_state_dict(MaskedImageModel(net, fill="token"))
    assert len(file) == 188  # with mask_token and the index buffer
    assert file[TABLE].shape == (732, 12) and file["rel_pos_bias.relative_position_index"].shape == (197, 197)


@pytest.mark.parametrize("layer_scale", [None, 0.1])
def test_our_autoencoder_works_in_vitmae(layer_scale):
    encoder = fresh(pos_embed="sincos", in_channels=3, layer_scale=layer_scale)
    net = randomized(MaskedAutoencoder(encoder, 16, 2, 2))
    model = vit_mae()
    mae_from_file(to_mae_state_dict(net, imagenet_input=False), model)
    x, noise = images(2, 3, 64, 64), images(2, 16, seed=3)
    theirs, ours = model(x, noise=noise), net(x, noise)
    assert_same(theirs.logits, ours["prediction"])
    assert_same(theirs.loss, ours["loss"])


def test_a_gray_encoder_is_written_for_normalized_rgb():
    net, model = vit(), beit_model()
    beit_from_usfm(to_usfm_state_dict(net), model)
    x = images(2, 1, 64, 64)
    assert_same(model(imagenet(x)).last_hidden_state, net(x), 3e-5)


def test_a_gray_autoencoder_is_written_for_normalized_rgb():
    net, model = randomized(autoencoder(in_channels=1)), vit_mae()
    mae_from_file(to_mae_state_dict(net), model)
    x, noise = images(2, 1, 64, 64), images(2, 16, seed=3)
    logits = model(imagenet(x), noise=noise).logits.unflatten(2, (256, 3))
    gray = net(x, noise)["prediction"].unsqueeze(-1).expand(-1, -1, -1, 3)
    assert_same(logits * STD.flatten() + MEAN.flatten(), gray, 3e-5)


def test_layouts_that_cannot_hold_a_network_are_refused():
    with pytest.raises(ValueError, match="spatial_dims=3"):
        to_usfm_state_dict(vit((32, 32, 32), spatial_dims=3))
    with pytest.raises(ValueError, match="use MAE's"):
        to_usfm_state_dict(vit(pos_embed="sincos"))
    with pytest.raises(ValueError, match="use USFM's"):
        to_mae_state_dict(vit())
    with pytest.raises(ValueError, match="merge_lora"):
        to_usfm_state_dict(apply_lora(vit()))


@pytest.mark.parametrize("pos_embed", POSITIONS)
@pytest.mark.parametrize("dims", [2, 3])
def test_encoder_arguments_build_the_encoder_of_a_file(pos_embed, dims):
    settings = {"img_size": (32, 64, 32)[:dims], "patch_size": (8, 16, 16)[:dims], "spatial_dims": dims}
    source = vit(pos_embed=pos_embed, in_channels=2, **settings)
    if pos_embed == "sincos":
        source.pos_embed.table.data = UltrasoundViT(pos_embed=pos_embed, **settings, **SIZE).pos_embed.table.data
    arguments = encoder_arguments(source.state_dict())
    assert arguments.pop("num_heads") == (HEADS if source.rel_pos_bias is not None else 1)
    net = UltrasoundViT(**arguments, num_heads=HEADS).eval()
    assert net.position == pos_embed
    assert load_pretrained(net, source.state_dict(), strict=True).resized == {}
    x = images(1, 2, *settings["img_size"])
    assert_same(net(x), source(x), 0)


# --- command line ----------------------------------------------------------------------------------------------------


def convert(arguments):
    return main(["convert-weights", *arguments])


def test_the_verb_goes_from_theirs_to_ours_and_back(tmp_path, capsys):
    source = vit(in_channels=3)
    torch.save(plain(source), tmp_path / "usfm.pth")
    ours, back = tmp_path / "ours.pt", tmp_path / "back.pth"
    assert convert([str(tmp_path / "usfm.pth"), str(ours), "--to", "ours", "--in-channels", "1"]) == 0
    assert "layout: USFM" in capsys.readouterr().out
    assert convert([str(ours), str(back), "--to", "usfm"]) == 0
    net, x = fresh(in_channels=3), images(1, 1, 64, 64)
    load_pretrained(net, back, strict=True, fold_normalization=False)
    assert_same(net(imagenet(x)), source(imagenet(x)), 3e-5)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["back.pth", "ours.json", "ours.pt", "usfm.pth"]


def test_the_verb_keeps_the_decoder_of_an_mae(tmp_path):
    trained = randomized(autoencoder())
    torch.save(to_mae_state_dict(trained), tmp_path / "mae.pth")
    assert convert([str(tmp_path / "mae.pth"), str(tmp_path / "o.pt"), "--to", "ours"]) == 0
    assert convert([str(tmp_path / "o.pt"), str(tmp_path / "m.pth"), "--to", "mae"]) == 0
    before, after = torch.load(tmp_path / "mae.pth"), torch.load(tmp_path / "m.pth")
    assert before.keys() == after.keys() and all(torch.allclose(before[k], after[k], atol=1e-6) for k in before)


def test_the_verb_inflates(tmp_path):
    torch.save(vit().state_dict(), tmp_path / "a.pt")
    sizes = ["--spatial-size", "8", "64", "64", "--patch-size", "4", "16", "16"]
    options = ["--to", "ours", "--spatial-dims", "3", *sizes]
    assert convert([str(tmp_path / "a.pt"), str(tmp_path / "b.pt"), *options]) == 0
    assert torch.load(tmp_path / "b.pt")["patch_embed.proj.weight"].shape == (WIDTH, 1, 4, 16, 16)


def test_the_verb_fails_with_one_line_and_keeps_the_old_output(tmp_path, capsys):
    torch.save({"conv.weight": torch.ones(1)}, tmp_path / "other.pth")
    (tmp_path / "out.pt").write_bytes(b"old")
    assert convert([str(tmp_path / "other.pth"), str(tmp_path / "out.pt"), "--to", "ours"]) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: ") and "other.pth: unknown checkpoint layout" in error and error.count("\n") == 1
    assert (tmp_path / "out.pt").read_bytes() == b"old"


def test_the_error_for_a_torchscript_file_says_what_can_be_done_on_a_command_line(tmp_path):
    torch.jit.script(torch.nn.Linear(2, 2)).save(tmp_path / "x.pt")
    with pytest.raises(ValueError, match=r"x\.pt is a TorchScript program: give the \.pt .* exported from, or save"):
        load_pretrained(UltrasoundViT(img_size=32), tmp_path / "x.pt")
