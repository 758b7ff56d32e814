# Copyright (c) monai_usfm contributors
# SPDX-License-Identifier: Apache-2.0
"""Ultrasound DICOM files for tests, made by hand."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian

from monai_usfm.data.convert import SAVED_WHOLE
from monai_usfm.data.dicom_pixels import PYDICOM3

__all__ = ["region", "saved", "ultrasound"]


def ultrasound(pixels: np.ndarray, **attributes) -> FileDataset:
    """An uncompressed file of ``(H, W)``, ``(T, H, W)`` or, with three last channels, color; by pydicom 2 or 3."""
    meta = FileMetaDataset()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = "1.2.840.10008.5.1.4.1.1.3.1", "1.2.3"
    ds = FileDataset("made.dcm", {}, file_meta=meta, preamble=b"\0" * 128)
    ds.SOPClassUID, ds.SOPInstanceUID, ds.Modality = meta.MediaStorageSOPClassUID, "1.2.3", "US"
    ds.SamplesPerPixel = 3 if pixels.shape[-1] == 3 else 1
    ds.PhotometricInterpretation = "RGB" if ds.SamplesPerPixel == 3 else "MONOCHROME2"
    if ds.SamplesPerPixel == 3:
        ds.PlanarConfiguration = 0
    size = pixels.shape[:-1] if ds.SamplesPerPixel == 3 else pixels.shape
    ds.Rows, ds.Columns = size[-2:]
    if len(size) == 3:
        ds.NumberOfFrames = size[0]
    ds.BitsAllocated = ds.BitsStored = pixels.dtype.itemsize * 8
    ds.HighBit, ds.PixelRepresentation = ds.BitsStored - 1, 0
    ds.PixelData = pixels.tobytes() + b"\0" * (pixels.nbytes % 2)
    if not PYDICOM3:
        ds.is_little_endian, ds.is_implicit_VR = True, False
    for keyword, value in attributes.items():
        setattr(ds, keyword, value)
    return ds


def region(
    box: tuple[int, int, int, int],
    delta: tuple[float, float] = (0.01, 0.02),
    units: tuple[int, int] = (3, 3),
    spatial_format: int = 1,
    data_type: int = 1,
) -> Dataset:
    """``box`` is x0, y0, x1, y1 inclusive; ``delta`` along x, y."""
    item = Dataset()
    item.RegionSpatialFormat, item.RegionDataType, item.RegionFlags = spatial_format, data_type, 0
    item.RegionLocationMinX0, item.RegionLocationMinY0 = box[:2]
    item.RegionLocationMaxX1, item.RegionLocationMaxY1 = box[2:]
    item.PhysicalUnitsXDirection, item.PhysicalUnitsYDirection = units
    item.PhysicalDeltaX, item.PhysicalDeltaY = delta
    return item


def saved(tmp_path: Path, ds: FileDataset, name: str = "made.dcm") -> Path:
    ds.save_as(tmp_path / name, **SAVED_WHOLE)
    return tmp_path / name
