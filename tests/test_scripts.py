# Copyright (c) monai_usfm contributors
# SPDX-License-Identifier: Apache-2.0
"""Scripts as a user runs them, on data made here; those with a test file of their own are not here."""

from __future__ import annotations

import csv
import json
import re
import runpy
import shutil
import subprocess
import sys
import types
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.bundle import ConfigParser, run
from monai.transforms import Resize
from PIL import Image
from scipy.ndimage import gaussian_filter

from monai_usfm import read_card, save_network
from monai_usfm.evaluation import NetworkSpec
from monai_usfm.networks import UltrasoundClassifier, UltrasoundSegmenter, usfm_vit

SIZE = 32
TINY = {"network_size": "tiny", "img_size": SIZE}


@pytest.fixture
def script(repository: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., int | str | None]:
    """Runs a script in this process; what it exits with."""

    def call(name: str, *arguments: object) -> int | str | None:
        monkeypatch.setattr(sys, "argv", [name, *map(str, arguments)])
        try:
            runpy.run_path(str(repository / "scripts" / f"{name}.py"), run_name="__main__")
        except SystemExit as end:
            return end.code
        return 0

    return call


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two classes, dark and bright tissue with a brighter disc as label; each patient has two images."""
    folder = tmp_path_factory.mktemp("dataset")
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:40, :40]
    lists: dict[str, list[dict]] = {}
    for section, count in (("training", 12), ("validation", 4), ("test", 8)):
        lists[section] = []
        for i in range(count):
            kind = i // 2 % 2
            disc = (y - rng.integers(12, 28)) ** 2 + (x - rng.integers(12, 28)) ** 2 < 60
            values = (60, 120)[kind] + 8 * gaussian_filter(rng.normal(size=(40, 40)), 1) / 0.28 + 60 * disc
            names = f"{section}_{i}.png", f"{section}_{i}_mask.png"
            Image.fromarray(values.clip(0, 240).astype(np.uint8)).save(folder / names[0])
            Image.fromarray(disc.astype(np.uint8) * 255).save(folder / names[1])
            patient = f"{section}-{i // 2}"
            lists[section].append({"image": names[0], "label": names[1], "class": kind, "patient": patient})
    (folder / "dataset.json").write_text(json.dumps(lists))
    return folder


def rows(path: Path) -> list[dict[str, str]]:
    with open(path, newline="", encoding="utf-8") as stream:
        return list(csv.DictReader(stream))


def cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip().strip("|").split("|")]


# score_regions


def test_a_blur_is_found_to_be_a_blur_and_contrast_is_that_of_the_pixels(script, tmp_path, capsys):
    y, x = np.mgrid[:80, :90]
    values = 0.5 + 0.09 * np.random.default_rng(0).normal(size=y.shape)
    values[(y - 25) ** 2 + (x - 30) ** 2 < 200] -= 0.3
    values = values.clip(0, 1)
    for name, shown in (("image", values), ("blurred", gaussian_filter(values, 1.5, mode="nearest"))):
        Image.fromarray((65535 * shown).astype(np.uint16)).save(tmp_path / f"{name}.png")
    files = ["--image", tmp_path / "image.png", "--enhanced", tmp_path / "blurred.png"]
    assert script("score_regions", *files, "--cyst", "25,30,8", "--background", "55,60,12") == 0
    _, _, before, after, blur = (cells(line) for line in capsys.readouterr().out.strip().splitlines())
    # MONAI integrates the Gaussian over a pixel, which adds 1/12 to its variance
    assert float(re.search(r"sigma (\S+)", blur[0])[1]) == pytest.approx((1.5**2 - 1 / 12) ** 0.5, abs=0.01)
    assert [float(v) for v in blur[1:]] == pytest.approx([float(v) for v in after[1:]], rel=0.02)
    inside, outside = values[(y - 25) ** 2 + (x - 30) ** 2 <= 64], values[(y - 55) ** 2 + (x - 60) ** 2 <= 144]
    wanted = abs(inside.mean() - outside.mean()) / np.hypot(inside.std(), outside.std())
    assert float(before[1]) == pytest.approx(wanted, abs=0.002)
    assert float(after[1]) > 2 * float(before[1])


def test_regions_outside_the_image_and_other_sizes_are_refused(script, tmp_path, capsys):
    for name, size in (("a", (40, 40)), ("b", (40, 41))):
        Image.fromarray(np.full(size, 90, np.uint8)).save(tmp_path / f"{name}.png")
    files = ["--image", tmp_path / "a.png", "--enhanced"]
    regions = ["--background", "10,10,5", "--cyst"]
    assert "30,38,5 is not inside the image of 40 x 40" in script(
        "score_regions", *files, tmp_path / "a.png", *regions, "30,38,5"
    )
    assert script("score_regions", *files, tmp_path / "b.png", *regions, "20,20,5") == 2
    assert "is (40, 40)" in capsys.readouterr().err
    assert script("score_regions", *files, tmp_path / "a.png", *regions, "20,20") == 2
    assert "'20,20' is not ROW,COLUMN,RADIUS" in capsys.readouterr().err


# audit_shortcuts


class SeesWhite(torch.nn.Module):
    """Calls an image positive when it holds pure white, which only burnt-in marks are."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        white = (x.flatten(1).amax(1) > 0.99).float()
        return torch.stack([torch.zeros_like(white), 8 * white - 4], 1)


