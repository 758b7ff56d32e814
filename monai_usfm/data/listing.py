# Copyright (c) monai_usfm contributors
# SPDX-License-Identifier: Apache-2.0
"""Make a datalist (Decathlon-style JSON) from folders of ultrasound files."""

from __future__ import annotations

import hashlib
import json
import math
import os
import unicodedata
import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import torch

from monai_usfm.files import import_itk, write_text_atomically
from monai_usfm.settings import split_named_path

from .datalist import DATALIST_NAME, SPLITS, read_datalist
from .duplicates import MAX_BITS, find_copies, image_hashes, joined_groups
from .folders import FoundFiles, find_files
from .formats import SUPPORTED_SUFFIXES, UnreadableImageError, file_format
from .list_report import Entry, ListReport
from .loading import LoadUltrasound
from .pairing import IMAGE_WORDS, SPLIT_WORDS, Masks, PatternMasks, path_by_rule, says_something, words_of
from .patients import patient_by_pattern, patient_by_rule, patient_key
from .reader import dataset_full_scale
from .tables import Table, named_columns, value_of

__all__ = ["UnknownPatientsError", "make_datalist"]

VALIDATION_SHARE = 0.1  # of the training files, where folders name no validation split
MAKER = "made by monai-usfm datalist"


class UnknownPatientsError(ValueError):
    """Images would be split whose patients are not known."""


