# Copyright (c) monai_usfm contributors
# SPDX-License-Identifier: Apache-2.0
"""Bundles that measure: landmarks of the segmentation bundle, numbers of the classification bundle."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from monai_usfm import build_network, read_card, save_network
from monai_usfm.bundle import root_cause
from monai_usfm.workflow import load_bundle, run_bundle
from tests.tables import rows

NAMES = ["left", "right"]
TINY = {"num_layers": 4, "hidden_size": 48, "mlp_dim": 96, "num_heads": 3}
OPTIONS = {
    "spatial_size": [48, 64],
    "batch_size": 6,
    "warmup_epochs": 0,
    "learning_rate": 0.01,
    "amp": "fp32",
    "device": "cpu",
    "pretrained": None,
    **{f"plan#{key}": value for key, value in TINY.items()},
}


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twenty images of 0.5 mm pixels: a bright disc on the left, a gray one on the right; ``gap`` is their distance."""
    folder, rng = tmp_path_factory.mktemp("points"), np.random.default_rng(0)
    grid = np.indices((60, 90))
    lists: dict[str, list] = {"training": [], "validation": [], "test": []}
    for number in range(20):
        image = 60 * rng.random((60, 90))
        y = rng.uniform(10, 50, 2).tolist()
        points = {"left": (rng.uniform(10, 35), y[0]), "right": (rng.uniform(55, 80), y[1])}
        for name, (x, row) in points.items():
            image[(grid[0] - row) ** 2 + (grid[1] - x) ** 2 < 25] = 250 if name == "left" else 150
        Image.fromarray(image.astype(np.uint8)).save(folder / f"{number}.png")
        item = {"image": f"{number}.png", "spacing": [0.5, 0.5], "landmarks": points, "patient": f"p{number}"}
        item["gap"] = float(np.hypot(*np.subtract(points["left"], points["right"])))
        lists["training" if number < 12 else "validation" if number < 16 else "test"].append(item)
    del lists["training"][0]["landmarks"]["right"]  # not shown
    (folder / "dataset.json").write_text(json.dumps(lists))
    return folder


def test_landmarks_are_learned_by_one_option_and_written_in_pixels_and_mm(images: Path, tmp_path: Path):
    settings = {**OPTIONS, "dataset_dir": str(images), "output_dir": str(tmp_path)}
    run_bundle("segmentation", landmarks=NAMES, max_epochs=30, val_interval=30, **settings)
    assert read_card(tmp_path / "model.pt")["landmarks"] == NAMES
    evaluated = {k: v for k, v in settings.items() if not k.startswith("plan#") and k != "spatial_size"}
    run_bundle("segmentation", "evaluate", checkpoint=str(tmp_path / "model.pt"), **evaluated)
    summary = json.loads((tmp_path / "evaluation" / "summary.json").read_text())
    assert summary["all"]["unit"] == "mm"
    assert summary["all"]["error"] < 2.0  # chance is about 8 mm, a pixel of the network 0.7 mm
    cases = rows(tmp_path / "evaluation" / "cases.csv")
    run_bundle(
        "segmentation", "predict", checkpoint=str(tmp_path / "model.pt"), dataset_dir=str(images), device="cpu",
        datalist=str(images / "dataset.json"), output_dir=str(tmp_path / "out"),
    )  # fmt: skip
    found = rows(tmp_path / "out" / "landmarks.csv")
    assert [float(row["x"]) for row in found] == pytest.approx([float(row["x"]) for row in cases], abs=0.05)
    assert [float(row["y"]) for row in found] == pytest.approx([float(row["y"]) for row in cases], abs=0.05)
    assert not list((tmp_path / "out").glob("*_seg.png"))


def test_a_number_is_learned_by_one_option_with_its_uncertainty(images: Path, tmp_path: Path):
    settings = {**OPTIONS, "dataset_dir": str(images), "output_dir": str(tmp_path), "values": ["gap"]}
    run_bundle("classification", max_epochs=2, **settings)
    card = read_card(tmp_path / "model.pt")
    gaps = [item["gap"] for item in json.loads((images / "dataset.json").read_text())["training"]]
    assert card["values"] == ["gap"]
    assert card["value_scale"] == {"mean": [pytest.approx(np.mean(gaps))], "std": [pytest.approx(np.std(gaps))]}
    common = {"checkpoint": str(tmp_path / "model.pt"), "dataset_dir": str(images), "device": "cpu"}
    run_bundle("classification", "evaluate", output_dir=str(tmp_path), **common)
    found = rows(tmp_path / "evaluation" / "values.csv")
    errors = [abs(float(row["value"]) - float(row["label"])) for row in found]
    summary = json.loads((tmp_path / "evaluation" / "summary.json").read_text())["gap"]
    assert summary["error"] == pytest.approx(np.mean(errors), rel=1e-3)
    assert summary["error"] < 2 * np.std(gaps)
    datalist = str(images / "dataset.json")
    run_bundle("classification", "predict", datalist=datalist, output_dir=str(tmp_path / "out"), **common)
    again = rows(tmp_path / "out" / "values.csv")
    assert [float(row["value"]) for row in again] == pytest.approx([float(row["value"]) for row in found], rel=1e-3)
    assert all(float(row["std"]) > 0 for row in again)


@pytest.mark.parametrize(
    ("task", "field", "entry", "workflow"),
    [
        ("segmentation", "landmarks", "points", "evaluate"),
        ("classification", "values", "numbers", "evaluate"),
        ("classification", "class_names", "validate#handlers", "evaluate"),
        ("classification", "class_names", "handlers", "predict"),
    ],
)
def test_names_that_contradict_the_card_are_refused(task: str, field: str, entry: str, workflow: str, tmp_path: Path):
    outputs = 4 if field == "values" else 2
    network = build_network(task, num_classes=outputs, network_size="custom", spatial_size=[32, 32], **TINY)
    own = save_network(tmp_path / "own.pt", network, **{field: NAMES})
    other = save_network(tmp_path / "other.pt", network)

    def parsed(checkpoint: Path, **given: list[str]) -> object:
        folders = {"output_dir": str(tmp_path), "dataset_dir": str(tmp_path), "device": "cpu"}
        flow = load_bundle(task, workflow, checkpoint=str(checkpoint), **folders, **given)
        return flow.parser.get_parsed_content(entry)

    parsed(own, **{field: NAMES})
    with pytest.raises(RuntimeError) as error:
        parsed(own, **{field: NAMES[::-1]})
    assert f"--{field} ['right', 'left'] contradicts the card" in str(root_cause(error.value))
    if field != "class_names":
        with pytest.raises(RuntimeError) as error:
            parsed(other, **{field: NAMES})
        assert "which has none" in str(root_cause(error.value))
