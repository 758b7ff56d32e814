# Copyright (c) monai_usfm contributors
# SPDX-License-Identifier: Apache-2.0
"""Results of one DICOM image as DICOM, without the SDK: a segmentation, a secondary capture, entries of a report."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import highdicom as hd
import numpy as np
from images import Model, Result
from pydicom.dataset import Dataset
from pydicom.pixels import pack_bits
from pydicom.sr.codedict import codes
from pydicom.sr.coding import Code
from pydicom.uid import ExplicitVRLittleEndian, UltrasoundImageStorage, generate_uid

import monai_usfm
from monai_usfm.handlers.drawing import draw_overlay

MAKER, MODEL_NAME = "monai_usfm contributors", "monai_usfm"
SEGMENTATION_SERIES, OVERLAY_SERIES = 9001, 9002
# Name of a class -> category and type of its segment. Others are written as tissue, under their name.
CODES = {
    "lesion": (codes.SCT.MorphologicallyAbnormalStructure, Code("52988006", "SCT", "Lesion")),
    "fetal head": (codes.SCT.AnatomicalStructure, Code("69536005", "SCT", "Head")),
}
OTHER = (codes.SCT.Tissue, codes.SCT.Tissue)
# Of type 2: may be empty, but has to be there, and is missing in many files that passed through other software.
REQUIRED = ("StudyDate", "StudyTime", "StudyID", "AccessionNumber", "ReferringPhysicianName", "PatientName")
REQUIRED += ("PatientID", "PatientBirthDate", "PatientSex")


def write_results(result: Result, model: Model, folder: Path, series: dict[str, str], number: int) -> dict[str, Any]:
    """Write the DICOM files of one image.

    Args:
        result: what was found.
        model: the network.
        folder: where the files go.
        series: unique identifiers of the new series of each study and kind, extended here.
        number: of the instances in their series, from 1.

    Returns:
        The entry of the report.
    """
    source = result.source
    study = str(source.StudyInstanceUID)
    entry: dict[str, Any] = {
        "file": Path(str(source.filename)).name,
        "patient_id": str(source.get("PatientID", "")),
        "study": study,
        "series": str(source.SeriesInstanceUID),
        "instance": str(source.SOPInstanceUID),
        "sop_class": str(source.SOPClassUID),
        "frames": len(result.frames),
        "spacing_mm": list(result.spacing) if result.spacing else None,
        "frame_time_s": result.frame_time or None,
        "outputs": {},
    }
    if result.labels is None:
        return entry | {"probabilities": result.probabilities}
    made: dict[str, Dataset] = {}
    if result.labels.any():
        uid = series.setdefault(f"{study} segmentation", generate_uid())
        made["segmentation"] = segmentation(result, model, uid, number)
    uid = series.setdefault(f"{study} overlay", generate_uid())
    made["overlay"] = overlay(result, uid, number)
    for kind, dataset in made.items():
        name = f"{Path(str(source.filename)).stem}_{number}_{kind}.dcm"
        dataset.save_as(folder / name, enforce_file_format=True)
        entry["outputs"][kind] = {"file": name, "instance": str(dataset.SOPInstanceUID)}
    return entry | {"measurements": result.measurements}


def segmentation(result: Result, model: Model, series: str, number: int) -> Dataset:
    """The label maps as a DICOM Segmentation: a frame for each structure in each frame of the source that shows it.

    An ultrasound cine has no frame of reference, and highdicom 0.28 writes only one frame for such a source. So it
    writes the first, and the others are added here: each refers to its frame of the source by number, and the
    Temporal Position Index orders them (PS3.3 C.7.6.16.2.2, C.8.20.3).

    Raises:
        ValueError: where nothing was found, as a segmentation has at least one frame.
    """
    labels = result.labels
    assert labels is not None
    present = [int(n) for n in np.unique(labels) if n]
    if not present:
        raise ValueError("nothing was found, and a DICOM Segmentation without a frame is not allowed.")
    shown = [(k + 1, c, f) for k, c in enumerate(present) for f in range(len(labels)) if (labels[f] == c).any()]
    algorithm = hd.AlgorithmIdentificationSequence(
        MODEL_NAME, codes.cid7162.ArtificialIntelligence, monai_usfm.__version__, parameters={"sha256": model.sha256}
    )
    described = [
        hd.seg.SegmentDescription(
            k, model.names[c], *CODES.get(model.names[c], OTHER), hd.seg.SegmentAlgorithmTypeValues.AUTOMATIC, algorithm
        )
        for k, c in enumerate(present, start=1)
    ]
    first = np.stack([labels[shown[0][2]] == c for c in present], axis=-1)[None].astype(np.uint8)
    dataset = hd.seg.Segmentation(
        [_still(result.source)],
        first,
        hd.seg.SegmentationTypeValues.BINARY,
        described,
        series,
        SEGMENTATION_SERIES,
        generate_uid(),
        number,
        MAKER,
        MODEL_NAME,
        monai_usfm.__version__,
        "0",
        omit_empty_frames=True,
        series_description="Segmentation, not for clinical use",
        content_label="ULTRASOUND",
    )
    pattern = dataset.PerFrameFunctionalGroupsSequence[0]
    dataset.PerFrameFunctionalGroupsSequence = [_frame(pattern, result.source, k, f, len(labels)) for k, _, f in shown]
    dataset.NumberOfFrames = len(shown)
    dataset.PixelData = pack_bits(np.stack([labels[f] == c for _, c, f in shown]).astype(np.uint8))
    _index_by_time(dataset)
    for instance in (*dataset.SourceImageSequence, *dataset.ReferencedSeriesSequence[0].ReferencedInstanceSequence):
        instance.ReferencedSOPClassUID = result.source.SOPClassUID
    dataset.SharedFunctionalGroupsSequence = [Dataset()]  # a mask lies on the grid of its source, so it needs no own
    return dataset


def _still(source: Dataset) -> Dataset:
    """The source's attributes as of a still without place, with those of type 2 that are missing."""
    left_out = ("PixelData", "NumberOfFrames", "FrameOfReferenceUID", "PositionReferenceIndicator")
    still = Dataset()
    for element in source:
        if element.keyword not in left_out:
            still.add(element)
    still.SOPClassUID = UltrasoundImageStorage
    still.file_meta = source.file_meta
    for keyword in REQUIRED:
        if keyword not in still:
            setattr(still, keyword, None)
    return still


