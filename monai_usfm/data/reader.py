# Copyright (c) monai_usfm contributors
# SPDX-License-Identifier: Apache-2.0
"""MONAI's reader of ultrasound files of every supported format."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from monai.config import PathLike
from monai.data import ImageReader
from monai.utils import ensure_tuple
from monai.utils.misc import ImageMetaKey

from monai_usfm.data.decoded import Decoded, FramePicker
from monai_usfm.data.dicom import decode_dicom
from monai_usfm.data.formats import UnreadableImageError, file_format
from monai_usfm.data.image_files import decode_image
from monai_usfm.data.upright import guess_full_scale
from monai_usfm.data.videos import decode_video
from monai_usfm.data.volumes import decode_metaimage, decode_nifti, decode_nrrd

__all__ = ["UltrasoundReader", "dataset_full_scale"]


class UltrasoundReader(ImageReader):
    """Read one ultrasound file of any supported format, for MONAI's ``LoadImage``.

    PNG, JPEG, BMP, TIFF, GIF and WebP are read by Pillow, AVI, MP4 and other videos by PyAV, NIfTI by nibabel,
    MetaImage by ITK, NRRD by pynrrd, DICOM by pydicom. ``get_data`` returns stored values with MONAI's axes
    ``(x, y[, z or frame])``, colors of NIfTI, MetaImage, NRRD and DICOM, and those of 16 bits, along a last axis of
    3 or 4 (others come as luma), and metadata of the same keys for every format:
    ``affine`` and ``original_affine`` (mm, RAS), ``spacing_known``, ``spatial_shape``, ``file_shape``, ``num_frames``,
    ``frame``, ``cine``, ``frame_time`` (s), ``full_scale`` (the value of white, 0 where type and header do not tell),
    ``turn`` (EXIF orientation that was applied). :class:`~monai_usfm.data.UprightGrayd` makes them upright and [0, 1].

    A size of pixels, a value of white or a frame rate that the file cannot hold is read from the file of the same name
    with ``.json`` added, which :func:`~monai_usfm.data.convert_dicom` writes.

    Nothing is refused before ``get_data``, so that ``LoadImage`` shows the reason and tries no other reader.

    Args:
        label: read label maps: no luma, stored numbers, see :func:`~monai_usfm.data.image_files.decode_image`. Several
            files are masks of one image and are joined: the largest value of each pixel.
        region: of DICOM, the ultrasound region that gives the spacing, see
            :class:`~monai_usfm.data.UltrasoundDicomReader`.

    Raises:
        UnreadableImageError: from ``get_data``, naming the file, when it is missing, empty, truncated, too large, or of
            another type.
    """

    def __init__(self, label: bool = False, region: str | int | None = "largest_tissue") -> None:
        super().__init__()
        self.region = region
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
        return np.moveaxis(values, 0, -1) if len(values) > 1 else values[0], meta

    def load(self, files: Sequence[PathLike] | PathLike, pick: FramePicker | None = None) -> tuple[np.ndarray, dict]:
        """As :meth:`get_data`, channel first: ``(C, x, y[, z])``; ``pick`` names the only frame that is needed."""
        if wrong := [name for name in ensure_tuple(files) if not isinstance(name, str | os.PathLike)]:
            raise UnreadableImageError(str(files), f"{wrong[0]!r} is no file name; correct the datalist.")
        names = [str(Path(os.path.expanduser(name))) for name in ensure_tuple(files)]  # Path's refuses ~scan.png
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
        if decoded.values.dtype.kind not in "buif":
            raise UnreadableImageError(path, f"holds values of type {decoded.values.dtype}; store real numbers.")
        native = decoded.values.dtype.newbyteorder("=")  # PyTorch takes no other order of bytes
        return np.moveaxis(decoded.values.astype(native, copy=False), -1, 0), _metadata(path, decoded)

    def _decode(self, path: str, pick: FramePicker | None) -> Decoded:
        """Find the decoder by the file's type and turn whatever its library raises into one kind of error."""
        decoders: dict[str, Callable[[], Decoded]] = {
            "image": lambda: decode_image(path, pick, self.label),
            "nifti": lambda: decode_nifti(path, pick),
            "metaimage": lambda: decode_metaimage(path),
            "nrrd": lambda: decode_nrrd(path),
            "video": lambda: decode_video(path, pick),
            "dicom": lambda: decode_dicom(path, pick, self.label, self.region),
        }
        decode = decoders[file_format(path)]
        try:
            return decode()
        except (UnreadableImageError, MemoryError):
            raise
        except Exception as error:  # every library has its own exceptions for damaged files
            message = str(error).strip().splitlines()[0].rstrip(".") if str(error).strip() else "no further message"
            raise UnreadableImageError(
                path,
                f"cannot be decoded ({type(error).__name__}: {message}); "
                "the file is truncated, damaged, of a rare kind (a TIFF of 64-bit integers, say) or not of the type "
                "its name says: save it anew, or leave it out.",
            ) from error


