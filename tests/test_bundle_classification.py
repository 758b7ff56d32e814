# Copyright (c) monai_usfm contributors
# SPDX-License-Identifier: Apache-2.0
"""The classification bundle, copied to an empty folder, at the size of a few patches."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from monai.bundle import ConfigParser, ConfigWorkflow, run
from monai.transforms import Compose, Resize
from PIL import Image

from monai_usfm import load_network
from monai_usfm.bundle import describe, mixed_batch, root_cause
from monai_usfm.data import LoadUltrasound, UnreadableImageError
from monai_usfm.evaluation import calibration
from monai_usfm.networks import UltrasoundClassifier, UltrasoundSegmenter, to_usfm_state_dict, usfm_vit
from monai_usfm.workflow import load_bundle
from tests.runs import files
from tests.tables import rows

SIZE = [32, 48]
SETTINGS = {"batch_size": 4, "num_workers": 0, "device": "cpu", "amp": "fp32"}
TRAINING = SETTINGS | {"spatial_size": SIZE, "max_epochs": 1, "warmup_epochs": 0, "learning_rate": 0.002}


def write_images(folder: Path) -> None:
    """Eight training, four validation, four test images of two classes, two images of each patient."""
    rng = np.random.default_rng(0)
    lists, number = {}, 0
    for split, count in {"training": 8, "validation": 4, "test": 4}.items():
        lists[split] = []
        for index in range(count):
            label = index // 2 % 2
            pixels = rng.integers(0, 90, (40, 56), dtype=np.uint8)
            pixels[:, : 28 if label else 1] += 150
            Image.fromarray(pixels).save(folder / f"{number:02d}.png")
            entry = {"image": f"{number:02d}.png", "class": label, "patient": f"{split}-{index // 2}"}
            lists[split].append(entry)
            number += 1
    (folder / "dataset.json").write_text(json.dumps(lists))


def train(root: Path, *overlays: str, **settings) -> None:
    run(
        config_file=files(root, "train", *overlays),
        bundle_root=str(root),
        dataset_dir=str(root / "data"),
        **{"pretrained": "null"} | TRAINING | settings,
    )


def probabilities(path: Path) -> np.ndarray:
    return np.array([[float(row["p_0"]), float(row["p_1"])] for row in rows(path)])


@pytest.fixture(scope="module")
def root(copy_bundle) -> Path:
    """A copy of the bundle that has been trained for two epochs."""
    root = copy_bundle("usfm_classification")
    (root / "data").mkdir()
    write_images(root / "data")
    train(root, max_epochs=2, class_balance=True)
    return root


@pytest.fixture(scope="module")
def network(root) -> UltrasoundClassifier:
    net = UltrasoundClassifier(usfm_vit("tiny", img_size=SIZE, layer_scale=0.1), 2, pool="pyramid")
    net.load_state_dict(torch.load(root / "output" / "model.pt", weights_only=True))
    return net.eval()


def expected(network: UltrasoundClassifier, root: Path, split: str, temperature: float = 1.0) -> np.ndarray:
    """Probabilities by hand: load upright, resize, classify."""
    prepare = Compose([LoadUltrasound(), Resize(SIZE, mode="bilinear", anti_aliasing=True)])
    items = json.loads((root / "data" / "dataset.json").read_text())[split]
    images = torch.stack([prepare(root / "data" / item["image"]).as_tensor() for item in items])
    with torch.no_grad():
        return (network(images) / temperature).softmax(1).numpy()


def test_training_leaves_records_and_scores(root):
    table = rows(root / "output" / "metrics.csv")
    assert [row["epoch"] for row in table] == ["1", "2"]
    assert all(row["val_macro_f1"] and row["val_auc"] and row["val_ece"] for row in table)
    items = json.loads((root / "data" / "dataset.json").read_text())["validation"]
    named = [row["image"] for row in rows(root / "output" / "validation" / "images.csv")]
    assert named == [str(root / "data" / item["image"]) for item in items]
    assert len(rows(root / "output" / "validation" / "patients.csv")) == 2
    for name in ("run.json", "validation/confusion.png", "checkpoints/last.pt", "checkpoints/best.pt"):
        assert (root / "output" / name).is_file()


def test_inference_gives_the_calibrated_probabilities_of_the_checkpoint_in_the_order_of_the_files(root, network):
    run(
        config_file=files(root, "inference"),
        bundle_root=str(root),
        dataset_dir=str(root / "data"),
        temperature=0.25,
        checkpoint=str(root / "output" / "model.pt"),
        output_dir=str(root / "eval"),
        **SETTINGS,
    )
    table = rows(root / "eval" / "images.csv")
    assert [Path(row["image"]).name for row in table] == [f"{number:02d}.png" for number in range(16)]
    by_hand = np.concatenate([expected(network, root, s, 0.25) for s in ("training", "validation", "test")])
    np.testing.assert_allclose(probabilities(root / "eval" / "images.csv"), by_hand, atol=2e-5)
    assert by_hand.std(0).min() > 1e-4  # images differ, so that their order matters
    assert not (root / "eval" / "summary.json").exists()


def test_uncertainty_takes_the_mean_over_flips_and_dropout_masks(root, network, tmp_path):
    settings = SETTINGS | {"dataset_dir": str(root / "data"), "datalist": str(root / "data" / "dataset.json")}
    settings |= {"temperature": 1.0, "uncertainty": True, "checkpoint": str(root / "output" / "model.pt")}
    names = files(root, "inference")
    run(config_file=names, bundle_root=str(root), output_dir=str(tmp_path / "flips"), **settings)
    prepare = Compose([LoadUltrasound(), Resize(SIZE, mode="bilinear", anti_aliasing=True)])
    items = json.loads((root / "data" / "dataset.json").read_text())["test"]
    images = torch.stack([prepare(root / "data" / item["image"]).as_tensor() for item in items])
    with torch.no_grad():
        wanted = (network(images).softmax(1) + network(images.flip(3)).softmax(1)) / 2
    found = probabilities(tmp_path / "flips" / "images.csv")
    np.testing.assert_allclose(found, wanted.numpy(), atol=2e-5)
    run(config_file=names, bundle_root=str(root), output_dir=str(tmp_path / "masks"), dropout=0.5, **settings)
    assert np.abs(probabilities(tmp_path / "masks" / "images.csv") - found).max() > 1e-5


def test_evaluation_scores_the_test_split_by_image_and_patient(root, network):
    run(
        config_file=files(root, "train", "evaluate"),
        bundle_root=str(root),
        dataset_dir=str(root / "data"),
        temperature=0.5,
        **SETTINGS,
    )
    folder = root / "output" / "evaluation"
    by_hand = expected(network, root, "test", 0.5)
    np.testing.assert_allclose(probabilities(folder / "images.csv"), by_hand, atol=2e-5)
    np.testing.assert_allclose(probabilities(folder / "patients.csv"), by_hand.reshape(2, 2, 2).mean(1), atol=2e-5)
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["images"]["accuracy"] == np.mean(by_hand.argmax(1) == [0, 0, 1, 1])


def test_label_transforms_leave_the_probabilities_alone(root):
    parser = ConfigParser(ConfigParser.load_config_files(files(root, "inference")))
    parser["temperature"], parser["bundle_root"] = 0.5, str(root)
    post = parser.get_parsed_content("post_transforms")
    result = post({"image": torch.zeros(1, 4, 4), "pred": torch.tensor([0.0, 1.0])})
    assert sorted(result) == ["pred"]
    torch.testing.assert_close(result["pred"], torch.tensor([0.0, 2.0]).softmax(0))


def test_linear_probe_keeps_the_pretrained_encoder(root, tmp_path):
    encoder = usfm_vit("tiny", img_size=SIZE, layer_scale=0.1)
    torch.save(encoder.state_dict(), tmp_path / "encoder.pt")
    train(
        root,
        output_dir=str(tmp_path),
        pretrained=str(tmp_path / "encoder.pt"),
        freeze_encoder=True,
        pool="mean",
    )
    state = torch.load(tmp_path / "model.pt", weights_only=True)
    for name, value in encoder.state_dict().items():
        torch.testing.assert_close(state[f"encoder.{name}"].to(value.dtype), value, rtol=1e-3, atol=1e-4)
    assert state["head.weight"].abs().max() > 0.002  # it started at 0.02 * 0.001


def test_a_segmentation_network_gives_encoder_and_decoder(root, tmp_path):
    segmenter = UltrasoundSegmenter(usfm_vit("tiny", img_size=SIZE, layer_scale=0.1), 2)
    torch.save(segmenter.state_dict(), tmp_path / "segmenter.pt")
    workflow = ConfigWorkflow(
        files(root, "train"),
        workflow_type="train",
        bundle_root=str(root),
        pretrained=str(tmp_path / "segmenter.pt"),
        **TRAINING,
    )
    workflow.initialize()
    for part, source in (("encoder.", "encoder."), ("pyramid_pool.decoder.", "head.decoder.")):
        found = {k.removeprefix(part): v for k, v in workflow.network_def.state_dict().items() if k.startswith(part)}
        given = {k.removeprefix(source): v for k, v in segmenter.state_dict().items() if k.startswith(source)}
        assert found.keys() == given.keys() and all(torch.equal(found[k], given[k]) for k in given)


def test_official_classifiers_load_whole(root, tmp_path):
    """Per-block bias tables, RGB normalized with ImageNet's constants: gray images get the logits of the original."""
    encoder = usfm_vit("tiny", img_size=48, in_channels=3, layer_scale=0.1, pos_embed="relative_per_block")
    original = UltrasoundClassifier(encoder, 2).eval()
    with torch.no_grad():
        for parameter in original.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    official = {
        name: value
        for name, value in to_usfm_state_dict(encoder, imagenet_input=False).items()
        if not name.startswith("norm.")
    }
    for name, value in original.state_dict().items():
        if name.startswith(("fc_norm", "head")):
            official[name] = value
    torch.save({"model": official}, tmp_path / "official.pth")
    workflow = ConfigWorkflow(
        files(root, "train"),
        workflow_type="train",
        bundle_root=str(root),
        output_dir=str(tmp_path / "out"),
        pool="mean",
        pretrained=str(tmp_path / "official.pth"),
        **TRAINING | {"spatial_size": [48, 48]},
    )
    workflow.initialize()
    image = torch.rand(2, 1, 48, 48)
    mean, deviation = (torch.tensor(v).view(3, 1, 1) for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    with torch.no_grad():
        wanted = original((image.expand(-1, 3, -1, -1) - mean) / deviation)
        torch.testing.assert_close(workflow.network_def.eval()(image), wanted, atol=2e-4, rtol=1e-3)
    assert wanted.std() > 0.01


def test_mixup_mixes_images_and_classes_alike():
    label = torch.tensor([0, 1, 1, 0])
    image = label.float().reshape(4, 1, 1, 1).expand(4, 1, 2, 2)
    torch.manual_seed(0)
    mixed, classes = mixed_batch(None, augmentation=lambda *_: (image, label), num_classes=2, alpha=0.2)
    torch.testing.assert_close(mixed.mean((1, 2, 3)), classes[:, 1])
    torch.testing.assert_close(classes.sum(1), torch.ones(4))
    assert 0 < classes[1, 1] < 1 and classes[2, 1] == 1  # neighbors of another class, and of the same


def test_an_unreadable_file_costs_no_other_its_result(root, tmp_path):
    folder = tmp_path / "images"
    shutil.copytree(root / "data", folder)
    (folder / "01.png").write_bytes(b"no image")
    options = {"bundle_root": str(root), "checkpoint": str(root / "output" / "model.pt"), **SETTINGS, "batch_size": 1}
    run(config_file=files(root, "inference"), dataset_dir=str(folder), output_dir=str(tmp_path / "out"), **options)
    assert len(rows(tmp_path / "out" / "images.csv")) == 15
    (failed,) = rows(tmp_path / "out" / "failed.csv")
    assert Path(failed["file"]).name == "01.png" and failed["reason"]
    with pytest.raises(RuntimeError) as error:  # a list names its files on purpose
        run(
            config_file=files(root, "inference"),
            dataset_dir=str(folder),
            datalist=str(folder / "dataset.json"),
            split="training",
            output_dir=str(tmp_path / "out"),
            **options,
        )
    assert isinstance(root_cause(error.value), UnreadableImageError) and "01.png" in describe(error.value)


def test_calibration_finds_the_temperature_that_was_hidden():
    torch.manual_seed(0)
    logits = torch.randn(4000, 3)
    labels = torch.multinomial(logits.softmax(1), 1).squeeze(1)
    result = calibration._fit(2.5 * logits, labels)
    assert result["temperature"] == pytest.approx(2.5, rel=0.1)
    assert result["ece_after"] < result["ece_before"] and result["nll_after"] < result["nll_before"]


def test_calibration_scores_the_validation_images_of_the_bundle(root, network):
    weights = str(root / "output" / "model.pt")
    options = {
        "dataset_dir": str(root / "data"),
        "device": "cpu",
        "amp": "fp32",
        "pretrained": weights,
        "cache_dir": None,
    }
    flow = load_bundle("classification", "train", bundle_root=str(root), **options)
    flow.parser.parse(reset=True)
    logits, labels, *_ = calibration._collect(flow.parser, load_network(weights))
    np.testing.assert_allclose(logits.softmax(1).numpy(), expected(network, root, "validation"), atol=2e-5)
    assert labels.tolist() == [0, 0, 1, 1]


def test_volumes_train_and_infer(root, tmp_path):
    common = {"bundle_root": str(root), "device": "cpu"}
    run(
        config_file=files(root, "train"),
        output_dir=str(tmp_path),
        spatial_size=[8, 32, 32],
        synthetic={
            "num_training": 2,
            "num_validation": 1,
            "num_test": 1,
            "spatial_dims": 3,
            "image_size": [16, 32, 32],
        },
        max_epochs=1,
        **common,
    )
    run(
        config_file=files(root, "inference"),
        checkpoint=str(tmp_path / "model.pt"),
        datalist=str(tmp_path / "synthetic_images" / "datalist.json"),
        dataset_dir=str(tmp_path / "synthetic_images"),
        output_dir=str(tmp_path / "eval"),
        **common,
    )
    assert probabilities(tmp_path / "eval" / "images.csv").sum(1) == pytest.approx(1.0, abs=1e-5)


@pytest.mark.parametrize(
    ("change", "message"),
    [({"class": None}, "lacks class"), ({"class": 2}, "class 2"), ({"patient": "test-0"}, "patient test-0")],
)
def test_a_bad_datalist_is_one_clear_error_before_training(root, tmp_path, change, message):
    content = json.loads((root / "data" / "dataset.json").read_text())
    content["training"][0] = {k: v for k, v in (content["training"][0] | change).items() if v is not None}
    (tmp_path / "bad.json").write_text(json.dumps(content))
    with pytest.raises(RuntimeError, match="load_class_splits") as error:
        train(root, datalist=str(tmp_path / "bad.json"), output_dir=str(tmp_path / "none"))
    assert isinstance(error.value.__cause__, ValueError)  # MONAI names the line of the config, the cause what is wrong
    assert message in str(error.value.__cause__)
    assert not list((tmp_path / "none").rglob("*.pt"))