def make_datalist(
    folders: Sequence[str],
    *,
    output: str | None = None,
    dataset_dir: str | None = None,
    table: str | None = None,
    columns: Sequence[str] = (),
    patient_pattern: str | None = None,
    label_pattern: str | None = None,
    classes: Sequence[str] | None = None,
    split: str = "0.8/0.1/0.1",
    seed: int = 0,
    max_bits: int = MAX_BITS,
    num_workers: int | None = None,
) -> Path:
    r"""Make a datalist (Decathlon-style JSON) from folders of ultrasound files, split by patient, and report on it.

    Every file is read once. What cannot be read is listed with the reason and left out. Images of one patient,
    identical ones and near-copies (frames of one cine, exports of other size, crop or frame, mirrored) form a group,
    and no group crosses a split made here. Organs and classes keep their shares in each split.

    The patient of an image is the first of these that tells: ``table``, ``patient_pattern``, the Patient ID of DICOM
    (the list numbers patients instead), the words of the path (``sub-01`` of BIDS; ``patient``, ``subject``, ``case``,
    ``ID`` or ``P`` and a number). Where some images tell none, nothing is split.

    Masks are found by their folder or name as public data sets have them: ``masks/a.png``, ``a_mask.png``,
    ``Masks/mask_1.png`` for ``Images/bus_1.png``, ``labelsTr`` for ``imagesTr``; others by ``label_pattern``. Folders
    of results of our tools are skipped, as are hidden ones and those of operating systems.

    Args:
        folders: searched with all folders below them; ``ORGAN=FOLDER`` names the organ, else a folder's name does.
        output: the list; by default ``dataset.json``, the name that bundles look for, in ``dataset_dir``.
        dataset_dir: folder the paths are relative to; by default that of ``output`` where it holds all images, else the
            one that does.
        table: CSV file with a column ``image`` (a path's end, a file name or its stem); ``organ``, ``patient`` (or
            ``patient_id``), ``class`` and other columns are taken over.
        columns: names of the table's columns where they are others, ``KEY=COLUMN``: ``image=Image_name
            patient=Patient_num class=Plane split=Set``.
        patient_pattern: regular expression searched in the path below the folder, or else in the file name; its first
            group, or the whole match, is the patient. ``^([^/]+)/`` takes the first folder, ``(.*)`` every image for a
            patient.
        label_pattern: ``PATTERN=>REPLACEMENT``, a regular expression that makes of the path of an image, below the
            folder, that of its mask: ``source/(.*)=>masks/fascicle/\1``, ``\.png$=>_tumor.png``.
        classes: names of folders that tell the class, for 0, 1, ...: ``benign,malignant``.
        split: shares of training, validation and test; ``folders`` keeps the splits that folders name, ``table`` those
            of a column ``split`` of the table.
        seed: of the split.
        max_bits: largest distance of two near-copies, in bits of 256; 0 joins equal hashes only.
        num_workers: threads that read; by default one for each core.

    Returns:
        The file that was written.

    Raises:
        FileNotFoundError: for no such folder, or one without images.
        UnknownPatientsError: for images of unknown patients that would be split.
        ValueError: for wrong options, or no readable image.
    """
    shares = _shares(split)
    if not table and (columns or split == "table"):
        raise ValueError("columns and split table are about a table: name it by --table.")
    names = _class_names(classes)
    roots = [(organ, Path(folder)) for organ, folder in map(split_named_path, folders)]
    base, file = _places([folder for _, folder in roots], output, dataset_dir)
    entries, found, unpaired = _find_images(roots, names, label_pattern)
    if not entries:
        raise FileNotFoundError(
            f"no image files in {', '.join(folders)}; supported are {', '.join(SUPPORTED_SUFFIXES)}."
            f"{found.not_searched()}"
        )
    if table:
        _apply_table(entries, table, named_columns(columns), names)
    import_itk(entry.path for entry in entries)
    # around the threads: each of them would put back the filters that another one had set
    with warnings.catch_warnings(), ThreadPoolExecutor(num_workers or os.cpu_count()) as pool:
        warnings.simplefilter("ignore")
        list(pool.map(_inspect, entries))
    readable = [entry for entry in entries if not entry.unreadable]
    if not readable:
        raise ValueError(f"none of {len(entries)} files is readable; {entries[0].path}: {entries[0].unreadable}")
    if masks := [entry.path for entry in readable if entry.few_values]:
        warnings.warn(
            f"{len(masks)} images, such as {masks[0]}, have eight gray values or fewer, as masks do. If they are "
            "masks, say whose by --label_pattern, or put them into a folder named masks, under the names of their "
            "images.",
            stacklevel=2,
        )
    _name_patients(readable, patient_pattern)
    copies = find_copies([entry.hashes for entry in readable if entry.hashes is not None], max_bits=max_bits)
    keys = ([entry.digest for entry in readable], [entry.patient for entry in readable])
    groups = joined_groups(len(readable), copies, keys)
    splits = (
        _given_splits(readable, groups, seed, split == "table")
        if shares is None
        else _drawn(readable, groups, shares, seed)
    )

    if white := dataset_full_scale([entry.path for entry in readable if not entry.tells_white]):
        for entry in readable:
            if not entry.tells_white:
                entry.extra.setdefault("full_scale", white)

    report = ListReport(base)
    report.counts(readable, splits)
    report.groups(
        readable, groups, Counter(entry.digest for entry in readable), len({i for c in copies for i in c[:2]})
    )
    report.patients(readable)
    report.classes(readable, names)
    report.empty(splits, shares)
    report.folders_name_splits(readable, groups, shares)
    if shares and any("split" in entry.extra for entry in readable):
        print("Note: the table has a column split, but the split is a new one (--split table).")
    if white:
        print(f"Value of white of files that do not tell theirs: {white:g}, from the largest; in the list full_scale.")
    report.left_out(
        "look like masks and belong to no image (--label_pattern can say whose)", dict.fromkeys(unpaired, "")
    )
    report.left_out("are unreadable", {entry.path: entry.unreadable for entry in entries if entry.unreadable})
    ours = {os.path.realpath(path) for path in (file, table) if path}
    found.others = {path: why for path, why in found.others.items() if os.path.realpath(path) not in ours}
    report.left_out("are no images", found.others)
    report.left_out("are folders that are not searched", found.skipped)
    left_out = found.others | found.skipped | dict.fromkeys(unpaired, "looks like a mask and belongs to no image")
    _write(file, base, entries, splits, left_out, f"{MAKER}; split {split}, seed {seed}")
    print(f"Wrote {file}; use it with dataset_dir={base}.")
    return file


