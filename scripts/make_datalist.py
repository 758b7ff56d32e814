#!/usr/bin/env python
# Copyright (c) monai_usfm contributors
# SPDX-License-Identifier: Apache-2.0
"""Make a datalist (Decathlon-style JSON) from folders of ultrasound files.

    python scripts/make_datalist.py breast=data/busbra liver=data/liver_scans --output data/datalist.json

Every file is read once. What cannot be read is listed with the reason and left out. Files of one patient, identical
files and near-identical pictures (frames of one cine, re-exports) form a group, and no group crosses a split made here.

Masks are found by their folder or name, whichever way public data sets have: ``masks/a.png``, ``test-mask/a.jpg`` for
``test-image/a.jpg``, ``a_mask.png`` and ``a_mask_1.png`` (joined), ``Masks/mask_1.png`` for ``Images/bus_1.png``.
Where folders name the splits (train, val, test), ``--split folders`` keeps them; ``--classes benign,malignant`` takes
classes from folders.
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
from functools import cache
from pathlib import Path

import numpy as np
import pydicom
import torch

from monai_usfm.data import LoadUltrasound, UnreadableImageError
from monai_usfm.data.duplicates import difference_hash, joined_groups, near_duplicates
from monai_usfm.data.formats import SUPPORTED_SUFFIXES, file_format
from monai_usfm.data.splits import SPLITS
from monai_usfm.files import write_text_atomically
from monai_usfm.settings import split_named_path

LABEL_WORDS = {"mask", "masks", "label", "labels", "annotation", "annotations", "segmentation", "segmentations", "seg"}
LABEL_WORDS |= {"gt", "groundtruth", "ground", "truth"}
IMAGE_WORDS = {"image", "images", "img", "imgs", "frame", "frames", "data", "original", "originals"}
IMAGE_WORDS |= {"png", "jpg", "jpeg", "bmp", "tif", "nii", "nifti", "mha", "nrrd", "dicom"}
SPLIT_WORDS = {"train": "training", "training": "training", "trainval": "training", "tr": "training"}
SPLIT_WORDS |= {"val": "validation", "valid": "validation", "validation": "validation", "dev": "validation"}
SPLIT_WORDS |= {"test": "test", "testing": "test", "ts": "test"}
NO_ORGAN = {"set", "dataset", "database", "patient", "pat", "subject", "sub", "case", "study", "series", *SPLIT_WORDS}
LABEL_NAMES = "mask|label|annotation|segmentation|seg|gt|truth"
LABEL_ENDING = re.compile(rf"(?i)[ _-](?:{LABEL_NAMES})(?P<number>[ _-]?\d+)?$")
LABEL_BEGINNING = re.compile(rf"(?i)^(?:{LABEL_NAMES})[ _-]+")
IMAGE_ENDING = re.compile(r"(?i)[ _-](?:image|img|us|0000)$")  # the last one is nnU-Net's number of a channel
FIRST_WORD = re.compile(r"^[A-Za-z]+[ _-]+")
FOV_ENDINGS = ("_fov", "-fov")
DEFAULT_PATIENT = r"^.*?\d+"
FRAME_NAME = r"(?i)^(frame|slice|fr|t)[-_ ]?\d+$"
VALIDATION_SHARE = 0.1  # of the training files, where folders name no validation split


@dataclass
class Entry:
    """An image file and what was found out about it."""

    path: Path
    root: Path  # the folder of the command line it lies in
    organ: str
    patient: str | None = None
    labels: list[Path] = field(default_factory=list)  # several masks of one image are joined
    fov: Path | None = None
    extra: dict = field(default_factory=dict)
    digest: str = ""
    hash: np.ndarray = field(default_factory=lambda: np.zeros(256, dtype=bool))
    num_frames: int = 1
    unreadable: str = ""


def main(arguments: list[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    started = time.perf_counter()
    entries, others, unpaired = find_images(options.folders, options.classes)
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
    if options.split == "folders":
        sections = split_by_folders(readable, groups, options.seed)
    else:
        sections = split(readable, groups, options.split, options.seed)

    output = Path(options.output)
    base = Path(options.dataset_dir) if options.dataset_dir else common_base(entries, output.resolve().parent)
    write(output, base, entries, sections, options)
    report(entries, others, unpaired, groups, duplicates, sections, base, output, options)
    print(f"Read {len(entries)} files in {read:.1f} s, {time.perf_counter() - started:.1f} s in all.")
    if not readable:
        print("None of the files is readable.", file=sys.stderr)
        return 1
    return 0


def find_images(folders: list[str], classes: list[str] | None = None) -> tuple[list[Entry], int, list[Path]]:
    """All image files, masks paired with their images; the number of files of other types; masks without an image.

    The organ is ``NAME`` of a ``NAME=FOLDER`` argument, else the first folder below FOLDER whose name says something,
    else FOLDER's own name.
    """
    entries, others, unpaired = [], 0, []
    for argument in folders:
        organ, folder = split_named_path(argument)
        root = Path(folder).resolve()
        if not root.is_dir():
            raise SystemExit(f"{folder}: no such folder.")
        files = sorted(p for p in root.rglob("*") if p.is_file() and not p.name.startswith("."))
        paths = [path for path in files if is_image(path)]
        others += len(files) - len(paths)
        masks, found = Masks(root, paths), []
        for path in masks.images:
            parts = path.relative_to(root).parts[:-1]
            named = [part for part in parts if says_something(part) and part.lower() not in (classes or [])]
            entry = Entry(path, root, organ or (named[0] if named else root.name), labels=masks.of(path))
            entry.fov = masks.fov.get((path.parent, plain_stem(path)))
            for part in parts:
                if classes and part.lower() in classes:
                    entry.extra["class"] = classes.index(part.lower())
            found.append(entry)
        unpaired += sorted(masks.files - {path for entry in found for path in (*entry.labels, entry.fov)})
        entries += found
    return entries, others, unpaired


class Masks:
    """The mask files among ``paths``, and which of them belong to an image."""

    def __init__(self, root: Path, paths: list[Path]) -> None:
        self.images: list[Path] = []
        self.fov: dict[tuple[Path, str], Path] = {}
        self.named: dict[tuple[Path, str], list[Path]] = defaultdict(list)  # by folder and the image's name
        self.renamed: dict[tuple[Path, str], list[Path]] = defaultdict(list)  # of mask_1.png, by folder and "1"
        stems = {(path.parent, name) for path in paths for name in bare_names(path)}
        tails = {(folder, FIRST_WORD.sub("", stem)) for folder, stem in stems if not LABEL_BEGINNING.match(stem)}
        for path in paths:
            folder, stem = path.parent, plain_stem(path)
            below = len(folder.relative_to(root).parts)  # the name of FOLDER itself tells nothing
            apart = any(is_label_folder(part) for part in [folder, *folder.parents][:below])
            ending, beginning = LABEL_ENDING.search(stem), LABEL_BEGINNING.match(stem)
            bare = stem[: ending.start()] if ending else stem
            # a number after the word, or the word in front, says "mask" only where the image of it is there
            marked = ending and (ending["number"] is None or (folder, bare) in stems)
            if stem.lower().endswith(FOV_ENDINGS):
                self.fov[folder, stem[:-4]] = path
            elif apart or marked:
                self.named[folder, bare].append(path)
                if ending:
                    self.named.setdefault((folder, stem), [path])
                if beginning:
                    self.renamed[folder, stem[beginning.end() :]].append(path)
            elif beginning and (folder, stem[beginning.end() :]) in tails:
                self.renamed[folder, stem[beginning.end() :]].append(path)
            else:
                self.images.append(path)
        self.folders = sorted({folder for folder, _ in (*self.named, *self.renamed)})
        self.files = set(paths) - set(self.images)
        self.alike = Counter((path.parent, FIRST_WORD.sub("", plain_stem(path))) for path in self.images)

    def of(self, image: Path) -> list[Path]:
        """The masks of an image, of the first folder that has any."""
        names = bare_names(image)
        tail = FIRST_WORD.sub("", names[0])
        for folder in [image.parent, *(f for f in self.folders if is_counterpart(image.parent, f))]:
            found = next((self.named[folder, name] for name in names if (folder, name) in self.named), None)
            if not found and self.alike[image.parent, tail] == 1:
                found = self.renamed.get((folder, tail))
            if found:
                return found
        return []


def bare_names(path: Path) -> list[str]:
    """A file's name without its type, and without what may mark it as the image of a pair, as in a_0000.nii.gz."""
    stem = plain_stem(path)
    return [stem, IMAGE_ENDING.sub("", stem)] if IMAGE_ENDING.search(stem) else [stem]


