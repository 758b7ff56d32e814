# Copyright (c) monai_usfm contributors
# SPDX-License-Identifier: Apache-2.0
"""Segmentation scores against closed forms of shifted squares and boxes."""

from __future__ import annotations

import csv
import json
import math
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from ignite.engine import Engine
from monai.data import MetaTensor
from monai.metrics import compute_average_surface_distance, compute_hausdorff_distance
from scipy.ndimage import gaussian_filter
from scipy.special import ellipe

from monai_usfm.handlers import DiceScore, SegmentationReport, score_case, segmentation_panels


def square(start: tuple[int, ...], side: tuple[int, ...], shape: tuple[int, ...], value: int = 1) -> torch.Tensor:
    image = torch.zeros(1, *shape)
    image[(0, *[slice(a, a + n) for a, n in zip(start, side, strict=True)])] = value
    return image


@pytest.mark.parametrize("spacing, mm", [(None, 1.0), ([0.5, 0.25], 0.25)])
def test_shifted_square_has_the_scores_of_its_closed_form(spacing: list[float] | None, mm: float) -> None:
    side, shift = 12, 3
    label = square((8, 8), (side, side), (40, 40))
    prediction = square((8, 8 + shift), (side, side), (40, 40))
    (row,) = score_case(prediction, label, 2, spacing)
    overlap = (side - shift) / side
    assert row["dice"] == pytest.approx(overlap, abs=1e-6)
    assert row["iou"] == pytest.approx((side - shift) / (side + shift), abs=1e-6)
    # The far edge lies `shift` columns away; it is more than 5 % of the contour, so the 95th percentile is the maximum.
    assert row["hd95"] == pytest.approx(shift * mm, rel=1e-5)
    assert 0 < row["asd"] < shift * mm
    assert (row["false_negative"], row["false_positive"]) == (0, 0)


def test_distances_follow_the_axis_of_the_shift() -> None:
    label = square((8, 8), (12, 12), (40, 40))
    (rows,) = score_case(square((10, 8), (12, 12), (40, 40)), label, 2, [0.5, 0.25])
    assert rows["hd95"] == pytest.approx(2 * 0.5, rel=1e-5)


def test_surface_distance_of_nested_squares() -> None:
    # Contours of squares of 9 and 13 about one center: straight sides are 2 apart, each inner pixel exactly 2 from the
    # outer contour; of the 48 outer pixels 36 lie opposite the inner side, 12 around the corners.
    outer, inner = square((5, 5), (13, 13), (30, 30)), square((7, 7), (9, 9), (30, 30))
    (row,) = score_case(inner, outer, 2)
    corners = [2 * math.sqrt(2)] * 4 + [math.sqrt(5)] * 8
    wanted = (32 * 2 + 36 * 2 + sum(corners)) / (32 + 48)
    assert row["asd"] == pytest.approx(wanted, rel=1e-5)


@pytest.mark.parametrize("shape, spacing", [((60, 50), None), ((60, 50), [0.4, 0.7]), ((12, 20, 18), [2.0, 0.5, 0.5])])
def test_distances_of_a_scattered_mask_at_the_border_are_those_of_monai(shape, spacing) -> None:
    draw = np.random.default_rng(0)
    masks = [torch.from_numpy(gaussian_filter(draw.normal(size=shape), s) > 0.1 / s)[None, None] for s in (1, 3)]
    (row,) = score_case(masks[0][0], masks[1][0], 2, spacing)
    hd95 = compute_hausdorff_distance(*masks, include_background=True, percentile=95, spacing=spacing)
    asd = compute_average_surface_distance(*masks, include_background=True, symmetric=True, spacing=spacing)
    assert (row["hd95"], row["asd"]) == pytest.approx((hd95.item(), asd.item()), rel=1e-5)


def test_box_in_a_volume_is_measured_along_its_slices() -> None:
    label = square((4, 6, 6), (6, 8, 8), (16, 24, 24))
    (row,) = score_case(square((6, 6, 6), (6, 8, 8), (16, 24, 24)), label, 2, [1.5, 0.5, 0.5])
    assert row["dice"] == pytest.approx(4 / 6, abs=1e-6)
    assert row["hd95"] == pytest.approx(2 * 1.5, rel=1e-5)


def test_empty_masks_have_a_defined_result() -> None:
    empty, full = torch.zeros(1, 20, 20), square((4, 4), (5, 5), (20, 20))
    (both,) = score_case(empty, empty, 2)
    (negative,) = score_case(empty, full, 2)
    (positive,) = score_case(full, empty, 2)
    assert (both["dice"], both["iou"], both["false_negative"], both["false_positive"]) == (1.0, 1.0, 0, 0)
    assert (negative["dice"], negative["false_negative"], negative["false_positive"]) == (0.0, 1, 0)
    assert (positive["dice"], positive["false_negative"], positive["false_positive"]) == (0.0, 0, 1)
    assert all(math.isnan(row[name]) for row in (both, negative, positive) for name in ("hd95", "asd"))


