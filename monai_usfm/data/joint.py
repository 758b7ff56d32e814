# Copyright (c) monai_usfm contributors
# SPDX-License-Identifier: Apache-2.0
"""Several data sets as one list for joint pretraining: labeled ones with classes of their own, and unlabeled ones."""

from __future__ import annotations

import logging
import os
from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import torch
from monai.transforms import MapTransform
from monai.utils import ensure_tuple

from monai_usfm.data.datalist import DATALIST_NAME, load_datalist, read_datalist
from monai_usfm.data.splits import load_splits, simulated_list, with_full_scale
from monai_usfm.transforms.batch import BatchAppearance, BatchAugmentation, item_on_device
from monai_usfm.transforms.dictionary import TORCH
from monai_usfm.transforms.labels import LabelIndices

__all__ = ["JointBatch", "JointLabeld", "joint_classes", "joint_splits", "joint_weights"]

logger = logging.getLogger(__name__)

Parts = Mapping[str, Mapping[str, Any] | None]


def joint_classes(parts: Parts) -> dict[str, int]:
    """Output layer -> classes of the labeled parts, in their order; see :func:`joint_splits`.

    Raises:
        ValueError: when no part is labeled, or two parts share an output layer and differ in classes.
    """
    found: dict[str, int] = {}
    for name, part in parts.items():
        if part and part.get("num_classes"):
            output = part.get("output", name)
            if found.setdefault(output, part["num_classes"]) != part["num_classes"]:
                raise ValueError(f"parts: {name!r} has other num_classes than the part it shares {output!r} with.")
    if not found:
        raise ValueError("parts: none is labeled; give one of them num_classes.")
    return found


def joint_splits(
    parts: Parts, synthetic_dir: str | os.PathLike | None = None, synthetic: Mapping[str, Any] | None = None
) -> dict[str, list[dict[str, Any]]]:
    """The items of all parts, ``training`` and ``validation``.

    A part is a mapping with ``dataset_dir`` or ``datalist`` (see :func:`load_splits`) and, if it is labeled,
    ``num_classes``, and where needed ``label_values``, ``label_key`` (default ``"label"``) and ``output``: the name of
    the output layer, by default that of the part, shared by parts that name the same. None leaves a part out, so that
    an overlay or the command line can. A part without a validation list validates on nothing; one must have it. A part
    that says neither folder nor list is simulated.

    Every item gets ``part``, ``dataset`` (place of its output layer in :func:`joint_classes`, -1 if unlabeled) and
    ``organ`` (by default the part's name).

    Args:
        parts: name -> part.
        synthetic_dir: where simulated images are written.
        synthetic: arguments of :func:`~monai_usfm.data.write_synthetic_dataset`.

    Raises:
        FileNotFoundError, ValueError: see :func:`load_splits`.
        ValueError: for a part without folder and list where there is no ``synthetic_dir``.
    """
    places = {name: number for number, name in enumerate(joint_classes(parts))}
    result: dict[str, list[dict[str, Any]]] = {"training": [], "validation": []}
    for name, part in parts.items():
        if not part:
            continue
        if not part.get("dataset_dir") and not part.get("datalist"):
            if not synthetic_dir:
                raise ValueError(f"parts: {name!r} has neither dataset_dir nor datalist.")
            part = {**part, "datalist": simulated_list(synthetic_dir, synthetic, f"part {name!r}: ")}
        key = part.get("label_key", "label")
        labeled = bool(part.get("num_classes"))
        place = places[part.get("output", name)] if labeled else -1
        required = ("image", key) if labeled else ("image",)
        white: float | None = None
        for split in result:
            items = with_full_scale(_split(part, split, required), white)
            white = white or next(iter(items), {}).get("full_scale")  # validation is read as training is
            for item in items:
                entry = {"image": item["image"], "part": name, "dataset": place, "organ": item.get("organ") or name}
                entry |= {"label": item[key]} if labeled else {}
                entry |= {
                    k: item[k]
                    for k in ("patient", "sequence", "frame", "spacing", "full_scale")
                    if item.get(k) is not None
                }
                result[split].append(entry)
    if not result["validation"]:
        raise ValueError("parts: none has a validation list; give the datalist of one of them a list 'validation'.")
    return result


