# Copyright (c) monai_usfm contributors
# SPDX-License-Identifier: Apache-2.0
"""De-identification: no name in attributes, pixels, file or folder names, and a key that only the user has."""

from __future__ import annotations

import hashlib
import io
import json

import numpy as np
import pydicom
import pytest
from PIL import Image, ImageDraw, ImageFont
from pydicom.data import get_testdata_file
from pydicom.encaps import encapsulate
from pydicom.sequence import Sequence
from pydicom.uid import JPEG2000Lossless, RLELossless, UltrasoundImageStorage, UltrasoundMultiFrameImageStorage

from monai_usfm.data import Pseudonyms, UltrasoundDicomReader, UnreadableImageError, convert_dicom_folder
from monai_usfm.data import deidentify as module
from monai_usfm.data.burned_in import TextBox, find_text
from tests.dicom_files import region, saved, ultrasound


def test_names_of_files_and_folders_are_pseudonyms_of_a_key(tmp_path):
    folder = tmp_path / "scans" / "DOE_JANE"
    folder.mkdir(parents=True)
    regions = Sequence([region((0, 2, 19, 11))])
    pixels = np.full((12, 20), 90, np.uint8)
    for name in ("DOE_JANE_SECRET-4711.dcm", "two.dcm"):
        saved(folder, ultrasound(pixels, PatientID="PID4711", SequenceOfUltrasoundRegions=regions), name)
    outputs = []
    for run, key in enumerate(("key.txt", "key.txt", "other.txt")):
        output = tmp_path / f"out{run}"
        options = {"format": "png", "deidentify": "strip", "key": tmp_path / key}
        assert convert_dicom_folder([tmp_path / "scans"], output=output, **options) == []
        found = sorted(str(p.relative_to(output)) for p in output.rglob("*.png"))
        text = " ".join(str(p) for p in output.rglob("*")) + " ".join(p.read_text() for p in output.rglob("*.json"))
        assert len(found) == 2 and "DOE" not in text and "PID" not in text and "SECRET" not in text
        notes = [json.loads(p.read_text()) for p in output.rglob("*.json")]
        assert len({note["patient"] for note in notes}) == 1 and "blackened 17%" in notes[0]["deidentified"]
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
        convert_dicom_folder([tmp_path], output=tmp_path / "out", deidentify="strip")


@pytest.mark.parametrize("deidentify", [None, "check"])
@pytest.mark.parametrize("option", [{"key": "k"}, {"review": "r"}, {"no_regions": "blacken"}, {"beam": True}])
def test_what_removes_names_is_not_taken_without_strip(tmp_path, deidentify, option):
    (name,) = option
    with pytest.raises(ValueError, match=f"{name}.*strip"):
        convert_dicom_folder(
            [get_testdata_file("examples_palette.dcm")], output=tmp_path / "out", deidentify=deidentify, **option
        )
    assert not (tmp_path / "out").exists()


def test_a_file_without_regions_is_refused_or_its_surroundings_blackened(tmp_path):
    pixels = np.zeros((96, 128), np.uint8)
    pixels[24:90, 30:110] = np.random.default_rng(0).integers(60, 200, (66, 80))
    pixels[4:10, 4:40:2] = 255  # a name
    path = saved(tmp_path, ultrasound(pixels, PatientName="Doe^Jane"))
    with pytest.raises(UnreadableImageError, match="no ultrasound region tells what is image"):
        UltrasoundDicomReader(deidentify="strip").read(path)
    reader = UltrasoundDicomReader(deidentify="strip", no_regions="blacken")
    shown = reader.frames(reader.read(path))[0][0, ..., 0]
    assert not shown[:12].any() and np.array_equal(shown[30:84, 36:104], pixels[30:84, 36:104])


def test_no_readable_text_is_left_in_any_example_of_pydicom():
    kept = {"DeidentificationMethod", "Manufacturer", "PatientID"}  # a pseudonym
    kept |= {"CodeValue", "CodingSchemeDesignator", "CodeMeaning"}  # of the method
    for name in ("examples_jpeg2k.dcm", "examples_ybr_color.dcm", "examples_palette.dcm", "examples_rgb_color.dcm"):
        reader = UltrasoundDicomReader(deidentify="strip", no_regions="blacken")
        dataset = reader.read(get_testdata_file(name))
        for element in dataset.iterall():
            if element.VR in ("PN", "LO", "SH", "ST", "LT", "UT", "UC", "DA", "TM", "DT") and element.value:
                assert element.keyword in kept, f"{name}: {element}"