def _frame(pattern: Dataset, source: Dataset, segment: int, frame: int, count: int) -> Dataset:
    """Functional groups of a frame: its segment, and the frame of the source that it was made from."""
    groups = copy.deepcopy(pattern)
    identification, content = Dataset(), Dataset()
    identification.ReferencedSegmentNumber = segment
    groups.SegmentIdentificationSequence = [identification]
    content.TemporalPositionIndex = frame + 1
    content.DimensionIndexValues = [segment, frame + 1]
    groups.FrameContentSequence = [content]
    reference = groups.DerivationImageSequence[0].SourceImageSequence[0]
    reference.ReferencedSOPClassUID, reference.ReferencedSOPInstanceUID = source.SOPClassUID, source.SOPInstanceUID
    if count > 1:
        reference.ReferencedFrameNumber = frame + 1
    return groups


def _index_by_time(dataset: Dataset) -> None:
    """Dimensions: the segment, then the place in time."""
    time = Dataset()
    time.DimensionOrganizationUID = dataset.DimensionIndexSequence[0].DimensionOrganizationUID
    time.DimensionIndexPointer = 0x00209128  # Temporal Position Index
    time.FunctionalGroupPointer = 0x00209111  # in Frame Content
    time.DimensionDescriptionLabel = "Temporal Position Index"
    dataset.DimensionIndexSequence = [*dataset.DimensionIndexSequence[:1], time]


def overlay(result: Result, series: str, number: int) -> Dataset:
    """A secondary capture of the frame in which most was found: contours over the image, a scale bar for known mm."""
    labels = result.labels
    assert labels is not None
    frame = int((labels > 0).sum((1, 2)).argmax())
    size = max(560, *result.frames.shape[1:])
    figure = np.asarray(draw_overlay(result.frames[frame], labels[frame], result.spacing, size))
    dataset = hd.sc.SCImage.from_ref_dataset(
        _still(result.source),
        figure,
        "RGB",
        8,
        "PATIENT",
        series_instance_uid=series,
        series_number=OVERLAY_SERIES,
        sop_instance_uid=generate_uid(),
        instance_number=number,
        manufacturer=MAKER,
        patient_orientation=("L", "F"),  # highdicom wants one; the true one is not known, see below
        transfer_syntax_uid=ExplicitVRLittleEndian,
    )
    reference = Dataset()
    reference.ReferencedSOPClassUID = result.source.SOPClassUID
    reference.ReferencedSOPInstanceUID = result.source.SOPInstanceUID
    if len(labels) > 1:
        reference.ReferencedFrameNumber = frame + 1
    dataset.SourceImageSequence = [reference]
    dataset.PatientOrientation = None
    dataset.SeriesDescription = "Overlay, not for clinical use"
    dataset.DerivationDescription = f"Contours by {MODEL_NAME} {monai_usfm.__version__}"
    dataset.BurnedInAnnotation = "YES"
    return dataset
