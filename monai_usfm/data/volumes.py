# Copyright (c) monai_usfm contributors
# SPDX-License-Identifier: Apache-2.0
"""NIfTI by nibabel, MetaImage and NRRD by ITK: stored values, affine in mm (RAS), and which axis is what."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
from monai.data import ITKReader, NibabelReader
from monai.data.utils import affine_to_spacing, to_affine_nd
from monai.utils import optional_import

from monai_usfm.data.decoded import Decoded, FramePicker, checked_frame
from monai_usfm.data.formats import UnreadableImageError, check_size

__all__ = ["decode_itk", "decode_nifti"]

itk, _ = optional_import("itk")  # as MONAI does: importing it takes long, and most lists need none of it


def decode_nifti(path: str, pick: FramePicker | None) -> Decoded:
    """Read a NIfTI or other file of nibabel. Its third axis is depth, its fourth time, its fifth channels."""
    reader = NibabelReader()
    img = reader.read(path)
    affine = np.array(img.affine, dtype=np.float64)
    if isinstance(img, nib.Nifti1Pair):
        affine[:3] *= {"meter": 1e3, "micron": 1e-3}.get(img.header.get_xyzt_units()[0], 1.0)
    file_shape = tuple(int(n) for n in img.shape)
    # the fifth axis of NIfTI holds vector components
    channels = file_shape[4] if len(file_shape) == 5 else 1
    axes = list(range(min(4, len(file_shape))))
    wide = [axis for axis in axes if file_shape[axis] > 1]
    if len(file_shape) > 5 or len(wide) > 3:
        raise UnreadableImageError(
            path,
            f"has shape {file_shape}, a sequence of volumes; store each volume (or a cine as x, y, 1, t) in its own "
            "file.",
        )
    if len(axes) == 4:  # at least one axis of the four has size 1: the last such one goes, time takes its place
        spare = max(axis for axis in axes if file_shape[axis] == 1)
        axes.remove(spare)
        affine[:, :3] = affine[:, [axis if axis < 3 else spare for axis in axes]]
    shape = [file_shape[axis] for axis in axes] + [1] * (2 - len(axes))
    check_size(path, *_plane(shape), frames=int(np.prod(shape)) // max(1, int(np.prod(_plane(shape)))))
    count, frame = (file_shape[wide[2]] if len(wide) == 3 else 1), None
    unscaled = (getattr(img.dataobj, "slope", 1), getattr(img.dataobj, "inter", 0)) == (1, 0)
    stored = img.get_data_dtype()
    if pick is not None and count > 1 and stored == np.uint8 and unscaled:
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
        affine, known = np.eye(4), False
    else:  # pixels of 1 mm in a file that names no unit: nobody said so
        unit = img.header.get_xyzt_units()[0] if isinstance(img, nib.Nifti1Pair) else "mm"
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
        frame_time=_frame_seconds(img) if cine else 0.0,
        file_shape=file_shape,
    )


def _plane(shape: list[int]) -> tuple[int, int]:
    """The two axes of a frame: the first two that are wider than 1."""
    wide = [n for n in shape if n > 1] + [1, 1]
    return wide[0], wide[1]


def _frame_seconds(img: nib.Nifti1Image) -> float:
    step = float(img.header.get_zooms()[3]) if len(img.header.get_zooms()) > 3 else 0.0
    scale = {"sec": 1.0, "msec": 1e-3, "usec": 1e-6}.get(img.header.get_xyzt_units()[1], 0.0)
    return step * scale if np.isfinite(step) and step > 0 else 0.0


def decode_itk(path: str) -> Decoded:
    """Read MetaImage or NRRD. A first axis that NRRD calls list or time, or that is no color by size, holds frames."""
    check_data_file(path)
    header = itk.ImageIOFactory.CreateImageIO(path, itk.CommonEnums.IOFileMode_ReadMode)
    if header is None:
        raise ValueError("no ITK reader takes this file")
    header.SetFileName(path)
    header.ReadImageInformation()
    channels, kind = header.GetNumberOfComponents(), header.GetComponentTypeAsString(header.GetComponentType())
    spatial = header.GetNumberOfDimensions()
    sizes = [header.GetDimensions(axis) for axis in range(spatial)]
    check_size(path, *_plane(sizes), frames=int(np.prod(sizes)) // max(1, int(np.prod(_plane(sizes)))))
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
    spatial = len(meta["spatial_shape"])
    if spatial not in (2, 3):
        raise UnreadableImageError(path, f"has {spatial} spatial axes; expected 2 or 3.")
    if values.ndim == spatial:
        values = values[..., None]
    wide = [n for n in values.shape[:-1] if n > 1]
    return Decoded(
        values,
        to_affine_nd(3, np.asarray(meta["affine"])),
        spacing_known=True,
        num_frames=wide[2] if len(wide) == 3 else 1,
        full_scale=255.0 if values.dtype == np.uint8 else 0.0,
        file_shape=values.shape[:-1],
    )


def check_data_file(path: str) -> None:
    """Refuse a header that names data anywhere but beside itself.

    MetaImage and NRRD may keep their values in another file. A header from elsewhere could name any file of the
    machine, whose bytes would come out as an image.
    """
    with open(path, "rb") as stream:
        start = stream.read(65536)
    folder = Path(path).parent
    for line in start.split(b"\n\n")[0].splitlines():
        field, _, value = line.decode("latin-1").replace(":=", "=").replace(":", "=", 1).partition("=")
        if field.strip().lower() not in ("elementdatafile", "data file", "datafile"):
            continue
        name = value.strip()
        if name.upper() in ("LOCAL", "LIST") or name.upper().startswith("LIST "):
            break
        if Path(name).is_absolute() or ".." in Path(name).parts or not (folder / name).is_file():
            raise UnreadableImageError(
                path, f"names {name!r} as its data, which is no file beside or below it; put both into one folder."
            )
        break
