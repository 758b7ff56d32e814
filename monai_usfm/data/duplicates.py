# Copyright (c) monai_usfm contributors
# SPDX-License-Identifier: Apache-2.0
"""Find copies of an image by a perceptual hash, also cropped, framed and mirrored ones, and join what belongs together.

The hash is the difference hash (N. Krawetz, "Kind of Like That", 2013,
https://www.hackerfactor.com/blog/index.php?/archives/529-Kind-of-Like-That.html), here with 16 x 16 bits. It survives
other sizes, compression, brightness and noise. A crop or a frame shifts its grid, so each image has one hash of the
whole and one of its content without a uniform border, both of several crops.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

HASH_SIDE = 16  # the hash has ``HASH_SIDE ** 2`` = 256 bits
MAX_BITS = 40  # two images at most this far apart are copies of each other
MIN_BITS = 16  # a hash with fewer bits set belongs to a nearly flat image and says nothing
CROPS = (0.0, 0.03)  # what is cut off at each of the four sides, as a share of the length: 16 crops
WIDE_CROP = 0.075  # one more crop, of this share at all sides, by which crops of 5 to 9 % at all sides are found
SCREENING_BITS = 90  # pairs whose whole images and contents are farther apart than this are not compared crop by crop
BORDER_LEVEL = 16 / 255
"""Outer rows and columns whose values spread less than this, relative to the image's, are a border."""


class Copy(NamedTuple):
    """Two images that are copies of each other, by their indices; ``distance`` in bits of 256."""

    first: int
    second: int
    distance: int
    mirrored: bool


