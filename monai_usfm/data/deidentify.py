# Copyright (c) monai_usfm contributors
# SPDX-License-Identifier: Apache-2.0
"""De-identification of ultrasound DICOM: what names a person, in attributes, pixels, file and folder names."""

from __future__ import annotations

import hashlib
import hmac
import logging
import os
import secrets
from pathlib import Path

import numpy as np
import pydicom
import torch
from monai.config import PathLike
from pydicom.dataset import Dataset

from monai_usfm.data.dicom_geometry import dataset_name, inside_regions, ultrasound_regions
from monai_usfm.data.formats import UnreadableImageError
from monai_usfm.transforms.field_of_view import FieldOfView

__all__ = ["Pseudonyms", "check_identity", "identifying_attributes", "kept_pixels", "strip_identity"]

logger = logging.getLogger(__name__)

# Attributes of text, date or time that say nothing about a person, place or moment: what stays. The rest is emptied,
# known or not (an allow-list after the basic profile of DICOM PS3.15 annex E), since any text may hold a name.
_KEPT = frozenset(
    """
    SpecificCharacterSet ImageType Modality Manufacturer PatientSex PatientAge PatientSize PatientWeight
    BodyPartExamined TransducerType PatientIdentityRemoved DeidentificationMethod LossyImageCompression
    LossyImageCompressionMethod PhotometricInterpretation BurnedInAnnotation PresentationLUTShape VOILUTFunction
    WindowCenter WindowWidth RescaleSlope RescaleIntercept RescaleType PixelSpacing FrameTime FrameTimeVector
    NumberOfFrames HeartRate CineRate SliceThickness SpacingBetweenSlices ImagePositionVolume ImageOrientationVolume
    ImagePositionPatient ImageOrientationPatient Laterality ImageLaterality UltrasoundColorDataPresent
    DepthOfScanField MechanicalIndex BoneThermalIndex CranialThermalIndex SoftTissueThermalIndex
    PixelAspectRatio LossyImageCompressionRatio InstanceNumber SeriesNumber AcquisitionNumber StageNumber
    NumberOfStages NumberOfViewsInStage ViewNumber FocusDepth
    """.split()  # noqa: SIM905 - a list literal would take forty lines
)
_TEXT = frozenset("PN LO SH ST LT UT UC UR DA TM DT AS CS IS DS AE UN".split())  # noqa: SIM905
_SHOWN = _TEXT - {"CS", "IS", "DS"}
"""Representations that make ``"check"`` refuse; codes and numbers do so only where their keyword is named below."""

_NAMES = frozenset(
    """
    PatientName PatientID IssuerOfPatientID PatientBirthDate PatientBirthTime PatientBirthName PatientMotherBirthName
    OtherPatientIDs OtherPatientIDsSequence OtherPatientNames PatientAddress PatientTelephoneNumbers PatientComments
    AdditionalPatientHistory Occupation EthnicGroup MilitaryRank CountryOfResidence RegionOfResidence
    PatientReligiousPreference ResponsiblePerson ResponsibleOrganization MedicalRecordLocator InstitutionName
    InstitutionAddress InstitutionalDepartmentName StationName DeviceSerialNumber ReferringPhysicianName
    PerformingPhysicianName OperatorsName PhysiciansOfRecord NameOfPhysiciansReadingStudy RequestingPhysician
    RequestingService PersonName AccessionNumber StudyID StudyDescription SeriesDescription ImageComments
    RequestAttributesSequence StudyDate SeriesDate AcquisitionDate ContentDate AcquisitionDateTime
    InstanceCreationDate
    """.split()  # noqa: SIM905
)
_PSEUDONYMS = ("PatientName", "PatientID")
_TECHNICAL = frozenset(
    """
    ManufacturerModelName SoftwareVersions DerivationDescription CodeValue CodingSchemeDesignator CodeMeaning
    CodingSchemeVersion TimezoneOffsetFromUTC TransducerData ProcessingFunction StudyTime SeriesTime AcquisitionTime
    ContentTime InstanceCreationTime ProtocolName ContextIdentifier MappingResource LongCodeValue FrameType
    PhysicalUnits LUTExplanation
    """.split()  # noqa: SIM905
)
"""Text that ``"check"`` lets pass, because it is about the machine; ``"strip"`` empties it all the same."""


class Pseudonyms:
    """Names that only the holder of a key can lead back, by HMAC-SHA256.

    A plain hash of an identifier of seven digits is found by trying all in seconds; without the key this is not. One
    key gives one pseudonym for one name, so patients stay together over files, folders and runs.

    Args:
        key_file: 32 random bytes in hexadecimal. Made, for its owner's eyes alone, where it does not exist: keep it,
            and keep it away from the data.

    Raises:
        ValueError: when the file holds no such key.
    """

    def __init__(self, key_file: PathLike) -> None:
        path = Path(key_file)
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            with os.fdopen(descriptor, "w") as stream:
                stream.write(secrets.token_hex(32) + "\n")
            logger.info("%s: a new key; keep it, and keep it away from the data.", path)
        try:
            self._key = bytes.fromhex(path.read_text(encoding="ascii").strip())
        except (ValueError, OSError) as error:
            raise ValueError(f"{path}: is no key file; it must hold 64 hexadecimal digits.") from error
        if len(self._key) < 32:
            raise ValueError(f"{path}: the key is too short; it must hold 64 hexadecimal digits.")

    def __call__(self, name: str, prefix: str = "") -> str:
        """The pseudonym of a name: the prefix and 16 letters and digits."""
        return prefix + hmac.new(self._key, name.encode(), hashlib.sha256).hexdigest()[:16]

    def path(self, below: Path) -> Path:
        """Every folder and the file of a relative path under its pseudonym; endings go."""
        return Path(*(self(part) for part in below.parts))

    def uid(self, uid: str) -> str:
        """A DICOM unique identifier under the root for UUIDs, PS3.5 B.2; one in gives the same one out."""
        number = int.from_bytes(hmac.new(self._key, uid.encode(), hashlib.sha256).digest()[:16], "big")
        return f"2.25.{number}"


