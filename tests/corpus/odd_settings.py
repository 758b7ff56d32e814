# Copyright (c) monai_usfm contributors
# SPDX-License-Identifier: Apache-2.0
"""Odd datalists, folders, options, weights and places, with what each must end in."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from monai_usfm.files import write_text_atomically
from tests.dicom_files import ultrasound


@dataclass
class World:
    """What a setting starts from.

    Attributes:
        folder: of this setting alone.
        data: images inside ``folder``: image.png, label.png, plain1.png ...
        items: four items of a datalist.
        weights: task -> weights with their card.
        trained: task -> folder of a training that ended.
    """

    folder: Path
    data: Path
    items: list[dict[str, Any]]
    weights: dict[str, Path]
    trained: dict[str, Path]

    def write(self, **splits: Any) -> None:
        """The lists of the plain folder with other splits; those of one that is not given stay."""
        lists = {"training": self.items[:2], "validation": [self.items[2]]}
        (self.data / "dataset.json").write_text(json.dumps({**lists, **{k: splits[k] for k in splits if k != "test"}}))
        tested = splits.get("test", [self.items[0], self.items[3]])
        (self.data / "test.json").write_text(json.dumps({"test": tested}))
        (self.data / "validate.json").write_text(
            json.dumps({"training": [self.items[1]], "validation": [tested[0] if tested else None, self.items[2]]})
        )

    def changed(self, **fields: Any) -> None:
        """A list whose first training and test item differs."""
        item = {**self.items[0], **fields}
        self.write(training=[item, self.items[1]], test=[item, self.items[3]])


@dataclass
class Setting:
    """An odd setting.

    Attributes:
        kind: row of the table.
        name: what is odd.
        prepare: changes the world; returns the options that differ.
        expect: words of the last line of the error; empty for a result.
        tasks: bundles that it is run in.
        runs: workflows that it is run in.
        check: of a result: raises AssertionError where it is not as it must be.
    """

    kind: str
    name: str
    prepare: Callable[[World], dict[str, Any] | None]
    expect: str = ""
    tasks: tuple[str, ...] = ("segmentation",)
    runs: tuple[str, ...] = ("train",)
    check: Callable[[World, Path], None] | None = None


ALL = ("pretraining", "segmentation", "classification", "enhancement")
LABELED = ("segmentation", "classification")
RUNS = ("train", "evaluate", "predict")


def options(kind: str = "options") -> list[Setting]:
    def of(name: str, value: Any, expect: str = "", tasks: tuple[str, ...] = ALL, runs: tuple[str, ...] = ("train",)):
        shown = f"--{name} {value!r}"
        return Setting(kind, shown, lambda world: {name: value}, expect, tasks, runs)

    seg, cls, enh, pre = (("segmentation",), ("classification",), ("enhancement",), ("pretraining",))
    bad = [
        *[of("max_epochs", value, "max_epochs") for value in (0, -1, 1.5, "ten")],
        *[of("batch_size", value, "batch_size") for value in (0, -2, 2.5, "all")],
        *[of("patch_size", value, "patch_size", seg + pre) for value in (0, -16, "small")],
        of("patch_size", 7, "patch", seg + pre),
        *[of("spatial_size", value, "spatial_size", seg + enh) for value in (0, [32], "big", [32, 0])],
        of("spatial_size", [32, 32, 32], "spatial_dims", seg),
        *[of("learning_rate", value, "learning_rate") for value in (0, -0.1, float("nan"), float("inf"), "fast")],
        of("num_workers", -1, "num_workers"),
        of("figure_interval", -1, "figure_interval", seg + pre + enh),
        of("val_interval", 0, "val_interval"),
        of("accumulation_steps", 0, "accumulation_steps"),
        of("warmup_epochs", -1, "warmup_epochs"),
        of("weight_decay", -1, "weight_decay"),
        of("clip_norm", 0, "clip_norm"),
        of("layer_decay", 0, "layer_decay", seg + cls),
        of("lora_rank", -1, "lora_rank", seg + cls),
        of("label_fraction", 0, "label_fraction", seg + cls),
        of("label_fraction", 2, "label_fraction", seg + cls),
        of("crops_per_volume", 0, "crops_per_volume", seg),
        of("freeze_encoder", "perhaps", "freeze_encoder", seg + cls),
        of("resume", "perhaps", "resume"),
        of("seed", -1, "seed"),
        of("seed", 0.5, "seed"),
        of("amp", "half", "amp", ALL, RUNS),
        of("device", "cuda:99", "device", ALL, RUNS),
        of("device", "gpu", "device", ALL, RUNS),
        of("network_size", "huge", "network_size"),
        of("spatial_dims", 4, "spatial_dims"),
        of("in_channels", 0, "in_channels"),
        of("pos_embed", "rope", "pos_embed"),
        of("head", "unet", "head", seg),
        of("pool", "max", "pool", cls),
        of("objective", "contrastive", "objective", pre),
        of("num_classes", 1, "num_classes", seg + cls),
        of("label_values", [0, 0], "label_values", seg),
        of("label_values", [0, 1, 2], "label_values", seg),
        of("label_values", "white", "label_values", seg),
        of("class_names", ["one"], "class_names", seg + cls),
        of("mixup_alpha", -1, "mixup_alpha", cls),
        of("label_smoothing", 2, "label_smoothing", cls),
        of("dropout", 2, "dropout", cls),
        of("holdout", 2, "holdout", pre),
        of("epoch_length", 0, "epoch_length", pre),
        of("organ_temperature", -1, "organ_temperature", pre),
        *[of("temperature", value, "temperature", seg + cls, ("predict",)) for value in (0, -1, float("nan"), "hot")],
        of("dropout_samples", -1, "dropout_samples", seg, ("predict",)),
        of("output_ext", ".xyz", "output_ext", seg, ("predict",)),
        of("output_ext", ".mhd", "output_ext", seg + enh, ("predict",)),
        of("split", "tset", "tset", ALL, ("predict",)),
        of("split", "tset", "tset", seg + cls + enh, ("evaluate",)),
        of("skip_unreadable", "perhaps", "skip_unreadable", ALL, ("predict",)),
        of("frames", "perhaps", "frames", seg, ("predict",)),
        of("preview", "perhaps", "preview", seg + cls + enh, ("predict",)),
        of("feature_blocks", [99], "feature_blocks", pre, ("predict",)),
        of("pool", "max", "pool", pre, ("predict",)),
        of("frames", True, "image.png", seg, ("predict",)),
        of("max_epoch", 1, "max_epochs"),
        of("lr", 1, "learning_rate"),
        of("train#trainer#max_epoch", 1, "max_epochs"),
        of("train#trianer#max_epochs", 1, "train#trianer"),
        of("plan#wdith", 1, "wdith", seg),
        of("optimiser#lr", 1, "optimizer"),
        of("optimizer#lrate", 1, "lr"),
        of("checkpoints", "x.pt", "checkpoint", ALL, ("predict",)),
    ]
    good = [
        of("figure_interval", 0, "", seg + pre + enh),
        of("batch_size", 10_000),
        of("warmup_epochs", 100),
        of("weight_decay", 0),
        of("num_workers", 1, "", ("segmentation",)),
        of("in_channels", 3, "", seg + cls),
        of("spatial_size", [32, 48], "", ALL),
        of("spatial_size", 48, "", seg + cls),
        of("class_names", ["ground", "lesion"], "", seg),
        of("dropout_samples", 0, "", seg, ("predict",)),
        of("resume", "true"),
        of("seed", 2**31 - 1),
        of("learning_rate", 1e-30),
    ]
    return bad + good


def weights(kind: str = "weights") -> list[Setting]:
    """Files that are no weights of the task, as what training starts from and as what inference takes."""

    def changed(change: Callable[[Path, World], Any], card: bool = True) -> Callable[[World], Path]:
        def make(world: World) -> Path:
            file = world.folder / "case.pt"
            shutil.copy(world.weights["segmentation"], file)
            if card:
                shutil.copy(world.weights["segmentation"].with_suffix(".json"), file.with_suffix(".json"))
            change(file, world)
            return file

        return make

    def state(change: Callable[[dict[str, Any]], Any]) -> Callable[[Path, World], None]:
        def apply(file: Path, world: World) -> None:
            loaded = torch.load(file, weights_only=True)
            loaded = change(loaded) or loaded
            torch.save(loaded, file)

        return apply

    def nan(loaded: dict[str, Any]) -> None:
        next(value for value in loaded.values() if value.is_floating_point()).fill_(float("nan"))

    def card(change: Callable[[dict[str, Any]], Any]) -> Callable[[Path, World], None]:
        def apply(file: Path, world: World) -> None:
            content = json.loads(file.with_suffix(".json").read_text())
            change(content)
            file.with_suffix(".json").write_text(json.dumps(content))

        return apply

    class Evil:
        def __reduce__(self):
            return os.system, ("touch /tmp/monai_usfm_was_here",)

    makers: dict[str, Callable[[World], Path]] = {
        "missing": lambda world: world.folder / "case.pt",
        "a folder": changed(lambda file, world: (file.unlink(), file.mkdir())),
        "empty": changed(lambda file, world: file.write_bytes(b"")),
        "text": changed(lambda file, world: file.write_text("weights\n" * 50)),
        "cut": changed(lambda file, world: file.write_bytes(file.read_bytes()[:2000])),
        "zeros": changed(lambda file, world: file.write_bytes(bytes(5000))),
        "an image": changed(lambda file, world: Image.new("L", (9, 9)).save(file, "PNG")),
        "a pickle that runs a program": changed(lambda file, world: file.write_bytes(pickle.dumps(Evil()))),
        "a zip of torch with a program": changed(lambda file, world: torch.save({"x": Evil()}, file)),
        "one tensor": changed(lambda file, world: torch.save(torch.zeros(3), file)),
        "a list": changed(lambda file, world: torch.save([1, 2], file)),
        "other names": changed(state(lambda s: {f"strange.{k}": v for k, v in s.items()}), card=False),
        "no name": changed(state(lambda s: {"": torch.zeros(1)}), card=False),
        "NaN": changed(state(nan), card=False),
    }
    only_read: dict[str, Callable[[World], Path]] = {
        "a weight is missing": changed(state(lambda s: {k: v for k, v in s.items() if k != sorted(s)[0]}), card=False),
        "card of other weights (SHA-256)": changed(card(lambda c: c.update(sha256="0" * 64))),
        "card that is no JSON": changed(lambda file, world: file.with_suffix(".json").write_text("{")),
        "card that is a list": changed(lambda file, world: file.with_suffix(".json").write_text("[]")),
        "card without network": changed(card(lambda c: c.pop("network"))),
        "card of a later version": changed(card(lambda c: c.update(card_version=99))),
        "card with a strange option": changed(card(lambda c: c["network"].update(hidden_sise=3))),
        "card with another size": changed(card(lambda c: c["network"].update(hidden_size=96))),
        "card with temperature 0": changed(card(lambda c: c.update(temperature=0))),
        "no card": changed(lambda file, world: None, card=False),
        "of another task": lambda world: world.weights["classification"],
    }

    def word(name: str) -> str:
        """A prefix of all names is taken off, the network of tensors without a card is read from them."""
        read = ("other names", "no card", "card that is a list")
        return "" if name in read else "classification.pt" if name == "of another task" else "case"

    settings = []
    for name, make in makers.items():
        for option, runs in (("pretrained", ("train",)), ("checkpoint", ("evaluate", "predict"))):
            words = "case" if (option, name) == ("checkpoint", "other names") else word(name)
            tasks = ("segmentation",) if option == "checkpoint" else ("segmentation", "pretraining")
            settings.append(
                Setting(kind, f"--{option}: {name}", _named(option, make), words, tasks, runs, _nothing_ran)
            )
    for name, make in only_read.items():
        settings.append(
            Setting(kind, f"--checkpoint: {name}", _named("checkpoint", make), word(name), runs=("evaluate", "predict"))
        )
    return settings


def _named(option: str, make: Callable[[World], Path]) -> Callable[[World], dict[str, Any]]:
    return lambda world: {option: str(make(world))}


def _nothing_ran(world: World, output: Path) -> None:
    assert not Path("/tmp/monai_usfm_was_here").exists(), "the pickle was executed"


def lists(kind: str = "datalists") -> list[Setting]:
    def text(content: str, encoding: str = "utf-8") -> Callable[[World], None]:
        return lambda world: (world.data / "dataset.json").write_text(content, encoding=encoding) and None

    def split(**splits: Any) -> Callable[[World], None]:
        return lambda world: world.write(**splits)

    def item(**fields: Any) -> Callable[[World], None]:
        return lambda world: world.changed(**fields)

    def copied(world: World, name: str) -> str:
        (world.data / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(world.data / "image.png", world.data / name)
        return name

    def moved(name: str) -> Callable[[World], None]:
        return lambda world: world.changed(image=copied(world, name))

    def crossing(patient: Any, other: Any) -> Callable[[World], None]:
        def prepare(world: World) -> None:
            world.items[1]["patient"], world.items[2]["patient"] = patient, other
            world.write()

        return prepare

    def same_bytes(make: Callable[[Path, Path], Any]) -> Callable[[World], None]:
        def prepare(world: World) -> None:
            (world.data / "plain2.png").unlink()
            make(world.data / "plain1.png", world.data / "plain2.png")
            world.write()

        return prepare

    def bare_names(world: World) -> None:
        world.write(test=["image.png", "plain3.png"])

    def stays_inside(world: World, output: Path) -> None:
        found = [p for p in world.folder.rglob("*") if p.name.endswith(("_seg.png", "_enhanced.png"))]
        assert found and all(output in p.parents for p in found), f"results at {found}"

    def outside(world: World) -> None:
        (world.folder / "other").mkdir()
        shutil.copy(world.data / "image.png", world.folder / "other" / "x.png")
        world.write(test=[{**world.items[0], "image": "../other/x.png"}, world.items[3]])

    def same_stem(world: World) -> None:
        Image.open(world.data / "plain3.png").save(world.data / "image.bmp")
        world.write(test=[world.items[0], {**world.items[3], "image": "image.bmp"}])

    predict = ("predict",)
    return [
        Setting(kind, "no file", lambda world: (world.data / "dataset.json").unlink(), "dataset.json"),
        Setting(kind, "empty file", text(""), "dataset.json", ALL),
        Setting(kind, "no JSON", text("training: image.png"), "dataset.json"),
        Setting(kind, "a list", text("[]"), "dataset.json"),
        Setting(kind, "Latin-1", text('{"training": ["\u00e9.png"]}', "latin-1"), "dataset.json"),
        Setting(kind, "a doubled key", text('{"training": [], "training": []}'), "training"),
        Setting(kind, "NaN in JSON", text('{"training": NaN}'), "training"),
        Setting(kind, "a byte order mark", lambda world: world.write() or _with_mark(world)),
        Setting(kind, "no validation", split(validation=None), "", LABELED),
        Setting(kind, "empty training", split(training=[]), "training", ALL),
        Setting(kind, "empty test", split(test=[]), "test", ALL, predict),
        Setting(kind, "a split that is a string", split(training="image.png"), "training"),
        Setting(kind, "an item that is a number", split(training=[3]), "item 0", ALL),
        Setting(kind, "an item that is null", split(training=[None]), "item 0"),
        Setting(kind, "an item without image", split(training=[{"label": "label.png"}]), "image"),
        Setting(kind, "an item without label", item(label=None), "label"),
        Setting(kind, "a label that is a number", item(label=3), "3 is no file name", ("segmentation",), ("train", "evaluate")),
        Setting(kind, "an image that is true", item(image=True), "image True", ALL, RUNS),
        Setting(kind, "names alone for inference", bare_names, "", ALL, predict),
        Setting(kind, "names alone for training", split(training=["image.png", "plain1.png"]), "label"),
        Setting(kind, "an image twice", lambda world: world.write(training=[world.items[0], world.items[0], world.items[1]])),
        Setting(kind, "one training image", lambda world: world.write(training=[world.items[0]]), "", ALL),
        Setting(kind, "a patient in two splits", crossing("p7", "p7"), "p7", ALL),
        Setting(kind, "P7 and p7", crossing("P7", "p7"), "p7", ALL),
        Setting(kind, "' p7' and 'p7'", crossing(" p7", "p7"), "p7"),
        Setting(kind, "1 and 1.0", crossing(1, 1.0), "1"),
        Setting(kind, "'1' and 1", crossing("1", 1), "1"),
        Setting(kind, "a file in two splits", lambda world: world.write(validation=[{**world.items[1], "patient": "q"}]), "plain1.png"),
        Setting(kind, "a copy in two splits", same_bytes(shutil.copy), "plain2.png", ALL),
        Setting(kind, "a link in two splits", same_bytes(lambda a, b: os.symlink(a, b)), "plain2.png"),
        Setting(kind, "a hard link in two splits", same_bytes(os.link), "plain2.png"),
        Setting(kind, "patients of some items only", lambda world: world.changed(patient=None), "", ("segmentation",)),
        Setting(kind, "absolute paths", lambda world: world.changed(image=str(world.data / "image.png")), "", ALL, RUNS),
        Setting(kind, "./image.png", item(image="./image.png"), "", ALL, RUNS),
        Setting(kind, "a folder with a point", moved("a.b/c.png")),
        Setting(kind, "composed name, decomposed on disk", lambda world: world.changed(
            image=unicodedata.normalize("NFC", copied(world, unicodedata.normalize("NFD", "\u00fc.png")))), ""),
        Setting(kind, "backslashes", lambda world: (copied(world, "a/b.png"), world.changed(image="a\\b.png"))[1], "b.png"),
        Setting(kind, "upper case of the name", item(image="IMAGE.PNG"), "IMAGE.PNG"),
        Setting(kind, "origin looks like a file", item(origin="scanner/export.png", source="site-a.dcm", note="x.nii"), "", ALL, RUNS),
        Setting(kind, "unknown keys", item(comment="x", when=3, inner={"a": [1]}), "", ALL, RUNS),
        Setting(kind, "../other/x.png", outside, "", ("segmentation", "enhancement"), predict, stays_inside),
        Setting(kind, "one stem, two types", same_stem, "image.bmp", ("segmentation",), predict),
        Setting(kind, "class missing", item(**{"class": None}), "class", ("classification",)),
        Setting(kind, "class 1.5", item(**{"class": 1.5}), "class", ("classification",)),
        Setting(kind, "class 'benign'", item(**{"class": "benign"}), "benign", ("classification",)),
        Setting(kind, "class 2 of 2", item(**{"class": 2}), "class", ("classification",)),
        Setting(kind, "class true", item(**{"class": True}), "class", ("classification",)),
        Setting(kind, "class -1", item(**{"class": -1}), "class", ("classification",)),
        Setting(kind, "one class alone", lambda world: world.write(training=[world.items[0]]), "", ("classification",)),
        Setting(kind, "frame 7 of a still", item(frame=7), ""),
        Setting(kind, "frame 'last'", item(frame="last"), "image.png", ALL),
        Setting(kind, "frame 1.5", item(frame=1.5), "image.png"),
        Setting(kind, "spacing 0", item(spacing=0), "spacing"),
        Setting(kind, "spacing -0.1", item(spacing=-0.1), "spacing"),
        Setting(kind, "spacing 'fine'", item(spacing="fine"), "spacing"),
        Setting(kind, "spacing of three axes", item(spacing=[0.1, 0.1, 0.1]), "spacing"),
        Setting(kind, "full_scale 0", item(full_scale=0), "full_scale"),
        Setting(kind, "full_scale 'white'", item(full_scale="white"), "full_scale"),
        Setting(kind, "dataset_dir missing", lambda world: {"dataset_dir": str(world.folder / "gone")}, "gone", ALL, RUNS),
        Setting(kind, "dataset_dir is a file", lambda world: {"dataset_dir": str(world.data / "image.png")}, "image.png", ALL, RUNS),
        Setting(kind, "datalist missing", lambda world: {"datalist": str(world.data / "gone.json")}, "gone.json", ALL, RUNS),
        Setting(kind, "datalist is a folder", lambda world: {"datalist": str(world.data)}, "data", ALL, RUNS),
        Setting(kind, "datalist is an image", lambda world: {"datalist": str(world.data / "image.png")}, "image.png"),
    ]  # fmt: skip


def _with_mark(world: World) -> None:
    file = world.data / "dataset.json"
    file.write_text(file.read_text(), encoding="utf-8-sig")


def folders(kind: str = "folders for inference") -> list[Setting]:
    """``dataset_dir`` without datalist: what is taken for an image."""

    def with_files(*names: str) -> Callable[[World], dict[str, Any]]:
        def prepare(world: World) -> dict[str, Any]:
            for name in names:
                (world.data / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(world.data / "plain1.png", world.data / name)
            return _as_folder(world)

        return prepare

    def number(count: int) -> Callable[[World, Path], None]:
        def check(world: World, output: Path) -> None:
            found = [p for p in output.rglob("*_seg.png") if "previews" not in p.parts]
            assert len(found) == count, f"{len(found)} results, not {count}: {sorted(p.name for p in found)[:9]}"

        return check

    def loop(world: World) -> dict[str, Any]:
        (world.data / "sub").mkdir()
        os.symlink(world.data, world.data / "sub" / "again")
        return _as_folder(world)

    def link(world: World) -> dict[str, Any]:
        (world.folder / "far").mkdir()
        shutil.copy(world.data / "plain1.png", world.folder / "far" / "new.png")
        os.symlink(world.folder / "far", world.data / "near")
        return _as_folder(world)

    def results(world: World) -> dict[str, Any]:
        write_text_atomically(world.data / "pred" / ".monai_usfm_results", "")
        shutil.copy(world.data / "label.png", world.data / "pred" / "image_seg.png")
        return _as_folder(world)

    def inside(world: World) -> dict[str, Any]:
        return {**_as_folder(world), "output_dir": str(world.data / "out")}

    def bad(*names: str) -> Callable[[World], dict[str, Any]]:
        def prepare(world: World) -> dict[str, Any]:
            for name in names:
                (world.data / name).write_bytes(b"damaged")
            return _as_folder(world)

        return prepare

    def listed(count: int) -> Callable[[World, Path], None]:
        def check(world: World, output: Path) -> None:
            number(9)(world, output)
            rows = (output / "failed.csv").read_text().splitlines()[1:]
            assert len(rows) == count, rows

        return check

    def report(world: World) -> dict[str, Any]:
        import numpy as np

        ds = ultrasound(np.zeros((4, 4), np.uint8), SOPClassUID="1.2.840.10008.5.1.4.1.1.88.11", Modality="SR")
        del ds.PixelData
        ds.save_as(world.data / "report.dcm")
        (world.data / "DICOMDIR").write_bytes(bytes(128) + b"DICM" + bytes(100))
        return _as_folder(world)

    def of(name: str, prepare: Callable[[World], dict[str, Any]], check: Any, expect: str = "") -> Setting:
        return Setting(kind, name, prepare, expect, ("segmentation",), ("predict",), check)

    return [
        of("plain", _as_folder, number(9)),
        of("below two folders", with_files("a/b/x.png", "a/c/x.png"), number(11)),
        of("hidden file", with_files(".x.png"), number(9)),
        of("hidden folder", with_files(".cache/x.png"), number(9)),
        of("@eaDir", with_files("@eaDir/x.png", "a/@eaDir/x.png"), number(9)),
        of(".ipynb_checkpoints", with_files(".ipynb_checkpoints/image-checkpoint.png"), number(9)),
        of("__MACOSX", with_files("__MACOSX/._image.png"), number(9)),
        of(".Trash-1000", with_files(".Trash-1000/files/x.png"), number(9)),
        of("thumbnails", with_files(".thumbnails/x.png"), number(9)),
        of("Thumbs.db and .DS_Store", bad("Thumbs.db", ".DS_Store"), number(9)),
        of("a loop of links", loop, number(9)),
        of("a linked folder", link, number(10)),
        of("a folder of results", results, number(9)),
        of("output below the images", inside, None),
        of("a damaged file", bad("damaged.png"), listed(1)),
        of("three damaged files", bad("a.png", "b.nii.gz", "c.dcm"), listed(3)),
        of("text beside images", bad("readme.txt", "table.csv"), number(9)),
        of("a report and a DICOMDIR", report, number(9)),
        of("two forms of one name", with_files(*[unicodedata.normalize(f, "\u00e9.png") for f in ("NFC", "NFD")]), number(11)),
        of("no image", lambda world: {**_as_folder(world), "dataset_dir": str(_made(world.folder / "none"))}, None, "none"),
        of("output is the folder itself", lambda world: {**_as_folder(world), "output_dir": str(world.data)}, None, "output_dir"),
    ]  # fmt: skip


def _as_folder(world: World) -> dict[str, Any]:
    for file in world.data.glob("*.json"):
        file.unlink()
    return {"datalist": None}


def _made(folder: Path) -> Path:
    folder.mkdir()
    return folder


def places(kind: str = "places, disks, resumed runs") -> list[Setting]:
    def file_at(world: World) -> Path:
        (world.folder / "taken").write_text("a file")
        return world.folder / "taken"

    def resumed(**changed: Any) -> Callable[[World], dict[str, Any]]:
        def prepare(world: World) -> dict[str, Any]:
            shutil.copytree(world.trained["segmentation"], world.folder / "output")
            return {"output_dir": str(world.folder / "output"), "resume": True, "max_epochs": 2, **changed}

        return prepare

    def broken(change: Callable[[Path], Any], **changed: Any) -> Callable[[World], dict[str, Any]]:
        def prepare(world: World) -> dict[str, Any]:
            found = resumed(**changed)(world)
            change(world.folder / "output" / "checkpoints" / "last.pt")
            return found

        return prepare

    def killed(world: World) -> dict[str, Any]:
        output = _made(world.folder / "output")
        (output / ".999999999.model.pt").write_bytes(b"half")
        return {"output_dir": str(output)}

    def swept(world: World, output: Path) -> None:
        assert not (output / ".999999999.model.pt").exists(), "the temporary of a killed run is still there"

    def two_epochs(world: World, output: Path) -> None:
        rows = (output / "metrics.csv").read_text().splitlines()
        assert [row.split(",")[0] for row in rows[1:]] == ["1", "2"], rows

    def more_images(world: World) -> dict[str, Any]:
        found = resumed()(world)
        world.write(training=[*world.items[:2], world.items[3]])
        return {**found, "batch_size": 1}

    return [
        Setting(kind, "output_dir is a file", lambda world: {"output_dir": str(file_at(world))}, "taken", ALL, RUNS),
        Setting(kind, "output_dir below a file", lambda world: {"output_dir": str(file_at(world) / "x")}, "taken", ALL, RUNS),
        Setting(kind, "output_dir below /proc", lambda world: {"output_dir": "/proc/none"}, "/proc/none", ALL, RUNS),
        Setting(kind, "export_path below a file", lambda world: {"export_path": str(file_at(world) / "m.pt")}, "taken", ALL),
        Setting(kind, "export_path is a folder", lambda world: {"export_path": str(_made(world.folder / "dir"))}, "dir"),
        Setting(kind, "export_path below /proc", lambda world: {"export_path": "/proc/m.pt"}, "/proc"),
        Setting(kind, "ckpt_dir is a file", lambda world: {"ckpt_dir": str(file_at(world))}, "taken", ALL),
        Setting(kind, "output_dir with a space", lambda world: {"output_dir": str(world.folder / "my output")}, "", ALL),
        Setting(kind, "what a killed run left", killed, "", ("segmentation",), ("train",), swept),
        Setting(kind, "resume", resumed(), "", ("segmentation",), ("train",), two_epochs),
        Setting(kind, "resume with nothing there", lambda world: {"resume": True}, "", ALL),
        Setting(kind, "resume, nothing left to train", resumed(max_epochs=1)),
        Setting(kind, "resume with another rate", resumed(learning_rate=0.5), "learning_rate"),
        Setting(kind, "resume with another seed", resumed(seed=3), "seed"),
        Setting(kind, "resume with another decay", resumed(weight_decay=0.5), "weight_decay"),
        Setting(kind, "resume with other batches", resumed(batch_size=1), "batch_size"),
        Setting(kind, "resume with other images", more_images, "last.pt"),
        Setting(kind, "resume anyway", resumed(learning_rate=0.5, resume_anyway=True), "", ("segmentation",), ("train",), two_epochs),
        Setting(kind, "resume from an empty file", broken(lambda file: file.write_bytes(b"")), "last.pt"),
        Setting(kind, "resume from text", broken(lambda file: file.write_text("x" * 100)), "last.pt"),
        Setting(kind, "resume from a cut file", broken(lambda file: file.write_bytes(file.read_bytes()[:5000])), "last.pt"),
        Setting(kind, "resume from plain weights", broken(lambda file: shutil.copy(file.with_name("best.pt"), file)), "last.pt"),
    ]  # fmt: skip


def all_settings() -> list[Setting]:
    return [*options(), *weights(), *lists(), *folders(), *places()]
