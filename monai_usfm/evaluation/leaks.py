# Copyright (c) monai_usfm contributors
# SPDX-License-Identifier: Apache-2.0
"""Train-test leakage check: does something of the test data stand in the training data, under whatever name?

Public ultrasound sets overlap: images are published twice, resized, re-compressed, brightened, cropped, framed or
mirrored. Names and patient numbers do not show that; a perceptual hash does, and the features of an encoder are a
second opinion.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn as nn
import torch.nn.functional as F

from monai_usfm.cards import build_network
from monai_usfm.data import LoadUltrasound, load_datalist, read_datalist
from monai_usfm.data.datalist import equal_files
from monai_usfm.data.duplicates import MAX_BITS, Copy, find_copies, image_hashes
from monai_usfm.data.patients import patient_key
from monai_usfm.evaluation.features import extract_features
from monai_usfm.files import write_csv

__all__ = ["Leak", "LeakError", "calibrated_distance", "check_leaks", "find_leaks"]

Item = Mapping[str, Any]


@dataclass(frozen=True)
class Leak:
    """A pair that must not be in two splits.

    Args:
        train: file in the training data.
        test: file in the test data.
        reason: ``"patient"``, ``"same file"``, ``"similar"``, ``"mirrored"`` or ``"embedding"``.
        distance: bits of 256 for ``"similar"`` and ``"mirrored"``, cosine distance for ``"embedding"``, else 0.
    """

    train: str
    test: str
    reason: str
    distance: float = 0.0

    def __str__(self) -> str:
        return f"{self.test} (test) and {self.train} (training): {self.reason}, distance {self.distance:g}"


class LeakError(ValueError):
    """Raised by :func:`check_leaks`; ``leaks`` holds all that were found, ``table`` is the file that lists them."""

    def __init__(self, leaks: Sequence[Leak], table: str = "leaks.csv") -> None:
        super().__init__(leaks, table)
        self.leaks = list(leaks)
        self.table = table

    def __str__(self) -> str:
        shown = "\n".join(f"  {leak}" for leak in self.leaks[:20])
        rest = f"\n  and {len(self.leaks) - 20} more" if len(self.leaks) > 20 else ""
        head = f"{len(self.leaks)} leaks between training and test data; take one side out ({self.table} has all):"
        return f"{head}\n{shown}{rest}"


def find_leaks(
    train: Sequence[Item],
    test: Sequence[Item],
    max_bits: int = MAX_BITS,
    encoder: nn.Module | None = None,
    size: Sequence[int] = (224, 224),
    max_distance: float | None = None,
    device: torch.device | str | None = None,
) -> list[Leak]:
    """Pairs of a training and a test item that share a patient or (nearly) an image.

    A patient and a file count as the same as for :func:`~monai_usfm.data.check_patient_leak`: however the patient is
    written, and whatever link or copy leads to the file. Copies are found as docs/datalists.md measures: cropped by 3 %
    at any sides, framed, mirrored, scaled, of other brightness, noise or compression. Larger crops and inverted images
    only an encoder may find.

    Args:
        train: items with ``image`` (absolute path) and, where known, ``patient``.
        test: the same.
        max_bits: largest distance of two copies, see :func:`~monai_usfm.data.duplicates.find_copies`.
        encoder: compares features as well, at ``size``; None does not.
        size: (H, W) that images are resized to for the encoder.
        max_distance: largest cosine distance of two centered features that counts as a copy; None measures what it has
            to be on altered copies of training images (:func:`calibrated_distance`).
        device: of the encoder.

    Returns:
        The leaks, those by patient first; the nearest training image for each test image and reason.

    Raises:
        ValueError: for empty lists.
    """
    if not train or not test:
        raise ValueError(f"need training and test items, got {len(train)} and {len(test)}.")
    leaks = [*_patient_leaks(train, test), *_file_leaks(train, test)]
    known = {(leak.train, leak.test) for leak in leaks}

    read = LoadUltrasound(2)
    resized: dict[str, list[torch.Tensor]] = {"train": [], "test": []}
    hashes: dict[str, list[np.ndarray]] = {"train": [], "test": []}
    for side, items in (("train", train), ("test", test)):
        for item in items:
            image = read(item["image"], item.get("frame"))
            image = image.as_tensor() if hasattr(image, "as_tensor") else image
            hashes[side].append(image_hashes(image))
            if encoder is not None:
                scaled = F.interpolate(image[None], size=tuple(size), mode="bilinear", antialias=True)[0]
                resized[side].append(scaled.mul(255).round().to(torch.uint8))
    nearest: dict[int, Copy] = {}
    for copy in sorted(find_copies(hashes["test"], hashes["train"], max_bits), key=lambda copy: copy.distance):
        nearest.setdefault(copy.first, copy)
    for number in sorted(nearest):
        copy = nearest[number]
        pair = str(train[copy.second]["image"]), str(test[number]["image"])
        if pair not in known:
            known.add(pair)
            leaks.append(Leak(*pair, "mirrored" if copy.mirrored else "similar", copy.distance))
    if encoder is not None:
        features = {
            side: extract_features(encoder, (b.float() / 255 for b in torch.stack(images).split(32)), device=device)
            for side, images in resized.items()
        }
        if max_distance is None:
            max_distance = calibrated_distance(encoder, torch.stack(resized["train"]).float() / 255, device=device)
        distances = _cosine_distances(features["test"], features["train"])
        leaks += _nearest(distances, max_distance, "embedding", train, test, known)
    return leaks


def check_leaks(
    datalist: str,
    *,
    dataset_dir: str | None = None,
    test_datalist: str | None = None,
    test_dataset_dir: str | None = None,
    max_bits: int = MAX_BITS,
    encoder: str | None = None,
    size: Sequence[int] = (224, 224),
    device: str = "cpu",
    output: str = "leaks",
) -> Path:
    """Stop when validation or test images, or their patients, stand in the training data; list the pairs in a table.

    Args:
        datalist: JSON file with the training split; all splits where there is no ``test_datalist``.
        dataset_dir: folder its paths start from; by default that of the file.
        test_datalist: JSON file with the validation and test splits.
        test_dataset_dir: folder its paths start from; by default that of the file.
        max_bits: largest distance of two copies, in bits of 256.
        encoder: weights, own or published, of an encoder whose features are compared too.
        size: (H, W) in pixels that the encoder sees.
        device: of the encoder.
        output: folder of ``leaks.csv``, which is empty but for its head where there are none.

    Returns:
        The table.

    Raises:
        LeakError: naming the pairs, once the table is written.
        FileNotFoundError, ValueError: see :func:`~monai_usfm.data.load_datalist`.
    """
    if not isinstance(datalist, str | Path):
        raise TypeError("check_leaks takes the name of a datalist; for items there is find_leaks.")
    test_file = Path(test_datalist or datalist)
    test_dir = test_dataset_dir if test_datalist else dataset_dir
    sides = []
    for file, folder, splits in (
        (Path(datalist), dataset_dir, ["training"]),
        (test_file, test_dir, ["validation", "test"]),
    ):
        present = read_datalist(file)
        items = [item for split in splits if present.get(split) for item in load_datalist(file, folder, split)]
        sides.append(items)
    train, test = sides
    network = None if encoder is None else build_network("encoder", encoder, spatial_size=tuple(size))
    leaks = find_leaks(train, test, max_bits, network, size, device=device)
    columns = [field.name for field in fields(Leak)]
    table = write_csv(Path(output) / "leaks.csv", [vars(leak) for leak in leaks], columns)
    print(f"{len(train)} training and {len(test)} other images: {len(leaks)} leaks; {table}")
    if leaks:
        raise LeakError(leaks, str(table))
    return table


def calibrated_distance(
    encoder: nn.Module, images: torch.Tensor, count: int = 64, device: torch.device | str | None = None
) -> float:
    """Cosine distance of centered features below which two images are copies, for one encoder.

    Some images are altered (half the resolution and back, brighter, darker, noisy). The limit lies half-way between the
    95th percentile of the distances to their originals and the 1st percentile of the distances between different images
    and their nearest neighbors.

    Args:
        encoder: as for :func:`~monai_usfm.evaluation.features.extract_features`.
        images: ``(M, C, H, W)`` in [0, 1].
        count: images to alter.
        device: where to run.

    Raises:
        ValueError: for fewer than two images; where the encoder cannot tell copies from other images.
    """
    if len(images) < 2:
        raise ValueError("one image has no other one to tell its copies from; leave the encoder out.")
    sample = images[torch.linspace(0, len(images) - 1, min(count, len(images))).long().unique()]
    noise = torch.randn(sample.shape, generator=torch.Generator().manual_seed(0))
    half = [length // 2 for length in sample.shape[2:]]
    blurred = F.interpolate(sample, size=half, mode="bilinear", antialias=True)
    copies = [
        F.interpolate(blurred, size=sample.shape[2:], mode="bilinear"),
        (1.2 * sample + 0.05).clamp(0, 1),
        0.8 * sample,
        (sample + 0.02 * noise).clamp(0, 1),
    ]

    def features(batch: torch.Tensor) -> torch.Tensor:
        return extract_features(encoder, batch.split(32), device=device)

    original = features(sample)
    different = _cosine_distances(original, original).fill_diagonal_(torch.inf).amin(dim=1)
    same = torch.cat([_cosine_distances(features(copy), original).diagonal() for copy in copies])
    low, high = same.quantile(0.95).item(), different.quantile(0.01).item()
    if low >= high:
        raise ValueError(
            f"this encoder does not tell copies (distance up to {low:.4f}) from other images (from {high:.4f}); "
            "use a pretrained one, or leave the encoder out and rely on the hash."
        )
    return (low + high) / 2


def _patient_leaks(train: Sequence[Item], test: Sequence[Item]) -> list[Leak]:
    return _shared(
        train,
        test,
        [patient_key(item.get("patient")) for item in train],
        [patient_key(item.get("patient")) for item in test],
        "patient",
    )


def _file_leaks(train: Sequence[Item], test: Sequence[Item]) -> list[Leak]:
    names = equal_files({str(item["image"]) for item in (*train, *test)})
    train_keys, test_keys = ([names[str(item["image"])] for item in items] for items in (train, test))
    return _shared(train, test, train_keys, test_keys, "same file")


def _shared(
    train: Sequence[Item],
    test: Sequence[Item],
    train_keys: Sequence[str | None],
    test_keys: Sequence[str | None],
    reason: str,
) -> list[Leak]:
    """A leak for each test item whose key a training item has too."""
    owners = {key: str(item["image"]) for item, key in zip(train, train_keys, strict=True) if key is not None}
    return [
        Leak(owners[key], str(item["image"]), reason)
        for item, key in zip(test, test_keys, strict=True)
        if key in owners
    ]


def _cosine_distances(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    """Centered on the mean of ``second``: features of one encoder share a large constant part."""
    center = second.mean(dim=0)
    return 1 - F.normalize(first - center, dim=1) @ F.normalize(second - center, dim=1).T


def _nearest(
    distances: torch.Tensor,
    limit: float,
    reason: str,
    train: Sequence[Item],
    test: Sequence[Item],
    known: set[tuple[str, str]],
) -> list[Leak]:
    """The nearest training image of each test image that has one within the limit, unless the pair is known already."""
    leaks = []
    values, indices = distances.min(dim=1)
    for row in (values <= limit).nonzero().flatten().tolist():
        pair = str(train[int(indices[row])]["image"]), str(test[row]["image"])
        if pair not in known:
            known.add(pair)
            leaks.append(Leak(*pair, reason, round(float(values[row]), 4)))
    return leaks
