# Copyright (c) monai_usfm contributors
# SPDX-License-Identifier: Apache-2.0
"""MONAI Label's own server with our bundles: ``bash scripts/try_monai_label.sh`` makes its environment, runs this."""

from __future__ import annotations

import io
import json
import os
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.bundle import run
from PIL import Image

from monai_usfm import save_network
from monai_usfm.bundle import prompted_network
from monai_usfm.cards import network_options
from tests.dicom_files import saved, ultrasound

pytest.importorskip(
    "monailabel", reason="MONAI Label is not installed; scripts/try_monai_label.sh makes an environment"
)
requests = pytest.importorskip("requests")
pytestmark = pytest.mark.label
BUNDLES = ("usfm_segmentation", "usfm_classification", "usfm_enhancement")
FILES = ("image.png", "photo.jpg", "still.nii.gz", "scan.dcm")


def write_images(folder: Path, breast: Path) -> None:
    """One real image in four formats, a volume, and labeled pairs for a training."""
    names = sorted(path.name for path in (breast / "images").glob("*.png"))
    image = Image.open(breast / "images" / names[0]).convert("L")
    image.save(folder / "image.png")
    image.save(folder / "photo.jpg", quality=95)
    pixels = np.asarray(image)
    nib.save(nib.Nifti1Image(pixels.T.astype(np.uint8), np.diag([0.2, 0.2, 1.0, 1.0])), folder / "still.nii.gz")
    volume = np.random.default_rng(0).integers(0, 255, (40, 48, 24), dtype=np.uint8)
    nib.save(nib.Nifti1Image(volume, np.diag([0.5, 0.5, 1.0, 1.0])), folder / "volume.nii.gz")
    saved(folder, ultrasound(pixels), "scan.dcm")
    (folder / "labels" / "final").mkdir(parents=True)
    for name in names[1:9]:
        shutil.copy(breast / "images" / name, folder / name)
        shutil.copy(breast / "masks" / name, folder / "labels" / "final" / name)


@pytest.fixture(scope="module")
def server(repository, tmp_path_factory):
    """Address of a server with the three bundles of tasks and one of volumes, its folder of images and its app."""
    folder = tmp_path_factory.mktemp("label")
    (folder / "images").mkdir()
    write_images(folder / "images", repository / "examples" / "breast")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    weights = repository / "bundles" / "usfm_segmentation" / "models" / "prostate.pt"
    command = [sys.executable, "-m", "monai_usfm"]
    subprocess.run([*command, "pack", str(weights), str(folder / "volume_segmentation")], check=True)
    write_interactive(repository / "bundles" / "usfm_pretraining" / "models" / "model.pt", folder)
    bundles = [str(repository / "bundles" / name) for name in BUNDLES]
    bundles += [str(folder / "volume_segmentation"), str(folder / "clicks_segmentation")]
    command += ["serve-label", *bundles, "--studies", str(folder / "images"), "--app", str(folder / "app")]
    log = (folder / "server.log").open("w")
    process = subprocess.Popen([*command, "--port", str(port)], stdout=log, stderr=log, start_new_session=True)
    address = f"http://127.0.0.1:{port}"
    try:
        for _ in range(900):
            assert process.poll() is None, (folder / "server.log").read_text()[-3000:]
            try:
                assert requests.get(f"{address}/info/", timeout=20).ok
                break
            except requests.ConnectionError:
                time.sleep(1)
        else:
            pytest.fail("the server did not start in 15 minutes")
        yield address, folder
    finally:
        os.killpg(process.pid, 15)
        process.wait(30)


def write_interactive(start: Path, folder: Path) -> None:
    """A bundle of an untrained network that takes prompts: a click brightens what the network sees there."""
    network = prompted_network(str(start), network_options("segmentation", str(start), in_channels=4))
    with torch.no_grad():
        for name, weight in network.state_dict().items():
            if name.startswith(("encoder.patch_embed.proj.w", "head.decoder.stem.0")) and weight.shape[1:2] == (4,):
                weight[:, 1:] = weight[:, :1] * torch.tensor([1.0, -1.0, 0.5]).view(1, 3, 1, 1)
    fields = {"class_names": ["background", "foreground"], "prompts": ["foreground", "background", "roi"]}
    save_network(folder / "clicks.pt", network, **fields)
    command = [
        sys.executable,
        "-m",
        "monai_usfm",
        "pack",
        str(folder / "clicks.pt"),
        str(folder / "clicks_segmentation"),
    ]
    subprocess.run(command, check=True)


