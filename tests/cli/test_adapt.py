# Copyright (c) monai_usfm contributors
# SPDX-License-Identifier: Apache-2.0
"""Weights fitted to images without labels, by the masks that the network is sure of."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from monai_usfm import build_network, load_network, read_card, save_network
from monai_usfm.cli import main


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """Weights that segment all of every image, images of a new scanner, and labeled ones whose masks hold 0 and 200."""
    torch.manual_seed(0)
    network = build_network(
        "segmentation", spatial_size=[32, 32], num_layers=1, hidden_size=48, mlp_dim=48, num_heads=3
    )
    with torch.no_grad():
        network.head.to_pixels.weight.zero_()
        network.head.to_pixels.bias.copy_(torch.tensor([0.0, 5.0]))
    names = {"class_names": ["background", "lesion"], "label_values": [0, 200]}
    save_network(tmp_path / "model.pt", network, **names)
    rng = np.random.default_rng(0)
    for folder, number in (("new/deep", 4), ("own", 6)):
        (tmp_path / folder).mkdir(parents=True)
        for n in range(number):
            Image.fromarray(rng.integers(0, 255, (40, 36), dtype=np.uint8)).save(tmp_path / folder / f"{n}.png")
    mask = np.full((40, 36), 200, np.uint8)
    mask[:4] = 0
    Image.fromarray(mask).save(tmp_path / "own" / "mask.png")
    items = [{"image": f"{n}.png", "label": "mask.png", "patient": f"p{n}"} for n in range(6)]
    (tmp_path / "own" / "dataset.json").write_text(json.dumps({"training": items[:5], "validation": items[5:]}))
    return tmp_path


def arguments(place: Path, *more: str) -> list[str]:
    settings = ["--max_epochs", "1", "--batch_size", "2", "--num_workers", "0", "--device", "cpu"]
    folders = ["--checkpoint", str(place / "model.pt"), "--output_dir", str(place / "out")]
    return ["adapt", str(place / "new"), *folders, *settings, "--figure_interval", "0", *more]


def test_masks_of_new_images_and_as_many_labeled_ones_train_on(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)
    assert main(arguments(Path(), "--labeled", "own/dataset.json")) == 0
    lists = json.loads((place / "out" / "datalist.json").read_text())
    folders = [Path(item["image"]).parent.name for item in lists["training"]]
    assert (folders.count("deep"), folders.count("own"), len(lists["validation"])) == (4, 4, 1)
    drawn = next(item["label"] for item in lists["training"] if "deep" in item["image"])
    assert np.unique(np.asarray(Image.open(drawn))).tolist() == [200]
    card = read_card(place / "out" / "model.pt")
    assert card["class_names"] == ["background", "lesion"] and card["label_values"] == [0, 200]
    before, after = (load_network(file).state_dict() for file in (place / "model.pt", place / "out" / "model.pt"))
    assert any(not torch.equal(value, after[name]) for name, value in before.items())


@pytest.mark.parametrize(
    ("method", "option"),
    [("self_training", "--background_crops"), ("pretraining", "--objective"), ("style", "--restoration_weight")],
)
def test_options_are_listed_without_training(
    place: Path, capsys: pytest.CaptureFixture[str], method: str, option: str
) -> None:
    assert main(arguments(place, "--method", method, "--list_options")) == 0
    assert option in capsys.readouterr().out and not (place / "out").exists()


def test_the_head_is_moved_to_the_encoder_that_was_pretrained_further(place: Path) -> None:
    assert main(arguments(place, "--method", "pretraining", "--share", "0.25", "--warmup_epochs", "0")) == 0
    size = read_card(place / "out" / "model.pt")["network"]["spatial_size"]
    assert size == [32, 32]
    before, mixed = (load_network(file).state_dict() for file in (place / "model.pt", place / "out" / "model.pt"))
    after = load_network(place / "out" / "encoder.pt", "encoder").state_dict()
    moved = 0
    for name, value in mixed.items():
        if name.startswith("encoder.") and value.is_floating_point():
            new = after[name.removeprefix("encoder.")]
            expected = 0.75 * before[name] + 0.25 * new
            moved += not torch.equal(before[name], new)
        else:
            expected = before[name]
        torch.testing.assert_close(value, expected, rtol=0, atol=2e-3)  # half precision in the file
    assert moved
    card = read_card(place / "out" / "model.pt")
    assert card["label_values"] == [0, 200] and card["adapted"] == {"method": "pretraining", "share": 0.25}
    assert "scores" not in card and "temperature" not in card


def test_labeled_images_are_shown_in_the_style_of_the_new_ones(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    labeled = ["--method", "style", "--labeled", str(place / "own" / "dataset.json"), "--holdout", "0.2"]
    assert main(arguments(place, *labeled, "--epoch_length", "8", "--warmup_epochs", "0")) == 0
    assert "these options change nothing here: --holdout." in capsys.readouterr().out
    lists = json.loads((place / "out" / "datalist.json").read_text())
    assert len(lists["training"]) == 5
    card = read_card(place / "out" / "model.pt")
    assert card["task"] == "segmentation" and card["class_names"] == ["background", "lesion"]
    assert card["label_values"] == [0, 200]
    before, after = (load_network(file).state_dict() for file in (place / "model.pt", place / "out" / "model.pt"))
    assert any(not torch.equal(value, after[name]) for name, value in before.items())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--method", "style"], "give them as --labeled LIST"),
        (["--method", "pretraining", "--labeled", "x.json"], "leave out --labeled"),
        (["--method", "pretraining", "--share", "0"], "--share must be in (0, 1]; got 0.0"),
        (["--export_path", "x.pt"], "--export_path: adapt makes its lists itself"),
    ],
)
def test_options_that_do_not_go_together(
    place: Path, capsys: pytest.CaptureFixture[str], options: list[str], message: str
) -> None:
    assert main(arguments(place, *options)) == 1
    assert message in capsys.readouterr().err.splitlines()[-1]
    assert not (place / "out").exists()


def test_its_own_masks_alone_do_too(place: Path) -> None:
    assert main(arguments(place)) == 0
    assert len(json.loads((place / "out" / "datalist.json").read_text())["training"]) == 4


def test_another_network_and_unsure_masks_are_refused(
    place: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def unsure(network, images, size):
        return [(torch.zeros(image.shape[1:], dtype=torch.long), 0.0) for image in images]

    assert main(arguments(place, "--agreement", "1.5")) == 1
    assert "agreement is a Dice" in capsys.readouterr().err.splitlines()[-1]
    monkeypatch.setattr("monai_usfm.evaluation.pseudo_labels.agreeing_masks", unsure)
    assert main(arguments(place)) == 1
    assert "lower agreement" in capsys.readouterr().err.splitlines()[-1]
    encoder = build_network("encoder", spatial_size=[32, 32], num_layers=1, hidden_size=48, mlp_dim=48, num_heads=3)
    save_network(place / "model.pt", encoder)
    assert main(arguments(place)) == 1
    assert (
        "is for pretraining of images; here a segmentation of images is needed"
        in capsys.readouterr().err.splitlines()[-1]
    )
