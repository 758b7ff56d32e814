# Copyright (c) monai_usfm contributors
# SPDX-License-Identifier: Apache-2.0
"""A cached dataset whose random transforms draw the same however many workers load it."""

from __future__ import annotations

from typing import Any

import numpy as np
from monai.data import CacheDataset
from monai.transforms import Randomizable

__all__ = ["SeededCacheDataset"]


class SeededCacheDataset(CacheDataset):
    """MONAI's :class:`~monai.data.CacheDataset`, each item of which draws from a seed of its own.

    MONAI seeds the transforms once for each worker, so that 0, 1 and 2 workers augment differently. Here an item's
    draws depend on the seed, the epoch and its place in the list alone.

    Args:
        seed: non-negative.
        arguments: those of :class:`monai.data.CacheDataset`.
    """

    def __init__(self, *arguments: Any, seed: int = 0, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.seed = seed
        self.epoch = 0  # set by monai_usfm.handlers.EpochSeed before the workers start

    def _transform(self, index: int) -> Any:
        if isinstance(self.transform, Randomizable):
            state = np.random.SeedSequence([self.seed, self.epoch, index]).generate_state(1)
            self.transform.set_random_state(seed=int(state[0]))
        return super()._transform(index)
