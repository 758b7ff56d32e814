# Copyright (c) monai_usfm contributors
# SPDX-License-Identifier: Apache-2.0
"""Label-efficiency tables."""

from __future__ import annotations

import csv
import json

import numpy as np
import pytest
from scipy import stats

from monai_usfm.data import add_patients, load_datalist
from monai_usfm.evaluation import (
    Cell,
    label_subsets,
    run_label_efficiency,
    summarize_label_efficiency,
)

PATIENTS = [f"p{i // 2}" for i in range(24)]


def segmentation_cell(fraction: float, seed: int, name: str) -> Cell:
    generator = np.random.default_rng(seed)
    dice = (0.5 + 0.3 * fraction + 0.1 * (name == "pretrained") + 0.1 * generator.random(24)).tolist()
    return Cell({"dice": float(np.mean(dice))}, {"patient": PATIENTS, "dice": dice}, {"images": int(100 * fraction)})


def classification_cell(fraction: float, seed: int, name: str) -> Cell:
    labels = [i % 3 == 0 for i in range(24)]
    generator = np.random.default_rng(seed)
    shift = 0.45 if name == "pretrained" else 0.05
    p = np.clip(0.5 + shift * (2 * np.array(labels) - 1) + 0.1 * generator.normal(size=24), 0, 1)
    cases = {"patient": PATIENTS, "label": list(map(int, labels)), "probability_0": (1 - p).tolist()}
    from sklearn.metrics import f1_score

    return Cell({"macro_f1": f1_score(labels, p > 0.5, average="macro")}, {**cases, "probability_1": p.tolist()})


def fill(folder, cell=segmentation_cell, names=("scratch", "pretrained"), **options):
    settings = {name: {"network": name} for name in names}
    arguments = {"fractions": (0.1, 1.0), "seeds": (0, 1, 2), "report": lambda line: None, **options}
    run_label_efficiency(cell, folder, settings, **arguments)


def read(path) -> list[dict]:
    with path.open(newline="") as stream:
        return list(csv.DictReader(stream))


def test_the_table_holds_mean_interval_and_the_paired_test_by_patient(tmp_path):
    fill(tmp_path)
    summarize_label_efficiency(tmp_path, "dice", "pretrained")
    rows = {(r["initialization"], float(r["fraction"])): r for r in read(tmp_path / "label_efficiency.csv")}
    row = rows["scratch", 0.1]
    means = [segmentation_cell(0.1, s, "scratch").metrics["dice"] for s in range(3)]
    low, high = stats.t.interval(0.95, 2, np.mean(means), stats.sem(means))
    assert [float(row[k]) for k in ("mean", "low", "high")] == pytest.approx([np.mean(means), low, high])
    cases = {}
    for name in ("pretrained", "scratch"):
        cases[name] = np.mean([segmentation_cell(0.1, s, name).cases["dice"] for s in range(3)], axis=0)
    difference = (cases["pretrained"] - cases["scratch"]).reshape(12, 2).mean(1)
    assert float(row["p_value"]) == pytest.approx(stats.wilcoxon(difference).pvalue)
    assert float(row["p_adjusted"]) == pytest.approx(2 * float(row["p_value"]))  # two comparisons in the table
    assert float(row["reference_minus_this"]) == pytest.approx(0.1)
    assert row["test_patients"] == "12" and rows["pretrained", 0.1]["p_value"] == ""


def test_classifiers_are_compared_by_a_bootstrap_of_their_f1(tmp_path):
    pytest.importorskip("sklearn")
    fill(tmp_path, classification_cell)
    summarize_label_efficiency(tmp_path, "macro_f1", "pretrained")
    rows = read(tmp_path / "label_efficiency.csv")
    row = next(r for r in rows if r["initialization"] == "scratch" and r["fraction"] == "0.1")
    expected = np.mean(
        [
            classification_cell(0.1, s, "pretrained").metrics["macro_f1"]
            - classification_cell(0.1, s, "scratch").metrics["macro_f1"]
            for s in range(3)
        ]
    )
    assert row["test"] == "bootstrap"
    assert float(row["reference_minus_this"]) == pytest.approx(expected)
    assert float(row["difference_low"]) < expected < float(row["difference_high"])


