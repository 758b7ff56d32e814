# Copyright (c) monai_usfm contributors
# SPDX-License-Identifier: Apache-2.0
"""Datalists: read and check them, join tables, take nested fractions of labels, refuse patients that cross splits."""

from __future__ import annotations

import hashlib
import json
import os
import sys
import unicodedata
import warnings
from collections import Counter, defaultdict
from collections.abc import Hashable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from monai.config import PathLike

from monai_usfm.files import keep_apart, read_json, write_text_atomically

from .formats import SUPPORTED_SUFFIXES
from .patients import patient_key, written_alike
from .tables import Table, named_columns, path_key, value_of

__all__ = ["check_patient_leak", "join_table", "label_fraction", "load_datalist", "read_datalist"]

DATALIST_NAME = "dataset.json"  # the name that our tools give a datalist and our bundles look for in ``dataset_dir``
SPLITS = ("training", "validation", "test")
NUMBERS = ("spacing", "circumference", "full_scale", "frame")  # entries of items that are computed with
Item = dict[str, Any]


def read_datalist(datalist: PathLike) -> dict[str, Any]:
    """The content of a datalist, an object with the splits among its keys; errors as of :func:`read_json`."""
    return read_json(datalist, "datalist", "; make one with `monai-usfm datalist FOLDER`")


def load_datalist(
    datalist: PathLike,
    dataset_dir: PathLike | None,
    split: str,
    *,
    required: Sequence[str] = ("image",),
    check_files: bool = True,
) -> list[Item]:
    """One split of a Decathlon-style JSON file, with absolute paths, checked before training starts.

    Like :func:`monai.data.load_decathlon_datalist`, but only file names are made paths: that function also turns a
    value such as ``"organ": "liver"`` into a path wherever a folder ``liver`` exists. File names are the strings under
    ``image`` and ``label``, and those under other keys that end like an image file and exist or are required.

    Args:
        datalist: JSON file with lists of items under the names of the splits.
        dataset_dir: folder that relative paths start from; ``None`` is the folder of ``datalist``.
        split: ``"training"``, ``"validation"``, ``"test"`` or another list in the file.
        required: keys that every item must have.
        check_files: raise when a file does not exist; leave it to ``skip_unreadable`` when false.

    Raises:
        FileNotFoundError: no such datalist or folder, or images that do not exist (the first five and their number).
        ValueError: when the file is not JSON, has no such split, an empty one, or an item without a required key.
    """
    file = Path(datalist)
    base = Path(os.path.abspath(file.parent if dataset_dir is None else dataset_dir))
    if dataset_dir is not None and not base.is_dir():
        raise FileNotFoundError(f"{base}: no such folder; correct dataset_dir.")
    lists = {key: value for key, value in read_datalist(file).items() if isinstance(value, list)}
    if split not in lists:
        raise ValueError(f"{file}: has no list {split!r}; it has {', '.join(sorted(lists)) or 'none'}.")
    if not lists[split]:
        raise ValueError(f"{file}: the list {split!r} is empty; nothing can be loaded from it.")

    items = lists.pop(split)
    absent: set[str] = set()
    for index, entry in enumerate(items):  # each in its place, so that a long list is not in memory twice
        item = {"image": entry} if isinstance(entry, str) else entry  # Decathlon's test split lists bare names
        if not isinstance(item, dict):
            raise ValueError(f"{file}: item {index} of {split!r} must be an object or a file name, got {entry!r}.")
        lacking = [key for key in required if item.get(key) in (None, "")]
        if lacking:
            raise ValueError(
                f"{file}: item {index} of {split!r} lacks {', '.join(lacking)}; it has {', '.join(sorted(item))}."
            )
        if not isinstance(item.get("image", ""), str):
            raise ValueError(
                f"{file}: item {index} of {split!r} has the image {item['image']!r}; expected a file name."
            )
        for key, value in item.items():
            item[key] = _resolved(base, key, value, required, absent)
        items[index] = with_patient(item)

    def entry_of(item: Item) -> tuple[str, str]:
        return path_key(str(item.get("image"))), str(item.get("frame"))

    shown = [item for item in items if item.get("image")]  # recorded pairs may have other keys alone
    if len({hash(entry_of(item)) for item in shown}) < len(shown) and (
        doubled := [image for (image, _), number in Counter(map(entry_of, shown)).items() if number > 1]
    ):
        warnings.warn(
            f"{file}: {len(doubled)} images stand more than once in {split!r}, for example {doubled[0]}: they count "
            "more than the others.",
            stacklevel=3,
        )
    if check_files and absent:
        files = ("image", "label", *required)
        named = (path for item in items for key in files if key in item for path in _names(key, item[key]))
        missing = [path for path in dict.fromkeys(named) if path in absent]
        if missing:
            raise FileNotFoundError(
                f"{file}: {len(missing)} files of {split!r} do not exist below {base}: {', '.join(missing[:5])}"
                f"{' ...' if len(missing) > 5 else ''}. Correct dataset_dir, or take them out of the list."
            )
    for item, patient in zip(items, written_alike(items), strict=True):
        if patient is not None:
            item["patient"] = patient
    return items


