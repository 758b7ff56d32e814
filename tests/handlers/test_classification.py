# Copyright (c) monai_usfm contributors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from ignite.engine import Engine
from monai.data import MetaTensor
from PIL import Image
from sklearn.metrics import balanced_accuracy_score, f1_score, roc_auc_score

from monai_usfm.data import class_weights, load_class_splits
from monai_usfm.handlers import ClassificationReport, ClassificationScore, save_confusion
from tests.tables import rows as read


def evaluate(batches, *handlers):
    """Run an engine over batches of (name, patient, label, probabilities), as a decollating evaluator leaves them."""

    def step(engine, rows):
        engine.state.batch = [
            {"image": MetaTensor(torch.zeros(1), meta={"filename_or_obj": name})}
            | ({} if patient is None else {"patient": patient})
            for name, patient, _, _ in rows
        ]
        return [{"pred": torch.tensor(p), "label": label} for _, _, label, p in rows]

    engine = Engine(step)
    for handler in handlers:
        if isinstance(handler, ClassificationScore):
            handler.attach(engine, handler.metric_fn.name)
        else:
            handler.attach(engine)
    engine.run(batches)
    return engine


def random_batches(count=40, classes=3, seed=0):
    rng = np.random.default_rng(seed)
    rows = []
    for index in range(count):
        p = rng.dirichlet(np.ones(classes)).tolist()
        rows.append((f"{index}.png", None, int(rng.integers(classes)), p))
    return [rows[start : start + 7] for start in range(0, count, 7)]


def test_scores_over_batches_are_those_of_scikit_learn_over_everything():
    batches = random_batches()
    engine = evaluate(batches, *(ClassificationScore(name) for name in ("macro_f1", "balanced_accuracy", "auc")))
    rows = [row for batch in batches for row in batch]
    labels, probabilities = np.array([r[2] for r in rows]), np.array([r[3] for r in rows])
    predicted = probabilities.argmax(1)
    metrics = engine.state.metrics
    assert metrics["macro_f1"] == pytest.approx(f1_score(labels, predicted, average="macro"))
    assert metrics["balanced_accuracy"] == pytest.approx(balanced_accuracy_score(labels, predicted))
    assert metrics["auc"] == pytest.approx(roc_auc_score(labels, probabilities, multi_class="ovr"), abs=1e-6)


def test_unknown_score_is_refused():
    with pytest.raises(ValueError, match=r"accuracy, balanced_accuracy.*'f2'"):
        ClassificationScore("f2")


def test_table_has_the_probabilities_in_the_order_of_the_classes(tmp_path):
    evaluate(
        [[("a.png", None, 2, [0.2, 0.7, 0.1])], [("b.png", None, 0, [0.5, 0.2, 0.3])]],
        ClassificationReport(tmp_path, ["x", "y", "z"]),
    )
    rows = read(tmp_path / "images.csv")
    assert list(rows[0]) == ["image", "class", "prediction", "p_x", "p_y", "p_z"]
    assert [list(row.values()) for row in rows] == [
        ["a.png", "z", "y", "0.200000", "0.700000", "0.100000"],
        ["b.png", "x", "x", "0.500000", "0.200000", "0.300000"],
    ]
    assert not (tmp_path / "patients.csv").exists()


