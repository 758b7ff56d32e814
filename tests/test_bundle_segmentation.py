# Copyright (c) monai_usfm contributors
# SPDX-License-Identifier: Apache-2.0
"""The segmentation bundle, from a copied folder: trains, resumes, evaluates, writes masks, exports."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from monai.bundle import ConfigParser
from monai.inferers import SlidingWindowInferer
from monai.transforms import Resize
from PIL import Image
from scipy.ndimage import binary_dilation, binary_erosion

from monai_usfm import save_network
from monai_usfm.bundle import root_cause
from monai_usfm.data import LoadUltrasound
from monai_usfm.inferers import DropoutInferer
from monai_usfm.networks import UltrasoundSegmenter, usfm_vit
from tests.runs import run, training_error, workflow
from tests.tables import rows

NAME = "usfm_segmentation"
SIZE = [64, 64]
# A network of a few thousand weights; four blocks, because UPerNet takes four maps.
TINY = {"num_layers": 4, "hidden_size": 48, "mlp_dim": 96, "num_heads": 3}
QUICK = {
    "spatial_size": SIZE,
    "max_epochs": 1,
    "batch_size": 2,
    "learning_rate": 0.01,
    "amp": "fp32",
    "device": "$torch.device('cpu')",
}
TRAIN = {**QUICK, "pretrained": None, **{f"plan#{key}": value for key, value in TINY.items()}}
INFER = {"device": "$torch.device('cpu')", "amp": "fp32"}
VOLUME = {"spatial_dims": 3, "spatial_size": [16, 32, 32], "batch_size": 1, "crops_per_volume": 1}


def case(shape: tuple[int, ...], seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Speckle with a bright ellipse off the center, and the ellipse; neither has a symmetry."""
    rng = np.random.default_rng(seed)
    axes = np.meshgrid(*[np.linspace(0, 1, n) for n in shape], indexing="ij")
    center, radii = (0.3, 0.6, 0.45)[: len(shape)], (0.15, 0.3, 0.35)[: len(shape)]
    inside = sum(((x - c) / r) ** 2 for x, c, r in zip(axes, center, radii, strict=True)) < 1
    image = 0.25 * rng.random(shape) + 0.1 * axes[0] + 0.6 * inside
    return (255 * image.clip(0, 1)).round().astype(np.uint8), inside.astype(np.uint8)


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Nine images of different sizes, gray and RGB, with masks of 0 and 255."""
    folder = tmp_path_factory.mktemp("images")
    lists: dict[str, list[dict[str, str]]] = {"training": [], "validation": [], "test": []}
    for number in range(9):
        image, mask = case((70 + 3 * number, 90 - 2 * number), number)
        color = number % 2 == 1
        Image.fromarray(np.stack([image] * 3, axis=-1) if color else image).save(folder / f"image_{number}.png")
        Image.fromarray(255 * mask).save(folder / f"mask_{number}.png")
        split = "training" if number < 5 else "validation" if number < 7 else "test"
        lists[split].append({"image": f"image_{number}.png", "label": f"mask_{number}.png"})
    (folder / "dataset.json").write_text(json.dumps(lists))
    return folder


@pytest.fixture(scope="module")
def volumes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three volumes with unequal spacing and a flipped, moved first axis; stored (x, y, z)."""
    folder = tmp_path_factory.mktemp("volumes")
    affine = np.array([[-0.4, 0, 0, 11.0], [0, 0.5, 0, -3.0], [0, 0, 1.2, 7.0], [0, 0, 0, 1]])
    names = []
    for number in range(3):
        image, mask = case((20, 36, 40 + number), number)
        for kind, values in (("image", image), ("mask", mask)):
            nib.save(nib.Nifti1Image(values.transpose(2, 1, 0), affine), folder / f"{kind}_{number}.nii.gz")
        names.append({"image": f"image_{number}.nii.gz", "label": f"mask_{number}.nii.gz"})
    (folder / "dataset.json").write_text(
        json.dumps({"training": names[:1], "validation": names[2:], "test": names[1:2]})
    )
    return folder


@pytest.fixture(scope="module")
def bundle(copy_bundle) -> Path:
    """The bundle's folder, copied to where nothing of the checkout is."""
    return copy_bundle(NAME)


def losses(folder: Path) -> list[tuple[str, str, str]]:
    return [(row["epoch"], row["train_loss"], row["val_mean_dice"]) for row in rows(folder / "metrics.csv")]