def test_finished_cells_are_not_run_again(tmp_path):
    fill(tmp_path, seeds=(0,))
    ran = []

    def recording(fraction, seed, name):
        ran.append((fraction, seed, name))
        return segmentation_cell(fraction, seed, name)

    fill(tmp_path, recording, seeds=(0, 1))
    assert {seed for _, seed, _ in ran} == {1} and len(ran) == 4


def test_a_killed_cell_leaves_nothing_behind(tmp_path):
    def killed(fraction, seed, name):
        if (fraction, name) == (1.0, "pretrained"):
            raise KeyboardInterrupt
        return segmentation_cell(fraction, seed, name)

    with pytest.raises(KeyboardInterrupt):
        fill(tmp_path, killed, seeds=(0,))
    assert sorted(file.name for file in (tmp_path / "cells").iterdir()) == [
        "pretrained-10pct-seed0.json",
        "scratch-100pct-seed0.json",
        "scratch-10pct-seed0.json",
    ]


def test_cells_of_other_settings_are_not_mixed_in(tmp_path):
    fill(tmp_path, conditions={"steps": 100})
    with pytest.raises(ValueError, match="steps was 100, is 200"):
        fill(tmp_path, conditions={"steps": 200})


def test_each_number_carries_its_conditions(tmp_path):
    fill(tmp_path, conditions={"steps": 100, "size": "128x128"})
    summarize_label_efficiency(tmp_path, "dice", "scratch")
    row = read(tmp_path / "cells.csv")[0]
    for column in ("seed", "steps", "size", "network", "torch", "monai", "monai_usfm", "commit", "device", "images"):
        assert column in row
    assert row["size"] == "128x128"


def test_markdown_and_plot_are_written_also_while_cells_are_missing(tmp_path):
    fill(tmp_path)
    (tmp_path / "cells" / "scratch-100pct-seed1.json").unlink()
    for seed in (0, 1, 2):
        (tmp_path / "cells" / f"pretrained-10pct-seed{seed}.json").unlink()
    text = summarize_label_efficiency(tmp_path, "dice", "pretrained", "Breast")
    assert "| pretrained | - |" in text and text == (tmp_path / "label_efficiency.md").read_text()
    assert (tmp_path / "label_efficiency.png").stat().st_size > 5000
    assert not [f for f in tmp_path.iterdir() if f.name.startswith(".")]


def test_cells_scored_on_other_images_are_refused(tmp_path):
    def other(fraction, seed, name):
        cell = segmentation_cell(fraction, seed, name)
        if name == "scratch":
            cell.cases["patient"] = cell.cases["patient"][::-1]
        return cell

    fill(tmp_path, other)
    with pytest.raises(ValueError, match="other test images"):
        summarize_label_efficiency(tmp_path, "dice", "pretrained")


def test_parts_drawn_here_are_nested_and_keep_patients_together():
    items = [{"image": f"{i}.png", "patient": i // 3, "class": int(i % 15 < 3)} for i in range(600)]
    subsets = label_subsets(items, (0.5, 0.05, 0.2, 1.0))
    sizes = [len(subsets[f]) for f in (0.05, 0.2, 0.5, 1.0)]
    assert sizes == [30, 120, 300, 600]
    for fraction in (0.05, 0.2, 0.5):
        assert np.mean([i["class"] for i in subsets[fraction]]) == pytest.approx(0.2)


def test_the_parts_of_a_data_set_are_used_as_published(shared_data):
    folder = shared_data / "busbra"
    items = add_patients(load_datalist(folder / "dataset.json", folder, "training"), folder, folder / "labels.csv")
    subsets = label_subsets(items, published=folder / "label_fractions.json")
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


def test_a_half_written_cell_is_no_cell(tmp_path):
    fill(tmp_path)
    before = summarize_label_efficiency(tmp_path, "dice", "pretrained")
    (tmp_path / "cells" / ".123.scratch-10pct-seed9.json").write_text('{"half')
    assert summarize_label_efficiency(tmp_path, "dice", "pretrained") == before
