#!/usr/bin/env python
# Copyright (c) monai_usfm contributors
# SPDX-License-Identifier: Apache-2.0
"""Make a datalist (Decathlon-style JSON) from folders of ultrasound files.

    python scripts/make_datalist.py breast=data/busbra liver=data/liver_scans --output data/datalist.json

Every file is read once. What cannot be read is listed with the reason and left out. Files of one patient, identical
files and near-identical pictures (frames of one cine, re-exports) form a group, and no group crosses a split.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import json
import os
import re
import sys
import time
import warnings
from collections import Counter, defaultdict
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pydicom
import torch

from monai_usfm.data import LoadUltrasound, UnreadableImageError
from monai_usfm.data.duplicates import difference_hash, joined_groups, near_duplicates
from monai_usfm.data.loading import SUPPORTED_SUFFIXES, file_format
from monai_usfm.data.sections import SPLITS
from monai_usfm.files import write_text_atomically

LABEL_FOLDERS = {"mask", "masks", "label", "labels", "annotation", "annotations", "segmentation", "segmentations", "gt"}
IMAGE_FOLDERS = {"image", "images", "img", "imgs", "frame", "frames", "data", "train", "training", "val", "test", "png"}
LABEL_ENDINGS = ("_mask", "-mask", "_label", "-label", "_seg", "-seg", "_segmentation", "_annotation", "_gt")
FOV_ENDINGS = ("_fov", "-fov")
DEFAULT_PATIENT = r"^.*?\d+"
FRAME_NAME = r"(?i)^(frame|slice|fr|t)[-_ ]?\d+$"


@dataclass
class Entry:
    """An image file and what was found out about it."""

    path: Path
    root: Path  # the folder of the command line it lies in
    organ: str
    patient: str | None = None
    label: Path | None = None
    fov: Path | None = None
    extra: dict = field(default_factory=dict)
    digest: str = ""
    hash: np.ndarray = field(default_factory=lambda: np.zeros(256, dtype=bool))
    num_frames: int = 1
    unreadable: str = ""


def main(arguments: list[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    started = time.perf_counter()
    entries, others = find_images(options.folders)
    if not entries:
        print(f"No image files in {', '.join(options.folders)}; supported are {', '.join(SUPPORTED_SUFFIXES)}.")
        return 1
    if options.organ_csv:
        apply_csv(entries, options.organ_csv)
    with ThreadPoolExecutor(options.workers) as pool:
        list(pool.map(inspect, entries))
    read = time.perf_counter() - started
    name_patients(entries, options.patient_regex)
    readable = [entry for entry in entries if not entry.unreadable]
    groups, duplicates = group(readable, options.near_duplicate_bits)
    sections = split(readable, groups, options.split, options.seed)

    output = Path(options.output)
    base = Path(options.dataset_dir) if options.dataset_dir else common_base(entries, output.resolve().parent)
    write(output, base, entries, sections, options)
    report(entries, others, groups, duplicates, sections, base, output, options)
    print(f"Read {len(entries)} files in {read:.1f} s, {time.perf_counter() - started:.1f} s in all.")
    if not readable:
        print("None of the files is readable.", file=sys.stderr)
        return 1
    return 0


def find_images(folders: list[str]) -> tuple[list[Entry], int]:
    """All image files, masks paired with their images, and the number of files of other types.

    The organ is ``NAME`` of a ``NAME=FOLDER`` argument, else the first folder below FOLDER whose name says something,
    else FOLDER's own name.
    """
    entries, others = [], 0
    for argument in folders:
        organ, _, folder = argument.rpartition("=")
        root = Path(folder).resolve()
        if not root.is_dir():
            raise SystemExit(f"{folder}: no such folder.")
        images, masks = [], {}
        for path in sorted(p for p in root.rglob("*") if p.is_file() and not p.name.startswith(".")):
            parts = path.relative_to(root).parts[:-1]
            stem = plain_stem(path)
            if not is_image(path):
                others += 1
            elif stem.lower().endswith(FOV_ENDINGS):
                masks[path.parent, stem[:-4], "fov"] = path
            elif any(part.lower() in LABEL_FOLDERS for part in parts) or stem.lower().endswith(LABEL_ENDINGS):
                bare = next((stem[: -len(e)] for e in LABEL_ENDINGS if stem.lower().endswith(e)), stem)
                masks[path.parent, bare, "label"] = path
                masks.setdefault((path.parent, stem, "label"), path)
            else:
                images.append(path)
        places = {place for place, _, kind in masks if kind == "label"}
        for path in images:
            named = [part for part in path.relative_to(root).parts[:-1] if part.lower() not in IMAGE_FOLDERS]
            entry = Entry(path, root, organ or (named[0] if named else root.name))
            entry.fov = masks.get((path.parent, plain_stem(path), "fov"))
            for place in [path.parent, *sorted(p for p in places if is_counterpart(path.parent, p))]:
                entry.label = entry.label or masks.get((place, plain_stem(path), "label"))
            entries.append(entry)
    return entries, others


def is_image(path: Path) -> bool:
    if path.name.lower().endswith(SUPPORTED_SUFFIXES):
        return True
    if path.suffix and not path.suffix[1:].isdigit():  # DICOM often has no ending, or ends in a UID's last number
        return False
    return path.stat().st_size > 132 and pydicom.misc.is_dicom(path)


def is_counterpart(images: Path, masks: Path) -> bool:
    """Whether ``masks`` is the folder for the labels of ``images``: equal but for one component, or just below it."""
    if masks.parent == images:
        return True
    a, b = images.parts, masks.parts
    return len(a) == len(b) and sum(x != y for x, y in zip(a, b, strict=True)) == 1


def plain_stem(path: Path) -> str:
    name = path.name
    ending = max((e for e in SUPPORTED_SUFFIXES if name.lower().endswith(e)), key=len, default="")
    return name[: len(name) - len(ending)]


def apply_csv(entries: list[Entry], file: str) -> None:
    """Organ, patient and further columns from a CSV with a column ``image``: a path's end, a file name or its stem."""
    with open(file, newline="", encoding="utf-8-sig") as stream:
        rows = list(csv.DictReader(stream))
    if not rows or "image" not in rows[0]:
        raise SystemExit(f"{file}: needs a header line with 'image' and, for example, 'organ', 'patient', 'class'.")
    known = {row["image"].strip(): row for row in rows}
    used = 0
    for entry in entries:
        tails = ["/".join(entry.path.parts[-n:]) for n in range(len(entry.path.parts) - 1, 0, -1)]
        row = next((known[key] for key in [*tails, plain_stem(entry.path)] if key in known), None)
        if row is None:
            continue
        used += 1
        entry.organ = (row.get("organ") or "").strip() or entry.organ
        entry.patient = (row.get("patient") or "").strip() or None
        for key, value in row.items():
            if key and key not in ("image", "organ", "patient", "label") and value not in (None, ""):
                entry.extra[key] = int(value) if re.fullmatch(r"-?\d+", value.strip()) else value.strip()
    print(f"{file}: {used} of {len(rows)} rows belong to a file, {len(entries) - used} files have no row.")


