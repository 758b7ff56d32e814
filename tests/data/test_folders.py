# Copyright (c) monai_usfm contributors
# SPDX-License-Identifier: Apache-2.0
"""What is found below a folder, and what is left out."""

from __future__ import annotations

from pathlib import Path

import pydicom
import pytest
from pydicom.data import get_testdata_file

from monai_usfm.data import list_images, mark_results
from monai_usfm.data.folders import find_files


def touch(*paths: Path) -> None:
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")


def images(folder: Path) -> list[str]:
    return [path.relative_to(folder).as_posix() for path in find_files(folder).images]


@pytest.mark.parametrize(
    "name",
    [
        ".ipynb_checkpoints",
        "@eaDir",
        ".Trash",
        ".Trash-1000",
        "__MACOSX",
        ".hidden",
        "thumbnails",
        "Thumbs",
        "$RECYCLE.BIN",
    ],
)
def test_folders_of_systems_are_skipped_and_named_but_not_when_asked_for(tmp_path, name):
    touch(tmp_path / "a.png", tmp_path / "x" / name / "deep" / "b.png")
    found = find_files(tmp_path)
    assert images(tmp_path) == ["a.png"] and list(found.skipped) == [tmp_path / "x" / name]
    assert images(tmp_path / "x" / name) == ["deep/b.png"]


@pytest.mark.parametrize("name", ["thumb_study", "trash_can", "mac", "images.v2"])
def test_folders_with_like_names_are_searched(tmp_path, name):
    touch(tmp_path / name / "a.png")
    assert images(tmp_path) == [f"{name}/a.png"]


def test_results_are_skipped_wherever_they_lie_and_told(tmp_path, caplog):
    touch(tmp_path / "a.png", tmp_path / "run" / "pred" / "a_seg.png")
    mark_results(tmp_path / "run")
    assert list_images(tmp_path) == [{"image": str(tmp_path / "a.png")}]
    assert "left out, results of monai_usfm, by the file .monai_usfm_results: run" in caplog.text
    assert images(tmp_path / "run") == ["pred/a_seg.png"]  # named by the user


def test_results_may_not_lie_among_the_images(tmp_path):
    with pytest.raises(ValueError, match="change the output folder"):
        mark_results(tmp_path, tmp_path / "x" / "..")
    made = mark_results(tmp_path / "new" / "out", tmp_path)
    touch(tmp_path / "new" / "out" / "result.png", tmp_path / "images" / "a.png")
    assert made == mark_results(made) == str(tmp_path / "new" / "out")
    with pytest.raises(ValueError, match="images holds images"):
        mark_results(tmp_path / "images")
    assert images(tmp_path) == ["images/a.png"]  # no mark was left
    with pytest.raises(FileNotFoundError, match=r"no image files.*Not searched: .*out \(results of monai_usfm"):
        list_images(tmp_path / "new")


def test_linked_folders_are_searched_once_and_loops_end(tmp_path):
    touch(tmp_path / "data" / "b" / "1.png", tmp_path / "other" / "2.png")
    (tmp_path / "data" / "a_link").symlink_to(tmp_path / "data" / "b")
    (tmp_path / "data" / "far").symlink_to(tmp_path / "other")
    (tmp_path / "data" / "b" / "up").symlink_to(tmp_path / "data")
    (tmp_path / "data" / "broken.png").symlink_to(tmp_path / "nothing.png")
    (tmp_path / "data" / "itself").symlink_to(tmp_path / "data" / "itself")
    found = find_files(tmp_path / "data")
    assert images(tmp_path / "data") == ["b/1.png", "far/2.png"]
    assert {path.name: reason for path, reason in found.others.items()} == dict.fromkeys(
        ["broken.png", "itself"], "a broken link"
    )


def test_other_files_are_named_hidden_ones_are_not(tmp_path):
    touch(tmp_path / "a.png", tmp_path / "notes.txt", tmp_path / "b.xyz", tmp_path / "._a.png", tmp_path / "Thumbs.db")
    assert [path.name for path in find_files(tmp_path).others] == ["b.xyz", "notes.txt"]


KINDS = {
    "1.2.840.10008.1.3.10": False,  # Media Storage Directory (DICOMDIR)
    "1.2.840.10008.5.1.4.1.1.88.22": False,  # Enhanced SR
    "1.2.840.10008.5.1.4.1.1.11.1": False,  # Grayscale Softcopy Presentation State
    "1.2.840.10008.5.1.4.1.1.104.1": False,  # Encapsulated PDF
    "1.2.840.10008.5.1.4.1.1.6.1": True,  # Ultrasound Image
    "1.2.840.10008.5.1.4.1.1.3.1": True,  # Ultrasound Multi-frame Image
    "1.2.840.10008.5.1.4.1.1.6.2": True,  # Enhanced US Volume
    "1.2.840.10008.5.1.4.1.1.7": True,  # Secondary Capture Image
    "1.2.276.0.99": True,  # private: the reader decides
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["x.dcm", "IM0001"])
def test_dicom_objects_without_an_image_are_listed_as_what_they_are(tmp_path, kind, name):
    file = pydicom.dcmread(get_testdata_file("examples_palette.dcm"))
    file.file_meta.MediaStorageSOPClassUID = file.SOPClassUID = kind
    file.save_as(tmp_path / name)
    found = find_files(tmp_path)
    assert [path.name for path in found.images] == [name] * KINDS[kind]
    if not KINDS[kind]:
        assert found.others[tmp_path / name] == f"DICOM without an image: {pydicom.uid.UID(kind).name}"