def words_of(name: str) -> list[str]:
    return re.findall(r"[a-z]+|\d+", re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name).lower())


def core(name: str) -> list[str]:
    """The words of a folder's name that tell it from the others of a data set, images or labels."""
    return [word for word in words_of(name) if word not in LABEL_WORDS | IMAGE_WORDS]


def says_something(name: str) -> bool:
    """Whether a folder's name may be that of an organ."""
    return any(len(word) > 1 and word not in NO_ORGAN and not word.isdigit() for word in core(name))


@cache
def is_label_folder(folder: Path) -> bool:
    """By its name: ``masks``; or ``test-mask`` beside ``test-image``, but no ``Dataset_with_GT``."""
    if not LABEL_WORDS & set(words_of(folder.name)):
        return False
    others = (path.name for path in folder.parent.iterdir() if path.is_dir() and path != folder)
    return not core(folder.name) or any(
        core(name) == core(folder.name) and not LABEL_WORDS & set(words_of(name)) for name in others
    )


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
    if len(images.parts) != len(masks.parts):
        return False
    unlike = [(a, b) for a, b in zip(images.parts, masks.parts, strict=True) if a != b]
    return len(unlike) == 1 and (not core(unlike[0][1]) or core(unlike[0][0]) == core(unlike[0][1]))


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
    known = {row["image"].strip(): row for row in rows if row["image"]}
    used = 0
    for entry in entries:
        tails = ["/".join(entry.path.parts[-n:]) for n in range(len(entry.path.parts) - 1, 0, -1)]
        row = next((known[key] for key in [*tails, plain_stem(entry.path)] if key in known), None)
        if row is None:
            continue
        used += 1
        entry.organ = (row.get("organ") or "").strip() or entry.organ
        entry.patient = (row.get("patient") or row.get("patient_id") or "").strip() or None
        for key, value in row.items():
            if key and key not in ("image", "organ", "patient", "patient_id", "label") and value not in (None, ""):
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
            found = (match.group(1) if match.re.groups else match.group()) if match else None
            # a file that tells no patient is one by itself
            entry.patient = f"{entry.root.name}/{found or (below.parent / plain_stem(entry.path)).as_posix()}"


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


