# Copyright (c) monai_usfm contributors
# SPDX-License-Identifier: Apache-2.0
"""The pretraining bundle, from a copied folder: trains, resumes, evaluates, extracts features, exports."""

from __future__ import annotations

import csv
import hashlib
import json
import logging
import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from ignite.engine import Engine
from monai.bundle import ConfigParser
from monai.transforms import Resize
from PIL import Image

from monai_usfm.bundle import root_cause
from monai_usfm.data import LoadUltrasound, UltrasoundDataset, load_splits
from monai_usfm.networks import DistillationModel, FeatureExtractor, FramePairs, load_pretrained, usfm_vit
from tests.runs import run, training_error, workflow
from tests.tables import rows as table

NAME = "usfm_pretraining"
SIZE = [64, 64]
# A network of a few thousand weights, in the place of the demo's tiny one.
TINY = {"num_layers": 2, "hidden_size": 48, "mlp_dim": 96, "num_heads": 3}
QUICK = {
    "spatial_size": SIZE,
    "max_epochs": 1,
    "batch_size": 2,
    "epoch_length": 5,
    "amp": "fp32",
    "device": "$torch.device('cpu')",
    "pretrained": None,
    **{f"plan#{key}": value for key, value in TINY.items()},
}
SMALL_DECODER = {
    "plan#decoder_hidden_size": 32,
    "plan#decoder_num_layers": 1,
    "plan#decoder_num_heads": 4,
}
VOLUME = {
    "spatial_dims": 3,
    "network_size": None,
    "spatial_size": [16, 32, 32],
    "plan#mask_unit": 1,
    "max_epochs": 1,
    "batch_size": 1,
    "epoch_length": 2,
}