def test_each_class_has_its_own_row() -> None:
    label = square((2, 2), (6, 6), (30, 30)) + square((15, 15), (8, 8), (30, 30), value=2)
    prediction = square((2, 2), (6, 6), (30, 30)) + square((15, 19), (8, 8), (30, 30), value=2)
    first, second = score_case(prediction, label, 3)
    assert (first["class"], first["dice"], first["hd95"]) == (1, 1.0, 0.0)
    assert (second["class"], second["dice"]) == (2, 0.5)
    assert (first["iou"], second["iou"]) == (1.0, pytest.approx(1 / 3))


def report(
    folder: Path, items: list[dict], num_classes: int = 2, names: list[str] | None = None
) -> tuple[list[dict[str, str]], dict]:
    engine = Engine(lambda _, batch: batch)
    SegmentationReport(str(folder), num_classes, names=names).attach(engine)
    engine.run([[item] for item in items])
    with open(folder / "cases.csv", newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file)), json.loads((folder / "summary.json").read_text())


def item(shift: int, name: str, meta: dict) -> dict:
    label = MetaTensor(square((8, 8), (12, 12), (40, 40)), meta=meta)
    return {
        "image": MetaTensor(torch.zeros(1, 40, 40), meta={"filename_or_obj": name}),
        "label": label,
        "pred": square((8, 8 + shift), (12, 12), (40, 40)),
    }


KNOWN = {"spacing": np.array([0.5, 0.25], dtype=np.float32), "spacing_known": True}
UNKNOWN = {"spacing": np.array([1.0, 1.0], dtype=np.float32), "spacing_known": False}


@pytest.mark.parametrize("names", [["none", "Milz", "Größe"], ["Milz", "Größe"], None])
def test_report_names_the_classes_with_or_without_the_background(tmp_path: Path, names: list[str] | None) -> None:
    table, summary = report(tmp_path, [item(3, "a.png", KNOWN)], 3, names)
    wanted = ["Milz", "Größe"] if names else [None, None]
    assert [(row["class"], row.get("name")) for row in table] == [*zip("12", wanted, strict=True)]
    assert [summary[f"class_{number}"].get("name") for number in (1, 2)] == wanted


def test_report_is_in_mm_where_the_spacing_is_known(tmp_path: Path) -> None:
    table, summary = report(tmp_path, [item(3, "a.png", KNOWN), item(1, "b.png", KNOWN)])
    assert [(row["image"], row["unit"]) for row in table] == [("a.png", "mm"), ("b.png", "mm")]
    assert float(table[0]["hd95"]) == pytest.approx(0.75)
    assert summary["cases"] == 2
    assert summary["class_1"]["unit"] == "mm"
    assert summary["class_1"]["dice"] == pytest.approx((9 / 12 + 11 / 12) / 2)
    assert summary["class_1"]["dice_std"] == pytest.approx(1 / 12)


def test_millimeters_of_the_image_serve_a_label_without(tmp_path: Path) -> None:
    case = item(3, "a.dcm", UNKNOWN)
    case["image"] = MetaTensor(torch.zeros(1, 40, 40), meta={"filename_or_obj": "a.dcm", **KNOWN})
    table, _ = report(tmp_path, [case])
    assert (table[0]["unit"], float(table[0]["hd95"])) == ("mm", pytest.approx(0.75))


def test_millimeters_of_the_image_count_over_those_of_the_label(tmp_path: Path) -> None:
    case = item(3, "a.dcm", {"spacing": np.array([1.0, 1.0], dtype=np.float32), "spacing_known": True})
    case["image"] = MetaTensor(torch.zeros(1, 40, 40), meta={"filename_or_obj": "a.dcm", **KNOWN})
    table, _ = report(tmp_path, [case])
    assert (table[0]["unit"], float(table[0]["hd95"])) == ("mm", pytest.approx(0.75))


@pytest.mark.parametrize("cine, unit", [(False, "mm"), (True, "px")])
def test_a_cine_as_a_whole_has_no_millimeters_along_time(tmp_path: Path, cine: bool, unit: str) -> None:
    known = {"spacing": np.array([1.0, 0.5, 0.25], dtype=np.float32), "spacing_known": True}
    label = torch.zeros(1, 4, 10, 10)
    label[:, :2] = 1
    case = {
        "image": MetaTensor(torch.zeros(1, 4, 10, 10), meta={"filename_or_obj": "a.dcm", "cine": cine, **known}),
        "label": MetaTensor(label, meta=known),
        "pred": label,
    }
    table, _ = report(tmp_path, [case])
    assert table[0]["unit"] == unit


def test_millimeters_are_those_of_the_grid_that_the_label_was_resized_to(tmp_path: Path) -> None:
    table, _ = report(tmp_path, [item(3, "a.png", {**KNOWN, "spatial_shape": np.array([20, 80])})])  # columns, rows
    assert float(table[0]["hd95"]) == pytest.approx(3 * 0.25 * 20 / 40)


