# Copyright (c) monai_usfm contributors
# SPDX-License-Identifier: Apache-2.0
"""Near-copies by difference hashes: against Pillow, a count bit by bit, and real images."""

from __future__ import annotations

import io
from pathlib import Path

import networkx as nx
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps

from monai_usfm.data import LoadUltrasound
from monai_usfm.data.duplicates import (
    MAX_BITS,
    content_box,
    find_copies,
    image_hashes,
    joined_groups,
)


def speckle(seed: int, size: tuple[int, int] = (160, 170)) -> torch.Tensor:
    """A smooth random image, ``(1, H, W)``."""
    coarse = torch.from_numpy(np.random.default_rng(seed).random((1, 1, 24, 24))).float()
    return torch.nn.functional.interpolate(coarse, size=size, mode="bicubic")[0].clamp(0, 1)


@pytest.mark.parametrize("size", [(160, 170), (97, 120), (9, 300)])
@pytest.mark.parametrize("crop", range(4))
def test_the_hash_compares_neighbors_in_pillows_reduction_to_17_by_16(size, crop):
    img = speckle(0, size)
    cut = [round(0.03 * side) for side in size]
    top, bottom = (0, size[0]) if crop % 2 == 0 else (0, size[0] - cut[0])
    left, right = (0, size[1]) if crop < 2 else (cut[1], size[1])
    number = 4 * (crop % 2) + 2 * (crop >= 2)  # (low, high) of rows, then of columns
    part = Image.fromarray(img[0].numpy()[top:bottom, left:right])
    cells = np.asarray(part.resize((17, 16), Image.Resampling.BILINEAR))
    steps = (cells[:, :-1] - cells[:, 1:]).flatten() / cells.max()
    clear = np.abs(steps - 1e-3) > 1e-5  # away from rounding
    bits = np.unpackbits(image_hashes(img)[0, 0, number]).astype(bool)
    np.testing.assert_array_equal(bits[clear], steps[clear] > 1e-3)
    assert clear.mean() > 0.98


def test_different_images_are_far_apart():
    hashes = [np.unpackbits(image_hashes(speckle(seed))[0, 0, 0]) for seed in range(12)]
    assert min((a != b).sum() for i, a in enumerate(hashes) for b in hashes[:i]) > 60


def framed(img: torch.Tensor, level: float) -> torch.Tensor:
    return torch.nn.functional.pad(img, (13, 20, 9, 9), value=level)


CHANGES = {
    "darker": lambda x: 0.4 * x,
    "smaller": lambda x: torch.nn.functional.interpolate(x[None], size=(97, 120), mode="bilinear", antialias=True)[0],
    "rounded": lambda x: (x * 255).round() / 255,
    "color": lambda x: x.expand(3, -1, -1),
    "noise": lambda x: x + 0.02 * torch.randn(x.shape, generator=torch.Generator().manual_seed(1)),
    "cropped by 3 % at all sides": lambda x: x[:, 5:-5, 5:-5],
    "cropped by 3 % at two sides": lambda x: x[:, 5:, :-5],
    "cropped by 2 %": lambda x: x[:, 3:-3, 3:-3],
    "cropped by 8 % at all sides": lambda x: x[
        :, round(0.08 * x.shape[1]) : -round(0.08 * x.shape[1]), round(0.08 * x.shape[2]) : -round(0.08 * x.shape[2])
    ],
    "framed in black": lambda x: framed(x, 0.0),
    "framed in white": lambda x: framed(x, 1.0),
    "framed in gray": lambda x: framed(x, 0.4),
    "mirrored": lambda x: x.flip(-1),
    "upside down": lambda x: x.flip(-2),
    "turned by 180 degrees": lambda x: x.flip(-1, -2),
    "mirrored, cropped and framed": lambda x: framed(x.flip(-1)[:, 5:, 5:], 0.0),
}


@pytest.mark.parametrize("change", CHANGES)
def test_an_altered_copy_is_found_and_nothing_else(change):
    images = [image_hashes(speckle(seed)) for seed in range(6)]
    copy = image_hashes(CHANGES[change](speckle(3)))
    (found,) = find_copies([copy], images)
    assert found.second == 3 and found.mirrored == any(w in change for w in ("mirror", "upside", "turned"))
    (back,) = find_copies([*images, copy])
    assert back[:2] == (3, 6)


def test_pairs_within_one_distance_are_those_of_a_count_bit_by_bit():
    random = np.random.default_rng(0)
    base = image_hashes(speckle(0))
    hashes = [base ^ np.packbits(random.random((*base.shape, 8)) < p, axis=-1)[..., 0] for p in (0, 0.02, 0.1, 0.3)]
    flat = [np.unpackbits(h.reshape(2, 2, 17, 32), axis=-1) for h in hashes]
    for bits in (0, 12, 40):
        found = {(c.first, c.second) for c in find_copies(hashes, max_bits=bits)}
        # at least the uncropped hashes that are so near
        near = {
            (i, j) for i in range(4) for j in range(i) if (flat[i][:, 0, 0] != flat[j][:, 0, 0]).sum(-1).min() <= bits
        }
        assert {(j, i) for i, j in near} <= found


def test_copies_are_found_in_every_block_of_many_images():
    random = np.random.default_rng(0)
    hashes = random.integers(0, 256, (270, 2, 2, 17, 32), dtype=np.uint8)
    flipped = random.random((70, 32, 8)) < 0.18
    hashes[200:, 0, 0, 0] = hashes[200, 0, 0, 0] ^ np.packbits(flipped, axis=-1)[..., 0]  # alike, but no copies
    hashes[265], hashes[269] = hashes[3], hashes[258]
    hashes[255, 0, 0, 5] = hashes[268, 0, 0, 0]  # a crop of one is the other
    assert [c[:3] for c in find_copies(list(hashes))] == [(3, 265, 0), (255, 268, 0), (258, 269, 0)]


