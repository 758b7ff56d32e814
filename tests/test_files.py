# Copyright (c) monai_usfm contributors
# SPDX-License-Identifier: Apache-2.0
"""Files are complete or absent."""

from __future__ import annotations

import csv
import gzip
import os
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from monai.transforms import Compose, EnsureChannelFirstd, Invertd, LoadImaged, SaveImage, SaveImaged
from PIL import Image

from monai_usfm.data import LoadUltrasound, UltrasoundReader, UprightGrayd
from monai_usfm.files import (
    UNTURN,
    append_csv,
    atomic_write,
    atomic_writer,
    orientation,
    write_csv,
    write_text_atomically,
)


def test_a_failed_write_leaves_the_old_file_and_no_other(tmp_path: Path) -> None:
    path = write_text_atomically(tmp_path / "new" / "a.txt", "old")
    with pytest.raises(KeyError), atomic_write(path) as part:
        part.write_text("half")
        assert path.read_text() == "old"  # nobody sees the new one yet
        raise KeyError
    assert [p.name for p in path.parent.iterdir()] == ["a.txt"]
    assert path.read_text() == "old"


def test_the_longest_name_that_there_may_be(tmp_path: Path) -> None:
    longest = tmp_path / ("é" * 124 + ".nii.gz")
    with atomic_write(longest) as part:
        assert part.name.endswith(".nii.gz")
        part.write_text("whole")
    assert longest.read_text() == "whole"


def test_threads_that_write_one_file_do_not_mix(tmp_path: Path) -> None:
    def write(number: int) -> None:
        with atomic_write(tmp_path / "a.txt") as part, part.open("w") as file:
            for _ in range(20):
                file.write(f"{number}")
                file.flush()
                time.sleep(0.001)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(write, range(4)))
    assert len(set((tmp_path / "a.txt").read_text())) == 1 and len(list(tmp_path.iterdir())) == 1


def test_the_other_name_has_the_same_ending(tmp_path: Path) -> None:
    with atomic_write(tmp_path / "a.nii.gz") as part:
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


def save(folder: Path, ending: str, values: np.ndarray, writer: type | None) -> Path:
    affine = torch.diag(torch.tensor([0.3, 0.4, 2.0, 1.0]))
    image = MetaTensor(torch.from_numpy(values)[None], affine=affine, meta={"filename_or_obj": "a"})
    settings = {"output_dir": folder, "output_ext": ending, "output_dtype": "uint8", "separate_folder": False}
    SaveImage(output_postfix="", writer=writer, print_log=False, resample=False, **settings)(image)
    return folder / f"a{ending}"


PIXELS = np.arange(48, dtype=np.uint8).reshape(6, 8)
IMAGES = [(".png", PIXELS), (".nii.gz", np.stack([PIXELS, PIXELS + 9])), (".mha", np.stack([PIXELS, PIXELS + 9]))]


@pytest.mark.parametrize(("ending", "values"), IMAGES)
def test_whole_images_are_those_of_monai(tmp_path: Path, ending: str, values: np.ndarray) -> None:
    ours = save(tmp_path / "ours", ending, values, atomic_writer(ending)).read_bytes()
    theirs = save(tmp_path / "theirs", ending, values, None).read_bytes()
    if ending == ".nii.gz":  # of which the first bytes hold the name and the time
        ours, theirs = (nib.Nifti1Image.from_bytes(gzip.decompress(data)) for data in (ours, theirs))
        np.testing.assert_array_equal(ours.affine, np.diag([0.3, 0.4, 2, 1]).astype(np.float32))
        np.testing.assert_array_equal(np.asarray(ours.dataobj), values)
        ours, theirs = ours.to_bytes(), theirs.to_bytes()
    assert ours == theirs


