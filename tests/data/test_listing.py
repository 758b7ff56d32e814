# Copyright (c) monai_usfm contributors
# SPDX-License-Identifier: Apache-2.0
"""Lists made from folders: pairs, patients, splits, and what is left out."""

from __future__ import annotations

import json
import shutil
import unicodedata
import warnings
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps
from pydicom.data import get_testdata_file

from monai_usfm.cli import main
from monai_usfm.data import (
    LoadUltrasoundd,
    UnknownPatientsError,
    check_patient_leak,
    list_images,
    load_datalist,
    load_splits,
    make_datalist,
    mark_results,
    pairing,
)
from monai_usfm.data.listing import split_groups
from monai_usfm.data.pairing import Masks, is_counterpart

SPLITS = ("training", "validation", "test")


@pytest.fixture
def make(tmp_path):
    def run(*folders: object, **options) -> dict:
        options = {key: str(value) if isinstance(value, Path) else value for key, value in options.items()}
        made = make_datalist(list(map(str, folders)), output=str(tmp_path / "list.json"), num_workers=1, **options)
        assert made == tmp_path / "list.json"
        return json.loads(made.read_text())

    return run


def write_image(path: Path, seed: int) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    coarse = Image.fromarray(np.random.default_rng(seed).integers(0, 256, (20, 24), dtype=np.uint8))
    coarse.resize((120, 100), Image.Resampling.BICUBIC).save(path)
    return path


@pytest.fixture
def folder(tmp_path) -> Path:
    """Ten patients, of each two images of two organs; masks; a copy, a re-export, a truncated file, a text."""
    root = tmp_path / "data"
    for organ in range(2):
        for patient in range(10):
            for view in "ab":
                name = f"p{patient:02d}_{view}.png"
                seed = 100 * organ + 2 * patient + (view == "b")
                write_image(root / ("breast", "liver")[organ] / "images" / name, seed)
                if organ == 0:
                    write_image(root / "breast" / "masks" / name, seed)
    images = root / "liver" / "images"
    shutil.copy(images / "p00_a.png", images / "p77_a.png")
    with Image.open(images / "p01_a.png") as img:
        img.resize((240, 200), Image.Resampling.BICUBIC).save(images / "p88_a.jpg", quality=90)
    broken = write_image(images / "p99_a.png", 999)
    broken.write_bytes(broken.read_bytes()[:900])
    (root / "README.txt").write_text("text")
    return root


def splits(content: dict) -> dict[str, list[dict]]:
    return {name: content[name] for name in SPLITS}


def where(content: dict, name: str) -> str:
    return next(s for s in SPLITS for item in content[s] if item["image"].endswith(name))


def test_every_readable_image_stands_in_one_split_with_organ_patient_and_label(make, folder):
    content = make(folder)
    items = [item for split in SPLITS for item in content[split]]
    assert len(items) == len({item["image"] for item in items}) == 42
    assert {item["organ"] for item in items} == {"breast", "liver"}
    first = next(item for item in items if item["image"] == "data/breast/images/p03_a.png")
    assert first["label"] == "data/breast/masks/p03_a.png" and first["patient"] == "p03"
    assert all(("label" in item) == (item["organ"] == "breast") for item in items)
    assert content["numTraining"] == len(content["training"])


def test_the_list_loads_and_does_not_leak(make, folder, tmp_path):
    make(folder)
    lists = {name: load_datalist(tmp_path / "list.json", None, name) for name in SPLITS}
    check_patient_leak(lists)


def test_shares_hold_in_every_organ(make, folder):
    content = make(folder, split="0.6/0.2/0.2")
    counts = {s: sum(item["organ"] == "breast" for item in content[s]) for s in SPLITS}
    assert counts == {"training": 12, "validation": 4, "test": 4}


