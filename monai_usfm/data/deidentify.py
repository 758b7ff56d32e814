# Copyright (c) monai_usfm contributors
# SPDX-License-Identifier: Apache-2.0
"""De-identification of ultrasound DICOM: what names a person, in attributes, pixels, file and folder names."""

from __future__ import annotations

import hashlib
import hmac
import logging
import os
import re
import secrets
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import torch
from monai.config import PathLike
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.multival import MultiValue
from pydicom.uid import ExplicitVRLittleEndian, UltrasoundImageStorage, UltrasoundMultiFrameImageStorage, generate_uid

from monai_usfm.data.burned_in import find_text
from monai_usfm.data.dicom_geometry import dataset_name, inside_regions, ultrasound_regions
from monai_usfm.data.formats import UnreadableImageError
from monai_usfm.transforms.beam import FitBeam
from monai_usfm.transforms.field_of_view import FieldOfView

__all__ = ["Pseudonyms"]

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
_STANDARD = "1.2.840.10008."
_BULK = frozenset("OB OD OF OL OV OW".split())  # noqa: SIM905
_KEPT_BULK = frozenset(
    ["PixelData", "LUTData", *(f"{color}PaletteColorLookupTableData" for color in ("Red", "Green", "Blue"))]
)
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
_SAID = frozenset("PatientID IssuerOfPatientID AccessionNumber InstitutionName StationName".split())  # noqa: SIM905
_OPEN = frozenset("Manufacturer BodyPartExamined TransducerType RescaleType ImageType".split())  # noqa: SIM905
"""Kept attributes that a user may type into: emptied where they hold a word of a name, see :data:`_SAID`."""
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
            and keep it away from the data. None takes a key of this process, which nobody keeps.

    Raises:
        ValueError: when the file holds no such key.
    """

    def __init__(self, key_file: PathLike | None = None) -> None:
        self._key = _SESSION_KEY
        if key_file is None:
            return
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
    """Keywords of attributes, at any depth, with a letter or digit that may be about a person, or about the machine."""
    found = []
    for element in dataset.iterall():
        keyword = element.keyword or str(element.tag)
        suspect = element.keyword in _NAMES or (element.VR in _SHOWN and element.keyword not in _KEPT)
        # overlays and previews show what was burned in; private blocks and documents hold anything
        suspect |= element.VR in _BULK and element.keyword not in (*_KEPT_BULK, "FileMetaInformationVersion")
        if not technical:
            suspect &= element.keyword not in _TECHNICAL
        filled = any(c.isalnum() for c in str(element.value or ""))  # "--" names nobody
        if suspect and filled and keyword not in found:
            found.append(keyword)
    return found


def check_identity(dataset: Dataset) -> None:
    """Refuse a file that may name a person or says that annotation is burned in, naming attributes but no values."""
    named = identifying_attributes(dataset)
    if str(dataset.get("PatientIdentityRemoved") or "").upper() == "YES":
        named = [keyword for keyword in named if keyword not in _PSEUDONYMS]
    burned_in = str(dataset.get("BurnedInAnnotation") or "").upper() == "YES"
    problems = [f"filled attributes {', '.join(named)}"] if named else []
    if burned_in:
        problems.append("burned-in annotation declared")
    if problems:
        raise UnreadableImageError(
            dataset_name(dataset), f'may identify a person: {"; ".join(problems)}. De-identify it or use "strip".'
        )


def require_strip(deidentify: str | None, **given: Any) -> None:
    """Refuse options of ``"strip"`` without it: they would do nothing of what they are for.

    Raises:
        ValueError: naming those that are given (not None or False).
    """
    if deidentify != "strip" and (idle := [name for name, value in given.items() if value not in (None, False)]):
        raise ValueError(f'{", ".join(idle)}: for deidentify="strip" alone, which is what removes names.')


def strip_identity(
    dataset: Dataset, no_regions: str, pseudonyms: Pseudonyms | None = None, text: str = "keep", beam: bool = False
) -> str:
    """Empty what may name a person, in place; returns what was and was not removed, in one sentence.

    Pixels are left to :func:`kept_pixels`.

    Args:
        no_regions: what to do where no ultrasound region tells which pixels are image, or the regions cover all of
            them: ``"refuse"`` or ``"blacken"``.
        pseudonyms: for the patient and the unique identifiers; these are random without.
        text, beam: what is done to the pixels that stay, see :func:`kept_pixels`.

    Raises:
        UnreadableImageError: where nothing tells which pixels are image.
    """
    name = dataset_name(dataset)
    told = _regions_tell(dataset)
    burned_in = str(dataset.get("BurnedInAnnotation") or "").upper() == "YES"
    if not told and no_regions == "refuse" and text == "keep" and not beam:
        covered = any(region.box is not None for region in ultrasound_regions(dataset))
        raise UnreadableImageError(
            name,
            f"{'declares burned-in annotation, and ' if burned_in else ''}"
            f"{'its ultrasound regions cover all of it' if covered else 'no ultrasound region tells what is image'}"
            ", so names in the pixels would stay; mask it, or use --no_regions blacken, which keeps the field of view "
            "alone, --beam or --text blacken, and look at the result.",
        )
    named = identifying_attributes(dataset, technical=True)
    patient = str(dataset.get("PatientID") or dataset.get("PatientName") or "")
    private = sum(1 for element in dataset.iterall() if element.tag.is_private)
    spoken = _words(e for e in dataset.iterall() if e.VR == "PN" or e.keyword in _SAID)
    dataset.remove_private_tags()
    pseudonyms = pseudonyms or Pseudonyms()

    def empty(parent: Dataset, element: pydicom.DataElement) -> None:
        if element.VR == "UI":  # those of the standard name classes and codings; others are of this patient or machine
            values = element.value if isinstance(element.value, MultiValue) else [element.value]
            uids = [uid if str(uid).startswith(_STANDARD) else pseudonyms.uid(str(uid)) for uid in values if uid]
            element.value = uids[0] if len(uids) == 1 else uids
        elif (
            element.keyword == "IconImageSequence"
            or (element.VR in _BULK and element.keyword not in _KEPT_BULK)
            or (element.keyword == "PixelData" and parent is not dataset)
        ):
            # previews, overlays, documents, curves
            del parent[element.tag]
        elif element.keyword in _OPEN and spoken & _words([element]):
            element.value = None
        elif element.keyword == "PatientAge" and re.fullmatch(r"(09|[1-9]\d)\dY", str(element.value)):
            element.value = "090Y"  # above 89 few are left, and the Safe Harbor rule of HIPAA counts it among names
        elif element.keyword in _NAMES or (element.VR in _TEXT and element.keyword not in _KEPT):
            element.value = [] if element.VR == "SQ" else None

    dataset.walk(empty)
    dataset.PatientID = pseudonyms(patient, "P-") if patient else ""
    dataset.PatientIdentityRemoved = "YES"
    dataset.DeidentificationMethod = "text emptied, private attributes removed, UIDs replaced"
    dataset.DeidentificationMethodCodeSequence = [
        _code("113100", "Basic Application Confidentiality Profile"),
        _code("113108", "Retain Patient Characteristics Option"),
    ]
    dataset.LongitudinalTemporalInformationModified = "REMOVED"
    dataset.BurnedInAnnotation = None
    if text != "keep":
        dataset.DeidentificationMethodCodeSequence.append(_code("113101", "Clean Pixel Data Option"))
        dataset.BurnedInAnnotation = "NO"
    where = "ultrasound regions" if told else "field of view"
    report = (
        f"emptied {', '.join(named) or 'nothing'}; removed {private} private attributes; replaced unique identifiers; "
        + (f"blackened {1 - inside_regions(dataset).mean():.0%} of the pixels, all outside the {where}" if told else "")
        + (f"kept the {where} alone" if not told and no_regions == "blacken" else "")
        + ("; blackened all outside the fitted beam" if beam else "")
        + {
            "keep": f"; text inside the {where} is kept"
            + (", and the file declares burned-in annotation: look at the result" if burned_in else ""),
            "blacken": "; blackened text that optical character recognition found",
            "refuse": "; optical character recognition found no text",
        }[text]
    )
    (logger.warning if burned_in else logger.info)("%s: %s.", name, report)
    return report


def _words(elements: Iterable[pydicom.DataElement]) -> set[str]:
    """Words of at least three letters or digits, in capitals."""
    return {word for e in elements for word in re.findall(r"\w{3,}", str(e.value or "").upper().replace("_", " "))}


_SESSION_KEY = secrets.token_bytes(32)  # one a process, so that a series stays together


def _regions_tell(dataset: Dataset) -> bool:
    """Whether ultrasound regions tell image from screen: they exist and leave something out."""
    return float(inside_regions(dataset).mean()) < 0.98


def _code(value: str, meaning: str) -> Dataset:
    item = Dataset()
    item.CodeValue, item.CodingSchemeDesignator, item.CodeMeaning = value, "DCM", meaning
    return item


def kept_pixels(
    dataset: Dataset, values: np.ndarray, no_regions: str = "refuse", text: str = "keep", beam: bool = False
) -> np.ndarray:
    """Mask of the pixels that stay, ``(H, W)``: those that are image and name nobody.

    These are the ultrasound regions, or, where these do not tell and ``no_regions="blacken"``, the field of view
    of the brightest value of each pixel over the frames (:class:`~monai_usfm.transforms.FieldOfView`).

    Args:
        values: shown values of all frames, ``(frames, H, W, c)``.
        no_regions: see :func:`strip_identity`.
        text: ``"keep"``; ``"blacken"`` lines that optical character recognition finds in what stays or across its edge,
            and refuse a file in which it still reads something afterwards; or ``"refuse"`` a file with any. Of a cine,
            the extremes over the frames and three frames are read, about half a second each time.
        beam: blacken all outside the beam that fits (:class:`~monai_usfm.transforms.FitBeam`).

    Raises:
        UnreadableImageError: where nothing tells which pixels are image, no beam fits, or text is left: for a person.
    """
    name = dataset_name(dataset)
    seen = values.max(axis=0)
    gray = torch.from_numpy(seen.max(axis=-1).astype(np.float32))[None]
    kept = np.ones(seen.shape[:2], dtype=bool)
    if _regions_tell(dataset):
        kept &= inside_regions(dataset)
    elif no_regions == "blacken":
        kept &= np.asarray(FieldOfView()(gray)[0], dtype=bool)
        if kept.all():
            raise UnreadableImageError(
                name, "no ultrasound region and no field of view tell which pixels are image; mask it."
            )
    if beam:
        fitted = FitBeam(fallback=None)(gray)
        if fitted is None:
            raise UnreadableImageError(name, "no beam fits, so what lies outside of it is not known; mask it.")
        kept &= np.asarray(fitted.mask(kept.shape), dtype=bool).reshape(kept.shape)
    if text == "keep":
        return kept
    # text over moving speckle is lost among the brightest values, where what changes overwrites itself
    looks = [values.max(axis=0), values.min(axis=0), *values[[0, len(values) // 2, -1]]] if len(values) > 1 else values
    # the image uncut first: letters that the edge of the mask cuts cannot be read once the rest of them is gone
    for attempt in range(5):
        found = {
            box[:4]
            for look in looks
            for box in find_text(look * kept[..., None] if attempt else look)
            if kept[box.top : box.bottom, box.left : box.right].any()
        }
        if attempt and not found:
            break
        if found and (text == "refuse" or attempt == 4):
            again = f" after {attempt} rounds of blackening" if text != "refuse" else ""
            raise UnreadableImageError(
                name, f"{len(found)} lines of text can be read in its pixels{again}; mask it by hand."
            )
        for top, bottom, left, right in found:
            kept[top:bottom, left:right] = False
    return kept


def with_pixels(dataset: Dataset, values: np.ndarray) -> Dataset:
    """A copy with other stored values, uncompressed: ``(frames, H, W, 1 or 3)``, color as RGB."""
    made = Dataset()
    for element in dataset:
        if element.keyword not in _REPLACED and "PaletteColor" not in element.keyword:
            made.add(element)
    made.Rows, made.Columns, made.SamplesPerPixel = *values.shape[1:3], values.shape[3]
    color = values.shape[3] == 3
    gray = str(dataset.PhotometricInterpretation)
    made.PhotometricInterpretation = "RGB" if color else gray if gray.startswith("MONOCHROME") else "MONOCHROME2"
    if color:
        made.PlanarConfiguration = 0
    made.BitsAllocated = 8 * values.dtype.itemsize
    made.BitsStored = min(int(dataset.BitsStored), made.BitsAllocated) if not color else made.BitsAllocated
    made.HighBit, made.PixelRepresentation = made.BitsStored - 1, int(values.dtype.kind == "i")
    data = np.ascontiguousarray(values).tobytes()
    made.add_new("PixelData", "OB" if made.BitsAllocated == 8 else "OW", data + b"\0" * (len(data) % 2))
    made.file_meta = FileMetaDataset()
    made.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    kind = UltrasoundMultiFrameImageStorage if len(values) > 1 else UltrasoundImageStorage
    for name, missing in {"SOPClassUID": kind, "SOPInstanceUID": generate_uid()}.items():
        setattr(made, name, dataset.get(name) or missing)  # some research devices write neither
        setattr(made.file_meta, f"MediaStorage{name}", getattr(made, name))
    return made


_REPLACED = frozenset("PixelData SamplesPerPixel PhotometricInterpretation PlanarConfiguration".split())  # noqa: SIM905
