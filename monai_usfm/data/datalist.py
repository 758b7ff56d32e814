# Copyright (c) monai_usfm contributors
# SPDX-License-Identifier: Apache-2.0
"""Datalists: read and check them, take nested fractions of their labels, refuse patients that cross splits."""

from __future__ import annotations

import hashlib
import json
import os
import warnings
from collections import Counter, defaultdict
from collections.abc import Callable, Hashable, Mapping, Sequence
from functools import wraps
from pathlib import Path
from typing import Any, TypeVar, cast

from monai.config import PathLike

from .formats import SUPPORTED_SUFFIXES

__all__ = ["check_patient_leak", "label_fraction", "load_datalist"]

Item = dict[str, Any]
F = TypeVar("F", bound=Callable[..., Any])


def renamed_argument(old: str, new: str) -> Callable[[F], F]:
    """Decorator: for one version the keyword ``old`` still stands for ``new``, with a warning."""

    def decorate(function: F) -> F:
        @wraps(function)
        def call(*args: Any, **kwargs: Any) -> Any:
            if old in kwargs:
                warnings.warn(f"{function.__name__}: {old!r} is now {new!r}.", FutureWarning, stacklevel=2)
                kwargs[new] = kwargs.pop(old)
            return function(*args, **kwargs)

        return cast(F, call)

    return decorate


@renamed_argument("section", "split")
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
    ``image`` and ``label`` and those that end like an image file under any other key.

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
    base = file.parent if dataset_dir is None else Path(dataset_dir)
    if dataset_dir is not None and not base.is_dir():
        raise FileNotFoundError(f"{base}: no such folder; correct dataset_dir.")
    if not file.is_file():
        raise FileNotFoundError(f"{file}: no such datalist; make one with scripts/make_datalist.py.")
    try:
        content = json.loads(file.read_text(encoding="utf-8-sig"))  # some editors put a byte order mark first
    except ValueError as error:
        raise ValueError(f"{file}: not a JSON file ({error}).") from error
    lists = (
        {key: value for key, value in content.items() if isinstance(value, list)} if isinstance(content, dict) else {}
    )
    if split not in lists:
        raise ValueError(f"{file}: has no list {split!r}; it has {', '.join(sorted(lists)) or 'none'}.")
    if not lists[split]:
        raise ValueError(f"{file}: the list {split!r} is empty; nothing can be loaded from it.")

    items = []
    for index, entry in enumerate(lists[split]):
        item = {"image": entry} if isinstance(entry, str) else entry  # Decathlon's test split lists bare names
        if not isinstance(item, dict):
            raise ValueError(f"{file}: item {index} of {split!r} must be an object or a file name, got {entry!r}.")
        lacking = [key for key in required if item.get(key) in (None, "")]
        if lacking:
            raise ValueError(
                f"{file}: item {index} of {split!r} lacks {', '.join(lacking)}; it has {', '.join(sorted(item))}."
            )
        items.append(with_patient({key: _resolved(base, key, value) for key, value in item.items()}))
    if check_files:
        missing = [path for item in items for key, value in item.items() for path in _paths(key, value)]
        missing = [path for path in dict.fromkeys(missing) if not Path(path).exists()]
        if missing:
            raise FileNotFoundError(
                f"{file}: {len(missing)} files of {split!r} do not exist below {base}: {', '.join(missing[:5])}"
                f"{' ...' if len(missing) > 5 else ''}. Correct dataset_dir, or take them out of the list."
            )
    return items


def with_patient(item: Item) -> Item:
    """The item with its patient under the name that the package uses, also where it says ``patient_id``."""
    known = next((item[key] for key in ("patient", "patient_id") if item.get(key) is not None), None)
    return item if known is None else {**item, "patient": known}


