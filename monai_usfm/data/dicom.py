# Copyright (c) monai_usfm contributors
# SPDX-License-Identifier: Apache-2.0
"""Ultrasound DICOM: pixels as a viewer shows them, millimetres from the ultrasound regions, frame times, identity."""

from __future__ import annotations

import json
import logging
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pydicom
from monai.config import PathLike
from monai.data import ImageReader
from monai.data.utils import is_supported_format, orientation_ras_lps
from monai.utils import ensure_tuple, optional_import
from PIL import Image
from pydicom.dataset import Dataset
from pydicom.uid import generate_uid

from monai_usfm.data.decoded import Decoded, FramePicker, checked_frame
from monai_usfm.data.formats import UnreadableImageError
from monai_usfm.data.upright import gray_from_rgb
from monai_usfm.files import whole_file

__all__ = [
    "UltrasoundDicomReader",
    "UltrasoundRegion",
    "convert_dicom",
    "decode_dicom",
    "frame_times",
    "ultrasound_regions",
]

# pydicom 3; MONAI Label needs pydicom 2, with which everything but the decoding of DICOM works.
apply_color_lut, _ = optional_import("pydicom.pixels", name="apply_color_lut")
pixel_array, _ = optional_import("pydicom.pixels", name="pixel_array")

logger = logging.getLogger(__name__)

_CENTIMETRE = 3  # code of Physical Units X/Y Direction (0018,6024), (0018,6026)
_TWO_DIMENSIONAL = 1  # Region Spatial Format (0018,6012)
_TISSUE = 1  # Region Data Type (0018,6014)

# Attributes that name or locate a person, after the basic profile of DICOM PS3.15 annex E (table E.1-1). Emptied by
# deidentify="strip"; one that holds letters or digits makes deidentify="check" refuse.
_IDENTIFYING = frozenset(
    """
    PatientName PatientID IssuerOfPatientID PatientBirthDate PatientBirthTime PatientBirthName PatientMotherBirthName
    OtherPatientIDs OtherPatientIDsSequence OtherPatientNames PatientAddress PatientTelephoneNumbers PatientComments
    AdditionalPatientHistory Occupation EthnicGroup MilitaryRank CountryOfResidence RegionOfResidence
    PatientReligiousPreference ResponsiblePerson ResponsibleOrganization MedicalRecordLocator
    PatientInsurancePlanCodeSequence InstitutionName InstitutionAddress InstitutionalDepartmentName
    InstitutionCodeSequence StationName DeviceSerialNumber ReferringPhysicianName ReferringPhysicianAddress
    ReferringPhysicianTelephoneNumbers ReferringPhysicianIdentificationSequence PerformingPhysicianName
    PerformingPhysicianIdentificationSequence OperatorsName OperatorIdentificationSequence PhysiciansOfRecord
    PhysiciansOfRecordIdentificationSequence NameOfPhysiciansReadingStudy RequestingPhysician RequestingService
    ScheduledPerformingPhysicianName PersonName PersonAddress PersonTelephoneNumbers AccessionNumber StudyID
    StudyDescription SeriesDescription ImageComments RequestAttributesSequence CurrentPatientLocation AdmissionID
    AdmittingDiagnosesDescription StudyDate SeriesDate AcquisitionDate ContentDate AcquisitionDateTime
    InstanceCreationDate PerformedProcedureStepStartDate PerformedProcedureStepEndDate
    """.split()  # noqa: SIM905 - a list literal would take seventy lines
)
_IDENTIFIERS = ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID", "FrameOfReferenceUID")


@dataclass(frozen=True)
class UltrasoundRegion:
    """One item of Sequence of Ultrasound Regions (0018,6011), DICOM PS3.3 C.8.5.5.

    Attributes:
        index: position in the sequence.
        box: ``(top, bottom, left, right)`` in pixels, half-open, clamped to the matrix; ``None`` where nothing is left.
        spatial_format: Region Spatial Format: 1 is 2D, 2 M-mode, 3 spectral, 4 wave form, 5 graphics.
        data_type: Region Data Type: 1 is tissue, 2 colour flow, 10 ECG ...
        spacing: ``(row, column)`` in mm per pixel; ``None`` unless both axes are lengths.
    """

    index: int
    box: tuple[int, int, int, int] | None
    spatial_format: int
    data_type: int
    spacing: tuple[float, float] | None

    @property
    def area(self) -> int:
        """Pixels of the box."""
        return 0 if self.box is None else (self.box[1] - self.box[0]) * (self.box[3] - self.box[2])