def test_free_text_of_any_attribute_is_emptied_and_refused(tmp_path):
    pixels, regions = np.zeros((12, 20), np.uint8), Sequence([region((0, 2, 19, 11))])
    inner = pydicom.Dataset()
    inner.CommentsOnThePerformedProcedureStep = "seen by Dr Roe"
    texts = {"ProtocolName": "Doe", "StudyComments": "Jane", "PerformedProcedureStepDescription": "Doe"}
    ds = ultrasound(pixels, SequenceOfUltrasoundRegions=regions, PerformedSeriesSequence=Sequence([inner]), **texts)
    path = saved(tmp_path, ds)
    with pytest.raises(UnreadableImageError, match="StudyComments"):
        UltrasoundDicomReader(deidentify="check").read(path)
    text = str(UltrasoundDicomReader(deidentify="strip").read(path))
    assert "Doe" not in text and "Jane" not in text and "Roe" not in text


def test_kept_attributes_hold_no_word_of_a_name_and_no_rare_age(tmp_path):
    pixels, regions = np.zeros((12, 20), np.uint8), Sequence([region((0, 2, 19, 11))])
    texts = {"PatientName": "Doe^Jane", "BodyPartExamined": "DOE_LEFT", "TransducerType": "LINEAR"}
    item = pydicom.Dataset()
    item.PixelData = b"DOE JANE"
    item["PixelData"].VR = "OB"
    ds = ultrasound(pixels, SequenceOfUltrasoundRegions=regions, ReferencedImageSequence=Sequence([item]), **texts)
    ds.PatientAge = "097Y"
    found = UltrasoundDicomReader(deidentify="strip").read(saved(tmp_path, ds))
    assert "DOE" not in str(found) and found.TransducerType == "LINEAR" and found.PatientAge == "090Y"


@pytest.mark.parametrize("tag", [0x60003000, 0x00420011, 0x00990210])
def test_check_refuses_overlays_documents_and_private_blocks(tmp_path, tag):
    ds = ultrasound(np.zeros((12, 20), np.uint8))
    ds.add_new(tag, "OB", b"DOE JANE")
    with pytest.raises(UnreadableImageError, match="may identify a person"):
        UltrasoundDicomReader(deidentify="check").read(saved(tmp_path, ds))


@pytest.mark.parametrize("apart", ["key", "review"])
def test_what_leads_back_to_names_is_refused_among_the_data(tmp_path, apart):
    options = {"key": tmp_path / "key", "deidentify": "strip"} | {apart: tmp_path / "out" / "in" / apart}
    with pytest.raises(ValueError, match=f"{apart} .* put it apart"):
        convert_dicom_folder([tmp_path], output=tmp_path / "out", **options)


@pytest.mark.parametrize("syntax", ["RLE", "JPEG 2000"])
def test_names_in_compressed_cines_headers_and_file_meta_go(tmp_path, syntax):
    ds = ultrasound(np.full((3, 12, 20), 90, np.uint8), SequenceOfUltrasoundRegions=Sequence([region((0, 2, 19, 11))]))
    if syntax == "RLE":
        ds.compress(RLELossless)
    else:
        streams = []
        for frame in ds.pixel_array:
            Image.fromarray(frame).save(buffer := io.BytesIO(), "JPEG2000", comment="DOE JANE")
            streams.append(buffer.getvalue()[buffer.getvalue().index(b"\xff\x4f\xff\x51") :])
        ds.PixelData, ds.file_meta.TransferSyntaxUID = encapsulate(streams), JPEG2000Lossless
        ds["PixelData"].is_undefined_length = True
    ds.preamble = b"DOE JANE".ljust(128, b"\0")
    ds.file_meta.SourceApplicationEntityTitle, ds.file_meta.ImplementationVersionName = "DOE_AE", "DOE"
    ds.file_meta.PrivateInformationCreatorUID, ds.file_meta.PrivateInformation = "1.2.3", b"DOE JANE"
    (tmp_path / "in").mkdir()
    assert b"DOE" in saved(tmp_path / "in", ds).read_bytes()
    options = {"format": "dcm", "key": tmp_path / "key", "deidentify": "strip"}
    assert convert_dicom_folder([tmp_path / "in"], output=tmp_path / "out", **options) == []
    (file,) = (tmp_path / "out").rglob("*.dcm")
    assert b"DOE" not in file.read_bytes() and (pydicom.dcmread(file).pixel_array[:, 2:] == 90).all()


