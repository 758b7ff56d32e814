# Copyright (c) monai_usfm contributors
# SPDX-License-Identifier: Apache-2.0
"""The lists of images that a bundle works on: the user's, or simulated ones where none are given."""

from __future__ import annotations

import hashlib
import logging
import math
import os
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from monai.data.folder_layout import default_name_formatter

from monai_usfm.data.datalist import (
    DATALIST_NAME,
    SPLITS,
    check_patient_leak,
    load_datalist,
    read_datalist,
    with_patient,
)
from monai_usfm.data.folders import find_files
from monai_usfm.data.formats import SUPPORTED_SUFFIXES
from monai_usfm.data.pairing import Masks
from monai_usfm.data.patients import patient_key, written_alike
from monai_usfm.data.reader import dataset_full_scale
from monai_usfm.simulation import write_synthetic_dataset

__all__ = ["list_images", "load_splits", "result_name", "results_root", "spread_frames"]

READING = ("spacing", "full_scale", "foreground", "background", "roi")
"""What an item may tell of its file, for reading it, and which structure of it is meant."""

logger = logging.getLogger(__name__)


def load_splits(
    dataset_dir: str | os.PathLike | None = None,
    datalist: str | os.PathLike | None = None,
    *,
    synthetic_dir: str | os.PathLike,
    synthetic: dict[str, Any] | None = None,
    splits: Sequence[str] = ("training", "validation"),
    required: Sequence[str] = ("image",),
    holdout: float = 0.05,
    check_files: bool = True,
    full_scale: float | None = None,
    apart: Sequence[str] = ("image",),
) -> dict[str, list[dict[str, Any]]]:
    """Lists of items with absolute paths, by split; no patient and no file is in two splits of the datalist.

    Of the splits ``training``, ``validation`` and ``test`` all are compared, also those that are not asked for: a
    patient of the test list must not be trained on. Items name their patient under ``patient`` (or ``patient_id``,
    which is copied to it); those that do not are compared by file.

    Args:
        dataset_dir: folder that relative paths start from; its ``dataset.json`` is read where no ``datalist`` is given.
        datalist: Decathlon-style JSON file; paths are relative to ``dataset_dir``, or to its own folder without one.
        synthetic_dir: where simulated images are written when neither of the two is given.
        synthetic: arguments of :func:`~monai_usfm.data.write_synthetic_dataset`.
        splits: wanted splits.
        required: keys that every item must have.
        holdout: a list without ``validation`` gives this share of its training items to it, chosen by a hash of the
            patient (of the file name where no patient is known), so that it does not change from run to run; at least
            one patient of each class that has two. Where no class has two, all are in both.
        check_files: see :func:`~monai_usfm.data.load_datalist`.
        full_scale: value of white of items that do not tell theirs; None decides by the training images, see
            :func:`common_full_scale`.
        apart: keys of files of which none may stand in two splits.

    Raises:
        FileNotFoundError, ValueError: see :func:`~monai_usfm.data.load_datalist`.
        ValueError: for a patient or a file in two splits, see :func:`~monai_usfm.data.check_patient_leak`.
    """
    if not dataset_dir and not datalist:
        datalist = simulated_list(synthetic_dir, synthetic)
        dataset_dir = Path(datalist).parent
    elif not datalist:
        datalist = Path(str(dataset_dir)) / DATALIST_NAME

    present = _splits(datalist, Path(dataset_dir or Path(datalist).parent), apart)
    check_patient_leak(present, apart)
    sample = next((present[split] for split in (*SPLITS, *splits) if present.get(split)), [])
    full_scale = common_full_scale(sample) if full_scale is None else full_scale

    def read(split: str) -> list[dict[str, Any]]:
        items = load_datalist(datalist, dataset_dir or None, split, required=required, check_files=check_files)
        return with_full_scale(items, full_scale) if full_scale else items

    if "validation" not in splits or present.get("validation"):
        return {split: read(split) for split in splits}
    lists = {split: read(split) for split in splits if split != "validation"}
    training = lists.get("training") or read("training")
    shares = _shares(training)
    held_shares = _held_out(training, shares, holdout)
    held = [item for item, share in zip(training, shares, strict=True) if share in held_shares]
    kept = [item for item, share in zip(training, shares, strict=True) if share not in held_shares]
    if not (kept and held):
        logger.warning("%s has no patient to spare: all are trained on and validated.", datalist)
        kept = held = training
    logger.info("%s has no validation split: holding out %d of %d items.", datalist, len(held), len(training))
    lists["validation"] = held
    if "training" in lists:
        lists["training"] = kept
    return lists


