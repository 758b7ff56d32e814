# Copyright (c) monai_usfm contributors
# SPDX-License-Identifier: Apache-2.0
"""Search folders for images: what is one, what is left out and why; and mark folders of results as such."""

from __future__ import annotations

import os
import re
import unicodedata
from dataclasses import dataclass, field
from pathlib import Path

import pydicom.misc
from monai.config import PathLike
from pydicom.filereader import read_file_meta_info

from .formats import SUPPORTED_SUFFIXES, unreadable_reason

__all__ = ["mark_results"]

RESULTS_MARK = ".monai_usfm_results"
"""A file of this name says that a folder holds results, which are never inputs or labels."""
SKIPPED_FOLDERS = re.compile(
    r"(?i)^(\..*|@eadir|@recently-snapshot|#recycle|#snapshot|\$recycle\.bin|lost\+found|system volume information|"
    r"trash(es)?|__macosx|__pycache__|thumb(nail)?s?|_?thumbnails_?)$"
)
"""Folders of operating systems, editors and network storage: previews, copies and what was thrown away."""
SKIPPED_FILES = re.compile(r"(?i)^(\..*|thumbs\.db|ehthumbs.*\.db|desktop\.ini|icon\r)$")


@dataclass
class FoundFiles:
    """What :func:`find_files` found below a folder, sorted by path."""

    images: list[Path] = field(default_factory=list)
    others: dict[Path, str] = field(default_factory=dict)  # files that cannot be read as images, and the reason
    skipped: dict[Path, str] = field(default_factory=dict)  # folders that were not searched, and the reason

    def not_searched(self) -> str:
        """Further sentences of an error about images that lack: folders where they may be."""
        return "".join(f" Not searched: {path} ({reason})." for path, reason in list(self.skipped.items())[:3])


def find_files(folder: PathLike) -> FoundFiles:
    """All files below a folder, told apart.

    Linked folders are searched too, each folder once, whatever leads to it. Left out are folders of results
    (:func:`mark_results`), hidden ones and those of operating systems (``__MACOSX``, ``@eaDir``, ``.Trash``,
    ``thumbnails``), and hidden files. ``folder`` itself may be any of these: who names it wants it.

    Of DICOM, files without an ending are found as well. Directories (DICOMDIR), reports, presentation states and other
    objects without images are among ``others``.
    """
    root = Path(folder)
    found = FoundFiles()
    seen: set[str] = set()
    real, linked = [root], list[Path]()
    while real or linked:  # links come last, so that a folder is found by its own name where it has one below the root
        here = real.pop() if real else linked.pop()
        identity = os.path.realpath(here)
        if identity in seen:
            continue
        seen.add(identity)
        try:
            entries = sorted(os.scandir(here), key=lambda entry: entry.name, reverse=True)
        except OSError as error:
            found.skipped[here] = f"cannot be opened ({error.strerror})"
            continue
        for entry in entries:
            path = here / entry.name
            # of a link that leads to itself, or where it may not, the entry would raise
            if os.path.isdir(path) if entry.is_symlink() else entry.is_dir():
                if os.path.exists(path / RESULTS_MARK):
                    found.skipped[path] = f"results of monai_usfm, by the file {RESULTS_MARK}"
                elif SKIPPED_FOLDERS.match(entry.name):
                    found.skipped[path] = "hidden, or kept by the system"
                else:
                    (linked if entry.is_symlink() else real).append(path)
            elif not SKIPPED_FILES.match(entry.name):
                if not os.path.isfile(path):
                    found.others[path] = "a broken link" if entry.is_symlink() else "no regular file"
                elif reason := _why_no_image(path):
                    found.others[path] = reason
                else:
                    found.images.append(path)
    found.images.sort()
    found.others = dict(sorted(found.others.items()))
    found.skipped = dict(sorted(found.skipped.items()))
    return found


def mark_results(folder: PathLike, dataset_dir: PathLike | None = None) -> str:
    """Mark a folder, which is made where it lacks, as one of results: :func:`find_files` leaves it out.

    Args:
        folder: the ``output_dir`` of a run.
        dataset_dir: the images of the run.

    Returns:
        The folder.

    Raises:
        ValueError: when ``folder`` is ``dataset_dir``, or has images and no mark: they would be taken for results, and
            no tool would find them again.
    """
    mark = Path(folder) / RESULTS_MARK
    same = dataset_dir and os.path.realpath(folder) == os.path.realpath(dataset_dir)
    if same or (not mark.exists() and Path(folder).is_dir() and any(map(_is_image, Path(folder).iterdir()))):
        raise ValueError(
            f"{folder} holds images: results there could not be told from them; change the output folder, or, if these "
            f"are results, put an empty file {RESULTS_MARK} into it."
        )
    Path(folder).mkdir(parents=True, exist_ok=True)
    if not mark.exists():
        mark.write_text("Results of monai_usfm: no tool of it takes files of this folder for images or labels.\n")
    return str(folder)


def stem_of(path: PathLike) -> str:
    """A file's name without the ending of its type, composed (NFC): macOS decomposes letters with accents."""
    name = unicodedata.normalize("NFC", Path(path).name)
    ending = max((suffix for suffix in SUPPORTED_SUFFIXES if name.lower().endswith(suffix)), key=len, default="")
    return name[: len(name) - len(ending)]


def _is_image(path: Path) -> bool:
    return path.is_file() and not SKIPPED_FILES.match(path.name) and not _why_no_image(path)


def _why_no_image(path: Path) -> str:
    """Empty for an image; decided by the name, or else by the mark inside, and for DICOM by the kind of object."""
    named = path.name.lower().endswith(SUPPORTED_SUFFIXES)
    if not named and unreadable_reason(path):
        return "no image format that can be read"
    try:
        if not pydicom.misc.is_dicom(path):
            return ""
        kind = pydicom.uid.UID(str(read_file_meta_info(path).get("MediaStorageSOPClassUID", "")))
    except Exception:  # a damaged header: the reader tells what is wrong
        return ""
    pixels = "Image" in kind.name or "US Volume" in kind.name or kind.name == kind  # the last: unknown, private
    return "" if pixels else f"DICOM without an image: {kind.name}"
