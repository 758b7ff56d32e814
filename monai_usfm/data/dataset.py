# Copyright (c) monai_usfm contributors
# SPDX-License-Identifier: Apache-2.0
"""Datasets that survive unreadable files; that of training can keep what it decoded."""

from __future__ import annotations

import logging
import os
import pickle
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from threading import Lock
from typing import Any

import numpy as np
import torch
from monai.config import PathLike
from monai.data import Dataset
from monai.transforms import Compose, Transform
from monai.transforms.traits import RandomizableTrait
from monai.utils import convert_to_tensor
from torch.utils.data import get_worker_info

from monai_usfm.files import import_itk
from monai_usfm.options import flag

from .formats import UnreadableImageError
from .store import Uint8Store

__all__ = ["InferenceDataset", "UltrasoundDataset"]

logger = logging.getLogger(__name__)


def first_random(transform: Compose) -> int | None:
    """Place of the first transform that may give another result each time, as a plain function may; None for none."""
    return transform.get_index_of_first(lambda t: isinstance(t, RandomizableTrait) or not isinstance(t, Transform))


def _unreadable(error: BaseException | None) -> UnreadableImageError | None:
    """The error of a file that cannot be read, of which MONAI's Compose has made one about itself."""
    while error is not None and not isinstance(error, UnreadableImageError):
        error = error.__cause__
    return error


class InferenceDataset(Dataset):
    """A dataset that reads ahead in a thread, and hands a file which cannot be read on as its error, if told to.

    It is read in the order of the list. The workers of a loader read for themselves.

    Args:
        data: items.
        transform: reads them.
        skip_unreadable: see above; None for the files of a folder, but not of a ``datalist``, which was written.
        datalist: the list that the items are from, if any.
        ahead: items that are read beside the network; 0 for none.
    """

    def __init__(
        self,
        data: Sequence[dict[str, Any]],
        transform: Callable | None = None,
        skip_unreadable: bool | str | None = None,
        datalist: str | None = None,
        ahead: int = 0,
    ) -> None:
        super().__init__(data, transform)
        import_itk(value for item in data for value in item.values())
        self.skip_unreadable = datalist is None if skip_unreadable is None else flag(skip_unreadable)
        self.ahead = ahead
        self._thread: ThreadPoolExecutor | None = None
        self._started: dict[int, Future] = {}

    def __getitem__(self, index: Any) -> Any:
        if not self.ahead or not isinstance(index, int) or get_worker_info() is not None:
            return super().__getitem__(index)
        if self._thread is None:
            self._thread = ThreadPoolExecutor(1)
        if index not in self._started:
            self._started.clear()  # begun anew
        for number in range(index, min(index + self.ahead + 1, len(self.data))):
            if number not in self._started:
                self._started[number] = self._thread.submit(self._transform, number)
        return self._started.pop(index).result()

    def __getstate__(self) -> dict:
        return {**self.__dict__, "_thread": None, "_started": {}}

    def _transform(self, index: int) -> Any:
        try:
            return super()._transform(index)
        except Exception as error:
            cause = _unreadable(error)
            if cause is None:
                raise
            if not self.skip_unreadable:
                raise cause from None
            return cause