def test_an_unreadable_file_is_left_out_with_the_reason(make, folder, capsys):
    content = make(folder)
    assert [entry["path"] for entry in content["unreadable"]] == ["data/liver/images/p99_a.png"]
    assert "truncated" in content["unreadable"][0]["reason"]
    printed = capsys.readouterr().out
    assert "1 files are unreadable" in printed and "data/liver/images/p99_a.png: cannot be decoded" in printed


@pytest.mark.parametrize("seed", range(4))
def test_copies_and_re_exports_stay_with_their_original(make, folder, seed):
    content = make(folder, seed=seed, split="0.4/0.3/0.3")
    assert where(content, "p77_a.png") == where(content, "liver/images/p00_a.png")
    assert where(content, "p88_a.jpg") == where(content, "liver/images/p01_a.png")


def test_the_same_command_gives_the_same_list_and_another_seed_another(make, folder):
    assert make(folder) == make(folder)
    assert splits(make(folder, seed=0)) != splits(make(folder, seed=1))


def test_names_on_the_command_line_are_organs(make, folder):
    content = make(f"kidney={folder / 'liver'}", f"breast={folder / 'breast'}")
    assert {item["organ"] for s in SPLITS for item in content[s]} == {"kidney", "breast"}


def test_a_csv_gives_organs_patients_and_classes(make, folder, tmp_path):
    rows = ["image,organ,patient,class"]
    rows += [f"liver/images/p{p:02d}_{v}.png,gallbladder,person{p % 3},{p % 2}" for p in range(10) for v in "ab"]
    (tmp_path / "organs.csv").write_text("\n".join(rows))
    content = make(folder / "liver", table=tmp_path / "organs.csv")
    items = [item for s in SPLITS for item in content[s] if "class" in item]
    assert len(items) == 20 and {(item["organ"], item["class"]) for item in items} == {
        ("gallbladder", 0),
        ("gallbladder", 1),
    }
    assert {item["patient"] for item in items} == {"person0", "person1", "person2"}
    check_patient_leak(splits(content))


def test_a_column_patient_id_names_patients_too(make, folder, tmp_path):
    rows = ["image,patient_id", *(f"p{p:02d}_{v}.png,{p % 2}" for p in range(10) for v in "ab")]
    (tmp_path / "p.csv").write_text("\n".join(rows))
    content = make(folder / "breast", table=tmp_path / "p.csv")
    assert {item["patient"] for s in SPLITS for item in content[s]} == {"0", "1"}
    assert not any("patient_id" in item for s in SPLITS for item in content[s])
    check_patient_leak(splits(content))


def test_paths_may_hold_an_equals_sign_and_files_may_tell_no_patient(make, tmp_path):
    write_image(tmp_path / "b=x" / "p1.png", 0)
    write_image(tmp_path / "b=x" / "odd.png", 1)
    content = make(tmp_path / "b=x", split="1/0/0", patient_pattern=r"p(\d+)")
    assert [item.get("patient") for item in content["training"]] == [None, "1"]
    assert len(load_datalist(tmp_path / "list.json", None, "training")) == 2


def test_a_regular_expression_names_patients_across_folders(make, folder):
    content = make(folder, patient_pattern=r"(p\d+)_")
    for patient in range(10):
        assert (
            len({where(content, f"{o}/images/p{patient:02d}_{v}.png") for o in ("breast", "liver") for v in "ab"}) == 1
        )