def _split(part: Mapping[str, Any], split: str, required: Sequence[str]) -> list[dict[str, Any]]:
    folder, datalist = part.get("dataset_dir"), part.get("datalist")
    if split == "training":
        # An origin that looks like a file name is no file of ours: a missing image is named when it is read.
        lists = load_splits(
            folder, datalist, synthetic_dir="", splits=("training",), required=required, check_files=False
        )
        return lists["training"]
    datalist = datalist or f"{folder}/{DATALIST_NAME}"
    if not read_datalist(datalist).get(split):
        return []
    return load_datalist(datalist, folder, split, required=required, check_files=False)


def joint_weights(
    items: Sequence[Mapping[str, Any]], shares: Mapping[str, float] | None = None, temperature: float = 0.5
) -> torch.Tensor:
    """Probability of each item: parts by their share, organs within a part evened out, frames of a sequence thinned.

    Within a part an organ of ``n`` sequences is drawn in proportion to ``n ** (1 - temperature)``, its sequences
    alike, and the frames of a sequence (``sequence``, else ``patient``, else the image) alike.

    Args:
        items: of :func:`joint_splits`.
        shares: part -> share of the draws, by default 1 each; parts that are not there do not count, and are told.
        temperature: 0 draws organs by their number of sequences, 1 all alike.

    Returns:
        ``(len(items),)``, float64, sum 1.

    Raises:
        ValueError: for a negative share, or when all are 0.
    """
    sequence = [(i["part"], i["organ"], i.get("sequence", i.get("patient", i["image"]))) for i in items]
    frames = Counter(sequence)
    organs = Counter(key[:2] for key in frames)
    raw = torch.tensor([organs[key[:2]] ** -temperature / frames[key] for key in sequence], dtype=torch.float64)
    weights = torch.zeros_like(raw)
    parts = {item["part"] for item in items}
    if absent := [name for name in shares or {} if name not in parts]:
        logger.warning("shares: no images of %s; there are %s.", ", ".join(absent), ", ".join(sorted(parts)))
    for part in sorted(parts):
        rows = torch.tensor([item["part"] == part for item in items])
        share = float((shares or {}).get(part, 1.0))
        if share < 0:
            raise ValueError(f"shares: {part!r} is {share}, must be 0 or more.")
        weights[rows] = share * raw[rows] / raw[rows].sum()
    if weights.sum() == 0:
        raise ValueError("shares: all are 0, nothing is drawn.")
    return weights / weights.sum()


class JointLabeld(MapTransform):
    """Class indices of a labeled item by its own data set; an empty label for an unlabeled one, so that all collate.

    Args:
        keys: the label.
        parts: see :func:`joint_splits`.
        image_key: image that gives an empty label its size.
    """

    backend = TORCH

    def __init__(self, keys: str, parts: Parts, image_key: str = "image") -> None:
        super().__init__(keys)
        self.indices = {
            name: LabelIndices(part["num_classes"], part.get("label_values"))
            for name, part in parts.items()
            if part and part.get("num_classes")
        }
        self.image_key = image_key

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        d = dict(data)
        for key in self.keys:
            if d["dataset"] < 0:
                d[key] = torch.zeros_like(d[self.image_key][:1], dtype=torch.uint8)
            else:
                d[key] = self.indices[d["part"]](d[key])
        return d


class JointBatch:
    """``prepare_batch`` of joint pretraining: augments image and label and hands on the number of the data set.

    Args:
        augmentation: applied to image and label alike; of several, each batch draws one, so that sizes can differ.
        appearance: applied to the image after it; labeled images may take the style of unlabeled ones.
    """

    def __init__(
        self, augmentation: BatchAugmentation | Sequence[BatchAugmentation], appearance: BatchAppearance | None = None
    ) -> None:
        self.augmentations, self.appearance = ensure_tuple(augmentation), appearance

    def __call__(
        self, batch: Mapping[str, Any], device: Any = None, non_blocking: bool = False, **kwargs: Any
    ) -> tuple[torch.Tensor, None, tuple[torch.Tensor | None, torch.Tensor], dict]:
        """``(image, no target, (label, data set), {})``: inputs and arguments of the network."""
        image, label, dataset = (
            item_on_device(batch, key, device, non_blocking) for key in ("image", "label", "dataset")
        )
        drawn = self.augmentations[int(torch.randint(len(self.augmentations), ()))]
        augmented, moved = drawn.augment(image, label)
        if self.appearance is not None:
            free = dataset < 0
            augmented = self.appearance(augmented, (~free).nonzero().flatten(), free.nonzero().flatten())
        return augmented, None, (moved, dataset), {}
