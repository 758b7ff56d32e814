# Copyright (c) monai_usfm contributors
# SPDX-License-Identifier: Apache-2.0
"""``monai-usfm convert-dicom`` as a user runs it."""

from __future__ import annotations

import shutil
from pathlib import Path

from pydicom.data import get_testdata_file

from monai_usfm.cli import main


def test_dicom_files_are_converted_and_failures_named(tmp_path, capsys):
    (tmp_path / "in").mkdir()
    shutil.copy(get_testdata_file("examples_palette.dcm"), tmp_path / "in" / "1.2.3")
    whole = Path(get_testdata_file("examples_rgb_color.dcm")).read_bytes()
    (tmp_path / "in" / "bad.dcm").write_bytes(whole[: len(whole) // 2])
    status = main(["convert-dicom", str(tmp_path / "in"), "--output", str(tmp_path / "out"), "--format", "png"])
    assert status == 3 and sorted(p.name for p in (tmp_path / "out").iterdir()) == ["1.2.3.png", "1.2.3.png.json"]
    printed = capsys.readouterr().out
    again = ["convert-dicom", str(tmp_path / "in" / "1.2.3"), "--output", str(tmp_path / "out"), "--format", "png"]
    assert main(again) == 0  # the same file, made anew
    (tmp_path / "out" / "1.2.3.png.json").unlink()
    before = (tmp_path / "out" / "1.2.3.png").read_bytes()  # as a mask of that name
    assert main(again) == 3 and (tmp_path / "out" / "1.2.3.png").read_bytes() == before
    assert "is there already, and was not made from it" in capsys.readouterr().out
    (tmp_path / "empty").mkdir()
    assert main(["convert-dicom", str(tmp_path / "empty"), "--output", str(tmp_path / "none")]) == 1
    assert "empty: no DICOM files" in capsys.readouterr().err
    assert "1 converted, 1 not." in printed and "bad.dcm" in printed
