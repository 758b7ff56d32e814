# Copyright (c) monai_usfm contributors
# SPDX-License-Identifier: Apache-2.0
"""Ultrasound DICOM to PNG or NIfTI, with the spacing in mm that those can hold and a note of the rest."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from monai.config import PathLike
from PIL import Image

from monai_usfm.data.deidentify import Pseudonyms
from monai_usfm.data.dicom import UltrasoundDicomReader
from monai_usfm.data.dicom_geometry import slice_geometry
from monai_usfm.data.formats import UnreadableImageError, has_dicom_mark
from monai_usfm.data.upright import gray_from_rgb
from monai_usfm.files import atomic_write

__all__ = ["convert_dicom", "convert_dicom_folder"]


def convert_dicom(
    path: PathLike,
    output: PathLike,
    *,
    region: str | int | None = "largest_tissue",
    crop: bool = False,
    frame: int | None = None,
    gray: bool = True,
    deidentify: str | None = None,
    no_regions: str = "refuse",
    pseudonyms: Pseudonyms | None = None,
) -> Path:
    """Write an ultrasound DICOM file as PNG or NIfTI with its spacing in mm.

    PNG carries the spacing as pixels per meter (pHYs). NIfTI has the affine; a cine is ``(x, y, 1, t)`` with the frame
    time in seconds, a volume ``(x, y, z)``. What those formats cannot hold exactly stands beside the output, in a file
    of the same name with ``.json`` added: spacing, value of white, frame rate, region, and, with
    ``deidentify="strip"``, the patient's pseudonym and what was and was not removed. Both files appear complete or not
    at all.

    Args:
        path: DICOM file.
        output: ``*.png``, ``*.nii`` or ``*.nii.gz``; its folder is made if need be.
        region: see :class:`UltrasoundDicomReader`.
        crop: see :class:`UltrasoundDicomReader`.
        frame: the frame to write; ``None`` writes all to NIfTI and the middle one to PNG.
        gray: write luma; else color files keep RGB.
        deidentify: see :class:`UltrasoundDicomReader`.
        no_regions: see :class:`UltrasoundDicomReader`.
        pseudonyms: see :class:`UltrasoundDicomReader`.

    Returns:
        The output's path.

    Raises:
        ValueError: when the output's ending is neither PNG nor NIfTI.
        UnreadableImageError: see :class:`UltrasoundDicomReader`, and where there is no such frame.
    """
    target = Path(output)
    pixels = target.name.lower().endswith(".png")
    if not pixels and not target.name.lower().endswith((".nii", ".nii.gz")):
        raise ValueError(f"output must end in .png, .nii or .nii.gz, got {target.name!r}.")
    reader = UltrasoundDicomReader(region, crop, deidentify, no_regions, pseudonyms)
    dataset = reader.read_file(path)
    count = reader.num_frames(dataset)
    if frame is None and pixels:
        frame = count // 2
    if frame is not None and not 0 <= frame < count:
        raise UnreadableImageError(path, f"has {count} frames, so there is no frame {frame}.")
    values, white = reader.frames(dataset, frame)
    if values.dtype.kind == "f":  # shown by a window: as many bits as were stored
        white = 255.0 if int(dataset.BitsStored) <= 8 else 65535.0
        values = np.rint(values * white).astype(np.uint8 if white == 255 else np.uint16)
    if gray and values.shape[-1] == 3:
        values = gray_from_rgb(values)
    meta = reader.metadata(dataset)
    affine = meta["affine"].copy()
    if frame is not None:
        affine[:3, 3] += affine[:3, 2] * frame
    spacing = np.linalg.norm(affine[:3, :3], axis=0)

    with atomic_write(target) as part, atomic_write(f"{target}.json") as note:
        if pixels:
            page = values[0, ..., 0] if values.shape[-1] == 1 else values[0]
            known: dict[str, Any] = {"dpi": tuple(25.4 / spacing[:2])} if meta["spacing_known"] else {}
            Image.fromarray(page).save(part, **known)
        else:
            volume = slice_geometry(dataset, count) is not None
            nib.save(_nifti(values, affine, volume, meta["frame_time"], meta["spacing_known"]), part)
        description = {
            "source": "" if deidentify == "strip" else Path(path).name,
            "spacing_mm": [float(mm) for mm in spacing[1::-1]] if meta["spacing_known"] else None,
            "slice_spacing_mm": float(spacing[2]) if slice_geometry(dataset, count) is not None else None,
            "full_scale": white or None,
            "num_frames": count,
            "frame": frame,
            "frame_rate_hz": meta["frame_rate"] or None,
            "region": meta["region"],
            "regions": [found.describe() for found in reader.regions(dataset)],
        }
        if deidentify == "strip":
            description |= {"patient": str(dataset.PatientID), "deidentified": dataset.identity_report}
        note.write_text(json.dumps(description, indent=1) + "\n")
    return target


def convert_dicom_folder(
    inputs: Sequence[PathLike],
    output: PathLike,
    *,
    format: str = "nii.gz",
    key: PathLike | None = None,
    deidentify: str | None = None,
    no_regions: str = "refuse",
    **options: Any,
) -> list[str]:
    """Convert files and folders by :func:`convert_dicom`; a file that fails is reported and the others go on.

    Folders are searched. Outputs lie below ``output`` as the inputs did, or, with ``deidentify="strip"``, every folder
    and file under its pseudonym.

    Args:
        inputs: files or folders.
        output: folder.
        format: ``"png"``, ``"nii"`` or ``"nii.gz"``.
        key: file with the key of the pseudonyms, made where it is missing; needed for ``"strip"``.
        deidentify: see :func:`convert_dicom`.
        no_regions: see :func:`convert_dicom`.
        options: more of :func:`convert_dicom`.

    Returns:
        The files that were not converted, each with the reason.

    Raises:
        ValueError: for ``"strip"`` without a key.
    """
    if deidentify == "strip" and key is None:
        raise ValueError('deidentify="strip" needs key, a file for the key of the pseudonyms; it is made if missing.')
    pseudonyms = Pseudonyms(key) if deidentify == "strip" and key is not None else None
    failed, done, taken = [], 0, set()
    for argument in map(Path, inputs):
        if not argument.exists():
            failed.append(f"{argument}: no such file or folder")
            continue
        files = [argument] if argument.is_file() else sorted(p for p in argument.rglob("*") if _is_dicom(p))
        for file in files:
            below = Path(file.name) if argument.is_file() else file.relative_to(argument)
            # a UID as a name has points, of which none begins an ending
            named = below.with_name(below.stem if below.suffix.lower() in (".dcm", ".dicom", ".ima") else below.name)
            named = pseudonyms.path(named) if pseudonyms is not None else named
            target = Path(output) / named.with_name(f"{named.name}.{format}")
            try:
                if target in taken:
                    raise UnreadableImageError(file, f"{target} was already written from another input.")
                convert_dicom(
                    file, target, deidentify=deidentify, no_regions=no_regions, pseudonyms=pseudonyms, **options
                )
                taken.add(target)
                done += 1
            except Exception as error:  # a damaged file must not end a long conversion
                failed.append(str(error) if isinstance(error, UnreadableImageError) else f"{file}: {error!r}")
                print(f"not converted: {failed[-1]}")
    print(f"{done} converted, {len(failed)} not.")
    if deidentify == "strip":
        print(
            "Names of folders, files and patients are pseudonyms under the key in "
            f"{key}. Text inside the ultrasound regions is not read: look at the images before sharing them."
        )
    return failed


def _is_dicom(path: Path) -> bool:
    return path.is_file() and path.stat().st_size > 132 and has_dicom_mark(path)


def _nifti(values: np.ndarray, affine: np.ndarray, volume: bool, frame_time: float, known: bool) -> nib.Nifti1Image:
    """``(frames, H, W, 1 or 3)`` -> NIfTI with the axes x, y, z or x, y, 1, t; color as RGB24 records."""
    if values.shape[-1] == 3:
        record = np.dtype([("R", "u1"), ("G", "u1"), ("B", "u1")])
        if values.dtype != np.uint8:  # NIfTI's colors have 8 bits
            raise ValueError(f"colors of type {values.dtype} do not fit into NIfTI, which has 8 bits; write luma.")
        values = np.ascontiguousarray(values).view(record)
    array = values[..., 0].transpose(2, 1, 0)
    cine = not volume and array.shape[2] > 1
    img = nib.Nifti1Image(array[:, :, None] if cine else array, affine)
    img.header.set_xyzt_units("mm" if known else None, "sec")
    if cine:
        img.header.set_zooms((*img.header.get_zooms()[:3], frame_time or 1.0))
    return img
