# Copyright (c) monai_usfm contributors
# SPDX-License-Identifier: Apache-2.0
"""The check of leakage finds planted copies and nothing else."""

from __future__ import annotations

import csv
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image, ImageEnhance
from scipy.ndimage import gaussian_filter

from monai_usfm.cli import main
from monai_usfm.data import load_datalist
from monai_usfm.evaluation import LeakError, check_leaks, find_leaks


def write_images(folder, count: int, seed: int) -> list[dict]:
    """Smooth random textures in a black surround."""
    folder.mkdir()
    generator = np.random.default_rng(seed)
    items = []
    for i in range(count):
        values = gaussian_filter(generator.normal(size=(120, 150)), 7)
        values = (values - values.min()) / np.ptp(values) * 200
        values[:, :12] = 0
        path = folder / f"{i}.png"
        Image.fromarray(values.astype(np.uint8)).save(path)
        items.append({"image": str(path), "patient": f"{folder.name}-{i}"})
    return items


ALTERED = {
    "copied": lambda image: image,
    "halved": lambda image: image.resize((75, 60)),
    "squeezed": lambda image: image.resize((100, 120)),
    "brightened": lambda image: ImageEnhance.Brightness(image).enhance(1.25),
    "darkened": lambda image: ImageEnhance.Brightness(image).enhance(0.6),
    "recompressed": lambda image: image,
}


@pytest.mark.parametrize("how", ALTERED)
def test_a_planted_copy_is_found_and_named(tmp_path, how):
    train, test = write_images(tmp_path / "train", 12, 0), write_images(tmp_path / "test", 6, 1)
    name = tmp_path / "test" / ("planted.jpg" if how == "recompressed" else "planted.png")
    ALTERED[how](Image.open(train[7]["image"])).save(name, **({"quality": 35} if how == "recompressed" else {}))
    leaks = find_leaks(train, [*test, {"image": str(name), "patient": "new"}])
    assert [(leak.train, leak.test) for leak in leaks] == [(train[7]["image"], str(name))]
    assert leaks[0].reason == "similar" if how != "copied" else leaks[0].reason in ("same file", "similar")


def test_the_files_of_pairs_are_compared_under_each_key(tmp_path):
    train, test = write_images(tmp_path / "train", 4, 0), write_images(tmp_path / "test", 3, 1)
    for items, name, seed in ((train, "low_train", 2), (test, "low_test", 3)):
        for item, low in zip(items, write_images(tmp_path / name, len(items), seed), strict=True):
            item["low"] = low["image"]
    shutil.copy(train[1]["low"], test[2]["low"])
    Image.open(train[0]["low"]).resize((75, 60)).save(test[0]["low"])
    assert not find_leaks(train, test)
    found = [(leak.train, leak.test, leak.reason) for leak in find_leaks(train, test, keys=("image", "low"))]
    assert found == [
        (train[1]["low"], test[2]["low"], "same file"),
        (train[0]["low"], test[0]["low"], "similar"),
    ]
    (tmp_path / "list.json").write_text(json.dumps({"training": train, "test": test}))
    arguments = ["check-leaks", "--datalist", str(tmp_path / "list.json"), "--output", str(tmp_path / "leaks")]
    assert main(arguments) == 0 and main([*arguments, "--keys", "image", "low"]) == 1
    with pytest.raises(ValueError, match="lacks high"):
        check_leaks(str(tmp_path / "list.json"), keys=("image", "high"), output=str(tmp_path / "leaks"))


def test_a_mirrored_copy_is_found(tmp_path):
    train, test = write_images(tmp_path / "train", 6, 0), write_images(tmp_path / "test", 3, 1)
    Image.open(train[2]["image"]).transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(test[1]["image"])
    assert [(leak.train, leak.test, leak.reason) for leak in find_leaks(train, test)] == [
        (train[2]["image"], test[1]["image"], "mirrored")
    ]


def test_a_shared_patient_and_a_renamed_file_are_found(tmp_path):
    train, test = write_images(tmp_path / "train", 4, 0), write_images(tmp_path / "test", 3, 1)
    test[0]["patient"] = "train-3"
    shutil.copy(train[1]["image"], test[2]["image"])
    found = {(leak.reason, leak.train, leak.test) for leak in find_leaks(train, test)}
    assert found == {
        ("patient", train[3]["image"], test[0]["image"]),
        ("same file", train[1]["image"], test[2]["image"]),
    }


