# Copyright (c) monai_usfm contributors
# SPDX-License-Identifier: Apache-2.0
"""Masks of unlabeled images, kept where views agree."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from monai_usfm import build_network, save_network
from monai_usfm.data import LoadUltrasoundd, UnreadableImageError
from monai_usfm.evaluation import pseudo_labels
from monai_usfm.evaluation.images import load_images, read_items
from monai_usfm.evaluation.pseudo_labels import agreeing_masks, pseudo_label


class Bright(torch.nn.Module):
    """Segments what is brighter than a half."""

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return torch.cat([0.5 - image, image - 0.5], dim=1) * 100


class Left(torch.nn.Module):
    """Segments the left half, whatever it shows."""

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        mark = torch.full_like(image, -50.0)
        mark[..., : image.shape[-1] // 2] = 50.0
        return torch.cat([-mark, mark], dim=1)


@pytest.fixture
def everywhere() -> torch.nn.Module:
    """Segments all of every image."""
    options = {"spatial_size": [32, 32], "num_layers": 1, "hidden_size": 48, "mlp_dim": 48, "num_heads": 3}
    network = build_network("segmentation", **options)
    with torch.no_grad():
        network.head.to_pixels.weight.zero_()
        network.head.to_pixels.bias.copy_(torch.tensor([0.0, 5.0]))
    return network


@pytest.fixture
def square() -> torch.Tensor:
    image = torch.zeros(1, 60, 80)
    image[:, 15:45, 20:50] = 1
    return image


def test_views_of_a_network_that_follows_the_image_agree(square: torch.Tensor) -> None:
    [(mask, agreement)] = agreeing_masks(Bright(), [square], (48, 64))
    assert agreement > 0.97
    assert (mask != square[0]).float().mean() < 0.02


def test_views_of_a_network_that_goes_by_place_disagree(square: torch.Tensor) -> None:
    assert agreeing_masks(Left(), [square], (48, 64))[0][1] < 0.7


def test_an_empty_mask_is_no_agreement() -> None:
    assert agreeing_masks(Bright(), [torch.zeros(1, 32, 32)], (32, 32))[0][1] == 0


def test_what_the_card_says_is_nothing_is_no_label(everywhere: torch.nn.Module, square: torch.Tensor) -> None:
    assert agreeing_masks(everywhere, [square], (32, 32))[0][1] == 1
    everywhere.card["presence_threshold"] = 1000.0
    mask, agreement = agreeing_masks(everywhere, [square], (32, 32))[0]
    assert not mask.any() and agreement == 0


def test_kept_masks_lie_on_the_images_and_the_rest_is_left_out(everywhere: torch.nn.Module, tmp_path: Path) -> None:
    save_network(tmp_path / "model.pt", everywhere)
    items = []
    for number, organ in enumerate(["breast", "lung", "breast"]):
        Image.fromarray(np.full((20, 30), 100, np.uint8)).save(tmp_path / f"{number}.png")
        items.append({"image": f"{number}.png", "organ": organ, "patient": f"p{number}"})
    (tmp_path / "broken.png").write_bytes((tmp_path / "0.png").read_bytes()[:40])
    items.append({"image": "broken.png", "organ": "breast", "patient": "p3"})
    (tmp_path / "list.json").write_text(json.dumps({"training": items}))
    arguments = (str(tmp_path / "model.pt"), str(tmp_path / "list.json"), str(tmp_path / "out"))
    found = json.loads(pseudo_label(*arguments, organs=["breast"], device="cpu").read_text())["training"]
    assert [(Path(i["image"]).name, i["patient"]) for i in found] == [("0.png", "p0"), ("2.png", "p2")]
    assert np.asarray(Image.open(found[0]["label"])).shape == (20, 30)
    assert np.asarray(Image.open(found[0]["label"])).min() == 1
    assert "broken.png" in (tmp_path / "out" / "failed.csv").read_text()
    with pytest.raises(ValueError, match="agreement is a Dice"):
        pseudo_label(*arguments, agreement=2.0, device="cpu")
    with pytest.raises(ValueError, match="holds images"):
        pseudo_label(*arguments[:2], str(tmp_path), device="cpu")
    (tmp_path / "root" / "images").mkdir(parents=True)
    Image.fromarray(np.full((20, 30), 100, np.uint8)).save(tmp_path / "root" / "images" / "a.png")
    (tmp_path / "below.json").write_text(json.dumps({"training": [{"image": "root/images/a.png", "patient": "p"}]}))
    with pytest.raises(ValueError, match="no tool would find them among results"):
        pseudo_label(arguments[0], str(tmp_path / "below.json"), str(tmp_path / "root"), device="cpu")
    (tmp_path / "new").mkdir()
    again = (tmp_path / "list.json").rename(tmp_path / "new" / "datalist.json")
    with pytest.raises(ValueError, match=r"datalist\.json is read by this command"):
        pseudo_label(arguments[0], str(again), str(tmp_path / "new"), dataset_dir=str(tmp_path), device="cpu")
    again.rename(tmp_path / "list.json")
    with pytest.raises(ValueError, match="has no image of liver in 'training'"):
        pseudo_label(*arguments, organs=["liver"], device="cpu")


@pytest.mark.filterwarnings("ignore:.*no header tells")
def test_a_dark_image_of_twelve_bits_is_read_as_in_training(everywhere: torch.nn.Module, tmp_path: Path) -> None:
    save_network(tmp_path / "model.pt", everywhere, preprocessing={"full_scale": 4095})
    Image.fromarray(np.linspace(0, 200, 40 * 30).reshape(40, 30).astype(np.uint16)).save(tmp_path / "dark.png")
    (tmp_path / "list.json").write_text(json.dumps({"training": [{"image": "dark.png", "patient": "p"}]}))
    files = (str(tmp_path / "model.pt"), str(tmp_path / "list.json"), str(tmp_path / "out"))
    (item,) = json.loads(pseudo_label(*files, device="cpu").read_text())["training"]
    assert item["full_scale"] == 4095
    for white, brightest in ((4095, 200 / 4095), (None, 200 / 255)):  # alone it is taken for one of 8 bits
        items = read_items(str(tmp_path / "list.json"), "training", full_scale=white)
        assert load_images(items, (40, 30)).images.max().item() == pytest.approx(brightest, rel=0.02)


def test_masks_have_the_values_of_the_files_and_only_those_that_a_png_can_hold(
    everywhere: torch.nn.Module, tmp_path: Path
) -> None:
    Image.fromarray(np.full((20, 30), 100, np.uint8)).save(tmp_path / "0.png")
    (tmp_path / "broken.png").write_bytes(b"no image")
    for name in ("0", "broken"):
        (tmp_path / f"{name}.json").write_text(json.dumps({"training": [{"image": f"{name}.png", "patient": "p"}]}))
    files = [str(tmp_path / name) for name in ("model.pt", "0.json", "out")]
    save_network(files[0], everywhere, label_values=[0, 1000])
    (item,) = json.loads(pseudo_label(*files, device="cpu").read_text())["training"]
    assert np.unique(np.asarray(Image.open(item["label"]))).tolist() == [1000]
    with pytest.raises(UnreadableImageError, match=r"broken\.png"):
        pseudo_label(files[0], str(tmp_path / "broken.json"), files[2], device="cpu")
    save_network(files[0], everywhere, label_values=[-1, 1])
    with pytest.raises(ValueError, match=r"model\.pt: masks are PNG files of 0 to 65535"):
        pseudo_label(*files, device="cpu")


@pytest.mark.parametrize("turn", range(1, 9))
def test_masks_lie_on_turned_images_named_by_a_relative_path(everywhere, tmp_path, monkeypatch, turn):
    weights = save_network(tmp_path / "model.pt", everywhere)
    pixels, exif = np.zeros((40, 40), np.uint8), Image.Exif()
    pixels[4:20, 8:14] = 255
    exif[0x0112] = turn
    (tmp_path / "in").mkdir()
    Image.fromarray(pixels).save(tmp_path / "in" / "a.png", exif=exif)
    (tmp_path / "in" / "list.json").write_text(json.dumps({"training": ["a.png"]}))

    def threshold(network, images, size):
        return [((image[0] > 0.5).long(), 1.0) for image in images]

    monkeypatch.setattr(pseudo_labels, "agreeing_masks", threshold)
    monkeypatch.chdir(tmp_path)
    listed = json.loads(pseudo_label(str(weights), "in/list.json", "out").read_text())["training"]
    assert Path(listed[0]["image"]).is_absolute()
    item = LoadUltrasoundd(["image", "label"], scale=["auto", None])(listed[0])
    assert torch.equal(item["image"] > 0.5, item["label"] > 0)
