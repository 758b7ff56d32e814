# Copyright (c) monai_usfm contributors
# SPDX-License-Identifier: Apache-2.0
"""Which images a bundle works on."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from monai.transforms import SaveImage
from PIL import Image

from monai_usfm.data import (
    list_images,
    load_class_splits,
    load_datalist,
    load_splits,
    result_name,
    results_root,
    spread_frames,
    value_scale,
)
from monai_usfm.data.splits import with_full_scale


def write(folder: Path, lists: dict, name: str = "dataset.json", files: bool = True) -> Path:
    """A datalist and, with ``files``, the (tiny) images it names, each of its own."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, item in enumerate(item for items in lists.values() if files for item in items):
        Image.fromarray(np.full((2, 2), number, dtype=np.uint8)).save(folder / item["image"])
    (folder / name).write_text(json.dumps(lists))
    return folder / name


def patients(count: int, images_each: int = 3, first: int = 0) -> list[dict[str, str]]:
    return [
        {"image": f"p{patient}_{number}.png", "patient": f"p{patient}"}
        for patient in range(first, first + count)
        for number in range(images_each)
    ]


def test_datalist_of_the_folder_is_read_by_default(tmp_path: Path) -> None:
    write(tmp_path, {"training": patients(2), "validation": patients(1, first=2)})
    splits = load_splits(tmp_path, synthetic_dir=tmp_path / "none")
    assert [len(splits["training"]), len(splits["validation"])] == [6, 3]
    assert splits["training"][0]["image"] == str(tmp_path / "p0_0.png")
    assert not (tmp_path / "none").exists()


def test_paths_of_a_datalist_without_a_folder_start_from_its_own(tmp_path: Path) -> None:
    path = write(tmp_path / "a", {"training": patients(1), "validation": patients(1, first=1)}, "mine.json")
    splits = load_splits(None, path, synthetic_dir=tmp_path)
    assert splits["training"][0]["image"] == str(tmp_path / "a" / "p0_0.png")


def test_holdout_takes_whole_patients_and_no_item_twice(tmp_path: Path) -> None:
    items = patients(200, 2)
    write(tmp_path, {"training": items}, files=False)
    splits = load_splits(tmp_path, synthetic_dir=tmp_path, holdout=0.2, check_files=False)
    training, validation = ({item["patient"] for item in splits[s]} for s in ("training", "validation"))
    assert not training & validation
    assert training | validation == {item["patient"] for item in items}
    assert len(splits["training"]) + len(splits["validation"]) == len(items)
    assert len(validation) / 200 == pytest.approx(0.2, abs=4 * (0.2 * 0.8 / 200) ** 0.5)


def test_holdout_does_not_change_when_the_list_grows_or_is_turned_round(tmp_path: Path) -> None:
    write(tmp_path / "a", {"training": patients(40)}, files=False)
    write(tmp_path / "b", {"training": patients(60)[::-1]}, files=False)
    lists = [load_splits(tmp_path / f, synthetic_dir=tmp_path, holdout=0.3, check_files=False) for f in "ab"]
    small, large = ({item["patient"] for item in splits["validation"]} for splits in lists)
    assert small == {patient for patient in large if int(patient[1:]) < 40}


@pytest.mark.parametrize("key", ["patient", "patient_id"])
@pytest.mark.parametrize("splits", [("training", "validation"), ("validation",), ("test",)])
def test_patient_in_two_splits_is_named_whatever_is_asked_for(tmp_path: Path, key: str, splits: tuple) -> None:
    lists = {"training": patients(2), "validation": patients(1, first=2), "test": patients(1, first=3)}
    lists["test"].append({"image": "other.png", "patient": "p1"})
    lists = {name: [{key: i["patient"], "image": i["image"]} for i in items] for name, items in lists.items()}
    write(tmp_path, lists)
    with pytest.raises(ValueError, match=r"1 patients or images stand in two splits.* patient p1 \(training, test\)"):
        load_splits(tmp_path, synthetic_dir=tmp_path, splits=splits)


