# Copyright (c) monai_usfm contributors
# SPDX-License-Identifier: Apache-2.0
"""What each kind of token mask says it hides, checked by statistics."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from monai_usfm.networks.blocks.token_mask import TokenMask


def masks(mask: TokenMask, image: torch.Tensor, patch) -> torch.Tensor:
    keep, hidden, _ = mask(image, patch)
    assert torch.equal(torch.cat([keep, hidden], 1).sort(1).values[0], torch.arange(keep.shape[1] + hidden.shape[1]))
    return torch.ones(image.shape[0], keep.shape[1] + hidden.shape[1]).scatter(1, keep, 0.0)


def test_uniform_masks_hide_every_token_equally_often_and_neighbors_independently():
    torch.manual_seed(0)
    drawn = masks(TokenMask("uniform", 0.75), torch.rand(4000, 1, 64, 64), (16, 16))
    assert torch.all(drawn.sum(1) == 12)
    assert (drawn.mean(0) - 0.75).abs().max() < 0.03  # four standard errors
    pair = (drawn[:, 0] * drawn[:, 1]).mean()
    assert pair.item() == pytest.approx(0.75 * 11 / 15, abs=0.03)


@pytest.mark.parametrize(("size", "patch"), [((96, 96), (16, 16)), ((16, 64, 64), (4, 16, 16))])
def test_block_masks_hide_whole_blocks(size, patch):
    drawn = masks(TokenMask("block", 0.6, unit=2), torch.rand(64, 1, *size), patch)
    grid = [s // p for s, p in zip(size, patch, strict=True)]
    tokens = drawn.reshape(64, *grid)
    for axis in range(len(grid)):
        pairs = tokens.unfold(axis + 1, 2, 2)
        assert torch.equal(pairs[..., 0], pairs[..., 1])
        tokens = pairs[..., 0]
    assert 0.6 <= drawn.mean().item() < 0.6 + 2 ** len(grid) / drawn.shape[1]
    assert drawn.std(0).min() > 0  # it is a draw, not a pattern


def test_block_masks_of_odd_grids_still_hide_the_ratio():
    drawn = masks(TokenMask("block", 0.6, unit=2), torch.rand(8, 1, 80, 112), (16, 16))
    assert drawn.mean(1).tolist() == pytest.approx([21 / 35] * 8)


@pytest.mark.parametrize(("kind", "size", "hidden"), [("tube", (4, 8, 16), 4), ("block", (32, 32), 12)])
def test_a_whole_tube_or_block_stays_visible_however_much_is_hidden(kind, size, hidden):
    drawn = masks(TokenMask(kind, 0.9, unit=2), torch.rand(8, 1, *size), (1, 8, 8)[-len(size) :])
    assert drawn.sum(1).tolist() == [hidden] * 8


def test_tube_masks_are_the_same_at_all_times():
    drawn = masks(TokenMask("tube", 0.75), torch.rand(500, 1, 32, 64, 64), (8, 16, 16)).reshape(500, 4, 4, 4)
    assert torch.equal(drawn, drawn[:, :1].expand_as(drawn))
    assert drawn[:, 0].mean().item() == pytest.approx(0.75)
    assert (drawn[:, 0].mean(0) - 0.75).abs().max() < 0.08


@pytest.mark.parametrize("ratio", [0.6, 0.75])
def test_tubes_stay_whole_in_a_field_of_view(ratio):
    image = torch.zeros(2, 1, 64, 64, 64)
    image[:, :, 16:, 8:50, 10:60] = 0.4  # nothing yet in the first frames
    image[1, :, :, 34:] = 0
    mask = TokenMask("tube", ratio, fov_aware=True)
    keep, hidden, counts = mask(image, (16, 8, 8))
    visible = torch.zeros(2, 4 * 64).scatter(1, keep, 1.0).view(2, 4, 64)
    assert torch.equal(visible, visible[:, :1].expand_as(visible)) and keep.shape[1] >= 4
    inside = F.max_pool3d(image, (16, 8, 8)).flatten(1) > 0
    assert torch.equal(counts > 0, torch.gather(inside, 1, hidden))


def test_texture_masks_keep_textured_patches_more_often():
    """A published implementation ranks the wrong array and keeps textured patches at chance, 0.5."""
    torch.manual_seed(0)
    image = torch.full((1000, 1, 64, 64), 0.5)
    textured = torch.zeros(64, 64, dtype=torch.bool)
    textured[:, :32] = True
    image = torch.where(textured, torch.rand_like(image), image + 0.005 * torch.randn_like(image))
    keep, _, _ = TokenMask("texture", 0.75)(image, (16, 16))
    share = (keep % 4 < 2).float().mean().item()
    assert share > 0.9


def test_texture_masks_of_flat_images_are_uniform():
    torch.manual_seed(0)
    drawn = masks(TokenMask("texture", 0.75), torch.full((4000, 1, 64, 64), 0.3), (16, 16))
    assert (drawn.mean(0) - 0.75).abs().max() < 0.03


def test_fov_aware_masks_spend_no_token_outside_and_score_none_there():
    image = torch.zeros(6, 1, 64, 96)
    image[:, :, :, 32:] = 0.4
    image[3:, :, 48:] = 0.0  # three images with a smaller field of view
    keep, hidden, counts = TokenMask("uniform", 0.75, fov_aware=True)(image, (16, 16))
    inside = F.max_pool2d((image > 0).float(), 16).flatten(1) > 0
    assert torch.gather(inside, 1, keep).all()
    assert torch.equal(counts > 0, torch.gather(inside, 1, hidden))
    assert keep.shape[1] == int(12 * 0.25)  # a quarter of what the smallest field of view holds


def test_a_black_image_does_not_hide_the_others():
    image = torch.full((3, 1, 64, 96), 0.4)
    image[1] = 0.0
    keep, _, counts = TokenMask("uniform", 0.75, fov_aware=True)(image, (16, 16))
    assert keep.shape[1] == int(24 * 0.25)
    assert not counts[1].any() and counts[0].all() and counts[2].all()


@pytest.mark.parametrize("kind", ["uniform", "block", "tube", "texture"])
def test_equal_seeds_draw_equal_masks(kind):
    image = torch.rand(2, 1, 16, 32, 32)
    mask = TokenMask(kind, 0.6, unit=2)
    draws = [torch.manual_seed(s) and mask.draw(image, (4, 16, 16)) for s in (1, 1, 2)]
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])
