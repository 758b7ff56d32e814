# Copyright (c) monai_usfm contributors
# SPDX-License-Identifier: Apache-2.0
"""Where an ultrasound DICOM image lies: calibrated regions in mm, frame times, slices of a volume."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from monai.data.utils import orientation_ras_lps
from pydicom.dataset import Dataset

from monai_usfm.data.formats import UnreadableImageError

__all__ = ["UltrasoundRegion", "frame_times", "ultrasound_regions"]

_CENTIMETER = 3  # code of Physical Units X/Y Direction (0018,6024), (0018,6026)
UNITS = ("", "%", "dB", "cm", "s", "Hz", "dB/s", "cm/s", "cm2", "cm2/s", "cm3", "cm3/s", "degree")
KINDS = ("tissue", "color_flow", "m_mode", "doppler", "trace", "graphics", "other")
"""What a region may show; the names by which a reader takes one."""


@dataclass(frozen=True)
class UltrasoundRegion:
    """One item of Sequence of Ultrasound Regions (0018,6011), DICOM PS3.3 C.8.5.5.

    Attributes:
        index: position in the sequence.
        box: ``(top, bottom, left, right)`` in pixels, half-open, clamped to the matrix; ``None`` where nothing is left.
        spatial_format: Region Spatial Format: 1 is 2D, 2 M-mode, 3 spectral, 4 wave form, 5 graphics.
        data_type: Region Data Type: 1 is tissue, 2 color flow, 10 ECG ...
        spacing: ``(row, column)`` in mm per pixel; ``None`` unless both axes are lengths.
        units: of the (row, column) direction: ``("cm/s", "s")`` in a Doppler spectrum; "" where the file does not tell.
        deltas: what a pixel is in those units; negative where values fall downwards or to the right.
    """

    index: int
    box: tuple[int, int, int, int] | None
    spatial_format: int
    data_type: int
    spacing: tuple[float, float] | None
    units: tuple[str, str] = ("", "")
    deltas: tuple[float, float] | None = None

    @property
    def kind(self) -> str:
        """One of :data:`KINDS`; ``doppler`` is a spectrum, ``trace`` an ECG or another curve."""
        if self.spatial_format == 1:
            return "color_flow" if self.data_type == 2 else "tissue"
        return {2: "m_mode", 3: "doppler", 4: "trace", 5: "graphics"}.get(self.spatial_format, "other")

    def describe(self) -> dict[str, Any]:
        """Number, kind, box, units and deltas, as metadata."""
        return {name: getattr(self, name) for name in ("index", "kind", "box", "units", "deltas")}

    @property
    def area(self) -> int:
        """Pixels of the box."""
        return 0 if self.box is None else (self.box[1] - self.box[0]) * (self.box[3] - self.box[2])


def ultrasound_regions(dataset: Dataset, warn: bool = True) -> list[UltrasoundRegion]:
    """The calibrated regions of an image, clamped to its matrix.

    Exporters that crop or shrink the image often leave the boxes as they were; such a box is clamped with a warning.
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
            if warn and (bottom > rows or right > columns):
                warnings.warn(
                    f"{dataset_name(dataset)}: ultrasound region {index} reaches to column {right} and row {bottom}, "
                    f"but the matrix has {columns} columns and {rows} rows; clamped. Its spacing is kept as written: "
                    "right if the image was cropped, wrong if it was shrunk.",
                    stacklevel=2,
                )
            if box[0] >= box[1] or box[2] >= box[3]:
                box = None
        units = (item.get("PhysicalUnitsYDirection"), item.get("PhysicalUnitsXDirection"))
        deltas = (item.get("PhysicalDeltaY"), item.get("PhysicalDeltaX"))
        spacing = None
        if units == (_CENTIMETER, _CENTIMETER) and all(delta and np.isfinite(float(delta)) for delta in deltas):
            spacing = (10 * abs(float(deltas[0])), 10 * abs(float(deltas[1])))  # negative: the axis points up or left
        regions.append(
            UltrasoundRegion(
                index,
                box,
                int(item.get("RegionSpatialFormat") or 0),
                int(item.get("RegionDataType") or 0),
                spacing,
                tuple(UNITS[int(u)] if u is not None and int(u) < len(UNITS) else "" for u in units),  # type: ignore[arg-type]
                None if None in deltas else (float(deltas[0]), float(deltas[1])),
            )
        )
    return regions