def ultrasound_regions(dataset: Dataset) -> list[UltrasoundRegion]:
    """The calibrated regions of an image, clamped to its matrix.

    Exporters that crop or shrink the picture often leave the boxes as they were; such a box is clamped with a warning.
    A box one pixel too long is clamped in silence: some scanners write the edge after the last pixel.
    """
    rows, columns = int(dataset.Rows), int(dataset.Columns)
    regions = []
    for index, item in enumerate(dataset.get("SequenceOfUltrasoundRegions") or []):
        corners = [item.get(f"RegionLocation{name}") for name in ("MinY0", "MaxY1", "MinX0", "MaxX1")]
        box = None
        if None not in corners:
            top, bottom, left, right = (int(corner) for corner in corners)
            box = (min(top, rows), min(bottom + 1, rows), min(left, columns), min(right + 1, columns))
            if bottom > rows or right > columns:
                warnings.warn(
                    f"{_name(dataset)}: ultrasound region {index} reaches to column {right} and row {bottom}, but the "
                    f"matrix has {columns} columns and {rows} rows; clamped. Its spacing is kept as written: right if "
                    "the picture was cropped, wrong if it was shrunk.",
                    stacklevel=2,
                )
            if box[0] >= box[1] or box[2] >= box[3]:
                box = None
        units = (item.get("PhysicalUnitsYDirection"), item.get("PhysicalUnitsXDirection"))
        deltas = (item.get("PhysicalDeltaY"), item.get("PhysicalDeltaX"))
        spacing = None
        if units == (_CENTIMETRE, _CENTIMETRE) and all(deltas):
            spacing = (10 * abs(float(deltas[0])), 10 * abs(float(deltas[1])))  # negative: the axis points up or left
        regions.append(
            UltrasoundRegion(
                index, box, int(item.get("RegionSpatialFormat") or 0), int(item.get("RegionDataType") or 0), spacing
            )
        )
    return regions


def frame_times(dataset: Dataset) -> np.ndarray | None:
    """Time of each frame in seconds, the first at 0; ``None`` where the file does not tell.

    From Frame Time Vector, Frame Time, Cine Rate or Recommended Display Frame Rate, whichever comes first.
    """
    count = int(dataset.get("NumberOfFrames") or 1)
    vector = dataset.get("FrameTimeVector")
    if vector is not None and count > 1 and len(vector) == count:
        steps = np.asarray(vector, dtype=np.float64)
        return np.concatenate([[0.0], np.cumsum(steps[1:])]) / 1000
    step = float(dataset.get("FrameTime") or 0) / 1000
    for keyword in ("CineRate", "RecommendedDisplayFrameRate"):
        if step <= 0 and float(dataset.get(keyword) or 0) > 0:
            step = 1 / float(dataset.get(keyword))
    return np.arange(count) * step if step > 0 else None


