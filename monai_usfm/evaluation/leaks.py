# Copyright (c) monai_usfm contributors
# SPDX-License-Identifier: Apache-2.0
"""Leak guard: does something of the test data stand in the training data, under whatever name?

Public ultrasound sets overlap: images are published twice, resized, re-compressed, brightened or mirrored. Names and
patient numbers do not show that; a perceptual hash does, and the features of an encoder are a second opinion.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn as nn
import torch.nn.functional as F

from monai_usfm.data import LoadUltrasound
from monai_usfm.data.duplicates import difference_hash, hamming_distances
from monai_usfm.evaluation.features import extract_features

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
    """Raised by :func:`check_leaks`; ``leaks`` holds all that were found."""

    def __init__(self, leaks: Sequence[Leak]) -> None:
        super().__init__(leaks)
        self.leaks = list(leaks)

    def __str__(self) -> str:
        shown = "\n".join(f"  {leak}" for leak in self.leaks[:20])
        rest = f"\n  and {len(self.leaks) - 20} more" if len(self.leaks) > 20 else ""
        return f"{len(self.leaks)} leaks between training and test data; take one side out:\n{shown}{rest}"


def find_leaks(
    train: Sequence[Item],
    test: Sequence[Item],
    max_bits: int = 40,
    encoder: nn.Module | None = None,
    size: Sequence[int] = (224, 224),
    max_distance: float | None = None,
    device: torch.device | str | None = None,
) -> list[Leak]:
    """Pairs of a training and a test item that share a patient or (nearly) an image.

    On 500 images of breast and fetal head, copies that were halved, squeezed, brightened by 30 %, darkened by 40 %,
    re-compressed (JPEG quality 30) or made noisy were at most 32 bits of the hash away from the original, different
    images at least 58; copies cropped by 3 % at two sides were up to 55 bits away: only an encoder finds them.

    Args:
        train: items with ``image`` (absolute path) and, where known, ``patient``.
        test: the same.
        max_bits: largest distance of two hashes (:func:`~monai_usfm.data.duplicates.difference_hash`) that counts as a
            copy; the mirrored test image is compared too.
        encoder: compares features as well, at ``size``; None does not.
        size: (H, W) that images are resized to for the encoder.
        max_distance: largest cosine distance of two centred features that counts as a copy; None measures what it has
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
    hashes: dict[str, list[torch.Tensor]] = {"train": [], "test": [], "mirrored": []}
    for side, items in (("train", train), ("test", test)):
        for item in items:
            image = read(item["image"], item.get("frame"))
            image = image.as_tensor() if hasattr(image, "as_tensor") else image
            hashes[side].append(torch.from_numpy(difference_hash(image)))
            if side == "test":
                hashes["mirrored"].append(torch.from_numpy(difference_hash(image.flip(-1))))
            if encoder is not None:
                scaled = F.interpolate(image[None], size=tuple(size), mode="bilinear", antialias=True)[0]
                resized[side].append(scaled.mul(255).round().to(torch.uint8))
    pairs = [("similar", torch.stack(hashes["test"])), ("mirrored", torch.stack(hashes["mirrored"]))]
    for reason, bits in pairs:
        distances = hamming_distances(bits, torch.stack(hashes["train"]))
        leaks += _nearest(distances, max_bits, reason, train, test, known)
    if encoder is not None:
        features = {
            side: extract_features(encoder, (b.float() / 255 for b in torch.stack(images).split(32)), device=device)
            for side, images in resized.items()
        }
        if max_distance is None:
            max_distance = calibrated_distance(encoder, torch.stack(resized["train"]).float() / 255, device=device)
        distances = _cosine_distances(features["test"]["features"], features["train"]["features"])
        leaks += _nearest(distances, max_distance, "embedding", train, test, known)
    return leaks


def check_leaks(train: Sequence[Item], test: Sequence[Item], **options: Any) -> None:
    """Stop with the list of leaks, if there are any; arguments as :func:`find_leaks`.

    Raises:
        LeakError: naming the pairs.
    """
    leaks = find_leaks(train, test, **options)
    if leaks:
        raise LeakError(leaks)


def calibrated_distance(
    encoder: nn.Module, images: torch.Tensor, count: int = 64, device: torch.device | str | None = None
) -> float:
    """Cosine distance of centred features below which two images are copies, for one encoder.

    Some images are altered (half the resolution and back, brighter, darker, noisy). The limit lies half-way between the
    95th percentile of the distances to their originals and the 1st percentile of the distances between different images
    and their nearest neighbours.

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
        return extract_features(encoder, batch.split(32), device=device)["features"]

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
    owners = {str(item["patient"]): str(item["image"]) for item in train if item.get("patient") is not None}
    return [
        Leak(owners[str(item["patient"])], str(item["image"]), "patient")
        for item in test
        if item.get("patient") is not None and str(item["patient"]) in owners
    ]


def _file_leaks(train: Sequence[Item], test: Sequence[Item]) -> list[Leak]:
    owners = {_content(item): str(item["image"]) for item in train}
    return [
        Leak(owners[content], str(item["image"]), "same file") for item in test if (content := _content(item)) in owners
    ]


def _content(item: Item) -> str:
    return hashlib.sha256(Path(item["image"]).read_bytes()).hexdigest()


def _cosine_distances(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    """Centred on the mean of ``second``: features of one encoder share a large constant part."""
    centre = second.mean(dim=0)
    return 1 - F.normalize(first - centre, dim=1) @ F.normalize(second - centre, dim=1).T


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
