# Copyright (c) monai_usfm contributors
# SPDX-License-Identifier: Apache-2.0
"""Checkpoints: whole files, exact resumption, best values."""

from __future__ import annotations

import logging
import random
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from ignite.engine import Engine, Events
from monai.data import DataLoader, Dataset
from monai.engines import SupervisedTrainer
from monai.optimizers import WarmupCosineSchedule
from monai.transforms import Compose, RandGaussianNoised

from monai_usfm.data import OrganBalancedSampler
from monai_usfm.handlers import (
    BestCheckpoint,
    EpochSeed,
    ExportWeights,
    ResumableCheckpoint,
    ValidateStart,
    save_atomically,
)
from monai_usfm.networks import UltrasoundSegmenter, apply_lora, usfm_vit


def make_trainer(folder: Path, max_epochs: int, resume: bool, stop_at: int | None = None):
    """A linear network on noisy data with dropout, shuffling and momentum: four kinds of state to lose."""
    torch.manual_seed(0)
    network = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Dropout(0.5), torch.nn.Linear(4, 1))
    optimizer = torch.optim.AdamW(network.parameters(), lr=0.05)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, step_size=2, gamma=0.5)
    noise = Compose([RandGaussianNoised("image", prob=0.7)])
    items = [{"image": torch.full((3,), float(i)), "label": torch.tensor([float(i)])} for i in range(6)]
    loader = DataLoader(Dataset(items, noise), batch_size=2, shuffle=True)
    trainer = SupervisedTrainer(
        device=torch.device("cpu"),
        max_epochs=max_epochs,
        train_data_loader=loader,
        network=network,
        optimizer=optimizer,
        loss_function=torch.nn.MSELoss(),
        decollate=False,
    )
    losses: dict[int, float] = {}
    EpochSeed(3, loader).attach(trainer)
    objects = {"network": network, "optimizer": optimizer, "lr_scheduler": scheduler}
    trainer.add_event_handler(Events.ITERATION_COMPLETED, lambda: scheduler.step())
    ResumableCheckpoint(str(folder / "last.pt"), objects, resume=resume).attach(trainer)

    @trainer.on(Events.ITERATION_COMPLETED)
    def note(engine: Engine) -> None:
        if engine.state.iteration == stop_at:
            raise KeyboardInterrupt
        losses[engine.state.iteration] = float(engine.state.output["loss"].detach())

    return trainer, losses, network


def test_resumed_run_equals_an_uninterrupted_one_step_by_step(tmp_path: Path) -> None:
    trainer, wanted, network = make_trainer(tmp_path / "whole", 4, resume=False)
    trainer.run()
    trainer, _, _ = make_trainer(tmp_path / "cut", 4, resume=True, stop_at=8)
    with pytest.raises(KeyboardInterrupt):
        trainer.run()
    # What a new process would draw before training must not matter.
    random.seed(99), np.random.seed(99), torch.manual_seed(99)
    trainer, found, again = make_trainer(tmp_path / "cut", 4, resume=True)
    trainer.run()
    assert sorted(wanted) == list(range(1, 13))
    assert found == {step: wanted[step] for step in range(7, 13)}  # the third epoch is repeated from its start
    assert all(torch.equal(a, b) for a, b in zip(network.parameters(), again.parameters(), strict=True))


def make_long_trainer(folder: Path, batch: int = 2, stop_at: int | None = None):
    """Epochs of 24 images in any order, with dropout, a checkpoint after every second step, and a schedule by steps."""
    torch.manual_seed(0)
    network = torch.nn.Sequential(torch.nn.Linear(1, 4), torch.nn.Dropout(0.5), torch.nn.Linear(4, 1))
    optimizer = torch.optim.AdamW(network.parameters(), lr=0.05)
    items = [{"image": torch.tensor([float(i)]), "label": torch.tensor([float(i)])} for i in range(24)]
    loader = DataLoader(Dataset(items), batch_size=batch, sampler=OrganBalancedSampler(["any"] * 24, seed=1))
    schedule = WarmupCosineSchedule(optimizer, warmup_steps=1, t_total=3 * len(loader))
    trainer = SupervisedTrainer(
        device=torch.device("cpu"),
        max_epochs=3,
        train_data_loader=loader,
        network=network,
        optimizer=optimizer,
        loss_function=torch.nn.MSELoss(),
        decollate=False,
        accumulation_steps=2,
    )
    EpochSeed(3, loader, interval=1).attach(trainer)
    trainer.add_event_handler(Events.ITERATION_COMPLETED, lambda: schedule.step())
    objects = {"network": network, "optimizer": optimizer, "lr_scheduler": schedule}
    path = str(folder / "last.pt")
    ResumableCheckpoint(path, objects, resume=True, resume_anyway=True, interval=1).attach(trainer)
    seen: dict[int, tuple[float, list[float]]] = {}

    @trainer.on(Events.ITERATION_COMPLETED)
    def note(engine: Engine) -> None:
        if engine.state.iteration == stop_at:
            raise KeyboardInterrupt
        seen[engine.state.iteration] = (
            float(engine.state.output["loss"]),
            engine.state.batch["image"].flatten().tolist(),
        )

    return trainer, seen, schedule