def simulated_list(synthetic_dir: str | os.PathLike, synthetic: Mapping[str, Any] | None, of: str = "") -> Path:
    """The datalist of simulated images, written where the user gives none; ``of`` says for what, in the warning."""
    logger.warning(
        "%sno dataset_dir given: running on SIMULATED ultrasound images in %s. Give dataset_dir (and datalist) for "
        "real ones.",
        of,
        synthetic_dir,
    )
    return write_synthetic_dataset(synthetic_dir, **(synthetic or {}))


def common_full_scale(items: Sequence[dict[str, Any]]) -> float | None:
    """The value of white that the files of a data set share where they do not tell it, decided once and reported.

    None where the files tell, or the list by ``full_scale`` of an item; see
    :func:`~monai_usfm.data.dataset_full_scale`.
    """
    if any(item.get("full_scale") is not None for item in items):
        return None
    files = [item["image"] for item in items if isinstance(item.get("image"), str)]
    white = dataset_full_scale(files, sample=16)
    if white:
        logger.warning(
            "the files do not tell their value of white: %g is taken for the whole data set, by the brightest of 16. "
            "Another one: full_scale of the items in the datalist, or that option of a training with labels.",
            white,
        )
    return white


def with_full_scale(items: Sequence[dict[str, Any]], full_scale: float | None = None) -> list[dict[str, Any]]:
    """Items that tell the value of white of their files: one of their own, ``full_scale``, or that of them all.

    Args:
        items: of a datalist.
        full_scale: value of white of the images that a network was trained on; None decides by these images, see
            :func:`common_full_scale`.
    """
    white = common_full_scale(items) if full_scale is None else full_scale
    return [{**item, "full_scale": white} if white and item.get("full_scale") is None else item for item in items]