def frame_times(dataset: Dataset) -> np.ndarray | None:
    """Time of each frame in seconds, the first at 0; ``None`` where the file does not tell.

    From Frame Time Vector, Frame Time, Cine Rate or Recommended Display Frame Rate, whichever comes first.
    """
    count = int(dataset.get("NumberOfFrames") or 1)
    steps = np.atleast_1d(np.asarray(dataset.get("FrameTimeVector") or [], dtype=np.float64))
    if count > 1 and len(steps) == count:
        return np.concatenate([[0.0], np.cumsum(steps[1:])]) / 1000
    step = float(dataset.get("FrameTime") or 0) / 1000
    for keyword in ("CineRate", "RecommendedDisplayFrameRate"):
        if step <= 0 and float(dataset.get(keyword) or 0) > 0:
            step = 1 / float(dataset.get(keyword))
    return np.arange(count) * step if step > 0 else None


def slice_geometry(dataset: Dataset, count: int) -> tuple[np.ndarray, tuple[np.ndarray, np.ndarray]] | None:
    """Positions ``(frames, 3)`` in mm and the directions along a row and along a column; ``None`` for a flat image."""
    # the ultrasound volume's own frame of reference, else the patient's
    for group, attribute in (("Volume", "Volume"), ("", "Patient")):
        planes = [functional_group(dataset, frame, f"PlanePosition{group}Sequence") for frame in range(count)]
        oriented = functional_group(dataset, 0, f"PlaneOrientation{group}Sequence")
        points = [plane.get(f"ImagePosition{attribute}") for plane in planes if plane is not None]
        if oriented is not None and len(points) == count and None not in points:
            directions = np.asarray(oriented[f"ImageOrientation{attribute}"].value, dtype=np.float64).reshape(2, 3)
            return np.asarray(points, dtype=np.float64), (directions[0], directions[1])
    return None


def functional_group(dataset: Dataset, frame: int, keyword: str) -> Dataset | None:
    """A functional group of one frame of an enhanced image, from the per-frame or the shared sequence."""
    per_frame = dataset.get("PerFrameFunctionalGroupsSequence") or []
    candidates = ([per_frame[frame]] if frame < len(per_frame) else []) + list(
        dataset.get("SharedFunctionalGroupsSequence") or []
    )
    for groups in candidates:
        if groups.get(keyword):
            return groups[keyword][0]
    return None


def is_spacing(spacing: Sequence | None) -> bool:
    """Whether a spacing is given and usable."""
    return bool(spacing) and all(np.isfinite(float(mm)) and float(mm) > 0 for mm in spacing or ())


def dataset_name(dataset: Dataset) -> str:
    return str(getattr(dataset, "filename", None) or "DICOM data set")


def slice_order(dataset: Dataset, count: int) -> np.ndarray:
    """Frame indices by position along the slice normal; as stored where the file is no volume."""
    geometry = slice_geometry(dataset, count)
    if geometry is None:
        return np.arange(count)
    positions, directions = geometry
    depth = positions @ np.cross(*directions)
    order = np.argsort(depth, kind="stable")
    if count > 1 and np.diff(depth[order]).min() < 1e-4:
        raise UnreadableImageError(
            dataset_name(dataset),
            "several frames lie at one position: a sequence of volumes; store each in its own file.",
        )
    return order


def volume_affine(dataset: Dataset, measured: Dataset, count: int) -> np.ndarray:
    """Affine of an enhanced image, from its functional groups. DICOM's LPS becomes RAS, as in MONAI's readers."""
    row_mm, column_mm = (float(mm) for mm in measured.PixelSpacing)
    slice_mm = float(measured.get("SpacingBetweenSlices") or measured.get("SliceThickness") or 1.0)
    geometry = slice_geometry(dataset, count)
    if geometry is None:
        return np.diag([column_mm, row_mm, slice_mm, 1.0])
    positions, (along_row, along_column) = geometry
    positions = positions[slice_order(dataset, count)]
    affine = np.eye(4)
    affine[:3, 0] = along_row * column_mm
    affine[:3, 1] = along_column * row_mm
    affine[:3, 2] = np.cross(along_row, along_column) * slice_mm
    if len(positions) > 1:
        steps = np.diff(positions, axis=0)
        if np.abs(steps - steps.mean(axis=0)).max() > 0.05 * np.linalg.norm(steps.mean(axis=0)):
            warnings.warn(
                f"{dataset_name(dataset)}: slices are not evenly spaced; their mean distance is used.", stacklevel=3
            )
        affine[:3, 2] = steps.mean(axis=0)
    affine[:3, 3] = positions[0]
    return orientation_ras_lps(affine)


def inside_regions(dataset: Dataset) -> np.ndarray:
    """Mask of the ultrasound regions, ``(H, W)``; all true where a file has none."""
    # reading has already warned of clamped boxes
    boxes = [region.box for region in ultrasound_regions(dataset, warn=False) if region.box is not None]
    inside = np.full((int(dataset.Rows), int(dataset.Columns)), not boxes)
    for top, bottom, left, right in boxes:
        inside[top:bottom, left:right] = True
    return inside