def inspect(entry: Entry) -> None:
    """Read a file once: is it sound, how many frames, what does it look like."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            img = LoadUltrasound(dtype=torch.uint8)(entry.path)
            if entry.patient is None and file_format(entry.path) == "dicom":
                identity = str(pydicom.dcmread(entry.path, stop_before_pixels=True).get("PatientID") or "")
                if any(c.isalnum() for c in identity):  # the datalist names nobody
                    entry.patient = "dicom-" + hashlib.sha256(identity.encode()).hexdigest()[:12]
        entry.num_frames = int(getattr(img, "meta", {}).get("num_frames", 1))
        entry.digest = hashlib.sha256(repr(img.shape).encode() + img.numpy().tobytes()).hexdigest()
        entry.hash = difference_hash(img)
    except UnreadableImageError as error:
        entry.unreadable = error.reason


def name_patients(entries: list[Entry], regex: str | None) -> None:
    """Patient of each file, where neither the CSV nor a DICOM header told.

    With a regular expression: its first group, or the whole match, in the path below FOLDER. Without: the file's name
    up to its first number, within its folder; for names like ``frame_012`` the folder itself.
    """
    for entry in entries:
        if entry.patient is not None:
            continue
        below = entry.path.relative_to(entry.root)
        if regex is None:
            stem = plain_stem(entry.path)
            match = re.match(DEFAULT_PATIENT, stem)
            name = "" if re.match(FRAME_NAME, stem) else match.group() if match else stem
            entry.patient = Path(entry.root.name, below.parent, name).as_posix()
        else:
            match = re.search(regex, below.as_posix())
            found = (match.group(1) if match.re.groups else match.group()) if match else below.as_posix()
            entry.patient = f"{entry.root.name}/{found}"


def group(entries: list[Entry], bits: int) -> tuple[list[int], dict[str, int]]:
    """Group number of each file, and how many files are copies or near-copies of another."""
    near = near_duplicates([entry.hash for entry in entries], bits)
    copies = Counter(entry.digest for entry in entries)
    counts = {
        "identical": sum(number for number in copies.values() if number > 1),
        "near": len({item for pair in near for item in pair}),
    }
    keys: list[list[str | None]] = [[entry.digest for entry in entries], [entry.patient for entry in entries]]
    return joined_groups(len(entries), near, keys), counts


def split(entries: list[Entry], groups: list[int], shares: tuple[float, ...], seed: int) -> dict[str, list[Entry]]:
    """Whole groups to the sections, organ by organ, each to the section that lacks most of its share."""
    members: dict[int, list[Entry]] = defaultdict(list)
    for entry, number in zip(entries, groups, strict=True):
        members[number].append(entry)
    by_organ: dict[str, list[list[Entry]]] = defaultdict(list)
    for found in members.values():
        by_organ[Counter(entry.organ for entry in found).most_common(1)[0][0]].append(found)
    sections: dict[str, list[Entry]] = {name: [] for name in SPLITS}
    for organ in sorted(by_organ):
        total = sum(len(found) for found in by_organ[organ])
        filled = dict.fromkeys(SPLITS, 0)
        wanted = {name: share for name, share in zip(SPLITS, shares, strict=True) if share > 0}

        def order(found: list[Entry]) -> tuple[int, str]:  # large groups first, while there is room everywhere
            return -len(found), hashlib.sha256(f"{seed}:{found[0].patient}".encode()).hexdigest()

        for found in sorted(by_organ[organ], key=order):
            name = max(wanted, key=lambda n: (wanted[n] * total - filled[n], wanted[n]))
            filled[name] += len(found)
            sections[name] += found
    return {name: sorted(found, key=lambda entry: entry.path) for name, found in sections.items()}


def common_base(entries: list[Entry], beside: Path) -> Path:
    """The datalist's own folder where all files lie below it, else the folder that holds them all."""
    roots = {entry.root for entry in entries}
    if all(root.is_relative_to(beside) for root in roots):
        return beside
    return Path(os.path.commonpath([*roots]))