def section_of(entry: Entry) -> str | None:
    """The section that a folder's name gives a file, the nearest folder first; that of FOLDER counts too."""
    for part in (entry.root.name, *entry.path.relative_to(entry.root).parts[:-1])[::-1]:
        for word in words_of(part):
            if word in SPLIT_WORDS:
                return SPLIT_WORDS[word]
    return None


def split_by_folders(entries: list[Entry], groups: list[int], seed: int) -> dict[str, list[Entry]]:
    """As the folders say; where they name no validation, groups of the training files are held out for it."""
    sections: dict[str, list[Entry]] = {name: [] for name in SPLITS}
    training_groups: list[int] = []
    spread: dict[int, set[str]] = defaultdict(set)
    for entry, number in zip(entries, groups, strict=True):
        section = section_of(entry)
        if section is None:
            raise SystemExit(f"{entry.path}: no folder names its split; expected one of {', '.join(SPLIT_WORDS)}.")
        sections[section].append(entry)
        spread[number].add(section)
        if section == "training":
            training_groups.append(number)
    shared = sum(len(found) > 1 for found in spread.values())
    if shared:
        print(f"Note: {shared} groups (one patient, or nearly one picture) lie in several of the folders' splits.")
    if sections["training"] and not sections["validation"]:
        shares = (1 - VALIDATION_SHARE, VALIDATION_SHARE, 0.0)
        drawn = split(sections["training"], training_groups, shares, seed)
        sections["training"], sections["validation"] = drawn["training"], drawn["validation"]
        print(f"No folder names a validation split: {len(sections['validation'])} training files are held out for it.")
    return sections


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

    def relative(path: Path) -> str:
        return Path(os.path.relpath(path, base)).as_posix()

    def item(entry: Entry) -> dict:
        found: dict[str, str | list[str]] = {"image": relative(entry.path)}
        if entry.labels:
            label = [relative(path) for path in entry.labels]
            found["label"] = label[0] if len(label) == 1 else label
        if entry.fov:
            found["fov"] = relative(entry.fov)
        return {**found, "organ": entry.organ, "patient": entry.patient, "num_frames": entry.num_frames, **entry.extra}

    content = {
        "name": output.stem,
        "description": f"made by make_datalist.py; split {options.split}, seed {options.seed}",
        "modality": {"0": "US"},
        "numTraining": len(sections["training"]),
        "numTest": len(sections["test"]),
        **{name: [item(entry) for entry in found] for name, found in sections.items()},
        "unreadable": [{"path": relative(e.path), "reason": e.unreadable} for e in entries if e.unreadable],
    }
    write_text_atomically(output, json.dumps(content, indent=1) + "\n")