def test_the_first_folder_may_be_the_patient(make, tmp_path):
    for cine in range(6):
        for frame in range(4):
            write_image(tmp_path / "data" / f"cine{cine}" / f"frame_{frame:03d}.png", 10 * cine + frame)
    content = make(tmp_path / "data", patient_pattern="^([^/]+)/")
    assert len({item["patient"] for s in SPLITS for item in content[s]}) == 6
    check_patient_leak(splits(content))


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
    "carotid": [(f"US images/{i}.png", [f"Expert mask images/{i}.png"]) for i in (1, 2)],
    "MicroSegNet": [
        (f"micro_ultrasound_scans/microUS_train_0{i}.png", [f"expert_annotations/expert_annotation_train_0{i}.png"])
        for i in (1, 2)
    ],
    "LUMINOUS": [("B-mode/1_Bmode.png", ["Masks/1_Mask.png"]), ("B-mode/2_Bmode.png", ["Masks/2_Mask.png"])],
    "short": [("img/a_img.png", ["msk/a_msk.png"]), ("b.png", ["b-labelmap.png"])],
    "endings": [("img/a.png", ["seg/a.png"]), ("img/b.png", ["seg/b_seg.png"])],
    "other_letters": [(f"{name}/1.png", [f"{name} mask/1.png"]) for name in ("良性", "恶性", "норма")],
    "no_masks": [("breast/mask_1.png", []), ("breast/scan_label_3.png", []), ("breast/x.png", [])],
    "two_of_a_name": [("a_1.png", []), ("b_1.png", [])],
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_masks_of_public_data_sets_are_paired(make, tmp_path, layout, capsys):
    masks = {"two_of_a_name": ["masks/mask_1.png"], "MMOTU": ["OTU_2d/annotations/1_binary.PNG"]}.get(layout, [])
    for seed, name in enumerate([n for image, found in LAYOUTS[layout] for n in (image, *found)] + masks):
        write_image(tmp_path / "set" / name, seed)
    items = make(tmp_path / "set", split="1/0/0", dataset_dir=tmp_path / "set")["training"]
    found = {i["image"]: [i["label"]] if isinstance(i.get("label"), str) else i.get("label", []) for i in items}
    assert found == dict(LAYOUTS[layout])
    assert (f"{len(masks)} files look like masks" in capsys.readouterr().out) == bool(masks)


@pytest.mark.parametrize(
    ("image", "mask", "rule"),
    [
        ("case{}.png", "case{}_tumor.png", r"\.png$=>_tumor.png"),
        ("source/{}.png", "masks/fascicle/{}.png", "source/=>masks/fascicle/"),
        ("images/us-{}.png", "masks/{}/abdomen.png", r"images/us-(\d+)=>masks/\1/abdomen"),
        ("é/{}.png", "é mask/{}.png", "^é/=>é mask/"),
    ],
)
def test_a_rule_says_whose_a_mask_is(make, tmp_path, image, mask, rule):
    for number in range(4):
        write_image(tmp_path / "set" / image.format(number), number)
        write_image(tmp_path / "set" / mask.format(number), 10 + number)
        write_image(tmp_path / "set" / "masks" / "other" / f"{number}.png", 20 + number)  # of another structure
    write_image(tmp_path / "set" / image.format(9), 9)  # without one
    folder = {"dataset_dir": tmp_path / "set", "split": "1/0/0"}
    found = {
        item["image"]: item.get("label") for item in make(tmp_path / "set", label_pattern=rule, **folder)["training"]
    }
    assert found == {image.format(n): mask.format(n) if n < 4 else None for n in (0, 1, 2, 3, 9)}
    with pytest.raises(ValueError, match="finds the mask of no image: it leads from"):
        make(tmp_path / "set", label_pattern=r"\.png$=>_lesion.png", **folder)
    for wrong in (r"(\.png=>x", r"\.png=>\1", "_tumor"):
        with pytest.raises(ValueError, match="is no 'PATTERN=>REPLACEMENT'"):
            make(tmp_path / "set", label_pattern=wrong, **folder)