def test_the_audit_of_a_classifier_that_reads_marks(script, dataset, tmp_path):
    torch.jit.script(SeesWhite()).save(str(tmp_path / "model.ts"))
    arguments = ["--model", tmp_path / "model.ts", "--datalist", dataset / "dataset.json", "--size", 96, 96]
    assert script("audit_shortcuts", *arguments, "--output", tmp_path / "audit", "--device", "cpu") == 0
    found = {row["alteration"]: row for row in rows(tmp_path / "audit" / "shortcuts.csv")}
    assert float(found["text"]["flips"]) == 1 and float(found["mirrored"]["flips"]) == 0
    assert found["text"]["images"] == "8"
    # it calls all images class 0, half of which are: F1 of 2/3 and of 0
    assert float(found["text"]["macro_f1_before"]) == pytest.approx(1 / 3, abs=1e-6)
    assert "| text | 8 | 100.0 %" in (tmp_path / "audit" / "shortcuts.md").read_text()
    assert Image.open(tmp_path / "audit" / "shortcuts.png").width > 96
    with pytest.raises(ValueError, match=r"none"):
        script("audit_shortcuts", *arguments, "--output", tmp_path / "audit", "--section", "none")


# audit_robustness


def test_the_robustness_of_a_bundle_is_that_of_its_network(script, repository, dataset, tmp_path, capsys):
    torch.manual_seed(0)
    network = UltrasoundSegmenter(usfm_vit(**TINY, pos_embed="relative", layer_scale=0.1), 2)
    save_network(tmp_path / "model.pt", network, half=False)
    arguments = [repository / "bundles" / "usfm_segmentation", "--datalist", dataset / "dataset.json", "--limit", 3]
    arguments += ["--device", "cpu", "--output", tmp_path / "audit"]
    assert script("audit_robustness", *arguments, "--checkpoint", tmp_path / "model.pt") == 0
    found = {row["change"]: row for row in rows(tmp_path / "audit" / "robustness.csv")}
    network.eval()
    scores = []
    for i in (0, 3, 6):  # evenly chosen of eight
        image = torch.from_numpy(np.array(Image.open(dataset / f"test_{i}.png"))) / 255
        label = torch.from_numpy(np.array(Image.open(dataset / f"test_{i}_mask.png"))) > 0
        with torch.no_grad():
            logits = network(Resize((SIZE, SIZE), mode="bilinear", anti_aliasing=True)(image[None]).as_tensor()[None])
        # as inference.json: the probabilities are put back on the grid of the file
        mask = torch.nn.functional.interpolate(logits.softmax(1), size=(40, 40), mode="bilinear").argmax(1)[0] > 0
        scores.append((2 * (mask & label).sum() / (mask.sum() + label.sum())).item())
    assert found["unchanged"]["images"] == "3"
    assert float(found["unchanged"]["dice"]) == pytest.approx(np.mean(scores), abs=1e-3)
    assert 0 < np.mean(scores) < 1
    assert {"margins all around", "speckle"} < set(found)
    assert "| unchanged | 3 |" in (tmp_path / "audit" / "robustness.md").read_text()
    assert Image.open(tmp_path / "audit" / "robustness.png").width > 500
    assert "no weights at" in script("audit_robustness", *arguments, "--checkpoint", tmp_path / "none.pt")
    volumes = repository / "bundles" / "usfm_segmentation" / "models" / "simulated_volumes.pt"
    assert "2D networks" in script("audit_robustness", *arguments, "--checkpoint", volumes)


