# Copyright (c) monai_usfm contributors
# SPDX-License-Identifier: Apache-2.0
"""The overlays of the pretraining bundle that have a teacher: distill.json and foundation.json."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from monai_usfm import network_options, save_network
from monai_usfm.bundle import describe, on_device, prompted_network
from monai_usfm.networks import FoundationModel, UltrasoundSegmenter, load_pretrained, usfm_vit
from monai_usfm.networks.heads.pyramid import ImageCorrection
from monai_usfm.options import without_effect
from monai_usfm.transforms.prompts import PROMPTS
from monai_usfm.workflow import load_bundle, run_bundle

EMBEDDING = "encoder.patch_embed.proj.weight"
TINY = {"num_layers": 2, "hidden_size": 48, "mlp_dim": 96, "num_heads": 3}
QUICK = {
    "spatial_size": [32, 32],
    "max_epochs": 1,
    "batch_size": 4,
    "epoch_length": 8,
    "num_workers": 0,
    "figure_interval": 1,
    "amp": "fp32",
    "device": "$torch.device('cpu')",
    "pretrained": None,
    **{f"plan#{key}": value for key, value in TINY.items()},
}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six labeled images of a bright square, and the weights of a teacher."""
    folder = tmp_path_factory.mktemp("data")
    items = []
    for i in range(6):
        image = np.random.default_rng(i).integers(0, 100, (40, 40)).astype(np.uint8)
        label = np.zeros_like(image)
        label[5 + i : 25 + i, 10:30] = 255
        Image.fromarray(np.where(label, 200, image).astype(np.uint8)).save(folder / f"image{i}.png")
        Image.fromarray(label).save(folder / f"label{i}.png")
        items.append({"image": f"image{i}.png", "label": f"label{i}.png", "organ": "breast", "patient": str(i)})
    (folder / "dataset.json").write_text(json.dumps({"training": items[:4], "validation": items[4:]}))
    teacher = usfm_vit("tiny", img_size=28, patch_size=14, in_channels=3, pos_embed="learnable", num_layers=2)
    torch.save(teacher.state_dict(), folder / "teacher.pt")
    return folder


def test_joint_pretraining_without_a_folder_simulates_its_images(data, tmp_path):
    simulated = {"synthetic#num_training": 4, "synthetic#num_validation": 2, "synthetic#num_test": 0}
    run("foundation", data, tmp_path, **simulated)
    assert (tmp_path / "synthetic_images" / "datalist.json").is_file() and (tmp_path / "model.pt").is_file()


def run(overlay: str, data: Path, output: Path, **options: object) -> None:
    paths = {"output_dir": str(output), "export_path": str(output / "model.pt"), "teacher": str(data / "teacher.pt")}
    run_bundle("pretraining", overlays=[overlay], **{**QUICK, **paths, **options})


@pytest.mark.parametrize(("overlay", "idle"), [("distill", ["objective"]), ("foundation", ["objective", "holdout"])])
def test_options_of_other_objectives_are_known_to_change_nothing(overlay: str, idle: list[str]) -> None:
    config = load_bundle("pretraining", overlays=[overlay]).parser.config
    assert without_effect(config, ["objective", "holdout", "max_epochs"]) == idle


def test_distillation_exports_an_encoder_and_has_no_other_objective(data: Path, tmp_path: Path) -> None:
    run("distill", data, tmp_path, dataset_dir=str(data), objective="pyramid")
    report = load_pretrained(usfm_vit("tiny", img_size=32, in_channels=1, **TINY), tmp_path / "model.pt")
    assert not report.missing
    assert all(name.startswith("encoder.") for name in torch.load(tmp_path / "model.pt", weights_only=True))
    card = json.loads((tmp_path / "model.json").read_text())
    assert card["objective"] == "distillation" and card["task"] == "pretraining"


def test_an_option_that_only_another_objective_has_is_refused_in_distillation(data: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="a network for encoder has no option 'mask_ratio'"):
        run("distill", data, tmp_path, dataset_dir=str(data), **{"plan#mask_ratio": 0.5})


