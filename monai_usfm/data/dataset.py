# Copyright (c) monai_usfm contributors
# SPDX-License-Identifier: Apache-2.0
"""A dataset that survives unreadable files and can keep its decoded images in a memory-mapped file."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
import socket
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.config import PathLike
from monai.data import Dataset
from monai.data.utils import pickle_hashing
from monai.transforms.traits import RandomizableTrait
from monai.utils import convert_to_tensor

from .formats import UnreadableImageError

__all__ = ["UltrasoundDataset"]

logger = logging.getLogger(__name__)


class UltrasoundDataset(Dataset):
    """MONAI dataset for lists of files of which some may be damaged, with an optional one-time uint8 cache.

    **Unreadable files.** With ``skip_unreadable`` a file that raises :class:`UnreadableImageError` is logged once,
    added to :attr:`skipped`, and its place is taken by the next readable item of the list. The rule depends on the list
    alone, so a resumed run draws what an uninterrupted one drew. Without it the error is raised as it is, naming the
    file. Errors of other kinds always go through.

    **Cache.** With ``cache_dir`` the transforms before the first random one are run once over the list, and the
    resulting images, which must have one size and values in [0, 1], are kept there as one memory-mapped uint8 file;
    later samples start from it at memory speed, exact to 1/510. The folder's name is a hash of the items, the files'
    sizes and times, and the transforms, so any change builds another. It is written under a temporary name and renamed
    when complete, so an interrupted build leaves nothing that could be taken for a cache, and processes that build at
    once do not disturb each other. Cached images carry no metadata.

    Args:
        data: items with file names, as :func:`~monai_usfm.data.load_datalist` gives them.
        transform: callable or list of callables; the first must load the files.
        skip_unreadable: leave damaged and missing files out instead of raising.
        cache_dir: folder for the cache, made if need be; ``None`` for none.
        image_key: key of the image that is cached.

    Raises:
        ValueError: for an empty list; while caching, when images differ in size or leave [0, 1], or when the transforms
            before the first random one make tensors under other keys, which the cache does not hold.
        UnreadableImageError: for an unreadable file without ``skip_unreadable``.
        RuntimeError: with ``skip_unreadable``, when no file of the list is readable.
    """

    def __init__(
        self,
        data: Sequence[dict[str, Any]],
        transform: Sequence[Callable] | Callable | None = None,
        skip_unreadable: bool = False,
        cache_dir: PathLike | None = None,
        image_key: str = "image",
    ) -> None:
        super().__init__(data, transform)
        if len(data) == 0:
            raise ValueError("the list of data is empty.")
        self.skip_unreadable = skip_unreadable
        self.image_key = image_key
        # in shared memory, so that the main process knows what the loader's workers met
        self._unreadable = torch.zeros(len(data), dtype=torch.uint8).share_memory_()
        self._reasons: dict[int, tuple[str, str]] = {}
        self._cache: _Uint8Cache | None = None
        if cache_dir is not None:
            self._split = self.transform.get_index_of_first(lambda t: isinstance(t, RandomizableTrait))
            if self._split == 0 or not self.transform.transforms:
                raise ValueError(
                    "there is nothing to cache before the first random transform; "
                    'load a fixed frame (frame="middle") and a fixed size first.'
                )
            self._cache = _Uint8Cache(cache_dir, self)

    @property
    def skipped(self) -> list[tuple[str, str]]:
        """``(path, reason)`` of each file left out so far, in the order of the list."""
        for index in torch.nonzero(self._unreadable).flatten().tolist():
            if index not in self._reasons:  # met in another process, which kept its message to itself
                try:
                    self._run(index)
                    self._reasons[index] = (str(self.data[index].get(self.image_key)), "readable now, was not before.")
                except UnreadableImageError as error:
                    self._reasons[index] = (error.path, error.reason)
        return [self._reasons[index] for index in sorted(self._reasons)]

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
                self._report(candidate % size, error)
        raise RuntimeError(f"none of the {size} files is readable; the last one: {self._reasons[(first - 1) % size]}.")

    def _sample(self, index: int) -> Any:
        if self._cache is None:
            return self._run(index)
        image = self._cache.image(index)
        # what the cached transforms took out of the item stays out, or items of different lists would not collate
        item = {**{k: self.data[index][k] for k in self._cache.kept(index)}, self.image_key: image}
        return item if self._split is None else self.transform(item, start=self._split)

    def _run(self, index: int, end: int | None = None) -> Any:
        """Transform an item; where that failed on a file, raise its error itself instead of Compose's about it."""
        try:
            return self.transform(self.data[index], end=end)
        except Exception as error:
            cause: BaseException | None = error
            while cause is not None and not isinstance(cause, UnreadableImageError):
                cause = cause.__cause__
            if cause is None:
                raise
            raise cause from None

    def _report(self, index: int, error: UnreadableImageError) -> None:
        self._reasons[index] = (error.path, error.reason)
        if not self._unreadable[index]:
            self._unreadable[index] = 1
            logger.warning("left out (%d so far): %s", int(self._unreadable.sum()), error)