def test_columns_of_a_table_have_the_names_of_their_authors(make, tmp_path, capsys):
    names = [f"v{number}" for number in range(8)]
    for seed, name in enumerate(names):
        write_image(tmp_path / "set" / f"{name}.png", seed)
    table = tmp_path / "FileList.csv"
    table.write_text(
        "FileName,Who,EF,Split\n"
        + "".join(f"{n},{n[-1]},5{n[-1]}.5,{'TEST' if n > 'v5' else 'TRAIN'}\n" for n in names)
    )
    columns = ["image=FileName", "patient=Who", "split=Split"]
    options = {"table": str(table), "dataset_dir": tmp_path / "set"}
    content = make(tmp_path / "set", columns=columns, split="table", **options)
    assert [len(content[split]) for split in SPLITS] == [5, 1, 2]
    first = next(item for split in SPLITS for item in content[split] if item["image"] == "v3.png")
    assert first == {"image": "v3.png", "organ": "set", "patient": "3", "num_frames": 1, "EF": 53.5}
    capsys.readouterr()
    make(tmp_path / "set", columns=columns, **options)
    assert "the table has a column split, but the split is a new one" in capsys.readouterr().out
    with pytest.raises(ValueError, match=r"no column image; it has FileName.*columns image=NAME says which"):
        make(tmp_path / "set", **options)
    with pytest.raises(ValueError, match=r"v0\.png: the table has the split '50\.5'; expected one of train"):
        make(tmp_path / "set", columns=["image=FileName", "split=EF"], split="table", **options)
    with pytest.raises(ValueError, match="name it by --table"):
        make(tmp_path / "set", columns=columns)


def test_a_folder_of_masks_is_told_as_soon_as_its_images_are_there(tmp_path):
    mask, image = tmp_path / "test-mask" / "a.png", tmp_path / "test-image" / "a.png"
    mask.parent.mkdir()
    assert Masks(tmp_path, [mask]).images == [mask]
    image.parent.mkdir()
    assert Masks(tmp_path, [image, mask]).of(image) == [mask]


def test_of_many_folders_few_are_looked_at_for_an_image(monkeypatch):
    looked = []
    monkeypatch.setattr(pairing, "is_counterpart", lambda *folders: looked.append(folders) or is_counterpart(*folders))
    pairs = [[Path(f"/x/{number}/{kind}/a.png") for kind in ("images", "masks")] for number in range(50)]
    masks = Masks(Path("/x"), [path for pair in pairs for path in pair])
    assert [masks.of(image) for image, _ in pairs] == [[mask] for _, mask in pairs]
    assert len(looked) == 50


def test_reading_leaves_the_filters_of_warnings_as_they_were(tmp_path):
    for number in range(24):
        write_image(tmp_path / "set" / f"p{number}.png", number)
    before = list(warnings.filters)
    make_datalist([str(tmp_path / "set")], num_workers=8)
    assert warnings.filters == before


def test_masks_that_no_name_tells_are_warned_of(make, tmp_path):
    write_image(tmp_path / "set" / "超声" / "1.png", 0)
    mask = Image.fromarray(np.eye(40, dtype=np.uint8) * 255)
    (tmp_path / "set" / "掩膜").mkdir()
    mask.save(tmp_path / "set" / "掩膜" / "1.png")
    with pytest.warns(UserWarning, match=r"1 images, such as .*掩膜/1\.png, have eight gray values or fewer"):
        make(tmp_path / "set", split="1/0/0")


def test_the_name_of_the_whole_folder_makes_no_masks(make, tmp_path):
    write_image(tmp_path / "segmentation" / "images" / "a.png", 0)
    write_image(tmp_path / "segmentation" / "masks" / "a.png", 1)
    (item,) = make(tmp_path / "segmentation", split="1/0/0")["training"]
    assert item["image"] == "segmentation/images/a.png" and item["label"] == "segmentation/masks/a.png"


def test_folders_of_patients_are_no_organs(make, tmp_path):
    for number in range(10):
        for view in ("2CH", "4CH"):
            name = f"patient{number:04d}_{view}_ED"
            write_image(tmp_path / "camus" / f"patient{number:04d}" / f"{name}.png", 10 * number + (view == "4CH"))
            write_image(tmp_path / "camus" / f"patient{number:04d}" / f"{name}_gt.png", 500 + number)
    content = make(tmp_path / "camus")
    assert [len(content[s]) for s in SPLITS] == [16, 2, 2]
    assert {item["organ"] for s in SPLITS for item in content[s]} == {"camus"}