def spread_frames(items: Sequence[dict[str, Any]], count: int) -> list[dict[str, Any]]:
    """Cines as single frames: of an item that tells ``num_frames``, ``count`` items with evenly spread frames.

    Items of one frame, or that name their ``frame``, stay as they are.

    Raises:
        ValueError: for a count below 1.
    """
    if count < 1:
        raise ValueError(f"count must be at least 1, got {count}.")
    spread: list[dict[str, Any]] = []
    for item in items:
        frames = int(item.get("num_frames") or 1)
        if frames < 2 or item.get("frame") is not None:
            spread.append(item)
            continue
        shown = min(count, frames)
        spread += [{**item, "frame": (2 * i + 1) * frames // (2 * shown)} for i in range(shown)]
    return spread


def list_images(
    dataset_dir: str | os.PathLike,
    datalist: str | os.PathLike | None = None,
    split: str = "test",
    image_key: str = "image",
) -> list[dict[str, Any]]:
    """Items to run inference on: a split of a datalist, or every image file below a folder.

    Of a datalist each image once (of recorded pairs ``image_key`` names the entry), with what is needed to read it
    (``spacing``, ``full_scale``) and its patient where all have one: what else its items have need not collate. Below
    a folder what is no image, and what is left out (:func:`~monai_usfm.data.folders.find_files`: results of our tools,
    hidden files and such; masks of the images, told as ``monai-usfm datalist`` tells them), is named in a warning.

    Raises:
        FileNotFoundError: when the folder does not exist or holds no image.
    """
    return _images(dataset_dir, datalist, split, logger.warning, image_key)


def _images(
    dataset_dir: str | os.PathLike,
    datalist: str | os.PathLike | None,
    split: str,
    warn: Callable[..., None],
    image_key: str = "image",
) -> list[dict[str, Any]]:
    if datalist:
        items = load_datalist(datalist, dataset_dir or None, split, required=(image_key,))
        if any(item.get("frame") is not None for item in items):
            warn("%s names frames, as training reads them; inference takes the middle frame of every cine.", datalist)
        patients = all(item.get("patient") is not None for item in items)
        once = {str(item[image_key]): item for item in reversed(items)}  # several frames of one cine are one result
        return [
            {"image": str(item[image_key])}
            | ({"patient": str(item["patient"])} if patients else {})
            | {key: item[key] for key in READING if item.get(key) is not None}
            for item in reversed(once.values())
        ]
    folder = Path(str(dataset_dir))
    found = find_files(folder)
    if not found.images:
        raise FileNotFoundError(
            f"{folder}: no image files ({', '.join(SUPPORTED_SUFFIXES)}); give the folder that holds them."
            f"{found.not_searched()}"
        )
    named = Masks(folder, found.images)
    masks = {path for image in named.images for path in (*named.of(image), named.fov_of(image)) if path}
    masks |= named.of_parts
    left_out = {**found.skipped, **found.others, **dict.fromkeys(sorted(masks), "masks of images, by their names")}
    for reason in dict.fromkeys(left_out.values()):
        names = [path.relative_to(folder).as_posix() for path in left_out if left_out[path] == reason]
        warn("%s: left out, %s: %s%s", folder, reason, ", ".join(names[:10]), " ..." if len(names) > 10 else "")
    return [{"image": str(file)} for file in found.images if file not in masks]


def results_root(
    dataset_dir: str | os.PathLike,
    datalist: str | os.PathLike | None = None,
    split: str = "test",
    image_key: str = "image",
) -> str:
    """The ``data_root_dir`` of :class:`monai.transforms.SaveImaged` for the results of :func:`list_images`.

    Empty, which puts all results into one folder, where every image has a name of its own; where names repeat, the
    folder whose subfolders the results repeat. Empty also without images: then there is nothing to save.

    Raises:
        ValueError: for two images of one folder whose results would have one name.
    """
    try:
        items = _images(dataset_dir, datalist, split, lambda *_: None, image_key)
    except (FileNotFoundError, ValueError):
        return ""  # who lists them to read them is told what is wrong
    files = [Path(str(item["image"])) for item in items]
    stems = [Path(_with_ending(file.name).removesuffix(".gz")).stem for file in files]
    if len(set(stems)) == len(stems):
        return ""
    places: dict[tuple[Path, str], Path] = {}
    for file, stem in zip(files, stems, strict=True):
        if (other := places.setdefault((file.parent, stem), file)) is not file:
            raise ValueError(
                f"the results of {other} and {file.name} would have one name; rename one of them, or move it."
            )
    return os.path.commonpath([os.path.abspath(file.parent) for file in files])


def result_name(meta: dict[str, Any], saver: Any) -> dict[str, Any]:
    """The ``output_name_formatter`` of :class:`monai.transforms.SaveImaged` that cuts no number off a UID.

    A DICOM file without an ending is often named by its UID, whose last number MONAI would take for an ending.
    """
    named = default_name_formatter(meta, saver)
    return {**named, "subject": _with_ending(str(named["subject"]))}


def _with_ending(name: str) -> str:
    return name if name.lower().endswith(SUPPORTED_SUFFIXES) else f"{name}.dcm"


def _splits(datalist: str | os.PathLike, base: Path, apart: Sequence[str]) -> dict[str, list[dict[str, Any]]]:
    """The splits of a datalist; of a file that the reader will refuse, what there is.

    Images by their path below ``base``: one may stand in one split by its whole path and in another by its name.
    """
    try:
        content = read_datalist(datalist)
    except (OSError, ValueError):
        return {}  # the reader explains what is wrong
    found = {name: content.get(name) for name in SPLITS}

    def known(entry: str | dict[str, Any]) -> dict[str, Any]:
        item = with_patient({"image": entry} if isinstance(entry, str) else entry)
        files = {key: item[key] for key in apart if isinstance(item.get(key), str) and item[key]}
        return {**item, **{key: os.path.normpath(base / file) for key, file in files.items()}}

    return {
        name: [known(entry) for entry in entries]
        for name, entries in found.items()
        if isinstance(entries, list) and all(isinstance(entry, str | dict) for entry in entries)
    }


def _held_out(items: Sequence[dict[str, Any]], shares: Sequence[float], holdout: float) -> set[float]:
    """The shares (:func:`_shares`) of the patients for validation: those below ``holdout``, else the smallest.

    Each class that has two patients gives one, and keeps one.
    """
    of_class: dict[str, set[float]] = defaultdict(set)
    for item, share in zip(items, shares, strict=True):
        of_class[str(item.get("class"))].add(share)
    held, kept = set[float](), set[float]()
    for found in of_class.values():
        if len(found) > 1 or len(of_class) == 1:
            limit = max(holdout, math.nextafter(min(found), 1))  # a short list gives one patient too
            held |= {share for share in found if share < limit}
            kept.add(max(found))
    return held - kept


def _shares(items: Sequence[dict[str, Any]]) -> list[float]:
    """For each item a number in [0, 1) that depends on its patient, or else its file name, alone."""
    names = [
        Path(str(item["image"])).name if patient_key(patient) is None else str(patient)
        for item, patient in zip(items, written_alike(items), strict=True)
    ]
    return [int.from_bytes(hashlib.sha256(name.encode()).digest()[:6], "big") / 2**48 for name in names]