def test_a_run_killed_within_an_epoch_goes_on_within_it_step_by_step(tmp_path: Path) -> None:
    trainer, wanted, _ = make_long_trainer(tmp_path / "whole")
    trainer.run()
    trainer, _, _ = make_long_trainer(tmp_path / "cut", stop_at=19)
    with pytest.raises(KeyboardInterrupt):
        trainer.run()
    random.seed(99), np.random.seed(99), torch.manual_seed(99)
    trainer, found, _ = make_long_trainer(tmp_path / "cut")
    trainer.run()
    # Of the second epoch 6 of 12 steps were done; of 7, the last one had not moved the weights.
    assert found == {step: wanted[step] for step in range(19, 37)}


def test_a_run_resumed_with_other_batches_goes_on_with_the_images_not_seen(tmp_path: Path) -> None:
    trainer, whole, _ = make_long_trainer(tmp_path, stop_at=19)
    with pytest.raises(KeyboardInterrupt):
        trainer.run()
    trainer, found, schedule = make_long_trainer(tmp_path, batch=4)  # as of one process where there were two
    trainer.run()
    assert sorted(found) == list(range(10, 19)) and schedule.last_epoch == 18
    before = [image for step in range(13, 19) for image in whole[step][1]]
    after = [image for step in range(10, 13) for image in found[step][1]]
    assert sorted(before + after) == [float(i) for i in range(24)]


def test_each_epoch_draws_anew_and_a_fixed_seed_does_not(tmp_path: Path) -> None:
    items = [{"image": torch.zeros(3)}] * 4
    loader = DataLoader(Dataset(items, RandGaussianNoised("image", prob=1.0)), batch_size=4)

    def draw(handler: EpochSeed, epoch: int) -> torch.Tensor:
        handler(SimpleNamespace(state=SimpleNamespace(epoch=epoch)))
        return torch.cat([next(iter(loader))["image"].flatten(), torch.rand(2)])

    changing, fixed = EpochSeed(0, loader), EpochSeed(0, loader, fixed=True)
    assert torch.equal(draw(changing, 1), draw(changing, 1))
    assert not torch.equal(draw(changing, 1), draw(changing, 2))
    assert not torch.equal(draw(changing, 1), draw(EpochSeed(1, loader), 1))
    assert not torch.equal(draw(changing, 1), draw(EpochSeed(0, loader, rank=1), 1))
    assert torch.equal(draw(fixed, 1), draw(fixed, 2))


def test_negative_seed_is_refused() -> None:
    with pytest.raises(ValueError, match="-1"):
        EpochSeed(-1, DataLoader(Dataset([1])))


def test_resume_without_a_file_starts_from_the_beginning(tmp_path: Path) -> None:
    trainer, losses, _ = make_trainer(tmp_path, 1, resume=True)
    trainer.run()
    assert list(losses) == [1, 2, 3]


def test_checkpoint_of_another_network_is_refused_by_name(tmp_path: Path) -> None:
    save_atomically(
        {"network": {"weight": torch.zeros(1)}, "engine": {"epoch": 1, "iteration": 3}}, tmp_path / "last.pt"
    )
    trainer, _, _ = make_trainer(tmp_path, 2, resume=True)
    with pytest.raises(RuntimeError, match=r"(?s)cannot resume from .*last\.pt: .* as --pretrained"):
        trainer.run()


def test_a_run_killed_after_its_last_epoch_still_exports(tmp_path: Path) -> None:
    trainer, _, network = make_trainer(tmp_path, 2, resume=False)
    trainer.run()
    trainer, losses, other = make_trainer(tmp_path, 2, resume=True)
    ExportWeights(str(tmp_path / "model.pt"), other).attach(trainer)
    trainer.run()
    assert not losses
    state = torch.load(tmp_path / "model.pt", weights_only=True)
    assert all(torch.equal(state[name], value) for name, value in network.state_dict().items())


