# Copyright (c) monai_usfm contributors
# SPDX-License-Identifier: Apache-2.0
"""Sweeps through a known field give that field back, where it lies."""

from __future__ import annotations

import csv
import math

import nibabel as nib
import numpy as np
import pytest
from PIL import Image

from monai_usfm.cli import main
from monai_usfm.data.sweeps import COLUMNS, compound, compound_sweep


def field(x: np.ndarray, y: np.ndarray, z: np.ndarray) -> np.ndarray:
    """Gray values at places of the tracker in mm."""
    return 0.5 + 0.2 * np.sin(x / 6) + 0.15 * np.cos(y / 7) + 0.1 * np.sin(z / 5)


def sweep(count: int, step: float) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Frames of 40 x 60 pixels of 0.5 mm, moved by ``step`` mm and turned by 1 degree each, somewhere in the room."""
    y, x = np.indices((40, 60))
    plane = np.stack([(x - 29.5) * 0.5, (y - 19.5) * 0.5, 0 * x, 0 * x + 1.0]).reshape(4, -1)
    frames, matrices = [], []
    for number in range(count):
        angle = math.radians(number)
        turn = np.array([[1, 0, 0], [0, math.cos(angle), -math.sin(angle)], [0, math.sin(angle), math.cos(angle)]])
        matrices.append(np.column_stack([turn, [3.0, -80.0, 200 + step * number]]))
        frames.append(field(*(matrices[-1] @ plane)).reshape(40, 60))
    return frames, matrices


def test_the_volume_is_the_field_at_the_places_its_affine_tells():
    volume, fov, affine = compound(*sweep(17, 1.0), (0.5, 0.5), spacing=1.0, max_gap=3.0)
    voxels = np.argwhere(fov)
    truth = field(*(affine[:3] @ np.column_stack([voxels, np.ones(len(voxels))]).T))
    error = volume[fov] - truth
    assert 20 * math.log10(1 / np.sqrt(np.mean(error**2))) > 35  # PSNR in dB
    assert 30 * 20 * 16 < fov.sum() < 32 * 22 * 19  # mm^3 that were swept, and a voxel around them
    assert np.allclose(np.linalg.norm(affine[:3, :3], axis=0), 1.0)


def test_gaps_are_filled_up_to_the_width_that_was_allowed_and_no_further():
    frames, matrices = sweep(6, 4.0)
    _, narrow, _ = compound(frames, matrices, (0.5, 0.5), 1.0, max_gap=2.0)
    _, wide, _ = compound(frames, matrices, (0.5, 0.5), 1.0, max_gap=8.0)
    middle = wide[len(wide) // 2, wide.shape[1] // 2]
    assert middle[5:-5].all()
    assert not narrow[len(narrow) // 2, narrow.shape[1] // 2][5:-5].all()


def test_frames_are_found_by_the_paths_that_windows_writes(tmp_path):
    (tmp_path / "frames").mkdir()
    Image.fromarray(np.full((7, 9), 200, np.uint8)).save(tmp_path / "frames" / "1.png")
    row = ["frames\\1.png", 1, 1, *np.eye(3, 4).ravel()]
    (tmp_path / "poses.csv").write_text(f"image,{','.join(COLUMNS)}\n{','.join(map(str, row))}\n")
    assert compound_sweep(str(tmp_path / "poses.csv"), str(tmp_path / "v.nii.gz")).is_file()


def test_the_verb_reads_the_table_and_writes_volume_and_field_of_view(tmp_path, capfd):
    frames, matrices = sweep(5, 1.0)
    rows = []
    for number, (frame, matrix) in enumerate(zip(frames, matrices, strict=True)):
        Image.fromarray((255 * frame).astype(np.uint8)).save(tmp_path / f"{number}.png")
        rows.append(dict(zip(["image", *COLUMNS], [f"{number}.png", 0.5, 0.5, *matrix.ravel()], strict=True)))
    with open(tmp_path / "poses.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, ["image", *COLUMNS])
        writer.writeheader()
        writer.writerows(rows)
    assert main(["compound", str(tmp_path / "poses.csv"), str(tmp_path / "v.nii.gz")]) == 0
    volume, fov = nib.load(tmp_path / "v.nii.gz"), nib.load(tmp_path / "v_fov.nii.gz")
    assert volume.shape == fov.shape
    assert volume.header.get_zooms() == pytest.approx((1, 1, 1))
    for output, more, message in (
        ("w.nii.gz", ["--spacing", "-1"], "spacing must be above 0 mm"),
        ("w.nii.gz", ["--spacing", "0"], "spacing must be above 0 mm"),
        ("w.png", [], "a volume is written as NIfTI"),
    ):
        assert main(["compound", str(tmp_path / "poses.csv"), str(tmp_path / output), *more]) == 1
        assert message in capfd.readouterr().err
        assert not (tmp_path / output).exists()
    table = (tmp_path / "poses.csv").read_text()
    Image.new("L", (7, 9)).save(tmp_path / "other.png")
    for changed, message in (
        (table.replace("3.png,0.5", "3.png,"), "pixel_size_x_mm of 3.png is '', no number"),
        (table.replace("3.png", "other.png"), "its images have 2 sizes"),
        (table.splitlines()[0] + "\n", "no frame stands in it"),
    ):
        (tmp_path / "poses.csv").write_text(changed)
        assert main(["compound", str(tmp_path / "poses.csv"), str(tmp_path / "w.nii.gz")]) == 1
        assert message in capfd.readouterr().err
    assert not (tmp_path / "w.nii.gz").exists()
    (tmp_path / "poses.csv").write_text("image,x\na.png,1\n")
    assert main(["compound", str(tmp_path / "poses.csv"), str(tmp_path / "v.nii.gz")]) == 1
    assert "poses.csv: no column m00, m01" in capfd.readouterr().err