def label_fraction(
    items: Sequence[Item],
    fraction: float,
    seed: int = 0,
    *,
    group: str | Callable[[Item], Hashable] = "patient",
    stratify: str | None = "class",
) -> list[Item]:
    """A part of the training items: whole patients, each class in proportion, smaller parts inside larger ones.

    Patients are ordered within their class by a hash of ``seed`` and their name, and the first
    ``max(1, round(fraction * patients))`` of each class are taken. So the part depends neither on the order of the list
    nor on the machine, and for one seed the part for 5 % lies in the part for 10 %. A patient with several classes is
    counted under the one most of its items have.

    Args:
        items: items of one split.
        fraction: of the patients, in (0, 1].
        seed: another seed, another part.
        group: key of the patient, or a function of the item. Where no item has the key, items are taken one by one.
        stratify: key of the class; ``None``, or a key that no item has, takes patients from the whole.

    Returns:
        The chosen items, in the order of ``items``.

    Raises:
        ValueError: for a fraction outside (0, 1], no items, or a key that only some of the items have.
    """
    if not 0 < fraction <= 1:
        raise ValueError(f"fraction must be in (0, 1], got {fraction}.")
    if not items:
        raise ValueError("there are no items to take a fraction of.")
    if callable(group):
        groups = [group(item) for item in items]
    elif _all_have(items, group):
        groups = [item[group] for item in items]
    else:
        if fraction < 1:
            warnings.warn(f"no item has the key {group!r}, so single images are drawn, not patients.", stacklevel=2)
        groups = [item.get("image", index) for index, item in enumerate(items)]
    classes = [item[stratify] for item in items] if stratify and _all_have(items, stratify) else [None] * len(items)
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


def check_patient_leak(
    splits: Mapping[str, Sequence[Item]], *, group: str | Callable[[Item], Hashable] = "patient"
) -> None:
    """Refuse splits that share a patient or a file.

    Args:
        splits: name of the split -> items.
        group: key of the patient, or a function of the item; items without it are compared by file only.

    Raises:
        ValueError: naming up to ten patients and files that stand in two splits, and the number of them.
    """
    places: dict[tuple[str, str], list[str]] = defaultdict(list)
    for split, items in splits.items():
        for item in items:
            name = group(item) if callable(group) else item.get(group)
            # 1 and "1", a.png and ./a.png are one
            found = ([("patient", str(name))] if name is not None else []) + (
                [("image", os.path.normpath(str(item["image"])))] if item.get("image") else []
            )
            for place in found:
                if split not in places[place]:
                    places[place].append(split)
    leaks = [
        f"{kind} {name} ({', '.join(where)})"
        for (kind, name), where in sorted(places.items(), key=str)
        if len(where) > 1
    ]
    if leaks:
        raise ValueError(
            f"{len(leaks)} patients or images stand in two splits, so results would be too good: "
            f"{'; '.join(leaks[:10])}{' ...' if len(leaks) > 10 else ''}. Split by patient."
        )


def _all_have(items: Sequence[Item], key: str) -> bool:
    """True when all items have the key, false when none has."""
    lacking = sum(item.get(key) is None for item in items)
    if 0 < lacking < len(items):
        raise ValueError(f"{lacking} of {len(items)} items lack the key {key!r}; give it to all of them or to none.")
    return lacking == 0


def _is_file_name(key: str, value: Any) -> bool:
    if key in ("patient", "patient_id", "organ"):  # names, even where one ends as a file does
        return False
    return isinstance(value, str) and (key in ("image", "label") or value.lower().endswith(SUPPORTED_SUFFIXES))


def _resolved(base: Path, key: str, value: Any) -> Any:
    if isinstance(value, list) and value and all(_is_file_name(key, entry) for entry in value):
        return [str(base / entry) for entry in value]
    return str(base / value) if _is_file_name(key, value) else value


def _paths(key: str, value: Any) -> list[str]:
    """File names in a resolved value."""
    values = value if isinstance(value, list) else [value]
    return [entry for entry in values if _is_file_name(key, entry)]
