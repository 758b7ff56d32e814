# Copyright (c) monai_usfm contributors
# SPDX-License-Identifier: Apache-2.0
"""A split in memory: images of one size as uint8, their labels, classes and patients."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch.utils.data import Dataset

from monai_usfm.data import LoadUltrasound, add_patients
from monai_usfm.transforms import LabelIndices

__all__ = ["CaseSet", "add_patient_options", "add_patients", "load_cases", "patients_of", "restore_size"]


@dataclass
class CaseSet(Dataset):
    """Images of a split, scaled to fit one size with their proportions kept, the rest padded with zeros.

    Indexing gives a dictionary with ``image``, a float tensor ``(1, *S)`` in [0, 1].

    Args:
        images: uint8 ``(M, 1, *S)``.
        patients: the patient of each image.
        names: file name of each image.
        classes: class index of each image (M,), or None.
        labels: class index of each pixel, uint8 ``(M, *S)``, or None.
        truths: the same at the size of each file.
    """

    images: torch.Tensor
    patients: list[Any]
    names: list[str]
    classes: torch.Tensor | None = None
    labels: torch.Tensor | None = None
    truths: list[torch.Tensor] | None = None

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return {"image": self.images[index].float() / 255}

    def rows(self, image_names: Sequence[str]) -> list[int]:
        """Indices of the images with these file names.

        Raises:
            ValueError: naming one that is not here.
        """
        place: dict[str, list[int]] = {}
        for i, name in enumerate(self.names):  # a cine has a row for each of its frames that is listed
            place.setdefault(name, []).append(i)
        lacking = [name for name in image_names if name not in place]
        if lacking:
            raise ValueError(f"{len(lacking)} images are not in this split, for example {lacking[0]}.")
        return [row for name in dict.fromkeys(image_names) for row in place[name]]


def load_cases(
    items: Sequence[dict[str, Any]],
    size: Sequence[int],
    with_label: bool = False,
    num_classes: int = 2,
    label_values: Sequence[int] | None = None,
) -> CaseSet:
    """Read the items of a datalist into memory.

    Args:
        items: with ``image``, ``patient`` and where wanted ``label`` and ``class``; absolute paths, as
            :func:`~monai_usfm.data.load_datalist` gives them.
        size: (H, W) or (D, H, W) to fit the images into.
        with_label: read the label maps.
        num_classes: classes of the label maps, including background.
        label_values: file values of the classes, see :class:`~monai_usfm.transforms.LabelIndices`.

    Raises:
        ValueError: for items without ``patient``, label maps of another size than their image, or values outside the
            classes.
    """
    if not items:
        raise ValueError("there are no items to load.")
    if with_label and any(not item.get("label") for item in items):
        first = next(item["image"] for item in items if not item.get("label"))
        raise ValueError(f"items lack the key 'label', the first is {first}; give all of them one.")
    if any(item.get("patient") is None for item in items):
        raise ValueError(
            "items lack the key 'patient'; add it to the datalist, or give a table or pattern of patients."
        )
    read, read_label = LoadUltrasound(len(size), dtype=torch.uint8), LoadUltrasound(len(size), scale=None)
    to_indices = LabelIndices(num_classes, label_values)
    images, labels, truths = [], [], []
    for item in items:
        image = _plain(read(item["image"], item.get("frame")))
        images.append(_fit(image, size, "linear"))
        if with_label:
            truth = _plain(to_indices(read_label(item["label"], item.get("frame"))))[0]
            if truth.shape != image.shape[1:]:
                raise ValueError(
                    f"{item['label']}: size {tuple(truth.shape)}, but its image is {tuple(image.shape[1:])}."
                )
            truths.append(truth)
            labels.append(_fit(truths[-1][None], size, "nearest")[0])
    # classes of other kinds are no concern of label maps; who needs classes is told that there are none
    has_class = all(isinstance(item.get("class"), int) for item in items)
    return CaseSet(
        images=torch.stack(images),
        patients=[item["patient"] for item in items],
        names=[str(item["image"]) for item in items],
        classes=torch.tensor([item["class"] for item in items]) if has_class else None,
        labels=torch.stack(labels) if with_label else None,
        truths=truths if with_label else None,
    )


def restore_size(maps: torch.Tensor, shape: Sequence[int]) -> torch.Tensor:
    """Undo the fitting of one image: ``(K, *S) -> (K, *shape)``, the padding cut off, linear interpolation."""
    for axis, (start, length) in enumerate(_inner(shape, maps.shape[1:])):
        maps = maps.narrow(axis + 1, start, length)
    mode = "bilinear" if len(shape) == 2 else "trilinear"
    return F.interpolate(maps[None].float(), size=tuple(shape), mode=mode, align_corners=False)[0]


def add_patient_options(parser: argparse.ArgumentParser) -> None:
    """Options of a script for the arguments of :func:`add_patients`; ``patients_of(args)`` hands them over."""
    parser.add_argument("--patient_table", type=Path, help="CSV file with a column image and one of patients")
    parser.add_argument("--patient_column", default="patient_id", help="the column of patients")
    parser.add_argument("--patient_pattern", help="regular expression of the path; group 1 is the patient")


def patients_of(args: argparse.Namespace) -> dict[str, Any]:
    """Keyword arguments of :func:`add_patients` from the options of :func:`add_patient_options`."""
    return {"table": args.patient_table, "column": args.patient_column, "pattern": args.patient_pattern}


def _plain(image: torch.Tensor) -> torch.Tensor:
    return image.as_tensor() if hasattr(image, "as_tensor") else image


def _inner(shape: Sequence[int], size: Sequence[int]) -> list[tuple[int, int]]:
    """Where an image of ``shape`` lies in the frame of ``size``: (start, length) of each axis."""
    scale = min(frame / length for frame, length in zip(size, shape, strict=True))
    lengths = [min(frame, max(1, round(length * scale))) for frame, length in zip(size, shape, strict=True)]
    return [((frame - length) // 2, length) for frame, length in zip(size, lengths, strict=True)]


def _fit(image: torch.Tensor, size: Sequence[int], mode: str) -> torch.Tensor:
    """``(C, *shape) -> (C, *size)``, uint8, proportions kept."""
    if image.ndim - 1 != len(size):
        raise ValueError(f"an image of shape {tuple(image.shape[1:])} does not fit into {len(size)} dimensions.")
    inner = _inner(image.shape[1:], size)
    lengths = tuple(length for _, length in inner)
    if mode == "nearest":
        scaled = F.interpolate(image[None].float(), size=lengths, mode="nearest-exact")[0]
    elif len(size) == 2:
        scaled = F.interpolate(image[None].float(), size=lengths, mode="bilinear", antialias=True)[0]
    else:
        scaled = F.interpolate(image[None].float(), size=lengths, mode="area")[0]
    result = torch.zeros(len(image), *size, dtype=torch.uint8)
    result[(slice(None), *(slice(start, start + length) for start, length in inner))] = scaled.round().to(torch.uint8)
    return result