@pytest.mark.parametrize(("ending", "library"), [(".png", "PIL.Image.Image.save"), (".nii.gz", "nibabel.save")])
def test_an_image_broken_off_has_no_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ending: str, library: str
) -> None:
    values = dict(IMAGES)[ending]

    def half(*arguments) -> None:
        name = next(a for a in arguments if isinstance(a, str | Path))
        Path(name).write_bytes(b"half")
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(library, half)
        save(tmp_path, ending, values, atomic_writer(ending))
    assert not list(tmp_path.iterdir())
    old = save(tmp_path, ending, values, atomic_writer(ending)).read_bytes()
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(library, half)
        save(tmp_path, ending, values + 1, atomic_writer(ending))
    assert [p.read_bytes() for p in tmp_path.iterdir()] == [old]


def test_formats_of_two_files_are_refused() -> None:
    with pytest.raises(ValueError, match=r"\.mhd stands for two files"):
        atomic_writer(".mhd")


def test_rows_added_to_a_table_keep_its_columns(tmp_path: Path) -> None:
    for rows, anew in (([{"a": 1, "b": 2}], True), ([{"a": 3, "c": 9, "b": 4}], False), ([{"b": 5}], False)):
        append_csv(tmp_path / "t.csv", rows, anew)
    assert (tmp_path / "t.csv").read_text().splitlines() == ["a,b", "1,2", "3,4", ",5"]


@pytest.mark.parametrize("ending", [".png", ".tif", ".jpg"])
@pytest.mark.parametrize("turn", range(1, 9))
def test_results_lie_on_the_stored_pixels_of_a_turned_photo(tmp_path, ending, turn):
    upright = np.arange(6 * 8, dtype=np.uint8).reshape(6, 8)
    stored = Image.fromarray(upright)
    stored = stored.transpose(UNTURN[turn]) if turn in UNTURN else stored
    stored.save(tmp_path / "photo.png", exif=orientation(turn))
    steps = Compose([LoadImaged("image", reader=UltrasoundReader), EnsureChannelFirstd("image"), UprightGrayd("image")])
    item = steps({"image": str(tmp_path / "photo.png")})
    np.testing.assert_array_equal((item["image"][0] * 255).round(), upright)
    item["pred"] = (item["image"] * 255).round()
    item = Invertd("pred", steps, orig_keys="image")(item)
    options = {"separate_folder": False, "resample": False, "print_log": False, "output_dtype": "uint8"}
    SaveImaged("pred", output_dir=tmp_path, output_ext=ending, writer=atomic_writer(ending), **options)(item)
    with Image.open(tmp_path / f"photo_trans{ending}") as result:
        assert result.getexif().get(0x0112, 1) == turn
        if ending == ".png":  # Pillow turns a TIFF by itself
            np.testing.assert_array_equal(result, stored)
    again = (LoadUltrasound()(tmp_path / f"photo_trans{ending}")[0] * 255).round()
    np.testing.assert_allclose(again, upright, atol=3 if ending == ".jpg" else 0)


@pytest.mark.parametrize("unit", ["mm", None])
@pytest.mark.parametrize("shape", [(6, 7, 5), (6, 7, 1, 5)])
def test_a_result_states_millimeters_where_its_image_does(tmp_path: Path, unit: str | None, shape: tuple) -> None:
    img = nib.Nifti1Image(np.zeros(shape, np.uint8), np.eye(4))
    img.header.set_xyzt_units(unit, "sec")
    nib.save(img, tmp_path / "a.nii.gz")
    load = LoadUltrasound(3)
    read = load(tmp_path / "a.nii.gz")
    assert read.meta["spacing_known"] is (unit == "mm")
    save = SaveImage(tmp_path, "seg", ".nii.gz", resample=False, separate_folder=False, print_log=False,
                     writer=atomic_writer(".nii.gz"))  # fmt: skip
    save(load.upright.inverse(read))
    again = load(tmp_path / "a_seg.nii.gz")
    assert again.shape == read.shape and again.meta["spacing_known"] is (unit == "mm")
