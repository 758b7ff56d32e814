# Copyright (c) monai_usfm contributors
# SPDX-License-Identifier: Apache-2.0
"""Whose image it is: rules of names, patterns, and ways to write one patient."""

from __future__ import annotations

import pytest

from monai_usfm.data import add_patients
from monai_usfm.data.datalist import label_fraction
from monai_usfm.data.patients import patient_by_pattern, patient_by_rule, patient_key

NAMES = {
    "patient0/us0.png": "patient0",
    "patient0/long/img_0.png": "patient0",
    "plaque/case1_0.png": "case1",
    "2CH_patient0001.png": "patient0001",
    "train/patients/17/a.png": "patient17",
    "Patient_12/P3.png": "Patient12",
    "subject-7/frame_001.png": "subject7",
    "sub-XY12/ses-1/us/sub-XY12_us.nii.gz": "sub-XY12",
    "images/P012_left.png": "P012",
    "left_p7.png": "p7",
    "ID_0034/1.dcm": "ID0034",
    "a/Case 5/x.png": "Case5",
    "benign (1).png": None,
    "frame_012.png": None,
    "breast/bus_0001-l.png": None,
    "lowercase12/map3.png": None,
    "video_1080p.png": None,
}


@pytest.mark.parametrize("path", NAMES)
def test_words_of_a_path_name_the_patient(path):
    found = patient_by_rule(path)
    assert (found and found[0]) == NAMES[path]


@pytest.mark.parametrize(
    ("pattern", "path", "patient"),
    [
        (r"^([^/]+)/", "17/us3.png", "17"),
        (r"^(\d+)_", "images/17_3.png", "17"),  # the beginning of the name, where that of the path has no number
        (r"p\d+", "x/p12-left.png", "p12"),
        (r"(?:a(\d+)|b(\d+))", "b7.png", "7"),
        ("(.*)", "x/a.png", "x/a.png"),
        (r"(\d+)", "a.png", None),
    ],
)
def test_a_pattern_is_searched_in_the_path_and_then_the_name(pattern, path, patient):
    assert patient_by_pattern(path, pattern) == patient


def test_what_is_no_pattern_is_named():
    with pytest.raises(ValueError, match=r"patient_pattern '\(' is no regular expression"):
        patient_by_pattern("a.png", "(")


@pytest.mark.parametrize(
    "same", [("P0", "p0", " p0", "P00"), (1, "1", "1.0", 1.0, "001"), ("\u00e4 1", "a\u0308  1"), ("A-7", "a-07")]
)
def test_one_patient_has_one_key(same):
    assert len({patient_key(patient) for patient in same}) == 1


def test_other_patients_and_nobody_have_other_keys():
    different = ["p1", "p10", "1.10", "1.1", "1.2.840.1", "1.2.840.10", 1.5, "p1a"]
    assert len({patient_key(patient) for patient in different}) == len(different)
    assert {patient_key(nobody) for nobody in (None, "", " ", float("nan"), "nan")} == {None}


def test_names_tell_the_patient_or_each_image_is_one(tmp_path):
    named = {"image": str(tmp_path / "p7.png"), "patient": "x"}
    assert [i["patient"] for i in add_patients([named], tmp_path)] == ["x"]
    ways = [{"image": str(tmp_path / f"{n}.png"), "patient": way} for n, way in enumerate(("p1", "P01", 2, "02"))]
    assert [i["patient"] for i in add_patients(ways, tmp_path)] == ["P01", "P01", "02", "02"]
    assert len(label_fraction([*ways, {"image": "x", "patient": "p3"}, {"image": "y", "patient": "P3"}], 0.34)) == 2
    items = [{"image": str(tmp_path / name)} for name in ("p1_a.png", "p1_b.png")]
    assert [i["patient"] for i in add_patients(items, tmp_path)] == ["p1", "p1"]
    with pytest.warns(UserWarning, match="each image counts as a patient: intervals are too narrow"):
        found = add_patients([*items, {"image": str(tmp_path / "x.png")}], tmp_path)
    assert [i["patient"] for i in found] == ["p1_a.png", "p1_b.png", "x.png"]
