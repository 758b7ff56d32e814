# Copyright (c) monai_usfm contributors
# SPDX-License-Identifier: Apache-2.0
"""Datalists: clear refusals, nested patient-level fractions, train-test leakage check."""

from __future__ import annotations

import json
import random
import unicodedata
import warnings
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from monai_usfm.data.datalist import check_patient_leak, label_fraction, load_datalist


def listing(folder: Path, content: object) -> Path:
    path = folder / "list.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def test_names_become_paths_and_other_values_stay(tmp_path):
    for name in ("a.png", "m.png", "liver", "f.nii.gz"):
        (tmp_path / name).touch()
    item = {"image": "a.png", "label": "m.png", "fov": "f.nii.gz", "organ": "liver", "class": 1, "note": "a.txt"}
    item["patient"] = "a.png"
    loaded = load_datalist(listing(tmp_path, {"training": [item]}), tmp_path, "training")
    paths = {key: str(tmp_path / item[key]) for key in ("image", "label", "fov")}
    assert loaded == [{**item, **paths}]  # "liver" is a file here, and stays an organ, as does a patient "a.png"


def test_paths_start_at_the_lists_folder_without_a_dataset_dir(tmp_path):
    (tmp_path / "a.png").touch()
    assert load_datalist(listing(tmp_path, {"test": ["a.png"]}), None, "test") == [{"image": str(tmp_path / "a.png")}]


def test_a_class_number_under_label_is_no_path(tmp_path):
    (tmp_path / "a.png").touch()
    path = listing(tmp_path, {"training": [{"image": "a.png", "label": 3}]})
    assert load_datalist(path, tmp_path, "training", required=("image", "label"))[0]["label"] == 3


@pytest.mark.parametrize(
    ("content", "error", "message"),
    [
        ("{", ValueError, "not a JSON file"),
        ([], ValueError, "must hold an object, not a list"),
        ({"test": ["a.png"]}, ValueError, "has no list 'training'; it has test"),
        ({"training": []}, ValueError, "the list 'training' is empty"),
        ({"training": [{"image": True}]}, ValueError, "item 0 of 'training' has the image True; expected a file name"),
        ({"training": [7]}, ValueError, "item 0 of 'training' must be an object or a file name, got 7"),
        (
            {"training": [{"image": "a.png"}, {"label": "b.png"}]},
            ValueError,
            "item 1 of 'training' lacks image; it has label",
        ),
        ({"training": [{"image": ""}]}, ValueError, "item 0 of 'training' lacks image"),
    ],
)
def test_a_wrong_list_gives_one_error_that_says_what(tmp_path, content, error, message):
    (tmp_path / "a.png").touch()
    with pytest.raises(error, match=message):
        load_datalist(listing(tmp_path, content), tmp_path, "training")


def test_a_missing_list_or_folder_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nothing\.json: no such datalist"):
        load_datalist(tmp_path / "nothing.json", tmp_path, "training")
    with pytest.raises(FileNotFoundError, match="no such folder; correct dataset_dir"):
        load_datalist(listing(tmp_path, {"training": ["a.png"]}), tmp_path / "nowhere", "training")


def test_missing_images_are_counted_and_the_first_five_named(tmp_path):
    path = listing(tmp_path, {"training": [f"{index}.png" for index in range(7)]})
    with pytest.raises(FileNotFoundError, match=r"7 files of 'training' do not exist.*0\.png.*4\.png \.\.\.") as caught:
        load_datalist(path, tmp_path, "training")
    assert "5.png" not in str(caught.value)
    assert len(load_datalist(path, tmp_path, "training", check_files=False)) == 7


def test_a_text_that_ends_like_a_file_is_none_unless_it_exists(tmp_path):
    for name in ("a.png", "fov.png"):
        (tmp_path / name).touch()
    path = listing(tmp_path, {"training": [{"image": "a.png", "origin": "site/export.dcm", "fov": "fov.png"}]})
    (item,) = load_datalist(path, tmp_path, "training")
    assert item["origin"] == "site/export.dcm" and item["fov"] == str(tmp_path / "fov.png")
    with pytest.raises(FileNotFoundError, match=r"export\.dcm"):
        load_datalist(path, tmp_path, "training", required=("image", "origin"))


def cohort(patients: int, malignant: int) -> list[dict]:
    """Patients with one to three images each; the first ``malignant`` of them are class 1."""
    return [
        {"image": f"{p}-{i}.png", "patient": f"p{p}", "class": int(p < malignant)}
        for p in range(patients)
        for i in range(1 + p % 3)
    ]


@given(
    patients=st.integers(1, 60),
    share=st.floats(0, 1),
    seed=st.integers(0, 2**16),
    fractions=st.tuples(st.floats(0.01, 1), st.floats(0.01, 1)),
)
@settings(max_examples=25, deadline=None)
def test_fractions_are_nested_whole_patients_of_every_class(patients, share, seed, fractions):
    items = cohort(patients, int(share * patients))
    small, large = (label_fraction(items, fraction, seed) for fraction in sorted(fractions))
    assert {item["image"] for item in small} <= {item["image"] for item in large}
    chosen = {item["patient"] for item in small}
    assert small == [item for item in items if item["patient"] in chosen]  # whole patients, in order
    assert {item["class"] for item in small} == {item["class"] for item in items}
    for one_class in {item["class"] for item in items}:
        everyone = {item["patient"] for item in items if item["class"] == one_class}
        assert len(chosen & everyone) == max(1, int(min(fractions) * len(everyone) + 0.5))


