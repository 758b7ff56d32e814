# Copyright (c) monai_usfm contributors
# SPDX-License-Identifier: Apache-2.0
"""Previews and tables of inference against what was put into the files."""

from __future__ import annotations

import csv
import json

import av
import nibabel as nib
import numpy as np
import pytest
import torch
from ignite.engine import Engine
from monai.data import MetaTensor
from PIL import Image

from monai_usfm.data import LoadUltrasound
from monai_usfm.handlers import results
from monai_usfm.handlers.drawing import COLORS, INK, draw_overlay, draw_volume, tile
from monai_usfm.handlers.results import (
    ClassificationPreviews,
    EnhancementPreviews,
    SegmentationResults,
)


def run(handler, items, frame=0, **known):
    """An engine that gives one item after another, each as (path, prediction in the file's axes, dims of the image)."""

    def step(engine, item):
        path, prediction, dims = item
        image = MetaTensor(torch.zeros(1, *[4] * dims), meta={"filename_or_obj": str(path), "frame": frame, **known})
        return [{"image": image, "pred": torch.as_tensor(prediction)}]

    engine = Engine(step)
    handler.attach(engine)
    engine.run(items)


def saved(path, size=(30, 40)):
    Image.fromarray(np.full(size, 90, dtype=np.uint8)).save(path)
    return path


def test_rows_place_a_structure_where_the_upright_figure_shows_it(tmp_path):
    prediction = torch.zeros(1, 40, 30)  # MONAI's axes: x, then y
    prediction[0, 25:35, 4:10] = 1
    handler = SegmentationResults(str(tmp_path / "out"), 2, ["lesion"])
    run(handler, [(saved(tmp_path / "a.png"), prediction, 2)])
    (row,) = json.loads((tmp_path / "out" / "statistics.json").read_text())
    assert (row["name"], row["area"], row["unit"]) == ("lesion", 60, "px")
    assert (row["box_x"], row["box_y"], row["width"], row["height"]) == (25, 4, 10, 6)
    figure = np.asarray(Image.open(tmp_path / "out" / "previews" / "a.jpg").convert("RGB")).astype(int)
    red = figure[:440, :, 0] - figure[:440, :, 2] > 60  # the legend below has the color too
    rows, columns = np.nonzero(red)
    assert columns.min() / figure.shape[1] == pytest.approx(25 / 40, abs=0.02)
    assert columns.max() / figure.shape[1] == pytest.approx(35 / 40, abs=0.02)
    assert rows.max() < figure.shape[0] / 2


