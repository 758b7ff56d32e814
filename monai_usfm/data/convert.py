# Copyright (c) monai_usfm contributors
# SPDX-License-Identifier: Apache-2.0
"""Ultrasound DICOM to PNG, NIfTI or DICOM without names, with the spacing in mm and a note of the rest."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import nibabel as nib
import numpy as np
from monai.config import PathLike
from PIL import Image
from pydicom.dataset import Dataset
from pydicom.misc import is_dicom

from monai_usfm.data.deidentify import Pseudonyms, require_strip, with_pixels
from monai_usfm.data.dicom import UltrasoundDicomReader
from monai_usfm.data.dicom_geometry import slice_geometry, slice_order
from monai_usfm.data.dicom_pixels import PYDICOM3, display_values, stored_values
from monai_usfm.data.formats import DICOM_SUFFIXES, UnreadableImageError
from monai_usfm.data.upright import gray_from_rgb
from monai_usfm.files import Failures, atomic_write, write_csv

__all__ = ["convert_dicom", "convert_dicom_folder"]

SAVED_WHOLE: dict[str, Any] = {"enforce_file_format": True} if PYDICOM3 else {"write_like_original": False}


def convert_dicom(
    path: PathLike,
    output: PathLike,
    *,
    frame: int | None = None,
    gray: bool = True,
    review: PathLike | None = None,
    **options: Any,
) -> Path:
    """Write an ultrasound DICOM file as PNG or NIfTI with its spacing in mm, or as DICOM without names.

    PNG carries the spacing as pixels per meter (pHYs). NIfTI has the affine; a cine is ``(x, y, 1, t)`` with the frame
    time in seconds, a volume ``(x, y, z)``. DICOM is for ``deidentify="strip"``: the stripped attributes, by the basic
    profile of PS3.15, with all frames, uncompressed. What those formats cannot hold exactly stands beside the output,
    in a file of the same name with ``.json`` added: spacing, value of white, frame rate, region, and, with
    ``deidentify="strip"``, the patient's pseudonym and what was and was not removed. Both files appear complete or not
    at all.

    Args:
        path: DICOM file.
        output: ``*.png``, ``*.nii``, ``*.nii.gz`` or ``*.dcm``; its folder is made if need be.
        frame: the frame to write; ``None`` writes all to NIfTI and the middle one to PNG.
        gray: write luma; else color files keep RGB.
        review: JPEG to write for a person's eyes: the image before and after ``"strip"``. It may show names.
        options: of :class:`UltrasoundDicomReader`.

    Returns:
        The output's path.

    Raises:
        ValueError: when the output's ending is none of these, for DICOM or options of ``"strip"`` without it, and for
            values that the format does not hold.
        UnreadableImageError: see :class:`UltrasoundDicomReader`, where there is no such frame, and where the output is
            there and was not made from this file.
    """
    target = Path(output)
    pixels = target.name.lower().endswith(".png")
    if not target.name.lower().endswith((".png", ".nii", ".nii.gz", ".dcm")):
        raise ValueError(f"output must end in .png, .nii, .nii.gz or .dcm, got {target.name!r}.")
    _require_own(target, Path(path).name)
    reader = UltrasoundDicomReader(**options)
    strip = reader.deidentify == "strip"
    require_strip(reader.deidentify, review=review)
    dataset = reader.read(path)
    count = reader.num_frames(dataset)
    if review is not None:
        _write_review(review, dataset, reader)
    if target.name.lower().endswith(".dcm"):
        if not strip or reader.crop or frame is not None:
            raise ValueError('DICOM is written with deidentify="strip", all frames and no crop; or choose NIfTI.')
        values = reader.frames(dataset, stored=True)[0]
        # as they were stored, which is the order of the attributes of each frame
        made = with_pixels(dataset, values[np.argsort(slice_order(dataset, count))])
        with atomic_write(target) as part, atomic_write(f"{target}.json") as note:
            made.save_as(part, **SAVED_WHOLE)
            report = {"patient": str(made.PatientID), "deidentified": dataset.identity_report}
            note.write_text(json.dumps(report, indent=1) + "\n")
        return target
    if frame is None and pixels:
        frame = count // 2
    if frame is not None and not 0 <= frame < count:
        raise UnreadableImageError(path, f"has {count} frames, so there is no frame {frame}.")
    values, white = reader.frames(dataset, frame)
    if values.dtype.kind == "f":  # shown by a window: as many bits as were stored
        white = 255.0 if int(dataset.BitsStored) <= 8 else 65535.0
        values = np.rint(values * white).astype(np.uint8 if white == 255 else np.uint16)
    if gray and values.shape[-1] == 3:
        values = gray_from_rgb(values).round().astype(values.dtype)
    meta = reader.metadata(dataset)
    affine = meta["affine"].copy()
    volume = slice_geometry(dataset, count) is not None
    if frame is not None and volume:  # the frames of a cine lie in one place
        affine[:3, 3] += affine[:3, 2] * frame
    spacing = np.linalg.norm(affine[:3, :3], axis=0)

    with atomic_write(target) as part, atomic_write(f"{target}.json") as note:
        if pixels:
            page = values[0, ..., 0] if values.shape[-1] == 1 else values[0]
            if page.dtype != np.uint8 and (page.dtype != np.uint16 or page.ndim > 2):
                raise ValueError(
                    f"{'colors' if page.ndim > 2 else 'values'} of type {page.dtype} do not fit into PNG; "
                    f"write {'luma' if page.ndim > 2 else 'NIfTI'}."
                )
            known: dict[str, Any] = {"dpi": tuple(25.4 / spacing[:2])} if meta["spacing_known"] else {}
            Image.fromarray(page).save(part, **known)
        else:
            nib.save(_nifti(values, affine, volume, meta["frame_time"], meta["spacing_known"]), part)
        description = {
            "source": "" if strip else Path(path).name,
            "spacing_mm": [float(mm) for mm in spacing[1::-1]] if meta["spacing_known"] else None,
            "slice_spacing_mm": float(spacing[2]) if volume else None,
            "full_scale": white or None,
            "num_frames": count,
            "frame": frame,
            "frame_rate_hz": meta["frame_rate"] or None,
            "region": meta["region"],
            "regions": [found.describe() for found in reader.regions(dataset)],
            "spacing_box": meta["spacing_box"].tolist() if meta["spacing_known"] and not reader.crop else None,
        }
        if strip:
            description |= {"patient": str(dataset.PatientID), "deidentified": dataset.identity_report}
        note.write_text(json.dumps(description, indent=1) + "\n")
    return target


def convert_dicom_folder(
    inputs: Sequence[Path],
    *,
    output: Path,
    format: Literal["nii.gz", "nii", "png", "dcm"] = "nii.gz",
    region: int | str | None = "largest_tissue",
    crop: bool = False,
    frame: int | None = None,
    color: bool = False,
    deidentify: Literal["check", "strip"] | None = None,
    key: Path | None = None,
    no_regions: Literal["refuse", "blacken"] = "refuse",
    text: Literal["keep", "blacken", "refuse"] = "keep",
    beam: bool = False,
    review: Path | None = None,
) -> Failures:
    """Convert ultrasound DICOM files to NIfTI or PNG with their spacing in mm, or to DICOM without names.

    Folders are searched. Outputs lie below ``output`` as the inputs did, with ``strip`` under pseudonyms. A file that
    cannot be converted is named with the reason, the others go on, and the exit status of the command is 3.

    Args:
        inputs: files or folders.
        output: folder.
        format: type of the files.
        region: ``largest_tissue``, an index, a kind (``tissue``, ``color_flow``, ``m_mode``, ``doppler``, ``trace``) or
            ``none``. A file without a region of that kind is not converted.
        crop: cut to the region.
        frame: write this frame; default: all (NIfTI) or the middle one (PNG).
        color: keep RGB instead of luma.
        deidentify: refuse or strip what names a person.
        key: file with the key of the pseudonyms, made if missing, for ``strip``; keep it.
        no_regions: with ``strip``, a file whose ultrasound regions do not tell image from screen: refuse it, or keep
            its field of view alone.
        text: with ``strip``, text in the pixels that stay: keep it, blacken what is recognized, or refuse the file.
        beam: with ``strip``, blacken all outside the fitted beam.
        review: with ``strip``, a folder for a person's eyes: images before and after, and ``refused.csv``, what was
            refused with the reasons. It names patients; keep it apart from ``output``.

    Returns:
        The files that were not converted, each with the reason.

    Raises:
        FileNotFoundError: where there is no DICOM file.
        ValueError: for ``"strip"`` without a key, for its options without it, and where the key or ``review`` lies in
            ``output``.
    """
    if deidentify == "strip" and key is None:
        raise ValueError('deidentify="strip" needs key, a file for the key of the pseudonyms; it is made if missing.')
    require_strip(deidentify, key=key, review=review)
    if format not in ("png", "nii", "nii.gz", "dcm") or (format == "dcm" and deidentify != "strip"):
        raise ValueError(f'format must be png, nii, nii.gz, or, with deidentify="strip", dcm; got {format!r}.')
    for apart, what in ((key, "key"), (review, "review")):
        if apart is not None and Path(output).resolve() in (Path(apart).resolve(), *Path(apart).resolve().parents):
            raise ValueError(f"{what} {apart} lies in {output}, with the data whose names it tells; put it apart.")
    options: dict[str, Any] = {"region": None if region == "none" else region, "crop": crop, "deidentify": deidentify}
    options |= {"no_regions": no_regions, "text": text, "beam": beam}
    UltrasoundDicomReader(**options)  # refuses what it does not know before a file is read
    pseudonyms = Pseudonyms(key) if deidentify == "strip" and key is not None else None
    failed, done, taken = Failures(), 0, set()
    for argument in map(Path, inputs):
        if not argument.exists():
            failed.append(f"{argument}: no such file or folder")
            continue
        files = [argument] if argument.is_file() else sorted(p for p in argument.rglob("*") if _claims_dicom(p))
        for file in files:
            below = Path(file.name) if argument.is_file() else file.relative_to(argument)
            # a UID as a name has points, of which none begins an ending
            named = below.with_name(below.stem if below.suffix.lower() in DICOM_SUFFIXES else below.name)
            named = pseudonyms.path(named) if pseudonyms is not None else named
            target = Path(output) / named.with_name(f"{named.name}.{format}")
            try:
                if target in taken:
                    raise UnreadableImageError(file, f"{target} was already written from another input.")
                sheet = None if review is None else Path(review) / named.with_name(f"{named.name}.jpg")
                convert_dicom(file, target, frame=frame, gray=not color, review=sheet, pseudonyms=pseudonyms, **options)
                taken.add(target)
                done += 1
            except Exception as error:  # a damaged file must not end a long conversion
                failed.append(str(error) if isinstance(error, UnreadableImageError) else f"{file}: {error!r}")
                print(f"not converted: {failed[-1]}")
    if not done and not failed:
        raise FileNotFoundError(f"{', '.join(map(str, inputs))}: no DICOM files; nothing was converted.")
    print(f"{done} converted, {len(failed)} not.")
    if deidentify == "strip":
        read = "is not read" if text == "keep" else "is found by recognition, which can fail"
        print(
            f"Names of folders, files and patients are pseudonyms under the key in {key}. Text in the pixels that stay "
            f"{read}: look at the images before sharing them{f', side by side in {review}' if review else ''}."
        )
        if review is not None and failed:
            write_csv(Path(review) / "refused.csv", [{"file_and_reason": reason} for reason in failed])
    return failed


def _claims_dicom(path: Path) -> bool:
    """By its content, or by its name: one that is damaged is to be named. Hidden files of other systems are neither."""
    named = path.suffix.lower() in DICOM_SUFFIXES and not path.name.startswith(".")
    return path.is_file() and (named or is_dicom(path))


def _require_own(target: Path, source: str) -> None:
    """Refuse to replace a file that no earlier conversion of this source made, as a mask of the same name is."""
    if not target.exists() or not target.stat().st_size:
        return
    try:
        known = json.loads(Path(f"{target}.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        known = None
    if not isinstance(known, dict) or ("deidentified" not in known and known.get("source") != source):
        raise UnreadableImageError(source, f"{target} is there already, and was not made from it: give another output.")


def _write_review(path: PathLike, dataset: Dataset, reader: UltrasoundDicomReader) -> None:
    """The brightest values over the frames, before and after, side by side."""
    before = display_values(dataset, stored_values(dataset))[0].max(axis=0).astype(np.float32)
    after = before * reader.kept(dataset)[..., None]
    both = np.concatenate([before, after], axis=1) * (255 / max(float(before.max()), 1e-6))
    with atomic_write(path) as part:
        Image.fromarray(both.astype(np.uint8).squeeze()).save(part, quality=85)


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
