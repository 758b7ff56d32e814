# Copyright (c) monai_usfm contributors
# SPDX-License-Identifier: Apache-2.0
"""MONAI's reader of ultrasound files of every supported format."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from monai.config import PathLike
from monai.data import ImageReader
from monai.utils import ensure_tuple
from monai.utils.misc import ImageMetaKey

from monai_usfm.data.decoded import Decoded, FramePicker
from monai_usfm.data.formats import UnreadableImageError, file_format

__all__ = ["UltrasoundReader"]


class UltrasoundReader(ImageReader):
    """Read one ultrasound file of any supported format, for MONAI's ``LoadImage``.

    PNG, JPEG, BMP, TIFF, GIF and WebP are read by Pillow, AVI, MP4 and other videos by PyAV, NIfTI by nibabel,
    MetaImage and NRRD by ITK, DICOM by pydicom. ``get_data`` returns stored values with MONAI's axes
    ``(x, y[, z or frame])``, colored ones with a last axis of 3 or 4, and metadata of the same keys for every format:
    ``affine`` and ``original_affine`` (mm, RAS), ``spacing_known``, ``spatial_shape``, ``file_shape``, ``num_frames``,
    ``frame``, ``cine``, ``frame_time`` (s), ``full_scale`` (the value of white, 0 where type and header do not tell),
    ``turn`` (EXIF orientation that was applied). :class:`~monai_usfm.data.UprightGrayd` makes them upright and [0, 1].

    A size of pixels that the file cannot hold is read from the file of the same name with ``.json`` added, which
    :func:`~monai_usfm.data.convert_dicom` writes.

    Nothing is refused before ``get_data``, so that ``LoadImage`` shows the reason and tries no other reader.

    Args:
        gray: make luma of colored pictures at decoding, where it is cheapest; other formats keep their channels.
        label: read label maps: no luma, stored numbers, see :func:`~monai_usfm.data.pictures.decode_picture`. Several
            files are masks of one image and are joined: the largest value of each pixel.

    Raises:
        UnreadableImageError: from ``get_data``, naming the file, when it is missing, empty, truncated, too large, or of
            another type.
    """

    def __init__(self, gray: bool = True, label: bool = False) -> None:
        super().__init__()
        self.gray = gray
        self.label = label

    def verify_suffix(self, filename: Sequence[PathLike] | PathLike) -> bool:
        """Whether these are existing files of supported types."""
        try:
            return all(bool(file_format(name)) for name in ensure_tuple(filename))
        except UnreadableImageError:
            return False

    def read(self, data: Sequence[PathLike] | PathLike, **kwargs: Any) -> Sequence[PathLike]:
        """The names of the files; :meth:`get_data` decodes them."""
        return ensure_tuple(data)

    def get_data(self, img: Sequence[PathLike] | PathLike) -> tuple[np.ndarray, dict]:
        """``(array, metadata)`` of what :meth:`read` named."""
        values, meta = self.load(img)
        values = np.moveaxis(values, 0, -1) if len(values) > 1 else values[0]
        return values, meta

    def load(self, files: Sequence[PathLike] | PathLike, pick: FramePicker | None = None) -> tuple[np.ndarray, dict]:
        """As :meth:`get_data`, channel first: ``(C, x, y[, z])``; ``pick`` names the only frame that is needed."""
        names = [str(Path(name).expanduser()) for name in ensure_tuple(files)]
        if len(names) != 1 and not (self.label and names):
            raise UnreadableImageError(
                str(names), "an image is one file; only a label map (scale=None) may be several masks."
            )
        values, meta = self._one(names[0], pick)
        for name in names[1:]:
            other, its = self._one(name, pick)
            if other.shape != values.shape:
                raise UnreadableImageError(
                    name,
                    f"has size {_rows_first(its)}, but {names[0]} {_rows_first(meta)}: they must lie on one grid; "
                    "correct the datalist or resample one of them.",
                )
            values = np.maximum(values, other)
        return values, meta

    def _one(self, path: str, pick: FramePicker | None) -> tuple[np.ndarray, dict]:
        decoded = self._decode(path, pick)
        if decoded.values.size == 0:
            raise UnreadableImageError(path, f"an empty image of shape {decoded.values.shape[:-1]}; leave it out.")
        values = np.moveaxis(decoded.values, -1, 0)
        return values, _metadata(path, decoded)

    def _decode(self, path: str, pick: FramePicker | None) -> Decoded:
        """Find the decoder by the file's type and turn whatever its library raises into one kind of error."""
        kind = file_format(path)
        try:
            if kind == "picture":
                from monai_usfm.data.pictures import decode_picture

                return decode_picture(path, pick, self.gray, self.label)
            if kind == "nifti":
                from monai_usfm.data.volumes import decode_nifti

                return decode_nifti(path, pick)
            if kind == "itk":
                from monai_usfm.data.volumes import decode_itk

                return decode_itk(path)
            if kind == "video":
                from monai_usfm.data.videos import decode_video

                return decode_video(path, pick, self.gray)
            from monai_usfm.data.dicom import decode_dicom

            return decode_dicom(path, pick)
        except (UnreadableImageError, MemoryError):
            raise
        except Exception as error:  # every library has its own exceptions for damaged files
            message = str(error).strip().splitlines()[0].rstrip(".") if str(error).strip() else "no further message"
            raise UnreadableImageError(
                path,
                f"cannot be decoded ({type(error).__name__}: {message}); "
                "the file is truncated, damaged or not of the type its name says: replace it or leave it out.",
            ) from error


def _metadata(path: str, decoded: Decoded) -> dict[str, Any]:
    affine, known = decoded.affine.astype(np.float64), decoded.spacing_known
    frame_time = decoded.frame_time
    if not known:
        spacing, rate = _sidecar(path)
        if spacing is not None:
            affine, known = np.diag([spacing[1], spacing[0], 1.0, 1.0]), True
        frame_time = frame_time or (1 / rate if rate else 0.0)
    shape = decoded.values.shape[:-1]
    return {
        ImageMetaKey.FILENAME_OR_OBJ: path,
        "affine": affine,
        "original_affine": affine.copy(),
        "space": "RAS",
        "spatial_shape": np.asarray(shape),
        "original_channel_dim": "no_channel" if decoded.values.shape[-1] == 1 else -1,
        "file_shape": np.asarray(decoded.file_shape or shape),
        "spacing_known": bool(known),
        "num_frames": decoded.num_frames,
        "frame": -1 if decoded.frame is None else decoded.frame,
        "cine": decoded.cine,
        "frame_time": frame_time,
        "full_scale": decoded.full_scale,
        "turn": decoded.turn,
        **decoded.more,
    }


def _sidecar(path: str) -> tuple[list[float] | None, float | None]:
    """``(mm along rows and columns, frames a second)`` from the file beside it, as far as that tells."""
    note = Path(f"{path}.json")
    if not note.is_file():
        return None, None
    try:
        content = json.loads(note.read_text(encoding="utf-8"))
        spacing, rate = content.get("spacing_mm"), content.get("frame_rate_hz")
        spacing = None if spacing is None else [float(mm) for mm in spacing]
        rate = None if rate is None else float(rate)
    except (ValueError, TypeError, AttributeError, UnicodeDecodeError):
        return None, None  # some other program's file
    if spacing is not None and not (len(spacing) == 2 and all(np.isfinite(mm) and mm > 0 for mm in spacing)):
        spacing = None
    return spacing, rate if rate and np.isfinite(rate) and rate > 0 else None


def _rows_first(meta: dict[str, Any]) -> tuple[int, ...]:
    return tuple(int(n) for n in reversed(meta["spatial_shape"]))