def test_the_robustness_of_a_classifier_is_that_of_its_classes(script, repository, dataset, tmp_path):
    torch.manual_seed(0)
    encoder = usfm_vit(**TINY, pos_embed="relative", layer_scale=0.1)
    save_network(tmp_path / "model.pt", UltrasoundClassifier(encoder, 2, pool="pyramid"))
    bundle, datalist = repository / "bundles" / "usfm_classification", dataset / "dataset.json"
    arguments = [bundle, "--checkpoint", tmp_path / "model.pt"]
    arguments += ["--device", "cpu", "--output", tmp_path / "audit", "--datalist"]
    assert script("audit_robustness", *arguments, datalist) == 0
    found = {row["change"]: row for row in rows(tmp_path / "audit" / "robustness.csv")}
    assert found["unchanged"]["images"] == "8" and found["unchanged"]["flips"] == "0.0"
    assert 0 <= float(found["closer"]["auc"]) <= 1
    assert "| change | images | macro-F1 |" in (tmp_path / "audit" / "robustness.md").read_text()
    items = json.loads(datalist.read_text())["test"]
    other = tmp_path / "other.json"
    other.write_text(json.dumps({"test": [{**items[0], "class": None}, items[1]]}))
    ending = script("audit_robustness", *arguments, other, "--dataset_dir", dataset)
    assert "other.json: 1 items lack 'class'" in ending and items[0]["image"] in ending


# probe, label_efficiency


def test_a_random_encoder_tells_dark_from_bright(script, dataset, tmp_path, capsys):
    arguments = ["--datalist", dataset / "dataset.json", "--size", SIZE, SIZE, "--output", tmp_path, "--device", "cpu"]
    assert script("probe", *arguments, "--encoders", "random", "--probes", "linear", "dense") == 0
    found = {(row["probe"], row["metric"]): row for row in rows(tmp_path / "probes.csv")}
    assert float(found["linear", "auc"]["value"]) == 1.0
    assert {row["patients"] for row in found.values()} == {"4"}
    assert all(float(r["low"]) <= float(r["value"]) <= float(r["high"]) for r in found.values())
    assert 0 <= float(found["dense", "dice"]["value"]) <= 1
    assert (tmp_path / "probes.png").is_file() and "| random | linear | auc | 1.000" in (
        tmp_path / "probes.md"
    ).read_text()
    assert script("probe", *arguments, "--encoders", "ours") == 2
    assert "--encoders ours: write name=weights, or random." in capsys.readouterr().err


def test_every_network_of_a_curve_has_its_cell(script, dataset, tmp_path):
    arguments = ["--task", "segmentation", "--datalist", dataset / "dataset.json", "--size", SIZE, SIZE, "--steps", 2]
    arguments += ["--batch_size", 4, "--fractions", 0.5, 1, "--seeds", 0, "--baselines", "unet", "--device", "cpu"]
    assert script("label_efficiency", *arguments, "--output", tmp_path) == 0
    found = {(row["initialisation"], row["fraction"]): row for row in rows(tmp_path / "cells.csv")}
    assert set(found) == {(name, share) for name in ("scratch", "unet") for share in ("0.5", "1.0")}
    assert [found["unet", share]["images"] for share in ("0.5", "1.0")] == ["8", "12"]  # 2 of 3 patients
    assert (tmp_path / "label_efficiency.png").is_file()
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "cells").iterdir()}
    assert script("label_efficiency", *arguments, "--output", tmp_path) == 0  # nothing is computed anew
    assert before == {path: path.stat().st_mtime_ns for path in (tmp_path / "cells").iterdir()}
    with pytest.raises(ValueError, match=r"seed0\.json"):  # other conditions must not stand in one table
        script("label_efficiency", *arguments, "--output", tmp_path, "--learning_rate", "0.1")


