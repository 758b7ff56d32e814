# Copyright (c) monai_usfm contributors
# SPDX-License-Identifier: Apache-2.0
"""Active learning on points whose best choice is plain."""

from __future__ import annotations

import csv
import json

import numpy as np
import pytest
from PIL import Image

from monai_usfm import build_network, save_network
from monai_usfm.cli import main
from monai_usfm.evaluation.selection import choose, select

LINE = np.array([[0.0], [1.0], [2.0], [9.0], [10.0], [5.2]])


def test_the_coreset_covers_what_the_labeled_images_leave_bare():
    assert choose(LINE, 2, "coreset", labeled=np.array([[0.0]])) == [4, 5]  # the far end, then the middle
    assert choose(LINE, 1, "coreset", labeled=np.array([[0.0], [10.0]])) == [5]  # the nearest labeled one counts
    assert choose(LINE, 3, "coreset") == [5, 0, 4]  # the mean is 4.5: its neighbor, then both ends
    assert sorted(choose(LINE, 99, "coreset")) == list(range(6))


def test_the_most_uncertain_come_first_and_a_mix_spreads_among_them():
    uncertainty = np.array([0.1, 0.9, 0.8, 0.2, 0.1, 0.7])
    assert choose(LINE, 2, "uncertainty", uncertainty) == [1, 2]
    many = np.concatenate([LINE, LINE + 100])  # far away, but certain
    sure = np.concatenate([uncertainty, np.zeros(6)])
    assert choose(many, 1, "mix", sure, np.array([[0.0]])) == [3]  # the farthest of the five most uncertain
    with pytest.raises(ValueError, match="needs the uncertainty"):
        choose(LINE, 2, "mix")


@pytest.mark.parametrize("strategy", ["coreset", "uncertainty"])
def test_classifiers_choose_too(tmp_path, strategy):
    rng = np.random.default_rng(0)
    for number in range(34):  # more than one batch
        Image.fromarray(rng.integers(0, 255, (40, 40), dtype=np.uint8)).save(tmp_path / f"{number}.png")
    network = build_network("classification", spatial_size=[32, 32], network_size="custom", hidden_size=24, mlp_dim=48,
                            num_layers=4, num_heads=3, num_classes=3)  # fmt: skip
    chosen = select(str(save_network(tmp_path / "m.pt", network)), str(tmp_path), number=40, strategy=strategy,
                    output=str(tmp_path / "chosen.csv"), device="cpu")  # fmt: skip
    assert len(chosen) == len(set(chosen)) == 34


def test_the_verb_leaves_labeled_images_out_and_ranks_the_rest(tmp_path):
    rng = np.random.default_rng(0)
    for number in range(6):
        Image.fromarray(rng.integers(0, 255, (40, 40), dtype=np.uint8)).save(tmp_path / f"{number}.png")
    (tmp_path / "dataset.json").write_text(json.dumps({"training": [{"image": "0.png"}, {"image": "1.png"}]}))
    network = build_network("segmentation", spatial_size=[32, 32], network_size="custom", hidden_size=24, mlp_dim=48,
                            num_layers=4, num_heads=3)  # fmt: skip
    weights, table = save_network(tmp_path / "m.pt", network), tmp_path / "chosen.csv"
    arguments = ["select", str(weights), str(tmp_path), "--number", "3", "--labeled", str(tmp_path / "dataset.json")]
    assert main([*arguments, "--output", str(table), "--device", "cpu"]) == 0
    with open(table, newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["rank"] for row in rows] == ["1", "2", "3"]
    assert not {row["image"] for row in rows} & {str(tmp_path / "0.png"), str(tmp_path / "1.png")}
    listed = tmp_path / "dataset.json"
    listed.write_text(json.dumps({"training": [{"image": "0.png", "label": ["1.png", "4.png"]}]}))
    assert main([*arguments, "--output", str(table), "--device", "cpu"]) == 0
    with open(table, newline="") as file:
        assert {row["image"] for row in csv.DictReader(file)} == {str(tmp_path / f"{n}.png") for n in (2, 3, 5)}
    listed.write_text(json.dumps({"training": [{"image": "0.png"}, {"image": "1.png"}]}))
    before = listed.read_bytes()
    assert main([*arguments, "--output", str(listed), "--device", "cpu"]) == 1 and listed.read_bytes() == before
    (tmp_path / "2.png").write_bytes((tmp_path / "2.png").read_bytes()[:60])
    assert main([*arguments, "--output", str(table), "--device", "cpu"]) == 0
    with open(table, newline="") as file:
        assert {row["image"] for row in csv.DictReader(file)} == {str(tmp_path / f"{n}.png") for n in (3, 4, 5)}
    for number in ("0", "-3"):
        arguments[arguments.index("--number") + 1] = number
        assert main([*arguments, "--output", str(tmp_path / "none.csv")]) == 1
    assert not (tmp_path / "none.csv").exists()
