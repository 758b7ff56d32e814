# Copyright (c) monai_usfm contributors
# SPDX-License-Identifier: Apache-2.0
"""The files that :func:`~monai_usfm.data.make_datalist` finds, and what it tells about the list that it makes."""

from __future__ import annotations

import os
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from .datalist import SPLITS
from .pairing import SPLIT_WORDS, words_of

SHOWN = 10  # names of a kind that are printed; the datalist has all of them


@dataclass
class Entry:
    """An image file and what was found out about it."""

    path: Path
    root: Path  # the folder of the command line it lies in
    organ: str
    patient: str | None = None
    rule: str = ""  # how the patient was found
    labels: list[Path] = field(default_factory=list)  # several masks of one image are joined
    fov: Path | None = None
    extra: dict[str, Any] = field(default_factory=dict)
    digest: str = ""
    hashes: np.ndarray | None = None
    num_frames: int = 1
    tells_white: bool = True  # data type or header gives the value of white
    few_values: bool = False  # as a mask has, which was not told by its name
    unreadable: str = ""

    @property
    def below(self) -> str:
        """The path below the folder of the command line."""
        return self.path.relative_to(self.root).as_posix()

    @property
    def named_split(self) -> str | None:
        """The split that a folder's name gives the file, the nearest folder first; that of the command line counts."""
        for part in (self.root.name, *self.path.relative_to(self.root).parts[:-1])[::-1]:
            for word in words_of(part):
                if word in SPLIT_WORDS:
                    return SPLIT_WORDS[word]
        return None


class ListReport:
    """Prints what a person would check before training on the list."""

    def __init__(self, base: Path) -> None:
        self.base = base

    def name(self, path: Path) -> str:
        return Path(os.path.relpath(path, self.base.resolve())).as_posix()

    def counts(self, entries: Sequence[Entry], splits: dict[str, list[Entry]]) -> None:
        import pandas as pd  # takes half a second

        several = len({entry.extra.get("class") for entry in entries}) > 1
        rows = [
            (f"{entry.organ} class {entry.extra.get('class')}" if several else entry.organ, name, entry.patient)
            for name in SPLITS
            for entry in splits[name]
        ]
        groups = pd.DataFrame(rows, columns=["organ", "split", "patient"]).groupby(["organ", "split"])["patient"]
        cells = groups.agg(lambda of: f"{len(of)}/{of.nunique()}").unstack()
        print(f"Images / patients:\n{cells.reindex(columns=list(SPLITS)).fillna('0/0').to_string()}")
        labeled = sum(bool(entry.labels) for entry in entries)
        moving = sum(entry.num_frames > 1 for entry in entries)
        print(f"{len(entries)} images: {labeled} with a label, {moving} volumes or cines.")
        if joined := sum(len(entry.labels) > 1 for entry in entries):
            print(f"{joined} images have several masks, which are joined.")

    def groups(self, entries: Sequence[Entry], groups: Sequence[int], copies: Counter, near: int) -> None:
        identical = sum(number for number in copies.values() if number > 1)
        print(
            f"{len(set(groups))} groups that stay together; {identical} images have an identical and {near} a "
            "near-identical one, which may be cropped, framed or mirrored."
        )
        sizes = Counter(groups)
        if max(sizes.values()) > max(20, 0.2 * len(entries)):
            largest, number = sizes.most_common(1)[0]
            example = entries[list(groups).index(largest)]
            print(
                f"Note: one group holds {number} images (patient {example.patient!r}, {self.name(example.path)}); "
                "if that is wrong, give --patient_pattern or lower --max_bits."
            )

    def patients(self, entries: Sequence[Entry]) -> None:
        for rule in dict.fromkeys(entry.rule for entry in entries if entry.patient):
            first = {entry.patient: entry for entry in reversed(entries) if entry.rule == rule and entry.patient}
            found = list(first.values())[::-1]
            examples = [found[i] for i in sorted({0, len(found) // 2, len(found) - 1})]
            shown = ", ".join(f"{self.name(entry.path)} is of {entry.patient}" for entry in examples)
            print(f"{len(found)} patients by {rule}: {shown}. Another rule: --patient_pattern.")
        unknown = [entry for entry in entries if not entry.patient]
        if unknown:
            print(f"Note: the patient of {len(unknown)} images is not known, for example of {unknown[0].below}.")
        spread: dict[str, set[Any]] = defaultdict(set)
        for entry in entries:
            if entry.patient and not entry.rule.startswith("the table"):
                spread[entry.patient].add((entry.organ, entry.extra.get("class")))
        if mixed := [patient for patient, kinds in spread.items() if len(kinds) > 1]:
            print(
                f"Note: {len(mixed)} patients have images of several organs or classes, for example {mixed[0]}; where "
                "each folder counts its patients from the start, give --patient_pattern with the folder in its group."
            )

    def classes(self, entries: Sequence[Entry], names: Sequence[str]) -> None:
        if names:
            counts = Counter(entry.extra.get("class") for entry in entries)
            shown = ", ".join(f"{number} {name}: {counts[number]}" for number, name in enumerate(names))
            rest = len(entries) - sum(counts[number] for number in range(len(names)))
            print(f"Classes: {shown}; {rest} images have none of them.")

    def empty(self, splits: dict[str, list[Entry]], shares: Sequence[float] | None) -> None:
        for name, share in zip(SPLITS, shares or (1, 1, 1), strict=True):
            if share > 0 and not splits[name]:
                why = "there are too few groups for it" if shares else "no folder is named so"
                print(f"Note: {name} is empty; {why}.")

    def folders_name_splits(
        self, entries: Sequence[Entry], groups: Sequence[int], shares: Sequence[float] | None
    ) -> None:
        spread: dict[int, set[str]] = defaultdict(set)
        for entry, number in zip(entries, groups, strict=True):
            if name := entry.named_split:
                spread[number].add(name)
        given = {name for names in spread.values() for name in names}
        if shares is not None and len(given) > 1:
            print(
                f"Note: folders name {' and '.join(sorted(given))} files, but the split is a new one (--split folders)."
            )
        shared = [number for number, names in spread.items() if len(names) > 1]
        if shares is None and shared:
            members = [e for e, number in zip(entries, groups, strict=True) if number == shared[0]]
            first = next(e for e in members if e.named_split != members[0].named_split)
            print(
                f"Note: {len(shared)} groups (one patient, or nearly one image) lie in several of the folders' splits, "
                f"for example {self.name(members[0].path)} and {self.name(first.path)}; training refuses such patients."
            )

    def left_out(self, what: str, found: dict[Path, str]) -> None:
        if found:
            print(f"{len(found)} files {what}: left out." if "folders" not in what else f"{len(found)} {what[4:]}:")
            for path in list(found)[:SHOWN]:
                print(f"  {self.name(path)}{': ' if found[path] else ''}{found[path]}")
            if len(found) > SHOWN:
                print(f"  and {len(found) - SHOWN} more; the list names all.")