def test_a_baseline_of_a_curve_starts_from_weights(script, dataset, tmp_path):
    torch.save(NetworkSpec("unet").build("segmentation", 2, (SIZE, SIZE)).state_dict(), tmp_path / "unet.pt")
    arguments = ["--task", "segmentation", "--datalist", dataset / "dataset.json", "--size", SIZE, SIZE, "--steps", 1]
    arguments += ["--batch_size", 4, "--fractions", 1, "--seeds", 0, "--device", "cpu", "--output", tmp_path / "out"]
    weights = f"unet={tmp_path / 'unet.pt'}"
    assert script("label_efficiency", *arguments, "--baselines", "unet", weights) == 0
    found = {row["initialisation"]: row["weights"] for row in rows(tmp_path / "out" / "cells.csv")}
    assert set(found) == {"scratch", "unet", "unet, pretrained"} and found["unet"] == ""
    assert found["unet, pretrained"].startswith("sha256:")
    assert "'unet, pretrained' twice" in script("label_efficiency", *arguments, "--baselines", weights, weights)


# calibrate


def test_the_temperature_of_a_network_that_says_one_thing(script, dataset, copy_bundle, tmp_path, capsys):
    root = Path(shutil.copytree(copy_bundle("usfm_segmentation"), tmp_path / "usfm_segmentation"))
    arguments = [root, "--dataset_dir", dataset, "--set", "device=cpu", "amp=fp32"]
    assert "no weights at" in script("calibrate", *arguments)
    net = UltrasoundSegmenter(usfm_vit(**TINY), 2)
    with torch.no_grad():
        net.head.to_pixels.weight.zero_()
        net.head.to_pixels.bias.copy_(torch.tensor([5.0, 0.0]))
    (root / "models").mkdir(exist_ok=True)
    save_network(root / "models" / "model.pt", net)
    assert script("calibrate", *arguments) == 0
    # the likelihood of equal probabilities p for all pixels is highest where p is the share of the foreground
    masks = [np.asarray(Image.open(dataset / f"validation_{i}_mask.png").resize((SIZE, SIZE), 0)) for i in range(4)]
    share = (np.stack(masks) > 0).mean()
    wanted = 5 / np.log((1 - share) / share)
    assert json.loads(capsys.readouterr().out)["temperature"] == pytest.approx(wanted, rel=0.03)
    assert read_card(root / "models" / "model.pt")["temperature"] == pytest.approx(wanted, rel=0.03)


# pictures


def test_picture_of_beams_shows_phantoms_inside_their_sector_only(script, repository, tmp_path):
    assert script("picture_beam", tmp_path) == 0
    for name in ("beam", "annotations"):
        assert np.asarray(Image.open(tmp_path / f"{name}.png").convert("L")).std() > 20
    module = runpy.run_path(str(repository / "scripts" / "picture_beam.py"))
    image = module["phantom"](module["GEOMETRIES"]["convex"], seed=1)[0].numpy()
    y, x = np.mgrid[: image.shape[0], : image.shape[1]]
    radius, angle = np.hypot(y + 60, x - 170), np.arctan2(x - 170, y + 60)
    away = (radius < 73) | (radius > 312) | (abs(angle) > 0.57)
    assert image[away].max() == 0
    assert image[(radius > 80) & (radius < 300) & (abs(angle) < 0.5)].mean() > 0.3


