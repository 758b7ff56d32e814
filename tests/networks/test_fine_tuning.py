# Copyright (c) monai_usfm contributors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import copy

import pytest
import torch
import torch.nn as nn
from monai.bundle import ConfigParser

from monai_usfm.networks import (
    UltrasoundClassifier,
    UltrasoundSegmenter,
    UltrasoundViT,
    apply_lora,
    freeze,
    layer_decay_groups,
    merge_lora,
)

LAYERS = 4


def encoder(pos_embed="relative", **options):
    return UltrasoundViT(32, hidden_size=32, mlp_dim=64, num_layers=LAYERS, num_heads=2, pos_embed=pos_embed, **options)


def settings_by_name(net, groups):
    names = {id(p): n for n, p in net.named_parameters()}
    return {names[id(p)]: (g["lr"], g["weight_decay"]) for g in groups for p in g["params"]}


@pytest.mark.parametrize("pos_embed", ["relative", "learnable"])
def test_rates_fall_from_head_to_embedding_and_vectors_are_not_decayed(pos_embed):
    net = UltrasoundClassifier(encoder(pos_embed), 2)
    found = settings_by_name(net, layer_decay_groups(net, 1.0, weight_decay=0.05, layer_decay=0.5))
    assert found["encoder.patch_embed.proj.weight"] == (0.5**5, 0.05)
    assert found["encoder.patch_embed.proj.bias"] == (0.5**5, 0.0)
    assert found["encoder.cls_token"] == (0.5**5, 0.0)
    for block in range(LAYERS):
        assert found[f"encoder.blocks.{block}.attn.qkv.weight"] == (0.5 ** (LAYERS - block), 0.05)
        assert found[f"encoder.blocks.{block}.norm1.weight"] == (0.5 ** (LAYERS - block), 0.0)
        assert found[f"encoder.blocks.{block}.gamma_1"] == (0.5 ** (LAYERS - block), 0.0)
    assert found["head.weight"] == (1.0, 0.05) and found["fc_norm.weight"] == (1.0, 0.0)
    if pos_embed == "relative":
        assert found["encoder.rel_pos_bias.relative_position_bias_table"] == (1.0, 0.05)
    else:
        assert found["encoder.pos_embed.table"] == (0.5**5, 0.0)


def test_groups_hold_every_trainable_parameter_once():
    net = UltrasoundSegmenter(encoder(), 2)
    groups = layer_decay_groups(net, 1e-3)
    grouped = [id(p) for g in groups for p in g["params"]]
    assert sorted(grouped) == sorted(id(p) for p in net.parameters() if p.requires_grad)


def test_without_a_decay_of_rates_any_network_will_do():
    net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2))
    found = settings_by_name(net, layer_decay_groups(net, 1e-3, weight_decay=0.05, layer_decay=1.0))
    assert found == {"0.weight": (1e-3, 0.05), "0.bias": (1e-3, 0.0), "1.weight": (1e-3, 0.0), "1.bias": (1e-3, 0.0)}
    with pytest.raises(ValueError, match="Sequential holds no UltrasoundViT"):
        layer_decay_groups(net, 1e-3, layer_decay=0.9)


def test_a_config_builds_the_optimizer():
    config = {
        "network": UltrasoundClassifier(encoder(), 2),
        "optimizer": {
            "_target_": "torch.optim.AdamW",
            "params": {
                "_target_": "monai_usfm.networks.layer_decay_groups",
                "net": "@network",
                "learning_rate": 1e-3,
            },
            "lr": 1e-3,
        },
    }
    optimizer = ConfigParser(config).get_parsed_content("optimizer")
    assert {round(g["lr"] / 1e-3, 6) for g in optimizer.param_groups} == {round(0.65**k, 6) for k in range(6)}