def with_patient(item: Item) -> Item:
    """The item with its patient under the name that the package uses, also where it says ``patient_id``."""
    known = next((item[key] for key in ("patient", "patient_id") if patient_key(item.get(key)) is not None), None)
    if known is not None:
        return item if item.get("patient") is known else {**item, "patient": known}
    return {**item, "patient": None} if "patient" in item else item


def label_fraction(items: Sequence[Item], fraction: float, seed: int = 0) -> list[Item]:
    """A part of the training items: whole patients, each class in proportion, smaller parts inside larger ones.

    Patients are ordered within their class by a hash of ``seed`` and their name, and the first
    ``max(1, round(fraction * patients))`` of each class are taken. So the part depends neither on the order of the list
    nor on the machine, and for one seed the part for 5 % lies in the part for 10 %. A patient with several classes is
    counted under the one most of its items have. Where no item has a ``patient``, items are taken one by one; without
    ``class``, patients are taken from the whole.

    Args:
        items: items of one split.
        fraction: of the patients, in (0, 1].
        seed: another seed, another part.

    Returns:
        The chosen items, in the order of ``items``.

    Raises:
        ValueError: for a fraction outside (0, 1], no items, or a key that only some of the items have.
    """
    if not 0 < fraction <= 1:
        raise ValueError(f"fraction must be in (0, 1], got {fraction}.")
    if not items:
        raise ValueError("there are no items to take a fraction of.")
    known = _all_have(items, "patient")
    if not known and fraction < 1:
        warnings.warn("no item has the key 'patient', so single images are drawn, not patients.", stacklevel=2)
    groups = written_alike(items) if known else [item.get("image", index) for index, item in enumerate(items)]
    # numbers to be predicted (a tensor) are no classes: each item would be one of its own, of which none may lack
    told = _all_have(items, "class") and not any(isinstance(item["class"], torch.Tensor) for item in items)
    classes = [item["class"] if told else None for item in items]
    votes: dict[Hashable, Counter] = defaultdict(Counter)
    for name, one_class in zip(groups, classes, strict=True):
        votes[name][one_class] += 1
    strata: dict[Hashable, list[Hashable]] = defaultdict(list)
    for name, counts in votes.items():
        strata[max(counts, key=lambda value: (counts[value], str(value)))].append(name)
    chosen: set[Hashable] = set()
    for names in strata.values():
        names.sort(key=lambda name: hashlib.sha256(f"{seed}:{name}".encode()).digest())
        chosen.update(names[: max(1, int(fraction * len(names) + 0.5))])
    return [item for item, name in zip(items, groups, strict=True) if name in chosen]