def test_a_fraction_does_not_depend_on_the_order_of_the_list():
    items = cohort(40, 12)
    shuffled = random.Random(0).sample(items, len(items))
    first, second = label_fraction(items, 0.2, 3), label_fraction(shuffled, 0.2, 3)
    assert {item["image"] for item in first} == {item["image"] for item in second}


def test_a_fraction_of_items_with_numbers_is_that_of_the_whole():
    items = [{"image": f"{n}.png", "patient": str(n), "class": torch.tensor([float(n)])} for n in range(20)]
    plain = [{key: item[key] for key in ("image", "patient")} for item in items]
    assert [i["image"] for i in label_fraction(items, 0.2)] == [i["image"] for i in label_fraction(plain, 0.2)]


def test_seeds_give_different_fractions():
    items = cohort(40, 12)
    assert label_fraction(items, 0.2, 0) != label_fraction(items, 0.2, 1)


def test_the_whole_is_the_whole():
    items = cohort(10, 3)
    assert label_fraction(items, 1.0) == items


def test_without_patients_single_images_are_drawn_with_a_warning():
    items = [{"image": f"{index}.png", "class": index % 2} for index in range(20)]
    with pytest.warns(UserWarning, match="single images are drawn, not patients"):
        assert len(label_fraction(items, 0.5)) == 10


@pytest.mark.parametrize(
    ("items", "fraction", "message"),
    [
        (cohort(3, 1), 0, "fraction must be in"),
        (cohort(3, 1), 1.2, "fraction must be in"),
        ([], 0.5, "there are no items"),
        (
            [{"image": "a", "patient": 1, "class": 0}, {"image": "b", "patient": 2}],
            0.5,
            "1 of 2 items lack the key 'class'",
        ),
    ],
)
def test_a_wrong_fraction_is_refused(items, fraction, message):
    with pytest.raises(ValueError, match=message):
        label_fraction(items, fraction)


def test_busbra_fractions_are_patient_level_and_of_the_right_size(shared_data):
    items = load_datalist(shared_data / "busbra" / "dataset.json", None, "training")
    part = label_fraction([{**item, "patient": Path(item["image"]).name.split("-")[0]} for item in items], 0.2)
    patients = {Path(item["image"]).name.split("-")[0] for item in part}
    assert len(items) == 1127 and len(patients) == pytest.approx(0.2 * 638, abs=1)
    malignant = sum(item["class"] for item in part) / len(part)
    assert malignant == pytest.approx(367 / 1127, abs=0.05)


def test_a_patient_in_two_splits_is_named():
    splits = {"training": cohort(5, 2), "test": [{"image": "x.png", "patient": "p3"}]}
    with pytest.raises(ValueError, match=r"1 patients or images .*: patient p3 \(training, test\)\."):
        check_patient_leak(splits)


def test_a_file_in_two_splits_is_named_without_patients():
    with pytest.raises(ValueError, match=r"image a\.png \(training, validation\)"):
        check_patient_leak({"training": [{"image": "a.png"}], "validation": [{"image": "a.png"}]})


def test_the_shared_splits_do_not_leak(shared_data):
    for folder, separator in (("busbra", "-"), ("fetal_head_hc18", "_")):
        names = ("training", "validation", "test")
        file = shared_data / folder / "dataset.json"
        lists = {name: [str(item["image"]) for item in load_datalist(file, None, name)] for name in names}
        check_patient_leak(
            {k: [{"image": i, "patient": Path(i).name.split(separator)[0]} for i in v] for k, v in lists.items()}
        )


@pytest.mark.parametrize(
    "text", ['{"training": ["a.png"], "training": []}', '{"training": [{"image": "a", "image": "b"}]}']
)
def test_a_key_that_stands_twice_is_named(tmp_path, text):
    (tmp_path / "list.json").write_text(text)
    with pytest.raises(ValueError, match=r"list\.json: not a JSON file \(the key '(training|image)' stands twice"):
        load_datalist(tmp_path / "list.json", tmp_path, "training")


def test_an_image_that_stands_twice_in_a_split_is_told_but_not_its_frames(tmp_path):
    (tmp_path / "a.png").touch()
    with pytest.warns(UserWarning, match=r"1 images stand more than once in 'training', for example \S*a\.png"):
        load_datalist(listing(tmp_path, {"training": ["a.png", "./a.png"]}), tmp_path, "training")
    items = [{"image": "a.png", "frame": frame} for frame in (0, 1)]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert len(load_datalist(listing(tmp_path, {"training": items}), tmp_path, "training")) == 2


def test_recorded_pairs_without_an_image_stand_once(tmp_path):
    pairs = [{"noisy": f"{n}a.png", "clean": f"{n}b.png"} for n in range(2)]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load_datalist(listing(tmp_path, {"training": pairs}), None, "training", required=("noisy",), check_files=False)


def test_empty_files_are_no_copies_of_each_other(tmp_path):
    lists = {split: [{"image": str(tmp_path / f"{split}.png")}] for split in ("training", "test")}
    for (item,) in lists.values():
        Path(item["image"]).touch()
    check_patient_leak(lists)


@pytest.mark.parametrize(("disk", "listed"), [("NFC", "NFD"), ("NFD", "NFC")])
def test_names_are_found_composed_or_decomposed(tmp_path, disk, listed):
    folder = tmp_path / unicodedata.normalize(listed, "ä")  # which is named as the disk has it
    folder.mkdir()
    (folder / unicodedata.normalize(disk, "möhre.png")).touch()
    path = listing(folder, {"training": [unicodedata.normalize(listed, "möhre.png")]})
    assert load_datalist(path, folder, "training")[0]["image"] == str(folder / unicodedata.normalize(disk, "möhre.png"))