def test_joint_pretraining_exports_a_segmenter_with_its_decoder(data: Path, tmp_path: Path) -> None:
    parts = {
        "breast": {"dataset_dir": str(data), "num_classes": 2},
        "unlabeled": {"datalist": str(data / "dataset.json")},
    }
    run("foundation", data, tmp_path, parts=parts)
    assert not torch.backends.cudnn.benchmark
    network = UltrasoundSegmenter(usfm_vit("tiny", img_size=32, in_channels=1, **TINY), 2)
    report = load_pretrained(network, tmp_path / "model.pt")
    assert not report.missing
    assert sorted(path.name for path in tmp_path.glob("figures/*.png"))


def test_joint_pretraining_goes_on_from_all_of_a_start_but_its_prompts(data: Path, tmp_path: Path) -> None:
    plan = {"spatial_size": [32, 32], **TINY}
    wide = prompted_network(None, network_options("segmentation", in_channels=4, **plan))
    wide.to_image = ImageCorrection(wide.head.decoder, 1)
    torch.nn.init.normal_(wide.to_image.correction.weight)
    start = save_network(tmp_path / "prompted.pt", wide, half=False, prompts=PROMPTS)
    parts = {"breast": {"dataset_dir": str(data), "num_classes": 2}}
    run("foundation", data, tmp_path / "out", parts=parts, pretrained=str(start), learning_rate=1e-12)
    before, after = (
        {name: value.float() for name, value in torch.load(file, weights_only=True).items()}
        for file in (start, tmp_path / "out" / "model.pt")
    )
    for name in ("to_image.correction.weight", "head.to_pixels.weight", "encoder.blocks.0.attn.proj.weight"):
        torch.testing.assert_close(after[name], before[name], rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(after[EMBEDDING], before[EMBEDDING][:, :1], rtol=1e-3, atol=1e-4)


def test_a_student_without_a_teacher_is_refused(data: Path, tmp_path: Path) -> None:
    options = {**QUICK, "output_dir": str(tmp_path), "dataset_dir": str(data)}
    with pytest.raises(ValueError, match=r"^there is no teacher to learn from: give --teacher FILE\.$"):
        run_bundle("pretraining", overlays=["distill"], **options)


@pytest.mark.parametrize("resident", [True, False])
def test_damaged_images_are_left_out_and_several_teachers_taught_from(
    data: Path, tmp_path: Path, resident: bool
) -> None:
    (data / "broken.png").write_bytes(b"no image")
    items = json.loads((data / "dataset.json").read_text())["training"]
    (data / "more.json").write_text(json.dumps({"training": [*items, {"image": "broken.png", "organ": "breast"}]}))
    parts = {
        "breast": {"dataset_dir": str(data), "num_classes": 2},
        "unlabeled": {"datalist": str(data / "more.json")},
    }
    options = {**QUICK, "parts": parts, "output_dir": str(tmp_path), "resident": resident, "skip_unreadable": True}
    run_bundle("pretraining", overlays=["foundation"], teacher=[str(data / "teacher.pt")] * 2, **options)
    assert (tmp_path / "model.pt").is_file()
    options |= {"output_dir": str(tmp_path / "strict"), "skip_unreadable": False, "epoch_length": 64}
    with pytest.raises(ValueError) as caught:
        run_bundle("pretraining", overlays=["foundation"], **options)
    assert "broken.png" in describe(caught.value)


def test_a_batch_without_a_part_trains_in_several_processes(tmp_path: Path) -> None:
    encoder = usfm_vit("tiny", img_size=32, in_channels=1, **TINY)
    network = FoundationModel(UltrasoundSegmenter(encoder, 2), {"a": 2, "b": 2})
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        spread = on_device(network, "cpu")
        for datasets in ([0, 1, -1, -1], [0, 0, 0, 0], [-1, -1, -1, -1], [0, 1, -1, -1]):
            label = torch.zeros(4, 1, 32, 32, dtype=torch.uint8)
            spread(torch.rand(4, 1, 32, 32), label, torch.tensor(datasets))["loss"].backward()
    finally:
        torch.distributed.destroy_process_group()