def report(
    entries: list[Entry],
    others: int,
    unpaired: list[Path],
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
    labelled = sum(bool(entry.labels) for entry in readable)
    moving = sum(entry.num_frames > 1 for entry in readable)
    print(f"{len(readable)} images: {labelled} with a label, {moving} volumes or cines; {others} other files ignored.")
    print(
        f"{len(set(groups))} groups that stay together: {len({e.patient for e in readable})} patients; "
        f"{duplicates['identical']} images have an identical and {duplicates['near']} a near-identical one "
        f"(at most {options.near_duplicate_bits} of 256 bits)."
    )
    joined = sum(len(entry.labels) > 1 for entry in readable)
    if joined:
        print(f"{joined} images have several masks, which are joined.")
    if unpaired:
        example = os.path.relpath(unpaired[0], base)
        print(f"{len(unpaired)} files look like masks and belong to no image, for example {example}: left out.")
    if options.classes:
        counts = Counter(entry.extra.get("class") for entry in readable)
        shown = ", ".join(f"{number} {name}: {counts[number]}" for number, name in enumerate(options.classes))
        print(f"Classes by folder: {shown}; {counts[None]} images lie in none of these folders.")
    given = {section_of(entry) for entry in readable} - {None}
    if options.split != "folders" and len(given) > 1:
        print(f"Note: folders name {' and '.join(sorted(given))} files, but the split is a new one (--split folders).")
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
    for name, share in zip(SPLITS, options.split if options.split != "folders" else (1, 1, 1), strict=True):
        if share > 0 and not sections[name]:
            why = "no folder is named so" if options.split == "folders" else "there are too few groups for it"
            print(f"Note: {name} is empty; {why}.")
    print(f"Wrote {output}. Use it with dataset_dir={base}.")


def _shares(text: str) -> tuple[float, ...] | str:
    if text == "folders":
        return text
    try:
        shares = tuple(float(part) for part in text.split("/"))
    except ValueError:
        shares = ()
    if len(shares) != 3 or min(shares) < 0 or shares[0] <= 0 or abs(sum(shares) - 1) > 1e-6:
        raise argparse.ArgumentTypeError(f"'folders', or three shares that sum to 1, such as 0.8/0.1/0.1; not {text!r}")
    return shares


def _names(text: str) -> list[str]:
    names = [name.strip().lower() for name in text.split(",") if name.strip()]
    if len(set(names)) != len(names) or len(names) < 2:
        raise argparse.ArgumentTypeError(f"two or more folder names, such as benign,malignant; not {text!r}")
    return names


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
    parser.add_argument("--classes", type=_names, help="folders that name the class, for 0, 1, ...: benign,malignant")
    parser.add_argument(
        "--split", type=_shares, default=_shares("0.8/0.1/0.1"), help="training/validation/test, or folders"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--near-duplicate-bits", type=int, default=12, help="of 256; 0 joins equal hashes only")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    return parser


if __name__ == "__main__":
    sys.exit(main())
