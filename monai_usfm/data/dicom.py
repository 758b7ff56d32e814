# Copyright (c) monai_usfm contributors
# SPDX-License-Identifier: Apache-2.0
"""Ultrasound DICOM as a MONAI reader: pixels as a viewer shows them, millimeters, frame times."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from monai.config import PathLike
from monai.data import ImageReader
from monai.data.utils import is_supported_format
from monai.utils import ensure_tuple
from pydicom.dataset import Dataset
from pydicom.errors import InvalidDicomError

from monai_usfm.data.burned_in import require_ocr
from monai_usfm.data.decoded import Decoded, FramePicker, checked_frame
from monai_usfm.data.deidentify import Pseudonyms, check_identity, kept_pixels, require_strip, strip_identity
from monai_usfm.data.dicom_geometry import (
    KINDS,
    UltrasoundRegion,
    dataset_name,
    frame_times,
    functional_group,
    is_spacing,
    slice_geometry,
    slice_order,
    ultrasound_regions,
    volume_affine,
)
from monai_usfm.data.dicom_pixels import count_frames, display_values, is_inverse, stored_range, stored_values
from monai_usfm.data.formats import UnreadableImageError, check_size

__all__ = ["UltrasoundDicomReader"]

_TWO_DIMENSIONAL = 1  # Region Spatial Format (0018,6012)
_TISSUE = 1  # Region Data Type (0018,6014)


class UltrasoundDicomReader(ImageReader):
    """MONAI reader of ultrasound DICOM: stills, cines and Enhanced US Volumes.

    Pixels are decoded by pydicom (uncompressed, RLE, JPEG, JPEG-LS, JPEG 2000 as far as its plugins are installed);
    YBR becomes RGB, palettes are applied (8 bits per channel), and gray values are shown as the file asks: rescale,
    window or LUT, MONOCHROME1 and Presentation LUT Shape. Where nothing is to be applied, stored integers come, else
    floats in [0, 1]; ``full_scale`` of the metadata is the value of white, 0 where the file does not tell. A file
    without Number of Frames has as many as its pixel data hold.

    Spacing comes from the chosen ultrasound region, else from Pixel Spacing; an Enhanced US Volume's from its
    functional groups, which also give the order, direction and distance of the slices. Where 2D regions differ in
    scale, the spacing of the one chosen by default is not known for the whole image: ``spacing_known`` is false, with a
    warning, until a region is chosen by index or the image is cropped to it. ``spacing_box`` tells where it holds.

    ``get_data`` returns ``(x, y)``, ``(x, y, frame)``, each with a last axis of 3 where in color, as MONAI's other
    readers do. Metadata: ``affine`` (mm; 1 where unknown, and along time), ``spacing_known``, ``spacing_box``,
    ``frame_rate`` in Hz and ``frame_time`` in s (0 where unknown), ``full_scale``, ``region`` (index or -1). No
    attribute that names a person is copied to it.

    Args:
        region: ``"largest_tissue"`` (the largest 2D tissue region with lengths, else the largest 2D region with
            lengths), an index into the sequence, a kind (``"tissue"``, ``"color_flow"``, ``"m_mode"``, ``"doppler"``,
            ``"trace"``, ``"graphics"``; the largest of it, an error where there is none), or ``None`` to use none.
        crop: cut the image to the region's box.
        deidentify: ``"check"`` refuses files that may name a person or say that annotation is burned in; ``"strip"``
            empties all text but technical attributes, removes private ones, replaces unique identifiers, and blackens
            the pixels outside the ultrasound regions, where scanners write names; it logs what it did and what stays.
            ``None`` does neither. ``"check"`` refuses every file that declares burned-in annotation, but scanners often
            do not; look at the images before sharing them.
        no_regions: with ``"strip"``, what becomes of a file whose ultrasound regions do not tell image from screen:
            ``"refuse"`` it, or ``"blacken"`` all but the field of view.
        pseudonyms: with ``"strip"``, keyed names of patients and unique identifiers; without, they are random in each
            process.
        text: with ``"strip"``, what becomes of text in the pixels that stay: ``"keep"``, ``"blacken"`` or ``"refuse"``,
            see :func:`~monai_usfm.data.deidentify.kept_pixels`; needs RapidOCR.
        beam: with ``"strip"``, blacken all outside the fitted beam as well.

    Raises:
        ValueError: on an unknown option, and on one for ``"strip"`` without it.
        UnreadableImageError: on reading, naming the file.
    """

    def __init__(
        self,
        region: str | int | None = "largest_tissue",
        crop: bool = False,
        deidentify: str | None = None,
        no_regions: str = "refuse",
        pseudonyms: Pseudonyms | None = None,
        text: str = "keep",
        beam: bool = False,
    ) -> None:
        super().__init__()
        if isinstance(region, str) and region not in ("largest_tissue", *KINDS):
            raise ValueError(f"region must be largest_tissue, an index, {', '.join(KINDS)} or None, got {region!r}.")
        if isinstance(region, int) and region < 0:
            raise ValueError(f"region must be an index from 0, got {region}.")
        if deidentify not in ("check", "strip", None):
            raise ValueError(f'deidentify must be "check", "strip" or None, got {deidentify!r}.')
        if no_regions not in ("refuse", "blacken"):
            raise ValueError(f'no_regions must be "refuse" or "blacken", got {no_regions!r}.')
        if text not in ("keep", "blacken", "refuse"):
            raise ValueError(f'text must be "keep", "blacken" or "refuse", got {text!r}.')
        given = {"no_regions": no_regions != "refuse", "text": text != "keep", "beam": beam}
        require_strip(deidentify, pseudonyms=pseudonyms, **given)
        if crop and region is None:
            raise ValueError("crop is to an ultrasound region: name one, or leave crop out.")
        if text != "keep":
            require_ocr()
        self.region, self.crop = region, crop
        self.deidentify, self.no_regions, self.pseudonyms = deidentify, no_regions, pseudonyms
        self.text, self.beam = text, beam

    def verify_suffix(self, filename: Sequence[PathLike] | PathLike) -> bool:
        """Whether the files end in ``.dcm``, ``.dicom`` or ``.ima``, or begin as DICOM files do."""
        if is_supported_format(filename, ["dcm", "dicom", "ima"]):
            return True
        return all(Path(name).is_file() and pydicom.misc.is_dicom(name) for name in ensure_tuple(filename))

    def read(self, data: Sequence[PathLike] | PathLike, **kwargs: Any) -> Dataset:
        """Read one file; ``kwargs`` are those of :func:`pydicom.dcmread`."""
        names = ensure_tuple(data)
        if len(names) != 1:
            raise UnreadableImageError(str(names), "an image is one file.")
        name = names[0]
        try:
            dataset = pydicom.dcmread(name, **kwargs)
        except InvalidDicomError:
            raise UnreadableImageError(
                name, "has no DICOM header, so it is not of the type its name says: export it again, or leave it out."
            ) from None
        dataset.filename = str(name)
        if "PixelData" not in dataset or "Rows" not in dataset:
            raise UnreadableImageError(name, "a DICOM file without an image (a report or a presentation state?).")
        if not dataset.get("NumberOfFrames"):
            count = count_frames(dataset)
            if count > 1:
                dataset.NumberOfFrames = count
        check_size(name, int(dataset.Columns), int(dataset.Rows), self.num_frames(dataset))
        if self.deidentify == "check":
            check_identity(dataset)
        elif self.deidentify == "strip":
            dataset.identity_report = strip_identity(dataset, self.no_regions, self.pseudonyms, self.text, self.beam)
        return dataset

    def get_data(self, img: Dataset) -> tuple[np.ndarray, dict]:
        """``(array, metadata)`` in MONAI's reader convention, see the class."""
        values, white = self.frames(img)
        values = values.transpose(2, 1, 0, 3)
        if values.shape[2] == 1:
            values = values[:, :, 0]
        colored = values.shape[-1] > 1
        meta = self.metadata(img) | {"full_scale": white, "spatial_shape": np.asarray(values.shape[:-1])}
        meta["original_channel_dim"] = -1 if colored else float("nan")
        return values if colored else values[..., 0], meta

    def num_frames(self, dataset: Dataset) -> int:
        """Frames of the image, 1 for a still."""
        return int(dataset.get("NumberOfFrames") or 1)

    def frames(self, dataset: Dataset, index: int | None = None, stored: bool = False) -> tuple[np.ndarray, float]:
        """``(values, value of white)``: upright, ``(frames, H, W, 1 or 3)``, slices in the order of their position.

        Only the frame or slice ``index`` of that order, if one is given; ``stored`` keeps the numbers of label maps.
        """
        count = self.num_frames(dataset)
        order = slice_order(dataset, count)
        values = stored_values(dataset, None if index is None else int(order[index]))
        values = values[order] if index is None and count > 1 else values
        white = 0.0
        if not stored:
            values, white = display_values(dataset, values)
        if self.deidentify == "strip":
            kept = self.kept(dataset, values if len(values) == count and not stored else None)
            black = stored_range(dataset)[1] if stored and is_inverse(dataset) else 0
            values = np.where(kept[None, :, :, None], values, np.asarray(black, values.dtype))
        if self.crop:
            top, bottom, left, right = self._crop_box(dataset)
            values = values[:, top:bottom, left:right]
        return values, white

    def kept(self, dataset: Dataset, values: np.ndarray | None = None) -> np.ndarray:
        """Mask of the pixels that de-identification keeps, ``(H, W)``, from the shown values of all frames."""
        if not hasattr(dataset, "_kept"):
            if values is None:
                values = display_values(dataset, stored_values(dataset))[0]
            mask = kept_pixels(dataset, values, self.no_regions, self.text, self.beam)
            object.__setattr__(dataset, "_kept", mask)
        return dataset._kept

    def affine(self, dataset: Dataset) -> tuple[np.ndarray, bool]:
        """4x4 matrix from the voxel ``(x, y, frame)`` to mm, and whether the spacing is known for all of the image."""
        region = self._region(dataset)
        measured = functional_group(dataset, 0, "PixelMeasuresSequence")
        if measured is not None and is_spacing(measured.get("PixelSpacing")):
            affine = volume_affine(dataset, measured, self.num_frames(dataset))
        else:
            row_and_column = region.spacing if region is not None and region.spacing else dataset.get("PixelSpacing")
            if region is not None and region.kind not in ("tissue", "color_flow"):
                row_and_column = None  # seconds or velocities, no lengths
            if not is_spacing(row_and_column):
                return np.eye(4), False
            if not (self.crop or self.region != "largest_tissue" or not self._scales_differ(dataset)):
                return np.eye(4), False
            affine = np.diag([float(row_and_column[1]), float(row_and_column[0]), 1.0, 1.0])
        if self.crop:
            top, _, left, _ = self._crop_box(dataset)
            affine[:3, 3] += affine[:3, 0] * left + affine[:3, 1] * top
        return affine, True

    def metadata(self, dataset: Dataset) -> dict:
        """What the header says, see the class."""
        affine, known = self.affine(dataset)
        region = self._region(dataset)
        times = frame_times(dataset)
        step = float(np.diff(times).mean()) if times is not None and len(times) > 1 else 0.0
        box = region.box if region is not None and not self.crop and self._scales_differ(dataset) else None
        return {
            "affine": affine,
            "original_affine": affine.copy(),
            "space": "RAS",
            "spacing_known": known,
            "spacing_box": np.asarray(box or (0, int(dataset.Rows), 0, int(dataset.Columns))),
            "num_frames": self.num_frames(dataset),
            "frame_time": step,
            "frame_rate": 1 / step if step > 0 else 0.0,
            "region": -1 if region is None else region.index,
        }

    def regions(self, dataset: Dataset) -> list[UltrasoundRegion]:
        """All regions of the image, see :func:`~monai_usfm.data.ultrasound_regions`; one warning per file."""
        if not hasattr(dataset, "_regions"):
            object.__setattr__(dataset, "_regions", ultrasound_regions(dataset))
        return dataset._regions

    def _scales_differ(self, dataset: Dataset) -> bool:
        """Whether 2D regions of the image have different mm per pixel, by more than a hundredth; warns once."""
        flat = [r for r in self.regions(dataset) if _is_flat(r) and r.box is not None]
        scales = [r.spacing for r in flat if r.spacing is not None]
        differ = bool(scales) and not np.allclose(scales, scales[0], rtol=0.01)
        reported = getattr(dataset, "_scales_reported", False) or self.crop or self.region != "largest_tissue"
        if differ and not reported:
            object.__setattr__(dataset, "_scales_reported", True)
            shown = ", ".join(f"{r.spacing[0]:.3g} x {r.spacing[1]:.3g} mm (region {r.index})" for r in flat)  # type: ignore[index]
            warnings.warn(
                f"{dataset_name(dataset)}: its ultrasound regions have different scales: {shown}; no spacing holds for "
                "the whole image. Choose one by region=INDEX, or crop to it.",
                stacklevel=4,
            )
        return differ

    def _crop_box(self, dataset: Dataset) -> tuple[int, int, int, int]:
        """Rows and columns of the region to crop to; without one the whole screen with its text would pass."""
        region = self._region(dataset)
        if region is None or region.box is None:
            raise UnreadableImageError(dataset_name(dataset), "has no ultrasound region to crop to; leave crop out.")
        return region.box

    def _region(self, dataset: Dataset) -> UltrasoundRegion | None:
        if self.region is None:
            return None
        regions = self.regions(dataset)
        if not isinstance(self.region, str):
            if not -len(regions) <= self.region < len(regions):
                why = f"has {len(regions)} ultrasound regions, so there is no region {self.region}."
                raise UnreadableImageError(dataset_name(dataset), why)
            return regions[self.region]
        if self.region != "largest_tissue":
            named = [r for r in regions if r.kind == self.region]
            if not named:
                there = ", ".join(dict.fromkeys(r.kind for r in regions)) or "none"
                raise UnreadableImageError(
                    dataset_name(dataset), f"has no ultrasound region of the kind {self.region}; it has {there}."
                )
            return max(named, key=lambda r: r.area)
        flat = [r for r in regions if _is_flat(r)]
        tissue = [r for r in flat if r.data_type == _TISSUE]
        return max(tissue or flat, key=lambda r: r.area, default=None)


def _is_flat(region: UltrasoundRegion) -> bool:
    return region.spatial_format == _TWO_DIMENSIONAL and region.spacing is not None


def decode_dicom(
    path: str, pick: FramePicker | None, label: bool = False, region: str | int | None = "largest_tissue"
) -> Decoded:
    """Read a DICOM file by :class:`UltrasoundDicomReader`, for :class:`~monai_usfm.data.UltrasoundReader`."""
    reader = UltrasoundDicomReader(region)
    dataset = reader.read(path)
    count = reader.num_frames(dataset)
    frame = None if pick is None else checked_frame(path, pick, count)
    values, white = reader.frames(dataset, frame, stored=label)
    values = values.transpose(2, 1, 0, 3)
    if frame is not None or count == 1:
        values = values[:, :, 0]
    meta = reader.metadata(dataset)
    return Decoded(
        values,
        meta["affine"],
        meta["spacing_known"],
        num_frames=count,
        frame=frame,
        full_scale=white,
        cine=count > 1 and slice_geometry(dataset, count) is None,
        frame_time=meta["frame_time"],
        more={"spacing_box": meta["spacing_box"], "region": meta["region"]},
    )