@pytest.mark.parametrize("frames", [1, 2])
def test_a_file_without_a_name_of_its_own_is_given_one(tmp_path, frames):
    values = np.full((frames, 12, 20) if frames > 1 else (12, 20), 90, np.uint8)
    ds = ultrasound(values, SequenceOfUltrasoundRegions=Sequence([region((4, 2, 15, 9))]))
    del ds.SOPInstanceUID, ds.SOPClassUID
    (tmp_path / "in").mkdir()
    saved(tmp_path / "in", ds)
    options = {"format": "dcm", "key": tmp_path / "key", "deidentify": "strip"}
    assert convert_dicom_folder([tmp_path / "in"], output=tmp_path / "out", **options) == []
    (file,) = (tmp_path / "out").rglob("*.dcm")
    made = pydicom.dcmread(file)
    assert made.SOPInstanceUID == made.file_meta.MediaStorageSOPInstanceUID
    kind = UltrasoundMultiFrameImageStorage if frames > 1 else UltrasoundImageStorage
    assert made.SOPClassUID == made.file_meta.MediaStorageSOPClassUID == kind


def test_a_region_that_covers_all_of_the_image_tells_nothing(tmp_path):
    regions = Sequence([region((0, 0, 19, 11))])
    path = saved(tmp_path, ultrasound(np.zeros((12, 20), np.uint8), SequenceOfUltrasoundRegions=regions))
    with pytest.raises(UnreadableImageError, match="its ultrasound regions cover all of it"):
        UltrasoundDicomReader(deidentify="strip").read(path)


def sector(text: str = "") -> np.ndarray:
    """``(240, 320)``: a sector of speckle below a text."""
    rows, columns = np.mgrid[:240, :320]
    radius, angle = np.hypot(rows - 10, columns - 160), np.arctan2(columns - 160, rows - 10)
    inside = (radius > 60) & (radius < 220) & (np.abs(angle) < 0.6)
    img = Image.fromarray(np.where(inside, np.random.default_rng(0).integers(40, 160, (240, 320)), 0).astype(np.uint8))
    ImageDraw.Draw(img).text((120, 150), text, fill=255, font=ImageFont.load_default(20))
    ImageDraw.Draw(img).text((10, 10), text, fill=255, font=ImageFont.load_default(20))
    return np.asarray(img)


@pytest.mark.slow  # the recognition itself; what is done with its boxes is tested below
def test_text_in_the_image_is_found_and_blackened_or_the_file_refused(tmp_path):
    pytest.importorskip("rapidocr_onnxruntime")
    path = saved(tmp_path, ultrasound(sector("DOE JANE")))
    with pytest.raises(UnreadableImageError, match="lines of text can be read in its pixels"):
        reader = UltrasoundDicomReader(deidentify="strip", text="refuse")
        reader.frames(reader.read(path))
    reader = UltrasoundDicomReader(deidentify="strip", text="blacken")
    dataset = reader.read(path)
    shown = reader.frames(dataset)[0][0, ..., 0]
    assert not find_text(shown[..., None]) and (shown == sector("DOE JANE")).mean() > 0.85
    assert dataset.BurnedInAnnotation == "NO" and "recognition found" in dataset.identity_report


@pytest.fixture
def reads_letters(monkeypatch):
    """A reader that knows two 8 x 8 letters, and each only whole and undisturbed."""
    letters = [(np.random.default_rng(seed).random((8, 8)) < 0.5).astype(np.uint8) * 255 for seed in (1, 2)]

    def find(look: np.ndarray) -> list[TextBox]:
        gray, found = look[..., 0], []
        for top, left in np.ndindex(gray.shape[0] - 7, gray.shape[1] - 7):
            if any(np.array_equal(gray[top : top + 8, left : left + 8], letter) for letter in letters):
                found.append(TextBox(top, top + 8, left, left + 8, "X", 1.0))
        return found

    monkeypatch.setattr(module, "find_text", find)
    monkeypatch.setattr("monai_usfm.data.dicom.require_ocr", lambda: None)
    return letters


