# Copyright (c) monai_usfm contributors
# SPDX-License-Identifier: Apache-2.0
"""Boards: cells by the bundle's own training, and the tables made of them."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from monai_usfm.data import join_table, load_datalist
from monai_usfm.evaluation import label_subsets, run_cells, summarize_board, transfer_board
from monai_usfm.evaluation.cells import BundleTraining, run_name

TINY = {"num_layers": 2, "hidden_size": 48, "mlp_dim": 96, "num_heads": 3}


def write_cell(folder: Path, task: str, start: str, seed: int, dice: list[float], patients: list[str]) -> None:
    file = folder / task / "cells" / f"{start}-5pct-seed{seed}.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    cases = {"patient": patients, "dice": dice}
    content = {"initialization": start, "fraction": 0.05, "seed": seed, "cases": cases, "conditions": {"steps": 100}}
    file.write_text(json.dumps(content))


@pytest.fixture
def cells(tmp_path: Path) -> Path:
    generator = np.random.default_rng(0)
    for task, count, gain in (("breast", 12, 0.1), ("head", 6, 0.3)):
        patients = [f"p{i // 2}" for i in range(count)]
        for seed in (0, 1):
            base = 0.5 + 0.05 * generator.random(count)
            write_cell(tmp_path, task, "scratch", seed, base.tolist(), patients)
            write_cell(tmp_path, task, "foundation", seed, (base + gain).tolist(), patients)
    return tmp_path


def board(folder: Path) -> dict[tuple[str, str], dict[str, str]]:
    with open(folder / "board.csv", newline="") as file:
        return {(row["start"], row["task"]): row for row in csv.DictReader(file)}


def test_mean_over_tasks_counts_each_task_alike(cells: Path) -> None:
    summarize_board(cells, "foundation")
    rows = board(cells)
    ours = [float(rows["foundation", task]["score"]) for task in ("breast", "head")]
    assert float(rows["foundation", "mean"]["score"]) == pytest.approx(np.mean(ours))
    assert float(rows["scratch", "mean"]["reference_minus_this"]) == pytest.approx((0.1 + 0.3) / 2)


def test_a_constant_gain_has_an_interval_without_width_and_is_significant(cells: Path) -> None:
    summarize_board(cells, "foundation")
    row = board(cells)["scratch", "mean"]
    assert float(row["difference_low"]) == pytest.approx(float(row["difference_high"]))
    assert float(row["p_adjusted"]) < 0.01


def test_interval_of_a_cell_is_that_of_its_patients(cells: Path) -> None:
    summarize_board(cells, "foundation")
    row = board(cells)["scratch", "breast"]
    assert 0.5 < float(row["low"]) < float(row["score"]) < float(row["high"]) < 0.55


def test_a_start_that_lacks_a_task_has_no_mean(cells: Path) -> None:
    for file in (cells / "head" / "cells").glob("scratch*"):
        file.unlink()
    text = summarize_board(cells, "foundation").read_text()
    assert ("scratch", "mean") not in board(cells)
    assert "| - |" in text


def test_starts_without_a_seed_in_common_are_not_compared(cells: Path) -> None:
    for task, count in (("breast", 12), ("head", 6)):
        write_cell(cells, task, "late", 7, [0.5] * count, [f"p{i // 2}" for i in range(count)])
    summarize_board(cells, "foundation")
    late = board(cells)["late", "mean"]
    assert (late["score"], late["p_adjusted"]) == ("0.5", "") and board(cells)["scratch", "mean"]["p_adjusted"]


def test_classes_have_macro_f1_and_a_comparison_of_their_own(cells: Path) -> None:
    labels, guesses = [0, 0, 0, 1, 1, 1], {"foundation": [0, 0, 0, 1, 1, 1], "scratch": [0, 0, 1, 1, 1, 0]}
    for start, guessed in guesses.items():
        file = cells / "classes" / "cells" / f"{start}.json"
        file.parent.mkdir(parents=True, exist_ok=True)
        cases = {
            "patient": list("aabbcd"),
            "label": labels,
            **{f"probability_{k}": [float(g == k) for g in guessed] for k in (0, 1)},
        }
        file.write_text(json.dumps({"initialization": start, "fraction": 0.05, "seed": 0, "cases": cases}))
    before = board(cells)["scratch", "mean"] if summarize_board(cells, "foundation") else {}
    row = board(cells)["scratch", "classes"]
    assert (row["metric"], float(row["score"])) == ("macro_f1", pytest.approx(2 / 3))  # both classes: 2 of 3 found
    assert float(row["reference_minus_this"]) == pytest.approx(1 / 3)
    assert float(before["reference_minus_this"]) == pytest.approx(0.2)  # the mean is over Dice alone


def test_a_reference_without_cells_is_refused(cells: Path) -> None:
    with pytest.raises(ValueError, match="no cell of the reference 'other'"):
        summarize_board(cells, "other")


def test_a_part_of_a_board_without_its_reference_has_tables(cells: Path, capsys: pytest.CaptureFixture[str]) -> None:
    starts: dict[str, dict] = {"foundation": {}, "scratch": {}, "late": {}}
    plan = {"tasks": {}, "starts": starts, "fractions": [], "seeds": [], "reference": "late"}
    (cells / "board.json").write_text(json.dumps(plan))
    assert transfer_board(str(cells / "board.json"), str(cells), starts=["foundation", "scratch"]).is_file()
    assert "compared with foundation" in capsys.readouterr().out


@pytest.fixture
def plan(tmp_path: Path) -> Path:
    lists: dict[str, list[dict[str, str]]] = {"training": [], "validation": [], "test": []}
    for i, split in enumerate(["training"] * 4 + ["validation"] * 2 + ["test"] * 2):
        label = np.zeros((40, 40), np.uint8)
        label[10:30, 10 : 20 + i] = 255
        Image.fromarray((label * 0.8).astype(np.uint8)).save(tmp_path / f"i{i}.png")
        Image.fromarray(label).save(tmp_path / f"l{i}.png")
        lists[split].append({"image": f"i{i}.png", "label": f"l{i}.png", "patient": f"p{i}"})
    (tmp_path / "list.json").write_text(json.dumps(lists))
    unet = {"_target_": "UNet", "spatial_dims": 2, "in_channels": 1, "out_channels": 2}
    unet |= {"channels": [4, 8], "strides": [2], "num_res_units": 1}
    content = {
        "options": {"steps": 2, "max_epochs": 1, "batch_size": 2, "spatial_size": [32, 32], "amp": "fp32"}
        | {"device": "$torch.device('cpu')", **{f"plan#{k}": v for k, v in TINY.items()}},
        "tasks": {"square": {"datalist": "list.json"}},
        "starts": {"scratch": {}, "unet": {"network_def": unet, "optimizer#params": "$@network_def.parameters()"}},
        "fractions": [0.5, 1.0],
        "seeds": [0],
        "reference": "scratch",
    }
    (tmp_path / "board.json").write_text(json.dumps(content))
    return tmp_path / "board.json"


def test_the_bundle_trains_and_scores_every_cell_on_its_part_of_the_labels(
    plan: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(plan.parent)
    table = transfer_board(plan.name, "out")
    cells = [json.loads(file.read_text()) for file in sorted((tmp_path / "out/square/cells").glob("*.json"))]
    assert {(c["initialization"], c["fraction"], c["details"]["images"]) for c in cells} == {
        ("scratch", 0.5, 2), ("scratch", 1.0, 4), ("unet", 0.5, 2), ("unet", 1.0, 4),
    }  # fmt: skip
    assert all(cell["cases"]["patient"] == ["p6", "p7"] for cell in cells)
    assert "unet" in table.read_text()
    assert all(cell["conditions"]["pretrained"] == "" for cell in cells)  # not the start that the bundle ships
    assert not list((tmp_path / "out").rglob("*.pt"))
    assert (tmp_path / "out" / "curves.csv").read_text().count("\n") == 1 + len(cells)  # of one epoch each


@pytest.mark.parametrize("change", [{"starts": {"a/b": {}}, "reference": "a/b"}, {"tasks": {".x": {"datalist": "a"}}}])
def test_a_name_that_is_none_of_a_file_is_refused(plan: Path, tmp_path: Path, change: dict) -> None:
    plan.write_text(json.dumps(json.loads(plan.read_text()) | change))
    with pytest.raises(ValueError, match="write it without /"):
        transfer_board(str(plan), str(tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_no_two_cells_share_a_folder() -> None:
    cells = [("a+b", 0.05), ("a-b", 0.05), ("a b", 0.05), ("a_b", 0.05), ("a", 0.025), ("a_2", 0.05), ("ä/@$", 1.0)]
    names = {run_name(start, fraction, 0) for start, fraction in cells}
    assert len(names) == len(cells) and not any(set(name) & set("/@$ +") for name in names)


def test_an_unknown_start_is_named(plan: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="has no starts best; it has scratch, unet"):
        transfer_board(str(plan), str(tmp_path / "out"), starts=["best"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"reference": None}, "lacks reference"),
        ({"reference": "best"}, "the reference 'best' is none of its starts"),
        ({"tasks": {"square": {}}}, "the task 'square' has no datalist"),
        ({"starts": {"scratch": {"pretrained": {"round": "a.pt"}}}}, "'scratch' has no weights for the task 'square'"),
    ],
)
def test_what_a_board_lacks_is_told_before_its_first_training(plan: Path, tmp_path: Path, change, message) -> None:
    plan.write_text(json.dumps(json.loads(plan.read_text()) | change))
    with pytest.raises(ValueError, match=f"{plan.name}: .*{message}"):
        transfer_board(str(plan), str(tmp_path / "out"))
    assert not (tmp_path / "out").exists()
    for text, why in (
        ("{", "not a JSON file"),
        ('{"tasks": {"a": {}, "a": {}}}', "the key 'a' stands twice"),
        ("[]", "object"),
    ):
        plan.write_text(text)
        with pytest.raises(ValueError, match=why):
            transfer_board(str(plan), str(tmp_path / "out"))


def cell(fraction: float, seed: int, name: str) -> dict:
    return {"metrics": {"dice": fraction}, "cases": {"patient": ["a", "b"], "dice": [fraction] * 2}, "details": {}}


def fill(folder: Path, train=cell, seeds=(0,), **conditions) -> None:
    run_cells(train, folder, dict.fromkeys(("scratch", "pretrained"), conditions), (0.1, 1.0), seeds, lambda line: None)


def test_a_class_may_be_named_as_pandas_writes_nothing(tmp_path: Path) -> None:
    lines = ["image,class,p_None,p_NA", "a.png,None,0.9,0.1", "b.png,NA,0.2,0.8"]
    (tmp_path / "images.csv").write_text("\n".join(lines), encoding="utf-8")
    training = BundleTraining("classification", {}, {"test": [{"image": "a.png"}, {"image": "b.png"}]}, {}, tmp_path)
    metrics, cases = training._read(tmp_path)
    assert (metrics["accuracy"], cases["label"]) == (1.0, [0, 1])


def test_finished_cells_are_not_run_again(tmp_path):
    fill(tmp_path)
    ran = []

    def recording(fraction, seed, name):
        ran.append((fraction, seed, name))
        return cell(fraction, seed, name)

    fill(tmp_path, recording, seeds=(0, 1))
    assert {seed for _, seed, _ in ran} == {1} and len(ran) == 4


def test_a_killed_cell_leaves_nothing_behind(tmp_path):
    def killed(fraction, seed, name):
        if (fraction, name) == (1.0, "pretrained"):
            raise KeyboardInterrupt
        return cell(fraction, seed, name)

    with pytest.raises(KeyboardInterrupt):
        fill(tmp_path, killed)
    assert sorted(file.name for file in (tmp_path / "cells").iterdir()) == [
        "pretrained-10pct-seed0.json",
        "scratch-100pct-seed0.json",
        "scratch-10pct-seed0.json",
    ]


def test_cells_of_other_settings_are_not_mixed_in(tmp_path):
    fill(tmp_path, steps=100)
    with pytest.raises(ValueError, match="steps was 100, is 200"):
        fill(tmp_path, steps=200)


def test_each_number_carries_its_conditions(tmp_path):
    fill(tmp_path / "breast", steps=100, size="128x128")
    summarize_board(tmp_path, "scratch")
    with open(tmp_path / "cells.csv", newline="") as file:
        row = next(csv.DictReader(file))
    assert row["size"] == "128x128" and row["task"] == "breast"
    assert {"seed", "steps", "dice", "torch", "monai", "monai_usfm", "commit", "device"} <= set(row)


def test_the_curve_of_one_task_is_drawn_also_while_cells_are_missing(tmp_path):
    fill(tmp_path / "breast")
    (tmp_path / "breast" / "cells" / "pretrained-10pct-seed0.json").unlink()
    (tmp_path / "breast" / "cells" / ".123.scratch-10pct-seed9.json").write_text('{"half')  # of a killed run
    assert "| pretrained | - | 1.000" in summarize_board(tmp_path, "scratch").read_text()
    assert (tmp_path / "board.png").stat().st_size > 5000


def test_the_validation_curve_has_steps_and_the_computing_time_that_they_took(tmp_path):
    fill(tmp_path / "breast", seeds=(3,))
    run = tmp_path / "breast" / "runs" / "scratch_10pct_seed3"
    run.mkdir(parents=True)
    (run / "metrics.csv").write_text("epoch,iteration,seconds,val_mean_dice\n1,25,9,0.5\n2,50,1,\n3,75,9,0.75\n")
    file = tmp_path / "breast" / "cells" / "scratch-10pct-seed3.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"details": {"seconds": 30}}))
    summarize_board(tmp_path, "scratch")
    text = "start,task,fraction,seed,step,seconds,validation\nscratch,breast,0.1,3,25,10.0,0.5\n"
    assert (tmp_path / "curves.csv").read_text() == text + "scratch,breast,0.1,3,75,30.0,0.75\n"
    assert (tmp_path / "curves.png").stat().st_size > 5000


def test_cells_scored_on_other_images_are_refused(cells):
    write_cell(cells, "head", "scratch", 1, [0.5] * 6, list("abcdef"))
    with pytest.raises(ValueError, match="other test images"):
        summarize_board(cells, "foundation")


def test_parts_drawn_here_are_nested_and_keep_patients_together():
    items = [{"image": f"{i}.png", "patient": i // 3, "class": int(i % 15 < 3)} for i in range(600)]
    subsets = label_subsets(items, (0.5, 0.05, 0.2, 1.0))
    sizes = [len(subsets[f]) for f in (0.05, 0.2, 0.5, 1.0)]
    assert sizes == [30, 120, 300, 600]
    for fraction in (0.05, 0.2, 0.5):
        assert np.mean([i["class"] for i in subsets[fraction]]) == pytest.approx(0.2)


def test_the_parts_of_a_data_set_are_used_as_published(shared_data, tmp_path):
    folder = shared_data / "busbra"
    files = (str(folder / name) for name in ("dataset.json", "labels.csv"))
    joined = join_table(*files, ["patient=patient_id"], output=str(tmp_path / "joined.json"))
    items = load_datalist(joined, folder, "training")
    subsets = label_subsets(items, (0.05, 0.1, 0.2, 0.5, 1.0), published=folder / "label_fractions.json")
    content = json.loads((folder / "label_fractions.json").read_text())
    for fraction, percent in ((0.05, 5), (0.1, 10), (0.2, 20), (0.5, 50)):
        names = [str(folder / item["image"]) for item in content[f"training_{percent}pct"]]
        assert [item["image"] for item in subsets[fraction]] == names
        assert len({item["patient"] for item in subsets[fraction]}) == content[f"numPatients_{percent}pct"]
    assert len(subsets[1.0]) == 1127


def test_published_parts_that_split_a_patient_are_refused(tmp_path):
    items = [{"image": str(tmp_path / f"{i}.png"), "patient": i // 2} for i in range(4)]
    part = tmp_path / "label_fractions.json"
    part.write_text(json.dumps({"training_50pct": [{"image": "0.png"}, {"image": "2.png"}]}))
    with pytest.raises(ValueError, match="patient"):
        label_subsets(items, (0.5, 1.0), published=part)
