# Copyright (c) monai_usfm contributors
# SPDX-License-Identifier: Apache-2.0
"""Files that are complete or absent: written under another name, then renamed."""

from __future__ import annotations

import csv
import json
import os
import re
import threading
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from monai.config import PathLike
from monai.data import ImageWriter, NibabelWriter, PILWriter, resolve_writer
from PIL import ExifTags, Image

__all__ = [
    "append_csv",
    "atomic_write",
    "atomic_writer",
    "import_itk",
    "keep_apart",
    "read_json",
    "remove_abandoned",
    "save_figure",
    "write_csv",
    "write_text_atomically",
]

PART = re.compile(r"^\.(\d+)\.\d+\..+")  # unfinished files: the process and thread that write, and the name to be
UNTURN = {  # EXIF orientation: what undoes the turn that shows an image upright
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}
WITH_EXIF = (".png", ".tif", ".tiff", ".jpg", ".jpeg")
TWO_FILES = (".hdr", ".img", ".mhd", ".nhdr")


FAILED = 3
"""Exit status of a command that was done but for some inputs, which could not be read."""


class Failures(list[str]):
    """What a function could not read, each with the reason; its command ends with the exit status :data:`FAILED`."""


def import_itk(files: Iterable[Any]) -> None:
    """Import what reads and writes MetaImage, if one of the files is such: before threads are started.

    ITK imports its parts when they are first used, and changes the working directory of the whole process meanwhile:
    what another thread reads or writes by a relative path then lies elsewhere.
    """
    if any(str(file).lower().endswith((".mha", ".mhd")) for file in files):
        _import_itk()


@cache
def _import_itk() -> None:
    import itk

    with TemporaryDirectory() as folder:
        pixel = Path(folder, "pixel.mha")
        pixel.write_bytes(
            b"ObjectType = Image\nNDims = 2\nDimSize = 1 1\nElementType = MET_UCHAR\nElementDataFile = LOCAL\n\0"
        )
        itk.imwrite(itk.GetImageFromArray(itk.GetArrayFromImage(itk.imread(str(pixel)))), str(pixel))


