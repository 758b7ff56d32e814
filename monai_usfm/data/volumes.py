# Copyright (c) monai_usfm contributors
# SPDX-License-Identifier: Apache-2.0
"""NIfTI by nibabel, MetaImage by ITK, NRRD by pynrrd: stored values, affine in mm (RAS), and which axis is what."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nibabel as nib
import nrrd
import numpy as np
from monai.data import ITKReader, NibabelReader
from monai.data.utils import affine_to_spacing, to_affine_nd
from monai.utils import optional_import

from monai_usfm.data.decoded import Decoded, FramePicker, checked_frame
from monai_usfm.data.formats import UnreadableImageError, check_size
from monai_usfm.data.image_files import MM_PER
from monai_usfm.data.upright import BANDS

itk, _ = optional_import("itk")  # as MONAI does: importing it takes long, and most lists need none of it


def decode_nifti(path: str, pick: FramePicker | None) -> Decoded:
    """Read a NIfTI or other file of nibabel. Its third axis is depth, its fourth time, its fifth channels."""
    reader = NibabelReader()
    img = reader.read(path)
    affine = np.array(img.affine, dtype=np.float64)
    place, unit = _place(affine, "ras"), "mm"
    if isinstance(img, nib.Nifti1Pair):
        place = place if img.header["sform_code"] or img.header["qform_code"] else ""
        unit = img.header.get_xyzt_units()[0]
        affine[:3] *= {"meter": 1e3, "micron": 1e-3}.get(unit, 1.0)
    file_shape = tuple(int(n) for n in img.shape)
    # the fifth axis of NIfTI holds vector components
    channels = file_shape[4] if len(file_shape) == 5 else 1
    axes = list(range(min(4, len(file_shape))))
    wide = [axis for axis in axes if file_shape[axis] > 1]
    if len(file_shape) > 5 or len(wide) > 3:
        raise UnreadableImageError(
            path,
            f"has shape {file_shape}, a sequence of volumes; store each volume (or a cine as x, y, 1, t) in its own "
            "file, and masks of one class each as one map of class numbers.",
        )
    if len(axes) == 4:  # at least one axis of the four has size 1: the last such one goes, time takes its place
        spare = max(axis for axis in axes if file_shape[axis] == 1)
        axes.remove(spare)
        affine[:, :3] = affine[:, [axis if axis < 3 else spare for axis in axes]]
    shape = [file_shape[axis] for axis in axes] + [1] * (2 - len(axes))
    _check_frames(path, shape)
    count, frame = (file_shape[wide[2]] if len(wide) == 3 else 1), None
    unscaled = (getattr(img.dataobj, "slope", 1), getattr(img.dataobj, "inter", 0)) == (1, 0)
    stored = img.get_data_dtype()
    if pick is not None and count > BANDS and stored == np.uint8 and unscaled:
        frame = checked_frame(path, pick, count)
        img = img.slicer[(slice(None),) * wide[2] + (slice(frame, frame + 1),)]
        shape[axes.index(wide[2])] = 1
    values = np.asarray(reader.get_data(img)[0])
    if values.dtype.names:  # RGB24 and RGBA32 are stored as records
        values = np.stack([values[name] for name in values.dtype.names], axis=-1)
        channels = values.shape[-1]
    values = values.reshape(*shape, channels)
    if frame is not None:
        values = values.squeeze(axes.index(wide[2]))
    if not np.isfinite(affine).all() or (affine_to_spacing(affine, suppress_zeros=False) == 0).any():
        affine, known, place = np.eye(4), False, ""
    else:  # pixels of 1 mm in a file that names no unit: nobody said so
        known = unit != "unknown" or not np.allclose(affine_to_spacing(affine), 1)
    cine = len(wide) == 3 and wide[2] == 3
    return Decoded(
        values,
        affine,
        known,
        num_frames=count,
        frame=frame,
        full_scale=255.0 if values.dtype == np.uint8 and unscaled else 0.0,
        cine=cine,
        frame_time=_frame_seconds(nib.load(path).header) if cine else 0.0,  # MONAI's reader sets that step to 1
        place=place,
        file_shape=file_shape,
    )


def _frame_seconds(header: Any) -> float:
    step = float(header.get_zooms()[3]) if len(header.get_zooms()) > 3 else 0.0
    scale = {"sec": 1.0, "msec": 1e-3, "usec": 1e-6}.get(header.get_xyzt_units()[1], 0.0)
    return step * scale if np.isfinite(step) and step > 0 else 0.0


def _place(affine: np.ndarray, space: str) -> str:
    """See :class:`Decoded`; ``affine`` in that space."""
    axes = affine[:3, :3]
    plain = np.allclose(axes, np.diag(np.diag(axes))) and (np.diag(axes) > 0).all() and np.allclose(affine[:3, 3], 0)
    return space if plain else "world"


def decode_metaimage(path: str) -> Decoded:
    """Read MetaImage. It does not tell color from other channels: three or four of 8 bits are taken for color."""
    check_data_file(path)
    header = itk.ImageIOFactory.CreateImageIO(path, itk.CommonEnums.IOFileMode_ReadMode)
    if header is None:
        raise ValueError("no ITK reader takes this file")
    header.SetFileName(path)
    header.ReadImageInformation()
    channels, kind = header.GetNumberOfComponents(), header.GetComponentTypeAsString(header.GetComponentType())
    sizes = [header.GetDimensions(axis) for axis in range(header.GetNumberOfDimensions())]
    _check_frames(path, sizes)
    options = {}
    if channels > 1:  # ITK's Python build holds color pixels of 8 bits, but no vectors of them
        if channels not in (3, 4) or kind != "unsigned_char":
            raise UnreadableImageError(
                path, f"has {channels} channels of {kind}; expected 1 of any type, or 3 (RGB) or 4 (RGBA) of 8 bits."
            )
        options["pixel_type"] = {3: itk.RGBPixel, 4: itk.RGBAPixel}[channels][itk.UC]
    reader = ITKReader()
    values, meta = reader.get_data(reader.read(path, **options))
    values = np.array(values)  # a copy: the array is a view of memory that ITK owns
    if channels == 1:
        values = values.reshape(*values.shape[: len(sizes)], 1)
    elif (np.ptp(values[..., :3], axis=-1) > 8).mean() > 0.5:
        raise UnreadableImageError(
            path,
            f"its {channels} channels differ in most pixels, so they may be frames; store frames as a third axis, and "
            "colors as PNG or NRRD.",
        )
    affine = to_affine_nd(3, np.asarray(meta["affine"]))
    place = _place(_LPS @ affine, "lps")  # samples of 1 mm from the origin on are what writers put for "unknown"
    return _axes_named(path, values, affine, place, place == "world" or not np.allclose(affine_to_spacing(affine), 1))


_LPS = np.diag([-1.0, -1.0, 1.0, 1.0])
_COLORS = ("rgb-color", "rgba-color", "3-color", "4-color")
_NO_GRAY = ("hsv-color", "xyz-color", "complex", "quaternion", "matrix", "normal", "gradient")


def decode_nrrd(path: str) -> Decoded:
    """Read NRRD. Its kinds and directions decide which axis is color and which holds frames.

    An axis of kind list, time or vector, or without a direction where others have one, holds frames. So does a first
    axis of 3 or 4 where nothing says what it is.
    """
    check_data_file(path)
    header = nrrd.read_header(path)
    sizes = [int(n) for n in header["sizes"]]
    kinds = [str(kind or "").lower() for kind in (header.get("kinds") or [""] * len(sizes))]
    directions = header.get("space directions")
    placed = directions is not None
    vectors = [None if v is None else np.asarray(v, float) for v in (directions if placed else [None] * len(sizes))]
    vectors = [None if v is None or not np.isfinite(v).all() else v for v in vectors]
    if other := [kind for kind in kinds if kind.endswith(_NO_GRAY)]:
        raise UnreadableImageError(path, f"has an axis of kind {other[0]}; store gray values or RGB.")

    def no_direction(axis: int) -> bool:
        return placed and vectors[axis] is None and sizes[axis] > 1

    color = [axis for axis, kind in enumerate(kinds) if kind in _COLORS]
    frames = [
        axis
        for axis, kind in enumerate(kinds)
        if axis not in color and (kind not in ("", "domain", "space", "none", "???") or no_direction(axis))
    ]
    if not (placed or any(kinds)) and len(sizes) == 3 and sizes[0] in (3, 4):
        frames = [0]
    if len(color) > 1 or len(frames) > 1:
        raise UnreadableImageError(path, f"has axes of kinds {', '.join(kinds)}; store one cine or volume in a file.")
    domains = [axis for axis in range(len(sizes)) if axis not in color + frames]
    _check_frames(path, [sizes[axis] for axis in domains + frames])
    values = np.asarray(nrrd.read(path, index_order="F")[0]).transpose(*domains, *frames, *color)
    values = values if color else values[..., None]
    affine, known = _nrrd_affine(header, domains, vectors)
    flip = np.diag([-1.0 if "left" in _space(header) else 1.0, -1.0 if "posterior" in _space(header) else 1.0, 1, 1])
    place = _place(affine, "lps" if "left" in _space(header) else "ras") if placed else ""
    return _axes_named(path, values, flip @ affine, place, known, bool(frames))


def _space(header: dict[str, Any]) -> str:
    space = str(header.get("space") or "").lower()
    return {"lps": "left-posterior-superior", "las": "left-anterior-superior"}.get(space, space)


def _nrrd_affine(header: dict[str, Any], domains: list[int], vectors: list[Any]) -> tuple[np.ndarray, bool]:
    """4x4 matrix in the file's space in mm, and whether it states the size of a pixel."""
    affine = np.eye(4)
    steps = np.asarray(header.get("spacings", [np.nan] * len(vectors)), float) * _mm(header, "units", len(vectors))
    mm = _mm(header, "space units", 3)
    known = False
    for column, axis in enumerate(domains[:3]):
        vector = vectors[axis]
        if vector is not None and np.linalg.norm(vector) > 0:
            affine[:3, column] = np.pad(vector, (0, 3 - len(vector))) * mm
            known = True
        elif np.isfinite(steps[axis]) and steps[axis] > 0:
            affine[column, column] = steps[axis]
            known = True
    if len(domains) == 2 and known:  # across the plane
        across = np.cross(affine[:3, 0], affine[:3, 1])
        affine[:3, 2] = across / max(float(np.linalg.norm(across)), 1e-12)
    origin = np.nan_to_num(np.asarray(header.get("space origin", [0, 0, 0]), float))
    affine[: len(origin), 3] = origin * mm[: len(origin)]
    return affine, known