def test_splits_and_classes_of_folders_are_kept(make, tmp_path, capsys):
    for split, count in (("train", 20), ("test", 4)):
        for number in range(count):
            kind = ("Benign", "malignant")[number % 2]
            write_image(tmp_path / "set" / split / kind / f"p_{split}_{number}.png", 100 * (split == "test") + number)
    write_image(tmp_path / "set" / "train" / "other" / "rest.png", 999)
    content = make(tmp_path / "set", split="folders", classes=["benign", "malignant"], patient_pattern="(.*)")
    assert [len(content[s]) for s in SPLITS] == [19, 2, 4]
    assert all("/test/" in item["image"] for item in content["test"])
    assert all("/train/" in item["image"] for s in SPLITS[:2] for item in content[s])
    kinds = {Path(item["image"]).parts[-2]: item.get("class") for s in SPLITS for item in content[s]}
    assert kinds == {"Benign": 0, "malignant": 1, "other": None}
    (tmp_path / "set" / "train" / "Benign").rename(tmp_path / "set" / "train" / "Bo\u0308s")  # as macOS writes it
    (tmp_path / "set" / "test" / "Benign").rename(tmp_path / "set" / "test" / "Bo\u0308s")
    again = make(tmp_path / "set", split="folders", classes=["b\u00f6s", "malignant"], patient_pattern="(.*)")
    assert [i.get("class") for s in SPLITS for i in again[s]].count(0) == 12
    capsys.readouterr()
    make(tmp_path / "set", split="folders", classes=["b\u00f6s", "malignant"], patient_pattern="(.*)")
    assert {item["organ"] for s in SPLITS for item in content[s]} == {"set", "other"}
    printed = capsys.readouterr().out
    assert "0 b\u00f6s: 12, 1 malignant: 12; 1 images have none of them" in printed
    assert "2 training files are held out" in printed


def test_an_image_in_two_of_the_folders_splits_is_told(make, tmp_path, capsys):
    for number in range(12):
        write_image(tmp_path / "set" / "train" / f"p{number}.png", number)
    write_image(tmp_path / "set" / "test" / "p90.png", 3)
    make(tmp_path / "set", split="folders")
    assert "Note: 1 groups (one patient, or nearly one image) lie in several" in capsys.readouterr().out
    make(tmp_path / "set")
    assert "Note: folders name test and training files, but the split is a new one" in capsys.readouterr().out


def test_a_file_in_no_split_stops_the_split_by_folders(make, tmp_path):
    write_image(tmp_path / "set" / "train" / "a.png", 0)
    write_image(tmp_path / "set" / "more" / "b.png", 1)
    with pytest.raises(ValueError, match=r"b\.png: no folder names its split"):
        make(tmp_path / "set", split="folders")


def test_dicom_without_an_ending_is_found_and_its_patient_is_not_named(make, tmp_path):
    (tmp_path / "scans").mkdir()
    shutil.copy(get_testdata_file("examples_palette.dcm"), tmp_path / "scans" / "1.2.840.7")
    shutil.copy(get_testdata_file("examples_ybr_color.dcm"), tmp_path / "scans" / "1.2.840.8")
    content = make(tmp_path / "scans", split="1/0/0")
    assert [item["num_frames"] for item in content["training"]] == [1, 30]
    patients = [item["patient"] for item in content["training"]]
    assert all(patient.startswith("dicom-") for patient in patients) and patients[0] != patients[1]
    assert "11-05-25" not in json.dumps(content)  # the first file's Patient ID


