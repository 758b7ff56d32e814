# Copyright (c) monai_usfm contributors
# SPDX-License-Identifier: Apache-2.0
"""The fine-tuning loop that the label-efficiency curves compare networks with."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn as nn
import torch.nn.functional as F

from monai_usfm.evaluation import CaseSet, FineTuning, NetworkSpec, Recipe, augment, choose_learning_rate
from monai_usfm.evaluation.fine_tuning import fine_tune
from monai_usfm.networks.nets import UltrasoundViT

TINY = {"hidden_size": 24, "mlp_dim": 48, "num_layers": 4, "num_heads": 2, "patch_size": 8}
SMALL_UNET = {"channels": (8, 16, 16), "strides": (2, 2), "num_res_units": 1}


def squares(count: int, seed: int, prefix: str) -> CaseSet:
    """Noise with a bright square to segment; class 1 has a second, dark one."""
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(60, 120, (count, 1, 32, 32), generator=generator, dtype=torch.uint8)
    labels = torch.zeros(count, 32, 32, dtype=torch.uint8)
    for i in range(count):
        top, left = torch.randint(4, 18, (2,), generator=generator).tolist()
        labels[i, top : top + 10, left : left + 10] = 1
        if i % 2:
            images[i, 0, 26:, 2:30] = 5
    images[:, 0][labels > 0] = 220
    names = [f"{prefix}{i}.png" for i in range(count)]
    return CaseSet(images, list(names), names, torch.arange(count) % 2, labels, list(labels))


def tuning(task: str, spec: NetworkSpec, test_seed: int = 2, **recipe) -> FineTuning:
    splits = squares(24, 0, "a"), squares(8, 1, "b"), squares(8, test_seed, "c")
    settings = Recipe(**{"steps": 40, "batch_size": 8, "evaluations": 2, **recipe})
    return FineTuning(task, *splits, {0.5: range(12), 1.0: range(24)}, {"net": spec}, recipe=settings)


def test_a_unet_learns_to_segment_and_the_scores_belong_to_the_images():
    cell = tuning("segmentation", NetworkSpec("unet", learning_rate=5e-3, options=SMALL_UNET))(1.0, 0, "net")
    assert cell.metrics["dice"] > 0.8
    assert cell.metrics["dice"] == pytest.approx(sum(cell.cases["dice"]) / 8)
    assert cell.cases["patient"] == [f"c{i}.png" for i in range(8)]
    assert cell.details["images"] == 24 and cell.details["steps"] == 40


def test_our_classifier_learns_and_gives_probabilities():
    spec = NetworkSpec("usfm_vit_tiny", learning_rate=3e-3, options=TINY)
    cell = tuning("classification", spec, steps=60)(1.0, 0, "net")
    assert cell.metrics["macro_f1"] > 0.85
    assert cell.cases["label"] == [0, 1] * 4
    sums = [a + b for a, b in zip(cell.cases["probability_0"], cell.cases["probability_1"], strict=True)]
    assert sums == pytest.approx([1.0] * 8)


def test_our_segmenter_trains_with_every_head_it_is_asked_for():
    spec = NetworkSpec("usfm_vit_tiny", learning_rate=2e-3, options=TINY)
    _, history = tuning("segmentation", spec, steps=4, evaluations=1).fit(range(8), 0, spec)
    assert history["steps"] == 4 and 0 <= history["validation_score"] <= 1


def test_the_test_split_has_no_influence_on_training():
    spec = NetworkSpec("unet", learning_rate=5e-3, options=SMALL_UNET)
    first, second = (tuning("segmentation", spec, seed, steps=6)(0.5, 0, "net") for seed in (2, 3))
    keys = ("validation_score", "final_loss", "best_step")
    assert [first.details[k] for k in keys] == [second.details[k] for k in keys]
    assert first.metrics != second.metrics


def test_a_cell_repeats_with_its_seed_and_leaves_the_global_state():
    spec = NetworkSpec("unet", learning_rate=5e-3, options=SMALL_UNET)
    state = torch.random.get_rng_state()
    first, again, other = (tuning("segmentation", spec, steps=5)(0.5, seed, "net") for seed in (0, 0, 1))
    assert torch.equal(state, torch.random.get_rng_state())
    assert first.metrics == again.metrics != other.metrics


class Recorder(nn.Module):
    """Keeps the batches it is trained on."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(1, width, 1), nn.Dropout(0.5), nn.Conv2d(width, 2, 1))
        self.batches: list[torch.Tensor] = []

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.training:
            self.batches.append(x)
        return self.layers(x)