def test_pictures_of_transforms_begin_with_the_scene_itself(script, repository, tmp_path):
    assert script("picture_transforms", tmp_path) == 0
    module = runpy.run_path(str(repository / "scripts" / "picture_transforms.py"))
    scale = module["SCALE"]
    geometry = module["BeamGeometry"]("convex", (-78 * scale, 159.5 * scale), (92 * scale, 362 * scale), (-0.47, 0.47))
    scene = 255 * module["simulate"](geometry)[0][0].numpy()
    height, width = module["SIZE"]
    for name, columns, lines in (("acquisition", 3, 2), ("artifacts", 3, 2), ("appearance", 4, 2), ("pipelines", 4, 2)):
        shown = np.asarray(Image.open(tmp_path / f"{name}.png").convert("L"), np.float32)
        assert shown.shape == (lines * (height + 18), columns * width)
        tiles = shown.reshape(lines, height + 18, columns, width).swapaxes(1, 2)[:, :, 18:]
        if name != "pipelines":
            assert abs(tiles[0, 0] - scene).max() <= 255 / 60 + 1
            assert all(abs(tile - scene).mean() > 0.05 for tile in tiles.reshape(-1, height, width)[1:])
    assert (tmp_path / "probe.png").is_file()


SLOW_PICTURE = pytest.param("segmentation", marks=pytest.mark.slow)


@pytest.mark.parametrize("picture", ["pretraining", SLOW_PICTURE, "simulated", "classification", "enhancement"])
def test_pictures_of_bundles_hold_test_images_at_equal_distances(script, repository, copy_bundle, tmp_path, picture):
    bundle, stem = ("segmentation", "simulated") if picture == "simulated" else (picture, "example")
    root = copy_bundle(f"usfm_{bundle}").parent
    if picture in ("simulated", "pretraining"):
        weights = Path(f"usfm_{bundle}", "models", "simulated.pt" if picture == "simulated" else "mae.pt")
        shutil.copy(repository / "bundles" / weights, root / weights)
    (example := root / f"usfm_{bundle}" / "docs" / f"{stem}.png").unlink()
    greys = {}
    for number, name in enumerate(("busbra", "fetal_head_hc18")):
        (tmp_path / name).mkdir()
        items = []
        for i in range(8):
            grey = greys[name, i] = 40 + 20 * i + 7 * number
            Image.fromarray(np.full((160, 190), grey, np.uint8)).save(tmp_path / name / f"{name}_{i}.png")
            Image.fromarray(np.zeros((160, 190), np.uint8)).save(tmp_path / name / f"{name}_{i}_mask.png")
            items.append({"image": f"{name}_{i}.png", "label": f"{name}_{i}_mask.png", "class": i % 2})
        (tmp_path / name / "dataset.json").write_text(json.dumps({"test": items}))
    torch.manual_seed(0)
    assert script("picture_bundles", tmp_path, "--pictures", picture, "--root", root, "--count", 2) == 0
    assert example.stat().st_size <= 150_000
    shown = set(np.unique(np.asarray(Image.open(example).convert("L"))).tolist())
    # of two, the images at a quarter and three quarters; of those of class 0 (0, 2, 4, 6) and class 1 in turn
    second = "fetal_head_hc18" if picture in ("pretraining", "simulated", "enhancement") else "busbra"
    wanted = {greys["busbra", 2], greys[second, 7]}
    assert all(min(abs(grey - value) for value in shown) <= 3 for grey in wanted)


# deploy_app


class Port:
    """One side of an operator of MONAI Deploy: gives what it holds, keeps what it is given."""

    def __init__(self, value=None):
        self.value = value

    def receive(self, name):
        return self.value

    def emit(self, value, name):
        self.value = value


class Held:
    """Stands for the SDK's Image: an array and its metadata."""

    def __init__(self, array, metadata):
        self.array, self.meta = array, metadata

    def asnumpy(self):
        return self.array

    def metadata(self):
        return self.meta


