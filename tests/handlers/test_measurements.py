# Copyright (c) monai_usfm contributors
# SPDX-License-Identifier: Apache-2.0
"""Errors of landmarks and of numbers, against sums by hand."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from ignite.engine import Engine
from monai.data import MetaTensor

from monai_usfm.handlers import LandmarkReport, MeasurementError, ValueReport
from tests.tables import rows

POINTS = torch.tensor([[10.0, 20.0, 2.0], [30.0, 50.0, 4.0]])  # row, column, spread
WANTED = torch.tensor([[[13.0, 24.0], [math.nan, math.nan]], [[10.0, 20.0], [30.0, 54.0]]])


def evaluate(handler, name: str, meta: dict, output: list[dict]) -> dict:
    engine = Engine(lambda *_: output)
    if isinstance(handler, MeasurementError):
        handler.attach(engine, name)
    else:
        handler.attach(engine)
    image = MetaTensor(torch.zeros(1, 40, 60), meta={"filename_or_obj": "a.png", **meta})
    return engine.run([[{"image": image}] * len(output)]).metrics


@pytest.mark.parametrize("known", [True, False])
def test_landmarks_are_measured_along_the_sides_of_the_pixels_where_these_are_known(tmp_path: Path, known: bool):
    meta = {"spacing": np.array([0.5, 0.25]), "spacing_known": known}
    output = [{"pred": POINTS, "label": label} for label in WANTED]
    evaluate(LandmarkReport(str(tmp_path), ["left", "right"]), "", meta, output)
    first, missing, exact, last = rows(tmp_path / "cases.csv")
    assert [first[key] for key in ("name", "x", "y", "label_x", "label_y")] == [
        *("left", "20.00000", "10.00000", "24.00000", "13.00000")
    ]
    errors = [math.hypot(3 * 0.5, 4 * 0.25), 4 * 0.25] if known else [5, 4]
    assert [float(row["error"]) for row in (first, exact, last)] == pytest.approx([errors[0], 0, errors[1]], abs=1e-5)
    assert missing["error"] == "nan"
    assert [float(row["spread"]) for row in (first, last)] == pytest.approx([0.75, 1.5] if known else [2, 4])
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["cases"] == 2 and summary["all"]["unit"] == first["unit"] == ("mm" if known else "px")
    assert summary["left"]["error"] == summary["left"]["error_median"] == pytest.approx(errors[0] / 2)
    assert summary["right"]["error"] == pytest.approx(errors[1])
    assert summary["all"]["error"] == pytest.approx(sum(errors) / 3)
    assert summary["all"]["error_median"] == pytest.approx(errors[1])


def test_numbers_have_their_bias_and_the_share_within_two_standard_deviations(tmp_path: Path):
    found, wanted = [[10.0, 0.5], [12.0, 1.0], [16.0, 1.0]], [11.0, 12.0, 12.0]
    output = [{"pred": torch.tensor([f]), "label": torch.tensor([w])} for f, w in zip(found, wanted, strict=True)]
    evaluate(ValueReport(str(tmp_path), ["area"]), "", {}, output)
    assert [row["error"] for row in rows(tmp_path / "values.csv")] == ["-1", "0", "4"]
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["cases"] == 3
    correlation = np.corrcoef([10, 12, 16], wanted)[0, 1]
    assert summary["area"] == pytest.approx(
        {
            "error": 5 / 3,
            "error_std": np.std([1, 0, 4]),
            "error_median": 1,
            "bias": 1,
            "within_2_std": 2 / 3,
            "correlation": correlation,
        }
    )
    assert evaluate(MeasurementError([2.0]), "error", {}, output)["error"] == pytest.approx(5 / 6)
    assert evaluate(MeasurementError(), "error", {}, output)["error"] == pytest.approx(5 / 3)


def test_points_that_an_image_does_not_show_are_no_part_of_the_mean_distance():
    output = [{"pred": POINTS, "label": label} for label in WANTED]
    assert evaluate(MeasurementError(), "error", {}, output)["error"] == pytest.approx((5 + 0 + 4) / 3)
