# Copyright (c) monai_usfm contributors
# SPDX-License-Identifier: Apache-2.0
"""Files are complete or absent."""

from __future__ import annotations

import csv
import os
from pathlib import Path

import pytest

from monai_usfm.files import whole_file, write_csv, write_text_atomically


def test_a_failed_write_leaves_the_old_file_and_no_other(tmp_path: Path) -> None:
    path = write_text_atomically(tmp_path / "new" / "a.txt", "old")
    with pytest.raises(KeyError), whole_file(path) as part:
        part.write_text("half")
        assert path.read_text() == "old"  # nobody sees the new one yet
        raise KeyError
    assert [p.name for p in path.parent.iterdir()] == ["a.txt"]
    assert path.read_text() == "old"


def test_the_other_name_has_the_same_ending(tmp_path: Path) -> None:
    with whole_file(tmp_path / "a.nii.gz") as part:
        assert part.name.endswith("a.nii.gz") and part.name != "a.nii.gz"
        part.write_text("x")
    assert (tmp_path / "a.nii.gz").read_text() == "x"


def test_table_has_every_column_and_survives_commas(tmp_path: Path) -> None:
    rows = [{"a": 'x, "y"', "b": 1}, {"a": 0, "c": None}]
    with open(write_csv(tmp_path / "t.csv", rows), newline="", encoding="utf-8") as file:
        assert list(csv.reader(file)) == [["a", "b", "c"], ['x, "y"', "1", ""], ["0", "", ""]]


def test_the_content_is_on_the_disk_before_the_name_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    steps = []
    for name in ("fsync", "replace"):
        original = getattr(os, name)
        monkeypatch.setattr(os, name, lambda *args, n=name, call=original: (steps.append(n), call(*args))[1])
    assert write_text_atomically(tmp_path / "a.txt", "new").read_text() == "new"
    assert steps == ["fsync", "replace"]
