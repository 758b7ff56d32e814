# Copyright (c) monai_usfm contributors
# SPDX-License-Identifier: Apache-2.0
"""Verbs that measure trained weights or hand them on, on images made here."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from monai.transforms import Resize
from PIL import Image
from scipy.ndimage import gaussian_filter

from monai_usfm import build_network, load_network, read_card, save_network
from monai_usfm.cards import card_path
from monai_usfm.cli import main
from tests.tables import rows

SIZE = 32


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two classes, dark and bright tissue with a brighter disc as label; each patient has two images."""
    folder = tmp_path_factory.mktemp("dataset")
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:40, :40]
    lists: dict[str, list[dict]] = {}
    for split, count in (("training", 12), ("validation", 4), ("test", 8)):
        lists[split] = []
        for i in range(count):
            kind = i // 2 % 2
            disc = (y - rng.integers(12, 28)) ** 2 + (x - rng.integers(12, 28)) ** 2 < 60
            values = (60, 120)[kind] + 8 * gaussian_filter(rng.normal(size=(40, 40)), 1) / 0.28 + 60 * disc
            names = f"{split}_{i}.png", f"{split}_{i}_mask.png"
            Image.fromarray(values.clip(0, 240).astype(np.uint8)).save(folder / names[0])
            Image.fromarray(disc.astype(np.uint8) * 255).save(folder / names[1])
            patient = f"{split}-{i // 2}"
            lists[split].append({"image": names[0], "label": names[1], "class": kind, "patient": patient})
    (folder / "dataset.json").write_text(json.dumps(lists))
    return folder


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Untrained weights with a card, by task."""
    folder, files = tmp_path_factory.mktemp("weights"), {}
    for task in ("segmentation", "classification"):
        torch.manual_seed(0)
        files[task] = folder / f"{task}.pt"
        save_network(files[task], build_network(task, spatial_size=[SIZE, SIZE], num_classes=2), half=False)
    return files


def call(*arguments: object) -> int:
    return main([str(argument) for argument in arguments])


def test_the_robustness_of_weights_is_that_of_their_network(dataset, weights, tmp_path):
    arguments = ["--datalist", dataset / "dataset.json", "--limit", 3, "--device", "cpu", "--output_dir", tmp_path]
    assert call("audit", "--checkpoint", weights["segmentation"], *arguments) == 0
    found = {row["change"]: row for row in rows(tmp_path / "robustness.csv")}
    network, scores = load_network(weights["segmentation"]), []
    for i in (0, 4, 7):  # evenly chosen of eight
        image = torch.from_numpy(np.array(Image.open(dataset / f"test_{i}.png"))) / 255
        label = torch.from_numpy(np.array(Image.open(dataset / f"test_{i}_mask.png"))) > 0
        with torch.no_grad():
            logits = network(Resize((SIZE, SIZE), mode="bilinear", anti_aliasing=True)(image[None]).as_tensor()[None])
        # as inference.json: the probabilities are put back on the grid of the file
        mask = torch.nn.functional.interpolate(logits.softmax(1), size=(40, 40), mode="bilinear").argmax(1)[0] > 0
        scores.append((2 * (mask & label).sum() / (mask.sum() + label.sum())).item())
    assert found["unchanged"]["images"] == "3"
    assert float(found["unchanged"]["dice"]) == pytest.approx(np.mean(scores), abs=1e-3)
    assert {"margins all around", "speckle"} < set(found)
    assert "| unchanged | 3 |" in (tmp_path / "robustness.md").read_text()
    assert Image.open(tmp_path / "robustness.png").width > 500


@pytest.mark.parametrize("kind", [pytest.param("robustness", marks=pytest.mark.slow), "shortcuts"])
def test_a_classifier_is_audited_on_every_image(dataset, weights, tmp_path, kind):
    arguments = ["--datalist", dataset / "dataset.json", "--device", "cpu", "--output_dir", tmp_path, "--kind", kind]
    assert call("audit", weights["classification"], *arguments) == 0
    table = rows(tmp_path / f"{kind}.csv")
    assert {row["images"] for row in table} <= set("012345678") and table[-1]["images"] == "8"
    assert all(not float(row["images"]) or 0 <= float(row["flips"]) <= 1 for row in table)
    assert (tmp_path / f"{kind}.md").is_file()


def test_an_audit_says_what_it_cannot_take(dataset, weights, tmp_path, capsys):
    arguments = ["--datalist", dataset / "dataset.json", "--output_dir", tmp_path]
    assert call("audit", weights["segmentation"], *arguments, "--kind", "shortcuts") == 1
    assert "is for segmentation of images; here a classification of images is needed" in capsys.readouterr().err
    assert call("audit", weights["segmentation"], *arguments, "--limit", -3) == 1
    assert "--limit must be at least 1" in capsys.readouterr().err
    items = json.loads((dataset / "dataset.json").read_text())["test"]
    other = tmp_path / "other.json"
    wrong = {"1 items lack 'class'": None, "has the class 'benign'": "benign", "has the class 2; expected": 2}
    for message, kind in wrong.items():
        other.write_text(json.dumps({"test": [{**items[0], "class": kind}, items[1]]}))
        assert call("audit", weights["classification"], "--datalist", other, "--dataset_dir", dataset) == 1
        assert message in capsys.readouterr().err


def test_a_random_encoder_tells_dark_from_bright(dataset, tmp_path):
    arguments = ["--datalist", dataset / "dataset.json", "--spatial_size", SIZE, SIZE, "--output_dir", tmp_path]
    assert call("probe", *arguments, "--device", "cpu", "--encoders", "random", "--probes", "linear", "dense") == 0
    found = {(row["probe"], row["metric"]): row for row in rows(tmp_path / "probes.csv")}
    assert float(found["linear", "auc"]["value"]) == 1.0
    assert {row["patients"] for row in found.values()} == {"4"}
    assert all(float(r["low"]) <= float(r["value"]) <= float(r["high"]) for r in found.values())
    assert 0 <= float(found["dense", "dice"]["value"]) <= 1
    assert (tmp_path / "probes.png").is_file()
    assert "| random | linear | auc | 1.000" in (tmp_path / "probes.md").read_text()


def test_every_network_of_a_curve_is_trained_by_the_bundle_and_has_its_cell(dataset, tmp_path, capsys):
    arguments = ["label-efficiency", "--datalist", dataset / "dataset.json", "--fractions", 0.5, "--seeds", 0]
    arguments += ["--steps", 2, "--baselines", "scratch", "unet", "--output_dir", tmp_path]
    arguments += [f"--options.spatial_size=[{SIZE},{SIZE}]", "--options.batch_size=4", "--options.device=cpu"]
    arguments += ["--options.max_epochs=1", "--options.figure_interval=0"]
    assert call(*arguments) == 0
    found = {row["initialization"]: row for row in rows(tmp_path / "cells.csv")}
    assert set(found) == {"scratch", "unet"}
    assert {row["images"] for row in found.values()} == {"8"}  # 2 of 3 patients of each class
    assert {row["steps"] for row in found.values()} == {"2"}
    assert (tmp_path / "board.png").is_file()
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "segmentation" / "cells").iterdir()}
    assert call(*arguments) == 0  # nothing is computed anew
    assert before == {path: path.stat().st_mtime_ns for path in (tmp_path / "segmentation" / "cells").iterdir()}
    assert call(*arguments, "--learning_rate", 0.1) == 1  # other conditions must not stand in one table
    assert "seed0.json" in capsys.readouterr().err


def test_the_temperature_of_a_network_that_says_one_thing_goes_to_its_card(dataset, tmp_path, capsys):
    network = build_network("segmentation", spatial_size=[SIZE, SIZE], num_classes=2)
    with torch.no_grad():
        network.head.to_pixels.weight.zero_()
        network.head.to_pixels.bias.copy_(torch.tensor([5.0, 0.0]))
    save_network(tmp_path / "model.pt", network, half=False, class_names=["background", "disc"])
    arguments = ["--dataset_dir", dataset, "--device", "cpu", "--amp", "fp32"]
    assert call("calibrate", "--checkpoint", tmp_path / "model.pt", *arguments, "--max_epochs", 3) == 0
    assert "these options change nothing here: --max_epochs." in capsys.readouterr().out
    # the likelihood of equal probabilities p for all pixels is highest where p is the share of the foreground
    masks = [np.asarray(Image.open(dataset / f"validation_{i}_mask.png").resize((SIZE, SIZE), 0)) for i in range(4)]
    share = (np.stack(masks) > 0).mean()
    card = read_card(tmp_path / "model.pt")
    assert card["temperature"] == pytest.approx(5 / np.log((1 - share) / share), rel=0.03)
    assert card["calibration"]["samples"] == 4 * SIZE**2
    assert card["class_names"] == ["background", "disc"]


def test_calibration_on_simulated_images_writes_nothing_into_the_bundle(monkeypatch):
    given = {}
    monkeypatch.setattr("monai_usfm.evaluation.calibrate", lambda checkpoint, **options: given.update(options))
    assert call("calibrate", "--checkpoint", "model.pt") == 0
    assert given["output_dir"] == "output/calibration"


def test_the_command_of_the_documentation_calibrates_means_over_flips_and_dropout(
    repository, dataset, weights, tmp_path
):
    text = (repository / "bundles" / "usfm_segmentation" / "docs" / "README.md").read_text()
    option = re.search(r"--validate#inferer \"(\{.*?\}\})\"", text, re.DOTALL).group(1).replace("\\\n", "")
    save_network(tmp_path / "model.pt", load_network(weights["segmentation"]), half=False)
    temperatures = []
    for more in ([], ["--validate#inferer", option]):
        arguments = ["--dataset_dir", dataset, "--device", "cpu", "--amp", "fp32", *more]
        assert call("calibrate", "--checkpoint", tmp_path / "model.pt", *arguments) == 0
        temperatures.append(read_card(tmp_path / "model.pt")["temperature"])
    assert temperatures[0] != temperatures[1] > 0


def test_calibration_reads_masks_as_the_card_says_and_refuses_what_nothing_reads(dataset, weights, tmp_path, capsys):
    network = load_network(weights["segmentation"])
    arguments = ["--checkpoint", tmp_path / "model.pt", "--dataset_dir", dataset, "--device", "cpu", "--amp", "fp32"]
    save_network(tmp_path / "model.pt", network, half=False, label_values=[0, 7])
    assert call("calibrate", *arguments) == 1
    assert "255 stand for no class; expected [0, 7]" in capsys.readouterr().err.splitlines()[-1]
    save_network(tmp_path / "model.pt", network, half=False, label_values=[0, 255])
    before = (tmp_path / "model.json").read_text()
    assert call("calibrate", *arguments, "--lable_values", "[0,255]") == 1
    assert "Did you mean --label_values" in capsys.readouterr().err.splitlines()[-1]
    assert (tmp_path / "model.json").read_text() == before


def test_an_error_in_the_middle_of_an_evaluation_is_told_once(dataset, weights, tmp_path, capsys):
    save_network(tmp_path / "more.pt", load_network(weights["segmentation"]), half=False, label_values=[0, 7])
    arguments = ["--checkpoint", tmp_path / "more.pt", "--dataset_dir", dataset, "--output_dir", tmp_path / "out"]
    assert call("evaluate", *arguments, "--device", "cpu") == 1
    told = capsys.readouterr()
    assert "Traceback" not in told.out + told.err and (told.out + told.err).count("stand for no class") == 1


def test_the_presence_threshold_keeps_the_wanted_share_of_the_images(dataset, weights, tmp_path):
    network = load_network(weights["segmentation"])
    save_network(tmp_path / "model.pt", network, half=False)
    arguments = ["--dataset_dir", dataset, "--device", "cpu", "--amp", "fp32", "--sensitivity", 0.75]
    assert call("calibrate", "--checkpoint", tmp_path / "model.pt", *arguments) == 0
    scores = []
    for i in range(4):
        image = torch.from_numpy(np.asarray(Image.open(dataset / f"validation_{i}.png"), np.float32) / 255)
        pixels = Resize((SIZE, SIZE), mode="bilinear", anti_aliasing=True)(image[None])
        with torch.no_grad():
            logits = network(torch.as_tensor(pixels)[None])[0]
        scores.append((logits[1] - logits[0]).flatten().sort().values[-5:].mean().item())  # 0.5 % of 1024 pixels
    assert read_card(tmp_path / "model.pt")["presence_threshold"] == pytest.approx(sorted(scores)[1], abs=1e-4)


@pytest.mark.filterwarnings("ignore:.*no header tells")
def test_calibration_reads_images_with_the_white_of_the_card(dataset, weights, tmp_path):
    shutil.copytree(dataset, tmp_path / "ten")
    for file in (tmp_path / "ten").glob("*.png"):
        if "mask" not in file.name:  # in ten bits, of which no file tells
            Image.fromarray(np.asarray(Image.open(file)).astype(np.uint16) * 4).save(file)
    fitted = []
    for folder, known in ((dataset, {}), (tmp_path / "ten", {"preprocessing": {"full_scale": 1020}})):
        save_network(tmp_path / "model.pt", load_network(weights["segmentation"]), half=False, **known)
        options = ["--dataset_dir", folder, "--device", "cpu", "--amp", "fp32"]
        assert call("calibrate", "--checkpoint", tmp_path / "model.pt", *options) == 0
        fitted.append(read_card(tmp_path / "model.pt")["temperature"])
    assert fitted[0] == pytest.approx(fitted[1], abs=2e-4)


@pytest.mark.parametrize("ending", ["ts", "pt2", "onnx", "safetensors"])
def test_an_exported_network_gives_what_the_network_gives(weights, tmp_path, capsys, ending):
    if ending == "onnx":
        pytest.importorskip("onnxruntime")
    file = tmp_path / f"model.{ending}"
    assert call("export", weights["segmentation"], file) == 0
    told = capsys.readouterr().out.splitlines()
    assert len(told) == 3 and sum("largest difference" in line for line in told) == 2
    image = torch.rand(5, 1, SIZE, SIZE, generator=torch.Generator().manual_seed(0))
    network = load_network(weights["segmentation"])
    with torch.no_grad():
        wanted = network(image)
        if ending == "ts":
            given = torch.jit.load(file)(image)
        elif ending == "pt2":
            given = torch.export.load(file).module()(image)
        elif ending == "onnx":
            import onnxruntime

            session = onnxruntime.InferenceSession(str(file))
            given = torch.from_numpy(session.run(None, {"image": image.numpy()})[0])
        else:
            from safetensors.torch import load_file

            for parameter in network.parameters():
                parameter.zero_()
            network.load_state_dict(load_file(file))
            given = network(image)
            torch.testing.assert_close(load_network(file)(image), wanted)  # the card is in the file
            (tmp_path / "model.json").write_bytes(card_path(weights["segmentation"]).read_bytes())
            torch.testing.assert_close(load_network(file)(image), wanted)  # and beside it that of other weights
            assert call("pack", file, tmp_path / "packed") == 1
            assert "a bundle holds a .pt file" in capsys.readouterr().err
    torch.testing.assert_close(given, wanted, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(("score", "status"), [(0.899, 0), pytest.param(0.89, 1, marks=pytest.mark.slow)])
def test_an_export_to_8_bits_is_close_and_refused_where_its_score_is_worse(
    dataset, weights, tmp_path, capsys, monkeypatch, score, status
):
    onnx = pytest.importorskip("onnx")
    runtime = pytest.importorskip("onnxruntime")
    # untrained weights have no score worth keeping
    monkeypatch.setattr("monai_usfm.cli.export._scores", lambda *_: ("val_mean_dice", [0.9, score], True))
    file = tmp_path / "model.onnx"
    assert call("export", weights["segmentation"], file, "--calibration", dataset) == status
    told = capsys.readouterr()
    assert "0.9000 in PyTorch" in (told.err if status else told.out)
    if status:
        assert not file.exists()
        return
    kinds = [tensor.data_type for tensor in onnx.load(file).graph.initializer if np.prod(tensor.dims) > 1000]
    assert set(kinds) <= {onnx.TensorProto.INT8, onnx.TensorProto.FLOAT} and kinds.count(onnx.TensorProto.INT8) > 10
    image = torch.from_numpy(np.array(Image.open(dataset / "test_0.png").resize((SIZE, SIZE)), np.float32) / 255)
    with torch.no_grad():
        wanted = load_network(weights["segmentation"])(image[None, None]).numpy()
    (found,) = runtime.InferenceSession(str(file)).run(None, {"image": image[None, None].numpy()})
    assert 0 < np.abs(found - wanted).mean() < 0.05 * np.ptp(wanted)


def test_exports_that_cannot_work_say_what_they_need(weights, tmp_path, capsys):
    assert call("export", weights["segmentation"], tmp_path / "model.ts", "--calibration", "images") == 1
    assert "8-bit integers are written as .onnx" in capsys.readouterr().err
    if not torch.cuda.is_available():
        assert call("export", weights["segmentation"], tmp_path / "model.ts", "--format", "trt") == 1
        assert "format trt needs an NVIDIA GPU and pip install torch_tensorrt" in capsys.readouterr().err


def test_an_export_of_another_kind_is_refused(weights, tmp_path, capsys):
    assert call("export", weights["segmentation"], tmp_path / "model.pth") == 1
    assert "must be .ts" in capsys.readouterr().err
    weight = Path(weights["segmentation"])
    before = weight.read_bytes()
    assert call("export", weight, weight, "--format", "torchscript") == 1
    assert "is read by this command and would be replaced" in capsys.readouterr().err
    assert call("export", weight, weight.with_suffix(".json"), "--format", "torchscript") == 1
    assert "is read by this command and would be replaced" in capsys.readouterr().err
    assert call("convert-weights", weight, weight, "--to", "mae") == 1
    assert "is read by this command and would be replaced" in capsys.readouterr().err
    assert weight.read_bytes() == before


def test_a_packed_bundle_has_the_weights_their_card_and_their_size(weights, tmp_path, capsys):
    target = tmp_path / "apps" / "lesions"
    assert call("pack", weights["segmentation"], target) == 0
    assert [path.name for path in target.parent.iterdir()] == ["lesions"]
    assert read_card(target / "models" / "model.pt") == read_card(weights["segmentation"])
    metadata = json.loads((target / "configs" / "metadata.json").read_text())
    assert metadata["network_data_format"]["inputs"]["image"]["spatial_shape"] == [SIZE, SIZE]
    assert metadata["eval_metrics"] == {}
    assert call("pack", weights["segmentation"], target) == 1
    assert "is there already" in capsys.readouterr().err
