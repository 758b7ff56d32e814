# Copyright (c) monai_usfm contributors
# SPDX-License-Identifier: Apache-2.0
"""Decoded images and labels kept as bytes on disk: filled while training reads, shared by lists and processes."""

from __future__ import annotations

import glob
import hashlib
import json
import logging
import math
import os
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from zlib import crc32

import numpy as np
import torch
from monai.config import PathLike
from monai.data import MetaTensor
from monai.data.utils import pickle_hashing
from monai.utils import convert_to_tensor

from ..files import TWO_FILES

__all__ = ["Uint8Store"]

logger = logging.getLogger(__name__)
SMALL = 4096  # values of a tensor that is kept in float32 where bytes do not hold it
META = ("filename_or_obj", "frame", "spatial_shape", "spacing", "spacing_known")  # what the tables of a training need
FORMAT = b"3"  # of the shards: items of another are read anew
ENTRY = struct.Struct("<16sQQI")  # key, first byte, number of bytes, checksum


class Uint8Store:
    """Items of a dataset after its fixed transforms, one byte a pixel.

    Images in [0, 1] are kept exactly to 1/510, whole numbers from 0 to 255 (labels) exactly, small tensors of other
    values in float32; of metadata the name of the file and what gives mm. An item is found by the hash of what it
    depends on: the transforms, its own entries, the sizes and times of its files, of the ``.json`` beside them and of
    the pixels that a header (``.mhd``, ``.nhdr``, ``.hdr``) describes. So subsets, other lists and other runs share
    what they have in common, and a changed file is read anew.

    Every process that adds items writes a shard of its own, ``NAME.bin``, and lists them in ``NAME.index`` after the
    bytes. Nothing is locked, and what a killed process wrote stays usable. The index is read by whoever opens the store
    or misses an item. Each item has a checksum: one that does not fit counts as absent. Reading maps the files into
    memory, so that it takes no memory that the system could not take back.

    Args:
        folder: of the shards, made if need be; give it up to start anew.
        transforms: the fixed transforms, of which the contents depend.
    """

    def __init__(self, folder: PathLike, transforms: Any) -> None:
        self.transforms = pickle_hashing(transforms)
        self.folder = Path(folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        self._forget()

    def _forget(self) -> None:
        self._process = os.getpid()
        self._entries: dict[bytes, tuple[Path, int, int, int]] = {}
        self._read: dict[Path, int] = {}  # bytes of each index that are known
        self._maps: dict[Path, np.ndarray] = {}
        self._shard: Path | None = None

    def _check_process(self) -> None:
        if self._process != os.getpid():  # a forked worker: a shard has one writer
            self._forget()

    def __getstate__(self) -> dict:
        return {"folder": self.folder, "transforms": self.transforms}

    def __setstate__(self, state: dict) -> None:
        self.__dict__.update(state)
        self._forget()

    def key(self, item: Mapping[str, Any]) -> bytes:
        """Hash of what the stored form of an item depends on."""
        digest = hashlib.blake2b(self.transforms + FORMAT, digest_size=16)
        digest.update(repr(sorted(item.items(), key=lambda pair: str(pair[0]))).encode())
        for value in item.values():
            if isinstance(value, torch.Tensor | np.ndarray):  # of which repr shows a part
                digest.update(np.ascontiguousarray(value).tobytes())
                continue
            for name in value if isinstance(value, list | tuple) else [value]:
                if isinstance(name, str | os.PathLike) and os.path.isfile(name):
                    for file in filter(os.path.isfile, _files(os.fspath(name))):
                        stat = os.stat(file)
                        digest.update(repr((stat.st_size, stat.st_mtime_ns)).encode())
        return digest.digest()

    def _find(self, item: Mapping[str, Any]) -> bytes | None:
        self._check_process()
        key = self.key(item)
        if key not in self._entries:
            self._refresh()
        return key if key in self._entries else None

    def __contains__(self, item: Mapping[str, Any]) -> bool:
        """Whether the item was stored; its bytes are not looked at."""
        return self._find(item) is not None

    def get(self, item: Mapping[str, Any]) -> dict[str, Any] | None:
        """The item with its tensors, which have metadata where they had; None where it is not stored."""
        key = self._find(item)
        if key is None:
            return None
        shard, start, size, checksum = self._entries[key]
        try:
            if shard not in self._maps or len(self._maps[shard]) < start + size:
                self._maps[shard] = np.memmap(shard, np.uint8, mode="r")
            content = self._maps[shard][start : start + size]
        except (OSError, ValueError):  # the shard is gone, or empty, as a power failure leaves it
            content = np.empty(0, np.uint8)
        if len(content) != size or crc32(content) != checksum:  # type: ignore[arg-type]
            logger.warning("%s: an item is damaged and is read from its file again.", shard)
            del self._entries[key]
            return None
        return _unpacked(content, item)

    def put(self, item: Mapping[str, Any], transformed: Mapping[str, Any]) -> dict[str, Any]:
        """Store what the transforms made of ``item``, and give it as :meth:`get` does.

        Tensors that are neither in [0, 1] nor whole numbers up to 255, and new or changed entries of another kind, are
        refused.
        """
        content = _packed(item, transformed)
        self._check_process()
        if self._shard is None:
            self._shard = self._new_shard()
        with open(self._shard, "ab") as shard, open(self._shard.with_suffix(".index"), "ab") as index:
            start = shard.tell()
            shard.write(content)
            shard.flush()
            index.write(ENTRY.pack(self.key(item), start, len(content), crc32(content)))
        return _unpacked(np.frombuffer(content, np.uint8), item)

    def _new_shard(self) -> Path:
        number = len(list(self.folder.glob("*.bin")))
        while True:
            try:
                path = self.folder / f"{number:05d}.bin"
                path.touch(exist_ok=False)
                return path
            except FileExistsError:  # of another process
                number += 1

    def _refresh(self) -> None:
        """Read what the indices got since."""
        for path in sorted(self.folder.glob("*.index")):  # later shards replace what was damaged
            known = self._read.get(path, 0)
            if path.stat().st_size >= known + ENTRY.size:
                with open(path, "rb") as stream:
                    stream.seek(known)
                    content = stream.read()
                whole = len(content) - len(content) % ENTRY.size  # another process may be writing the next
                self._read[path] = known + whole
                shard = path.with_suffix(".bin")
                self._entries.update((key, (shard, *place)) for key, *place in ENTRY.iter_unpack(content[:whole]))


def _files(name: str) -> list[str]:
    """What an image is read from: its file, the notes beside it, and the pixels of a header that has none."""
    stem, ending = os.path.splitext(name)
    pixels = sorted(glob.glob(f"{glob.escape(stem)}.*")) if ending.lower() in TWO_FILES else []
    return [name, f"{name}.json", *pixels]


def _packed(item: Mapping[str, Any], transformed: Mapping[str, Any]) -> bytes:
    """A line of JSON with the names of what is kept, then the bytes of the tensors."""
    header: dict[str, Any] = {"kept": [], "tensors": []}
    parts = []
    for name, value in transformed.items():
        if not isinstance(value, torch.Tensor | np.ndarray) or value is item.get(name):
            if name not in item or (value is not item[name] and repr(value) != repr(item[name])):
                raise ValueError(f"the store holds tensors, but the fixed transforms also made or changed {name!r}.")
            header["kept"].append(name)
            continue
        tensor = convert_to_tensor(value, track_meta=False).cpu()
        numbers = tensor.float()
        low, high = (float(numbers.min()), float(numbers.max())) if tensor.numel() else (0.0, 0.0)
        whole = low >= 0 and high <= 255 and bool((numbers == numbers.round()).all())
        shades = low >= -1 / 510 and high <= 1 + 1 / 510
        small = tensor.numel() <= SMALL and not whole and not shades  # coordinates and the like
        if not (whole or shades or small):
            raise ValueError(
                f"{item.get(name)}: values from {low:g} to {high:g}; the store holds [0, 1] and whole numbers to 255."
            )
        stored = numbers if whole or small else numbers.clamp(0, 1).mul(255).round()
        stored = stored if small else stored.to(torch.uint8)
        parts.append(stored.contiguous().numpy().tobytes())
        white = 0 if small else 1 if whole else 255
        meta = getattr(value, "meta", {})
        known = {key: np.asarray(meta[key]).tolist() for key in META if key in meta}
        header["tensors"].append([name, list(tensor.shape), str(tensor.dtype)[6:], white, known])
    return json.dumps(header).encode() + b"\n" + b"".join(parts)


def _unpacked(content: np.ndarray, item: Mapping[str, Any]) -> dict[str, Any]:
    start = int(np.argmax(content[:65536] == ord("\n"))) + 1
    header = json.loads(content[:start].tobytes())
    found = {name: item[name] for name in header["kept"]}
    for name, shape, kind, white, meta in header["tensors"]:
        stored = np.dtype(np.uint8 if white else np.float32)
        end = start + math.prod(shape) * stored.itemsize
        values = np.frombuffer(content[start:end].tobytes(), stored).reshape(shape)
        tensor = torch.from_numpy(values.astype(np.float32)).to(getattr(torch, kind))
        tensor = tensor.div_(255) if white > 1 else tensor
        meta = {key: np.array(known) if isinstance(known, list) else known for key, known in meta.items()}
        found[name] = MetaTensor(tensor, meta=meta) if meta else tensor
        start = end
    return found
