# Copyright (c) monai_usfm contributors
# SPDX-License-Identifier: Apache-2.0
"""Networks spread over processes, here over one: what they hold, compute and save is what a plain network does."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from ignite import distributed as idist
from ignite.engine import Engine, Events

from monai_usfm.bundle import on_device
from monai_usfm.handlers import ResumableCheckpoint, validate_whole
from monai_usfm.networks import UltrasoundSegmenter, UltrasoundViT, apply_lora, layer_decay_groups


@pytest.fixture
def group(tmp_path: Path):
    idist.initialize("gloo", init_method=f"file://{tmp_path}/rendezvous", rank=0, world_size=1)
    yield
    idist.finalize()


def segmenter(spatial_dims: int = 2) -> torch.nn.Module:
    options = {"hidden_size": 24, "mlp_dim": 48, "num_layers": 2, "num_heads": 3}
    encoder = UltrasoundViT([32] * spatial_dims, spatial_dims=spatial_dims, **options)
    return UltrasoundSegmenter(encoder, 2, indices=[0, 1]).train()


def training(sharded: bool, spatial_dims: int) -> tuple[torch.nn.Module, torch.optim.Optimizer]:
    torch.manual_seed(0)
    network = on_device(segmenter(spatial_dims), "cpu", sharded=sharded)
    return network, torch.optim.AdamW(layer_decay_groups(network, 1e-4), fused=True)


def step(network: torch.nn.Module, optimizer: torch.optim.Optimizer, dims: int) -> float:
    torch.manual_seed(1)
    optimizer.zero_grad()
    loss = network(torch.rand(2, 1, *[32] * dims)).square().mean()
    loss.backward()
    optimizer.step()
    return loss.item()


@pytest.mark.parametrize(("first", "dims"), [(True, 2), (False, 2), (True, 3)])
def test_a_run_of_either_kind_goes_on_with_the_checkpoint_of_the_other(group, tmp_path, first, dims):
    whole = training(False, dims)
    wanted = [step(*whole, dims) for _ in range(3)]
    losses: list[float] = []
    for epochs, sharded in ((1, first), (3, not first)):
        objects = training(sharded, dims)
        engine = Engine(lambda *_, objects=objects: losses.append(step(*objects, dims)))
        saved = dict(zip(("network", "optimizer"), objects, strict=True))
        ResumableCheckpoint(str(tmp_path / "last.pt"), saved, resume=True).attach(engine)
        engine.run([0], max_epochs=epochs)
    assert losses == pytest.approx(wanted, rel=1e-5)


def test_whole_weights_are_at_hand_during_a_validation_alone(group):
    network, _ = training(True, 2)
    seen = []

    def look(*_) -> None:
        seen.append(type(next(network.encoder.blocks[0].parameters())).__name__)

    evaluator = Engine(look)
    validate_whole(network, evaluator)
    evaluator.add_event_handler(Events.COMPLETED, look)
    evaluator.run([0])
    assert seen == ["Parameter", "DTensor"]


def test_low_rank_updates_are_not_spread(group):
    network = segmenter()
    apply_lora(network, 4)
    with pytest.raises(ValueError, match="lora_rank"):
        on_device(network, "cpu", sharded=True)