def test_every_frame_of_a_cine_has_a_row_and_a_figure_in_the_movie(tmp_path):
    frames = np.zeros((20, 24, 1, 5), dtype=np.uint8)
    nib.save(nib.Nifti1Image(frames, np.diag([0.5, 0.5, 1, 1])), tmp_path / "cine.nii.gz")
    prediction = np.zeros((1, 20, 24, 1, 5))
    for t in range(5):
        prediction[0, 2 : 4 + 2 * t, 5:10, 0, t] = 1
    run(SegmentationResults(str(tmp_path), 2, time=True), [(tmp_path / "cine.nii.gz", prediction, 3)])
    with open(tmp_path / "statistics.csv", newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert [int(row["frame"]) for row in rows] == list(range(5))
    assert [float(row["area"]) for row in rows] == [(2 + 2 * t) * 5 * 0.25 for t in range(5)]
    assert {row["unit"] for row in rows} == {"mm"}
    with av.open(str(tmp_path / "previews" / "cine.mp4")) as movie:
        assert sum(1 for _ in movie.decode(video=0)) == 5
    assert (tmp_path / "previews" / "cine.jpg").is_file()


def test_the_frame_that_a_2d_network_saw_is_drawn(tmp_path):
    frames = np.arange(4, dtype=np.uint8) * 60 * np.ones((30, 40, 1, 1), dtype=np.uint8)
    nib.save(nib.Nifti1Image(frames, np.eye(4)), tmp_path / "cine.nii.gz")
    run(EnhancementPreviews(str(tmp_path)), [(tmp_path / "cine.nii.gz", np.zeros((1, 30, 40)), 2)], frame=2)
    figure = np.asarray(Image.open(tmp_path / "previews" / "cine.jpg").convert("L"))
    assert abs(int(figure[figure.shape[0] // 2, 100]) - 120) < 4


def test_a_file_of_ten_bits_is_drawn_as_the_network_saw_it(tmp_path):
    Image.fromarray(np.full((40, 30), 600, np.uint16)).save(tmp_path / "ten.png")
    white = LoadUltrasound()(tmp_path / "ten.png", full_scale=1023).meta["full_scale"]
    run(EnhancementPreviews(str(tmp_path)), [(tmp_path / "ten.png", np.zeros((1, 30, 40)), 2)], full_scale=white)
    figure = np.asarray(Image.open(tmp_path / "previews" / "ten.jpg").convert("L"))
    assert abs(int(figure[figure.shape[0] // 2, 100]) - 255 * 600 / 1023) < 4


def test_a_volume_is_measured_as_one(tmp_path):
    nib.save(nib.Nifti1Image(np.zeros((20, 24, 12), dtype=np.uint8), np.diag([1, 1, 2, 1])), tmp_path / "v.nii.gz")
    prediction = np.zeros((1, 20, 24, 12))
    prediction[0, 2:8, 5:10, 3:6] = 1
    run(SegmentationResults(str(tmp_path), 2), [(tmp_path / "v.nii.gz", prediction, 3)])
    (row,) = json.loads((tmp_path / "statistics.json").read_text())
    assert row["volume"] == 6 * 5 * 3 * 2
    assert (row["width"], row["height"], row["depth"]) == (6, 5, 6)


def test_contact_sheets_take_so_many_cases_each(tmp_path, monkeypatch):
    monkeypatch.setattr(results, "PAGE", 2)
    items = [(saved(tmp_path / f"{n}.png"), torch.zeros(1, 40, 30), 2) for n in range(3)]
    run(SegmentationResults(str(tmp_path), 2), items)
    found = sorted(path.name for path in tmp_path.glob("contact_sheet*"))
    assert found == ["contact_sheet.jpg", "contact_sheet_2.jpg"]
    run(SegmentationResults(str(tmp_path), 2), items[:1])  # fewer cases into the same folder
    assert [path.name for path in tmp_path.glob("contact_sheet*")] == ["contact_sheet.jpg"]
    assert [path.name for path in (tmp_path / "previews").glob("*.jpg")] == ["0.jpg"]
    run(SegmentationResults(str(tmp_path), 2, statistics=False), items[:1])
    assert not list(tmp_path.glob("statistics.*"))


def test_figures_in_a_folder_that_no_run_made_are_left_there(tmp_path):
    (tmp_path / "out" / "previews").mkdir(parents=True)
    other = saved(tmp_path / "out" / "previews" / "other.jpg")
    for _ in range(2):
        run(SegmentationResults(str(tmp_path / "out"), 2), [(saved(tmp_path / "a.png"), torch.zeros(1, 40, 30), 2)])
    assert other.is_file()


def test_nothing_is_drawn_or_written_when_not_asked(tmp_path):
    handler = SegmentationResults(str(tmp_path / "out"), 2, preview=False, statistics=False)
    run(handler, [(saved(tmp_path / "a.png"), torch.zeros(1, 40, 30), 2)])
    assert not (tmp_path / "out").exists()


def test_previews_repeat_the_subfolders_of_the_images(tmp_path):
    for name in ("p1", "p2"):
        (tmp_path / "in" / name).mkdir(parents=True)
    items = [(saved(tmp_path / "in" / name / "a.png"), torch.zeros(1, 40, 30), 2) for name in ("p1", "p2")]
    run(EnhancementPreviews(str(tmp_path / "out"), data_root_dir=str(tmp_path / "in")), items)
    assert (tmp_path / "out/previews/p1/a.jpg").is_file() and (tmp_path / "out/previews/p2/a.jpg").is_file()


def test_the_bar_of_the_more_probable_class_is_longer(tmp_path):
    run(ClassificationPreviews(str(tmp_path), ["benign", "malignant"]), [(saved(tmp_path / "a.png"), [0.8, 0.2], 2)])
    figure = np.asarray(Image.open(tmp_path / "previews" / "a.jpg").convert("RGB")).astype(int)
    colored = (figure[..., 2] - figure[..., 0] > 80).sum(1)
    gray = ((abs(figure - 120) < 25).all(-1)).sum(1)[-60:]
    assert colored.max() > 3 * gray.max() > 0


def test_a_table_is_whole_after_every_case_and_replaces_a_former_one(tmp_path):
    handler = SegmentationResults(str(tmp_path), 2, preview=False)
    items = [(saved(tmp_path / f"{n}.png"), torch.zeros(1, 40, 30), 2) for n in range(3)]
    for _ in range(2):
        run(handler, items)
        with open(tmp_path / "statistics.csv", newline="") as stream:
            table = [row["image"] for row in csv.DictReader(stream)]
        written = [row["image"] for row in json.loads((tmp_path / "statistics.json").read_text())]
        assert table == written == [str(path) for path, *_ in items]


def test_outside_the_structures_an_overlay_is_the_gray_image():
    image = np.random.default_rng(0).random((50, 60))
    labels = np.zeros((50, 60), dtype=int)
    labels[10:20, 30:50] = 2
    figure = np.asarray(draw_overlay(image, labels, size=240)).astype(int)
    gray = (figure == figure[..., :1]).all(-1)
    assert gray[:35].all() and gray[85:].all() and gray[:, :112].all()
    assert not gray[44:76, 124:196].any()
    assert (abs(figure - COLORS[1]).sum(-1) < 10).any()


def test_pixels_keep_the_proportions_of_the_body_and_the_bar_its_length():
    figure = draw_overlay(np.zeros((100, 50)), np.zeros((100, 50), dtype=int), (0.5, 2.0), size=400)
    assert figure.size == (400, 200)  # 100 mm wide, 50 mm high
    row = np.asarray(figure)[200 - 14]
    assert (row == INK).all(-1).sum() == pytest.approx(20 * 4, abs=3)  # 20 mm: a fifth of the width


def test_a_volume_without_a_finding_is_drawn_too():
    assert draw_volume(np.zeros((6, 20, 30)), np.zeros((6, 20, 30), dtype=int), (2.0, 1.0, 1.0)).width > 600


def test_tiles_do_not_overlap():
    figures = [Image.new("RGB", size, color) for size, color in (((10, 8), "red"), ((20, 4), "lime"), ((6, 6), "blue"))]
    whole = np.asarray(tile(figures, 2, gap=1))
    assert whole.shape == (8 + 1 + 6, 10 + 1 + 20, 3)
    for channel, count in enumerate((80, 80, 36)):
        assert (whole[..., channel] == 255).sum() == count


def test_muscle_is_measured_between_two_aponeuroses_of_the_upright_image(tmp_path):
    prediction = torch.zeros(1, 80, 60)  # MONAI's axes: x, then y
    prediction[0, :, 10:13] = 1
    prediction[0, :, 40:43] = 1
    run(
        SegmentationResults(str(tmp_path / "out"), 2, muscle=True),
        [(saved(tmp_path / "a.png", (60, 80)), prediction, 2)],
    )
    (row,) = json.loads((tmp_path / "out" / "statistics.json").read_text())
    assert row["thickness"] == pytest.approx(27)  # rows 13 to 39
    assert row["aponeurosis_angle"] == pytest.approx(0, abs=1e-6)
    assert row["pennation_angle"] is None  # an even image has no direction


def test_a_structure_beyond_the_region_that_gives_the_scale_is_told(tmp_path):
    known = {"spacing": torch.tensor([0.1, 0.1]), "spacing_known": True, "spacing_box": torch.tensor([0, 30, 0, 20])}
    image = MetaTensor(torch.zeros(1, 4, 4), meta={"filename_or_obj": str(saved(tmp_path / "a.png")), **known})
    prediction = torch.zeros(1, 40, 30)
    prediction[0, 15:25, 4:10] = 1
    engine = Engine(lambda *_: [{"image": image, "pred": prediction}])
    SegmentationResults(str(tmp_path / "out"), 2, ["lesion"], preview=False).attach(engine)
    with pytest.warns(UserWarning, match=r"a\.png: 30 of 60 pixels .* outside rows 0 to 30 and columns 0 to 20"):
        engine.run([0])
    (row,) = json.loads((tmp_path / "out" / "statistics.json").read_text())
    assert (row["area"], row["unit"]) == (pytest.approx(0.6), "mm")


@pytest.mark.parametrize("time, unit, size", [(True, "mm", 15 * 0.5 * 0.25), (False, "px", 45)])
def test_a_cine_has_millimeters_in_its_frames_alone(tmp_path, time, unit, size):
    frames = nib.Nifti1Image(np.zeros((20, 24, 1, 3), np.uint8), np.diag([0.5, 0.25, 1, 1]))
    nib.save(frames, tmp_path / "cine.nii.gz")
    prediction = np.zeros((1, 20, 24, 1, 3))
    prediction[0, 2:5, 5:10] = 1
    run(SegmentationResults(str(tmp_path), 2, time=time), [(tmp_path / "cine.nii.gz", prediction, 3)])
    rows = json.loads((tmp_path / "statistics.json").read_text())
    assert {row["unit"] for row in rows} == {unit}
    assert rows[0]["area" if time else "volume"] == size