def pixels(shape: tuple[int, ...], seed: int) -> np.ndarray:
    """An image without any symmetry: a ramp along rows, another along columns, one bright corner, some speckle."""
    rng = np.random.default_rng(seed)
    rows, columns = np.meshgrid(np.linspace(0, 1, shape[0]), np.linspace(0, 1, shape[1]), indexing="ij")
    image = 0.5 * rows + 0.2 * columns + 0.1 * rng.random(shape[:2])
    image[: shape[0] // 3, : shape[1] // 4] = 0.95
    return (255 * image.clip(0, 1)).round().astype(np.uint8)


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Nine images of different sizes, gray and RGB, with a datalist."""
    folder = tmp_path_factory.mktemp("images")
    lists: dict[str, list[dict[str, str]]] = {"training": [], "validation": [], "test": []}
    for number in range(9):
        gray = pixels((70 + 3 * number, 90 - 2 * number), number)
        color = number % 2 == 1
        Image.fromarray(np.stack([gray] * 3, axis=-1) if color else gray).save(folder / f"image_{number}.png")
        split = "training" if number < 5 else "validation" if number < 7 else "test"
        lists[split].append({"image": f"image_{number}.png", "organ": "breast" if number % 3 else "liver"})
    (folder / "dataset.json").write_text(json.dumps(lists))
    return folder


@pytest.fixture(scope="module")
def bundle(copy_bundle) -> Path:
    """The bundle's folder, copied to where nothing of the checkout is."""
    return copy_bundle(NAME)


def losses(folder: Path) -> list[tuple[str, str, str]]:
    return [(row["epoch"], row["train_loss"], row["val_loss"]) for row in table(folder / "metrics.csv")]


@pytest.fixture(scope="module")
def trained(bundle: Path, images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Output folder of three uninterrupted epochs of train.json with demo.json."""
    output = tmp_path_factory.mktemp("trained")
    settings = {**QUICK, "max_epochs": 3}
    run(
        workflow(
            bundle, "train", ["train.json", "demo.json"], dataset_dir=str(images), output_dir=str(output), **settings
        )
    )
    return output


def test_training_leaves_metrics_checkpoints_images_and_a_record(trained: Path) -> None:
    rows = losses(trained)
    assert [row[0] for row in rows] == ["1", "2", "3"]
    assert all(np.isfinite(float(value)) for row in rows for value in row)
    assert (trained / "checkpoints" / "last.pt").is_file()
    assert (trained / "checkpoints" / "best.pt").is_file()
    assert json.loads((trained / "run.json").read_text())["options"]["training_items"] == 5
    assert list((trained / "tensorboard").glob("events*"))
    with Image.open(trained / "figures" / "reconstruction_epoch_0001.png") as arrays:
        assert arrays.width > 4 * SIZE[1]  # input | corrupted | reconstruction | error


def test_exported_encoder_is_that_of_the_last_checkpoint(trained: Path) -> None:
    network = torch.load(trained / "checkpoints" / "last.pt", weights_only=True)["network"]
    exported = torch.load(trained / "model.pt", weights_only=True)
    assert set(exported) == {name for name in network if name.startswith("encoder.")}
    whole = {k: v.half() if v.is_floating_point() else v for k, v in network.items()}
    assert all(torch.equal(exported[name], whole[name]) for name in exported)


@pytest.mark.parametrize("overlays", [["sequences.json"], ["sequences.json", "distill.json"]])
def test_frames_of_sequences_and_of_cines_are_pairs(
    bundle: Path, trained: Path, tmp_path: Path, overlays: list[str]
) -> None:
    cine = np.stack([pixels((70, 80), n).T for n in range(6)], axis=-1)[:, :, None]  # x, y, 1, time
    nib.save(nib.Nifti1Image(cine, np.eye(4)), tmp_path / "cine.nii.gz")
    for n in range(3):
        Image.fromarray(pixels((70, 80), 10 + n)).save(tmp_path / f"{n}.png")
    still = [{"image": f"{n}.png", "sequence": "s", "organ": "liver"} for n in range(3)]
    lists = {
        "training": [{"image": "cine.nii.gz", "num_frames": 6, "organ": "lung"}, *still[:2]],
        "validation": still[2:],
    }
    (tmp_path / "dataset.json").write_text(json.dumps(lists))
    settings = {**QUICK, "epoch_length": 8, "frames_per_cine": 3, "dataset_dir": str(tmp_path)}
    if "distill.json" in overlays:
        settings["teacher"] = str(trained / "model.pt")
    files = ["train.json", "demo.json", *overlays]
    flow = workflow(bundle, "train", files, output_dir=str(tmp_path / "out"), **settings)
    run(flow)
    network = flow.parser.get_parsed_content("network_def")
    assert isinstance(network, FramePairs)
    assert isinstance(network.network, DistillationModel) == ("distill.json" in overlays)
    data = flow.parser.get_parsed_content("train#dataset").data
    assert [item.get("frame") for item in data] == [1, 3, 5, None, None]
    drawn = list(flow.parser.get_parsed_content("train#sampler"))
    assert all((a < 3) == (b < 3) and a != b for a, b in zip(drawn[::2], drawn[1::2], strict=True))
    assert {name.split(".")[0] for name in torch.load(tmp_path / "out" / "model.pt", weights_only=True)} == {"encoder"}


@pytest.mark.parametrize("blocks", [[], [0, 1]])
def test_features_are_those_of_the_network_on_the_upright_image(
    bundle: Path, images: Path, trained: Path, tmp_path: Path, blocks: list[int]
) -> None:
    settings = {
        "checkpoint": str(trained / "model.pt"),
        "feature_blocks": blocks,
        "output_dir": str(tmp_path),
        "amp": "fp32",
    }
    data = {"dataset_dir": str(images), "datalist": str(images / "dataset.json")}
    run(workflow(bundle, "infer", ["inference.json"], **data, **settings))
    found = np.load(tmp_path / "embeddings.npz")
    network = FeatureExtractor(usfm_vit("tiny", img_size=SIZE, **TINY)).eval()
    load_pretrained(network, trained / "model.pt", strict=True)
    assert [Path(name).name for name in found["images"]] == ["image_7.png", "image_8.png"]
    for number, (name, embedding) in enumerate(zip(found["images"], found["embeddings"], strict=True)):
        image = LoadUltrasound()(name)
        assert image.shape[1:] == Image.open(name).size[::-1]
        pixels = Resize(SIZE, mode="bilinear", anti_aliasing=True)(image).as_tensor()[None]
        with torch.no_grad():
            np.testing.assert_allclose(embedding, network(pixels)[0].numpy(), atol=1e-5)
            assert np.abs(embedding - network(pixels.mT)[0].numpy()).max() > 1e-3  # a transposed image is another
            if blocks:
                maps = np.load(tmp_path / f"{number:06d}_{Path(name).stem}_maps.npz")
                for block, wanted in zip(blocks, network.feature_maps(pixels, blocks), strict=True):
                    np.testing.assert_allclose(maps[f"block_{block}"], wanted[0].numpy(), atol=1e-5)
    with open(tmp_path / "embeddings.csv", newline="") as file:
        assert len(next(csv.reader(file))) == 1 + TINY["hidden_size"]


def test_evaluation_writes_the_loss_of_the_best_checkpoint(bundle: Path, images: Path, trained: Path) -> None:
    files = ["train.json", "demo.json", "evaluate.json"]
    options = {**QUICK, "network_size": None, "batch_size": 2}
    for key in TINY:
        del options[f"plan#{key}"]
    del options["pretrained"]  # the checkpoint says what it is
    run(workflow(bundle, "train", files, dataset_dir=str(images), output_dir=str(trained), **options))
    folder = trained / "evaluation"
    assert (folder / "reconstruction_epoch_0001.png").is_file()
    text = (folder / "metrics.csv").read_text()
    best = min(float(row[2]) for row in losses(trained))
    assert float(text.replace(",", " ").split()[-1]) == pytest.approx(best, rel=1e-5)
    weights = trained / "checkpoints" / "best.pt"
    scored = json.loads((folder / "run.json").read_text())["options"]
    assert scored["checkpoint"] == str(weights) and scored["sha256"] == hashlib.sha256(weights.read_bytes()).hexdigest()
    last = workflow(bundle, "train", files, dataset_dir=str(images), output_dir=str(trained), **options)
    last.parser["checkpoint"] = str(trained / "checkpoints" / "last.pt")
    last.initialize()
    exported = workflow(bundle, "train", files, dataset_dir=str(images), output_dir=str(trained), **options)
    exported.parser["checkpoint"] = str(trained / "model.pt")
    with pytest.raises(RuntimeError) as error:
        exported.initialize()
    assert "exported weights hold no layers of their pretraining" in str(root_cause(error.value))


@pytest.mark.parametrize("objective", ["mae", "sparse"])
def test_objective_trains(bundle: Path, images: Path, tmp_path: Path, objective: str) -> None:
    data = {"dataset_dir": str(images), "output_dir": str(tmp_path), "objective": objective}
    run(workflow(bundle, "train", ["train.json", "demo.json"], **data, **QUICK, **SMALL_DECODER))
    ((epoch, train_loss, val_loss),) = losses(tmp_path)
    assert epoch == "1" and np.isfinite([float(train_loss), float(val_loss)]).all()
    assert (tmp_path / "model.pt").is_file()


@pytest.fixture(scope="module")
def volumes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("volumes")
    rng = np.random.default_rng(0)
    for number in range(3):
        values = rng.integers(0, 256, (40 + number, 36, 20)).astype(np.uint8)
        nib.save(nib.Nifti1Image(values, np.diag([-0.4, 0.5, 1.2, 1.0])), folder / f"volume_{number}.nii.gz")
    names = [{"image": f"volume_{number}.nii.gz"} for number in range(3)]
    (folder / "dataset.json").write_text(json.dumps({"training": names[:2], "validation": names[2:]}))
    return folder


def test_volumes_train_and_give_features(bundle: Path, volumes: Path, trained: Path, tmp_path: Path) -> None:
    files = ["train.json", "demo.json"]
    data = {"dataset_dir": str(volumes), "output_dir": str(tmp_path)}
    # From the 2D weights of the other run: they are inflated.
    run(workflow(bundle, "train", files, pretrained=str(trained / "model.pt"), **data, **VOLUME))
    assert len(losses(tmp_path)) == 1
    shape = {"spatial_dims": 3, "spatial_size": VOLUME["spatial_size"], "patch_size": [8, 16, 16]}
    run(workflow(bundle, "infer", ["inference.json"], checkpoint=str(tmp_path / "model.pt"), amp="fp32", **data))
    found = np.load(tmp_path / "embeddings.npz")
    network = FeatureExtractor(
        usfm_vit("tiny", img_size=shape["spatial_size"], patch_size=shape["patch_size"], spatial_dims=3, **TINY)
    ).eval()
    load_pretrained(network, tmp_path / "model.pt", strict=True)
    for name, embedding in zip(found["images"], found["embeddings"], strict=True):
        image = LoadUltrasound(spatial_dims=3)(name)
        pixels = Resize(shape["spatial_size"], mode="trilinear", anti_aliasing=True)(image).as_tensor()[None]
        with torch.no_grad():
            np.testing.assert_allclose(embedding, network(pixels)[0].numpy(), atol=1e-5)


@pytest.fixture
def damaged(images: Path, tmp_path: Path) -> Path:
    """A copy of the images whose second training image is cut off."""
    folder = tmp_path / "damaged"
    shutil.copytree(images, folder)
    whole = (folder / "image_1.png").read_bytes()
    (folder / "image_1.png").write_bytes(whole[: len(whole) // 2])
    return folder


def test_truncated_file_is_named(bundle: Path, damaged: Path, tmp_path: Path) -> None:
    assert f"{damaged / 'image_1.png'}: cannot be decoded" in training_error(bundle, damaged, tmp_path / "out", **QUICK)


def test_unreadable_files_are_skipped_and_counted(
    bundle: Path, damaged: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (damaged / "image_2.png").unlink()
    settings = {**QUICK, "skip_unreadable": True, "organ_temperature": 0.0}
    data = {"dataset_dir": str(damaged), "output_dir": str(tmp_path / "out")}
    with caplog.at_level(logging.WARNING, logger="monai_usfm"):
        run(workflow(bundle, "train", ["train.json", "demo.json"], **data, **settings))
    assert len(losses(tmp_path / "out")) == 1
    splits = load_splits(damaged, synthetic_dir=tmp_path, check_files=False)
    dataset = UltrasoundDataset(splits["training"], lambda item: LoadUltrasound()(item["image"]), skip_unreadable=True)
    for index in range(len(dataset)):
        dataset[index]
    assert [Path(path).name for path in dataset.skipped] == ["image_1.png", "image_2.png"]


def test_the_validation_loss_counts_each_image_alike(bundle: Path) -> None:
    parser = ConfigParser(ConfigParser.load_config_file(bundle / "configs" / "train.json"))
    batches = [{"pred": {"loss": torch.tensor(1.0)}, "image": torch.zeros(4, 1, 2, 2)}]
    batches += [{"pred": {"loss": torch.tensor(3.5)}, "image": torch.zeros(1, 1, 2, 2)}]
    engine = Engine(lambda _, batch: batch)
    parser.get_parsed_content("validate#key_metric")["val_loss"].attach(engine, "val_loss")
    assert engine.run(batches).metrics["val_loss"] == 1.5