@contextmanager
def atomic_write(path: PathLike) -> Iterator[Path]:
    """A name beside ``path`` to write to, renamed to ``path`` at the end: nobody reads half a file.

    The name has the ending of ``path``, by which many writers choose the format. Folders are made. After an error the
    old file is as it was, and nothing else is left. The content is on the disk before the name is: a power failure
    leaves the old file or the new one, not an empty one.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    # a name that has 255 bytes, the most there may be, has no place for more
    part = path.with_name(f".{os.getpid()}.{threading.get_native_id()}.{path.name[-50:]}")
    try:
        yield part
        with open(part, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def keep_apart(output: PathLike, *inputs: PathLike | None) -> Path:
    """The file that a command is to write.

    Raises:
        ValueError: where it is one that the command reads, which would be lost.
    """
    for name in inputs:
        if name is not None and os.path.realpath(output) == os.path.realpath(name):
            raise ValueError(f"{output} is read by this command and would be replaced: name another output.")
    return Path(output)


def read_json(path: PathLike, kind: str, advice: str = "") -> dict[str, Any]:
    """The object in a JSON file that somebody may have written by hand.

    Args:
        path: file.
        kind: what the file is, for the errors: ``"datalist"``, ``"board"``.
        advice: end of the error for a file that is not there.

    Raises:
        FileNotFoundError: for no such file.
        ValueError: for what is no JSON object, and for a key that stands in one twice: a value would be lost.
    """
    file = Path(path)
    if not file.is_file():
        raise FileNotFoundError(f"{file}: no such {kind}{advice}.")

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) < len(pairs):
            doubled = next(key for key, number in Counter(key for key, _ in pairs).items() if number > 1)
            raise ValueError(f"the key {doubled!r} stands twice in one object; keep one of them")
        return found

    try:
        # some editors put a byte order mark first
        content = json.loads(file.read_text(encoding="utf-8-sig"), object_pairs_hook=once)
    except ValueError as error:
        raise ValueError(f"{file}: not a JSON file ({error}).") from None
    if not isinstance(content, dict):
        raise ValueError(f"{file}: a {kind} must hold an object, not a {type(content).__name__}.")
    return content


def remove_abandoned(folder: PathLike) -> list[Path]:
    """Delete unfinished files of :func:`atomic_write` below ``folder`` whose process is dead; returns their names."""
    removed = []
    for file in Path(folder).rglob(".*"):
        match = PART.match(file.name)
        if match and file.is_file() and not _lives(int(match.group(1))):
            file.unlink(missing_ok=True)
            removed.append(file)
    return removed


def _lives(process: int) -> bool:
    if os.name == "nt":  # where asking would interrupt it
        return True
    try:
        os.kill(process, 0)  # signal 0 only asks
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        return True
    return True


def atomic_writer(output_ext: str) -> type[ImageWriter]:
    """MONAI's writer of images with this ending, which writes each one as :func:`atomic_write` does.

    For the ``writer`` of :class:`monai.transforms.SaveImaged`, which otherwise writes to the final name and loses axes
    of size 1: the file has the ``file_shape`` of its metadata, if they give one, a NIfTI cine its ``frame_time``, and a
    photo the EXIF orientation (``turn``) of its image, on whose stored pixels it lies then.

    Raises:
        ValueError: for formats of two files, which no single renaming replaces.
    """
    if output_ext.lower().removesuffix(".gz") in TWO_FILES:
        raise ValueError(f"{output_ext} stands for two files, which cannot be replaced as one; use .nii.gz or .mha.")
    base: type[ImageWriter] = resolve_writer(output_ext)[0]
    import_itk([output_ext])

    class AtomicWriter(base):  # type: ignore[misc, valid-type]
        def set_data_array(self, data_array: Any, channel_dim: int | None = 0, **kwargs: Any) -> None:
            if issubclass(base, PILWriter) and channel_dim == 0 and data_array.ndim > 3:
                data_array = _as_image(data_array, output_ext)
            # of an image of one pixel, and of an image file of one row, MONAI's squeezing takes the axes along
            squeeze = not issubclass(base, PILWriter) and max(data_array.shape) > 1
            super().set_data_array(data_array, channel_dim=channel_dim, **{**kwargs, "squeeze_end_dims": squeeze})
            values: Any = self.data_obj  # type: ignore[has-type]
            if not squeeze and channel_dim is not None and values.shape[-1] == 1:
                self.data_obj = values[..., 0]

        def set_metadata(self, meta_dict: Mapping[str, Any] | None = None, *args: Any, **kwargs: Any) -> None:
            if not issubclass(base, PILWriter) and self.data_obj.ndim == 2:  # type: ignore[has-type]
                self.data_obj = self.data_obj[..., None]  # a plane may lie across the first two axes of the world
            super().set_metadata(meta_dict, *args, **kwargs)
            self.frame_time = float((meta_dict or {}).get("frame_time", 0))
            self.unit = "mm" if (meta_dict or {}).get("spacing_known") else None
            self.turn = int((meta_dict or {}).get("turn", 1))
            shape = tuple(int(n) for n in (meta_dict or {}).get("file_shape", ()))
            held: Any = self.data_obj  # type: ignore[has-type]
            if not issubclass(base, PILWriter) and [n for n in shape if n > 1] == [n for n in held.shape if n > 1]:
                self.data_obj = held.reshape(shape)

        def create_backend_obj(self, data_array: Any, **kwargs: Any) -> Any:  # no class method: it knows the header
            exif = kwargs.pop("exif", None)
            made = super().create_backend_obj(data_array, **kwargs)
            if exif is not None:
                return made.transpose(UNTURN[self.turn])
            if base is NibabelWriter:
                time = self.frame_time if made.ndim == 4 else 0
                if time:
                    made.header.set_zooms((*made.header.get_zooms()[:3], time))
                made.header.set_xyzt_units(self.unit, "sec" if time else None)
            return made

        def write(self, filename: PathLike, verbose: bool = True, **kwargs: Any) -> None:
            with atomic_write(filename) as part:
                if self.turn in UNTURN and output_ext.lower() in WITH_EXIF:
                    kwargs["exif"] = orientation(self.turn)
                super().write(part, verbose=verbose, **kwargs)

    return AtomicWriter


def orientation(turn: int) -> Image.Exif:
    """The EXIF of an image that is shown upright by this turn, 1 to 8."""
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = turn
    return exif


def _as_image(data: Any, output_ext: str) -> Any:
    """``(C, *S) -> (C, x, y)`` without axes of size 1, of which MONAI's writer would take the first line alone."""
    for axis in range(data.ndim - 1, 0, -1):
        if data.ndim > 3 and data.shape[axis] == 1:
            data = data.squeeze(axis)
    if data.ndim > 3:
        name = getattr(data, "meta", {}).get("filename_or_obj", "a result")
        raise ValueError(
            f"{name}: a result of shape {tuple(data.shape[1:])} does not fit into {output_ext}; use output_ext .nii.gz."
        )
    return data


def write_text_atomically(path: PathLike, text: str) -> Path:
    """Write a text file, see :func:`atomic_write`."""
    with atomic_write(path) as part:
        part.write_text(text, encoding="utf-8")
    return Path(path)


def save_figure(path: PathLike, figure: Any, dpi: int = 120) -> Path:
    """Save a Matplotlib figure, see :func:`atomic_write`."""
    with atomic_write(path) as part:
        figure.savefig(part, dpi=dpi, bbox_inches="tight")
    return Path(path)


def append_csv(path: PathLike, rows: Sequence[Mapping[str, Any]], anew: bool = False) -> Path:
    """Add rows to a CSV that has the columns of its first one; ``anew`` starts the file with their names."""
    path, columns = Path(path), list(rows[0])
    path.parent.mkdir(parents=True, exist_ok=True)
    if not anew:
        with path.open(newline="", encoding="utf-8") as stream:
            columns = next(csv.reader(stream))
    with path.open("w" if anew else "a", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, columns, lineterminator="\n", extrasaction="ignore")
        if anew:
            writer.writeheader()
        writer.writerows(rows)
    return path


def write_csv(path: PathLike, rows: Sequence[Mapping[str, Any]], columns: Sequence[str] = ()) -> Path:
    """Rows as CSV, ``columns`` first, others in the order in which they appear; a row without one leaves it empty."""
    columns = list(dict.fromkeys([*columns, *(key for row in rows for key in row)]))
    with atomic_write(path) as part, part.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    return Path(path)