def infer(server, model: str, image: str, output: str = "image", **params):
    """The response to a request for one image of the server's list."""
    data = {"params": json.dumps({"device": "cpu", **params})}
    return requests.post(
        f"{server[0]}/infer/{model}", params={"image": image, "output": output}, data=data, timeout=120
    )


def pixels_of(response, name: str) -> np.ndarray:
    """Rows and columns of a mask or image that came back."""
    assert response.ok, response.text
    if name.endswith(".nii.gz"):
        return (
            np.asarray(nib.Nifti1Image.from_bytes(__import__("gzip").decompress(response.content)).dataobj).squeeze().T
        )
    return np.asarray(Image.open(io.BytesIO(response.content)))


@pytest.fixture(scope="module")
def expected(server, repository, tmp_path_factory):
    """What ``monai.bundle run`` gives for the PNG, by bundle."""
    folder, found = tmp_path_factory.mktemp("expected"), {}
    (folder / "in").mkdir()
    shutil.copy(server[1] / "images" / "image.png", folder / "in")
    for name in BUNDLES:
        root = repository / "bundles" / name
        settings = {"dataset_dir": str(folder / "in"), "output_dir": str(folder / name), "preview": False}
        run(config_file=str(root / "configs" / "inference.json"), bundle_root=str(root), device="cpu", **settings)
        found[name] = folder / name
    return found


@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize("bundle", ["usfm_segmentation", "usfm_enhancement"])
def test_inference_gives_what_the_bundle_gives(server, expected, bundle, file):
    stem = file.split(".")[0]
    found = pixels_of(infer(server, bundle, stem), file)
    wanted = np.asarray(Image.open(next(expected[bundle].glob("image_*.png"))))
    assert found.shape == wanted.shape
    if file == "photo.jpg":  # other pixels, by a little
        assert np.abs(found.astype(float) - wanted).mean() < (0.02 if bundle == "usfm_segmentation" else 4)
    else:
        np.testing.assert_array_equal(found, wanted)


@pytest.mark.parametrize("file", FILES)
def test_classification_gives_names_and_probabilities(server, expected, file):
    response = infer(server, "usfm_classification", file.split(".")[0], output="json")
    assert response.ok, response.text
    scores = {entry["label"]: entry["score"] for entry in response.json()["prediction"]}
    assert sum(scores.values()) == pytest.approx(1, abs=1e-4)
    header, row = (expected["usfm_classification"] / "images.csv").read_text().splitlines()[:2]
    table = dict(zip(header.split(","), row.split(","), strict=True))
    wanted = {name: float(table[f"p_{name}"]) for name in scores}
    assert scores == pytest.approx(wanted, abs=0.02 if file == "photo.jpg" else 1e-4)


def test_a_volume_is_segmented_by_the_bundle_of_volumes_alone(server):
    found = pixels_of(infer(server, "volume_segmentation", "volume"), "volume.nii.gz")
    assert found.T.shape == (40, 48, 24)
    refused = infer(server, "usfm_segmentation", "volume")
    assert refused.status_code == 400
    assert "volume.nii.gz is a volume or cine, and usfm_segmentation a network of images" in refused.json()["detail"]
    refused = infer(server, "volume_segmentation", "image")
    assert refused.status_code == 400 and "a still image, but spatial_dims=3 needs a volume" in refused.json()["detail"]


@pytest.mark.parametrize(
    "prompts", [{"foreground": [[100, 80, 0]], "background": [[20, 30, 0]]}, {"roi": [40, 50, 120, 140]}]
)
def test_clicks_and_boxes_give_what_the_bundle_gives(server, tmp_path, prompts):
    found = pixels_of(infer(server, "clicks_segmentation", "image", **prompts), "image.png")
    (tmp_path / "list.json").write_text(json.dumps({"test": [{"image": "image.png", **prompts}]}))
    root = server[1] / "clicks_segmentation"
    places = {
        "dataset_dir": str(server[1] / "images"),
        "datalist": str(tmp_path / "list.json"),
        "output_dir": str(tmp_path),
    }
    run(
        config_file=str(root / "configs" / "inference.json"),
        bundle_root=str(root),
        device="cpu",
        preview=False,
        **places,
    )
    np.testing.assert_array_equal(found, np.asarray(Image.open(tmp_path / "image_seg.png")))