class UltrasoundDataset(Dataset):
    """MONAI dataset for lists of files of which some may be damaged, with a store of what was decoded.

    **Unreadable files.** With ``skip_unreadable`` a file that raises :class:`UnreadableImageError` is logged once,
    added to :attr:`skipped`, and its place is taken by the next readable item of the list. The rule depends on the list
    alone, so a resumed run draws what an uninterrupted one drew. Without it the error is raised as it is, naming the
    file. Errors of other kinds always go through.

    **Store.** With ``cache_dir`` the transforms before the first random one run once for each item; what they made is
    kept in a :class:`~monai_usfm.data.Uint8Store` there, a byte a pixel, with the name of the file and what gives mm.
    :meth:`read_all` fills it before training, else training does; memory does not grow with the list. A sample is the
    same whether it was stored or not.

    **Random transforms.** With a ``seed`` an item's draws depend on the seed, the epoch and its place in the list
    alone. MONAI seeds the transforms once for each worker, so that 0, 1 and 2 workers augment differently.

    Args:
        data: items with file names, as :func:`~monai_usfm.data.load_datalist` gives them.
        transform: callable or list of callables; the first must load the files.
        skip_unreadable: leave damaged and missing files out instead of raising.
        cache_dir: folder of the store, made if need be; ``None`` for none.
        seed: non-negative; ``None`` leaves the random state of the transforms alone.

    Raises:
        ValueError: for an empty list, and where nothing or something else than images and labels could be stored.
        UnreadableImageError: for an unreadable file without ``skip_unreadable``.
        RuntimeError: with ``skip_unreadable``, when no file of the list is readable.
    """

    def __init__(
        self,
        data: Sequence[dict[str, Any]],
        transform: Sequence[Callable] | Callable | None = None,
        skip_unreadable: bool = False,
        cache_dir: PathLike | None = None,
        seed: int | None = None,
    ) -> None:
        super().__init__(data, transform)
        if len(data) == 0:
            raise ValueError("the list of data is empty.")
        self.skip_unreadable, self.seed = skip_unreadable, seed
        self.epoch = 0  # set by monai_usfm.handlers.EpochSeed before the workers start
        # in shared memory, so that the main process knows what the loader's workers met
        self._unreadable = torch.zeros(len(data), dtype=torch.uint8).share_memory_()
        self._store: Uint8Store | None = None
        self._split = first_random(self.transform)
        if cache_dir is not None:
            if self._split == 0 or not self.transform.transforms:
                raise ValueError("there is nothing to store before the first random transform.")
            try:
                self._store = Uint8Store(cache_dir, self.transform.transforms[: self._split])
            except (AttributeError, TypeError, pickle.PicklingError) as error:  # a lambda has no name to be known by
                logger.warning("images are decoded every time: the transforms cannot be stored (%s).", error)

    def read_all(self, rank: int = 0, world_size: int = 1) -> int:
        """Run the fixed transforms on every item, so that a wrong file stops a run before its first step.

        By threads, and once: what the store has was right before. Without a store nothing is kept, so that the files
        are read once more. ``world_size`` processes share the work by their ``rank``. With ``skip_unreadable`` nothing
        is done, since a wrong file stops no run then. Raised is the error of the first wrong item of the list.

        Returns:
            The number of items that were read.
        """
        part = [] if self.skip_unreadable else range(rank, len(self.data), world_size)
        wanted = [index for index in part if self._store is None or self.data[index] not in self._store]
        lock = Lock()
        import_itk(value for index in wanted for value in self.data[index].values())

        def read(index: int) -> None:
            item = self._run(index, end=self._split)
            if self._store is not None:
                with lock:
                    self._store.put(self.data[index], item)

        with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
            for _ in pool.map(read, wanted):
                pass
        return len(wanted)

    def absent_classes(self, num_classes: int, key: str = "label") -> list[int]:
        """The classes of 0 .. ``num_classes`` - 1 that no label map under ``key`` holds after the fixed transforms.

        Items are looked at until every class was seen: those of the store, else their files.
        """
        left = set(range(num_classes))
        for index, item in enumerate(self.data):
            if not left:
                break
            kept = None if self._store is None else self._store.get(item)
            label = (self._run(index, end=self._split) if kept is None else kept)[key]
            left -= set(convert_to_tensor(label, track_meta=False).unique().tolist())
        return sorted(left)

    @property
    def skipped(self) -> list[str]:
        """The files left out so far, in the order of the list, whatever process met them."""
        return [str(self.data[index].get("image")) for index in self._unreadable.nonzero().flatten().tolist()]

    def _transform(self, index: int) -> Any:
        size = len(self.data)
        if not -size <= index < size:
            raise IndexError(f"index {index} is out of range for {size} items.")
        first = index % size
        for candidate in range(first, first + (size if self.skip_unreadable else 1)):
            try:
                return self._sample(candidate % size)
            except UnreadableImageError as error:
                if not self.skip_unreadable:
                    raise
                last = error
                if not self._unreadable[candidate % size]:
                    self._unreadable[candidate % size] = 1
                    logger.warning("left out (%d so far): %s", int(self._unreadable.sum()), error)
        raise RuntimeError(f"none of the {size} files is readable; the last one: {last}")

    def _sample(self, index: int) -> Any:
        if self.seed is not None:
            state = np.random.SeedSequence([self.seed, self.epoch, index]).generate_state(1)
            self.transform.set_random_state(seed=int(state[0]))
        if self._store is None:
            return self._run(index)
        item = self._store.get(self.data[index])
        if item is None:
            item = self._store.put(self.data[index], self._run(index, end=self._split))
        return item if self._split is None else self.transform(item, start=self._split)

    def _run(self, index: int, end: int | None = None) -> Any:
        """Transform an item; where that failed on a file, raise its error itself instead of Compose's about it."""
        try:
            # the fixed transforms are run by several threads, where one that keeps something must be a copy
            return self.transform(self.data[index], end=end, threading=end == self._split)
        except Exception as error:
            cause = _unreadable(error)
            if cause is None:
                raise
            raise cause from None