def write(
    output: Path, base: Path, entries: list[Entry], sections: dict[str, list[Entry]], options: argparse.Namespace
) -> None:
    """The JSON file, complete or not at all."""

    def item(entry: Entry) -> dict:
        paths = {"image": entry.path, "label": entry.label, "fov": entry.fov}
        found = {key: Path(os.path.relpath(path, base)).as_posix() for key, path in paths.items() if path}
        return {**found, "organ": entry.organ, "patient": entry.patient, "num_frames": entry.num_frames, **entry.extra}

    content = {
        "name": output.stem,
        "description": f"made by make_datalist.py; split {options.split}, seed {options.seed}",
        "modality": {"0": "US"},
        "numTraining": len(sections["training"]),
        "numTest": len(sections["test"]),
        **{name: [item(entry) for entry in found] for name, found in sections.items()},
        "unreadable": [
            {"path": Path(os.path.relpath(e.path, base)).as_posix(), "reason": e.unreadable}
            for e in entries
            if e.unreadable
        ],
    }
    write_text_atomically(output, json.dumps(content, indent=1) + "\n")


def report(
    entries: list[Entry],
    others: int,
    groups: list[int],
    duplicates: dict[str, int],
    sections: dict[str, list[Entry]],
    base: Path,
    output: Path,
    options: argparse.Namespace,
) -> None:
    """Print what a person would check before training on the list."""
    width = max(len(entry.organ) for entry in entries)
    print(f"{'organ':<{width}} {'training':>10} {'validation':>10} {'test':>10}   (images / patients)")
    for organ in sorted({entry.organ for entry in entries}):
        cells = []
        for name in SPLITS:
            found = [entry for entry in sections[name] if entry.organ == organ]
            cells.append(f"{len(found)}/{len({entry.patient for entry in found})}")
        print(f"{organ:<{width}} " + " ".join(f"{cell:>10}" for cell in cells))
    readable = [entry for entry in entries if not entry.unreadable]
    labelled = sum(entry.label is not None for entry in readable)
    moving = sum(entry.num_frames > 1 for entry in readable)
    print(f"{len(readable)} images: {labelled} with a label, {moving} volumes or cines; {others} other files ignored.")
    print(
        f"{len(set(groups))} groups that stay together: {len({e.patient for e in readable})} patients; "
        f"{duplicates['identical']} images have an identical and {duplicates['near']} a near-identical one "
        f"(at most {options.near_duplicate_bits} of 256 bits)."
    )
    sizes = Counter(groups)
    if sizes and max(sizes.values()) > max(20, 0.2 * len(readable)):
        largest, number = sizes.most_common(1)[0]
        example = readable[largest]
        print(
            f"Note: one group holds {number} images (patient {example.patient!r}, {example.path.name}); "
            "if that is wrong, give --patient-regex or lower --near-duplicate-bits."
        )
    if options.patient_regex is None and any(not str(e.patient).startswith("dicom-") for e in readable):
        example = readable[0]
        print(f"Patients are guessed from file names: {example.path.name} is of {example.patient!r} (--patient-regex).")
    unreadable = [entry for entry in entries if entry.unreadable]
    if unreadable:
        print(f"{len(unreadable)} files are unreadable and left out:")
        for entry in unreadable:
            print(f"  {os.path.relpath(entry.path, base)}: {entry.unreadable}")
    for name, share in zip(SPLITS, options.split, strict=True):
        if share > 0 and not sections[name]:
            print(f"Note: {name} is empty; there are too few groups for it.")
    print(f"Wrote {output}. Use it with dataset_dir={base}.")