def test_a_run_beyond_the_last_epoch_is_refused(tmp_path: Path) -> None:
    make_trainer(tmp_path, 2, resume=False)[0].run()
    with pytest.raises(RuntimeError, match="reached epoch 2, beyond max_epochs 1: raise max_epochs"):
        make_trainer(tmp_path, 1, resume=True)[0].run()


def test_a_run_that_is_made_longer_follows_the_longer_schedule(tmp_path: Path) -> None:
    def rates(folder: Path, epochs: int, resume: bool) -> list[float]:
        weight = torch.nn.Parameter(torch.zeros(1))
        optimizer = torch.optim.SGD([weight], lr=1.0)
        schedule = WarmupCosineSchedule(optimizer, warmup_steps=1, t_total=epochs)
        found: list[float] = []

        def step(*_: object) -> None:
            found.append(optimizer.param_groups[0]["lr"])
            optimizer.step()
            schedule.step()

        engine = Engine(step)
        ResumableCheckpoint(
            str(folder / "last.pt"), {"optimizer": optimizer, "lr_scheduler": schedule}, resume=resume
        ).attach(engine)
        engine.run([0], max_epochs=epochs)
        return found

    whole = rates(tmp_path / "whole", 8, False)
    rates(tmp_path / "longer", 4, False)
    longer = rates(tmp_path / "longer", 8, True)
    assert longer == pytest.approx(whole[4:])
    assert longer == sorted(longer, reverse=True)


def test_weights_that_are_no_numbers_never_replace_a_checkpoint(tmp_path: Path) -> None:
    network, engine = torch.nn.Linear(2, 2), Engine(lambda *_: None)
    ResumableCheckpoint(str(tmp_path / "last.pt"), {"network": network}).attach(engine)
    engine.run([0], max_epochs=2)
    before = (tmp_path / "last.pt").read_bytes()
    with torch.no_grad():
        network.weight[0, 0] = float("nan")
    with pytest.raises(FloatingPointError, match=r"weight of the network.*last\.pt is that of an earlier epoch"):
        engine.run([0], max_epochs=3)
    assert (tmp_path / "last.pt").read_bytes() == before
    assert sorted(file.name for file in tmp_path.iterdir()) == ["last.pt", "previous.pt"]


def test_the_checkpoint_before_the_last_is_kept(tmp_path: Path) -> None:
    engine = Engine(lambda *_: None)
    ResumableCheckpoint(str(tmp_path / "last.pt"), {}).attach(engine)
    kept: list[list[int]] = []

    @engine.on(Events.EPOCH_COMPLETED)
    def note(_: Engine) -> None:
        files = [tmp_path / f"{name}.pt" for name in ("previous", "last")]
        kept.append([torch.load(f, weights_only=True)["engine"]["epoch"] for f in files if f.is_file()])

    engine.run([0], max_epochs=3)
    assert kept == [[1], [1, 2], [2, 3]]