def dataset_full_scale(files: Sequence[PathLike], sample: int = 64) -> float | None:
    """One value of white for a whole data set, where neither data type nor header of its files tells it.

    Of at most ``sample`` files that can be read, spread evenly over the list, the largest of the values that
    :func:`~monai_usfm.data.upright.guess_full_scale` gives, so that a dark image of 12 bits is not taken for one of 8
    beside a bright one. To be written to the datalist (``full_scale`` of each item) and reported.

    Returns:
        The value, or None where every file tells its own (8 bits, DICOM ...).
    """
    count = min(sample, len(files))
    reader, found = UltrasoundReader(), []
    for file in (files[number * len(files) // count] for number in range(count)):
        try:
            values, meta = reader.load(file)
        except UnreadableImageError:
            continue
        if not meta["full_scale"] and np.isfinite(values).all() and values.min() >= 0:
            found.append(guess_full_scale(values))
    return max(found, default=None)


def _metadata(path: str, decoded: Decoded) -> dict[str, Any]:
    affine, known = decoded.affine.astype(np.float64), decoded.spacing_known
    frame_time, white = decoded.frame_time, decoded.full_scale
    note = _sidecar(path)
    if note.get("spacing_mm") and file_format(path) in ("image", "video"):
        affine, known = np.diag([note["spacing_mm"][1], note["spacing_mm"][0], 1.0, 1.0]), True
    white = white or note.get("full_scale", 0.0)
    frame_time = frame_time or (1 / note["frame_rate_hz"] if "frame_rate_hz" in note else 0.0)
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
        "full_scale": white,
        "turn": decoded.turn,
        "place": decoded.place,
        **({"spacing_box": np.asarray(note["spacing_box"], int)} if "spacing_box" in note else {}),
        **decoded.more,
    }


def _sidecar(path: str) -> dict[str, Any]:
    """What the file beside it tells, as far as it is usable: the keys of ``_NOTED``."""
    note = Path(f"{path}.json")
    if not note.is_file():
        return {}
    try:
        content = json.loads(note.read_text(encoding="utf-8"))
        found = {key: np.atleast_1d(np.asarray(content[key], float)) for key in _NOTED if content.get(key) is not None}
    except (ValueError, TypeError, AttributeError):  # some other program's file
        return {}
    usable: dict[str, Any] = {}
    for key, values in found.items():
        count, zero = _NOTED[key]
        if len(values) == count and np.isfinite(values).all() and ((values > 0) | (zero & (values == 0))).all():
            usable[key] = values.tolist() if count > 1 else float(values[0])
    return usable


# Numbers of each, and whether 0 may be one: mm along rows and columns; rows and columns of the region that they are of.
_NOTED = {"spacing_mm": (2, False), "full_scale": (1, False), "frame_rate_hz": (1, False), "spacing_box": (4, True)}


def _rows_first(meta: dict[str, Any]) -> tuple[int, ...]:
    return tuple(int(n) for n in reversed(meta["spatial_shape"]))