def test_patients_have_the_mean_of_their_images_across_batches(tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr("monai_usfm.handlers.classification.save_confusion", lambda *given: drawn.append(given[1:]))
    report = ClassificationReport(tmp_path)
    rows = [
        ("a.png", "p1", 1, [0.9, 0.1]),
        ("b.png", "p2", 0, [0.6, 0.4]),
        ("c.png", "p1", 1, [0.3, 0.7]),
        ("d.png", "p1", 0, [0.0, 1.0]),
    ]
    evaluate([rows[:3], rows[3:]], report)
    patients = read(tmp_path / "patients.csv")
    assert [list(row.values()) for row in patients] == [
        ["p1", "3", "1", "1", "0.400000", "0.600000"],
        ["p2", "1", "0", "0", "0.600000", "0.400000"],
    ]
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["images"]["confusion_matrix"] == [[1, 1], [1, 1]]
    assert summary["patients"]["confusion_matrix"] == [[1, 0], [0, 1]]
    assert (summary["images"]["count"], summary["patients"]["count"]) == (4, 2)
    assert summary["patients"]["macro_f1"] == 1.0
    assert drawn == [([[1, 0], [0, 1]], ["0", "1"], "patients")]


def test_one_class_alone_gives_scores_without_an_auc(tmp_path):
    evaluate(
        [[("a.png", None, 1, [0.4, 0.6, 0.0]), ("b.png", None, 1, [0.8, 0.2, 0.0])]], ClassificationReport(tmp_path)
    )
    summary = json.loads((tmp_path / "summary.json").read_text())["images"]
    assert summary["auc"] is None
    assert summary["balanced_accuracy"] == 0.5
    assert summary["confusion_matrix"] == [[0, 0, 0], [1, 1, 0], [0, 0, 0]]
    assert (tmp_path / "confusion.png").is_file()


def test_without_labels_only_tables_are_written(tmp_path):
    evaluate([[("a.png", 7, None, [0.25, 0.75])]], ClassificationReport(tmp_path))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["images.csv", "patients.csv"]
    assert read(tmp_path / "patients.csv") == [
        {"patient": "7", "images": "1", "prediction": "1", "p_0": "0.250000", "p_1": "0.750000"}
    ]
    evaluate([[("a.png", 7, None, [0.25, 0.75]), ("b.png", None, None, [0.25, 0.75])]], ClassificationReport(tmp_path))
    assert [row["patient"] for row in read(tmp_path / "images.csv")] == ["7", ""]
    assert not (tmp_path / "patients.csv").exists()


def test_a_second_run_starts_afresh(tmp_path):
    report = ClassificationReport(tmp_path)
    for patient in ("p1", None):
        evaluate([[("a.png", patient, 0, [0.9, 0.1])]], report)
    assert len(read(tmp_path / "images.csv")) == 1
    assert not (tmp_path / "patients.csv").exists()


def test_wrong_number_of_class_names_is_refused(tmp_path):
    with pytest.raises(ValueError, match="1 names for 2 classes"):
        evaluate([[("a.png", None, 0, [0.9, 0.1])]], ClassificationReport(tmp_path, ["x"]))


def test_confusion_figure_is_dark_where_the_row_concentrates(tmp_path):
    path = save_confusion(tmp_path / "confusion.png", [[0, 9], [5, 5]], ["a", "b"])
    figure = np.asarray(Image.open(path).convert("RGB")).astype(float)
    blue = figure[..., 2] - figure[..., 0] > 50  # every cell but the first, which no image is in
    rows, columns = (np.flatnonzero(blue.sum(axis) > 50) for axis in (1, 0))
    cells = figure[rows.min() : rows.max(), columns.min() : columns.max()].mean(2)
    (empty, full), (left, right) = ([np.median(c) for c in np.array_split(r, 2, 1)] for r in np.array_split(cells, 2))
    assert empty > left + 60 > full + 120
    assert left == pytest.approx(right, abs=2)
    assert [p.name for p in tmp_path.iterdir()] == ["confusion.png"]  # no temporary file is left


def test_weights_make_all_classes_count_alike():
    items = [{"class": c} for c in (0, 0, 0, 2)]
    weights = class_weights(items, 4)
    torch.testing.assert_close(weights, torch.tensor([4 / 6, 0.0, 2.0, 0.0]))
    assert sum(weights[item["class"]].item() for item in items) == pytest.approx(len(items))


def datalist(folder, **changes):
    names = ["a.png", "b.png", "c.png"]
    for number, name in enumerate(names):
        Image.fromarray(np.full((8, 8), number, np.uint8)).save(folder / name)
    lists = {
        "training": [{"image": "a.png", "class": 0, "patient": "p1"}],
        "validation": [{"image": "b.png", "class": 1, "patient": "p2"}],
        "test": [{"image": "c.png", "class": 0, "patient": "p3"}],
    }
    for split, change in changes.items():
        lists[split][0] = {k: v for k, v in (lists[split][0] | change).items() if v is not None}
    (folder / "dataset.json").write_text(json.dumps(lists))
    return {"dataset_dir": folder, "num_classes": 2, "synthetic_dir": folder / "none"}


def test_splits_are_read_with_their_classes(tmp_path):
    lists = load_class_splits(**datalist(tmp_path), splits=("test",))
    assert lists == {"test": [{"image": str(tmp_path / "c.png"), "class": 0, "patient": "p3"}]}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"training": {"class": None}}, "item 0 of 'training' lacks class"),
        ({"validation": {"class": 2}}, "item 0 of 'validation' .*b.png.* class 2; expected an integer from 0 to 1"),
        ({"training": {"class": -1}}, "class -1"),
        ({"training": {"class": "benign"}}, "class 'benign'"),
        ({"training": {"class": True}}, "class True"),
        ({"validation": {"patient": "p1"}}, "patient p1 .training, validation."),
        ({"test": {"patient": "p1"}}, "patient p1 .training, test."),
        ({"test": {"image": "a.png"}}, "image .*a.png .training, test."),
    ],
)
def test_bad_lists_are_refused(tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        load_class_splits(**datalist(tmp_path, **changes))


def test_patients_named_for_some_items_only_are_refused(tmp_path):
    arguments = datalist(tmp_path)
    content = json.loads((tmp_path / "dataset.json").read_text())
    Image.fromarray(np.zeros((8, 8), np.uint8)).save(tmp_path / "d.png")
    content["training"].append({"image": "d.png", "class": 1})
    (tmp_path / "dataset.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match="1 of 2 items of 'training' lack `patient`"):
        load_class_splits(**arguments)
