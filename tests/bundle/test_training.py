# Copyright (c) monai_usfm contributors
# SPDX-License-Identifier: Apache-2.0
"""Parts that the trainings of all bundles share."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from ignite.engine import Engine, Events
from monai.handlers import MLFlowHandler
from monai.transforms import Compose, RandGaussianNoised

from monai_usfm.bundle import TrainingRecords, fingerprint, on_device, prepare_network, start_weights, warmup_cosine
from monai_usfm.cards import build_network, save_network
from monai_usfm.data import OrganBalancedSampler, UltrasoundDataset
from monai_usfm.handlers import EpochSeed
from monai_usfm.workflow import find_bundle


def rates(steps: int, warmup_steps: int) -> list[float]:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    schedule = warmup_cosine(optimizer, steps, warmup_steps, end_lr=0.0)
    found = []
    for _ in range(steps):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    return found


def test_the_first_step_learns_and_the_warmup_rises_evenly_to_the_peak() -> None:
    found = rates(20, 4)
    np.testing.assert_allclose(found[:5], [0.2, 0.4, 0.6, 0.8, 1.0])
    progress = np.arange(16) / 16
    np.testing.assert_allclose(found[4:], 0.5 * (1 + np.cos(np.pi * progress)), atol=1e-9)


@pytest.mark.parametrize(("steps", "warmup_steps"), [(1, 3), (2, 9), (5, 100)])
def test_a_warmup_longer_than_half_of_the_training_is_cut_and_told(
    steps: int, warmup_steps: int, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level("INFO"):
        found = rates(steps, warmup_steps)
    assert max(found) == 1.0 and min(found) > 0
    assert caplog.messages == [f"a warm-up of {warmup_steps} of {steps} steps is cut to half of the training."]


def test_the_fingerprint_of_the_data_is_that_of_the_names_wherever_they_lie() -> None:
    def items(root: str, *names: str) -> list[dict[str, str]]:
        return [{"image": f"{root}/{name}"} for name in names]

    first = fingerprint(items("/data", "a/1.png", "b/2.png"))
    assert first == fingerprint(items("/mnt/other", "a/1.png", "b/2.png"))
    assert first != fingerprint(items("/data", "a/1.png", "b/3.png"))


@pytest.mark.parametrize(
    ("key", "value", "other"),
    [("class", 0, 1), ("frame", 0, 1), ("label", "m/1.png", "m/2.png"), ("label", ["a.png", "b.png"], ["a.png"])],
)
def test_the_fingerprint_of_the_data_is_that_of_frames_and_labels_too(key: str, value: Any, other: Any) -> None:
    def of(root: str, value: Any) -> str:
        if key == "label":
            value = f"{root}/{value}" if isinstance(value, str) else [f"{root}/{name}" for name in value]
        return fingerprint([{"image": f"{root}/a/1.png", key: value}, {"image": f"{root}/b/2.png", key: value}])

    assert of("/data", value) == of("/mnt/other", value) != of("/data", other)


def test_an_item_draws_by_seed_epoch_and_place_alone() -> None:
    noise = Compose([RandGaussianNoised("image", prob=1.0)])
    data = UltrasoundDataset([{"image": torch.zeros(4)}] * 3, noise, seed=1)
    seen = [data[i]["image"] for i in range(3)]
    assert all(torch.equal(data[i]["image"], seen[i]) for i in (2, 0, 1))  # in another order, drawn before or not
    assert not torch.equal(seen[0], seen[1])
    data.epoch = 1
    assert not torch.equal(data[0]["image"], seen[0])


class Tracker(MLFlowHandler):
    """MONAI's handler with a client that only notes what it is given."""

    def __init__(self) -> None:
        self.logged: dict[str, str] = {}
        self.files: list[str] = []
        self.cur_run = SimpleNamespace(info=SimpleNamespace(run_id="1"))
        self.client = SimpleNamespace(
            get_run=lambda _: SimpleNamespace(data=SimpleNamespace(params={"max_epochs": "1"})),
            log_param=lambda _, name, value: self.logged.update({name: value}),
            log_artifact=lambda _, file: self.files.append(Path(file).name),
        )

    def complete(self, engine: Engine) -> None:
        pass