@pytest.mark.parametrize(
    "option",
    [{"split": "0.8/0.1"}, {"split": "0/0.5/0.5"}, {"patient_pattern": "("}, {"classes": ["a"]}, {"max_bits": -1}],
)
def test_wrong_options_are_refused(make, folder, option):
    with pytest.raises(ValueError, match=next(iter(option))):
        make(folder, **option)
    assert not (folder.parent / "list.json").exists()


def test_a_folder_without_images_is_an_error(make, tmp_path):
    (tmp_path / "nothing").mkdir()
    with pytest.raises(FileNotFoundError, match="no image files in"):
        make(tmp_path / "nothing")


def test_real_folders_keep_their_patients_together(make, shared_data):
    content = make(f"fetal_head={shared_data / 'fetal_head_hc18'}", patient_pattern=r"(\d+)_[^/]*$")
    items = [item for s in SPLITS for item in content[s]]
    assert len(items) == 622 and len({item["patient"] for item in items}) == 501  # its README's numbers
    assert all("label" in item for item in items) and content["unreadable"] == []
    assert where(content, "392_HC.png") == where(content, "392_2HC.png")


def layout(root: Path, names: list[str]) -> Path:
    for seed, name in enumerate(names):
        write_image(root / name, seed)
    return root


WAYS = {  # how files may say whose they are; {p} the patient, {i} the image
    "folders": "patient{p}/us{i}.png",
    "deep folders": "patient{p}/long/img_{i}.png",
    "names below classes": "{c}/case{p}_{i}.png",
    "flat": "{i}CH_patient{p:04d}.png",
    "BIDS": "sub-{p:02d}/us/sub-{p:02d}_run-{i}_us.png",
}


@pytest.mark.parametrize("way", WAYS)
def test_no_patient_crosses_splits_and_the_rule_is_told(make, tmp_path, capsys, way):
    names = [WAYS[way].format(p=p, i=i, c="ab"[i % 2]) for p in range(12) for i in range(3)]
    content = make(layout(tmp_path / "set", names), split="0.6/0.2/0.2")
    places: dict[str, set[str]] = {}
    for split in SPLITS:
        assert content[split]
        for item in content[split]:
            patient = names.index(item["image"].removeprefix("set/")) // 3
            places.setdefault(f"{patient} {item['patient']}", set()).add(split)
    assert len(places) == 12 and all(len(found) == 1 for found in places.values())
    printed = capsys.readouterr().out
    assert "12 patients by the rule" in printed and printed.count(" is of ") == 3


def test_unknown_patients_are_not_split_and_the_way_out_is_named(make, tmp_path, capsys):
    names = [f"{p:03d}/x{i}.png" for p in range(5) for i in range(2)]
    folder = layout(tmp_path / "set", names)
    with pytest.raises(
        UnknownPatientsError, match=r"10 of 10 images do not tell .*000/x0\.png.*--patient_pattern"
    ) as caught:
        make(folder)
    assert "'^([^/]+)/' finds 5 patients" in str(caught.value) and not (tmp_path / "list.json").exists()
    assert {item["patient"] for item in make(folder, patient_pattern="^([^/]+)/")["training"]} <= {
        f"{p:03d}" for p in range(5)
    }
    assert not any("patient" in item for item in make(folder, split="1/0/0")["training"])
    assert "Note: the patient of 10 images is not known" in capsys.readouterr().out


@pytest.mark.parametrize("seed", range(3))
def test_classes_keep_their_shares_in_each_split(make, tmp_path, seed):
    names = [
        f"{'malignant' if p % 3 == 0 else 'benign'}/patient{p}_{i}.png" for p in range(60) for i in range(1 + p % 2)
    ]
    content = make(layout(tmp_path / "set", names), classes=["benign", "malignant"], seed=seed)
    whole = sum("malignant" in name for name in names) / len(names)
    for split in SPLITS:
        assert np.mean([item["class"] for item in content[split]]) == pytest.approx(whole, abs=0.08)