class UltrasoundDicomReader(ImageReader):
    """MONAI reader of ultrasound DICOM: stills, cines and Enhanced US Volumes.

    Pixels are decoded by pydicom (uncompressed, RLE, JPEG, JPEG-LS, JPEG 2000 as far as its plugins are installed);
    YBR becomes RGB, palettes are applied (8 bits per channel), MONOCHROME1 is inverted. Spacing comes from the chosen
    ultrasound region, else from Pixel Spacing; an Enhanced US Volume's from its functional groups, which also give
    the order, direction and distance of the slices. Stored values are returned: no window and no rescaling.

    ``get_data`` returns ``(x, y)``, ``(x, y, frame)``, each with a last axis of 3 where in colour, as MONAI's other
    readers do. Metadata: ``affine`` (mm; 1 where unknown, and along time), ``spacing_known``, ``frame_rate`` in Hz and
    ``frame_time`` in s (0 where unknown), ``bits``, ``region`` (index or -1). No attribute that names a person is
    copied to it.

    Args:
        region: ``"largest_tissue"`` (the largest 2D tissue region with lengths, else the largest 2D region with
            lengths), an index into the sequence, or ``None`` to use none.
        crop: cut the picture to the region's box.
        deidentify: ``"check"`` refuses files that name a person or say that annotation is burnt in; ``"strip"`` empties
            those attributes, private ones and unique identifiers, and blackens the pixels outside the ultrasound
            regions, where scanners write names; it logs what it did, and refuses where burnt-in annotation is declared
            and no region tells where. ``None`` does neither.
            No option reads text: what is written inside an ultrasound region stays. ``"check"`` refuses every file
            that declares burnt-in annotation, but scanners often do not; look at the pictures before sharing them.

    Raises:
        ValueError: on an unknown option.
        UnreadableImageError: on reading, naming the file.
    """

    def __init__(
        self, region: str | int | None = "largest_tissue", crop: bool = False, deidentify: str | None = None
    ) -> None:
        super().__init__()
        if isinstance(region, str) and region != "largest_tissue":
            raise ValueError(f'region must be "largest_tissue", an index or None, got {region!r}.')
        if deidentify not in ("check", "strip", None):
            raise ValueError(f'deidentify must be "check", "strip" or None, got {deidentify!r}.')
        self.region = region
        self.crop = crop
        self.deidentify = deidentify

    def verify_suffix(self, filename: Sequence[PathLike] | PathLike) -> bool:
        """Whether the files end in ``.dcm``, ``.dicom`` or ``.ima``, or begin as DICOM files do."""
        if is_supported_format(filename, ["dcm", "dicom", "ima"]):
            return True
        return all(Path(name).is_file() and pydicom.misc.is_dicom(name) for name in ensure_tuple(filename))

    def read(self, data: Sequence[PathLike] | PathLike, **kwargs: Any) -> Any:
        """Read one file, or a list of them that ``get_data`` will stack as channels.

        Args:
            data: file name or names.
            kwargs: passed to :func:`pydicom.dcmread`.
        """
        datasets = [self.read_file(name, **kwargs) for name in ensure_tuple(data)]
        return datasets if len(datasets) > 1 else datasets[0]

    def read_file(self, name: PathLike, **kwargs: Any) -> Dataset:
        """Read one file, see :meth:`read`."""
        dataset = pydicom.dcmread(name, **kwargs)
        dataset.filename = str(name)
        if "PixelData" not in dataset or "Rows" not in dataset:
            raise UnreadableImageError(name, "a DICOM file without an image (a report or a presentation state?).")
        self._protect(dataset)
        return dataset

    def get_data(self, img: Dataset | Sequence[Dataset]) -> tuple[np.ndarray, dict]:
        """``(array, metadata)`` in MONAI's reader convention, see the class."""
        datasets = [img] if isinstance(img, Dataset) else list(img)
        arrays = []
        for dataset in datasets:
            values = self.frames(dataset).transpose(2, 1, 0, 3)
            if values.shape[2] == 1:
                values = values[:, :, 0]
            arrays.append(values if values.shape[-1] > 1 else values[..., 0])
        meta = self._meta(datasets[0])
        coloured = self.frames_have_colour(datasets[0])
        meta["spatial_shape"] = np.asarray(arrays[0].shape[:-1] if coloured else arrays[0].shape)
        meta["original_channel_dim"] = -1 if coloured else float("nan")
        if len(arrays) == 1:
            return arrays[0], meta
        if coloured or len({array.shape for array in arrays}) > 1:
            raise UnreadableImageError(_name(datasets[0]), "only grey images of one size can be stacked as channels.")
        meta["original_channel_dim"] = 0
        return np.stack(arrays), meta

    def num_frames(self, dataset: Dataset) -> int:
        """Frames of the image, 1 for a still."""
        return int(dataset.get("NumberOfFrames") or 1)

    def frames_have_colour(self, dataset: Dataset) -> bool:
        """Whether :meth:`frames` gives three channels."""
        return int(dataset.get("SamplesPerPixel", 1)) > 1 or dataset.PhotometricInterpretation == "PALETTE COLOR"

    def bits(self, dataset: Dataset) -> int:
        """Significant bits of the values that :meth:`frames` gives."""
        return 8 if dataset.PhotometricInterpretation == "PALETTE COLOR" else int(dataset.BitsStored)

    def frames(self, dataset: Dataset, index: int | None = None) -> np.ndarray:
        """Decoded pixels, upright, ``(frames, H, W, 1 or 3)``, slices of a volume in the order of their position.

        Args:
            dataset: what :meth:`read` returned.
            index: a frame (or slice, in the sorted order), to decode only that one.
        """
        order = self._slice_order(dataset)
        if index is not None:
            values = pixel_array(dataset, index=int(order[index]))[None]
        else:
            values = pixel_array(dataset)
            values = values[None] if self.num_frames(dataset) == 1 else values[order]
        if dataset.PhotometricInterpretation == "PALETTE COLOR":
            values = _palette(dataset)[values]
        elif dataset.PhotometricInterpretation == "MONOCHROME1":
            values = (2 ** int(dataset.BitsStored) - 1 - values).astype(values.dtype)
        if values.ndim == 3:
            values = values[..., None]
        if self.deidentify == "strip":
            values = values * _inside_regions(dataset)[None, :, :, None].astype(values.dtype)
        region = self._region(dataset)
        if self.crop and region is not None and region.box is not None:
            top, bottom, left, right = region.box
            values = values[:, top:bottom, left:right]
        return values

    def affine(self, dataset: Dataset) -> tuple[np.ndarray, bool]:
        """4x4 matrix from the voxel ``(x, y, frame)`` to mm, and whether the file gave the spacing."""
        region = self._region(dataset)
        measured = _functional_group(dataset, 0, "PixelMeasuresSequence")
        if measured is not None and _positive(measured.get("PixelSpacing")):
            affine = self._volume_affine(dataset, measured)
        else:
            row_and_column = region.spacing if region is not None and region.spacing else dataset.get("PixelSpacing")
            if not _positive(row_and_column):
                return np.eye(4), False
            affine = np.diag([float(row_and_column[1]), float(row_and_column[0]), 1.0, 1.0])
        if self.crop and region is not None and region.box is not None:
            affine[:3, 3] += affine[:3, 0] * region.box[2] + affine[:3, 1] * region.box[0]
        return affine, True

    def _region(self, dataset: Dataset) -> UltrasoundRegion | None:
        if self.region is None:
            return None
        with warnings.catch_warnings():
            if getattr(dataset, "_regions_reported", False):  # clamping is worth one warning per file
                warnings.simplefilter("ignore")
            regions = ultrasound_regions(dataset)
        object.__setattr__(dataset, "_regions_reported", True)
        if not isinstance(self.region, str):
            if not -len(regions) <= self.region < len(regions):
                raise UnreadableImageError(
                    _name(dataset), f"has {len(regions)} ultrasound regions, so there is no region {self.region}."
                )
            return regions[self.region]
        flat = [r for r in regions if r.spatial_format == _TWO_DIMENSIONAL and r.spacing is not None]
        tissue = [r for r in flat if r.data_type == _TISSUE]
        return max(tissue or flat, key=lambda r: r.area, default=None)

    def _slice_order(self, dataset: Dataset) -> np.ndarray:
        """Frame indices by position along the slice normal; as stored where the file is no volume."""
        count = self.num_frames(dataset)
        geometry = _slice_geometry(dataset, count)
        if geometry is None:
            return np.arange(count)
        positions, directions = geometry
        depth = positions @ np.cross(*directions)
        order = np.argsort(depth, kind="stable")
        if count > 1 and np.diff(depth[order]).min() < 1e-4:
            raise UnreadableImageError(
                _name(dataset), "several frames lie at one position: a sequence of volumes; store each in its own file."
            )
        return order

    def _volume_affine(self, dataset: Dataset, measured: Dataset) -> np.ndarray:
        """Affine of an enhanced image, from its functional groups. DICOM's LPS becomes RAS, as in MONAI's readers."""
        row_mm, column_mm = (float(mm) for mm in measured.PixelSpacing)
        slice_mm = float(measured.get("SpacingBetweenSlices") or measured.get("SliceThickness") or 1.0)
        geometry = _slice_geometry(dataset, self.num_frames(dataset))
        if geometry is None:
            return np.diag([column_mm, row_mm, slice_mm, 1.0])
        positions, (along_row, along_column) = geometry
        positions = positions[self._slice_order(dataset)]
        affine = np.eye(4)
        affine[:3, 0] = along_row * column_mm
        affine[:3, 1] = along_column * row_mm
        affine[:3, 2] = np.cross(along_row, along_column) * slice_mm
        if len(positions) > 1:
            steps = np.diff(positions, axis=0)
            if np.abs(steps - steps.mean(axis=0)).max() > 0.05 * np.linalg.norm(steps.mean(axis=0)):
                warnings.warn(
                    f"{_name(dataset)}: slices are not evenly spaced; their mean distance is used.", stacklevel=3
                )
            affine[:3, 2] = steps.mean(axis=0)
        affine[:3, 3] = positions[0]
        return orientation_ras_lps(affine)

    def _meta(self, dataset: Dataset) -> dict:
        affine, known = self.affine(dataset)
        region = self._region(dataset)
        times = frame_times(dataset)
        step = float(np.diff(times).mean()) if times is not None and len(times) > 1 else 0.0
        return {
            "affine": affine,
            "original_affine": affine.copy(),
            "space": "RAS",
            "spacing_known": known,
            "num_frames": self.num_frames(dataset),
            "frame_time": step,
            "frame_rate": 1 / step if step > 0 else 0.0,
            "bits": self.bits(dataset),
            "region": -1 if region is None else region.index,
        }

    def _protect(self, dataset: Dataset) -> None:
        """Apply ``deidentify`` to the attributes of a file just read."""
        if self.deidentify is None:
            return
        named = _identifying_attributes(dataset)
        burnt_in = str(dataset.get("BurnedInAnnotation") or "").upper() == "YES"
        if self.deidentify == "check":
            if str(dataset.get("PatientIdentityRemoved") or "").upper() == "YES":
                named = [keyword for keyword in named if keyword not in ("PatientName", "PatientID")]  # pseudonyms
            problems = ([f"filled attributes {', '.join(named)}"] if named else []) + (
                ["burnt-in annotation declared"] if burnt_in else []
            )
            if problems:
                raise UnreadableImageError(
                    _name(dataset), f'may identify a person: {"; ".join(problems)}. De-identify it or use "strip".'
                )
            return
        boxes = [region.box for region in ultrasound_regions(dataset) if region.box is not None]
        if burnt_in and not boxes:
            raise UnreadableImageError(
                _name(dataset), "declares burnt-in annotation, and no ultrasound region tells where it is not; mask it."
            )
        if burnt_in:
            logger.warning(
                "%s: declares burnt-in annotation; text inside its ultrasound regions is kept.", _name(dataset)
            )
        private = sum(1 for element in dataset if element.tag.is_private)
        dataset.remove_private_tags()
        dataset.walk(_empty_if_identifying)
        dataset.PatientIdentityRemoved = "YES"
        dataset.DeidentificationMethod = "identifying and private attributes emptied, UIDs replaced"
        logger.info(
            "%s: emptied %s; removed %d private attributes; replaced unique identifiers; %s.",
            _name(dataset),
            ", ".join(named) or "nothing",
            private,
            f"blackened {1 - _inside_regions(dataset).mean():.0%} of the pixels, all outside the ultrasound regions",
        )


