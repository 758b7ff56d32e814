# Copyright (c) monai_usfm contributors
# SPDX-License-Identifier: Apache-2.0
"""The enhancement bundle, copied to an empty folder, at the size of a few patches."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.bundle import ConfigParser, run
from monai.inferers import SlidingWindowInferer
from PIL import Image

from monai_usfm import save_network
from monai_usfm.bundle import root_cause
from monai_usfm.networks import UltrasoundEnhancer, usfm_vit
from tests.runs import files
from tests.tables import rows as table

SIZE = [32, 48]
SETTINGS = {"batch_size": 2, "device": "cpu"}
TRAINING = SETTINGS | {"spatial_size": SIZE, "max_epochs": 1, "warmup_epochs": 0, "learning_rate": 0.002, "amp": "fp32"}


def write_images(folder: Path) -> None:
    """Images of two sizes with a black margin, a mask of their brighter part, and a better version of each."""
    rng = np.random.default_rng(0)
    lists, number = {}, 0
    for split, count in {"training": 4, "validation": 2, "test": 2}.items():
        lists[split] = []
        for _ in range(count):
            shape = ((40, 72), (56, 50))[number % 2]
            rows, columns = np.indices(shape)
            mask = (rows - 18) ** 2 + (columns - 24) ** 2 < 64
            better = 90.0 + 60 * mask + 20 * np.sin(columns / 3 + number)  # no file is in two splits
            better[:, -6:] = 0
            worse = np.where(better > 0, better + rng.normal(0, 15, shape), 0)
            entry = {}
            for key, values in {"image": worse, "label": better, "lesion": 255.0 * mask}.items():
                entry[key] = f"{key}_{number}.png"
                Image.fromarray(values.clip(0, 255).astype(np.uint8)).save(folder / entry[key])
            lists[split].append(entry)
            number += 1
    (folder / "dataset.json").write_text(json.dumps(lists))


def train(root: Path, *overlays: str, **settings) -> None:
    options = TRAINING | {"dataset_dir": str(root / "data")} | settings
    run(config_file=files(root, "train", *overlays), bundle_root=str(root), **options)


@pytest.fixture(scope="module")
def root(copy_bundle) -> Path:
    """A copy of the bundle that has been trained for one epoch."""
    root = copy_bundle("usfm_enhancement")
    (root / "data").mkdir()
    write_images(root / "data")
    train(root)
    return root


def strong_network() -> UltrasoundEnhancer:
    """A network that changes images visibly and differently from place to place."""
    torch.manual_seed(0)
    net = UltrasoundEnhancer(usfm_vit("tiny", img_size=SIZE, layer_scale=0.1)).eval()
    with torch.no_grad():
        net.correction.weight.normal_(0, 0.05)
    return net


def infer(root: Path, folder: Path, network: UltrasoundEnhancer, tmp_path: Path, **settings) -> Path:
    save_network(tmp_path / "weights.pt", network, half=False)
    run(
        config_file=files(root, "inference"),
        bundle_root=str(root),
        dataset_dir=str(folder),
        checkpoint=str(tmp_path / "weights.pt"),
        output_dir=str(tmp_path / "out"),
        **SETTINGS | settings,
    )
    return tmp_path / "out"


def test_training_leaves_records_scores_images_and_weights(root):
    rows = table(root / "output" / "metrics.csv")
    assert [row["epoch"] for row in rows] == ["1"]
    assert all(float(rows[0][name]) for name in ("train_loss", "val_psnr", "val_ssim", "val_lncc"))
    names = ("run.json", "checkpoints/last.pt", "checkpoints/best.pt", "figures/enhancement_epoch_0001.png")
    assert all((root / "output" / name).is_file() for name in names)
    state = torch.load(root / "output" / "model.pt", weights_only=True)
    assert state["correction.weight"].abs().max() > 0  # it started at zero


def test_inference_from_the_trained_checkpoint_writes_every_image_at_its_own_size(root):
    weights = {"checkpoint": str(root / "output" / "model.pt")}
    run(
        config_file=files(root, "inference"),
        bundle_root=str(root),
        dataset_dir=str(root / "data"),
        **weights,
        **SETTINGS,
    )
    sources = sorted((root / "data").glob("*.png"))
    assert len(sources) == 24
    for source in sources:
        with Image.open(source) as before, Image.open(root / "eval" / f"{source.stem}_enhanced.png") as after:
            assert after.size == before.size and after.mode == "L"


@pytest.mark.parametrize("kind", ["gray.png", "rgb.png", "still.nii.gz"])
def test_result_is_upright_in_the_geometry_of_the_file(root, tmp_path, kind):
    rng = np.random.default_rng(1)
    pixels = rng.integers(20, 120, (45, 77), dtype=np.uint8)
    pixels[:12, :20] += 120  # bright above left: no flip or transposition goes unseen
    pixels[:, 60:] = 0
    (tmp_path / "in").mkdir()
    path, affine = tmp_path / "in" / kind, np.diag([0.3, 0.4, 1.0, 1.0])
    affine[:3, 3] = (5, -7, 2)
    if kind == "still.nii.gz":
        nib.save(nib.Nifti1Image(pixels.T, affine), path)
    else:
        Image.fromarray(pixels if kind == "gray.png" else np.repeat(pixels[..., None], 3, -1)).save(path)
    network = strong_network()
    ext = ".nii.gz" if kind == "still.nii.gz" else ".png"
    out = infer(root, tmp_path / "in", network, tmp_path, output_ext=ext) / f"{kind.split('.')[0]}_enhanced{ext}"
    if ext == ".nii.gz":
        saved = nib.load(out)
        np.testing.assert_allclose(saved.affine, affine, atol=1e-6)
        result = np.asarray(saved.dataobj).squeeze().T
    else:
        result = np.array(Image.open(out))
    assert result.dtype == np.uint8 and result.shape == pixels.shape

    windows = SlidingWindowInferer(SIZE, 2, 0.5, "gaussian", 0.225, padding_mode="replicate")
    with torch.no_grad():
        expected = windows(torch.from_numpy(pixels)[None, None].float() / 255, network)[0, 0].numpy() * 255
    lit = np.zeros_like(pixels, bool)
    lit[:, :60] = True  # nothing is painted beyond the sector
    np.testing.assert_allclose(result, np.where(lit, expected, 0), atol=0.51)
    assert np.abs(expected - pixels)[:, :60].mean() > 2  # the network did something


def test_windows_leave_no_seams(root):
    """What a network adds may differ from window to window: without blending it jumps where they begin or end."""
    parser = ConfigParser(ConfigParser.load_config_files(files(root, "inference")))
    parser["spatial_size"], parser["batch_size"], parser["bundle_root"] = SIZE, 4, str(root)
    image = torch.zeros(1, 1, 64, SIZE[1] * 4)
    jumps = {}
    for name, inferer in {
        "bundle": parser.get_parsed_content("inferer"),
        "plain": SlidingWindowInferer(SIZE, 4, 0.5, "constant"),
    }.items():
        change = inferer(image, lambda window: window + torch.linspace(-1, 1, window.shape[-1]))
        jumps[name] = change.diff(dim=-1).abs().max().item()
    assert jumps["plain"] > 0.9  # half of the ramp from -1 to 1
    assert jumps["bundle"] < 0.2


def test_result_for_deploy_keeps_its_channel_and_that_for_label_is_a_gray_image(root):
    parser = ConfigParser(ConfigParser.load_config_files(files(root, "inference")))
    parser["bundle_root"], parser["spatial_size"] = str(root), SIZE
    source = sorted((root / "data").glob("image_0.png"))[0]
    image = parser.get_parsed_content("preprocessing")({"image": str(source)})["image"]
    assert image.shape == (1, 40, 72)
    for transforms, shape in (("postprocessing", (1, 72, 40)), ("post_transforms", (72, 40))):
        steps = [t for t in parser.get_parsed_content(transforms).transforms if type(t).__name__ != "SaveImaged"]
        item = {"image": image.clone(), "pred": image.clone()}
        for step in steps:
            item = step(item)
        assert item["pred"].shape == shape
        gray = np.asarray(item["pred"]).squeeze().T
        np.testing.assert_array_equal(gray, np.array(Image.open(source)))  # what went in unchanged comes out so
    assert item["pred"].dtype == torch.uint8


def test_evaluation_compares_whole_images_with_a_blur(root):
    run(
        config_file=files(root, "train", "evaluate"),
        bundle_root=str(root),
        dataset_dir=str(root / "data"),
        roi_key="lesion",
        amp="fp32",
        **SETTINGS,
    )
    rows = table(root / "output" / "evaluation" / "cases.csv")
    assert [Path(row["image"]).name for row in rows] == ["image_6.png"] * 4 + ["image_7.png"] * 4
    assert all(float(row["gcnr"]) > 0 for row in rows)
    summary = json.loads((root / "output" / "evaluation" / "summary.json").read_text())
    assert summary["cases"] == 2 and set(summary["blur_wins"]) == {"psnr", "ssim", "lncc", "quality"}


def test_pairs_are_learnt_from_the_named_files(root, tmp_path):
    paths = {"output_dir": str(tmp_path), "pairs": True}
    train(root, **paths)
    options = SETTINGS | {"amp": "fp32", "dataset_dir": str(root / "data"), "bundle_root": str(root)} | paths
    run(config_file=files(root, "train", "evaluate"), **options)
    row = table(tmp_path / "evaluation" / "cases.csv")[0]
    low, high = (np.array(Image.open(root / "data" / f"{key}_6.png")) / 255 for key in ("image", "label"))
    assert float(row["psnr"]) == pytest.approx(-10 * np.log10(np.mean((low - high) ** 2)), abs=1e-3)


def test_what_a_pair_is_is_told_once(root, tmp_path):
    lists = json.loads((root / "data" / "dataset.json").read_text())
    renamed = {s: [{"low": i["image"], "image": i["label"]} for i in items] for s, items in lists.items()}
    (tmp_path / "list.json").write_text(json.dumps(renamed))
    paths = {"dataset_dir": str(root / "data"), "datalist": str(tmp_path / "list.json"), "output_dir": str(tmp_path)}
    train(root, **paths, pairs=True, input_key="low", target_key="image")
    options = SETTINGS | {"bundle_root": str(root), "amp": "fp32"} | paths
    run(config_file=files(root, "train", "evaluate"), **options)
    row = table(tmp_path / "evaluation" / "cases.csv")[0]
    low, high = (np.array(Image.open(root / "data" / renamed["test"][0][k])) / 255 for k in ("low", "image"))
    assert float(row["psnr"]) == pytest.approx(-10 * np.log10(np.mean((low - high) ** 2)), abs=1e-3)
    where = {"checkpoint": str(tmp_path / "model.pt"), "output_dir": str(tmp_path / "out")}
    run(config_file=files(root, "inference"), **{**options, **where, "amp": "auto"})
    names = {Path(item["low"]).stem + "_enhanced.png" for item in renamed["test"]}
    assert {file.name for file in (tmp_path / "out").glob("*_enhanced.png")} == names
    for key in ("low", "image"):  # one file of a pair in two splits
        leak = json.loads(json.dumps(renamed))
        leak["test"][0][key] = leak["training"][0][key]
        (tmp_path / "list.json").write_text(json.dumps(leak))
        with pytest.raises(RuntimeError) as error:
            train(root, **paths, pairs=True, input_key="low", target_key="image")
        assert "stand in two splits" in str(root_cause(error.value))
    with pytest.raises(RuntimeError) as error:
        (tmp_path / "list.json").write_text(json.dumps(renamed))
        run(config_file=files(root, "train", "evaluate"), **options, roi_key="mask")
    assert "has no 'mask'" in str(root_cause(error.value)) and "--roi_key" in str(root_cause(error.value))


def test_volumes_train_are_evaluated_and_enhanced_on_their_grid(root, tmp_path):
    common = {"bundle_root": str(root), "batch_size": 2, "device": "cpu"}
    world = {"num_training": 1, "num_validation": 1, "num_test": 1, "spatial_dims": 3, "image_size": [16, 40, 32]}
    paths = {"output_dir": str(tmp_path), "amp": "fp32"}
    training = {"max_epochs": 1, "epoch_length": 2, "val_interval": 2, "synthetic": world} | paths
    run(config_file=files(root, "train"), spatial_size=[8, 32, 32], **training, **common)
    run(config_file=files(root, "train", "evaluate"), synthetic=world, roi_key="label", **paths, **common)
    assert len(table(tmp_path / "evaluation" / "cases.csv")) == 4
    run(
        config_file=files(root, "inference"),
        checkpoint=str(tmp_path / "model.pt"),
        dataset_dir=str(tmp_path / "synthetic_images"),
        datalist=str(tmp_path / "synthetic_images" / "datalist.json"),
        output_dir=str(tmp_path / "eval"),
        **common,
    )
    (path,) = (tmp_path / "eval").glob("*.nii.gz")
    (source,) = (tmp_path / "synthetic_images" / "test" / "image").glob("*.nii.gz")
    result, volume = nib.load(path), nib.load(source)
    assert result.shape == volume.shape and result.get_data_dtype() == np.uint8
    np.testing.assert_allclose(result.affine, volume.affine, atol=1e-5)
    # One step of training changes little: what comes out is the volume itself, in place.
    a, b = (np.asarray(v.dataobj, dtype=float).ravel() for v in (result, volume))
    assert np.corrcoef(a, b)[0, 1] > 0.95