class _Uint8Cache:
    """The memory-mapped images of one dataset.

    ``images.npy`` of shape ``(files, C, *S)``, ``keys.json`` with the keys that the cached transforms leave in each
    item, and ``skipped.json``, which is written last.
    """

    def __init__(self, cache_dir: PathLike, dataset: UltrasoundDataset) -> None:
        self._memory: np.ndarray | None = None
        root = Path(cache_dir)
        root.mkdir(parents=True, exist_ok=True)
        self.folder = root / f"images-{_fingerprint(dataset)}"
        if not (self.folder / "skipped.json").is_file():
            _remove_abandoned(root)
            self._build(dataset)
        self.skipped = {
            int(index): UnreadableImageError(path, reason)
            for index, path, reason in json.loads((self.folder / "skipped.json").read_text())
        }
        self._keys: list[list[str]] = json.loads((self.folder / "keys.json").read_text())
        if self.skipped and not dataset.skip_unreadable:
            raise self.skipped[min(self.skipped)]

    def kept(self, index: int) -> list[str]:
        """Keys of the item beside its image."""
        return self._keys[index]

    def image(self, index: int) -> torch.Tensor:
        """``(C, *S)``, float32 in [0, 1]."""
        if index in self.skipped:
            first = self.skipped[index]
            raise UnreadableImageError(first.path, first.reason)  # anew: a kept one gathers every traceback
        if self._memory is None:  # opened in the process that reads
            self._memory = np.load(self.folder / "images.npy", mmap_mode="r")
        return torch.from_numpy(self._memory[index].astype(np.float32)).div_(255)

    def __getstate__(self) -> dict:
        return {**self.__dict__, "_memory": None}  # a worker maps the file anew; a pickled map would be a copy

    def _build(self, dataset: UltrasoundDataset) -> None:
        part = self.folder.with_name(f"{self.folder.name}.part-{socket.gethostname()}-{os.getpid()}")
        logger.info("caching %d images in %s", len(dataset.data), self.folder)
        try:
            shutil.rmtree(part, ignore_errors=True)  # of a killed process that had this number, as in containers
            part.mkdir()
            self._write(dataset, part)
            try:
                os.replace(part, self.folder)
            except OSError:  # another process was first
                if not (self.folder / "skipped.json").is_file():
                    raise
        finally:
            shutil.rmtree(part, ignore_errors=True)

    def _write(self, dataset: UltrasoundDataset, folder: Path) -> None:
        memory, shape, skipped = None, None, []
        keys: list[list[str]] = [[] for _ in dataset.data]

        def load(index: int) -> np.ndarray | UnreadableImageError:
            item = dataset.data[index]
            try:
                sample = dataset._run(index, end=dataset._split)
                keys[index] = [k for k in item if k in sample and k != dataset.image_key]
                return _as_uint8(sample, item, dataset.image_key)
            except UnreadableImageError as error:
                return error

        # decoding leaves the interpreter lock, so threads help; a window of work bounds the memory
        threads = min(8, os.cpu_count() or 1)
        with ThreadPoolExecutor(threads) as pool:
            for start in range(0, len(dataset.data), 64):
                window = range(start, min(start + 64, len(dataset.data)))
                for index, image in zip(window, pool.map(load, window), strict=True):
                    if isinstance(image, UnreadableImageError):
                        if not dataset.skip_unreadable:
                            raise image
                        dataset._report(index, image)
                        skipped.append((index, image.path, image.reason))
                        continue
                    if memory is None:
                        shape = image.shape
                        memory = np.lib.format.open_memmap(
                            folder / "images.npy", mode="w+", dtype=np.uint8, shape=(len(dataset.data), *shape)
                        )
                    if image.shape != shape:
                        raise ValueError(
                            f"{dataset.data[index].get(dataset.image_key)}: shape {image.shape} after the transforms "
                            f"before the first random one, others have {shape}; a cache needs one size: put a resizing "
                            "transform before the random ones."
                        )
                    memory[index] = image
        if memory is None:
            raise RuntimeError(f"none of the {len(dataset.data)} files is readable; the first one: {skipped[0][1:]}.")
        memory.flush()
        (folder / "keys.json").write_text(json.dumps(keys))
        (folder / "skipped.json").write_text(json.dumps(skipped))


def _as_uint8(sample: dict[str, Any], item: dict[str, Any], key: str) -> np.ndarray:
    """The image of a transformed item in 8 bits, rounded."""
    arrays = [k for k, v in sample.items() if isinstance(v, (torch.Tensor, np.ndarray)) and v is not item.get(k)]
    others = [k for k in arrays if k != key]
    if others:
        raise ValueError(f"the cache holds {key!r} only, but the transforms also made {', '.join(map(str, others))}.")
    image = convert_to_tensor(sample[key], track_meta=False)
    if image.is_floating_point():
        low, high = float(image.min()), float(image.max())
        if not (low >= -1 / 510 and high <= 1 + 1 / 510):
            raise ValueError(f"{item.get(key)}: values from {low:g} to {high:g}; the cache holds [0, 1] only.")
        image = image.clamp(0, 1).mul(255).round()
    return image.to(torch.uint8).cpu().numpy()


def _fingerprint(dataset: UltrasoundDataset) -> str:
    """Hash of all that the cached images depend on."""
    digest = hashlib.sha256(b"3" + pickle_hashing(dataset.transform.transforms[: dataset._split]))  # 3: whole items
    for item in dataset.data:
        path = Path(str(item.get(dataset.image_key)))
        stat = path.stat() if path.is_file() else None
        known = (stat.st_size, stat.st_mtime_ns) if stat else None
        digest.update(repr((str(path), known)).encode() + pickle_hashing(item))
    return digest.hexdigest()[:16]


def _remove_abandoned(root: Path) -> None:
    """Delete what builds on this machine left that were killed."""
    for part in root.glob(f"images-*.part-{socket.gethostname()}-*"):
        try:
            os.kill(int(part.name.rsplit("-", 1)[1]), 0)  # signal 0 only asks whether the process lives
        except ProcessLookupError:
            shutil.rmtree(part, ignore_errors=True)
        except (ValueError, PermissionError):
            continue
