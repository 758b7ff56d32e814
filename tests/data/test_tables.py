# Copyright (c) monai_usfm contributors
# SPDX-License-Identifier: Apache-2.0
"""Tables: rows found by paths, joined to datalists."""

from __future__ import annotations

import json
import unicodedata

import pytest

from monai_usfm.data import join_table
from monai_usfm.data.tables import Table, value_of


@pytest.fixture
def folder(tmp_path):
    lists = {
        "training": [{"image": "a.png", "label": "a_mask.png"}],
        "test": [{"image": "b.png", "label": "b_mask.png"}],
    }
    (tmp_path / "dataset.json").write_text(json.dumps(lists))
    (tmp_path / "labels.csv").write_text("image,subject,mm,hc\na.png,007,0.25,56.8\nb.png,12,0.5,\n")
    return tmp_path


def join(folder, *columns):
    made = join_table(
        str(folder / "dataset.json"), str(folder / "labels.csv"), columns, output=str(folder / "new.json")
    )
    return json.loads(made.read_text())


def test_items_get_the_values_of_their_row(folder):
    content = join(folder, "patient=subject", "spacing=mm")
    assert content["training"] == [{"image": "a.png", "label": "a_mask.png", "patient": "007", "spacing": 0.25}]
    assert content["test"][0]["patient"] == "12"


def test_a_column_of_another_name_may_name_the_images(folder):
    text = (folder / "labels.csv").read_text()
    (folder / "labels.csv").write_text(text.replace("image,", "file,"))
    assert join(folder, "image=file", "spacing=mm")["test"] == [
        {"image": "b.png", "label": "b_mask.png", "spacing": 0.5}
    ]


def test_classes_beside_empty_cells_are_whole_numbers(folder):
    (folder / "labels.csv").write_text("image,kind,mm\na.png,0.0,1.0\nb.png,1.5,2.0\n")
    found = [part[0] for part in (join(folder, "class=kind", "spacing=mm")[split] for split in ("training", "test"))]
    assert [repr(item[key]) for item in found for key in ("class", "spacing")] == ["0", "1.0", "1.5", "2.0"]


def test_without_another_name_the_list_itself_is_replaced(folder):
    made = join_table(str(folder / "dataset.json"), str(folder / "labels.csv"), ["mm"])
    assert made == folder / "dataset.json" and json.loads(made.read_text())["test"][0]["mm"] == 0.5


def test_parts_of_a_split_get_them_too_and_a_list_without_items_is_refused(folder):
    lists = {"numTraining": 1, "training_5pct": [{"image": "a.png"}], "words": ["a.png"]}
    for content, good in ((lists, True), ({"words": ["a.png"]}, False)):
        (folder / "dataset.json").write_text(json.dumps(content))
        if good:
            assert join(folder, "mm") == {**lists, "training_5pct": [{"image": "a.png", "mm": 0.25}]}
        else:
            with pytest.raises(ValueError, match="no list of items"):
                join(folder, "mm")


@pytest.mark.parametrize(
    ("column", "message"),
    [
        ("age=years", "no column years"),
        ("circumference=hc", "b.png is empty"),
        ("image=file", "no column file"),
        ("image=mm", r"no row for a\.png"),
        ("spacing=image", "image of a.png must be a number, is 'a.png'"),
    ],
)
def test_what_the_table_lacks_is_named_and_nothing_is_written(folder, column, message):
    with pytest.raises(ValueError, match=message):
        join(folder, column)
    assert not (folder / "new.json").exists()


def test_an_image_without_a_row_is_named(folder):
    (folder / "labels.csv").write_text("image,mm\na.png,0.25\n")
    with pytest.raises(ValueError, match=r"no row for b\.png"):
        join(folder, "spacing=mm")


def test_images_named_by_their_path_alone_become_items(folder):
    (folder / "dataset.json").write_text(json.dumps({"training": ["a.png"]}))
    assert join(folder, "spacing=mm") == {"training": [{"image": "a.png", "spacing": 0.25}]}


@pytest.mark.parametrize(("text", "message"), [("{", "dataset.json: not a JSON file"), ("[]", "must hold an object")])
def test_a_broken_datalist_is_named(folder, text, message):
    (folder / "dataset.json").write_text(text)
    with pytest.raises(ValueError, match=message):
        join(folder, "spacing=mm")


@pytest.mark.parametrize("sign", [",", ";", "\t"])
def test_commas_semicolons_and_tabs_separate(tmp_path, sign):
    (tmp_path / "t.csv").write_text(f"image{sign}patient \nx/a.png{sign} p1 \n", encoding="utf-8-sig")
    assert Table(tmp_path / "t.csv", ["patient"]).rows_of(["/data/x/a.png"]) == [{"image": "x/a.png", "patient": "p1"}]


@pytest.mark.parametrize("key", ["/data/x/a.png", "x/a.png", "x\\a.png", "./x/a.png", "a.png", "a"])
def test_a_row_names_the_end_of_a_path(tmp_path, key):
    (tmp_path / "t.csv").write_text(f"image,n\n{key},1\n")
    assert Table(tmp_path / "t.csv").rows_of(["/data/x/a.png", "/data/x/b.png"]) == [{"image": key, "n": "1"}, None]


def test_a_row_that_fits_two_files_is_refused(tmp_path):
    (tmp_path / "t.csv").write_text("image,n\n1.png,1\n")
    with pytest.raises(ValueError, match=r"row of 1\.png may belong to /d/x/1\.png and to /d/y/1\.png"):
        Table(tmp_path / "t.csv").rows_of(["/d/x/1.png", "/d/y/1.png"])


def test_two_rows_of_one_image_may_not_differ(tmp_path):
    (tmp_path / "t.csv").write_text("image,n,m\na.png,1,5\na.png,1,6\n")
    assert len(Table(tmp_path / "t.csv", ["n"]).rows) == 1
    with pytest.raises(ValueError, match=r"two rows of a\.png differ in m"):
        Table(tmp_path / "t.csv")


def test_composed_and_decomposed_names_are_one(tmp_path):
    (tmp_path / "t.csv").write_text(f"image,n\n{unicodedata.normalize('NFD', 'möhre.png')},1\n", encoding="utf-8")
    assert Table(tmp_path / "t.csv").rows_of([unicodedata.normalize("NFC", "möhre.png")])[0]["n"] == "1"


@pytest.mark.parametrize(
    ("text", "value"),
    [("3", 3), ("-2", -2), ("0.25", 0.25), ("1e-3", 1e-3), ("007", "007"), ("1_0", "1_0"), ("nan", "nan"), ("x", "x")],
)
def test_numbers_are_numbers_and_names_stay(text, value):
    assert value_of(text) == value and type(value_of(text)) is type(value)
