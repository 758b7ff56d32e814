# Copyright (c) monai_usfm contributors
# SPDX-License-Identifier: Apache-2.0
"""Near-duplicates by difference hash, against a literal definition and on real frames."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from monai_usfm.data import LoadUltrasound
from monai_usfm.data.duplicates import difference_hash, joined_groups, near_duplicates


def speckle(seed: int, size: tuple[int, int] = (160, 170)) -> torch.Tensor:
    """A smooth random picture, ``(1, H, W)``."""
    coarse = torch.from_numpy(np.random.default_rng(seed).random((1, 1, 24, 24))).float()
    return torch.nn.functional.interpolate(coarse, size=size, mode="bicubic")[0].clamp(0, 1)


@pytest.mark.parametrize("size", [(160, 170), (97, 120), (9, 300)])
def test_the_hash_compares_neighbours_in_pillows_reduction_to_17_by_16(size):
    img = speckle(0, size)
    cells = np.asarray(Image.fromarray(img[0].numpy()).resize((17, 16), Image.Resampling.BILINEAR))
    steps = (cells[:, :-1] - cells[:, 1:]).flatten() / cells.max()
    clear = np.abs(steps - 1e-3) > 1e-5  # away from rounding
    np.testing.assert_array_equal(difference_hash(img)[clear], steps[clear] > 1e-3)
    assert clear.mean() > 0.98


def resized(img: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.interpolate(img[None], size=(97, 120), mode="bilinear", antialias=True)[0]


@pytest.mark.parametrize(
    "change", [lambda x: 0.4 * x, resized, lambda x: (x * 255).round() / 255, lambda x: x.expand(3, -1, -1)]
)
def test_brightness_size_rounding_and_channels_change_the_hash_less_than_the_default_distance(change):
    changed = [(difference_hash(speckle(s)) != difference_hash(change(speckle(s)))).sum() for s in range(5)]
    assert max(changed) <= 12


def test_different_pictures_are_far_apart():
    hashes = [difference_hash(speckle(seed)) for seed in range(12)]
    assert min((a != b).sum() for i, a in enumerate(hashes) for b in hashes[:i]) > 60


@given(st.integers(0, 2**16), st.integers(0, 60), st.integers(0, 60))
@settings(max_examples=20, deadline=None)
def test_pairs_are_those_of_a_count_bit_by_bit(seed, count, distance):
    random = np.random.default_rng(seed)
    bases = random.random((3, 256)) < 0.5
    hashes = [bases[random.integers(3)] ^ (random.random(256) < random.choice([0, 0.05, 0.3])) for _ in range(count)]
    expected = [
        (i, j)
        for i in range(count)
        for j in range(i + 1, count)
        if sum(a != b for a, b in zip(hashes[i], hashes[j], strict=True)) <= distance
    ]
    assert sorted(near_duplicates(hashes, distance)) == expected


def test_blank_pictures_are_not_taken_for_copies_of_each_other():
    blank = difference_hash(torch.zeros(1, 64, 64))
    assert near_duplicates([blank, blank], 12) == []


@given(st.integers(1, 40), st.lists(st.tuples(st.integers(0, 39), st.integers(0, 39)), max_size=40), st.integers(0, 99))
@settings(max_examples=25, deadline=None)
def test_groups_are_the_connected_components(count, pairs, seed):
    pairs = [(a % count, b % count) for a, b in pairs]
    key = [None if k == 0 else k for k in np.random.default_rng(seed).integers(0, 30, count).tolist()]
    joined = pairs + [(i, j) for i in range(count) for j in range(i) if key[i] is not None and key[i] == key[j]]
    rows, columns = zip(*joined, strict=True) if joined else ((), ())
    graph = coo_array((np.ones(len(joined)), (rows, columns)), shape=(count, count))
    _, expected = connected_components(graph, directed=False)
    groups = joined_groups(count, pairs, [key])
    assert all((groups[i] == groups[j]) == (expected[i] == expected[j]) for i in range(count) for j in range(count))
    assert all(groups[number] == number for number in groups)


def test_tiny_images_and_volumes_have_a_hash():
    assert difference_hash(torch.rand(1, 1, 1)).shape == difference_hash(torch.rand(1, 5, 40, 30)).shape == (256,)


def test_real_frames_of_one_cine_are_near_and_patients_are_not(shared_data):
    load = LoadUltrasound()
    frames = sorted((shared_data / "cine_2dt" / "frames").glob("bone*.png"))[:4]
    patients = [shared_data / "busbra" / "images" / f"bus_{number:04d}-l.png" for number in (1, 4, 24, 30)]
    hashes = [difference_hash(load(path)) for path in [*frames, *filter(Path.is_file, patients)]]
    found = near_duplicates(hashes)
    assert any(first < len(frames) for first, _ in found) and all(second < len(frames) for _, second in found)