def _shares(text: str) -> tuple[float, ...]:
    try:
        shares = tuple(float(part) for part in text.split("/"))
    except ValueError:
        shares = ()
    if len(shares) != 3 or min(shares) < 0 or shares[0] <= 0 or abs(sum(shares) - 1) > 1e-6:
        raise argparse.ArgumentTypeError(f"three shares that sum to 1, such as 0.8/0.1/0.1, not {text!r}")
    return shares


def _regex(text: str) -> str:
    try:
        re.compile(text)
    except re.error as error:
        raise argparse.ArgumentTypeError(f"not a regular expression: {error}") from error
    return text


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="+", metavar="[ORGAN=]FOLDER", help="searched with all folders below it")
    parser.add_argument("--output", default="datalist.json")
    parser.add_argument(
        "--dataset-dir", help="folder the paths are relative to; default: the output's, or a common one"
    )
    parser.add_argument("--organ-csv", help="columns image and organ; patient, class and others are taken over")
    parser.add_argument("--patient-regex", type=_regex, help="finds the patient in the path below FOLDER")
    parser.add_argument("--split", type=_shares, default=_shares("0.8/0.1/0.1"), help="training/validation/test")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--near-duplicate-bits", type=int, default=12, help="of 256; 0 joins equal hashes only")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    return parser


if __name__ == "__main__":
    sys.exit(main())