@pytest.mark.parametrize("other", ["./b.png", "sub/../b.png", "whole"])
def test_one_file_under_two_names_is_one_file(tmp_path: Path, other: str) -> None:
    path = write(tmp_path, {"training": [{"image": "a.png"}, {"image": "b.png"}], "validation": []})
    other = str(tmp_path / "b.png") if other == "whole" else other
    path.write_text(
        json.dumps({"training": [{"image": "a.png"}, {"image": "b.png"}], "validation": [{"image": other}]})
    )
    with pytest.raises(ValueError, match=r"image \S*b\.png.* \(training, validation\)"):
        load_splits(tmp_path, synthetic_dir=tmp_path)


def test_patient_0_is_held_out_as_a_whole(tmp_path: Path) -> None:
    write(tmp_path, {"training": [{"image": f"{p}_{i}.png", "patient": p} for p in (0, 1) for i in range(20)]})
    splits = load_splits(tmp_path, synthetic_dir=tmp_path)
    held, kept = ({item["patient"] for item in splits[name]} for name in ("validation", "training"))
    assert not held & kept and len(held) == 1


@pytest.mark.parametrize("count", range(2, 7))
def test_a_short_list_holds_out_one_patient_who_is_not_trained_on(tmp_path: Path, count: int) -> None:
    write(tmp_path, {"training": patients(count)}, files=False)
    splits = load_splits(tmp_path, synthetic_dir=tmp_path, holdout=0.0, check_files=False)
    held, kept = ({item["patient"] for item in splits[name]} for name in ("validation", "training"))
    assert len(held) == 1 and len(kept) == count - 1 and not held & kept


def test_single_image_trains_and_validates(tmp_path: Path) -> None:
    write(tmp_path, {"training": patients(1, 1)})
    splits = load_splits(tmp_path, synthetic_dir=tmp_path, holdout=0.01)
    assert len(splits["training"]) == len(splits["validation"]) == 1


def test_item_without_a_required_key_is_named(tmp_path: Path) -> None:
    write(tmp_path, {"training": patients(1), "validation": patients(1, first=1)})
    with pytest.raises(ValueError, match=r"dataset\.json: item 0 of 'training' lacks label"):
        load_splits(tmp_path, synthetic_dir=tmp_path, required=("image", "label"))


def test_missing_file_waits_for_the_loader_when_files_are_not_checked(tmp_path: Path) -> None:
    write(tmp_path, {"training": patients(1), "validation": patients(1, first=1)})
    (tmp_path / "p0_1.png").unlink()
    with pytest.raises(FileNotFoundError, match=r"p0_1\.png"):
        load_splits(tmp_path, synthetic_dir=tmp_path)
    assert len(load_splits(tmp_path, synthetic_dir=tmp_path, check_files=False)["training"]) == 3


def test_without_data_simulated_images_are_written_and_called_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    size = {"num_training": 1, "num_validation": 1, "num_test": 1, "image_size": [32, 32]}
    with caplog.at_level(logging.WARNING, logger="monai_usfm"):
        splits = load_splits(synthetic_dir=tmp_path / "s", synthetic=size, required=("image", "label"))
    assert "SIMULATED" in caplog.text
    assert len(splits["training"]) == len(splits["validation"]) == 1
    assert Path(splits["training"][0]["image"]).is_file()