def image_hashes(image: torch.Tensor) -> np.ndarray:
    """The hashes by which :func:`find_copies` knows an image ``(C, H, W)``, or a volume by its middle slice.

    Returns:
        ``(2, 2, 17, 32)`` uint8: of the whole image and of its content (:func:`content_box`), as it is and mirrored
        left to right, for 17 crops (the first cuts nothing off), 256 bits packed row by row: whether each cell of a
        16 x 16 grid is brighter than its right neighbor.
    """
    plane = image.as_subclass(torch.Tensor).float().mean(dim=0)
    if plane.ndim == 3:
        plane = plane[len(plane) // 2]
    values = plane.cpu().numpy()
    top, bottom, left, right = content_box(values)
    return np.stack([_crop_hashes(values), _crop_hashes(values[top:bottom, left:right])])


def content_box(values: np.ndarray) -> tuple[int, int, int, int]:
    """Rows ``top:bottom`` and columns ``left:right`` that are left without a uniform border, such as a frame.

    Of an image ``(H, W)`` that is uniform everywhere all is left.
    """
    level = BORDER_LEVEL * float(np.ptp(values))
    rows = np.flatnonzero(np.ptp(values, axis=1) > level)
    columns = np.flatnonzero(np.ptp(values[rows[0] : rows[-1] + 1], axis=0) > level) if len(rows) else rows
    if not len(columns):
        return 0, values.shape[0], 0, values.shape[1]
    return int(rows[0]), int(rows[-1]) + 1, int(columns[0]), int(columns[-1]) + 1


def _crop_hashes(values: np.ndarray) -> np.ndarray:
    """``(H, W) -> (2, 17, 32)``: the hashes of all crops, as they are and mirrored, packed."""
    parts = []
    for cuts in ([(low, high) for low in CROPS for high in CROPS], [(WIDE_CROP, WIDE_CROP)]):
        rows = np.stack([_resampling(values.shape[0], HASH_SIDE, *cut) for cut in cuts])
        columns = np.stack([_resampling(values.shape[1], HASH_SIDE + 1, *cut) for cut in cuts])
        parts.append(np.einsum("rih,hw,cjw->rcij", rows, values, columns, optimize=True))
    cells = np.concatenate([part.reshape(-1, HASH_SIDE, HASH_SIDE + 1) for part in parts])
    # differences below 0.1 % of the range count as none
    cells /= np.abs(cells).max(axis=(1, 2), keepdims=True).clip(1e-12)
    steps = np.stack([cells[..., :-1] - cells[..., 1:], np.diff(cells)[..., ::-1]])
    return np.packbits((steps > 1e-3).reshape(2, len(cells), -1), axis=-1)


@lru_cache(maxsize=4096)
def _resampling(length: int, cells: int, low: float, high: float) -> np.ndarray:
    """Weights ``(cells, length)`` of a linear, antialiased reduction of the part between two cuts, as Pillow's."""
    start, stop = round(low * length), max(length - round(high * length), round(low * length) + 1)
    step = (stop - start) / cells
    support = max(step, 1.0)
    centers = start + (np.arange(cells)[:, None] + 0.5) * step
    places = np.arange(length) + 0.5
    weights = (1 - np.abs(places - centers) / support).clip(0) * ((places > start) & (places < stop))
    return (weights / weights.sum(axis=1, keepdims=True)).astype(np.float32)


def find_copies(
    hashes: Sequence[np.ndarray], others: Sequence[np.ndarray] | None = None, max_bits: int = MAX_BITS
) -> list[Copy]:
    """Pairs of images that are copies of each other, whatever the size, brightness, crop, frame or mirroring.

    Two images are compared whole and by their contents, as they are and mirrored at either axis or both; where these
    are not too far apart, the crops of one with the other and the reverse. The smallest distance counts. Hashes with
    fewer than 16 set bits (blank images) tell nothing. Time grows with the square of the number of images.

    ``others`` are images to compare them with; None compares them with each other, ``first < second``.
    """
    if max_bits < 0:
        raise ValueError(f"max_bits must be 0 or more, got {max_bits}.")
    if not len(hashes) or (others is not None and not len(others)):
        return []
    first = np.stack(hashes)
    second = first if others is None else np.stack(others)
    whole, wide = (torch.from_numpy(_signs(first[:, :, 0, crop])) for crop in (0, -1))
    turned, turned_wide = (torch.from_numpy(_signs(_turned(second)[:, :, :, crop])) for crop in (0, -1))
    sides = [(whole[:, part], turned[:, part]) for part in range(2)] + [
        (wide[:, 0], turned[:, 0]),
        (whole[:, 0], turned_wide[:, 0]),
    ]
    copies: list[Copy] = []
    for start in range(0, len(first), 256):
        rows = slice(start, start + 256)
        products = [torch.stack([a[rows] @ b[:, turn].T for a, b in sides]).amax(0) for turn in range(4)]
        agreement, turns = torch.stack(products).max(0)
        nearest = ((HASH_SIDE**2 - agreement) / 2).numpy()
        pairs = np.argwhere(nearest <= max(SCREENING_BITS, max_bits))
        if others is None:
            pairs = pairs[pairs[:, 1] > pairs[:, 0] + start]
        distances, mirrored = nearest[tuple(pairs.T)], turns.numpy()[tuple(pairs.T)] > 0
        apart = np.flatnonzero(distances > max_bits)
        for block in np.split(apart, range(2048, len(apart), 2048)) if len(apart) else ():
            cropped = _distances(first[pairs[block, 0] + start], second[pairs[block, 1]])
            distances[block], mirrored[block] = cropped.min(axis=1), cropped.argmin(axis=1) > 0
        copies += [
            Copy(int(pairs[i, 0]) + start, int(pairs[i, 1]), int(distances[i]), bool(mirrored[i]))
            for i in np.flatnonzero(distances <= max_bits)
        ]
    return copies


def _distances(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Hashes of ``M`` pairs -> ``(M, 4)``: the smallest distance of each pair, for each way to turn the second."""
    turned = _turned(second)
    result = np.full((len(first), 4), HASH_SIDE**2)
    for turn in range(4):
        for crops, base in ((first[:, :, 0], turned[:, :, turn, 0]), (turned[:, :, turn], first[:, :, 0, 0])):
            crops = crops.reshape(len(first), -1, 1, crops.shape[-1])
            base = base[:, None]
            distances = np.where(_telling(crops) & _telling(base), _count(crops ^ base), HASH_SIDE**2)
            result[:, turn] = np.minimum(result[:, turn], distances.min(axis=(1, 2)))
    return result


def _turned(hashes: np.ndarray) -> np.ndarray:
    """``(M, 2, 2, 17, 32) -> (M, 2, 4, 17, 32)``: as it is, mirrored left to right, and both upside down."""
    rows = hashes.reshape(*hashes.shape[:-1], HASH_SIDE, HASH_SIDE // 8)
    return np.concatenate([hashes, np.flip(rows, -2).reshape(hashes.shape)], axis=2)


_BITS = np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1).sum(1).astype(np.uint8)


def _count(packed: np.ndarray) -> np.ndarray:
    return _BITS[packed].sum(axis=-1, dtype=np.int32)


def _telling(packed: np.ndarray) -> np.ndarray:
    return _count(packed) >= MIN_BITS


def _signs(packed: np.ndarray) -> np.ndarray:
    """Bits as +1 and -1: the number of unlike ones is (256 - dot product) / 2; zeros, half-way, where none tells."""
    return np.where(_telling(packed)[..., None], 2 * np.unpackbits(packed, axis=-1).astype(np.float32) - 1, 0)


def joined_groups(count: int, pairs: Iterable[Sequence[int]], keys: Iterable[Sequence[Hashable]] = ()) -> list[int]:
    """Number ``count`` items from 0 such that two get one number when a chain of pairs or equal keys joins them.

    The first two entries of each pair belong together. Of the keys, each a sequence of ``count`` values, items of equal
    value do, those of ``None`` to nobody.
    """
    edges = [(pair[0], pair[1]) for pair in pairs]
    for values in keys:
        seen: dict[Hashable, int] = {}
        edges += [(seen.setdefault(value, item), item) for item, value in enumerate(values) if value is not None]
    rows, columns = np.array(edges, dtype=int).reshape(-1, 2).T
    graph = coo_array((np.ones(len(rows)), (rows, columns)), shape=(count, count))
    return connected_components(graph, directed=False)[1].tolist()
