# Copyright (c) monai_usfm contributors
# SPDX-License-Identifier: Apache-2.0
"""Train-test leakage check: does something of the test data stand in the training data, under whatever name?

Public ultrasound sets overlap: images are published twice, resized, re-compressed, brightened, cropped, framed or
mirrored. Names and patient numbers do not show that; a perceptual hash does.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from monai.utils import convert_to_tensor

from monai_usfm.data import LoadUltrasound, load_datalist, read_datalist
from monai_usfm.data.datalist import equal_files
from monai_usfm.data.duplicates import MAX_BITS, Copy, find_copies, image_hashes
from monai_usfm.data.patients import patient_key
from monai_usfm.files import write_csv

__all__ = ["Leak", "LeakError", "check_leaks", "find_leaks"]

Item = Mapping[str, Any]


@dataclass(frozen=True)
class Leak:
    """A pair that must not be in two splits.

    Args:
        train: file in the training data.
        test: file in the test data.
        reason: ``"patient"``, ``"same file"``, ``"similar"`` or ``"mirrored"``.
        distance: bits of 256 for ``"similar"`` and ``"mirrored"``, else 0.
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
        shown = "; ".join(map(str, self.leaks[:20]))  # an error is one line
        rest = f"; and {len(self.leaks) - 20} more" if len(self.leaks) > 20 else ""
        head = f"{len(self.leaks)} leaks between training and test data; take one side out ({self.table} has all):"
        return f"{head} {shown}{rest}."


def find_leaks(
    train: Sequence[Item], test: Sequence[Item], max_bits: int = MAX_BITS, keys: Sequence[str] = ("image",)
) -> list[Leak]:
    """Pairs of a training and a test item that share a patient or (nearly) an image.

    A patient and a file count as the same as for :func:`~monai_usfm.data.check_patient_leak`: however the patient is
    written, and whatever link or copy leads to the file. Copies are found as docs/datalists.md measures: cropped by 3 %
    at any sides, framed, mirrored, scaled, of other brightness, noise or compression.

    Args:
        train: items with the files under ``keys`` (absolute paths) and, where known, ``patient``.
        test: the same.
        max_bits: largest distance of two copies, see :func:`~monai_usfm.data.duplicates.find_copies`.
        keys: of an item's images; of recorded pairs both. Each is compared with those of its own key.

    Returns:
        The leaks, those by patient first; the nearest training image for each test image and reason.

    Raises:
        ValueError: for empty lists.
    """
    if not train or not test:
        raise ValueError(f"need training and test items, got {len(train)} and {len(test)}.")
    names = equal_files({str(item[key]) for item in (*train, *test) for key in keys})

    def shared(reason: str, key: str, of: Callable[[Item, str], str | None]) -> list[Leak]:
        owners = {of(item, key): str(item[key]) for item in train}
        owners.pop(None, None)
        return [Leak(owners[of(item, key)], str(item[key]), reason) for item in test if of(item, key) in owners]

    leaks = shared("patient", keys[0], lambda item, _: patient_key(item.get("patient")))
    for key in keys:
        leaks += shared("same file", key, lambda item, key: names[str(item[key])])
    known = {(leak.train, leak.test) for leak in leaks}
    read = LoadUltrasound(2)
    for key in keys:
        of_test, of_train = (
            [image_hashes(convert_to_tensor(read(i[key], i.get("frame")))) for i in items] for items in (test, train)
        )
        nearest: dict[int, Copy] = {}
        for copy in sorted(find_copies(of_test, of_train, max_bits), key=lambda copy: copy.distance):
            nearest.setdefault(copy.first, copy)
        for number in sorted(nearest):
            copy = nearest[number]
            pair = str(train[copy.second][key]), str(test[number][key])
            if pair not in known:
                known.add(pair)
                leaks.append(Leak(*pair, "mirrored" if copy.mirrored else "similar", copy.distance))
    return leaks


def check_leaks(
    datalist: str,
    *,
    dataset_dir: str | None = None,
    test_datalist: str | None = None,
    test_dataset_dir: str | None = None,
    max_bits: int = MAX_BITS,
    keys: Sequence[str] = ("image",),
    output: str = "leaks",
) -> Path:
    """Stop when validation or test images, or their patients, stand in the training data; list the pairs in a table.

    Args:
        datalist: JSON file with the training split; all splits where there is no ``test_datalist``.
        dataset_dir: folder its paths start from; by default that of the file.
        test_datalist: JSON file with the validation and test splits.
        test_dataset_dir: folder its paths start from; by default that of the file.
        max_bits: largest distance of two copies, in bits of 256.
        keys: of an item's images; of recorded pairs both, such as ``--keys image label``.
        output: folder of ``leaks.csv``, which is empty but for its head where there are none.

    Returns:
        The table.

    Raises:
        LeakError: naming the pairs, once the table is written.
        FileNotFoundError, ValueError: see :func:`~monai_usfm.data.load_datalist`.
    """

    def items(file: str, folder: str | None, splits: Sequence[str]) -> list[Item]:
        present = read_datalist(file)
        there = [split for split in splits if present.get(split)]
        return [item for split in there for item in load_datalist(file, folder, split, required=keys)]

    train = items(datalist, dataset_dir, ["training"])
    test_dir = test_dataset_dir if test_datalist else dataset_dir
    test = items(test_datalist or datalist, test_dir, ["validation", "test"])
    leaks = find_leaks(train, test, max_bits, keys)
    columns = [field.name for field in fields(Leak)]
    table = write_csv(Path(output) / "leaks.csv", [vars(leak) for leak in leaks], columns)
    print(f"{len(train)} training and {len(test)} other images: {len(leaks)} leaks; {table}")
    unknown = [sum(patient_key(item.get("patient")) is None for item in part) for part in (train, test)]
    if any(unknown):
        print(
            f"the patients of {unknown[0]} training and {unknown[1]} other images are not known, so they were compared "
            "as images alone. Name them: `monai-usfm datalist --patient_pattern` or `monai-usfm join-table`."
        )
    if leaks:
        raise LeakError(leaks, str(table))
    return table