def decode_dicom(path: str, pick: FramePicker | None) -> Decoded:
    """Read a DICOM file by :class:`UltrasoundDicomReader`, for :class:`~monai_usfm.data.UltrasoundReader`."""
    reader = UltrasoundDicomReader()
    dataset = reader.read_file(path)
    count = reader.num_frames(dataset)
    frame = None if pick is None else checked_frame(path, pick, count)
    affine, known = reader.affine(dataset)
    values = reader.frames(dataset, frame).transpose(2, 1, 0, 3)
    if frame is not None or count == 1:
        values = values[:, :, 0]
    meta = reader._meta(dataset)
    return Decoded(
        values,
        affine,
        known,
        num_frames=count,
        frame=frame,
        full_scale=float(2 ** reader.bits(dataset) - 1),
        cine=count > 1 and _slice_geometry(dataset, count) is None,
        frame_time=meta["frame_time"],
    )


def convert_dicom(
    path: PathLike,
    output: PathLike,
    *,
    region: str | int | None = "largest_tissue",
    crop: bool = False,
    frame: int | None = None,
    gray: bool = True,
    deidentify: str | None = None,
) -> Path:
    """Write an ultrasound DICOM file as PNG or NIfTI with its spacing in mm.

    PNG carries the spacing as pixels per metre (pHYs). NIfTI has the affine; a cine is ``(x, y, 1, t)`` with the frame
    time in seconds, a volume ``(x, y, z)``. What those formats cannot hold exactly stands beside the output, in a file
    of the same name with ``.json`` added: spacing, frame rate, region. Both files appear complete or not at all.

    Args:
        path: DICOM file.
        output: ``*.png``, ``*.nii`` or ``*.nii.gz``; its folder is made if need be.
        region: see :class:`UltrasoundDicomReader`.
        crop: see :class:`UltrasoundDicomReader`.
        frame: the frame to write; ``None`` writes all to NIfTI and the middle one to PNG.
        gray: write luma; else colour files keep RGB.
        deidentify: see :class:`UltrasoundDicomReader`.

    Returns:
        The output's path.

    Raises:
        ValueError: when the output's ending is neither PNG nor NIfTI.
        UnreadableImageError: see :class:`UltrasoundDicomReader`, and where there is no such frame.
    """
    target = Path(output)
    picture = target.name.lower().endswith(".png")
    if not picture and not target.name.lower().endswith((".nii", ".nii.gz")):
        raise ValueError(f"output must end in .png, .nii or .nii.gz, got {target.name!r}.")
    reader = UltrasoundDicomReader(region, crop, deidentify)
    dataset = reader.read_file(path)
    count = reader.num_frames(dataset)
    if frame is None and picture:
        frame = count // 2
    if frame is not None and not 0 <= frame < count:
        raise UnreadableImageError(path, f"has {count} frames, so there is no frame {frame}.")
    values = reader.frames(dataset, frame)
    if gray and values.shape[-1] == 3:
        values = gray_from_rgb(values)
    meta = reader._meta(dataset)
    affine = meta["affine"].copy()
    if frame is not None:
        affine[:3, 3] += affine[:3, 2] * frame
    spacing = np.linalg.norm(affine[:3, :3], axis=0)

    with whole_file(target) as part, whole_file(f"{target}.json") as note:
        if picture:
            page = values[0, ..., 0] if values.shape[-1] == 1 else values[0]
            known: dict[str, Any] = {"dpi": tuple(25.4 / spacing[:2])} if meta["spacing_known"] else {}
            Image.fromarray(page).save(part, **known)
        else:
            volume = _slice_geometry(dataset, count) is not None
            nib.save(_nifti(values, affine, volume, meta["frame_time"], meta["spacing_known"]), part)
        description = {
            "source": "" if deidentify == "strip" else Path(path).name,
            "spacing_mm": [float(mm) for mm in spacing[1::-1]] if meta["spacing_known"] else None,
            "slice_spacing_mm": float(spacing[2]) if _slice_geometry(dataset, count) is not None else None,
            "num_frames": count,
            "frame": frame,
            "frame_rate_hz": meta["frame_rate"] or None,
            "region": meta["region"],
        }
        note.write_text(json.dumps(description, indent=1) + "\n")
    return target


