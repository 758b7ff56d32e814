# Copyright (c) monai_usfm contributors
# SPDX-License-Identifier: Apache-2.0
"""scripts/make_datalist.py and scripts/convert_dicom.py as a user runs them."""

from __future__ import annotations

import importlib.util
import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pydicom.data import get_testdata_file

from monai_usfm.data import check_patient_leak, load_datalist

SECTIONS = ("training", "validation", "test")


def script(repository: Path, name: str):
    """A script's module; its dataclasses ask for it to be registered."""
    spec = importlib.util.spec_from_file_location(name, repository / "scripts" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def make(repository, tmp_path):
    module = script(repository, "make_datalist")

    def run(*arguments: str) -> dict:
        assert module.main([*map(str, arguments), "--output", str(tmp_path / "list.json"), "--workers", "1"]) == 0
        return json.loads((tmp_path / "list.json").read_text())

    return run


def picture(path: Path, seed: int) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    coarse = Image.fromarray(np.random.default_rng(seed).integers(0, 256, (20, 24), dtype=np.uint8))
    coarse.resize((120, 100), Image.Resampling.BICUBIC).save(path)
    return path


@pytest.fixture
def folder(tmp_path) -> Path:
    """Two organs, ten patients of two images each; masks; a copy, a re-export, a truncated file, a text."""
    root = tmp_path / "data"
    for organ in range(2):
        for patient in range(10):
            for view in "ab":
                name = f"p{patient:02d}_{view}.png"
                seed = 100 * organ + 2 * patient + (view == "b")
                picture(root / ("breast", "liver")[organ] / "images" / name, seed)
                if organ == 0:
                    picture(root / "breast" / "masks" / name, seed)
    images = root / "liver" / "images"
    shutil.copy(images / "p00_a.png", images / "q77.png")
    with Image.open(images / "p01_a.png") as img:
        img.resize((240, 200), Image.Resampling.BICUBIC).save(images / "q88.jpg", quality=90)
    broken = picture(images / "q99.png", 999)
    broken.write_bytes(broken.read_bytes()[:900])
    (root / "README.txt").write_text("text")
    return root


def sections(content: dict) -> dict[str, list[dict]]:
    return {name: content[name] for name in SECTIONS}


def where(content: dict, name: str) -> str:
    return next(s for s in SECTIONS for item in content[s] if item["image"].endswith(name))


def test_every_readable_image_stands_in_one_section_with_organ_patient_and_label(make, folder):
    content = make(folder)
    items = [item for section in SECTIONS for item in content[section]]
    assert len(items) == len({item["image"] for item in items}) == 42
    assert {item["organ"] for item in items} == {"breast", "liver"}
    first = next(item for item in items if item["image"] == "data/breast/images/p03_a.png")
    assert first["label"] == "data/breast/masks/p03_a.png" and first["patient"] == "data/breast/images/p03"
    assert all(("label" in item) == (item["organ"] == "breast") for item in items)
    assert content["numTraining"] == len(content["training"])


def test_the_list_loads_and_does_not_leak(make, folder, tmp_path):
    make(folder)
    lists = {name: load_datalist(tmp_path / "list.json", None, name) for name in SECTIONS}
    check_patient_leak(lists)


def test_shares_hold_in_every_organ(make, folder):
    content = make(folder, "--split", "0.6/0.2/0.2")
    counts = {s: sum(item["organ"] == "breast" for item in content[s]) for s in SECTIONS}
    assert counts == {"training": 12, "validation": 4, "test": 4}


def test_an_unreadable_file_is_left_out_with_the_reason(make, folder, capsys):
    content = make(folder)
    assert [entry["path"] for entry in content["unreadable"]] == ["data/liver/images/q99.png"]
    assert "truncated" in content["unreadable"][0]["reason"]
    printed = capsys.readouterr().out
    assert "1 files are unreadable" in printed and "data/liver/images/q99.png: cannot be decoded" in printed


@pytest.mark.parametrize("seed", range(4))
def test_copies_and_re_exports_stay_with_their_original(make, folder, seed):
    content = make(folder, "--seed", seed, "--split", "0.4/0.3/0.3")
    assert where(content, "q77.png") == where(content, "liver/images/p00_a.png")
    assert where(content, "q88.jpg") == where(content, "liver/images/p01_a.png")


def test_the_same_command_gives_the_same_list_and_another_seed_another(make, folder):
    assert make(folder) == make(folder)
    assert sections(make(folder, "--seed", "0")) != sections(make(folder, "--seed", "1"))


def test_names_on_the_command_line_are_organs(make, folder):
    content = make(f"kidney={folder / 'liver'}", f"breast={folder / 'breast'}")
    assert {item["organ"] for s in SECTIONS for item in content[s]} == {"kidney", "breast"}


def test_a_csv_gives_organs_patients_and_classes(make, folder, tmp_path):
    rows = ["image,organ,patient,class"]
    rows += [f"liver/images/p{p:02d}_{v}.png,gallbladder,person{p % 3},{p % 2}" for p in range(10) for v in "ab"]
    (tmp_path / "organs.csv").write_text("\n".join(rows))
    content = make(folder / "liver", "--organ-csv", tmp_path / "organs.csv")
    items = [item for s in SECTIONS for item in content[s] if "/p" in item["image"]]
    assert {(item["organ"], item["class"]) for item in items} == {("gallbladder", 0), ("gallbladder", 1)}
    assert {item["patient"] for item in items} == {"person0", "person1", "person2"}
    check_patient_leak(sections(content))


def test_a_column_patient_id_names_patients_too(make, folder, tmp_path):
    rows = ["image,patient_id", *(f"p{p:02d}_{v}.png,{p % 2}" for p in range(10) for v in "ab")]
    (tmp_path / "p.csv").write_text("\n".join(rows))
    content = make(folder / "breast", "--organ-csv", tmp_path / "p.csv")
    assert {item["patient"] for s in SECTIONS for item in content[s]} == {"0", "1"}
    assert not any("patient_id" in item for s in SECTIONS for item in content[s])
    check_patient_leak(sections(content))


def test_paths_may_hold_an_equals_sign_and_files_may_tell_no_patient(make, tmp_path):
    picture(tmp_path / "b=x" / "p1.png", 0)
    picture(tmp_path / "b=x" / "odd.png", 1)
    content = make(tmp_path / "b=x", "--split", "1/0/0", "--patient-regex", r"p(\d+)")
    assert [item["patient"] for item in content["training"]] == ["b=x/odd", "b=x/1"]
    assert len(load_datalist(tmp_path / "list.json", None, "training")) == 2


def test_a_regular_expression_names_patients_across_folders(make, folder):
    content = make(folder, "--patient-regex", r"(p\d+)_")
    for patient in range(10):
        assert (
            len({where(content, f"{o}/images/p{patient:02d}_{v}.png") for o in ("breast", "liver") for v in "ab"}) == 1
        )


def test_frames_named_by_number_belong_to_their_folder(make, tmp_path):
    for cine in range(6):
        for frame in range(4):
            picture(tmp_path / "data" / f"cine{cine}" / f"frame_{frame:03d}.png", 10 * cine + frame)
    content = make(tmp_path / "data")
    assert len({item["patient"] for s in SECTIONS for item in content[s]}) == 6
    check_patient_leak(sections(content))


def test_masks_beside_their_image_are_paired(make, tmp_path):
    for number in range(3):
        picture(tmp_path / "busi" / f"benign ({number}).png", number)
        picture(tmp_path / "busi" / f"benign ({number})_mask.png", number)
    items = make(tmp_path / "busi", "--split", "1/0/0")["training"]
    assert [item["label"] for item in items] == [f"busi/benign ({number})_mask.png" for number in range(3)]


LAYOUTS = {  # image, its masks: folders and names as public data sets have them
    "BUSI": [
        (
            "with_GT/benign/benign (1).png",
            ["with_GT/benign/benign (1)_mask.png", "with_GT/benign/benign (1)_mask_1.png"],
        ),
        ("with_GT/normal/normal (1).png", ["with_GT/normal/normal (1)_mask.png"]),
    ],
    "TN3K": [("trainval-image/0000.jpg", ["trainval-mask/0000.jpg"]), ("test-image/0000.jpg", ["test-mask/0000.jpg"])],
    "DDTI": [("p_image/1_1.PNG", ["p_mask/1_1.PNG"])],
    "MMOTU": [("OTU_2d/images/1.JPG", ["OTU_2d/annotations/1.PNG"])],
    "HC18": [("training_set/000_HC.png", ["training_set/000_HC_Annotation.png"]), ("test_set/000_HC.png", [])],
    "BUS-BRA": [(f"Images/bus_000{i}-l.png", [f"Masks/mask_000{i}-l.png"]) for i in (1, 2)],
    "MVSeg": [("train/train_001-US.png", ["train/train_001-label.png"])],
    "nnU-Net": [(f"images{s}/a_0000.png", [f"labels{s}/a.png"]) for s in ("Tr", "Ts")],
    "TDSC-ABUS": [(f"Train/DATA/DATA_00{i}.png", [f"Train/MASK/MASK_00{i}.png"]) for i in (1, 2)],
    "CETUS": [("patient1/patient1_ED.png", ["patient1/patient1_ED_truth.png"])],
    "UDIAT": [("original/000001.png", ["GT/000001.png"])],
    "one_folder": [("image_1.png", ["mask_1.png"]), ("image_2.png", ["mask_2.png"])],
    "endings": [("img/a.png", ["seg/a.png"]), ("img/b.png", ["seg/b_seg.png"])],
    "no_masks": [("breast/mask_1.png", []), ("breast/scan_label_3.png", []), ("breast/x.png", [])],
    "two_of_a_name": [("a_1.png", []), ("b_1.png", [])],
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_masks_of_public_data_sets_are_paired(make, tmp_path, layout, capsys):
    masks = {"two_of_a_name": ["masks/mask_1.png"], "MMOTU": ["OTU_2d/annotations/1_binary.PNG"]}.get(layout, [])
    for seed, name in enumerate([n for image, found in LAYOUTS[layout] for n in (image, *found)] + masks):
        picture(tmp_path / "set" / name, seed)
    items = make(tmp_path / "set", "--split", "1/0/0", "--dataset-dir", tmp_path / "set")["training"]
    found = {i["image"]: [i["label"]] if isinstance(i.get("label"), str) else i.get("label", []) for i in items}
    assert found == dict(LAYOUTS[layout])
    assert (f"{len(masks)} files look like masks" in capsys.readouterr().out) == bool(masks)


def test_the_name_of_the_whole_folder_makes_no_masks(make, tmp_path):
    picture(tmp_path / "segmentation" / "images" / "a.png", 0)
    picture(tmp_path / "segmentation" / "masks" / "a.png", 1)
    (item,) = make(tmp_path / "segmentation", "--split", "1/0/0")["training"]
    assert item["image"] == "segmentation/images/a.png" and item["label"] == "segmentation/masks/a.png"


def test_folders_of_patients_are_no_organs(make, tmp_path):
    for number in range(10):
        for view in ("2CH", "4CH"):
            name = f"patient{number:04d}_{view}_ED"
            picture(tmp_path / "camus" / f"patient{number:04d}" / f"{name}.png", 10 * number + (view == "4CH"))
            picture(tmp_path / "camus" / f"patient{number:04d}" / f"{name}_gt.png", 500 + number)
    content = make(tmp_path / "camus")
    assert [len(content[s]) for s in SECTIONS] == [16, 2, 2]
    assert {item["organ"] for s in SECTIONS for item in content[s]} == {"camus"}


def test_splits_and_classes_of_folders_are_kept(make, tmp_path, capsys):
    for section, count in (("train", 20), ("test", 4)):
        for number in range(count):
            kind = ("Benign", "malignant")[number % 2]
            picture(tmp_path / "set" / section / kind / f"{section}{number}.png", 100 * (section == "test") + number)
    picture(tmp_path / "set" / "train" / "other" / "rest.png", 999)
    content = make(tmp_path / "set", "--split", "folders", "--classes", "benign,malignant")
    assert [len(content[s]) for s in SECTIONS] == [19, 2, 4]
    assert all("/test/" in item["image"] for item in content["test"])
    assert all("/train/" in item["image"] for s in SECTIONS[:2] for item in content[s])
    kinds = {Path(item["image"]).parts[-2]: item.get("class") for s in SECTIONS for item in content[s]}
    assert kinds == {"Benign": 0, "malignant": 1, "other": None}
    assert {item["organ"] for s in SECTIONS for item in content[s]} == {"set", "other"}
    printed = capsys.readouterr().out
    assert (
        "0 benign: 12, 1 malignant: 12; 1 images lie in none" in printed and "2 training files are held out" in printed
    )


def test_a_picture_in_two_of_the_folders_splits_is_told(make, tmp_path, capsys):
    for number in range(12):
        picture(tmp_path / "set" / "train" / f"a{number}.png", number)
    picture(tmp_path / "set" / "test" / "b0.png", 3)
    make(tmp_path / "set", "--split", "folders")
    assert "Note: 1 groups (one patient, or nearly one picture) lie in several" in capsys.readouterr().out
    make(tmp_path / "set")
    assert "Note: folders name test and training files, but the split is a new one" in capsys.readouterr().out


def test_a_file_in_no_split_stops_the_split_by_folders(repository, tmp_path):
    picture(tmp_path / "set" / "train" / "a.png", 0)
    picture(tmp_path / "set" / "more" / "b.png", 1)
    with pytest.raises(SystemExit, match=r"b\.png: no folder names its split"):
        script(repository, "make_datalist").main([str(tmp_path / "set"), "--split", "folders"])


def test_dicom_without_an_ending_is_found_and_its_patient_is_not_named(make, tmp_path):
    (tmp_path / "scans").mkdir()
    shutil.copy(get_testdata_file("examples_palette.dcm"), tmp_path / "scans" / "1.2.840.7")
    shutil.copy(get_testdata_file("examples_ybr_color.dcm"), tmp_path / "scans" / "1.2.840.8")
    content = make(tmp_path / "scans", "--split", "1/0/0")
    assert [item["num_frames"] for item in content["training"]] == [1, 30]
    patients = [item["patient"] for item in content["training"]]
    assert all(patient.startswith("dicom-") for patient in patients) and patients[0] != patients[1]
    assert "11-05-25" not in json.dumps(content)  # the first file's Patient ID


@pytest.mark.parametrize(
    "arguments", [["--split", "0.8/0.1"], ["--split", "0/0.5/0.5"], ["--patient-regex", "("], ["--classes", "a"]]
)
def test_wrong_options_are_refused(repository, folder, arguments, capsys):
    with pytest.raises(SystemExit):
        script(repository, "make_datalist").main([str(folder), *arguments])
    assert arguments[0] in capsys.readouterr().err


def test_a_folder_without_images_is_an_error(repository, tmp_path, capsys):
    (tmp_path / "nothing").mkdir()
    assert script(repository, "make_datalist").main([str(tmp_path / "nothing")]) == 1
    assert "No image files" in capsys.readouterr().out


def test_real_folders_keep_their_patients_together(make, shared_data):
    content = make(f"fetal_head={shared_data / 'fetal_head_hc18'}")
    items = [item for s in SECTIONS for item in content[s]]
    assert len(items) == 622 and len({item["patient"] for item in items}) == 501  # its README's numbers
    assert all("label" in item for item in items) and content["unreadable"] == []
    assert where(content, "392_HC.png") == where(content, "392_2HC.png")


def test_dicom_files_are_converted_and_failures_named(repository, tmp_path, capsys):
    (tmp_path / "in").mkdir()
    shutil.copy(get_testdata_file("examples_palette.dcm"), tmp_path / "in" / "1.2.3")
    whole = Path(get_testdata_file("examples_rgb_color.dcm")).read_bytes()
    (tmp_path / "in" / "bad.dcm").write_bytes(whole[: len(whole) // 2])
    convert = script(repository, "convert_dicom")
    status = convert.main([str(tmp_path / "in"), "--output", str(tmp_path / "out"), "--format", "png"])
    assert status == 1 and sorted(p.name for p in (tmp_path / "out").iterdir()) == ["1.2.3.png", "1.2.3.png.json"]
    printed = capsys.readouterr().out
    assert "1 converted, 1 not." in printed and "bad.dcm" in printed