def identifying_attributes(dataset: Dataset, technical: bool = False) -> list[str]:
    """Keywords of attributes, at any depth, with a letter or digit that may be about a person.

    Args:
        dataset: the file.
        technical: also those about the machine.
    """
    found = []
    for element in dataset.iterall():
        keyword = element.keyword or str(element.tag)
        suspect = element.keyword in _NAMES or (element.VR in _SHOWN and element.keyword not in _KEPT)
        if not technical:
            suspect &= element.keyword not in _TECHNICAL
        filled = any(c.isalnum() for c in str(element.value or ""))  # "--" names nobody
        if suspect and filled and keyword not in found:
            found.append(keyword)
    return found


def check_identity(dataset: Dataset) -> None:
    """Refuse a file that may name a person or says that annotation is burned in.

    Raises:
        UnreadableImageError: naming the attributes, not their values.
    """
    named = identifying_attributes(dataset)
    if str(dataset.get("PatientIdentityRemoved") or "").upper() == "YES":
        named = [keyword for keyword in named if keyword not in _PSEUDONYMS]
    burned_in = str(dataset.get("BurnedInAnnotation") or "").upper() == "YES"
    problems = ([f"filled attributes {', '.join(named)}"] if named else []) + (
        ["burned-in annotation declared"] if burned_in else []
    )
    if problems:
        raise UnreadableImageError(
            dataset_name(dataset), f'may identify a person: {"; ".join(problems)}. De-identify it or use "strip".'
        )


def strip_identity(dataset: Dataset, no_regions: str, pseudonyms: Pseudonyms | None = None) -> str:
    """Empty what may name a person, in place; returns what was and was not removed, in one sentence.

    Args:
        dataset: the file, just read.
        no_regions: what to do where no ultrasound region tells which pixels are image: ``"refuse"`` or ``"blacken"``.
        pseudonyms: for the patient and the unique identifiers; these are random without.

    Raises:
        UnreadableImageError: where nothing tells which pixels are image.
    """
    name = dataset_name(dataset)
    boxes = [region.box for region in ultrasound_regions(dataset) if region.box is not None]
    burned_in = str(dataset.get("BurnedInAnnotation") or "").upper() == "YES"
    if not boxes and no_regions == "refuse":
        declared = "declares burned-in annotation, and no" if burned_in else "has no"
        raise UnreadableImageError(
            name,
            f"{declared} ultrasound region tells where the image is, so names in the pixels would stay; mask it, or "
            'use no_regions="blacken", which keeps the field of view alone, and look at the result.',
        )
    named = identifying_attributes(dataset, technical=True)
    patient = str(dataset.get("PatientID") or dataset.get("PatientName") or "")
    private = sum(1 for element in dataset.iterall() if element.tag.is_private)
    dataset.remove_private_tags()
    pseudonyms = pseudonyms or _random_pseudonyms()

    def empty(_: Dataset, element: pydicom.DataElement) -> None:
        if (element.VR == "UI" and element.keyword.endswith("InstanceUID")) or element.keyword == "FrameOfReferenceUID":
            element.value = pseudonyms.uid(str(element.value))
        elif element.keyword in _NAMES or (element.VR in _TEXT and element.keyword not in _KEPT):
            element.value = [] if element.VR == "SQ" else None

    dataset.walk(empty)
    dataset.PatientID = pseudonyms(patient, "P-") if patient else ""
    dataset.PatientIdentityRemoved = "YES"
    dataset.DeidentificationMethod = "text emptied, private attributes removed, UIDs replaced"
    blackened = 1 - inside_regions(dataset).mean() if boxes else None
    where = "ultrasound regions" if boxes else "field of view"
    report = (
        f"emptied {', '.join(named) or 'nothing'}; removed {private} private attributes; replaced unique identifiers; "
        + (f"blackened {blackened:.0%} of the pixels, all outside the {where}" if boxes else f"kept the {where} alone")
        + f"; text inside the {where} is kept"
        + (", and the file declares burned-in annotation: look at the result" if burned_in else "")
    )
    (logger.warning if burned_in else logger.info)("%s: %s.", name, report)
    return report


def _random_pseudonyms() -> Pseudonyms:
    """Pseudonyms of a key that nobody keeps."""
    made = object.__new__(Pseudonyms)
    made._key = _SESSION_KEY
    return made


_SESSION_KEY = secrets.token_bytes(32)  # one a process, so that a series stays together


def kept_pixels(dataset: Dataset, values: np.ndarray) -> np.ndarray:
    """Mask of the pixels that stay, ``(H, W)``: the ultrasound regions, or the field of view of ``(frames, H, W, c)``.

    The field of view is that of the brightest value of each pixel over the frames, see
    :class:`~monai_usfm.transforms.FieldOfView`.

    Raises:
        UnreadableImageError: where no dark surroundings tell the field of view from the screen.
    """
    if any(region.box is not None for region in ultrasound_regions(dataset)):
        return inside_regions(dataset)
    brightest = torch.from_numpy(values.max(axis=(0, 3)).astype(np.float32))[None]
    mask = np.asarray(FieldOfView()(brightest)[0], dtype=bool)
    if mask.all():
        raise UnreadableImageError(
            dataset_name(dataset), "no ultrasound region and no field of view tell which pixels are image; mask it."
        )
    return mask