def test_blank_images_are_no_copies_of_each_other():
    blank = image_hashes(torch.zeros(1, 64, 64))
    assert find_copies([blank, blank]) == [] and find_copies([]) == []
    with pytest.raises(ValueError, match="max_bits"):
        find_copies([blank], max_bits=-1)


def test_the_content_is_what_lies_within_a_uniform_border():
    values = np.full((40, 50), 0.3)
    values[7:30, 11:45] = np.random.default_rng(0).random((23, 34))
    assert content_box(values) == (7, 30, 11, 45)
    assert content_box(np.zeros((4, 5))) == (0, 4, 0, 5)


@given(st.integers(1, 40), st.lists(st.tuples(st.integers(0, 39), st.integers(0, 39)), max_size=40), st.integers(0, 99))
@settings(max_examples=25, deadline=None)
def test_groups_are_the_connected_components(count, pairs, seed):
    pairs = [(a % count, b % count) for a, b in pairs]
    key = [None if k == 0 else k for k in np.random.default_rng(seed).integers(0, 30, count).tolist()]
    graph = nx.Graph([*pairs, *((i, j) for i in range(count) for j in range(i) if key[i] and key[i] == key[j])])
    graph.add_nodes_from(range(count))
    groups = joined_groups(count, pairs, [key])
    found = {frozenset(i for i in range(count) if groups[i] == number) for number in groups}
    assert found == {frozenset(part) for part in nx.connected_components(graph)}


def test_tiny_images_and_volumes_have_a_hash():
    assert image_hashes(torch.rand(1, 1, 1)).shape == image_hashes(torch.rand(1, 5, 40, 30)).shape == (2, 2, 17, 32)


def test_real_frames_of_one_cine_are_near_and_patients_are_not(shared_data):
    load = LoadUltrasound()
    frames = sorted((shared_data / "cine_2dt" / "frames").glob("bone*.png"))[:4]
    patients = [shared_data / "busbra" / "images" / f"bus_{number:04d}-l.png" for number in (1, 4, 24, 30)]
    hashes = [image_hashes(load(path)) for path in [*frames, *filter(Path.is_file, patients)]]
    found = find_copies(hashes)
    assert any(c.first < len(frames) for c in found) and all(c.second < len(frames) for c in found)


def pixels(img: Image.Image) -> torch.Tensor:
    return torch.from_numpy(np.asarray(img.convert("L"), dtype=np.float32) / 255)[None]


def cropped(img: Image.Image, share: float, *sides: int) -> Image.Image:
    w, h = (round(share * side) for side in img.size)
    return img.crop((w * sides[0], h * sides[1], img.width - w * sides[2], img.height - h * sides[3]))


def compressed(img: Image.Image, quality: int = 40) -> Image.Image:
    stream = io.BytesIO()
    img.save(stream, "JPEG", quality=quality)
    return Image.open(stream)


REAL_CHANGES = {
    "cropped by 3 % at four sides": lambda x: cropped(x, 0.03, 1, 1, 1, 1),
    "cropped by 3 % at two sides": lambda x: cropped(x, 0.03, 1, 1, 0, 0),
    "cropped by 1.5 % at four sides": lambda x: cropped(x, 0.015, 1, 1, 1, 1),
    "cropped by 5 % at four sides": lambda x: cropped(x, 0.05, 1, 1, 1, 1),
    "cropped by 8 % at four sides": lambda x: cropped(x, 0.08, 1, 1, 1, 1),
    "framed in black": lambda x: ImageOps.expand(x, 20, 0),
    "framed in white, JPEG 40": lambda x: compressed(ImageOps.expand(x, 20, 255)),
    "mirrored": ImageOps.mirror,
    "mirrored, cropped by 3 %": lambda x: ImageOps.mirror(cropped(x, 0.03, 1, 1, 1, 1)),
    "half the size": lambda x: x.resize((x.width // 2, x.height // 2)),
    "brighter by 30 %": lambda x: x.point(lambda v: min(255, 1.3 * v)),
    "gamma 0.7": lambda x: x.point(lambda v: 255 * (v / 255) ** 0.7),
    "JPEG 30": lambda x: compressed(x, 30),
}


@pytest.mark.slow
def test_copies_in_busbra_are_found_and_no_two_patients_are_taken_for_one(shared_data, capsys):
    """The numbers of docs/datalists.md: ``pytest -m slow -s`` prints them."""
    files = sorted((shared_data / "busbra" / "images").glob("*.png"))
    images = [Image.open(file).convert("L") for file in files]
    hashes = [image_hashes(pixels(img)) for img in images]
    false = [c for c in find_copies(hashes) if files[c.first].name[:8] != files[c.second].name[:8]]
    lines = [f"false alarms: {len(false)} of {len(files) * (len(files) - 1) // 2} pairs"]
    assert not false
    chosen = np.random.default_rng(0).choice(len(files), 150, replace=False)
    for name, change in REAL_CHANGES.items():
        copies = [image_hashes(pixels(change(images[i]))) for i in chosen]
        bits = {c.first: c.distance for c in find_copies(copies, [hashes[i] for i in chosen]) if c.first == c.second}
        lines.append(f"| {name} | {len(bits)} of 150 | {max(bits.values())} |")
        assert len(bits) >= (145 if "5 %" in name else 150)
    with capsys.disabled():
        print("\n".join(["", *lines]))
    assert MAX_BITS == 40