@pytest.mark.parametrize(
    ("one", "other"), [("P0", "p0"), ("p0", " p0 "), (1, 1.0), ("1.0", 1), ("007", 7), ("\u00e4", "a\u0308")]
)
def test_a_patient_is_the_same_however_it_is_written(tmp_path, one, other):
    train, test = write_images(tmp_path / "train", 2, 0), write_images(tmp_path / "test", 2, 1)
    train[1]["patient"], test[0]["patient"] = one, other
    assert [leak.reason for leak in find_leaks(train, test)] == ["patient"]
    test[0]["patient"] = "p00x"
    assert find_leaks(train, test) == []


@pytest.mark.parametrize("link", [os.symlink, os.link])
def test_a_link_is_the_same_file(tmp_path, link):
    train, test = write_images(tmp_path / "train", 2, 0), write_images(tmp_path / "test", 2, 1)
    link(train[1]["image"], tmp_path / "other.png")
    leaks = find_leaks(train, [*test, {"image": str(tmp_path / "other.png"), "patient": "new"}])
    assert [(leak.train, leak.reason) for leak in leaks] == [(train[1]["image"], "same file")]


def test_the_check_of_a_datalist_stops_with_a_table_of_the_pairs(tmp_path, capsys):
    train, test = write_images(tmp_path / "train", 4, 0), write_images(tmp_path / "test", 3, 1)
    datalist = tmp_path / "dataset.json"
    datalist.write_text(json.dumps({"training": train, "validation": test[:1], "test": test[1:]}))
    table = check_leaks(str(datalist), output=str(tmp_path / "leaks"))
    assert table.read_text().strip() == "train,test,reason,distance"
    told = capsys.readouterr().out
    assert "4 training and 3 other images: 0 leaks" in told and "not known" not in told
    unnamed = [{"image": item["image"]} for item in train]
    (tmp_path / "unnamed.json").write_text(json.dumps({"training": unnamed, "test": test}))
    check_leaks(str(tmp_path / "unnamed.json"), output=str(tmp_path / "leaks"))
    assert "the patients of 4 training and 0 other images are not known" in capsys.readouterr().out
    image = Image.open(train[1]["image"])  # brighter and smaller, so not the same file
    image.point(lambda v: min(255, int(1.2 * v))).resize((100, 80)).save(test[2]["image"])
    with pytest.raises(LeakError, match=r"1 leaks.*2\.png \(test\) and .*1\.png \(training\): similar") as caught:
        check_leaks(str(datalist), output=str(tmp_path / "leaks"))
    with table.open() as stream:
        assert [(row["train"], row["test"]) for row in csv.DictReader(stream)] == [
            (train[1]["image"], test[2]["image"])
        ]
    assert caught.value.leaks[0].test == test[2]["image"]


def test_flat_images_are_no_copies_of_each_other(tmp_path):
    for name, level in (("a", 0), ("b", 90)):
        Image.fromarray(np.full((40, 40), level, np.uint8)).save(tmp_path / f"{name}.png")
    assert find_leaks([{"image": str(tmp_path / "a.png")}], [{"image": str(tmp_path / "b.png")}]) == []


def splits(folder, step: int):
    table = pd.read_csv(folder / "labels.csv", dtype=str).set_index("image")
    patients = table.filter(["patient_id", "subject_id"]).iloc[:, 0]
    for split in ("training", "validation", "test"):
        items = load_datalist(folder / "dataset.json", folder, split)[::step]
        yield [{**i, "patient": patients[Path(i["image"]).relative_to(folder).as_posix()]} for i in items]


def test_real_splits_have_no_leak_and_a_planted_one_is_found(shared_data, tmp_path):
    train, _, test = splits(shared_data / "busbra", 24)
    assert find_leaks(train, test) == []
    image = Image.open(train[5]["image"])
    image = ImageEnhance.Brightness(image.resize((image.width * 2 // 3, image.height * 2 // 3))).enhance(1.2)
    image.save(tmp_path / "other-name.jpg", quality=40)
    leaks = find_leaks(train, [*test, {"image": str(tmp_path / "other-name.jpg"), "patient": "other"}])
    assert [(leak.train, leak.reason) for leak in leaks] == [(train[5]["image"], "similar")]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["busbra", "fetal_head_hc18"])
def test_the_whole_real_splits_have_no_leak(shared_data, name):
    train, validation, test = splits(shared_data / name, 1)
    assert find_leaks(train, [*validation, *test]) == []