class Planted:
    """Unpickling it writes a file, as a file from a stranger may."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self):
        return (Path.touch, (self.mark,))


def test_a_checkpoint_never_runs_what_it_carries(tmp_path: Path) -> None:
    torch.save({"network": Planted(tmp_path / "ran"), "engine": {"epoch": 1, "iteration": 3}}, tmp_path / "last.pt")
    trainer, _, _ = make_trainer(tmp_path, 2, resume=True)
    with pytest.raises(RuntimeError, match="it is no checkpoint of a training"):
        trainer.run()
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("content", [b"", b"epoch,loss\n1,0.5\n"])
def test_a_file_that_is_no_checkpoint_is_refused_by_name(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "last.pt").write_bytes(content)
    trainer, _, _ = make_trainer(tmp_path, 2, resume=True)
    with pytest.raises(RuntimeError, match=r"last\.pt: it is no checkpoint.*previous\.pt"):
        trainer.run()


def resumed(folder: Path, options: dict, steps: int = 2, anyway: bool = False, epochs: int = 2) -> Engine:
    engine = Engine(lambda *_: None)
    handler = ResumableCheckpoint(str(folder / "last.pt"), {}, resume=True, options=options, resume_anyway=anyway)
    handler.attach(engine)
    engine.run([0] * steps, max_epochs=epochs)
    return engine


def test_a_resumed_run_has_the_options_of_the_saved_one(tmp_path: Path) -> None:
    saved = {"seed": 0, "learning_rate": 0.1, "max_epochs": 1, "num_workers": 0}
    resumed(tmp_path, saved, epochs=1)
    with pytest.raises(ValueError, match=r"learning_rate is 0\.2, was 0\.1; seed is 1, was 0.*--resume_anyway true"):
        resumed(tmp_path, {**saved, "seed": 1, "learning_rate": 0.2})
    with pytest.raises(ValueError, match="steps_per_epoch is 3, was 2"):
        resumed(tmp_path, saved, steps=3)
    assert resumed(tmp_path, {**saved, "num_workers": 2, "max_epochs": 2}).state.epoch == 2
    assert resumed(tmp_path, {**saved, "seed": 1}, anyway=True, epochs=3).state.epoch == 3


def test_the_restored_rate_has_the_floor_of_the_schedule(tmp_path: Path) -> None:
    def schedule() -> WarmupCosineSchedule:
        optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
        return WarmupCosineSchedule(optimizer, warmup_steps=0, t_total=4, end_lr=0.9)

    first, second = schedule(), schedule()
    first.optimizer.step()
    for _ in range(2):
        first.step()
    engine = Engine(lambda *_: None)
    ResumableCheckpoint(str(tmp_path / "last.pt"), {"lr_scheduler": first}).attach(engine)
    engine.run([0], max_epochs=1)
    engine = Engine(lambda *_: None)
    ResumableCheckpoint(str(tmp_path / "last.pt"), {"lr_scheduler": second}, resume=True).attach(engine)
    engine.run([0], max_epochs=1)
    assert second.optimizer.param_groups[0]["lr"] == first.optimizer.param_groups[0]["lr"] == 0.9


@pytest.mark.parametrize("scores, told", [([0.6, 0.3, 0.5], True), ([0.2, 0.3, 0.1], False)])
def test_training_says_when_no_epoch_was_better_than_the_start(tmp_path: Path, caplog, scores, told) -> None:
    evaluator, trainer = Engine(lambda *_: None), Engine(lambda *_: None)
    evaluator.run = lambda _=1: evaluated(best, scores.pop(0))  # type: ignore[method-assign]
    best = BestCheckpoint(str(tmp_path / "best.pt"), torch.nn.Linear(1, 1))
    ValidateStart(evaluator, best).attach(trainer)
    trainer.add_event_handler(Events.EPOCH_COMPLETED, lambda: evaluator.run(1))
    with caplog.at_level(logging.WARNING, logger="ignite.engine"):
        trainer.run([0], max_epochs=2)
    assert best.best == max([0.3, 0.5] if told else [0.3, 0.1])
    assert ("no epoch was better than the untouched start" in caplog.text) is told


def evaluated(handler: BestCheckpoint, value: float) -> None:
    engine = Engine(lambda *_: None)
    engine.state.key_metric_name = "score"
    engine.state.metrics = {"score": value}
    handler(engine)


@pytest.mark.parametrize("negate, values, kept", [(False, [0.3, 0.7, 0.5], 0.7), (True, [0.3, 0.1, 0.5], 0.1)])
def test_best_file_is_that_of_the_best_value(tmp_path: Path, negate: bool, values: list[float], kept: float) -> None:
    network = torch.nn.Linear(1, 1)
    handler = BestCheckpoint(str(tmp_path / "best.pt"), network, negate)
    for value in values:
        torch.nn.init.constant_(network.weight, value)
        evaluated(handler, value)
    assert torch.load(tmp_path / "best.pt", weights_only=True)["weight"].item() == pytest.approx(kept)


def test_metric_that_is_not_a_number_is_never_best(tmp_path: Path) -> None:
    handler = BestCheckpoint(str(tmp_path / "best.pt"), torch.nn.Linear(1, 1))
    evaluated(handler, float("nan"))
    assert not (tmp_path / "best.pt").exists()
    evaluated(handler, -5.0)
    before = (tmp_path / "best.pt").read_bytes()
    evaluated(handler, float("nan"))
    assert (tmp_path / "best.pt").read_bytes() == before


def test_best_value_survives_a_restart(tmp_path: Path) -> None:
    first = BestCheckpoint(str(tmp_path / "best.pt"), torch.nn.Linear(1, 1))
    evaluated(first, 0.8)
    second = BestCheckpoint(str(tmp_path / "best.pt"), torch.nn.Linear(1, 1))
    second.load_state_dict(first.state_dict())
    before = (tmp_path / "best.pt").read_bytes()
    evaluated(second, 0.5)
    assert (tmp_path / "best.pt").read_bytes() == before


def test_the_best_file_of_an_earlier_run_is_not_exported(tmp_path: Path) -> None:
    network = torch.nn.Linear(2, 2)
    save_atomically({"weight": torch.ones(2, 2), "bias": torch.zeros(2)}, tmp_path / "best.pt")
    best = BestCheckpoint(str(tmp_path / "best.pt"), network)
    engine = Engine(lambda *_: None)
    ExportWeights(str(tmp_path / "model.pt"), network, best).attach(engine)
    engine.run([0], max_epochs=1)
    exported = torch.load(tmp_path / "model.pt", weights_only=True)
    assert torch.equal(exported["weight"], network.weight)


def test_export_takes_the_best_file_over_the_last_state(tmp_path: Path) -> None:
    network = torch.nn.Linear(2, 2)
    best = BestCheckpoint(str(tmp_path / "best.pt"), network)
    evaluated(best, 0.5)
    kept = network.weight.detach().clone()
    torch.nn.init.zeros_(network.weight)
    ExportWeights(str(tmp_path / "model.pt"), network, best)(Engine(lambda *_: None))
    assert torch.equal(torch.load(tmp_path / "model.pt", weights_only=True)["weight"], kept)
    ExportWeights(str(tmp_path / "last.pt"), network, best, last=True)(Engine(lambda *_: None))
    assert torch.equal(torch.load(tmp_path / "last.pt", weights_only=True)["weight"], network.weight)


@pytest.mark.parametrize("last", [False, True])
def test_validation_that_is_never_a_number_exports_nothing(tmp_path: Path, last: bool) -> None:
    best, resumed = (BestCheckpoint(str(tmp_path / "best.pt"), torch.nn.Linear(2, 2)) for _ in range(2))
    evaluated(best, float("nan"))
    resumed.load_state_dict(best.state_dict())  # after its last epoch
    for handler in (best, resumed):
        with pytest.raises(FloatingPointError, match="no validation gave a score that is a number"):
            ExportWeights(str(tmp_path / "model.pt"), best.network, handler, last=last)(Engine(lambda *_: None))
    assert not list(tmp_path.iterdir())


def test_half_export_stores_16_bits(tmp_path: Path) -> None:
    network = torch.nn.BatchNorm1d(2)
    ExportWeights(str(tmp_path / "model.pt"), network, half=True)(Engine(lambda *_: None))
    exported = torch.load(tmp_path / "model.pt", weights_only=True)
    assert exported["weight"].dtype == torch.float16
    assert exported["num_batches_tracked"].dtype == torch.int64


def test_export_merges_low_rank_updates_and_leaves_the_network_as_it_was(tmp_path: Path) -> None:
    def build() -> UltrasoundSegmenter:
        torch.manual_seed(0)
        encoder = usfm_vit("tiny", img_size=32, hidden_size=24, mlp_dim=48, num_heads=2, num_layers=4)
        return UltrasoundSegmenter(encoder, 2)

    network = apply_lora(build(), rank=2).eval()
    with torch.no_grad():
        for parameter in network.encoder.parameters():
            if parameter.requires_grad:
                parameter.normal_()
    names = list(network.state_dict())
    ExportWeights(str(tmp_path / "model.pt"), network)(Engine(lambda *_: None))
    plain = build().eval()
    plain.load_state_dict(torch.load(tmp_path / "model.pt", weights_only=True))
    image = torch.rand(1, 1, 32, 32)
    with torch.no_grad():
        assert torch.allclose(plain(image), network(image), atol=1e-4)
        assert not torch.allclose(build().eval()(image), network(image), atol=1e-2)
    assert list(network.state_dict()) == names


def test_weights_beyond_float16_are_exported_as_they_are(tmp_path: Path) -> None:
    network = torch.nn.Linear(2, 1)
    torch.nn.init.constant_(network.weight, 1e6)
    ExportWeights(tmp_path / "a.pt", network, half=True)(Engine(lambda engine, batch: None))
    state = torch.load(tmp_path / "a.pt", weights_only=True)
    assert state["weight"].tolist() == [[1e6, 1e6]] and state["bias"].dtype == torch.float16
