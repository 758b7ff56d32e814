# Copyright (c) monai_usfm contributors
# SPDX-License-Identifier: Apache-2.0
"""The segmentation bundle with clicks: trained by the overlay, asked by the items of a list."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from PIL import Image

from monai_usfm import load_network, read_card, save_network
from monai_usfm.evaluation import calibrate
from monai_usfm.inferers import ImagePredictor
from monai_usfm.transforms import draw_prompts
from monai_usfm.workflow import run_bundle

TINY = {"num_layers": 4, "hidden_size": 48, "mlp_dim": 96, "num_heads": 3}
OPTIONS = {
    "spatial_size": [48, 64],
    "batch_size": 4,
    "warmup_epochs": 0,
    "amp": "fp32",
    "device": "cpu",
    "pretrained": None,
    "figure_interval": 0,
    **{f"plan#{key}": value for key, value in TINY.items()},
}
CLICK, BOX = [20.0, 30.0], [10, 12, 40, 41]  # x, y


def logits(network: torch.nn.Module, image: np.ndarray, prompts: torch.Tensor) -> torch.Tensor:
    gray = torch.as_tensor(image / 255, dtype=torch.float32)[None]
    with torch.no_grad():
        return network(torch.cat([gray, prompts])[None])[0]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images of the size of the network with structures 7 and 9, a cine, and weights after one step.

    The bias is such that half of what the network gives to a click is foreground, so that masks can differ.
    """
    folder, rng = tmp_path_factory.mktemp("clicks"), np.random.default_rng(0)
    lists: dict[str, list] = {"training": [], "validation": [], "test": []}
    for number in range(6):
        image, label = 250 * rng.random((48, 64)), np.zeros((48, 64), np.uint8)
        label[5:25, 5:25], label[20:45, 35:60] = 7, 9
        Image.fromarray(image.astype(np.uint8)).save(folder / f"{number}.png")
        Image.fromarray(label).save(folder / f"{number}_label.png")
        split = "training" if number < 4 else "validation" if number == 4 else "test"
        lists[split].append({"image": f"{number}.png", "label": f"{number}_label.png", "patient": f"p{number}"})
    cine = np.stack([np.asarray(Image.open(folder / f"{n}.png")).T for n in (3, 4, 5)], -1)
    nib.save(nib.Nifti1Image(cine, np.eye(4)), folder / "cine.nii.gz")
    lists["clicked"] = [{"image": "5.png", "foreground": [CLICK]}]
    lists["cine"] = [{"image": "cine.nii.gz", "roi": [*BOX, 2, 2]}]
    (folder / "dataset.json").write_text(json.dumps(lists))
    settings = {**OPTIONS, "dataset_dir": str(folder), "output_dir": str(folder / "run"), "clicks": 2}
    run_bundle("segmentation", overlays=["interactive"], max_epochs=1, **settings)
    network = load_network(folder / "run" / "model.pt")
    found = logits(network, np.asarray(Image.open(folder / "5.png")), draw_prompts((48, 64), [CLICK[::-1]]))
    with torch.no_grad():
        network.head.to_pixels.bias[0] += (found[1] - found[0]).median()
    save_network(folder / "model.pt", network, **{k: network.card[k] for k in ("class_names", "prompts")})
    return folder


def predict(run: Path, split: str, output: Path, **options) -> None:
    places = {"datalist": str(run / "dataset.json"), "output_dir": str(output)}  # whose folder has the images
    options = {"checkpoint": str(run / "model.pt"), "split": split, "device": "cpu", "amp": "fp32", **options}
    run_bundle("segmentation", "predict", **places, **options)


def test_the_network_sees_the_click_of_the_item(run: Path, tmp_path: Path):
    predict(run, "clicked", tmp_path)
    found, image = np.asarray(Image.open(tmp_path / "5_seg.png")), np.asarray(Image.open(run / "5.png"))
    network = load_network(run / "model.pt")
    wanted, unclicked = (
        logits(network, image, prompts).argmax(0).numpy()
        for prompts in (draw_prompts((48, 64), [CLICK[::-1]]), torch.zeros(3, 48, 64))
    )
    assert (found == wanted).mean() > 0.99 and 0.3 < found.mean() < 0.7
    assert (found != unclicked).mean() > 0.02


def test_a_box_on_a_frame_of_a_cine_is_answered_there_alone(run: Path, tmp_path: Path):
    predict(run, "cine", tmp_path, frames=True)
    found = np.asarray(nib.load(tmp_path / "cine_seg.nii.gz").dataobj).squeeze().T
    assert [bool(frame.any()) for frame in found] == [False, False, True]
    prompts = draw_prompts((48, 64), roi=[BOX[1], BOX[0], BOX[3], BOX[2]])
    wanted = logits(load_network(run / "model.pt"), np.asarray(Image.open(run / "5.png")), prompts).argmax(0).numpy()
    assert (found[2] == wanted).mean() > 0.99


def test_evaluation_clicks_in_the_largest_structure_by_itself(run: Path, tmp_path: Path):
    settings = {"dataset_dir": str(run), "checkpoint": str(run / "model.pt"), "device": "cpu", "amp": "fp32"}
    run_bundle("segmentation", "evaluate", output_dir=str(tmp_path), clicks=1, **settings)
    scores = json.loads((tmp_path / "evaluation" / "summary.json").read_text())
    prompts = draw_prompts((48, 64), [[32, 47]])  # the middle of 20:45, 35:60
    found = (
        logits(load_network(run / "model.pt"), np.asarray(Image.open(run / "5.png")), prompts).argmax(0).numpy() == 1
    )
    label = np.asarray(Image.open(run / "5_label.png")) == 9
    assert scores["class_1"]["dice"] == pytest.approx(2 * (found & label).sum() / (found.sum() + label.sum()), abs=0.01)


def test_weights_that_need_clicks_are_not_used_without(run: Path, tmp_path: Path):
    checkpoint = str(run / "model.pt")
    assert read_card(run / "run" / "model.pt")["prompts"] == ["foreground", "background", "roi"]
    with pytest.raises(ValueError, match="is for segmentation by prompts of images"):
        ImagePredictor(load_network(checkpoint))
    with pytest.raises(ValueError, match="unasked"):
        calibrate(checkpoint, dataset_dir=str(run))
    with pytest.raises(ValueError, match=r"5\.png: nothing says which structure is meant"):
        predict(run, "test", tmp_path)