def test_mlflow_gets_options_figures_and_the_card(tmp_path: Path) -> None:
    for name in ("metrics.png", "model.pt", "model.json", "figures/a_epoch_0001.png", "figures/a_epoch_0002.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    records = TrainingRecords.__new__(TrainingRecords)
    records.folder, records.export_path = tmp_path, tmp_path / "model.pt"
    records.options = {"max_epochs": 1, "head": "pyramid"}
    engine, tracker = Engine(lambda *_: None), Tracker()
    engine.add_event_handler(Events.COMPLETED, tracker.complete)
    records._to_mlflow(engine)
    assert tracker.logged == {"head": "pyramid"}
    assert tracker.files == ["metrics.png", "model.pt", "model.json", "a_epoch_0002.png"]


def test_the_shipped_start_is_taken_unless_an_option_asks_for_another_encoder(
    tmp_path: Path, caplog, monkeypatch
) -> None:
    package = find_bundle("pretraining") / "models" / "model.pt"
    assert start_weights("shipped", str(tmp_path)) == str(package)  # a folder of its own has none
    monkeypatch.setattr("monai_usfm.bundle.training.find_bundle", lambda _: tmp_path / "nothing")
    assert start_weights("shipped", str(tmp_path)) is None
    assert "no shipped start at" in caplog.text and "usfm_pretraining/models/model.pt" in caplog.text
    file = tmp_path / "models" / "foundation.pt"
    file.parent.mkdir()
    small = {"hidden_size": 48, "mlp_dim": 96, "num_layers": 2, "num_heads": 3, "spatial_size": 32}
    save_network(file, build_network("segmentation", **small, pos_embed="sincos"))
    assert start_weights("shipped", str(tmp_path), pos_embed=None) == str(file)
    assert start_weights("shipped", str(tmp_path), pos_embed="sincos") == str(file)
    assert start_weights("shipped", str(tmp_path), pos_embed="relative") is None
    assert "pos_embed: not that of the shipped start" in caplog.text
    assert start_weights(None, str(tmp_path)) is None
    assert start_weights("null", str(tmp_path)) is None  # as MONAI's command line has it
    assert start_weights("other.pt", str(tmp_path)) == "other.pt"


def test_the_shipped_start_is_that_of_the_pretraining_beside_the_bundle(tmp_path: Path) -> None:
    file = tmp_path / "usfm_pretraining" / "models" / "model.pt"
    file.parent.mkdir(parents=True)
    small = {"hidden_size": 48, "mlp_dim": 96, "num_layers": 2, "num_heads": 3, "spatial_size": 32}
    save_network(file, build_network("segmentation", **small))
    assert start_weights("shipped", str(tmp_path / "usfm_classification")) == str(file)


@pytest.mark.parametrize("deterministic", [False, True])
def test_seeding_an_epoch_leaves_the_choice_of_cudnn_alone(deterministic: bool) -> None:
    cudnn = torch.backends.cudnn
    before = cudnn.deterministic, cudnn.benchmark
    try:
        cudnn.deterministic, cudnn.benchmark = deterministic, not deterministic
        loader = torch.utils.data.DataLoader([0, 1])
        EpochSeed(1, loader)(SimpleNamespace(state=SimpleNamespace(epoch=1)))
        assert (cudnn.deterministic, cudnn.benchmark) == (deterministic, not deterministic)
    finally:
        cudnn.deterministic, cudnn.benchmark = before


def test_one_process_draws_the_images_of_two_in_batches_twice_as_large() -> None:
    one, *two = (
        OrganBalancedSampler(["any"] * 12, seed=3, rank=r, num_replicas=n) for r, n in ((0, 1), (0, 2), (1, 2))
    )
    batches = [set(list(one)[k : k + 4]) for k in (0, 4, 8)]
    halves = [list(sampler) for sampler in two]
    assert batches == [set(halves[0][k : k + 2] + halves[1][k : k + 2]) for k in (0, 2, 4)]


def test_blocks_that_are_computed_again_give_the_same_loss_and_gradients() -> None:
    found = []
    for use_checkpoint in (False, True):
        torch.manual_seed(0)
        network = build_network("segmentation", spatial_size=[32, 32], drop_path_rate=0.5).train()
        network = on_device(network, "cpu", use_checkpoint=use_checkpoint)
        torch.manual_seed(1)
        loss = network(torch.rand(2, 1, 32, 32)).square().mean()
        loss.backward()
        found.append([loss.detach(), *(p.grad for p in network.parameters() if p.grad is not None)])
    assert len(found[0]) > 100
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


def test_what_was_loaded_is_told_once(caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture) -> None:
    tiny = {"network_size": "custom", "num_layers": 4, "hidden_size": 24, "mlp_dim": 48, "num_heads": 3}
    caplog.set_level("INFO")
    prepare_network(build_network("classification", build_network("encoder", **tiny).state_dict(), **tiny))
    assert (caplog.text + capsys.readouterr().out).count("layout: monai_usfm") == 1


@pytest.mark.parametrize(("resume", "refused"), [(False, True), (True, False)])
def test_the_disk_of_the_checkpoints_must_have_room(tmp_path: Path, monkeypatch, resume: bool, refused: bool) -> None:
    records = TrainingRecords.__new__(TrainingRecords)
    records.network, records.resume = torch.nn.Linear(100, 100), resume
    records.folder, records.checkpoints = tmp_path / "full", tmp_path / "large"
    size = 4 * 10_100
    free = {records.folder: 0, records.checkpoints: 20 * size}
    monkeypatch.setattr("shutil.disk_usage", lambda folder: SimpleNamespace(free=free[folder]))
    records._require_space(Engine(lambda *_: None))
    free[records.checkpoints] = 5 * size  # beside what is there and will be replaced
    (records.checkpoints / "last.pt").write_bytes(bytes(6 * size))
    with pytest.raises(RuntimeError, match="or --ckpt_dir") if refused else nullcontext():
        records._require_space(Engine(lambda *_: None))
