# Copyright (c) monai_usfm contributors
# SPDX-License-Identifier: Apache-2.0
"""Joint pretraining of encoder and decoder."""

from __future__ import annotations

import pytest
import torch
from monai.losses import DiceCELoss

from monai_usfm import load_network, save_network
from monai_usfm.networks import (
    FoundationModel,
    MaskedImageModel,
    UltrasoundSegmenter,
    UltrasoundViT,
    load_pretrained,
)
from monai_usfm.networks.heads.pyramid import ImageCorrection, PyramidDecoder


def encoder(width=12, dims=2):
    torch.manual_seed(width)
    return UltrasoundViT(16, 4, 1, dims, hidden_size=width, mlp_dim=24, num_layers=4, num_heads=2)


def model(dims=2, teacher=True, **options):
    network = UltrasoundSegmenter(encoder(dims=dims), 2, width=16)
    return FoundationModel(network, {"breast": 2, "organs": 5}, encoder(16, dims) if teacher else None, **options)


def batch(dims=2):
    torch.manual_seed(0)
    image = torch.rand(6, 1, *[16] * dims)
    label = torch.randint(0, 2, (6, 1, *[16] * dims))
    return image, label, torch.tensor([0, 0, 1, 1, -1, -1])


@pytest.mark.parametrize("dims", [2, 3])
def test_every_part_of_the_loss_reaches_its_weights(dims):
    net = model(dims, restored_share=1.0, texture_weight=0.5).train()
    out = net(*batch(dims))
    assert {"segmentation", "distillation", "restoration", "texture"} <= set(out)
    out["loss"].backward()
    silent = [name for name, p in net.named_parameters() if p.requires_grad and p.grad is None]
    assert not silent


@pytest.mark.parametrize("frozen", [0, 3])
def test_blocks_behind_those_of_the_segmenter_learn_from_the_teacher(frozen):
    network = UltrasoundSegmenter(encoder(), 2, width=16, indices=[0, 1])
    net = FoundationModel(network, {"breast": 2}, encoder(16), frozen_blocks=frozen).train()
    net(*batch())["loss"].backward()
    assert [block.norm1.weight.grad is not None for block in net.encoder.blocks] == [i >= frozen for i in range(4)]


def test_segmentation_is_the_loss_of_each_data_set_by_its_own_output():
    net = model(teacher=False, restoration_weight=0.0).eval()
    image, label, dataset = batch()
    out = net(image, label, dataset)
    loss = DiceCELoss(to_onehot_y=True, softmax=True)
    expected = (loss(net.network(image[:2]), label[:2]) + loss(organs(net, image[2:4]), label[2:4])) / 2
    torch.testing.assert_close(out["segmentation"], expected)


def organs(net, image):
    maps = net.encoder.forward_intermediates(image, net.network.indices)
    return net.outputs["organs"](net.network.head.decoder(image, maps))


def test_a_part_with_weight_zero_or_without_images_is_left_out():
    image, label, dataset = batch()
    assert "distillation" not in model(distillation_weight=0.0)(image, label, dataset)
    assert "restoration" not in model(restoration_weight=0.0)(image, label, dataset)
    assert set(model()(image[:4], label[:4], dataset[:4])) == {"loss", "segmentation", "distillation"}


def test_without_labels_the_output_layers_of_the_data_sets_learn_nothing():
    net = model(restored_share=1.0).train()
    out = net(batch()[0])
    assert "segmentation" not in out
    out["loss"].backward()
    assert net.network.head.to_pixels.weight.grad is None


def test_only_unlabeled_images_are_corrupted():
    net = model(restored_share=1.0).train()
    seen = []
    net.network.head.decoder.register_forward_hook(lambda _, inputs, __: seen.append(inputs[0]))
    image, label, dataset = batch()
    net(image, label, dataset)
    changed = [not torch.equal(a, b) for a, b in zip(seen[0], image, strict=True)]
    assert changed == [False] * 4 + [True] * 2


def test_the_exported_network_starts_a_segmentation(tmp_path):
    net = model().eval()
    torch.save(net.network.state_dict(), tmp_path / "model.pt")
    other = UltrasoundSegmenter(encoder(), 2, width=16)
    for parameter in other.parameters():
        torch.nn.init.zeros_(parameter)
    load_pretrained(other, tmp_path / "model.pt")
    image = batch()[0]
    torch.testing.assert_close(other.eval()(image), net.network(image))


def test_the_exported_network_restores_what_joint_pretraining_restored(tmp_path):
    net = model().eval()
    torch.nn.init.normal_(net.network.to_image.correction.weight)
    torch.save(net.network.state_dict(), tmp_path / "model.pt")
    restorer = MaskedImageModel(encoder(), decoder="pyramid")
    restorer.decoder = PyramidDecoder(12, 1, [4, 4], width=16)  # as narrow as the segmenter's
    restorer.to_image = ImageCorrection(restorer.decoder, 1)
    report = load_pretrained(restorer, tmp_path / "model.pt")
    assert not [name for name in report.unexpected if "to_pixels" not in name]
    image = batch()[0]
    output = restorer.eval()(image)
    maps = net.encoder.forward_intermediates(output["corrupted"], net.network.indices)
    wanted = net.network.to_image(net.network.head.decoder(output["corrupted"], maps), output["corrupted"])
    torch.testing.assert_close(output["prediction"], wanted)


def test_a_segmenter_takes_no_notice_of_the_output_that_restores(tmp_path):
    net = model().eval()
    save_network(tmp_path / "model.pt", net.network, half=False)
    assert "to_image.pixels.weight" in torch.load(tmp_path / "model.pt", weights_only=True)
    image = batch()[0]
    torch.testing.assert_close(load_network(tmp_path / "model.pt")(image), net.network(image))


def test_panels_have_the_size_of_the_image():
    panels = model().eval().panels(batch()[0])
    assert {tuple(panel.shape) for panel in panels.values()} == {(6, 1, 16, 16)}


def test_the_first_data_set_must_have_the_classes_of_the_network():
    with pytest.raises(ValueError, match="must have the 2 classes of the network"):
        FoundationModel(UltrasoundSegmenter(encoder(), 2), {"organs": 5})


def test_another_head_is_refused():
    with pytest.raises(ValueError, match='head "pyramid"'):
        FoundationModel(UltrasoundSegmenter(encoder(), 2, head="upernet"), {"breast": 2})


def test_frozen_blocks_and_all_before_them_have_no_gradient():
    net = model(frozen_blocks=2, teacher=False).train()
    net(*batch())["loss"].backward()
    moved = {
        name.split(".")[1] for name, p in net.encoder.named_parameters() if name[:6] == "blocks" and p.grad is not None
    }
    assert moved == {"2", "3"}
    assert all(p.grad is None for p in net.encoder.patch_embed.parameters()) and net.encoder.cls_token.grad is None
    assert all(p.grad is not None for p in net.network.head.parameters())