def test_report_is_in_pixels_where_no_spacing_is_known(tmp_path: Path) -> None:
    table, summary = report(tmp_path, [item(3, "a.png", UNKNOWN)])
    assert (table[0]["unit"], float(table[0]["hd95"])) == ("px", 3.0)
    assert summary["class_1"]["unit"] == "px"


def test_mixed_units_are_told(tmp_path: Path) -> None:
    _, summary = report(tmp_path, [item(3, "a.png", KNOWN), item(3, "b.png", UNKNOWN)])
    assert "do not average" in summary["class_1"]["unit"]


def test_missed_structure_counts_and_spoils_no_mean(tmp_path: Path) -> None:
    lost = item(0, "b.png", KNOWN)
    lost["pred"] = torch.zeros_like(lost["pred"])
    _, summary = report(tmp_path, [item(3, "a.png", KNOWN), lost])
    assert summary["class_1"]["false_negatives"] == 1
    assert summary["class_1"]["hd95"] == pytest.approx(0.75)
    assert summary["class_1"]["dice"] == pytest.approx(0.375)


def test_panels_color_the_class_where_it_lies() -> None:
    output = [
        {
            "image": torch.full((1, 20, 20), 0.5),
            "label": torch.zeros(1, 20, 20),
            "pred": square((2, 3), (4, 5), (20, 20)),
        }
    ]
    panels = segmentation_panels(output, 2)
    assert list(panels) == ["image", "label", "prediction"]
    colored = (panels["prediction"] != panels["image"]).any(dim=1)[0]
    assert torch.equal(colored, square((2, 3), (4, 5), (20, 20))[0].bool())
    assert torch.equal(panels["label"], panels["image"].expand(-1, 3, -1, -1))


def test_report_compares_circumferences_with_the_label_or_with_the_published_value(tmp_path: Path) -> None:
    items = [item(3, "a.png", KNOWN), item(1, "b.png", KNOWN)]
    engine = Engine(lambda _, batch: batch)
    SegmentationReport(str(tmp_path), 2, circumference=True, published={"b.png": 20.0}).attach(engine)
    engine.run([[entry] for entry in items])
    with open(tmp_path / "cases.csv", newline="") as file:
        first, second = list(csv.DictReader(file))
    # A square of 6 mm x 3 mm: the ellipse with its variances has semi-axes of 6 / sqrt(3) and 3 / sqrt(3) mm.
    a, b = 6 / np.sqrt(3), 3 / np.sqrt(3)
    expected = 4 * a * ellipe(1 - (b / a) ** 2)
    assert float(first["circumference"]) == pytest.approx(expected, rel=1e-4)
    assert float(first["circumference_error"]) == pytest.approx(0, abs=1e-9)
    assert float(second["circumference_error"]) == pytest.approx(expected - 20.0, rel=1e-3)
    summary = json.loads((tmp_path / "summary.json").read_text())["class_1"]
    assert summary["circumference_absolute_error"] == pytest.approx(abs(expected - 20.0) / 2, rel=1e-3)
    engine.run([[item(1, "b.png", UNKNOWN)]])
    with open(tmp_path / "cases.csv", newline="") as file:
        (pixels,) = csv.DictReader(file)
    assert pixels["unit"] == "px" and float(pixels["circumference_error"]) == 0  # 20 mm are no pixels


def scored(pairs: list[tuple[torch.Tensor, torch.Tensor]], labeled_only: bool) -> float:
    metric = DiceScore(num_classes=2, labeled_only=labeled_only)
    engine = Engine(lambda _, pair: [{"pred": pair[0], "label": pair[1]}])
    metric.attach(engine, "dice")
    engine.run(pairs)
    return engine.state.metrics["dice"]


def test_dice_counts_empty_cases_as_the_report_does_and_has_another_name_without_them(caplog) -> None:
    disc, empty = torch.zeros(1, 8, 8), torch.zeros(1, 8, 8)
    disc[:, 2:6, 2:6] = 1
    half = disc.clone()
    half[:, 4:] = 0  # Dice 2/3
    pairs = [(half, disc), (empty, empty), (disc, empty)]
    by_report = [score_case(pred, label, 2)[0]["dice"] for pred, label in pairs]
    assert scored(pairs, False) == pytest.approx(np.mean(by_report)) == pytest.approx((2 / 3 + 1 + 0) / 3)
    assert scored(pairs, True) == pytest.approx(2 / 3)
    assert "no case of this split" not in caplog.text
    assert scored([(disc, empty)], False) == 0 and "no case of this split shows any structure" in caplog.text


def test_a_scored_case_prints_no_warning_of_monai():
    square = torch.zeros(1, 16, 16)
    square[:, 4:9, 4:9] = 1
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        score_case(square, square.roll(1, -1), 2)
    assert not [str(one.message) for one in told]