def test_every_network_sees_the_same_batches():
    nets = Recorder(3), Recorder(7)
    for net in nets:
        recipe = Recipe(steps=5, batch_size=8, evaluations=1)
        fine_tune(net, "segmentation", squares(24, 0, "a"), range(6), squares(4, 1, "b"), recipe, NetworkSpec(), 3)
    assert all(torch.equal(a, b) for a, b in zip(nets[0].batches, nets[1].batches, strict=True))
    assert all(len(batch) == 8 for batch in nets[0].batches)  # also when fewer images than that are labelled


def test_the_weights_that_were_best_on_the_validation_split_are_kept(monkeypatch):
    from monai_usfm.evaluation import fine_tuning

    scores, weights = iter([0.2, 0.9, 0.5]), []

    def score(net, *_):
        weights.append(net.layers[0].weight.detach().clone())
        return next(scores)

    monkeypatch.setattr(fine_tuning, "_validation_score", score)
    net = Recorder(3)
    recipe = Recipe(steps=9, batch_size=4, evaluations=3)
    history = fine_tune(net, "segmentation", squares(8, 0, "a"), range(8), squares(4, 1, "b"), recipe, NetworkSpec())
    assert history["best_step"] == 6 and history["validation_score"] == 0.9
    assert torch.equal(net.layers[0].weight, weights[1]) and not torch.equal(weights[1], weights[2])


def test_a_time_budget_ends_the_training():
    net = Recorder(3)
    recipe = Recipe(steps=100000, seconds=0.3, batch_size=4, evaluations=1)
    history = fine_tune(net, "segmentation", squares(8, 0, "a"), range(8), squares(4, 1, "b"), recipe, NetworkSpec())
    assert 0.3 <= history["seconds"] < 1.5 and 1 < history["steps"] < 100000


def test_a_patient_in_two_splits_is_refused():
    shared = squares(4, 0, "a")
    with pytest.raises(ValueError, match="4 patients are in training and test"):
        FineTuning("segmentation", shared, squares(4, 1, "b"), shared, {}, {})


@pytest.mark.parametrize("shape", [(24, 36), (8, 24, 36)])
def test_augmentation_moves_labels_with_their_image(shape):
    labels = torch.zeros(6, *shape, dtype=torch.long)
    labels[..., 6:16, 10:24] = 1
    images = 0.1 + 0.8 * labels[:, None].float()
    moved, placed = augment(images, labels, torch.Generator().manual_seed(0))
    assert not torch.equal(placed, labels)
    inner = -F.max_pool2d(-placed.float().flatten(0, -3)[:, None], 3, 1, 1).reshape(placed.shape)
    rim = F.max_pool2d(placed.float().flatten(0, -3)[:, None], 3, 1, 1).reshape(placed.shape)
    for image, inside, outside in zip(moved[:, 0], inner, 1 - rim, strict=True):
        assert image[inside > 0].min() > image[outside > 0].max()


def test_augmentation_mirrors_half_of_the_images_and_keeps_their_shape():
    # an "L": its mirror image has the opposite moment, whatever the rotation up to 15 degrees
    images = torch.zeros(400, 1, 32, 32)
    images[:, :, 8:24, 8:12] = 1
    images[:, :, 20:24, 12:24] = 1
    moved, _ = augment(images, None, torch.Generator().manual_seed(0))
    x = torch.arange(32.0)
    mass = moved[:, 0].sum(1)
    centre = (mass * x).sum(1) / mass.sum(1)
    skew = (mass * (x - centre[:, None]) ** 3).sum(1)
    assert (skew < 0).float().mean().item() == pytest.approx(0.5, abs=0.08)
    areas = (moved > 0).float().sum((1, 2, 3)) / 112
    assert areas.min() > 0.5 and areas.max() < 2.2


def test_the_learning_rate_is_chosen_by_the_validation_score():
    spec = NetworkSpec("unet", options=SMALL_UNET)
    best, scores = choose_learning_rate(tuning("segmentation", spec, steps=20), spec, 0.5, [1e-7, 5e-3])
    assert best == 5e-3 and scores[5e-3] > scores[1e-7]


@pytest.mark.parametrize("name", ["unet", "attention_unet", "segresnet", "unetr", "dynunet"])
@pytest.mark.parametrize("size", [(32, 32), (16, 16, 32)])
def test_every_segmentation_baseline_keeps_the_size_in_2d_and_3d(name, size):
    small = {
        "unetr": {"hidden_size": 24, "mlp_dim": 24, "num_heads": 2, "feature_size": 8},
        "segresnet": {"init_filters": 8},
        "dynunet": {"filters": (4, 4, 4, 4, 4)},
    }
    options = small.get(name, {"channels": (4, 8, 8, 8, 8)})
    net = NetworkSpec(name, options=options).build("segmentation", 3, size).eval()
    with torch.no_grad():
        assert net(torch.rand(1, 1, *size)).shape == (1, 3, *size)