def test_results_are_neither_images_nor_labels(make, tmp_path, capsys):
    mark_results(tmp_path / "set" / "pred")
    layout(tmp_path / "set", ["p0.png", "p1.png", "pred/p0_seg.png", "pred/masks/p1.png"])
    content = make(tmp_path / "set", split="1/0/0")
    assert [(item["image"], "label" in item) for item in content["training"]] == [
        ("set/p0.png", False),
        ("set/p1.png", False),
    ]
    reason = "results of monai_usfm, by the file .monai_usfm_results"
    assert content["left_out"] == [{"path": "set/pred", "reason": reason}]
    assert "set/pred: results of monai_usfm, by the file" in capsys.readouterr().out


def test_composed_and_decomposed_names_pair(make, tmp_path):
    image, mask = unicodedata.normalize("NFC", "p1_möhre.png"), unicodedata.normalize("NFD", "p1_möhre_mask.png")
    folder = layout(tmp_path / "set", [image, mask])
    (item,) = make(folder, split="1/0/0")["training"]
    assert item["label"] == f"set/{mask}"


@pytest.mark.parametrize("change", ["cropped", "framed", "mirrored"])
def test_altered_copies_stay_with_their_original(make, tmp_path, change):
    folder = layout(tmp_path / "set", [f"p{p}.png" for p in range(10)])
    with Image.open(folder / "p3.png") as img:
        copies = {
            "cropped": img.crop((3, 3, img.width - 3, img.height - 3)),
            "framed": ImageOps.expand(img, 9, 255),
            "mirrored": ImageOps.mirror(img),
        }
        copies[change].save(folder / "p30.png")
    for seed in range(3):
        content = make(folder, seed=seed, split="0.4/0.3/0.3")
        assert where(content, "/p30.png") == where(content, "/p3.png")


def test_other_files_are_named(make, tmp_path, capsys):
    folder = layout(tmp_path / "set", ["p1.png"])
    (folder / "notes.txt").write_text("x")
    content = make(folder, split="1/0/0")
    assert content["left_out"] == [{"path": "set/notes.txt", "reason": "no image format that can be read"}]
    assert "set/notes.txt: no image format" in capsys.readouterr().out


def test_the_list_has_the_name_that_bundles_look_for_and_spares_that_of_others(tmp_path):
    folder = layout(tmp_path / "set", ["p1.png", "p2.png", "p3.png"])
    assert make_datalist([str(folder)]) == folder / "dataset.json" == make_datalist([str(folder)], seed=1)
    assert len(load_splits(folder, synthetic_dir=tmp_path)["training"]) == 1
    (folder / "dataset.json").write_text('{"training": []}')
    with pytest.raises(ValueError, match="was not made by this tool; name another file by --output"):
        make_datalist([str(folder)])


def test_groups_go_whole_and_shares_hold_as_far_as_groups_allow():
    rng = np.random.default_rng(0)
    groups = rng.integers(0, 150, 600)
    strata = (groups % 3 == 0).astype(int)
    shares = (0.7, 0.15, 0.15)
    splits = np.array(split_groups(strata.tolist(), groups.tolist(), shares, seed=0))
    assert all(len(set(splits[groups == group])) == 1 for group in set(groups.tolist()))
    for number, share in enumerate(shares):
        for stratum in range(2):
            assert (splits[strata == stratum] == number).mean() == pytest.approx(share, abs=0.03)


@pytest.mark.parametrize(("count", "filled"), [(1, [0]), (2, [0, 1]), (3, [0, 1, 2]), (5, [0, 1, 2])])
def test_few_groups_fill_training_first(count, filled):
    assert sorted(set(split_groups(["a"] * count, list(range(count)), (0.8, 0.1, 0.1)))) == filled