def _mm(header: dict[str, Any], field: str, count: int) -> np.ndarray:
    """Millimeters of the unit of each axis, 1 where none is named."""
    units = [*(header.get(field) or ()), *[""] * count][:count]
    return np.array([MM_PER.get(str(unit).lower(), 1.0) for unit in units])


def _axes_named(
    path: str, values: np.ndarray, affine: np.ndarray, place: str, known: bool, cine: bool = False
) -> Decoded:
    spatial = values.ndim - 1
    if spatial > 3:
        values = values.squeeze(tuple(axis for axis in range(2, spatial) if values.shape[axis] == 1))
    if values.ndim - 1 not in (2, 3):
        raise UnreadableImageError(path, f"has {spatial} spatial axes; expected 2 or 3.")
    wide = [n for n in values.shape[:-1] if n > 1]
    return Decoded(
        values,
        affine,
        spacing_known=known,
        num_frames=wide[2] if len(wide) == 3 else 1,
        full_scale=255.0 if values.dtype == np.uint8 else 0.0,
        cine=cine,
        place=place,
        file_shape=values.shape[:-1],
    )


def _check_frames(path: str, sizes: list[int]) -> None:
    width, height = ([n for n in sizes if n > 1] + [1, 1])[:2]  # a frame has the first two axes that are wider than 1
    check_size(path, width, height, frames=int(np.prod(sizes)) // (width * height))


def check_data_file(path: str) -> None:
    """Refuse a header that names data anywhere but beside itself.

    MetaImage and NRRD may keep their values in another file. A header from elsewhere could name any file of the
    machine, whose bytes would come out as an image.
    """
    with open(path, "rb") as stream:
        lines = stream.read(65536).split(b"\n\n")[0].decode("latin-1").splitlines()
    for number, line in enumerate(lines):
        field, _, value = line.replace(":=", "=").replace(":", "=", 1).partition("=")
        if field.strip().lower() not in ("elementdatafile", "data file", "datafile"):
            continue
        names = [value.strip()]
        if names[0].upper() == "LOCAL":
            return
        if names[0].upper().startswith("LIST"):
            names = [name.strip() for name in lines[number + 1 :] if name.strip()]
        for name in names:
            elsewhere = Path(name).is_absolute() or ".." in Path(name).parts
            if elsewhere or not (Path(path).parent / name).is_file():
                raise UnreadableImageError(
                    path, f"names {name!r} as its data, which is no file beside or below it; put both into one folder."
                )
        return
