# Copyright (c) monai_usfm contributors
# SPDX-License-Identifier: Apache-2.0
"""Which files are images: their formats by name and content, and what is refused before a byte is decoded."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from monai.config import PathLike

__all__ = ["SUPPORTED_SUFFIXES", "UnreadableImageError", "unreadable_reason"]

_FORMATS: dict[str, tuple[str, ...]] = {
    "image": (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".gif", ".webp"),
    "video": (".avi", ".mp4", ".m4v", ".mov", ".mkv", ".webm", ".mpg", ".mpeg", ".wmv"),
    "nifti": (".nii", ".nii.gz"),
    "metaimage": (".mha", ".mhd"),
    "nrrd": (".nrrd", ".nhdr"),
    "dicom": (".dcm", ".dicom", ".ima"),
}
SUPPORTED_SUFFIXES: tuple[str, ...] = tuple(suffix for suffixes in _FORMATS.values() for suffix in suffixes)
"""Lower-case file endings that are read. DICOM and images are also known by their content, without an ending."""
DICOM_SUFFIXES = _FORMATS["dicom"]

_MARKS: tuple[tuple[bytes, str], ...] = (
    (b"\x89PNG\r\n\x1a\n", "image"),
    (b"\xff\xd8\xff", "image"),
    (b"GIF8", "image"),
    (b"II*\x00", "image"),
    (b"MM\x00*", "image"),
    (b"II+\x00", "image"),  # TIFF beyond 4 GB
    (b"MM\x00+", "image"),
)

MAX_PIXELS = int(os.environ.get("MONAI_USFM_MAX_PIXELS", 50_000_000))
"""Pixels (rows times columns) of one frame beyond which a file is refused; the environment variable sets another."""

_MAX_VALUES_PER_PIXEL = 40  # values of a whole file: 2e9 by default, so that no header asks for more than the memory


class UnreadableImageError(ValueError):
    """A file that cannot be used.

    ``reason`` says what is wrong and how to put it right.
    """

    def __init__(self, path: PathLike, reason: str) -> None:
        super().__init__(str(path), reason)  # both arguments, so that the error survives pickling between processes
        self.path = str(path)
        self.reason = reason

    def __str__(self) -> str:
        return f"{self.path}: {self.reason}"


def file_format(path: PathLike) -> str:
    """One of the kinds of ``_FORMATS``, by the file's ending or the mark inside it.

    What is missing, a folder, a pipe or device, empty, or of another type is an :class:`UnreadableImageError`.
    """
    file = Path(path)
    try:
        status = file.stat()
    except FileNotFoundError:
        raise UnreadableImageError(path, "no such file; check dataset_dir and the datalist.") from None
    except OSError as error:
        raise UnreadableImageError(path, f"cannot be opened ({error.strerror}); check its name and rights.") from None
    if stat.S_ISDIR(status.st_mode):
        raise UnreadableImageError(path, "is a folder, not an image file.")
    if not stat.S_ISREG(status.st_mode):  # opening a pipe would wait for ever
        raise UnreadableImageError(path, "is a pipe, socket or device, not an image file; leave it out.")
    if status.st_size == 0:
        raise UnreadableImageError(path, "an empty file (0 bytes); copy it again or leave it out.")
    name = file.name.lower()
    for kind, suffixes in _FORMATS.items():
        if name.endswith(suffixes):
            return kind
    try:
        with open(file, "rb") as stream:
            start = stream.read(132)
    except OSError as error:
        raise UnreadableImageError(path, f"cannot be read ({error.strerror}); check its rights.") from None
    if start[128:] == b"DICM":
        return "dicom"
    for mark, kind in _MARKS:
        if start.startswith(mark):
            return kind
    raise UnreadableImageError(path, f"unsupported file type; supported are {', '.join(SUPPORTED_SUFFIXES)}.")


def unreadable_reason(path: PathLike) -> str | None:
    """Why a file is no image for us, by its type alone; ``None`` for one that :func:`file_format` knows.

    For tools that list folders, which name what they leave out with this reason.
    """
    try:
        file_format(path)
    except UnreadableImageError as error:
        return error.reason
    return None


def check_size(path: PathLike, width: int, height: int, frames: int = 1) -> None:
    """Refuse, before decoding, what would take minutes or the whole memory: see :data:`MAX_PIXELS`."""
    if width * height > MAX_PIXELS or width * height * frames > MAX_PIXELS * _MAX_VALUES_PER_PIXEL:
        raise UnreadableImageError(
            path,
            f"has {width} x {height} pixels{f' in {frames} frames' if frames > 1 else ''}, more than the "
            f"{MAX_PIXELS:,} a frame and {MAX_PIXELS * _MAX_VALUES_PER_PIXEL:,} a file that are read; make it smaller, "
            "or set MONAI_USFM_MAX_PIXELS.",
        )