def test_a_linked_dataset_dir_and_folders_within_each_other_list_each_file_once(make, tmp_path):
    layout(tmp_path / "far" / "away" / "set", ["p1.png", "sub/p2.png"])
    (tmp_path / "link").symlink_to(tmp_path / "far" / "away" / "set")
    content = make(tmp_path / "link", tmp_path / "link" / "sub", split="1/0/0", dataset_dir=tmp_path / "link")
    assert [item["image"] for item in content["training"]] == ["p1.png", "sub/p2.png"]
    assert len(load_datalist(tmp_path / "list.json", tmp_path / "link", "training")) == 2


@pytest.mark.parametrize("images", ["images/", ""])
def test_folders_of_masks_for_each_structure_hold_no_images(make, tmp_path, capsys, images):
    data = layout(tmp_path / "data", [f"{images}p{n}.png" for n in (1, 2)])
    layout(data, ["liver_masks/p1.png", "liver_masks/p2.png", "kidney_masks/p2.png", "not_masks/p3.png"])
    content = make(data, split="1/0/0")
    assert [item["image"] for item in content["training"]] == [
        f"data/{name}" for name in sorted([f"{images}p1.png", f"{images}p2.png", "not_masks/p3.png"])
    ]
    assert "3 files look like masks and belong to no image" in capsys.readouterr().out
    shown = {Path(item["image"]).relative_to(data).as_posix() for item in list_images(data)}
    assert shown == {f"{images}p1.png", f"{images}p2.png", "not_masks/p3.png"}


def test_the_command_takes_folders_and_options(tmp_path, capsys):
    layout(tmp_path, ["a/p1.png", "b/p2.png"])
    folders = [str(tmp_path / "a"), f"liver={tmp_path / 'b'}"]
    options = ["--classes", "x,y", "--split", "1/0/0", "--patient_pattern", r"p(\d)"]
    assert main(["datalist", *folders, "--output", str(tmp_path / "l.json"), *options]) == 0
    items = json.loads((tmp_path / "l.json").read_text())["training"]
    assert [(item["organ"], item["patient"]) for item in items] == [("a", "a/1"), ("liver", "b/2")]
    assert main(["datalist", str(tmp_path / "none")]) == 1
    assert "error: " in capsys.readouterr().err.splitlines()[-1]


def test_class_names_in_a_table_become_numbers(tmp_path, capsys):
    layout(tmp_path, ["p1.png", "p2.png", "p3.png"])
    decomposed = unicodedata.normalize("NFD", "bösartig")
    table = f"image,class\np1.png,Benign\np2.png,Bösartig\np3.png,{decomposed}\n"
    (tmp_path / "t.csv").write_text(table, encoding="utf-8")
    options = ["--table", str(tmp_path / "t.csv"), "--classes", "benign,bösartig", "--split", "1/0/0"]
    assert main(["datalist", str(tmp_path), "--output", str(tmp_path / "l.json"), *options]) == 0
    assert [item["class"] for item in json.loads((tmp_path / "l.json").read_text())["training"]] == [0, 1, 1]
    assert "Classes: 0 benign: 1, 1 bösartig: 2; 0 images have none of them." in capsys.readouterr().out


def test_files_that_do_not_tell_white_share_the_largest_of_the_data_set(make, tmp_path, capsys):
    for number, top in enumerate((200, 3000)):
        image = np.linspace(0, top, 48 * 64).reshape(48, 64).astype(np.uint16)
        Image.fromarray(image).save(tmp_path / f"p0{number}.png")
    write_image(tmp_path / "p02.png", 2)
    make(tmp_path, split="1/0/0")
    items = {Path(item["image"]).name: item for item in load_datalist(tmp_path / "list.json", None, "training")}
    assert [items[f"p0{number}.png"].get("full_scale") for number in range(3)] == [4095, 4095, None]
    assert LoadUltrasoundd("image")(items["p00.png"])["image"].max().item() == pytest.approx(200 / 4095)
    assert "Value of white" in capsys.readouterr().out