def check_patient_leak(splits: Mapping[str, Sequence[Item]], keys: Sequence[str] = ("image",)) -> None:
    """Refuse splits that share a patient or a file.

    A patient is the same however it is written (:func:`~monai_usfm.data.patients.patient_key`: ``P01``, `` p1``), a
    file under every name: by another path, a link, or as a copy with the same bytes. Files that do not exist are
    compared by name.

    Args:
        splits: name of the split -> items; those without a patient are compared by file only.
        keys: of an item's files of which none may stand in two splits; each is compared with those of its own key.

    Raises:
        ValueError: naming up to ten patients and files that stand in two splits, and the number of them.
    """
    twins = equal_files({str(i[key]) for items in splits.values() for i in items for key in keys if i.get(key)})
    places: dict[tuple[str, str], dict[str, str]] = defaultdict(dict)  # patient or file -> split -> as it is written
    for split, items in splits.items():
        for item in items:
            name = item.get("patient")
            if (patient := patient_key(name)) is not None:
                places["patient", patient].setdefault(split, str(name))
            for key in keys:
                if file := item.get(key):
                    places[key, twins[str(file)]].setdefault(split, str(file))
    leaks = [
        f"{kind} {' = '.join(dict.fromkeys(where.values()))} ({', '.join(where)})"
        for (kind, _), where in sorted(places.items())
        if len(where) > 1
    ]
    if leaks:
        raise ValueError(
            f"{len(leaks)} patients or images stand in two splits, so results would be too good: "
            f"{'; '.join(leaks[:10])}{' ...' if len(leaks) > 10 else ''}. Split by patient."
        )


def equal_files(files: Iterable[str]) -> dict[str, str]:
    """``file -> name`` such that two names of one file, links and copies with the same bytes have one name.

    Only files of equal size are read, and only their first 64 KB where these differ. Empty files are no copies.
    """
    alike: dict[Any, list[str]] = defaultdict(list)
    for file in sorted(files):
        size = os.path.getsize(file) if os.path.isfile(file) else 0
        alike[size or path_key(file)].append(file)

    def digest(file: str, length: int) -> bytes:
        with open(file, "rb") as stream:
            return hashlib.sha256(stream.read(length)).digest()

    names: dict[str, str] = {}
    for size, found in alike.items():
        if isinstance(size, str) or len(found) == 1:
            names.update(dict.fromkeys(found, found[0]))
            continue
        for length in (2**16, -1):  # the whole of those only that begin alike
            beginnings = {file: digest(file, length) for file in found}
            counts = Counter(beginnings.values())
            names.update({file: file for file in found if counts[beginnings[file]] == 1})
            found = [file for file in found if counts[beginnings[file]] > 1]
        first: dict[bytes, str] = {}
        names.update({file: first.setdefault(beginnings[file], file) for file in found})
    return names


