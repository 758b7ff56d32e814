# Copyright (c) monai_usfm contributors
# SPDX-License-Identifier: Apache-2.0
"""Clicks and boxes: where they are drawn, and what a simulated user does."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from monai.engines import default_prepare_batch

from monai_usfm.bundle import prompted_network
from monai_usfm.cards import build_network, network_options, save_network
from monai_usfm.inferers import PromptedSlices
from monai_usfm.transforms import PROMPTS, Promptsd, PromptSimulation, next_click

TINY = {"network_size": "custom", "num_layers": 4, "hidden_size": 48, "mlp_dim": 96, "num_heads": 3}


def disc(row: float, column: float, radius: float, size: tuple[int, int] = (64, 80)) -> np.ndarray:
    rows, columns = np.indices(size)
    return (rows - row) ** 2 + (columns - column) ** 2 <= radius**2


def test_the_next_click_is_the_middle_of_the_largest_error_and_knows_its_side():
    target, found = disc(20, 30, 9), disc(50, 60, 6)
    assert next_click(target, found) == ([20, 30], True)  # missing: foreground
    assert next_click(target, target | found) == ([50, 60], False)  # too much: background
    assert next_click(target, target) is None
    drawn = [next_click(target, found, share) for share in (0.0, 0.5, 0.99)]
    assert all(np.hypot(row - 20, column - 30) < 5.5 and inside for (row, column), inside in drawn)
    assert drawn[0] != drawn[1] != drawn[2]


def item(shape: tuple[int, ...], size: tuple[int, ...], **prompts) -> dict:
    """An upright image of ``size`` that was resized from a file of ``shape`` in x, y, z."""
    meta = {"filename_or_obj": "a.png", "spatial_shape": np.asarray(shape)}
    return {"image": MetaTensor(torch.rand(4, *size), meta=meta), **prompts}


def test_points_and_box_keep_their_place_in_a_resized_image():
    given = item((80, 60), (30, 160), foreground=[[9.5, 19.5]], background=[[69.5, 39.5]], roi=[60, 10, 20, 49])
    image = Promptsd("image")(given)["image"]
    assert torch.equal(image[0], given["image"][0])
    for channel, place in ((1, (9.5, 19.5)), (2, (19.5, 139.5))):  # (p + 0.5) * new / old - 0.5, between four pixels
        rows, columns = (image[channel] == image[channel].max()).nonzero(as_tuple=True)
        assert (rows.float().mean(), columns.float().mean()) == place
    assert image[3].sum() == (24 - 5 + 1) * (120 - 40 + 1)  # dragged from right to left
    assert image[3, 5:25, 40:121].all()


def test_in_a_volume_prompts_lie_on_their_slices():
    given = item((20, 16, 9), (9, 16, 20), foreground=[[4, 5, 7]], roi=[2, 3, 6, 7, 1, 2])
    image = Promptsd("image")(given)["image"]
    assert image[1].flatten(1).any(1).nonzero().flatten().tolist() == [7]
    assert image[1, 7, 5, 4] == 1
    assert image[3].flatten(1).any(1).nonzero().flatten().tolist() == [1, 2]
    image = Promptsd("image")(item((20, 16, 9), (9, 16, 20), foreground=[[4, 5, 7]]))["image"]
    assert image[1, 7, 5, 4] == 1 and not image[2:].any()


def test_in_a_resized_volume_prompts_lie_on_the_slices_of_their_place():
    given = item((20, 16, 10), (5, 16, 20), foreground=[[4, 5, 8]], roi=[2, 3, 6, 7, 0, 3])
    image = Promptsd("image")(given)["image"]
    assert image[1].flatten(1).any(1).nonzero().flatten().tolist() == [4]
    assert image[3].flatten(1).any(1).nonzero().flatten().tolist() == [0, 1]


@pytest.mark.parametrize(
    ("prompts", "words"),
    [
        ({}, "a.png: nothing says which structure is meant"),
        ({"foreground": [[80, 3]]}, "foreground is .*, expected x, y within 80 x 60 pixels"),
        ({"foreground": [[3, -1]]}, "foreground is .*, expected x, y within 80 x 60 pixels"),
        ({"roi": [1, 2, 3]}, r"roi is \["),
        ({"background": "here"}, "background is 'here'"),
        ({"roi": 7}, r"roi is \["),
        ({"foreground": [[1, 2, 5]]}, "is not on frame or slice 0, the one that is read; give the option frames"),
    ],
)
def test_wrong_prompts_are_refused_in_one_sentence(prompts, words):
    with pytest.raises(ValueError, match=words):
        Promptsd("image")(item((80, 60), (60, 80), **prompts))


class Answer(torch.nn.Module):
    """Gives the same mask whatever it is asked, and remembers what it was asked."""

    def __init__(self, mask: np.ndarray) -> None:
        super().__init__()
        self.mask, self.asked = torch.as_tensor(mask).float(), list[torch.Tensor]()

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        self.asked.append(images.clone())
        return torch.stack([1 - self.mask, self.mask]).expand(len(images), -1, -1, -1)


def batch(label: np.ndarray) -> dict[str, torch.Tensor]:
    return {"image": torch.rand(1, 4, 64, 80), "label": torch.as_tensor(label)[None, None].float()}


def test_the_user_clicks_in_the_structure_and_then_on_what_the_network_adds():
    label = 5 * disc(20, 30, 9) + 3 * disc(50, 60, 4)  # two structures: the larger is meant
    network = Answer(disc(20, 30, 9) | disc(50, 20, 5))
    image, target = PromptSimulation(default_prepare_batch, network, clicks=2)(batch(label))
    assert np.array_equal(target[0, 0].numpy(), disc(20, 30, 9))
    assert [(image[0, 1 + i] == 1).nonzero().tolist() for i in range(3)] == [[[20, 30]], [[50, 20]], []]
    assert len(network.asked) == 1 and network.training  # not asked before the first click


def test_with_a_box_the_network_is_asked_first_and_a_right_answer_is_left_alone():
    network = Answer(disc(20, 30, 9))
    image, _ = PromptSimulation(default_prepare_batch, network, clicks=3, box=True)(batch(disc(20, 30, 9)))
    assert not image[:, 1:3].any()
    assert image[0, 3, 11:30, 21:40].all() and image[0, 3].sum() == 19 * 19


def test_random_users_differ_and_repeat_with_the_seed():
    def play(seed: int, label: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
        torch.manual_seed(seed)
        many = {"image": torch.zeros(12, 4, 64, 80), "label": torch.as_tensor(label).expand(12, 1, -1, -1)}
        network = Answer(np.zeros((64, 80), bool))
        return PromptSimulation(default_prepare_batch, network, clicks=3, random=True)(many)

    large, small = disc(20, 30, 9), disc(50, 60, 4)
    first = play(0, large)[0][:, 1:]
    assert torch.equal(first, play(0, large)[0][:, 1:]) and not torch.equal(first, play(1, large)[0][:, 1:])
    boxed, clicked = first[:, 2].flatten(1).any(1), first[:, 0].flatten(1).any(1)
    assert 0 < boxed.sum() < 12 and (boxed | clicked).all()
    edges = [[*p.amin(0).tolist(), *p.amax(0).tolist()] for p in map(torch.nonzero, first[boxed, 2])]
    off = np.subtract(edges, [11, 21, 29, 39])
    assert len(np.unique(off, axis=0)) > 1 and np.abs(off).max() == 2  # up to a tenth of 18 pixels
    counts = {int((play(seed, large)[0][:, 1] == 1).flatten(1).sum(1).max()) for seed in range(8)}
    assert counts == {1, 2, 3}
    label = 5 * large + 3 * small
    label[60, 70:72] = 7  # a speck
    chosen = play(0, label)[1].flatten(1).sum(1).unique().tolist()
    assert chosen == [small.sum(), large.sum()]


def test_volumes_and_points_are_refused():
    simulation = PromptSimulation(default_prepare_batch, Answer(np.zeros((8, 8))))
    with pytest.raises(ValueError, match="clicks and boxes are for 2D images and masks"):
        simulation({"image": torch.zeros(1, 4, 8, 8, 8), "label": torch.zeros(1, 1, 8, 8, 8)})
    with pytest.raises(ValueError, match="clicks at least once"):
        PromptSimulation(default_prepare_batch, Answer(np.zeros((8, 8))), clicks=0)


def test_a_network_with_prompts_begins_as_the_one_without(tmp_path):
    torch.manual_seed(0)
    narrow = build_network("segmentation", spatial_size=[32, 32], **TINY).eval()
    state = {name: tensor.clone() for name, tensor in narrow.state_dict().items()}
    plan = network_options("segmentation", state, in_channels=4)
    wide = prompted_network(state, plan).eval()
    image, prompts = torch.rand(2, 1, 32, 32), torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(wide(torch.cat([image, prompts], 1)), narrow(image))
    assert wide.card["network"]["in_channels"] == 4
    again = prompted_network(
        wide.state_dict(), network_options("segmentation", wide.state_dict(), in_channels=4)
    ).eval()
    with torch.no_grad():
        torch.testing.assert_close(again(torch.cat([image, prompts], 1)), narrow(image))


def test_training_goes_on_from_a_network_with_prompts_as_it_is(tmp_path):
    network = build_network("segmentation", in_channels=4, spatial_size=[32, 32], **TINY)
    file = save_network(tmp_path / "model.pt", network, half=False, prompts=list(PROMPTS))
    again = prompted_network(file, network_options("segmentation", file, in_channels=4)).state_dict()
    assert all(torch.equal(again[name], tensor) for name, tensor in network.state_dict().items())


def test_slices_without_a_prompt_are_background_and_not_computed():
    volume, seen = torch.zeros(2, 4, 5, 8, 8), []
    volume[0, 2, 3, 4, 4] = volume[1, 3, 0] = 1

    def network(images: torch.Tensor) -> torch.Tensor:
        seen.append(len(images))
        return torch.stack([images[:, 1] - 1, images[:, 2]], 1)

    out = PromptedSlices()(volume, network)
    assert out.shape == (2, 2, 5, 8, 8) and seen == [2]
    shown = out.argmax(1).flatten(2).any(2)
    assert shown.nonzero().tolist() == [[0, 3], [1, 0]]
