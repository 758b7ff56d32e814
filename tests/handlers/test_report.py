# Copyright (c) monai_usfm contributors
# SPDX-License-Identifier: Apache-2.0
"""What the reports of an evaluation share."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
import torch.distributed as dist
import torch.multiprocessing as mp
from ignite.engine import Engine

from monai_usfm.handlers import EvaluationReport, ValueReport


class Squares(EvaluationReport):
    def collect(self, engine: Engine) -> list[dict]:
        return [{"number": value, "square": float(value**2)} for value in engine.state.output]

    def write(self, engine: Engine, rows: list[dict]) -> None:
        self.write_table("rows.csv", rows)
        self.write_summary(engine, {"count": len(rows)})


def evaluate(report: EvaluationReport, batches: list[list[int]]) -> None:
    engine = Engine(lambda _, batch: batch)
    report.attach(engine)
    engine.run(batches)


def numbers(folder: Path) -> list[int]:
    with open(folder / "rows.csv", newline="") as file:
        return [int(row["number"]) for row in csv.DictReader(file)]


def test_rows_of_all_batches_are_written_and_a_second_run_starts_anew(tmp_path: Path) -> None:
    report = Squares(str(tmp_path))
    for batches, wanted in (([[1, 2], [3]], [1, 2, 3]), ([[4], [5]], [4, 5])):
        evaluate(report, batches)
        assert numbers(tmp_path) == wanted
    assert json.loads((tmp_path / "summary.json").read_text()) == {"count": 2}
    assert "25.00000" in (tmp_path / "rows.csv").read_text()


def test_without_rows_nothing_is_written(tmp_path: Path) -> None:
    evaluate(Squares(str(tmp_path / "none")), [[]])
    assert not (tmp_path / "none").exists()


class Named(Squares):
    files = ("rows.csv", "summary.json")


class Broken(Named):
    def collect(self, engine: Engine) -> list[dict]:
        raise ValueError("this image")


class BrokenTable(Named):
    streamed = "rows.csv"
    collect = Broken.collect


@pytest.mark.parametrize(("kind", "left"), [(Broken, ["rows.csv", "summary.json"]), (BrokenTable, [])])
def test_a_run_that_is_broken_off_leaves_the_results_of_another_but_where_its_own_grow(
    tmp_path: Path, kind: type[Squares], left: list[str]
) -> None:
    evaluate(Named(str(tmp_path)), [[1]])
    with pytest.raises(ValueError, match="this image"):
        evaluate(kind(str(tmp_path)), [[2]])
    assert sorted(path.name for path in tmp_path.iterdir()) == left
    assert not left or numbers(tmp_path) == [1]


def test_what_a_run_did_not_write_again_is_removed_at_its_end(tmp_path: Path) -> None:
    class Fewer(Named):
        def write(self, engine: Engine, rows: list[dict]) -> None:
            self.write_table("rows.csv", rows)

    evaluate(Named(str(tmp_path)), [[1]])
    evaluate(Fewer(str(tmp_path)), [[2]])
    assert numbers(tmp_path) == [2] and not (tmp_path / "summary.json").exists()
    evaluate(Named(str(tmp_path)), [[]])
    assert not list(tmp_path.iterdir())


def test_a_number_that_cannot_be_computed_is_null(tmp_path: Path) -> None:
    row, nan = {"image": "a.png", "value": 1.0, "std": 1.0}, float("nan")
    labels = {"alike": {"label": 2.0, "error": -1.0}, "none": {"label": nan, "error": nan}}
    rows = [{**row, "name": name, **label} for name, label in labels.items()] * 3
    ValueReport(str(tmp_path), list(labels)).write(Engine(lambda *_: None), rows)
    found = json.loads((tmp_path / "summary.json").read_text(), parse_constant=pytest.fail)
    assert (found["alike"]["bias"], found["alike"]["correlation"]) == (-1.0, None)
    assert set(found["none"].values()) == {None}


def share_of_process(rank: int, folder: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    try:
        evaluate(Squares(folder), [[rank], [10 + rank]])
    finally:
        dist.destroy_process_group()


@pytest.mark.slow
def test_the_first_of_two_processes_writes_the_rows_of_both(tmp_path: Path) -> None:
    mp.start_processes(share_of_process, (str(tmp_path),), nprocs=2, start_method="fork")
    assert numbers(tmp_path) == [0, 10, 1, 11]