def join_table(datalist: str, table: str, columns: Sequence[str], *, output: str | None = None) -> Path:
    """Give the items of a datalist what a table knows of them: patients, pixel sizes, classes, measurements.

    With ``spacing`` (mm per pixel) images without geometry get theirs, with ``patient`` the check for patients in two
    splits works, and ``circumference`` is what the segmentation bundle compares with.

    Args:
        datalist: JSON file with the splits.
        table: CSV file with a column ``image`` that names the images as the datalist does, or by the ends of their
            paths.
        columns: what to take over, ``KEY=COLUMN`` or ``COLUMN``: ``patient=subject_id spacing=pixel_size_mm``;
            ``image=COLUMN`` is the one that names the images.
        output: the new list, with the same paths: keep it in the folder of the old one, or name that folder by
            ``dataset_dir``. Without it the datalist itself is replaced.

    Returns:
        The file that was written.

    Raises:
        FileNotFoundError: for no such file.
        ValueError: for a column that the table lacks, an image that it does not name, an empty cell, a length
            that is no number, or a file that is no datalist. Nothing is written then.
    """
    wanted = named_columns(columns)
    rows = Table(table, list(wanted), wanted)
    wanted.pop("image", None)
    keep_apart(output or datalist, table)
    content = read_datalist(datalist)
    count = 0
    # parts of the training split are lists of items as well
    lists = [name for name, part in content.items() if name in SPLITS or (isinstance(part, list) and _are_items(part))]
    for split in (name for name in lists if content.get(name)):
        # a datalist may name an image by its path alone
        items = [{"image": entry} if isinstance(entry, str) else entry for entry in content[split]]
        for item, row in zip(items, rows.rows_of([str(item.get("image")) for item in items]), strict=True):
            if row is None:
                raise ValueError(f"{table}: no row for {item.get('image')} of {datalist}.")
            for key, column in wanted.items():
                if not row[key]:
                    raise ValueError(f"{table}: {column} of {item['image']} is empty.")
                # a patient is a name even where all its characters are digits
                item[key] = row[key] if key in ("patient", "patient_id") else value_of(row[key], key)
                if key in NUMBERS and isinstance(item[key], str):
                    raise ValueError(f"{table}: {column} of {item['image']} must be a number, is {row[key]!r}.")
        content[split] = items
        count += len(items)
    if not count:
        raise ValueError(f"{datalist}: no list of items; expected {', '.join(SPLITS)}.")
    file = write_text_atomically(output or datalist, json.dumps(content, indent=1, ensure_ascii=False) + "\n")
    print(f"{file}: {', '.join(wanted)} for {count} items.")
    return file


def _are_items(part: list[Any]) -> bool:
    return all(isinstance(entry, dict) and "image" in entry for entry in part)


def _all_have(items: Sequence[Item], key: str) -> bool:
    """True when all items have the key, false when none has."""
    lacking = sum(item.get(key) is None for item in items)
    if 0 < lacking < len(items):
        raise ValueError(f"{lacking} of {len(items)} items lack the key {key!r}; give it to all of them or to none.")
    return lacking == 0


def _names(key: str, value: Any) -> list[str]:
    """The file names that a value may hold: strings under ``image`` and ``label``, else those that end like one."""
    values = value if isinstance(value, list) else [value]
    if key in ("patient", "patient_id", "organ") or not all(isinstance(entry, str) for entry in values):
        return []  # names, even where one ends as a file does
    named = key in ("image", "label") or all(entry.lower().endswith(SUPPORTED_SUFFIXES) for entry in values)
    return values if named else []


def _resolved(base: Path, key: str, value: Any, required: Sequence[str], absent: set[str]) -> Any:
    """With whole paths for file names; what only ends like one, as the name of an export, stays where none exists.

    What does not exist is put into ``absent``: of a long list each file is looked for once. Other words are kept once.
    """
    paths = [_whole_path(base, name, absent) for name in _names(key, value)]
    if not paths or not (key in ("image", "label", *required) or absent.isdisjoint(paths)):
        return sys.intern(value) if isinstance(value, str) else value
    return paths if isinstance(value, list) else paths[0]


def _whole_path(base: Path, name: str, absent: set[str]) -> str:
    """The path without ``..``, so that results named after it stay in their folder; letters as the disk has them."""
    path = _joined(base, name)
    if not os.path.exists(path):
        # of the name alone: the folder is there as it is written
        forms = (_joined(base, unicodedata.normalize(form, name)) for form in ("NFC", "NFD"))
        found = next((form for form in forms if os.path.exists(form)), None)
        if found is None:
            absent.add(path)
        path = found or path
    return path


def _joined(base: Path, name: str) -> str:
    if os.sep == "/" and name[-1:] not in ("", "/") and "//" not in name and "/." not in f"/{name}":
        return os.path.join("" if str(base) == "." else base, name)  # as below, and faster
    whole = base / name
    return str(whole.parent.resolve() / whole.name if ".." in whole.parts else whole)
