# Copyright (c) monai_usfm contributors
# SPDX-License-Identifier: Apache-2.0
"""Distillation of a frozen encoder into a smaller one."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from monai_usfm.networks import DistillationModel, FrozenTeacher, TokenDistillation, UltrasoundViT


def encoder(size, patch, channels=1, width=12, dims=2, layers=2):
    torch.manual_seed(width)
    return UltrasoundViT(
        size, patch, channels, dims, hidden_size=width, mlp_dim=2 * width, num_layers=layers, num_heads=2
    ).eval()


def test_teacher_of_the_same_patch_gives_its_own_tokens():
    teacher = encoder(16, 4)
    image = torch.rand(2, 1, 16, 16)
    torch.testing.assert_close(FrozenTeacher(teacher)(image, (4, 4)), teacher(image))


def test_teacher_sees_the_image_resized_to_the_grid_of_the_student_in_its_channels():
    teacher = encoder(16, 4, channels=3)
    image = torch.rand(2, 1, 24, 24)  # a student of patch 8 has 3 x 3 tokens: 12 pixels of the teacher
    expected = teacher(F.interpolate(image, (12, 12), mode="bilinear", antialias=True).expand(-1, 3, -1, -1))
    torch.testing.assert_close(FrozenTeacher(teacher)(image, (3, 3)), expected)


def test_a_finer_teacher_is_averaged_onto_the_grid_of_the_student():
    teacher = encoder(16, 4)
    image = torch.rand(2, 1, 16, 16)
    tokens = teacher(image)
    expected = tokens[:, 1:].reshape(2, 2, 2, 2, 2, -1).mean((2, 4)).flatten(1, 2)
    found = FrozenTeacher(teacher, scale=2)(image, (2, 2))
    torch.testing.assert_close(found[:, 1:], expected)
    torch.testing.assert_close(found[:, 0], tokens[:, 0])


def test_teacher_of_images_sees_the_middle_slice_of_each_patch_of_a_volume():
    teacher = encoder(8, 4)
    volume = torch.rand(1, 1, 4, 8, 8)
    tokens = FrozenTeacher(teacher)(volume, (2, 2, 2))
    first, second = teacher(volume[:, :, 1]), teacher(volume[:, :, 3])
    torch.testing.assert_close(tokens[:, 1:], torch.cat([first[:, 1:], second[:, 1:]], 1))
    torch.testing.assert_close(tokens[:, 0], (first[:, 0] + second[:, 0]) / 2)


def test_teacher_is_not_saved_and_not_trained():
    model = DistillationModel(encoder(16, 4), encoder(16, 4, width=24))
    assert not any("teacher" in name for name in model.state_dict())
    assert not any("teacher" in name for name, _ in model.named_parameters())


def test_teacher_follows_the_model_to_another_type():
    teacher = encoder(16, 4)
    DistillationModel(encoder(16, 4), teacher).double()
    assert teacher.norm.weight.dtype == torch.float64


def test_targets_have_unit_variance_whatever_the_scale_of_a_channel():
    distillation = TokenDistillation(4, 8)
    tokens = torch.randn(16, 10, 8) * torch.logspace(-1, 3, 8) + 5
    _, patches = distillation.targets(tokens)
    torch.testing.assert_close(patches.flatten(0, 1).std(0), torch.ones(8), atol=0.02, rtol=0)


def test_loss_of_an_unrelated_prediction_is_the_variance_and_of_the_teacher_itself_zero():
    distillation = TokenDistillation(8, 8)
    tokens = torch.randn(16, 50, 8)
    distillation.targets(tokens)
    distillation.eval()
    for weight in (distillation.to_patches.weight, distillation.to_patches.bias):
        torch.nn.init.zeros_(weight)
    assert distillation(tokens, tokens)["patch_loss"].item() == pytest.approx(1, abs=0.01)
    with torch.no_grad():
        spread = (distillation.patch_statistics.running_var + 1e-5).sqrt()
        distillation.to_patches.weight.copy_(torch.diag(1 / spread))
        distillation.to_patches.bias.copy_(-distillation.patch_statistics.running_mean / spread)
    assert distillation(tokens, tokens)["patch_loss"].item() < 1e-6


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("mask_ratio", [0.0, 0.5])
def test_a_few_steps_lower_the_loss(dims, mask_ratio):
    model = DistillationModel(encoder(8, 4, dims=dims), encoder(8, 4, width=16, dims=dims), mask_ratio).train()
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    image = torch.rand(4, 1, *[8] * dims)
    losses = []
    for _ in range(40):
        optimizer.zero_grad()
        loss = model(image)["loss"]
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.8 * losses[0]


def test_panels_have_the_size_of_the_image():
    model = DistillationModel(encoder(16, 4), encoder(16, 4, width=24))
    panels = model.panels(torch.rand(2, 1, 16, 16))
    assert {tuple(panel.shape) for panel in panels.values()} == {(2, 1, 16, 16)}


def test_mask_ratio_out_of_range_is_refused():
    with pytest.raises(ValueError, match="mask_ratio must be in"):
        DistillationModel(encoder(16, 4), encoder(16, 4), mask_ratio=1.0)