def split_groups(strata: Sequence[Any], groups: Sequence[int], shares: Sequence[float], seed: int = 0) -> list[int]:
    """The number of the split that each item goes to: whole groups, each stratum (such as the class) in proportion.

    Folds of scikit-learn's ``StratifiedGroupKFold`` are dealt out by the shares, which sum to 1. A split whose share is
    not 0 gets at least one group, as far as there are enough.
    """
    from sklearn.model_selection import StratifiedGroupKFold  # takes a second, and only lists are split

    wanted = next((k for k in range(1, 50) if all(abs(k * s - round(k * s)) < 1e-6 for s in shares)), 50)
    _, stratum = np.unique([str(value) for value in strata], return_inverse=True)
    folds = min(wanted, len(set(groups)), int(np.bincount(stratum).max()))
    fold = np.zeros(len(groups), dtype=int)
    while folds > 1:
        parts = StratifiedGroupKFold(folds, shuffle=True, random_state=seed)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a stratum with fewer items than folds is no error
            for number, (_, test) in enumerate(parts.split(fold, stratum, groups)):
                fold[test] = number
        filled = len(set(fold.tolist()))
        if filled == folds:
            break
        folds = filled
    owners: list[int] = []
    for _ in range(max(folds, 1)):  # each split gets one fold before any gets a second
        have = Counter(owners)
        owners.append(
            max(
                (n for n, share in enumerate(shares) if share > 0),
                key=lambda n: (not have[n], shares[n] * folds - have[n], shares[n]),
            )
        )
    largest = np.argsort(-np.bincount(fold, minlength=len(owners)), kind="stable")  # large groups are for training
    owner_of = dict(zip(largest.tolist(), sorted(owners, key=lambda n: -shares[n]), strict=True))
    return [owner_of[number] for number in fold.tolist()]


def _find_images(
    roots: Sequence[tuple[str, Path]], classes: Sequence[str], label_pattern: str | None
) -> tuple[list[Entry], FoundFiles, list[Path]]:
    """All image files, masks paired with their images; what was left out; masks without an image.

    The organ is ``ORGAN`` of ``ORGAN=FOLDER``, else the first folder below FOLDER whose name says something, else
    FOLDER's own name.
    """
    entries, left_out, unpaired, seen = [], FoundFiles(), list[Path](), set[Path]()
    for organ, folder in roots:
        if not folder.is_dir():
            raise FileNotFoundError(f"{folder}: no such folder.")
        root = folder.resolve()
        found = find_files(root)
        left_out.others |= found.others
        left_out.skipped |= found.skipped
        masks = Masks(root, found.images) if label_pattern is None else PatternMasks(root, found.images, label_pattern)
        here = []
        for path in masks.images:
            if path in seen:  # one FOLDER lies in another
                continue
            seen.add(path)
            parts = path.relative_to(root).parts[:-1]
            named = [part for part in parts if says_something(part) and _folded(part) not in classes]
            entry = Entry(path, root, organ or (named[0] if named else root.name), labels=masks.of(path))
            entry.fov = masks.fov_of(path)
            for part in parts:
                if _folded(part) in classes:
                    entry.extra["class"] = classes.index(_folded(part))
            here.append(entry)
        unpaired += sorted(masks.files - {path for entry in here for path in (*entry.labels, entry.fov)})
        entries += here
    if entries and label_pattern is not None and not any(entry.labels for entry in entries):
        below = entries[0].path.relative_to(entries[0].root)
        raise ValueError(
            f"label_pattern {label_pattern!r} finds the mask of no image: it leads from {below} to "
            f"{path_by_rule(label_pattern, below)}. Correct it; it is about paths below {entries[0].root}."
        )
    return entries, left_out, unpaired


def _apply_table(entries: Sequence[Entry], file: str, columns: Mapping[str, str], classes: Sequence[str] = ()) -> None:
    """Organ, patient and further columns of a table; a ``class`` that is one of the names becomes its number."""
    number_of = {name: number for number, name in enumerate(classes)}
    table = Table(file, renamed=columns)
    rows = table.rows_of([entry.path for entry in entries])
    for entry, row in zip(entries, rows, strict=True):
        if row is None:
            continue
        entry.organ = row.get("organ") or entry.organ
        entry.patient = row.get("patient") or row.get("patient_id") or None
        entry.rule = f"the table {file}"
        for key, value in row.items():
            if key and key not in ("image", "organ", "patient", "patient_id", "label") and value != "":
                number = number_of.get(_folded(value)) if key == "class" else None
                entry.extra[key] = value_of(value, key) if number is None else number
    lacking = rows.count(None)
    print(f"{file}: {len(table.rows)} rows; {len(rows) - lacking} images have one, {lacking} have none.")