def test_a_click_in_a_volume_is_answered_on_its_slice(server):
    found = pixels_of(infer(server, "clicks_segmentation", "volume", foreground=[[20, 24, 9]]), "volume.nii.gz").T
    assert found.shape == (40, 48, 24)
    assert set(np.unique(np.nonzero(found)[2])) <= {9}
    assert pixels_of(infer(server, "clicks_segmentation", "image", foreground=[[9, 9]]), "image.png").ndim == 2


def test_clicks_are_what_label_calls_deepedit_and_none_are_refused(server):
    model = requests.get(f"{server[0]}/info/", timeout=900).json()["models"]["clicks_segmentation"]
    assert model["type"] == "deepedit" and model["labels"] == {"background": 0, "foreground": 1}
    refused = infer(server, "clicks_segmentation", "image", foreground=[], background=[])
    assert refused.status_code == 400 and "nothing says which structure is meant" in refused.json()["detail"]
    refused = requests.post(f"{server[0]}/train/clicks_segmentation?run_sync=true", json={}, timeout=900)
    assert refused.status_code == 400 and "its clicks are simulated" in refused.json()["detail"]


def test_a_bundle_of_features_is_refused_before_the_server_starts(repository, tmp_path):
    bundle = str(repository / "bundles" / "usfm_pretraining")
    command = [sys.executable, "-m", "monai_usfm", "serve-label", bundle, "--studies", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 1
    assert "gives features, and MONAI Label shows masks, classes and images" in done.stderr.splitlines()[-1]


def test_the_next_image_is_the_one_with_the_largest_entropy(server):
    chosen = requests.post(f"{server[0]}/activelearning/usfm_segmentation_uncertainty", json={}, timeout=900).json()
    listed = requests.get(f"{server[0]}/datastore/?output=all", timeout=900).json()["objects"]
    scores = {
        name: entry["image"]["info"]["uncertainty"]["score"]
        for name, entry in listed.items()
        if "uncertainty" in entry["image"]["info"]
    }
    assert set(scores) == {"image", "photo", "scan", "still", "volume"}
    assert scores[chosen["id"]] == max(scores.values()) > 0
    assert scores["volume"] == -1  # no image of this network
    for strategy in ("first", "random"):
        assert requests.post(f"{server[0]}/activelearning/{strategy}", json={}, timeout=900).json()["id"]


def test_classification_is_not_trained_and_says_why(server):
    assert "usfm_segmentation" in requests.get(f"{server[0]}/info/", timeout=900).json()["trainers"]
    assert "usfm_classification" not in requests.get(f"{server[0]}/info/", timeout=900).json()["trainers"]
    refused = requests.post(f"{server[0]}/train/usfm_classification?run_sync=true", json={}, timeout=900)
    assert refused.status_code == 400
    assert "MONAI Label sends masks, no classes" in refused.json()["detail"]


def test_training_learns_and_inference_uses_it(server):
    weights = server[1] / "app" / "model" / "usfm_segmentation" / "models" / "model.pt"
    before = torch.load(weights, weights_only=True)
    mask = pixels_of(infer(server, "usfm_segmentation", "image"), "image.png")
    request = {"max_epochs": 1, "device": "cpu", "val_split": 0.25, "learning_rate": 0.001}
    requests.post(f"{server[0]}/train/usfm_segmentation", json=request, timeout=900).raise_for_status()
    for _ in range(300):
        task = requests.get(f"{server[0]}/train/", timeout=900).json()
        if task["status"] in ("DONE", "ERROR"):
            break
        time.sleep(2)
    assert task["status"] == "DONE", "\n".join(task["details"])
    after = torch.load(weights, weights_only=True)
    assert any(not torch.equal(before[name], after[name]) for name in before)
    learned = pixels_of(infer(server, "usfm_segmentation", "image"), "image.png")
    assert learned.shape == mask.shape and (learned != mask).any()