def test_every_image_below_a_folder_is_listed_in_order(tmp_path: Path) -> None:
    for name in ("b.PNG", "sub/a.nii.gz", "a.jpg", "notes.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    found = [Path(item["image"]).relative_to(tmp_path).as_posix() for item in list_images(tmp_path)]
    assert found == ["a.jpg", "b.PNG", "sub/a.nii.gz"]


def test_masks_beside_the_images_of_a_folder_are_no_images(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    masks = ("b_mask.png", "b_mask_1.png", "masks/a.png", "b_fov.png")
    for name in ("images/a.png", "b.png", "c_mask.png", *masks):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    with caplog.at_level(logging.WARNING, logger="monai_usfm"):
        found = [Path(item["image"]).relative_to(tmp_path).as_posix() for item in list_images(tmp_path)]
    assert found == ["b.png", "c_mask.png", "images/a.png"]  # c_mask is the mask of nothing that is there
    assert all(name in caplog.text for name in masks) and "by their names" in caplog.text
    assert [Path(item["image"]).name for item in list_images(tmp_path / "masks")] == ["a.png"]


def test_folder_without_images_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"nothing: no image files \(\.png"):
        list_images(tmp_path / "nothing")


def test_of_listed_items_inference_takes_the_images(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = write(
        tmp_path,
        {"test": [{"image": "a.png", "label": ["m.png", "n.png"], "frame": 2}, {"image": "b.png", "frame": 0}]},
    )
    for name in ("m.png", "n.png"):
        (tmp_path / name).write_bytes(b"x")
    assert list_images(tmp_path, path) == [{"image": str(tmp_path / name)} for name in ("a.png", "b.png")]
    assert "inference takes the middle frame" in caplog.text


def test_results_repeat_folders_only_where_names_repeat(tmp_path: Path) -> None:
    for name in ("one/a.png", "two/b.png"):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_bytes(b"x")
    assert results_root(tmp_path) == ""
    (tmp_path / "two" / "a.nii.gz").write_bytes(b"x")
    assert results_root(tmp_path) == str(tmp_path)
    (tmp_path / "two" / "a.bmp").write_bytes(b"x")
    with pytest.raises(ValueError, match=r"two/a\.bmp and a\.nii\.gz would have one name"):
        results_root(tmp_path)
    assert results_root(tmp_path / "nowhere") == ""


def test_a_mistyped_folder_is_named_as_such(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"nowhere: no such folder; correct dataset_dir"):
        load_splits(tmp_path / "nowhere", synthetic_dir=tmp_path)


def test_a_byte_order_mark_is_no_error(tmp_path: Path) -> None:
    path = write(tmp_path, {"training": patients(2), "validation": patients(1, first=2)})
    path.write_text(path.read_text(), encoding="utf-8-sig")
    assert len(load_splits(tmp_path, synthetic_dir=tmp_path)["training"]) == 6


def test_a_patient_may_be_named_patient_id_for_every_reader(tmp_path: Path) -> None:
    items = [{"image": "a.png", "patient_id": 3}, {"image": "b.png", "patient": None, "patient_id": 0}]
    path = write(tmp_path, {"test": items})
    assert [item["patient"] for item in load_datalist(path, tmp_path, "test")] == [3, 0]


def test_inference_sees_each_image_of_a_list_once_with_its_patient(tmp_path: Path) -> None:
    items = [{"image": "a.png", "patient": 1, "frame": n} for n in range(2)] + [{"image": "b.png", "patient": "x"}]
    path = write(tmp_path, {"test": items})
    wanted = [{"image": str(tmp_path / "a.png"), "patient": "1"}, {"image": str(tmp_path / "b.png"), "patient": "x"}]
    assert list_images(tmp_path, path) == wanted
    assert results_root(tmp_path, path) == ""


def test_results_of_files_named_by_uid_keep_its_last_number(tmp_path: Path) -> None:
    for name in ("1.2.77", "1.2.78"):
        (tmp_path / name).write_bytes(bytes(128) + b"DICM" + bytes(8))
    assert results_root(tmp_path) == ""
    image = MetaTensor(torch.zeros(1, 4, 4), meta={"filename_or_obj": str(tmp_path / "1.2.77")})
    save = SaveImage(
        tmp_path / "out", "seg", ".png", separate_folder=False, print_log=False, output_name_formatter=result_name
    )
    save(image)
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["1.2.77_seg.png"]


def test_results_of_images_outside_the_folder_stay_in_the_output_folder(tmp_path: Path) -> None:
    for name in ("data/images/x.png", "other/x.png"):
        (tmp_path / name).parent.mkdir(parents=True)
        Image.fromarray(np.full((2, 2), len(name), dtype=np.uint8)).save(tmp_path / name)
    path = tmp_path / "data" / "dataset.json"
    path.write_text(json.dumps({"test": [{"image": "images/x.png"}, {"image": "../other/x.png"}]}))
    save = SaveImage(
        tmp_path / "out",
        "seg",
        ".png",
        separate_folder=False,
        print_log=False,
        output_name_formatter=result_name,
        data_root_dir=results_root(tmp_path / "data", path),
    )
    before = {file for file in tmp_path.rglob("*") if file.is_file()}
    for item in list_images(tmp_path / "data", path):
        save(MetaTensor(torch.zeros(1, 4, 4), meta={"filename_or_obj": item["image"]}))
    written = {file.relative_to(tmp_path).as_posix() for file in tmp_path.rglob("*") if file.is_file()} - {
        file.relative_to(tmp_path).as_posix() for file in before
    }
    assert written == {"out/data/images/x_seg.png", "out/other/x_seg.png"}


def test_a_class_without_a_training_image_is_told(tmp_path: Path) -> None:
    items = [{"image": f"{n}.png", "class": 2 * (n % 2), "patient": str(n)} for n in range(4)]
    for item in items:
        (tmp_path / item["image"]).touch()
    path = write(tmp_path, {"training": items})
    with pytest.warns(UserWarning, match="no item of 'training' has class 1, 3"):
        load_class_splits(tmp_path, path, num_classes=4, synthetic_dir="", splits=("training",))


def test_a_class_without_a_validation_image_is_told(tmp_path: Path) -> None:
    lists = {
        split: [{"image": f"{split}{n}.png", "class": n % classes, "patient": f"{split}{n}"} for n in range(4)]
        for split, classes in (("training", 2), ("validation", 1))
    }
    write(tmp_path, lists)
    with pytest.warns(UserWarning, match="no item of 'validation' has class 1: scores such as macro-F1 leave it out"):
        load_class_splits(tmp_path, num_classes=2, synthetic_dir="")


def test_a_name_as_class_is_refused_with_the_tool_that_makes_numbers(tmp_path: Path) -> None:
    write(tmp_path, {"training": [{"image": "a.png", "class": "gut artig", "patient": "1"}]})
    with pytest.raises(ValueError, match="'gut artig'; expected an integer from 0 to 1, which monai-usfm datalist"):
        load_class_splits(tmp_path, num_classes=2, synthetic_dir="", splits=("training",))


def test_each_class_gives_a_patient_to_validation(tmp_path: Path) -> None:
    items = [{"image": f"{p}.png", "patient": str(p), "class": int(p < 3)} for p in range(40)]
    write(tmp_path, {"training": items}, files=False)
    found = load_splits(tmp_path, synthetic_dir=tmp_path, holdout=0.0, check_files=False)
    assert sorted(item["class"] for item in found["validation"]) == [0, 1]


def test_classes_of_one_patient_each_are_trained_on_and_validated(tmp_path: Path) -> None:
    write(tmp_path, {"training": [{"image": f"{p}.png", "patient": str(p), "class": p} for p in range(2)]}, files=False)
    found = load_splits(tmp_path, synthetic_dir=tmp_path, check_files=False)
    assert len(found["training"]) == len(found["validation"]) == 2


@pytest.mark.parametrize("seed", range(4))
def test_no_class_loses_all_its_patients_to_validation(tmp_path: Path, seed: int) -> None:
    items = [{"image": f"{p}.png", "patient": f"{seed}-{p}", "class": p % 2} for p in range(4)]
    write(tmp_path, {"training": items}, files=False)
    found = load_splits(tmp_path, synthetic_dir=tmp_path, holdout=0.99, check_files=False)
    assert {item["class"] for item in found["training"]} == {0, 1}
    assert not {item["image"] for item in found["training"]} & {item["image"] for item in found["validation"]}


@pytest.mark.parametrize("way", ["copy", "symlink", "hardlink"])
def test_a_copy_or_link_in_another_split_is_named(tmp_path: Path, way: str) -> None:
    path = write(tmp_path, {"training": patients(2), "validation": patients(1, first=2)})
    other = tmp_path / "z.png"
    {
        "copy": lambda: other.write_bytes((tmp_path / "p1_0.png").read_bytes()),
        "symlink": lambda: other.symlink_to(tmp_path / "p1_0.png"),
        "hardlink": lambda: other.hardlink_to(tmp_path / "p1_0.png"),
    }[way]()
    lists = json.loads(path.read_text())
    path.write_text(json.dumps({**lists, "test": [{"image": "z.png", "patient": "z"}]}))
    with pytest.raises(ValueError, match=r"1 patients or images .*p1_0\.png = \S*z\.png \(training, test\)"):
        load_splits(tmp_path, synthetic_dir=tmp_path)


@pytest.mark.parametrize(("one", "other"), [("P1", "p1"), ("p1", " p1"), (1, 1.0), ("001", "1")])
def test_a_patient_is_one_however_it_is_written(tmp_path: Path, one: object, other: object) -> None:
    write(
        tmp_path,
        {"training": [{"image": "a.png", "patient": one}], "validation": [{"image": "b.png", "patient": other}]},
    )
    with pytest.raises(ValueError, match="1 patients or images stand in two splits"):
        load_splits(tmp_path, synthetic_dir=tmp_path)


def test_cines_are_spread_into_frames_and_single_frames_stay():
    items = [
        {"image": "a", "num_frames": 10},
        {"image": "b", "num_frames": 1},
        {"image": "c", "num_frames": 9, "frame": 2},
    ]
    found = spread_frames([*items, {"image": "d"}, {"image": "e", "num_frames": 3}], 4)
    assert [(i["image"], i.get("frame")) for i in found] == (
        [("a", 1), ("a", 3), ("a", 6), ("a", 8), ("b", None), ("c", 2), ("d", None), ("e", 0), ("e", 1), ("e", 2)]
    )
    with pytest.raises(ValueError, match="at least 1, got 0"):
        spread_frames(items, 0)


def test_a_null_tells_no_white():
    items = [{"image": "a", "full_scale": None}, {"image": "b", "full_scale": 255}, {"image": "c"}]
    assert [item["full_scale"] for item in with_full_scale(items, 4095.0)] == [4095.0, 255, 4095.0]


def test_a_number_that_no_training_item_has_is_refused(tmp_path):
    write(tmp_path, {"training": [{"image": f"{n}.png", "age": 2.0} for n in range(2)]})
    names = {"values": ["age", "weight"], "num_classes": 2, "synthetic_dir": "", "splits": ("training",)}
    with pytest.raises(ValueError, match="no training item has number 2 of --values"):
        value_scale(load_class_splits(tmp_path, **names)["training"])


def test_patients_beside_values_are_texts_or_stand_nowhere(tmp_path):
    def patients(*found: object) -> list[object]:
        items = [{"image": f"{n}.png", "age": 2.0, "patient": patient} for n, patient in enumerate(found)]
        write(tmp_path, {"training": items})
        lists = load_class_splits(tmp_path, num_classes=2, values=["age"], synthetic_dir="", splits=("training",))
        return [item.get("patient") for item in lists["training"]]

    assert patients(1, "2") == ["1", "2"]
    assert patients(None, None) == [None, None]
    with pytest.raises(ValueError, match="1 of 2 items of 'training' lack `patient`"):
        patients("a", None)