def test_text_that_the_edge_of_a_region_cuts_is_read_whole_and_blackened(tmp_path, reads_letters):
    pixels = np.full((24, 32), 90, np.uint8)
    pixels[4:12, 8:16] = reads_letters[0]  # the region begins in its middle
    ds = ultrasound(pixels, SequenceOfUltrasoundRegions=Sequence([region((0, 8, 31, 23))]))
    reader = UltrasoundDicomReader(deidentify="strip", text="blacken")
    shown = reader.frames(reader.read(saved(tmp_path, ds)))[0][0, ..., 0]
    assert not shown[:12, 8:16].any() and (shown[12:] == 90).all()


def test_text_that_changes_or_stands_over_moving_speckle_is_found_in_single_frames(tmp_path, reads_letters):
    pixels = np.random.default_rng(0).integers(60, 200, (4, 24, 32)).astype(np.uint8)
    pixels[::2, 10:18, 4:12], pixels[1::2, 10:18, 4:12] = reads_letters  # together they are a blot
    pixels[0, 10:18, 20:28] = reads_letters[0]
    ds = ultrasound(pixels, SequenceOfUltrasoundRegions=Sequence([region((0, 4, 31, 23))]))
    reader = UltrasoundDicomReader(deidentify="strip", text="blacken")
    shown = reader.frames(reader.read(saved(tmp_path, ds)))[0]
    assert not shown[:, 10:18, 4:12].any() and not shown[:, 10:18, 20:28].any() and shown[:, 20:].all()


def test_all_outside_the_fitted_beam_is_blackened(tmp_path):
    path = saved(tmp_path, ultrasound(sector("DOE JANE")))
    reader = UltrasoundDicomReader(deidentify="strip", beam=True)
    shown = reader.frames(reader.read(path))[0][0, ..., 0]
    assert not shown[:40, :110].any() and (shown[80:220, 120:200] > 0).mean() > 0.95
    flat = saved(tmp_path, ultrasound(np.full((64, 64), 99, np.uint8)), "flat.dcm")
    with pytest.raises(UnreadableImageError, match="no beam fits"):
        reader.frames(reader.read(flat))


@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2", "RGB"])
def test_dicom_comes_out_without_names_overlays_and_previews(tmp_path, photometric):
    gray = np.full((3, 12, 20), 90, np.uint8)
    pixels = np.repeat(gray[..., None], 3, -1) if photometric == "RGB" else gray
    regions = Sequence([region((0, 2, 19, 11))])
    icon = ultrasound(np.full((4, 4), 9, np.uint8))
    named = {"PatientName": "Doe^Jane", "PatientID": "PID4711", "PhotometricInterpretation": photometric}
    ds = ultrasound(pixels, SequenceOfUltrasoundRegions=regions, IconImageSequence=Sequence([icon]), **named)
    ds.add_new(0x60003000, "OW", b"DOE^JANE")
    ds.DeviceUID = "1.2.3.4"
    (tmp_path / "in").mkdir()
    saved(tmp_path / "in", ds)
    options = {"format": "dcm", "key": tmp_path / "key", "deidentify": "strip", "review": tmp_path / "review"}
    assert convert_dicom_folder([tmp_path / "in"], output=tmp_path / "out", **options) == []
    (file,) = (tmp_path / "out").rglob("*.dcm")
    found = pydicom.dcmread(file)
    content = file.read_bytes()
    assert b"DOE" not in content.upper() and b"PID" not in content and b"1.2.3.4" not in content
    assert "IconImageSequence" not in found or "PixelData" not in found.IconImageSequence[0]
    assert found.SOPInstanceUID == found.file_meta.MediaStorageSOPInstanceUID != ds.SOPInstanceUID
    assert [item.CodeValue for item in found.DeidentificationMethodCodeSequence] == ["113100", "113108"]
    black = 255 if photometric == "MONOCHROME1" else 0
    assert (found.pixel_array[:, :2] == black).all() and (found.pixel_array[:, 2:] == 90).all()
    assert len(list((tmp_path / "review").rglob("*.jpg"))) == 1


def test_what_is_refused_is_listed_for_a_person(tmp_path):
    (tmp_path / "in").mkdir()
    saved(tmp_path / "in", ultrasound(np.full((12, 20), 90, np.uint8)))
    options = {"key": tmp_path / "key", "deidentify": "strip", "review": tmp_path / "review"}
    failed = convert_dicom_folder([tmp_path / "in"], output=tmp_path / "out", **options)
    assert len(failed) == 1 and "made.dcm" in (tmp_path / "review" / "refused.csv").read_text()