def test_a_frozen_encoder_keeps_its_weights_and_stays_deterministic_in_training():
    net = freeze(UltrasoundClassifier(encoder(drop_path_rate=0.9), 2)).train()
    before = copy.deepcopy(net.encoder.state_dict())
    x = torch.rand(4, 1, 32, 32)
    assert torch.equal(net.forward_features(x), net.forward_features(x))
    optimizer = torch.optim.SGD([p for p in net.parameters() if p.requires_grad], 1.0)
    net(x).square().sum().backward()
    optimizer.step()
    assert all(torch.equal(t, before[n]) for n, t in net.encoder.state_dict().items())
    assert net.training and net.head.training and not net.encoder.training


def train_a_little(net, x):
    optimizer = torch.optim.SGD([p for p in net.parameters() if p.requires_grad], 0.01)
    for _ in range(3):
        optimizer.zero_grad()
        (net(x) - 1).square().mean().backward()
        optimizer.step()


@pytest.mark.parametrize("pos_embed", ["relative", "sincos"])
def test_lora_starts_as_the_network_and_changes_every_target(pos_embed):
    torch.manual_seed(0)
    net = UltrasoundClassifier(encoder(pos_embed), 2)
    torch.nn.init.normal_(net.head.weight)
    x = torch.rand(2, 1, 32, 32)
    plain = copy.deepcopy(net)
    apply_lora(net, rank=2)
    torch.testing.assert_close(net(x), plain(x))  # not bit for bit: a frozen bias goes to another attention kernel
    train_a_little(net, x)
    moved = {n for n, p in net.named_parameters() if n.endswith("lora_b") and p.abs().sum() > 0}
    # qkv among them: its weight is used without its layer being called, which peft would miss.
    assert {n.split(".parametrizations")[0].rpartition(".")[2] for n in moved} == {"qkv", "proj", "fc1", "fc2"}
    assert len(moved) == 4 * LAYERS
    for name, parameter in plain.encoder.named_parameters():
        stem, _, leaf = name.rpartition(".")
        own = dict(net.encoder.named_parameters())
        now = own[name] if name in own else own[f"{stem}.parametrizations.{leaf}.original"]
        assert torch.equal(now, parameter), name


def test_blocks_that_a_network_does_not_use_get_no_updates():
    net = apply_lora(UltrasoundSegmenter(encoder(), 2, indices=[0]), rank=2).train()
    net(torch.rand(2, 1, 32, 32)).square().mean().backward()
    assert not [name for name, p in net.named_parameters() if p.requires_grad and p.grad is None]


def test_merged_lora_gives_the_same_outputs_under_the_old_names_and_can_be_scripted():
    torch.manual_seed(0)
    net = UltrasoundClassifier(encoder(), 2)
    torch.nn.init.normal_(net.head.weight)
    names = list(net.state_dict())
    x = torch.rand(2, 1, 32, 32)
    apply_lora(net, rank=2)
    train_a_little(net, x)
    net.eval()
    expected = net(x)
    merge_lora(net)
    assert set(net.state_dict()) == set(names)
    torch.testing.assert_close(net(x), expected)
    torch.testing.assert_close(torch.jit.script(net)(x), expected)


def test_lora_weights_survive_a_checkpoint():
    torch.manual_seed(0)
    net, other = (apply_lora(UltrasoundClassifier(encoder(), 2), rank=2).eval() for _ in range(2))
    x = torch.rand(2, 1, 32, 32)
    torch.nn.init.normal_(net.head.weight)
    train_a_little(net, x)
    assert not torch.allclose(other.encoder(x), net.encoder(x))
    other.load_state_dict(net.state_dict())
    torch.testing.assert_close(other(x), net(x))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: apply_lora(encoder(), rank=0), "rank"),
        (lambda: apply_lora(encoder(), targets=("query",)), "query"),
        (lambda: apply_lora(apply_lora(encoder())), "already"),
        (lambda: apply_lora(torch.nn.Linear(2, 2)), "no UltrasoundViT"),
        (lambda: layer_decay_groups(encoder(), 1e-3, layer_decay=1.5), "layer_decay"),
        (lambda: layer_decay_groups(freeze(encoder()), 1e-3), "no trainable"),
    ],
)
def test_bad_input_gives_one_clear_error(call, message):
    with pytest.raises(ValueError, match=message):
        call()
