# Copyright (c) monai_usfm contributors
# SPDX-License-Identifier: Apache-2.0
"""De-identification: no name in attributes, pixels, file or folder names, and a key that only the user has."""

from __future__ import annotations

import hashlib
import json

import numpy as np
import pydicom
import pytest
from pydicom.data import get_testdata_file
from pydicom.sequence import Sequence

from monai_usfm.data import Pseudonyms, UltrasoundDicomReader, UnreadableImageError, convert_dicom_folder
from tests.data.test_dicom import region, saved, ultrasound


def test_names_of_files_and_folders_are_pseudonyms_of_a_key(tmp_path):
    folder = tmp_path / "scans" / "DOE_JANE"
    folder.mkdir(parents=True)
    regions = Sequence([region((0, 0, 19, 11))])
    pixels = np.full((12, 20), 90, np.uint8)
    for name in ("DOE_JANE_SECRET-4711.dcm", "two.dcm"):
        saved(folder, ultrasound(pixels, PatientID="4711", SequenceOfUltrasoundRegions=regions), name)
    outputs = []
    for run, key in enumerate(("key.txt", "key.txt", "other.txt")):
        output = tmp_path / f"out{run}"
        options = {"format": "png", "deidentify": "strip", "key": tmp_path / key}
        assert convert_dicom_folder([tmp_path / "scans"], output, **options) == []
        found = sorted(str(p.relative_to(output)) for p in output.rglob("*.png"))
        text = " ".join(str(p) for p in output.rglob("*")) + " ".join(p.read_text() for p in output.rglob("*.json"))
        assert len(found) == 2 and "DOE" not in text and "4711" not in text and "SECRET" not in text
        notes = [json.loads(p.read_text()) for p in output.rglob("*.json")]
        assert len({note["patient"] for note in notes}) == 1 and "blackened 0%" in notes[0]["deidentified"]
        outputs.append(found)
    assert outputs[0] == outputs[1] != outputs[2]
    assert (tmp_path / "key.txt").stat().st_mode & 0o077 == 0


def test_a_pseudonym_is_no_plain_hash(tmp_path):
    names = Pseudonyms(tmp_path / "key.txt")
    tried = {digest(b"4711").hexdigest()[:16] for digest in (hashlib.sha256, hashlib.md5, hashlib.sha1)}
    assert names("4711") not in tried and names("4711") == Pseudonyms(tmp_path / "key.txt")("4711") != names("4712")
    (tmp_path / "short.txt").write_text("abcd")
    with pytest.raises(ValueError, match="64 hexadecimal digits"):
        Pseudonyms(tmp_path / "short.txt")


def test_strip_without_a_key_is_refused(tmp_path):
    with pytest.raises(ValueError, match="needs key"):
        convert_dicom_folder([tmp_path], tmp_path / "out", deidentify="strip")


def test_a_file_without_regions_is_refused_or_its_surroundings_blackened(tmp_path):
    pixels = np.zeros((96, 128), np.uint8)
    pixels[24:90, 30:110] = np.random.default_rng(0).integers(60, 200, (66, 80))
    pixels[4:10, 4:40:2] = 255  # a name
    path = saved(tmp_path, ultrasound(pixels, PatientName="Doe^Jane"))
    with pytest.raises(UnreadableImageError, match="has no ultrasound region tells where the image is"):
        UltrasoundDicomReader(deidentify="strip").read(path)
    reader = UltrasoundDicomReader(deidentify="strip", no_regions="blacken")
    shown = reader.frames(reader.read(path))[0][0, ..., 0]
    assert not shown[:12].any() and np.array_equal(shown[30:84, 36:104], pixels[30:84, 36:104])


def test_no_readable_text_is_left_in_any_example_of_pydicom():
    kept = {"DeidentificationMethod", "Manufacturer", "PatientID"}  # a pseudonym
    for name in ("examples_jpeg2k.dcm", "examples_ybr_color.dcm", "examples_palette.dcm", "examples_rgb_color.dcm"):
        reader = UltrasoundDicomReader(deidentify="strip", no_regions="blacken")
        dataset = reader.read(get_testdata_file(name))
        for element in dataset.iterall():
            if element.VR in ("PN", "LO", "SH", "ST", "LT", "UT", "UC", "DA", "TM", "DT") and element.value:
                assert element.keyword in kept, f"{name}: {element}"


def test_free_text_of_any_attribute_is_emptied_and_refused(tmp_path):
    pixels, regions = np.zeros((12, 20), np.uint8), Sequence([region((0, 0, 19, 11))])
    inner = pydicom.Dataset()
    inner.CommentsOnThePerformedProcedureStep = "seen by Dr Roe"
    texts = {"ProtocolName": "Doe", "StudyComments": "Jane", "PerformedProcedureStepDescription": "Doe"}
    ds = ultrasound(pixels, SequenceOfUltrasoundRegions=regions, PerformedSeriesSequence=Sequence([inner]), **texts)
    path = saved(tmp_path, ds)
    with pytest.raises(UnreadableImageError, match="StudyComments"):
        UltrasoundDicomReader(deidentify="check").read(path)
    text = str(UltrasoundDicomReader(deidentify="strip").read(path))
    assert "Doe" not in text and "Jane" not in text and "Roe" not in text
