# Copyright (c) monai_usfm contributors
# SPDX-License-Identifier: Apache-2.0
"""Tables, progress lines, run records and figures."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from ignite.engine import Engine, Events
from monai.data import DataLoader
from PIL import Image

from monai_usfm.data import OrganBalancedSampler
from monai_usfm.handlers import (
    EpochLoss,
    EpochValidation,
    FigureHandler,
    MetricsTable,
    Progress,
    ResumableCheckpoint,
    RunLock,
    RunRecord,
    learning_rates,
    save_panels,
)
from tests.tables import rows


def engine_with_losses(losses: list[float]) -> Engine:
    """Two iterations an epoch; the loss of each comes from a list over the whole run."""
    return Engine(lambda engine, _: {"loss": torch.tensor(losses[engine.state.iteration - 1])})


def train(folder: Path, losses: list[float], max_epochs: int, done: int = 0, metric: float | None = None) -> None:
    engine = engine_with_losses(losses)
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.125)
    evaluator = Engine(lambda *_: None)

    @engine.on(Events.STARTED)
    def restore(_: Engine) -> None:
        engine.state.epoch, engine.state.iteration = done, 2 * done

    @engine.on(Events.EPOCH_COMPLETED(every=2))
    def validate(_: Engine) -> None:
        if metric is not None:
            evaluator.run([0])
            evaluator.state.metrics["dice"] = torch.tensor(metric)

    MetricsTable(str(folder), optimizer, evaluator).attach(engine)
    engine.run([0, 1], max_epochs=max_epochs)


def test_row_holds_the_mean_loss_of_its_epoch(tmp_path: Path) -> None:
    train(tmp_path, [1.0, 3.0, 5.0, 8.0], 2, metric=0.75)
    first, second = rows(tmp_path / "metrics.csv")
    assert (first["epoch"], first["iteration"], first["train_loss"], first["learning_rate"]) == ("1", "2", "2", "0.125")
    assert second["train_loss"] == "6.5"
    assert (first["dice"], second["dice"]) == ("", "0.75")  # validated in the second epoch alone


def test_rows_of_repeated_epochs_are_replaced_on_resume(tmp_path: Path) -> None:
    train(tmp_path, [1.0] * 6, 3)
    train(tmp_path, [9.0] * 8, 4, done=1)
    assert [(row["epoch"], row["train_loss"]) for row in rows(tmp_path / "metrics.csv")] == [
        ("1", "1"),
        ("2", "9"),
        ("3", "9"),
        ("4", "9"),
    ]


def test_rows_survive_when_the_epoch_is_restored_after_the_table_was_attached(tmp_path: Path) -> None:
    train(tmp_path, [1.0] * 4, 2)
    engine = engine_with_losses([2.0] * 6)
    table = MetricsTable(str(tmp_path), torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.1))
    table.attach(engine)
    engine.add_event_handler(Events.STARTED, lambda: setattr(engine.state, "epoch", 2))
    engine.add_event_handler(Events.STARTED, lambda: setattr(engine.state, "iteration", 4))
    engine.run([0, 1], max_epochs=3)
    assert [row["epoch"] for row in rows(tmp_path / "metrics.csv")] == ["1", "2", "3"]


def test_a_resumed_table_is_that_of_an_uninterrupted_run(tmp_path: Path) -> None:
    train(tmp_path / "whole", [1.0] * 6, 3)
    train(tmp_path / "cut", [1.0] * 2, 1)
    train(tmp_path / "cut", [1.0] * 6, 3, done=1)
    whole, cut = (rows(tmp_path / name / "metrics.csv") for name in ("whole", "cut"))
    assert [{**row, "seconds": ""} for row in cut] == [{**row, "seconds": ""} for row in whole]


def test_new_run_starts_a_new_table(tmp_path: Path) -> None:
    train(tmp_path, [1.0] * 6, 3)
    train(tmp_path, [9.0] * 2, 1)
    assert [row["train_loss"] for row in rows(tmp_path / "metrics.csv")] == ["9"]


def test_progress_and_table_tell_the_mean_of_an_epoch_that_was_cut_over_all_of_its_steps(tmp_path: Path) -> None:
    def run(cut: bool, file: str = "last.pt") -> str:
        def stop() -> None:
            raise KeyboardInterrupt

        out, loss = io.StringIO(), EpochLoss()
        engine = Engine(lambda engine, _: {"loss": [1.0, 2.0, 4.0, 8.0][engine.state.iteration - 1]})
        optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.1)
        MetricsTable(str(tmp_path), optimizer, loss=loss).attach(engine)
        ResumableCheckpoint(str(tmp_path / file), {}, resume=not cut, interval=3, loss=loss).attach(engine)
        Progress(stream=out, loss=loss).attach(engine)
        if cut:
            engine.add_event_handler(Events.ITERATION_COMPLETED(once=3), stop)
        engine.run(DataLoader(range(4), sampler=OrganBalancedSampler(["any"] * 4)), max_epochs=1)
        return out.getvalue()

    with pytest.raises(KeyboardInterrupt):
        run(cut=True)
    state = torch.load(tmp_path / "last.pt")
    del state["engine"]["loss"]
    torch.save(state, tmp_path / "earlier.pt")  # of an earlier version
    assert "loss 3.75000" in run(cut=False)
    assert rows(tmp_path / "metrics.csv")[0]["train_loss"] == "3.75"
    assert "loss 8.00000" in run(cut=False, file="earlier.pt")


def test_progress_prints_one_plain_line_an_epoch_into_a_log() -> None:
    out = io.StringIO()
    engine = Engine(lambda *_: {"loss": 0.5})
    Progress("pretraining", stream=out).attach(engine)
    engine.run([{"image": torch.zeros(4, 1)}] * 3, max_epochs=2)
    lines = out.getvalue().splitlines()
    assert len(lines) == 2
    assert lines[1].startswith("pretraining epoch 2/2 loss 0.50000 (") and lines[1].endswith("0:00:00 left)")
    assert "\r" not in out.getvalue()


def test_progress_draws_a_bar_in_a_terminal() -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    out = Terminal()
    engine = Engine(lambda *_: {"loss": 0.5})
    Progress("segmentation", stream=out).attach(engine)
    engine.run([{"image": torch.zeros(4, 1)}] * 3, max_epochs=2)
    assert "\r" in out.getvalue() and "2/3" in out.getvalue() and "loss=0.5" in out.getvalue()
    assert "segmentation epoch 2/2 loss 0.50000" in out.getvalue()


def test_rates_of_layers_stand_by_name_and_the_first_is_that_of_the_head(tmp_path: Path) -> None:
    weights = [torch.nn.Parameter(torch.zeros(1)) for _ in range(3)]
    groups = [{"params": [w], "lr": 0.1 * 2**i, "layer": i} for i, w in enumerate(weights)]
    wanted = {"learning_rate": 0.4, "rate_embedding": 0.1, "rate_block_1": 0.2, "rate_head": 0.4}
    assert learning_rates(torch.optim.SGD(groups, lr=1.0)) == pytest.approx(wanted)
    assert learning_rates(torch.optim.SGD([weights[0]], lr=0.5)) == {"learning_rate": 0.5}
    optimizer = torch.optim.SGD(groups, lr=1.0)
    torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.0)
    assert learning_rates(optimizer).keys() == wanted.keys()


def test_the_table_is_drawn_too(tmp_path: Path) -> None:
    train(tmp_path, [1.0, 3.0, 5.0, 8.0], 2, metric=0.75)
    assert Image.open(tmp_path / "metrics.png").size[0] > 900  # loss, score and rate side by side


def test_a_second_training_is_kept_out_of_the_folder_until_the_first_ends(tmp_path: Path) -> None:
    def engine() -> Engine:
        engine = Engine(lambda *_: None)
        RunLock(str(tmp_path)).attach(engine)
        return engine

    def meanwhile() -> None:
        with pytest.raises(RuntimeError, match=r"another training is running in .*another --output_dir"):
            engine().run([0])

    first = engine()
    first.add_event_handler(Events.EPOCH_COMPLETED, meanwhile)
    first.run([0])
    engine().run([0])


def test_what_killed_runs_left_is_removed_and_what_is_being_written_is_not(tmp_path: Path) -> None:
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    (tmp_path / "checkpoints").mkdir()
    kept = {"last.pt", ".hidden", f".{ended.pid}.py.swp"}  # an editor's too
    for name in (f".{ended.pid}.1.last.pt", f".{os.getpid()}.1.last.pt", *kept):
        (tmp_path / "checkpoints" / name).touch()
    engine = Engine(lambda *_: None)
    RunLock(str(tmp_path)).attach(engine)
    engine.run([0])
    left = {file.name for file in (tmp_path / "checkpoints").iterdir()}
    assert left == {f".{os.getpid()}.1.last.pt", *kept}


def test_run_record_holds_options_versions_and_command(tmp_path: Path) -> None:
    RunRecord(str(tmp_path), {"batch_size": 8, "device": torch.device("cpu")})()
    record = json.loads((tmp_path / "run.json").read_text())
    assert record["options"] == {"batch_size": 8, "device": "cpu"}
    assert record["versions"]["torch"].startswith(torch.__version__.split("+")[0])
    assert record["command"]


def test_panels_show_each_image_at_its_place_in_its_orientation(tmp_path: Path) -> None:
    images = torch.zeros(2, 1, 10, 20)
    images[0, 0, 1, 2] = 1.0  # near the upper left
    images[1, 0, 8, 18] = 0.5  # near the lower right
    color = torch.zeros(2, 3, 10, 20)
    color[1, 0] = 1.0
    path = save_panels(tmp_path / "p.png", {"gray": images, "color": color})
    figure = np.array(Image.open(path))
    gap, header = 6, 21
    assert figure.shape == (header + 2 * 10 + gap, 2 * 20 + gap, 3)
    np.testing.assert_array_equal(figure[header + 1, 2], [255] * 3)
    np.testing.assert_array_equal(figure[header + (10 + gap) + 8, 18], [128] * 3)
    np.testing.assert_array_equal(figure[header + (10 + gap) + 5, gap + 20 + 3], [255, 0, 0])


def test_panels_take_the_middle_slice_and_survive_values_that_are_no_number(tmp_path: Path) -> None:
    volume = torch.zeros(1, 1, 5, 6, 7)
    volume[0, 0, 2] = 1.0
    volume[0, 0, 2, 0, 0] = float("nan")
    figure = np.array(Image.open(save_panels(tmp_path / "v.png", {"volume": volume})))[21:27, :7]
    assert figure[0, 0].max() == 0
    assert figure[1:].min() == 255


@pytest.mark.parametrize("interval, wanted", [(1, [1, 2, 3, 4, 5]), (2, [2, 4, 5]), (7, [5])])
def test_the_last_epoch_is_validated_whatever_the_interval(interval: int, wanted: list[int]) -> None:
    found: list[int] = []
    handler, engine = EpochValidation(interval), Engine(lambda engine, item: None)
    handler.validator = SimpleNamespace(run=found.append)  # type: ignore[assignment]
    handler.attach(engine)
    engine.run([0], max_epochs=5)
    assert found == wanted


@pytest.mark.parametrize("interval, wanted", [(1, [1, 2, 3, 4]), (3, [1, 3]), (0, [])])
def test_figures_are_saved_every_few_epochs(tmp_path: Path, interval: int, wanted: list[int]) -> None:
    engine = Engine(lambda *_: None)
    panels = {"image": torch.rand(1, 1, 8, 8)}
    FigureHandler(str(tmp_path), lambda _: panels, interval, prefix="x").attach(engine)
    engine.run([0], max_epochs=4)
    assert sorted(p.name for p in tmp_path.iterdir()) == [f"x_epoch_{n:04d}.png" for n in wanted]