def test_an_unknown_network_is_named_with_the_choices():
    with pytest.raises(ValueError, match=r"'resnet' for classification.*densenet121"):
        NetworkSpec("resnet").build("classification", 2, (32, 32))


def test_pretrained_weights_reach_the_encoder(tmp_path):
    torch.manual_seed(0)
    source = UltrasoundViT(32, **TINY)
    torch.save(source.state_dict(), tmp_path / "encoder.pt")
    spec = NetworkSpec("usfm_vit_tiny", weights=str(tmp_path / "encoder.pt"), options=TINY)
    net = spec.build("classification", 2, (32, 32))
    for name, value in source.state_dict().items():
        torch.testing.assert_close(net.encoder.state_dict()[name], value)
    assert spec.describe()["weights"].startswith("sha256:")


def test_a_baseline_starts_from_weights_but_for_layers_of_other_classes(tmp_path):
    source = NetworkSpec("unet", options=SMALL_UNET).build("segmentation", 2, (32, 32))
    torch.save(source.state_dict(), tmp_path / "unet.pt")
    spec = NetworkSpec("unet", weights=str(tmp_path / "unet.pt"), options=SMALL_UNET)
    x = torch.rand(1, 1, 32, 32)
    torch.testing.assert_close(spec.build("segmentation", 2, (32, 32)).eval()(x), source.eval()(x))
    other = spec.build("segmentation", 3, (32, 32)).state_dict()
    same = [name for name, value in source.state_dict().items() if value.shape == other[name].shape]
    assert len(other) > len(same) > 0
    assert all(torch.equal(other[name], source.state_dict()[name]) for name in same)


def test_segvit_is_trained_by_its_own_loss():
    spec = NetworkSpec("usfm_vit_tiny", head="segvit", options=TINY)
    net = spec.build("segmentation", 2, (32, 32))
    before = {name: value.clone() for name, value in net.state_dict().items()}
    recipe = Recipe(steps=2, batch_size=2, evaluations=1)
    found = fine_tune(net, "segmentation", squares(24, 0, "a"), range(4), squares(4, 1, "b"), recipe, spec, 0)
    assert found["steps"] == 2 and math.isfinite(found["final_loss"])
    assert any(not torch.equal(before[name], value) for name, value in net.state_dict().items())


def test_a_damaged_file_for_a_baseline_is_named(tmp_path):
    (tmp_path / "unet.pt").write_bytes(b"half of a download")
    with pytest.raises(ValueError, match=r"unet\.pt is no PyTorch checkpoint"):
        NetworkSpec("unet", weights=str(tmp_path / "unet.pt")).build("segmentation", 2, (32, 32))


def test_weights_of_another_baseline_are_refused(tmp_path):
    source = NetworkSpec("segresnet", options={"init_filters": 8}).build("segmentation", 2, (32, 32))
    torch.save(source.state_dict(), tmp_path / "segresnet.pt")
    with pytest.raises(ValueError, match=r"segresnet.pt holds weights of another network than 'unet'"):
        NetworkSpec("unet", weights=str(tmp_path / "segresnet.pt")).build("segmentation", 2, (32, 32))


def test_a_frozen_encoder_stays_and_its_head_learns():
    spec = NetworkSpec(options=TINY, frozen=True)
    net = spec.build("segmentation", 2, (32, 32))
    before = {name: value.clone() for name, value in net.state_dict().items()}
    fine_tune(
        net, "segmentation", squares(8, 0, "a"), range(8), squares(4, 1, "b"), Recipe(steps=2, batch_size=4), spec
    )
    moved = {name.split(".")[0] for name, value in net.state_dict().items() if not torch.equal(value, before[name])}
    assert moved == {"head"}
    with pytest.raises(ValueError, match="no encoder of this package to freeze"):
        NetworkSpec("unet", frozen=True).build("segmentation", 2, (32, 32))


def test_the_head_takes_its_options_and_the_table_names_them():
    spec = NetworkSpec(options=TINY, head="upernet", head_options={"width": 8})
    wide = NetworkSpec(options=TINY, head="upernet")
    narrow_net, wide_net = (s.build("segmentation", 2, (32, 32)) for s in (spec, wide))
    assert narrow_net.head.conv_seg.in_channels == 8 < wide_net.head.conv_seg.in_channels
    assert spec.describe()["head_options"] == '{"width": 8}'
    assert "head_options" not in wide.describe()  # cells of earlier tables stay valid