def _nifti(values: np.ndarray, affine: np.ndarray, volume: bool, frame_time: float, known: bool) -> nib.Nifti1Image:
    """``(frames, H, W, 1 or 3)`` -> NIfTI with the axes x, y, z or x, y, 1, t; colour as RGB24 records."""
    if values.shape[-1] == 3:
        record = np.dtype([("R", "u1"), ("G", "u1"), ("B", "u1")])
        if values.dtype != np.uint8:  # NIfTI's colours have 8 bits
            raise ValueError(f"colours of type {values.dtype} do not fit into NIfTI, which has 8 bits; write luma.")
        values = np.ascontiguousarray(values).view(record)
    array = values[..., 0].transpose(2, 1, 0)
    cine = not volume and array.shape[2] > 1
    img = nib.Nifti1Image(array[:, :, None] if cine else array, affine)
    img.header.set_xyzt_units("mm" if known else None, "sec")
    if cine:
        img.header.set_zooms((*img.header.get_zooms()[:3], frame_time or 1.0))
    return img


def _name(dataset: Dataset) -> str:
    return str(getattr(dataset, "filename", None) or "DICOM data set")


def _palette(dataset: Dataset) -> np.ndarray:
    """Colour table ``(entries, 3)`` in 8 bits."""
    table = apply_color_lut(np.arange(2 ** int(dataset.BitsStored), dtype=np.uint16), dataset)
    # 16-bit tables hold 8-bit colours in their upper byte; read from a big-endian file, in the lower one
    return (table >> 8 if table.max() > 255 else table).astype(np.uint8)


