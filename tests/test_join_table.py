# Copyright (c) monai_usfm contributors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / "scripts" / "join_table.py"


@pytest.fixture
def folder(tmp_path):
    lists = {
        "training": [{"image": "a.png", "label": "a_mask.png"}],
        "test": [{"image": "b.png", "label": "b_mask.png"}],
    }
    (tmp_path / "dataset.json").write_text(json.dumps(lists))
    (tmp_path / "labels.csv").write_text("image,subject,mm,hc\na.png,007,0.25,56.8\nb.png,12,0.5,\n")
    return tmp_path


def run(folder, *columns):
    command = [sys.executable, str(SCRIPT), "--datalist", str(folder / "dataset.json"), "--table"]
    command += [str(folder / "labels.csv"), "--output", str(folder / "new.json"), "--columns", *columns]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_items_get_the_values_of_their_row(folder):
    assert run(folder, "patient=subject", "spacing=mm").returncode == 0
    content = json.loads((folder / "new.json").read_text())
    assert content["training"] == [{"image": "a.png", "label": "a_mask.png", "patient": "007", "spacing": 0.25}]
    assert content["test"][0]["patient"] == "12"


@pytest.mark.parametrize(
    ("column", "message"), [("age=years", "no column years"), ("circumference=hc", "b.png is empty")]
)
def test_what_the_table_lacks_is_named_and_nothing_is_written(folder, column, message):
    found = run(folder, column)
    assert found.returncode == 1 and message in found.stderr
    assert not (folder / "new.json").exists()


def test_an_image_without_a_row_is_named(folder):
    (folder / "labels.csv").write_text("image,mm\na.png,0.25\n")
    assert "no row for b.png" in run(folder, "spacing=mm").stderr


def test_images_named_by_their_path_alone_become_items(folder):
    (folder / "dataset.json").write_text(json.dumps({"training": ["a.png"]}))
    assert run(folder, "spacing=mm").returncode == 0
    assert json.loads((folder / "new.json").read_text()) == {"training": [{"image": "a.png", "spacing": 0.25}]}


@pytest.mark.parametrize(("text", "message"), [("{", "dataset.json is no JSON file"), ("[]", "must hold an object")])
def test_a_broken_datalist_is_named(folder, text, message):
    (folder / "dataset.json").write_text(text)
    found = run(folder, "spacing=mm")
    assert found.returncode == 1 and message in found.stderr and "Traceback" not in found.stderr
