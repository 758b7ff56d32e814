# Copyright (c) monai_usfm contributors
# SPDX-License-Identifier: Apache-2.0
"""Find near-identical images by a perceptual hash, and join what belongs together into groups."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence

import numpy as np
import torch
import torch.nn.functional as F

__all__ = ["difference_hash", "hamming_distances", "joined_groups", "near_duplicates"]

HASH_SIDE = 16
"""The hash has ``HASH_SIDE ** 2`` = 256 bits."""
MIN_BITS = 16
"""A hash with fewer bits set belongs to a nearly flat image and says nothing."""


def difference_hash(image: torch.Tensor) -> np.ndarray:
    """256-bit difference hash of an image: is each cell of a 16 x 16 grid brighter than its right neighbour?

    It survives rescaling, recompression and changes of brightness. N. Krawetz, "Kind of Like That", 2013,
    https://www.hackerfactor.com/blog/index.php?/archives/529-Kind-of-Like-That.html, there with 64 bits.

    Args:
        image: ``(C, H, W)`` or ``(C, D, H, W)``, any real type; channels are averaged, of a volume the middle slice is
            taken.

    Returns:
        ``(256,)``, bool, row by row.
    """
    grey = image.as_subclass(torch.Tensor).float().mean(dim=0)
    if grey.ndim == 3:
        grey = grey[len(grey) // 2]
    # antialiased, so that a picture and its resized copy agree; differences below 0.1 % of the range count as none
    size = (HASH_SIDE, HASH_SIDE + 1)
    cells = F.interpolate(grey[None, None], size=size, mode="bilinear", antialias=True)[0, 0]
    cells = cells / cells.abs().amax().clamp_min(1e-12)
    return (cells[:, :-1] - cells[:, 1:] > 1e-3).flatten().cpu().numpy()


def near_duplicates(hashes: Sequence[np.ndarray], max_distance: int = 12) -> list[tuple[int, int]]:
    """Pairs ``(i, j)``, ``i < j``, whose hashes differ in at most ``max_distance`` bits.

    Hashes with fewer than 16 set bits (blank pictures) tell nothing and are left out. Time grows with the square of
    the number of images: 20 000 take seconds, 100 000 minutes.

    Args:
        hashes: of :func:`difference_hash`.
        max_distance: in bits of 256; unrelated ultrasound images of one device mostly differ in more than 50.

    Raises:
        ValueError: for a negative distance.
    """
    if max_distance < 0:
        raise ValueError(f"max_distance must be 0 or more, got {max_distance}.")
    if len(hashes) == 0:
        return []
    bits = torch.from_numpy(np.stack(hashes))
    pairs: list[tuple[int, int]] = []
    for start in range(0, len(bits), 1024):
        distances = hamming_distances(bits[start : start + 1024], bits[start:])
        first, second = torch.nonzero(distances <= max_distance, as_tuple=True)
        later = second > first
        pairs += zip((first[later] + start).tolist(), (second[later] + start).tolist(), strict=True)
    return pairs


def hamming_distances(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    """Differing bits of each pair of hashes, ``(M, 256), (M', 256) -> (M, M')``; infinite where one tells nothing."""
    # for vectors of +1 and -1 the number of differing places is (length - dot product) / 2
    distances = (first.shape[1] - (2.0 * first.float() - 1) @ (2.0 * second.float() - 1).T) / 2
    distances[first.sum(1) < MIN_BITS] = torch.inf
    distances[:, second.sum(1) < MIN_BITS] = torch.inf
    return distances


def joined_groups(count: int, pairs: Iterable[tuple[int, int]], keys: Iterable[Sequence[Hashable]] = ()) -> list[int]:
    """Number items such that two get one number when a chain of pairs or equal keys joins them.

    Args:
        count: number of items.
        pairs: items that belong together.
        keys: each a sequence of ``count`` values; items of equal value belong together, those of ``None`` to nobody.

    Returns:
        The group of each item: the smallest index of an item in it.
    """
    parent = list(range(count))

    def root(item: int) -> int:
        while parent[item] != item:
            parent[item] = parent[parent[item]]
            item = parent[item]
        return item

    def join(first: int, second: int) -> None:
        a, b = root(first), root(second)
        parent[max(a, b)] = min(a, b)

    for first, second in pairs:
        join(first, second)
    for values in keys:
        seen: dict[Hashable, int] = {}
        for item, value in enumerate(values):
            if value is not None:
                join(seen.setdefault(value, item), item)
    return [root(item) for item in range(count)]