def _positive(spacing: Sequence | None) -> bool:
    """Whether a spacing is given and usable."""
    return bool(spacing) and all(np.isfinite(float(mm)) and float(mm) > 0 for mm in spacing or ())


def _functional_group(dataset: Dataset, frame: int, keyword: str) -> Dataset | None:
    """A functional group of one frame of an enhanced image, from the per-frame or the shared sequence."""
    per_frame = dataset.get("PerFrameFunctionalGroupsSequence") or []
    candidates = ([per_frame[frame]] if frame < len(per_frame) else []) + list(
        dataset.get("SharedFunctionalGroupsSequence") or []
    )
    for groups in candidates:
        if groups.get(keyword):
            return groups[keyword][0]
    return None


def _slice_geometry(dataset: Dataset, count: int) -> tuple[np.ndarray, tuple[np.ndarray, np.ndarray]] | None:
    """Positions ``(frames, 3)`` in mm and the directions along a row and along a column; ``None`` for a flat image."""
    # the ultrasound volume's own frame of reference, else the patient's
    for group, attribute in (("Volume", "Volume"), ("", "Patient")):
        planes = [_functional_group(dataset, frame, f"PlanePosition{group}Sequence") for frame in range(count)]
        oriented = _functional_group(dataset, 0, f"PlaneOrientation{group}Sequence")
        points = [plane.get(f"ImagePosition{attribute}") for plane in planes if plane is not None]
        if oriented is not None and len(points) == count and None not in points:
            directions = np.asarray(oriented[f"ImageOrientation{attribute}"].value, dtype=np.float64).reshape(2, 3)
            return np.asarray(points, dtype=np.float64), (directions[0], directions[1])
    return None


def _identifying_attributes(dataset: Dataset) -> list[str]:
    """Keywords of the attributes, at any depth, that hold a letter or a digit about a person."""
    found = []
    for element in dataset.iterall():
        filled = any(c.isalnum() for c in str(element.value or ""))  # "--" names nobody
        if filled and element.keyword in _IDENTIFYING and element.keyword not in found:
            found.append(element.keyword)
    return found


def _empty_if_identifying(dataset: Dataset, element: pydicom.DataElement) -> None:
    if element.keyword in _IDENTIFYING:
        element.value = [] if element.VR == "SQ" else None
    elif element.keyword in _IDENTIFIERS:
        element.value = generate_uid(entropy_srcs=[str(element.value)])  # same in, same out: series stay together


def _inside_regions(dataset: Dataset) -> np.ndarray:
    """Mask of the ultrasound regions, ``(H, W)``; all true where a file has none."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # reading has already warned of clamped boxes
        boxes = [region.box for region in ultrasound_regions(dataset) if region.box is not None]
    inside = np.full((int(dataset.Rows), int(dataset.Columns)), not boxes)
    for top, bottom, left, right in boxes:
        inside[top:bottom, left:right] = True
    return inside