@pytest.fixture(scope="module")
def trained(bundle: Path, images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Output folder of three uninterrupted epochs of train.json with demo.json."""
    output = tmp_path_factory.mktemp("trained")
    data = {"dataset_dir": str(images), "output_dir": str(output)}
    run(workflow(bundle, "train", ["train.json", "demo.json"], **data, **{**TRAIN, "max_epochs": 3}))
    return output


@pytest.fixture(scope="module")
def masks(bundle: Path, images: Path, trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of the masks that the trained network gives for the test split."""
    output = tmp_path_factory.mktemp("masks")
    data = {"dataset_dir": str(images), "datalist": str(images / "dataset.json"), "output_dir": str(output)}
    weights = {"checkpoint": str(trained / "model.pt")}
    run(workflow(bundle, "infer", ["inference.json"], **data, **weights, **INFER))
    return output


def network_of(weights: Path, **shape) -> UltrasoundSegmenter:
    """The network built by hand, with exported weights."""
    network = UltrasoundSegmenter(usfm_vit("tiny", **{"img_size": SIZE, **TINY, **shape}), num_classes=2)
    network.load_state_dict(torch.load(weights, weights_only=True))
    return network.eval()


def test_training_leaves_metrics_checkpoints_and_images(trained: Path) -> None:
    assert [row[0] for row in losses(trained)] == ["1", "2", "3"]
    assert all(np.isfinite(float(value)) for row in losses(trained) for value in row)
    assert sorted(p.name for p in (trained / "checkpoints").iterdir()) == ["best.pt", "last.pt", "previous.pt"]
    with Image.open(trained / "figures" / "segmentation_epoch_0001.png") as arrays:
        assert arrays.width > 3 * SIZE[1]  # image | label | prediction


def test_exported_weights_are_the_best_ones(trained: Path) -> None:
    best = torch.load(trained / "checkpoints" / "best.pt", weights_only=True)
    exported = torch.load(trained / "model.pt", weights_only=True)
    assert set(best) == set(exported)
    assert all(
        torch.equal(best[name].half() if best[name].is_floating_point() else best[name], exported[name])
        for name in best
    )


@pytest.mark.parametrize("number", [7, 8])  # an RGB and a gray image
def test_mask_is_the_argmax_of_the_network_on_the_grid_of_the_image(
    images: Path, trained: Path, masks: Path, number: int
) -> None:
    written = np.array(Image.open(masks / f"image_{number}_seg.png"))
    image = LoadUltrasound()(images / f"image_{number}.png")
    pixels = Resize(SIZE, mode="bilinear", anti_aliasing=True)(image).as_tensor()[None]
    with torch.no_grad():
        probabilities = network_of(trained / "model.pt")(pixels).softmax(dim=1)
    wanted = F.interpolate(probabilities, size=image.shape[1:], mode="bilinear").argmax(dim=1)[0].numpy()
    assert 0.01 < wanted.mean() < 0.99
    np.testing.assert_array_equal(written, wanted)


def test_bf16_changes_pixels_at_the_boundary_alone(
    bundle: Path, images: Path, trained: Path, masks: Path, tmp_path: Path
) -> None:
    data = {"dataset_dir": str(images), "datalist": str(images / "dataset.json"), "output_dir": str(tmp_path)}
    settings = {"checkpoint": str(trained / "model.pt"), **INFER, "amp": "bf16"}
    run(workflow(bundle, "infer", ["inference.json"], **data, **settings))
    for number in (7, 8):
        found, exact = (np.array(Image.open(folder / f"image_{number}_seg.png")) > 0 for folder in (tmp_path, masks))
        edge = binary_dilation(exact, iterations=2) & ~binary_erosion(exact, iterations=2, border_value=1)
        assert (found == exact)[~edge].all()
        assert 2 * (found & exact).sum() / (found.sum() + exact.sum()) > 0.99


def test_mask_lies_where_the_structure_is(images: Path, masks: Path) -> None:
    written = np.array(Image.open(masks / "image_8_seg.png")) > 0
    wanted = np.array(Image.open(images / "mask_8.png")) > 0
    dice = 2 * (written & wanted).sum() / (written.sum() + wanted.sum())
    flipped = 2 * (written[::-1] & wanted).sum() / (written.sum() + wanted.sum())
    assert dice > 0.5 > flipped


def test_uncertainty_is_the_entropy_of_the_mean_over_dropout_masks_and_mirror_images(
    bundle: Path, images: Path, trained: Path, tmp_path: Path
) -> None:
    data = {"dataset_dir": str(images), "datalist": str(images / "dataset.json"), "output_dir": str(tmp_path)}
    settings = {"checkpoint": str(trained / "model.pt"), "uncertainty": True, "dropout_samples": 3, **INFER}
    settings |= {"amp": "fp32", "batch_size": 1}  # dropout masks are those of the batch
    run(workflow(bundle, "infer", ["inference.json"], **data, **settings))
    image = LoadUltrasound()(images / "image_8.png")
    pixels = Resize(SIZE, mode="bilinear", anti_aliasing=True)(image).as_tensor()[None]
    network = network_of(trained / "model.pt")
    plain, mirrored = (DropoutInferer(3)(x, network).softmax(1) for x in (pixels, pixels.flip(3)))
    mean = F.interpolate((plain + mirrored.flip(3)) / 2, size=image.shape[1:], mode="bilinear")[0].double().numpy()
    entropy = -(mean * np.log2(mean)).sum(0)
    written = np.array(Image.open(tmp_path / "image_8_uncertainty.png"))
    np.testing.assert_allclose(written, 255 * entropy, atol=0.6)
    np.testing.assert_array_equal(np.array(Image.open(tmp_path / "image_8_seg.png")), mean.argmax(0))
    assert written.std() > 5


def test_evaluation_scores_the_masks_that_inference_writes(
    bundle: Path, images: Path, trained: Path, masks: Path
) -> None:
    files = ["train.json", "evaluate.json"]
    run(workflow(bundle, "train", files, dataset_dir=str(images), output_dir=str(trained), **QUICK))
    table = rows(trained / "evaluation" / "cases.csv")
    assert [Path(row["image"]).name for row in table] == ["image_7.png", "image_8.png"]
    for number, row in zip((7, 8), table, strict=True):
        written = np.array(Image.open(masks / f"image_{number}_seg.png")) > 0
        wanted = np.array(Image.open(images / f"mask_{number}.png")) > 0
        both = (written & wanted).sum()
        assert float(row["dice"]) == pytest.approx(2 * both / (written.sum() + wanted.sum()), abs=1e-4)
        assert float(row["iou"]) == pytest.approx(both / (written | wanted).sum(), abs=1e-4)
        assert row["unit"] == "px"
    summary = json.loads((trained / "evaluation" / "summary.json").read_text())
    assert summary["cases"] == 2
    assert summary["class_1"]["dice"] == pytest.approx(np.mean([float(row["dice"]) for row in table]), abs=1e-4)


def test_masks_below_the_presence_threshold_are_empty_and_scored_so(
    bundle: Path, images: Path, trained: Path, tmp_path: Path
) -> None:
    data = {"dataset_dir": str(images), "datalist": str(images / "dataset.json"), "output_dir": str(tmp_path)}
    weights = {"checkpoint": str(trained / "model.pt"), "presence_threshold": 1000.0}
    run(workflow(bundle, "infer", ["inference.json"], **data, **weights, **INFER))
    assert not any(np.array(Image.open(tmp_path / f"image_{number}_seg.png")).any() for number in (7, 8))
    run(workflow(bundle, "train", ["train.json", "evaluate.json"], **data, **weights, **QUICK))
    summary = json.loads((tmp_path / "evaluation" / "summary.json").read_text())["class_1"]
    assert (summary["false_negatives"], summary["images_without"], summary["false_positive_rate"]) == (2, 0, None)


def test_every_frame_of_a_cine_is_segmented_as_a_still(bundle: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = UltrasoundSegmenter(usfm_vit("tiny", img_size=SIZE, **TINY), 2)
    save_network(tmp_path / "weights.pt", network)
    frames = np.stack([case((50, 70), seed)[0] for seed in range(3)])  # (t, y, x)
    for folder in ("cine", "stills"):
        (tmp_path / folder).mkdir()
    cine = nib.Nifti1Image(frames.transpose(2, 1, 0)[:, :, None], np.eye(4))
    cine.header.set_zooms((1, 1, 1, 40))
    cine.header.set_xyzt_units("mm", "msec")
    nib.save(cine, tmp_path / "cine" / "cine.nii.gz")
    for number, frame in enumerate(frames):
        Image.fromarray(frame).save(tmp_path / "stills" / f"{number}.png")
    for folder, options in (("cine", {"frames": True}), ("stills", {})):
        data = {"dataset_dir": str(tmp_path / folder), "output_dir": str(tmp_path / f"{folder}_out")}
        options = {**options, "checkpoint": str(tmp_path / "weights.pt"), **INFER}
        run(workflow(bundle, "infer", ["inference.json"], **data, **options))
    segmented = nib.load(tmp_path / "cine_out" / "cine_seg.nii.gz")
    assert segmented.header.get_zooms()[3] == pytest.approx(0.04) and segmented.header.get_xyzt_units()[1] == "sec"
    found = np.asarray(segmented.dataobj)
    assert found.shape == (70, 50, 1, 3)
    for number in range(3):
        still = np.array(Image.open(tmp_path / "stills_out" / f"{number}_seg.png"))
        assert (still == found[:, :, 0, number].T).mean() > 0.999
    assert [row["frame"] for row in rows(tmp_path / "cine_out" / "statistics.csv")] == ["0", "1", "2"]
    assert (tmp_path / "cine_out" / "previews" / "cine.mp4").is_file()


def test_images_of_one_name_have_results_of_their_own(
    bundle: Path, images: Path, trained: Path, masks: Path, tmp_path: Path
) -> None:
    for patient, number in (("p1", 7), ("p2", 8)):
        (tmp_path / "data" / patient).mkdir(parents=True)
        shutil.copy(images / f"image_{number}.png", tmp_path / "data" / patient / "image.png")
    data = {"dataset_dir": str(tmp_path / "data"), "output_dir": str(tmp_path / "out")}
    run(workflow(bundle, "infer", ["inference.json"], checkpoint=str(trained / "model.pt"), **data, **INFER))
    for patient, number in (("p1", 7), ("p2", 8)):
        found = np.array(Image.open(tmp_path / "out" / patient / "image_seg.png"))
        np.testing.assert_array_equal(found, np.array(Image.open(masks / f"image_{number}_seg.png")))


@pytest.mark.parametrize(
    "options",
    [{"head": "segvit"}, {"head": "upernet", "plan#width": 32}, {"pos_embed": "sincos", "layer_scale": 0}],
    ids=["segvit", "upernet", "sincos"],
)
def test_variant_trains_and_infers_without_naming_it_again(
    bundle: Path, images: Path, tmp_path: Path, options: dict
) -> None:
    data = {"dataset_dir": str(images), "output_dir": str(tmp_path)}
    run(workflow(bundle, "train", ["train.json", "demo.json"], **data, **{**TRAIN, **options}))
    assert len(losses(tmp_path)) == 1
    weights = {"checkpoint": str(tmp_path / "model.pt"), "datalist": str(images / "dataset.json")}
    run(workflow(bundle, "infer", ["inference.json"], **data, **weights, **INFER))
    written = np.array(Image.open(tmp_path / "image_8_seg.png"))
    assert written.shape == np.array(Image.open(images / "image_8.png")).shape
    assert set(np.unique(written)) <= {0, 1}


@pytest.mark.parametrize(
    ("head", "kind"), [("pyramid", "DiceCELoss"), ("upernet", "DeepSupervisionLoss"), ("segvit", "ATMLoss")]
)
def test_each_head_has_its_loss(bundle: Path, head: str, kind: str) -> None:
    parser = ConfigParser(ConfigParser.load_config_file(bundle / "configs" / "train.json"))
    parser["head"] = head
    assert type(parser.get_parsed_content("loss")).__name__ == kind


def test_segvit_finds_no_landmarks(bundle: Path) -> None:
    parser = ConfigParser(ConfigParser.load_config_file(bundle / "configs" / "train.json"))
    parser.update({"head": "segvit", "landmarks": ["tip"]})
    with pytest.raises(RuntimeError) as caught:
        parser.get_parsed_content("loss")
    assert str(root_cause(caught.value)).startswith("--head segvit learns classes and finds no landmarks")


def test_the_loss_is_that_of_exclusive_classes(bundle: Path) -> None:
    """Dice and cross-entropy of a softmax, by hand; a sigmoid would give another number."""
    loss = ConfigParser(ConfigParser.load_config_file(bundle / "configs" / "train.json")).get_parsed_content("loss")
    logits, label = torch.randn(2, 3, 4, 5), torch.randint(0, 3, (2, 1, 4, 5))
    p, y = logits.softmax(1), F.one_hot(label[:, 0], 3).movedim(-1, 1).float()
    dice = (2 * (p * y).sum((2, 3)) + 1e-5) / (p.sum((2, 3)) + y.sum((2, 3)) + 1e-5)
    wanted = 1 - dice.mean() + F.cross_entropy(logits, label[:, 0])
    assert float(loss(logits, label)) == pytest.approx(float(wanted), rel=1e-5)


def test_low_rank_updates_are_merged_and_change_the_encoder(bundle: Path, images: Path, tmp_path: Path) -> None:
    data = {"dataset_dir": str(images), "output_dir": str(tmp_path)}
    run(workflow(bundle, "train", ["train.json", "demo.json"], **data, **TRAIN, lora_rank=8))
    exported = torch.load(tmp_path / "model.pt", weights_only=True)
    best = torch.load(tmp_path / "checkpoints" / "best.pt", weights_only=True)
    name = "encoder.blocks.0.mlp.fc1"
    assert set(exported) == set(network_of_names())
    original = best[f"{name}.parametrizations.weight.original"]
    up, down = (v for k, v in best.items() if k.startswith(f"{name}.parametrizations.weight.0."))
    up, down = (up, down) if up.shape[0] == original.shape[0] else (down, up)
    merged = original + 16.0 / 8 * up @ down
    assert (merged - original).abs().max() > 1e-5
    assert torch.equal(exported[f"{name}.weight"], merged.half())


def network_of_names() -> list[str]:
    return list(UltrasoundSegmenter(usfm_vit("tiny", img_size=SIZE, **TINY), num_classes=2).state_dict())


def test_volume_mask_keeps_the_grid_and_equals_sliding_windows_by_hand(
    bundle: Path, volumes: Path, trained: Path, tmp_path: Path
) -> None:
    data = {"dataset_dir": str(volumes), "output_dir": str(tmp_path)}
    settings = {**QUICK, **VOLUME, "network_size": None, "max_epochs": 4, "pretrained": str(trained / "model.pt")}
    run(workflow(bundle, "train", ["train.json", "demo.json"], **data, **settings))
    weights = {"checkpoint": str(tmp_path / "model.pt"), "datalist": str(volumes / "dataset.json")}
    entropy = {"uncertainty": True, "dropout_samples": 0, "inferer#flip_axes": []}
    run(workflow(bundle, "infer", ["inference.json"], **data, **weights, **entropy, **INFER))
    written = nib.load(tmp_path / "image_1_seg.nii.gz")
    source = nib.load(volumes / "image_1.nii.gz")
    np.testing.assert_allclose(written.affine, source.affine, atol=1e-5)
    assert written.shape == source.shape
    network = network_of(tmp_path / "model.pt", img_size=[16, 32, 32], patch_size=[8, 16, 16], spatial_dims=3)
    windows = SlidingWindowInferer([16, 32, 32], sw_batch_size=4, overlap=0.5, mode="gaussian", sigma_scale=0.225)
    with torch.no_grad():
        image = LoadUltrasound(spatial_dims=3)(volumes / "image_1.nii.gz").as_tensor()[None]
        wanted = windows(image, network).argmax(dim=1)[0].numpy()
    assert 0.001 < wanted.mean() < 0.999
    np.testing.assert_array_equal(np.asarray(written.dataobj), wanted.transpose(2, 1, 0))
    uncertainty = nib.load(tmp_path / "image_1_uncertainty.nii.gz")
    np.testing.assert_allclose(uncertainty.affine, source.affine, atol=1e-5)
    assert uncertainty.shape == source.shape and np.asarray(uncertainty.dataobj).max() > 128


def test_volumes_are_evaluated_in_millimeters(bundle: Path, volumes: Path, tmp_path: Path) -> None:
    shape = {"img_size": [16, 32, 32], "patch_size": [8, 16, 16], "spatial_dims": 3}
    network = UltrasoundSegmenter(usfm_vit("tiny", **TINY, **shape), num_classes=2)
    save_network(tmp_path / "model.pt", network)
    data = {"dataset_dir": str(volumes), "output_dir": str(tmp_path)}
    run(workflow(bundle, "train", ["train.json", "evaluate.json"], **data, **INFER))
    (row,) = rows(tmp_path / "evaluation" / "cases.csv")
    assert row["unit"] == "mm"
    assert Path(row["image"]).name == "image_1.nii.gz"


@pytest.mark.parametrize("overlays", [[], ["volume"]])
def test_training_varies_the_intensity_of_images_alone(
    bundle: Path, images: Path, volumes: Path, tmp_path: Path, overlays: list[str]
) -> None:
    folder, base = (volumes, {**QUICK, **VOLUME}) if overlays else (images, QUICK)
    settings = {"dataset_dir": str(folder), "datalist": str(folder / "dataset.json"), "output_dir": str(tmp_path)}
    flow = workflow(bundle, "train", ["train.json"], **settings, **{**base, "in_channels": 3})
    preprocessing = flow.parser.get_parsed_content("train#preprocessing")
    item = flow.parser.get_parsed_content("splits")["training"][0]
    seen = [preprocessing(item) for _ in range(12)]
    seen = [one[0] if overlays else one for one in seen]
    if not overlays:  # crops of volumes differ anyway
        assert len({tuple(one["image"].flatten().tolist()) for one in seen}) > 6
        assert all(torch.equal(one["label"], seen[0]["label"]) for one in seen)
    for one in seen:
        assert one["image"].min() >= 0 and one["image"].max() <= 1
        assert torch.equal(one["image"][0], one["image"][2])  # gray stays gray
    plain = workflow(bundle, "train", ["train.json"], **settings, **base, intensity_augmentation=[])
    without = [plain.parser.get_parsed_content("train#preprocessing")(item) for _ in range(2)]
    if not overlays:
        assert torch.equal(without[0]["image"], without[1]["image"])


def dataset_with(images: Path, folder: Path, image: np.ndarray | None, mask: np.ndarray | None) -> Path:
    """A copy of the data set whose second training item has another image or mask."""
    shutil.copytree(images, folder)
    for name, values in (("image_1.png", image), ("mask_1.png", mask)):
        if values is not None:
            Image.fromarray(values).save(folder / name)
    return folder


def test_unknown_label_value_is_named(bundle: Path, images: Path, tmp_path: Path) -> None:
    mask = np.array(Image.open(images / "mask_1.png"))
    mask[0, 0] = 7
    message = training_error(bundle, dataset_with(images, tmp_path / "data", None, mask), tmp_path / "out", **TRAIN)
    assert "mask_1.png: value(s) 7, 255 stand for no class" in message


def test_label_of_another_size_is_named(bundle: Path, images: Path, tmp_path: Path) -> None:
    mask = np.array(Image.open(images / "mask_1.png"))[:-1]
    message = training_error(bundle, dataset_with(images, tmp_path / "data", None, mask), tmp_path / "out", **TRAIN)
    assert "mask_1.png: has size" in message and "must lie on one grid" in message


def test_missing_label_is_named(bundle: Path, images: Path, tmp_path: Path) -> None:
    lists = json.loads((images / "dataset.json").read_text())
    del lists["training"][1]["label"]
    (tmp_path / "list.json").write_text(json.dumps(lists))
    message = training_error(bundle, images, tmp_path / "out", **TRAIN, datalist=str(tmp_path / "list.json"))
    assert "item 1 of 'training' lacks label" in message


def test_empty_masks_train_and_are_scored_and_told(bundle: Path, images: Path, tmp_path: Path, caplog) -> None:
    lists = json.loads((images / "dataset.json").read_text())
    folder = tmp_path / "data"
    shutil.copytree(images, folder)
    for items in lists.values():
        for item in items:
            values = np.array(Image.open(folder / item["label"]))
            Image.fromarray(np.zeros_like(values)).save(folder / item["label"])
    data = {"dataset_dir": str(folder), "output_dir": str(tmp_path)}
    run(workflow(bundle, "train", ["train.json", "demo.json"], **data, **TRAIN))
    assert np.isfinite(float(losses(tmp_path)[0][1]))
    assert "no case of this split shows any structure" in caplog.text
    run(workflow(bundle, "train", ["train.json", "evaluate.json"], **data, **QUICK))
    for row in rows(tmp_path / "evaluation" / "cases.csv"):
        assert row["false_negative"] == "0"
        assert float(row["dice"]) == (0.0 if row["false_positive"] == "1" else 1.0)
        assert row["hd95"] == "nan"
    summary = json.loads((tmp_path / "evaluation" / "summary.json").read_text())["class_1"]
    assert summary["false_positive_rate"] == summary["false_positives"] / summary["images_without"]
