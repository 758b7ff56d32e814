# Copyright (c) monai_usfm contributors
# SPDX-License-Identifier: Apache-2.0
"""What only a GPU can show: training there, in every precision, compiled, repeated, from the memory of the device."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from monai_usfm import build_network, load_network, save_network
from monai_usfm.bundle import training_loader, training_sampler
from monai_usfm.data import LoadUltrasoundd, UltrasoundDataset, list_images
from monai_usfm.transforms import BatchAppearance, BatchAugmentation, SeparableResized
from monai_usfm.workflow import TASKS, run_bundle

DEVICE = "cuda:0"
pytestmark = [
    pytest.mark.filterwarnings("ignore::UserWarning"),
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU"),
]


@pytest.fixture
def options(simulated_images: Path, tiny_training: dict[str, Any], tmp_path: Path) -> dict[str, Any]:
    """Two epochs of two steps."""
    places = {"dataset_dir": str(simulated_images), "output_dir": str(tmp_path / "run"), "val_interval": 1}
    return {**tiny_training, **places, "device": DEVICE}


@pytest.mark.parametrize("amp", ["fp32", "bf16", "fp16"])
@pytest.mark.parametrize("task", TASKS)
def test_what_was_trained_there_predicts_the_same_on_a_cpu(task, options, tmp_path, amp):
    run_bundle(task, **{**options, "amp": amp})
    network: Any = load_network(tmp_path / "run" / "model.pt")
    image = torch.rand(2, 1, 32, 32)
    with torch.no_grad():
        wanted = network(image)
        found = network.to(DEVICE)(image.to(DEVICE)).cpu()
    assert torch.isfinite(wanted).all()
    torch.testing.assert_close(found, wanted, rtol=0, atol=float(5e-3 * wanted.abs().max()))  # TF32 of convolutions


@pytest.mark.parametrize("task", TASKS)
def test_a_deterministic_run_repeats_bit_by_bit(task, options, tmp_path):
    weights = []
    for name in ("one", "two"):
        more = {"output_dir": str(tmp_path / name), "amp": "bf16", "deterministic": True}
        run_bundle(task, **{**options, **more})
        weights.append(torch.load(tmp_path / name / "model.pt", weights_only=True))
    assert all(torch.equal(value, weights[1][key]) for key, value in weights[0].items())


def test_a_stopped_run_goes_on_there_and_on_a_cpu(options, tmp_path):
    run_bundle("segmentation", **{**options, "max_epochs": 1})
    for device, epochs in ((DEVICE, 2), ("cpu", 3)):
        more = {"max_epochs": epochs, "device": device, "resume": True, "resume_anyway": True}
        run_bundle("segmentation", **{**options, **more})
    assert len((tmp_path / "run" / "metrics.csv").read_text().splitlines()) == 4


def test_a_compiled_network_is_exported_as_any_other(options, tmp_path):
    run_bundle("pretraining", **{**options, "amp": "bf16", "compile": True})
    assert torch.isfinite(load_network(tmp_path / "run" / "model.pt")(torch.rand(1, 1, 32, 32))).all()


def test_images_in_its_memory_are_those_of_the_loader(simulated_images):
    fixed = [LoadUltrasoundd("image"), SeparableResized("image", (32, 32), anti_aliasing=True)]
    dataset = UltrasoundDataset(list_images(simulated_images / "training" / "image"), fixed)
    order = training_sampler(dataset)
    kept, loaded = (
        torch.cat([batch["image"] for batch in training_loader(dataset, 4, order, DEVICE, resident, num_workers=2)])
        for resident in (True, False)
    )
    assert kept.device.type == torch.device(DEVICE).type
    torch.testing.assert_close(kept.cpu(), loaded.as_subclass(torch.Tensor), rtol=0, atol=0.51 / 255)


@pytest.mark.parametrize("resident", [True, False])
def test_joint_pretraining_with_two_teachers_from_its_memory(simulated_images, options, tmp_path, resident):
    files = []
    for name, size in (("one", 16), ("two", 8)):
        files.append(str(tmp_path / f"{name}.pt"))
        teacher = {"num_layers": 1, "hidden_size": 24, "mlp_dim": 48, "num_heads": 3, "network_size": "custom"}
        save_network(files[-1], build_network("encoder", patch_size=[size, size], spatial_size=[32, 32], **teacher))
    parts = {
        "target": {"dataset_dir": str(simulated_images), "num_classes": 2},
        "unlabeled": {"datalist": str(simulated_images / "dataset.json")},
    }
    given = {name: value for name, value in options.items() if name != "dataset_dir"}
    given |= {"parts": parts, "teacher": files, "texture_weight": 0.5, "resident": resident, "amp": "bf16"}
    run_bundle("pretraining", overlays=["foundation"], **given, epoch_length=16, sizes=[[32, 32], [48, 48]])
    assert (tmp_path / "run" / "model.pt").is_file()


def test_augmentation_draws_and_computes_there():
    image = torch.rand(4, 1, 40, 40, device=DEVICE)
    moved, label = BatchAugmentation((32, 32), shrink_prob=0.5).augment(image, (image > 0.5).byte())
    places = torch.arange(4, device=DEVICE)
    shown = BatchAppearance()(moved, places[:2], places[2:])
    assert label is not None and {x.device.type for x in (moved, label, shown)} == {torch.device(DEVICE).type}
    assert shown.shape == (4, 1, 32, 32) and shown.min() >= 0 and shown.max() <= 1
