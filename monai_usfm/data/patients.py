# Copyright (c) monai_usfm contributors
# SPDX-License-Identifier: Apache-2.0
"""Whose image is it? Patients from tables, patterns and names, and what counts as the same patient."""

from __future__ import annotations

import math
import os
import re
import unicodedata
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from monai.config import PathLike

__all__ = ["add_patients"]

Item = dict[str, Any]

_BEFORE = r"(?:^|(?<=[^A-Za-z0-9]))"
PATIENT_RULES: dict[str, re.Pattern[str]] = {
    "sub-LABEL (BIDS)": re.compile(rf"{_BEFORE}(sub-)([A-Za-z0-9]+)"),
    "patient NUMBER": re.compile(r"(?i)(patient|subject)s?[ _/#-]*([A-Z]{0,3}\d+)"),
    "case NUMBER": re.compile(rf"(?i){_BEFORE}(case|pat|pt|subj|sub)s?[ _/#-]*(\d+)"),
    "ID NUMBER": re.compile(rf"(?i){_BEFORE}(pid|id)[ _#-]*(\d+)"),
    "P NUMBER": re.compile(rf"(?i){_BEFORE}(p)[ _#-]?(\d+)(?![0-9.]*p\b)"),
}
"""What in a path names the patient, the surest first; the outermost place counts where there are several."""


def patient_by_rule(path: str) -> tuple[str, str] | None:
    """``(patient, rule)`` by the words of a path, ``None`` where none of the rules tells.

    The rules, in this order: ``sub-LABEL`` of BIDS; ``patient`` or ``subject`` and a number (``patient0/us.png``,
    ``2CH_patient0001.png``, ``patients/17/a.png``); ``case`` (also ``pat``, ``pt``, ``subj``, ``sub``) and a number;
    ``ID`` and a number; ``P`` and a number. Words count at the beginning of a folder, of a name, or after a sign. The
    path starts below the folder of the data.
    """
    path = unicodedata.normalize("NFC", path)
    for rule, pattern in PATIENT_RULES.items():
        if match := pattern.search(path):
            return f"{match[1]}{match[2]}", rule
    return None


def patient_by_pattern(path: str, pattern: str) -> str | None:
    """The patient that a regular expression finds: its first group, or the whole match where it has none.

    The path below the folder of the data, with ``/``, is searched as a whole, then the file name alone, so that ``^``
    may stand for the beginning of either. What is no regular expression is a ValueError.
    """
    try:
        search = re.compile(pattern).search
    except re.error as error:
        raise ValueError(f"patient_pattern {pattern!r} is no regular expression: {error}.") from None
    path = unicodedata.normalize("NFC", path)
    match = search(path) or search(path.rpartition("/")[2])
    found = match and next((group for group in match.groups() if group is not None), match.group())
    return found or None


def patient_key(patient: Any) -> str | None:
    """What two writings of one patient have in common; ``None`` where nobody is named.

    Case, spaces, composed or decomposed letters, leading zeros and ``.0`` do not count: ``P01`` is `` p1``, and ``1.0``
    is ``"1"``.
    """
    if patient is None or (isinstance(patient, float) and math.isnan(patient)):
        return None
    text = " ".join(unicodedata.normalize("NFKC", str(patient)).casefold().split())
    text = re.sub(r"^([+-]?\d+)\.0*$", r"\1", text)
    return re.sub(r"(?<![\d.])0+(?=\d)", "", text) if text and text not in ("nan", "none", "null") else None


def written_alike(items: Sequence[Mapping[str, Any]]) -> list[Any]:
    """The ``patient`` of each item, one that is written in several ways (:func:`patient_key`) in the smallest."""
    named = [(patient_key(item.get("patient")), item.get("patient")) for item in items]
    smallest: dict[str, Any] = {}
    for key, patient in named:
        if key is not None:
            smallest[key] = min(smallest.get(key, patient), patient, key=str)
    return [patient if key is None else smallest[key] for key, patient in named]


def add_patients(items: Sequence[Item], dataset_dir: PathLike) -> list[Item]:
    """Give each item its ``patient``, for datalists that do not name them, by its name (:func:`patient_by_rule`).

    Where the names tell of some images only, or of none, each image counts as a patient, with a warning that says what
    that means.

    Args:
        items: with absolute paths; those with a ``patient`` keep it.
        dataset_dir: folder below which the names tell.
    """
    lacking = [str(item["image"]) for item in items if patient_key(item.get("patient")) is None]
    paths = {image: Path(os.path.relpath(image, dataset_dir)).as_posix() for image in lacking}
    by_rule = {image: patient_by_rule(path) for image, path in paths.items()}
    found = {image: rule[0] for image, rule in by_rule.items() if rule}
    if len(found) < len(paths):
        warnings.warn(
            "the patients of the images are not known, so each image counts as a patient: intervals are too narrow and "
            "parts may share patients where one has several images. Name them: `monai-usfm datalist --patient_pattern` "
            "or `monai-usfm join-table`.",
            stacklevel=2,
        )
        found = paths
    told = [{**item, "patient": found.get(str(item["image"]), item.get("patient"))} for item in items]
    return [{**item, "patient": patient} for item, patient in zip(told, written_alike(told), strict=True)]