def _inspect(entry: Entry) -> None:
    """Read a file once: is it sound, how many frames, what does it look like."""
    try:
        img = LoadUltrasound(dtype=torch.uint8)(entry.path)
        if entry.patient is None and file_format(entry.path) == "dicom":
            identity = str(pydicom.dcmread(entry.path, stop_before_pixels=True).get("PatientID") or "")
            if any(c.isalnum() for c in identity):
                entry.patient, entry.rule = identity, "the Patient ID of DICOM"
        entry.num_frames = int(getattr(img, "meta", {}).get("num_frames", 1))
        entry.tells_white = bool(getattr(img, "meta", {}).get("full_scale"))
        entry.digest = hashlib.sha256(repr(img.shape).encode() + img.numpy().tobytes()).hexdigest()
        entry.hashes = image_hashes(img)
        some = img.flatten()[:: max(1, img.numel() // 100_000)]  # of volumes all would take seconds
        entry.few_values = len(some.unique()) <= 8
    except UnreadableImageError as error:
        entry.unreadable = error.reason


def _name_patients(entries: Sequence[Entry], pattern: str | None) -> None:
    """The patient of each image, written in one way; None where nothing tells."""
    several = len({entry.root for entry in entries}) > 1
    identities = {entry.patient for entry in entries if entry.rule.endswith("DICOM")}
    nobody = len(identities) == 1 and len(entries) > 1 and len({patient_by_rule(e.below) for e in entries}) > 1
    for entry in entries:
        dicom = entry.rule.endswith("DICOM")
        if entry.patient is not None and not (dicom and (pattern or nobody)):
            continue
        entry.patient, entry.rule = None, ""
        if pattern:
            entry.patient, entry.rule = patient_by_pattern(entry.below, pattern), f"patient_pattern {pattern}"
        elif found := patient_by_rule(entry.below):
            entry.patient, entry.rule = found[0], f"the rule {found[1]!r}"
        if entry.patient and several:
            # folders of one data set, such as train and test, share their patients, those of two data sets do not
            words = [w for w in words_of(entry.root.name) if w not in SPLIT_WORDS and w not in IMAGE_WORDS]
            entry.patient = "/".join([*["-".join(words)][: len(words)], entry.patient])
    written: dict[str, str] = {}
    for entry in entries:
        key = patient_key(entry.patient)
        entry.patient = (
            None if key is None else written.setdefault(f"{entry.rule.endswith('DICOM')} {key}", entry.patient or "")
        )
    # the list names nobody of DICOM, not by a hash either, which short numbers would not withstand
    content = hashlib.sha256("".join(sorted(entry.digest for entry in entries)).encode()).hexdigest()[:6]
    numbers: dict[str | None, str] = {}
    for entry in entries:
        if entry.rule.endswith("DICOM") and entry.patient is not None:
            entry.patient = numbers.setdefault(entry.patient, f"dicom-{content}-{len(numbers) + 1}")


def _refuse_unknown_patients(entries: Sequence[Entry]) -> None:
    """Stop for images that do not tell their patient, and say what might."""
    unknown = [entry for entry in entries if entry.patient is None]
    if not unknown:
        return
    tried = {
        pattern: {patient_by_pattern(e.below, pattern) for e in entries} for pattern in (r"^([^/]+)/", r"^\D*(\d+)")
    }
    offers = [
        f"'{p}' finds {len(found)} patients" for p, found in tried.items() if None not in found and len(found) > 1
    ]
    raise UnknownPatientsError(
        f"{len(unknown)} of {len(entries)} images do not tell their patient, such as "
        f"{', '.join(entry.below for entry in unknown[:3])}, so patients would stand in two splits. Name them by "
        f"--patient_pattern, a regular expression of the path whose first group is the patient"
        f"{' (' + ', '.join(offers) + ')' if offers else ''}, or by --table with a column patient; "
        "'(.*)' takes every image for a patient, and --split 1/0/0 splits nothing."
    )


def _drawn(
    entries: Sequence[Entry], groups: Sequence[int], shares: Sequence[float], seed: int
) -> dict[str, list[Entry]]:
    """Whole groups to the splits; organs, classes and labels in proportion."""
    if sum(share > 0 for share in shares) > 1:
        _refuse_unknown_patients(entries)
    strata = [(entry.organ, entry.extra.get("class"), bool(entry.labels)) for entry in entries]
    splits: dict[str, list[Entry]] = {name: [] for name in SPLITS}
    for entry, number in zip(entries, split_groups(strata, groups, shares, seed), strict=True):
        splits[SPLITS[number]].append(entry)
    return splits


def _given_splits(entries: Sequence[Entry], groups: Sequence[int], seed: int, table: bool) -> dict[str, list[Entry]]:
    """As folders or table say; where they name no validation, groups of the training files are held out for it."""
    splits: dict[str, list[Entry]] = {name: [] for name in SPLITS}
    for entry in entries:
        word = str(entry.extra.pop("split", "")) if table else ""
        name = SPLIT_WORDS.get(word.lower()) if table else entry.named_split
        if name is None:
            what = f"the table has the split {word!r}" if table else "no folder names its split"
            raise ValueError(f"{entry.path}: {what}; expected one of {', '.join(SPLIT_WORDS)}.")
        splits[name].append(entry)
    if splits["training"] and not splits["validation"]:
        of = dict(zip(map(id, entries), groups, strict=True))
        shares = (1 - VALIDATION_SHARE, VALIDATION_SHARE, 0.0)
        drawn = _drawn(splits["training"], [of[id(entry)] for entry in splits["training"]], shares, seed)
        splits |= {name: drawn[name] for name in ("training", "validation")}
        where = "The table names no" if table else "No folder names a"
        print(f"{where} validation split: {len(splits['validation'])} training files are held out for it.")
    return splits


def _places(folders: Sequence[Path], output: str | None, dataset_dir: str | None) -> tuple[Path, Path]:
    """The folder that paths are relative to, and the file to write, checked before anything is read."""
    roots = [folder.resolve() for folder in folders]
    beside = Path(output).resolve().parent if output else None
    if dataset_dir:
        base = Path(dataset_dir)
    elif beside and all(root.is_relative_to(beside) for root in roots):
        base = beside
    else:
        base = Path(os.path.commonpath(roots)) if roots else Path()
    file = Path(output) if output else base / DATALIST_NAME
    if not output and file.exists():
        try:
            description = str(read_datalist(file).get("description"))
        except ValueError:
            description = ""
        if not description.startswith(MAKER):
            raise ValueError(f"{file} is there and was not made by this tool; name another file by --output.")
    place = next(folder for folder in file.resolve().parents if folder.exists())
    if not os.access(place, os.W_OK):
        raise ValueError(f"{place} cannot be written to; name another file by --output.")
    return base, file


def _write(
    file: Path,
    base: Path,
    entries: Sequence[Entry],
    splits: dict[str, list[Entry]],
    left_out: dict[Path, str],
    description: str,
) -> None:
    """The JSON file, complete or not at all."""

    def relative(path: Path) -> str:
        return Path(os.path.relpath(path, base.resolve())).as_posix()  # the paths are of resolved folders

    def item(entry: Entry) -> dict[str, Any]:
        label = [relative(path) for path in entry.labels]
        values = {
            "image": relative(entry.path),
            "label": label[0] if len(label) == 1 else label or None,
            "fov": relative(entry.fov) if entry.fov else None,
            "organ": entry.organ,
            "patient": entry.patient,
            "num_frames": entry.num_frames,
        }
        return {key: value for key, value in values.items() if value is not None} | entry.extra

    content = {
        "name": file.stem,
        "description": description,
        "modality": {"0": "US"},
        "numTraining": len(splits["training"]),
        "numTest": len(splits["test"]),
        **{name: [item(entry) for entry in splits[name]] for name in SPLITS},
        "unreadable": [{"path": relative(e.path), "reason": e.unreadable} for e in entries if e.unreadable],
        "left_out": [{"path": relative(p), "reason": why} for p, why in left_out.items()],
    }
    write_text_atomically(file, json.dumps(content, indent=1, ensure_ascii=False) + "\n")


def _shares(text: str) -> tuple[float, ...] | None:
    """``"0.8/0.1/0.1"`` -> three shares; None for ``"folders"`` and ``"table"``."""
    if text in ("folders", "table"):
        return None
    try:
        shares = tuple(float(part) for part in text.split("/"))
    except ValueError:
        shares = ()
    if len(shares) != 3 or not min(shares) >= 0 or shares[0] <= 0 or not math.isclose(sum(shares), 1, abs_tol=1e-6):
        raise ValueError(
            f"split is 'folders', 'table' or three shares that sum to 1, such as 0.8/0.1/0.1; not {text!r}."
        )
    return shares


def _folded(name: str) -> str:
    """In small letters, composed: macOS decomposes those with accents."""
    return unicodedata.normalize("NFC", name).lower()


def _class_names(classes: Sequence[str] | str | None) -> list[str]:
    entries = [classes] if isinstance(classes, str) else classes or []
    names = [_folded(name.strip()) for entry in entries for name in entry.split(",") if name.strip()]
    if entries and (len(set(names)) != len(names) or len(names) < 2):
        raise ValueError(f"classes are two or more folder names, such as benign,malignant; not {','.join(entries)!r}.")
    return names