@pytest.fixture
def application(repository, monkeypatch) -> dict:
    """The application's operators, on a stand-in for the SDK: its Operator and Image are all that they need of it."""
    base = type("Base", (), {"__init__": lambda self, *args, **kwargs: None})
    names = {
        "monai.deploy": {},
        "monai.deploy.conditions": {"CountCondition": base},
        "monai.deploy.core": {
            **dict.fromkeys(("AppContext", "Application", "Fragment", "IOType", "Operator", "OperatorSpec"), base),
            "Image": Held,
        },
        "monai.deploy.operators": {},
        "monai.deploy.operators.monai_bundle_inference_operator": dict.fromkeys(
            ("BundleConfigNames", "IOMapping", "MonaiBundleInferenceOperator", "get_bundle_config"), base
        ),
    }
    for name, content in names.items():
        module = types.ModuleType(name)
        vars(module).update(content)
        monkeypatch.setitem(sys.modules, name, module)
    return runpy.run_path(str(repository / "scripts" / "deploy_app.py"))


def test_deploy_reads_and_writes_a_volume_on_its_grid(application, tmp_path):
    values = np.random.default_rng(0).integers(0, 255, (5, 6, 7), np.uint8)
    affine = np.array([[0.0, -0.5, 0, 3], [0.4, 0, 0, -2], [0, 0, 0.7, 9], [0, 0, 0, 1]])
    nib.save(nib.Nifti1Image(values, affine), tmp_path / "a.nii.gz")
    port = Port()
    application["FileToImage"](None, path=tmp_path / "a.nii.gz").compute(None, port, None)
    read = port.value.asnumpy().reshape(values.shape)
    np.testing.assert_array_equal(read, values)
    # what the SDK hands on: axes (z, y, x), the metadata of the input
    result = Held(read.T, port.value.metadata())
    application["ResultToFile"](None, folder=tmp_path / "out").compute(Port(result), None, None)
    written = nib.load(tmp_path / "out" / "pred.nii.gz")
    np.testing.assert_array_equal(np.asarray(written.dataobj), values)
    np.testing.assert_allclose(written.affine, affine, atol=1e-6)


def test_deploy_reads_and_writes_a_picture_upright(application, tmp_path):
    values = np.arange(48, dtype=np.uint8).reshape(6, 8)
    Image.fromarray(values).save(tmp_path / "a.png")
    port = Port()
    application["FileToImage"](None, path=tmp_path / "a.png").compute(None, port, None)
    read = port.value.asnumpy().reshape(8, 6)  # as MONAI's readers give it: (x, y)
    result = Held(read, port.value.metadata())
    application["ResultToFile"](None, folder=tmp_path).compute(Port(result), None, None)
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "pred.png")), values)


def test_deploy_writes_probabilities_and_embeddings(application, tmp_path):
    sink = application["ResultToFile"](None, folder=tmp_path)
    found = {"result": ["a"], "probabilities": np.array([0.25, 0.75], np.float32)}
    sink.compute(Port(found), None, None)
    sink.compute(Port(np.arange(3.0)), None, None)
    assert json.loads((tmp_path / "pred.json").read_text()) == {"probabilities": [0.25, 0.75]}
    assert np.load(tmp_path / "pred.npy").tolist() == [0, 1, 2]


def test_deploy_segments_as_the_bundle_does(copy_bundle, repository, tmp_path):
    pytest.importorskip("monai.deploy", reason="the MONAI Deploy SDK is not installed")
    root = Path(shutil.copytree(copy_bundle("usfm_segmentation"), tmp_path / "usfm_segmentation"))
    config = root / "configs" / "inference.json"
    torch.manual_seed(0)
    network = ConfigParser(ConfigParser.load_config_file(config)).get_parsed_content("network_def")
    (root / "models").mkdir(exist_ok=True)
    torch.save(network.state_dict(), root / "models" / "model.pt")
    (tmp_path / "images").mkdir()
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 60), np.uint8)).save(tmp_path / "images" / "a.png")
    run(config_file=str(config), bundle_root=str(root), dataset_dir=str(tmp_path / "images"), output_dir=str(tmp_path))
    command = [sys.executable, str(repository / "scripts" / "deploy_app.py"), "-i", str(tmp_path / "images" / "a.png")]
    done = subprocess.run([*command, "-o", str(tmp_path / "out"), "-m", str(root)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    wanted = np.asarray(Image.open(tmp_path / "a_seg.png"))
    assert 0.01 < wanted.mean() < 0.99
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "out" / "pred.png")), wanted)
