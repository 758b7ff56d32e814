# Copyright (c) monai_usfm contributors
# SPDX-License-Identifier: Apache-2.0
"""Ultrasound DICOM: expected values are literals, read from the files' headers with another tool."""

from __future__ import annotations

import importlib.util
import json
import logging
import warnings
from pathlib import Path

import nibabel as nib
import numpy as np
import pydicom
import pytest
import torch
from monai.transforms import LoadImage
from PIL import Image
from pydicom.data import get_testdata_file
from pydicom.dataset import Dataset, FileDataset
from pydicom.encaps import encapsulate
from pydicom.sequence import Sequence
from pydicom.uid import JPEGBaseline8Bit

from monai_usfm.data import (
    LoadUltrasound,
    UltrasoundDicomReader,
    UltrasoundReader,
    UnreadableImageError,
    convert_dicom,
    convert_dicom_folder,
    frame_times,
    ultrasound_regions,
)
from monai_usfm.data.dicom_pixels import display_values
from tests.dicom_files import region, saved, ultrasound

# File in pydicom's wheel: array (x, y, ...), mm per pixel (None: unknown), Hz, region, its rows and columns
PYDICOM_FILES = {
    "examples_ybr_color.dcm": ((320, 240, 30, 3), 0.5104970559477806, 30.0003, 0, (31, 240, 84, 320)),
    "examples_palette.dcm": ((800, 350, 3), 0.2622878766196998, 0.0, 0, (60, 350, 120, 800)),
    "examples_rgb_color.dcm": ((320, 240, 3), None, 0.0, -1, None),
    "examples_jpeg2k.dcm": ((640, 480, 3), None, 0.0, -1, None),
}


@pytest.fixture(autouse=True)
def quiet():
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*clamped.*")
        yield


@pytest.fixture(scope="module")
def scan() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (12, 20), dtype=np.uint8)


@pytest.mark.parametrize("name", PYDICOM_FILES)
def test_the_files_of_pydicom_have_the_size_spacing_and_rate_of_their_headers(name):
    shape, spacing, rate, used, box = PYDICOM_FILES[name]
    reader = UltrasoundDicomReader()
    ds = reader.read(get_testdata_file(name))
    array, meta = reader.get_data(ds)
    assert array.shape == shape and array.dtype == np.uint8
    assert meta["spacing_known"] is (spacing is not None) and meta["region"] == used
    assert np.diag(meta["affine"])[:2] == pytest.approx([spacing or 1] * 2)
    assert meta["frame_rate"] == pytest.approx(rate, abs=1e-3)
    regions = ultrasound_regions(ds)
    assert (regions[0].box if regions else None) == box


def test_a_palette_file_has_two_regions_of_which_the_wave_form_has_no_millimeters():
    ds = pydicom.dcmread(get_testdata_file("examples_palette.dcm"))
    tissue, ecg = ultrasound_regions(ds)
    assert (tissue.spatial_format, tissue.data_type) == (1, 1) and (ecg.spatial_format, ecg.data_type) == (4, 10)
    assert (tissue.kind, ecg.kind) == ("tissue", "trace")
    assert ecg.spacing is None and ecg.box is None  # rows 522 to 576 of 350


def test_a_region_beyond_the_matrix_is_clamped_with_a_warning_that_names_the_file():
    ds = pydicom.dcmread(get_testdata_file("examples_ybr_color.dcm"))
    with pytest.warns(UserWarning, match=r"examples_ybr.*reaches to column 595 and row 414, .*320 columns and 240"):
        ultrasound_regions(ds)


def test_the_cines_frames_are_gray_where_pydicom_says_so():
    ds = pydicom.dcmread(get_testdata_file("examples_ybr_color.dcm"))
    frame = pydicom.pixels.pixel_array(ds, index=7)
    img = LoadUltrasound(frame=7)(get_testdata_file("examples_ybr_color.dcm"))
    luma = (frame * [0.299, 0.587, 0.114]).sum(-1) / 255
    np.testing.assert_allclose(img.numpy()[0], luma, atol=0.51 / 255)


def test_a_palette_is_applied_with_eight_bits():
    colors = UltrasoundDicomReader().frames(pydicom.dcmread(get_testdata_file("examples_palette.dcm")))[0][0]
    ds = pydicom.dcmread(get_testdata_file("examples_palette.dcm"))
    table = np.frombuffer(ds.RedPaletteColorLookupTableData, "<u2") >> 8
    np.testing.assert_array_equal(colors[..., 0], table[ds.pixel_array])


@pytest.mark.parametrize(
    ("little", "big"),
    [("gdcm-US-ALOKA-16.dcm", "gdcm-US-ALOKA-16_big.dcm"), ("OBXXXX1A.dcm", "OBXXXX1A_expb.dcm")],
)
def test_a_palette_is_the_same_from_a_big_endian_file(little, big):
    package = importlib.util.find_spec("data_store")  # looked up on disk: pydicom's own look-up downloads
    if package is None or package.origin is None:
        pytest.skip("pydicom-data is not installed")
    folder = Path(package.origin).parent / "data"
    reader = UltrasoundDicomReader()
    first, second = (reader.frames(reader.read(folder / name))[0] for name in (little, big))
    assert first.dtype == np.uint8 and first.shape[-1] == 3 and np.ptp(first) > 200
    np.testing.assert_array_equal(first, second)


def test_the_phantom_scans_are_gray_and_calibrated(shared_data):
    for path in sorted((shared_data / "dicom").glob("*.dcm")):
        reader = UltrasoundDicomReader()
        ds = reader.read(path)
        array, meta = reader.get_data(ds)
        assert array.shape == (2083, 1455, 3)
        # a YBR scan labeled RGB: taken at its word, it would be green
        assert (np.ptp(array[::8, ::8].astype(int), axis=-1) <= 8).mean() > 0.999
        assert np.diag(meta["affine"])[:2] == pytest.approx([0.0291, 0.0291])  # 0.00291 cm
        assert ultrasound_regions(ds)[0].box == (0, 1455, 0, 2083)  # written one pixel too long, without a warning


def test_monais_loader_takes_the_reader(tmp_path, scan):
    path = saved(tmp_path, ultrasound(scan, SequenceOfUltrasoundRegions=Sequence([region((0, 0, 19, 11))])))
    img = LoadImage(UltrasoundDicomReader, image_only=True, ensure_channel_first=True)(path)
    assert img.shape == (1, 20, 12) and np.array_equal(img.numpy()[0].T, scan)
    assert img.pixdim[:2].tolist() == pytest.approx([0.1, 0.2])


def test_the_largest_tissue_region_gives_the_spacing_and_an_index_another(tmp_path, scan):
    regions = [
        region((0, 0, 4, 4), (0.01, 0.01)),
        region((5, 0, 19, 11), (0.02, 0.03)),
        region((0, 0, 19, 11), (0.05, 0.05), data_type=2),  # larger, but color flow
        region((0, 0, 19, 11), (0.07, 1), units=(3, 4), spatial_format=2),  # M-mode: centimeters and seconds
    ]
    path = saved(tmp_path, ultrasound(scan, SequenceOfUltrasoundRegions=Sequence(regions), PixelSpacing=[7, 8]))

    def spacing(choice):
        reader = UltrasoundDicomReader(choice)
        return np.diag(reader.affine(reader.read(path))[0])[1::-1].tolist()  # row, column

    assert spacing("tissue") == pytest.approx([0.3, 0.2])
    assert spacing("largest_tissue") == [1, 1]  # regions of other scales: none holds for the whole image
    assert spacing(0) == pytest.approx([0.1, 0.1]) and spacing(2) == pytest.approx([0.5, 0.5])
    assert spacing(None) == [7, 8] and spacing(3) == [1, 1]  # seconds are no lengths
    with pytest.raises(UnreadableImageError, match="has 4 ultrasound regions, so there is no region 4"):
        spacing(4)


def test_cropping_keeps_the_regions_pixels_and_their_place(tmp_path, scan):
    path = saved(tmp_path, ultrasound(scan, SequenceOfUltrasoundRegions=Sequence([region((3, 2, 10, 7))])))
    reader = UltrasoundDicomReader(crop=True)
    ds = reader.read(path)
    np.testing.assert_array_equal(reader.frames(ds)[0][0, ..., 0], scan[2:8, 3:11])
    np.testing.assert_allclose(reader.affine(ds)[0][:2, 3], [3 * 0.1, 2 * 0.2])


def test_monochrome1_is_inverted_within_its_stored_bits(tmp_path):
    stored = np.array([[0, 1000], [4095, 7]], dtype=np.uint16)
    ds = ultrasound(stored, PhotometricInterpretation="MONOCHROME1", BitsStored=12, HighBit=11)
    img = LoadUltrasound()(saved(tmp_path, ds))
    np.testing.assert_allclose(img.numpy()[0], (4095 - stored.astype(float)) / 4095, atol=1e-6)


def test_jpeg_compressed_color_is_decoded(tmp_path):
    color = np.zeros((16, 32, 3), np.uint8)
    color[:, :16], color[:, 16:] = (200, 30, 30), (20, 40, 220)
    Image.fromarray(color).save(tmp_path / "a.jpg", quality=95, subsampling=0)
    ds = ultrasound(color, PhotometricInterpretation="YBR_FULL")
    ds.file_meta.TransferSyntaxUID = JPEGBaseline8Bit
    ds.PixelData = encapsulate([(tmp_path / "a.jpg").read_bytes()])
    ds["PixelData"].is_undefined_length = True
    img = UltrasoundReader().get_data([saved(tmp_path, ds)])[0]
    np.testing.assert_allclose(img, color.transpose(1, 0, 2), atol=4)


def test_monochrome1_of_signed_values_is_inverted_without_overflow():
    values = np.array([[-32768, -5], [0, 200]], np.int16)
    ds = ultrasound(values, PixelRepresentation=1, PhotometricInterpretation="MONOCHROME1")
    shown, white = display_values(ds, values[None, ..., None])
    assert np.argsort(shown.ravel()).tolist() == np.argsort(-values.astype(int).ravel()).tolist() and white == 0


@pytest.mark.parametrize(
    ("attributes", "expected"),
    [
        ({"FrameTime": 40}, [0, 0.04, 0.08]),
        ({"FrameTimeVector": [0, 30, 50]}, [0, 0.03, 0.08]),
        ({"FrameTimeVector": 40, "CineRate": 20}, [0, 0.05, 0.1]),
        ({"CineRate": 20}, [0, 0.05, 0.1]),
        ({"RecommendedDisplayFrameRate": 10, "FrameTime": 0}, [0, 0.1, 0.2]),
    ],
)
def test_frame_times_come_from_whatever_the_file_has(attributes, expected):
    times = frame_times(ultrasound(np.zeros((3, 4, 5), np.uint8), **attributes))
    np.testing.assert_allclose(times, expected)


def test_frame_times_are_none_where_the_file_does_not_tell():
    assert frame_times(ultrasound(np.zeros((3, 4, 5), np.uint8))) is None


def enhanced_volume(volume: np.ndarray, order: list[int], positions: list[float] | None = None) -> FileDataset:
    """Enhanced US Volume of ``(Z, H, W)``, slices 0.5 mm apart, stored in ``order``; pixels 0.3 by 0.2 mm."""
    positions = positions or [10 + 0.5 * index for index in range(len(volume))]
    ds = ultrasound(volume[order], SOPClassUID="1.2.840.10008.5.1.4.1.1.6.2")
    ds.file_meta.MediaStorageSOPClassUID = ds.SOPClassUID
    measures, direction, shared = Dataset(), Dataset(), Dataset()
    measures.PixelSpacing, measures.SliceThickness = [0.3, 0.2], 0.9
    direction.ImageOrientationVolume = [1, 0, 0, 0, 1, 0]
    shared.PixelMeasuresSequence = Sequence([measures])
    shared.PlaneOrientationVolumeSequence = Sequence([direction])
    ds.SharedFunctionalGroupsSequence = Sequence([shared])
    groups = []
    for index in order:
        plane, group = Dataset(), Dataset()
        plane.ImagePositionVolume = [1, 2, positions[index]]
        group.PlanePositionVolumeSequence = Sequence([plane])
        groups.append(group)
    ds.PerFrameFunctionalGroupsSequence = Sequence(groups)
    return ds


@pytest.mark.parametrize(("count", "mm"), [(1, 0.9), (2, 0.5), (4, 0.5)])
def test_slices_are_as_far_apart_as_their_positions_and_one_alone_is_as_thick_as_it_says(tmp_path, count, mm):
    path = saved(tmp_path, enhanced_volume(np.zeros((count, 6, 7), np.uint8), list(range(count))))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        affine = LoadUltrasound(frame=0)(path).affine.numpy()
    np.testing.assert_allclose(np.linalg.norm(affine[:3, :3], axis=0), [0.3, 0.2, mm])
    np.testing.assert_allclose(affine[:3, 3], [-1, -2, 10])


def test_an_enhanced_volume_is_sorted_by_position_and_keeps_spacing_and_origin(tmp_path):
    volume = np.random.default_rng(0).integers(0, 256, (5, 6, 7), dtype=np.uint8)
    path = saved(tmp_path, enhanced_volume(volume, [3, 0, 4, 1, 2]))
    img = LoadUltrasound(spatial_dims=3)(path)
    np.testing.assert_allclose(img.numpy()[0], volume / 255, atol=1e-6)
    assert img.meta["spacing"].tolist() == pytest.approx([0.5, 0.3, 0.2])
    # left-posterior-superior in the file, right-anterior-superior in MONAI
    np.testing.assert_allclose(img.affine.numpy() @ [0, 0, 0, 1], [-1, -2, 10, 1])
    np.testing.assert_allclose(img.affine.numpy() @ [4, 2, 3, 1], [-1 - 3 * 0.2, -2 - 2 * 0.3, 12, 1])
    still = LoadUltrasound(frame=3)(path)
    np.testing.assert_allclose(still.numpy()[0], volume[3] / 255, atol=1e-6)


def test_a_stripped_volume_keeps_its_slices_at_their_places(tmp_path):
    volume = np.arange(5 * 6 * 7, dtype=np.uint8).reshape(5, 6, 7)
    ds = enhanced_volume(volume, [3, 0, 4, 1, 2])
    ds.SequenceOfUltrasoundRegions = Sequence([region((0, 1, 6, 5))])
    made = convert_dicom(saved(tmp_path, ds), tmp_path / "out.dcm", deidentify="strip")
    np.testing.assert_array_equal(LoadUltrasound(3, dtype=torch.uint8)(made)[0, :, 1:].numpy(), volume[:, 1:])


def test_a_sequence_of_volumes_is_refused(tmp_path):
    volume = np.zeros((4, 3, 5), np.uint8)
    path = saved(tmp_path, enhanced_volume(volume, [0, 1, 2, 3], [1, 2, 1, 2]))
    with pytest.raises(UnreadableImageError, match="a sequence of volumes"):
        LoadUltrasound(spatial_dims=3)(path)


def test_check_refuses_a_named_patient_and_names_attributes_but_no_values(tmp_path, scan):
    path = saved(tmp_path, ultrasound(scan, PatientName="Doe^Jane", PatientBirthDate="19700101"))
    with pytest.raises(UnreadableImageError, match=r"PatientName.*PatientBirthDate") as caught:
        UltrasoundDicomReader(deidentify="check").read(path)
    assert "Jane" not in caught.value.reason and "1970" not in caught.value.reason


def test_check_finds_names_inside_sequences_and_declared_annotation(tmp_path, scan):
    inner = Dataset()
    inner.PersonName = "Doe^Jane"
    ds = ultrasound(scan, BurnedInAnnotation="YES", OtherPatientIDsSequence=Sequence([Dataset()]))
    ds.PerformedProtocolCodeSequence = Sequence([inner])
    with pytest.raises(UnreadableImageError, match=r"PersonName.*burned-in annotation declared"):
        UltrasoundDicomReader(deidentify="check").read(saved(tmp_path, ds))


def test_check_passes_pseudonyms_and_placeholders(tmp_path, scan):
    reader = UltrasoundDicomReader(deidentify="check")
    reader.read(saved(tmp_path, ultrasound(scan, PatientName="--", PatientID="")))
    reader.read(saved(tmp_path, ultrasound(scan, PatientName="Case 7", PatientIdentityRemoved="YES")))


def test_strip_empties_attributes_blackens_the_surroundings_and_says_so(tmp_path, scan, caplog):
    inner = Dataset()
    inner.OperatorsName = "Roe^Richard"
    ds = ultrasound(
        scan,
        PatientName="Doe^Jane",
        PatientID="PID4711",
        StudyDate="20200101",
        StudyInstanceUID="1.2.3.4",
        SequenceOfUltrasoundRegions=Sequence([region((0, 6, 19, 11))]),
        PerformedProtocolCodeSequence=Sequence([inner]),
    )
    ds.private_block(0x0011, "MAKER", create=True).add_new(0x01, "LO", "Jane")
    reader = UltrasoundDicomReader(deidentify="strip")
    with caplog.at_level(logging.INFO):
        clean = reader.read(saved(tmp_path, ds))
    text = str(clean)
    assert "Jane" not in text and "PID4711" not in text and "Roe" not in text and "20200101" not in text
    assert clean.StudyInstanceUID != "1.2.3.4" and clean.PatientIdentityRemoved == "YES"
    pixels = reader.frames(clean)[0][0, ..., 0]
    assert not pixels[:6].any() and np.array_equal(pixels[6:], scan[6:])
    assert "emptied" in caplog.text and "PatientName" in caplog.text and "blackened 50%" in caplog.text


def test_strip_refuses_burnt_in_text_that_it_cannot_place(tmp_path, scan):
    path = saved(tmp_path, ultrasound(scan, BurnedInAnnotation="YES"))
    with pytest.raises(UnreadableImageError, match="no ultrasound region tells what is image"):
        UltrasoundDicomReader(deidentify="strip").read(path)


def test_strip_warns_that_text_inside_a_region_stays(tmp_path, scan, caplog):
    regions = Sequence([region((0, 2, 19, 11))])
    path = saved(tmp_path, ultrasound(scan, BurnedInAnnotation="YES", SequenceOfUltrasoundRegions=regions))
    UltrasoundDicomReader(deidentify="strip").read(path)
    assert (
        "declares burned-in annotation" in caplog.text and "text inside the ultrasound regions is kept" in caplog.text
    )


def test_no_person_reaches_the_metadata(tmp_path, scan):
    path = saved(tmp_path, ultrasound(scan, PatientName="Doe^Jane", PatientID="PID4711"))
    reader = UltrasoundDicomReader()
    meta = reader.get_data(reader.read(path))[1]
    assert "Jane" not in str(meta) and "PID4711" not in str(meta)


def test_conversion_to_png_keeps_pixels_and_spacing(tmp_path, scan):
    path = saved(tmp_path, ultrasound(scan, SequenceOfUltrasoundRegions=Sequence([region((0, 0, 19, 11))])))
    out = convert_dicom(path, tmp_path / "out" / "a.png")
    with Image.open(out) as img:
        np.testing.assert_array_equal(np.asarray(img), scan)
        assert [25.4 / dots for dots in img.info["dpi"]] == pytest.approx([0.1, 0.2], rel=1e-3)
    note = json.loads((tmp_path / "out" / "a.png.json").read_text())
    assert note["spacing_mm"] == pytest.approx([0.2, 0.1])  # rows, columns
    assert sorted(p.name for p in out.parent.iterdir()) == ["a.png", "a.png.json"]


def test_colors_of_sixteen_bits_become_luma_in_png(tmp_path):
    path = saved(tmp_path, ultrasound(np.full((4, 5, 3), 3000, np.uint16)))
    assert (np.asarray(Image.open(convert_dicom(path, tmp_path / "a.png"))) == 3000).all()


def test_values_that_png_does_not_hold_are_refused_by_type(tmp_path):
    path = saved(tmp_path, ultrasound(np.full((4, 5), -7, np.int16), PixelRepresentation=1))
    with pytest.raises(ValueError, match="values of type int16 do not fit into PNG; write NIfTI"):
        convert_dicom(path, tmp_path / "a.png")


def test_conversion_of_a_cine_to_nifti_reads_back_the_same(tmp_path):
    cine = np.random.default_rng(0).integers(0, 256, (4, 6, 8), dtype=np.uint8)
    ds = ultrasound(cine, FrameTime=40, SequenceOfUltrasoundRegions=Sequence([region((0, 0, 7, 5))]))
    out = convert_dicom(saved(tmp_path, ds), tmp_path / "a.nii.gz")
    img = nib.load(out)
    assert img.shape == (8, 6, 1, 4) and img.header.get_xyzt_units() == ("mm", "sec")
    assert img.header.get_zooms() == pytest.approx((0.1, 0.2, 1, 0.04))
    np.testing.assert_allclose(LoadUltrasound(spatial_dims=3)(out).numpy()[0], cine / 255, atol=1e-6)


def test_conversion_of_a_volume_to_nifti_keeps_its_geometry(tmp_path):
    volume = np.random.default_rng(0).integers(0, 256, (5, 6, 7), dtype=np.uint8)
    path = saved(tmp_path, enhanced_volume(volume, [4, 3, 2, 1, 0]))
    out = convert_dicom(path, tmp_path / "a.nii")
    before, after = LoadUltrasound(spatial_dims=3)(path), LoadUltrasound(spatial_dims=3)(out)
    assert np.array_equal(before.numpy(), after.numpy())
    np.testing.assert_allclose(before.affine.numpy(), after.affine.numpy(), atol=1e-5)


def test_conversion_to_nifti_can_keep_color(tmp_path):
    color = np.random.default_rng(0).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    out = convert_dicom(saved(tmp_path, ultrasound(color)), tmp_path / "a.nii", gray=False)
    assert np.array_equal(UltrasoundReader().get_data([out])[0].squeeze(2), color.transpose(1, 0, 2))


def test_a_failed_conversion_leaves_nothing(tmp_path, scan, monkeypatch):
    path = saved(tmp_path, ultrasound(scan))

    def broken(self, target, **options):
        Path(target).write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(Image.Image, "save", broken)
    with pytest.raises(OSError, match="disk full"):
        convert_dicom(path, tmp_path / "out" / "a.png")
    assert list((tmp_path / "out").iterdir()) == []


@pytest.mark.parametrize("options", [{"region": "smallest"}, {"deidentify": "maybe"}])
def test_an_unknown_option_is_refused(options):
    with pytest.raises(ValueError, match=next(iter(options))):
        UltrasoundDicomReader(**options)


def test_an_unknown_output_type_is_refused(tmp_path, scan):
    with pytest.raises(ValueError, match="output must end in"):
        convert_dicom(saved(tmp_path, ultrasound(scan)), tmp_path / "a.gif")


@pytest.fixture
def duplex(scan, tmp_path):
    """A gray image above a Doppler spectrum (m/s over s would be a mistake: cm/s), and an M-mode beside."""
    image = region((0, 0, 19, 5), delta=(0.02, 0.02))
    spectrum = region((0, 6, 13, 11), delta=(0.005, -1.5), units=(4, 7), spatial_format=3, data_type=3)
    m_mode = region((14, 6, 19, 11), delta=(0.01, 0.03), units=(4, 3), spatial_format=2)
    return saved(tmp_path, ultrasound(scan, SequenceOfUltrasoundRegions=[image, spectrum, m_mode], PixelSpacing=[1, 1]))


@pytest.mark.parametrize(
    ("kind", "rows", "columns", "units", "deltas"),
    [
        ("tissue", slice(0, 6), slice(0, 20), ["cm", "cm"], [0.02, 0.02]),
        ("doppler", slice(6, 12), slice(0, 14), ["cm/s", "s"], [-1.5, 0.005]),
        ("m_mode", slice(6, 12), slice(14, 20), ["cm", "s"], [0.03, 0.01]),
    ],
)
def test_a_region_is_taken_by_its_kind_with_its_own_units(duplex, scan, tmp_path, kind, rows, columns, units, deltas):
    output = convert_dicom(duplex, tmp_path / "out.png", region=kind, crop=True)
    assert np.array_equal(np.asarray(Image.open(output)), scan[rows, columns])
    note = json.loads((tmp_path / "out.png.json").read_text())
    (used,) = [entry for entry in note["regions"] if entry["index"] == note["region"]]
    assert (used["kind"], used["units"], used["deltas"]) == (kind, units, deltas)
    assert note["spacing_mm"] == ([0.2, 0.2] if kind == "tissue" else None)  # seconds are no millimeters


def test_a_file_without_a_region_of_the_kind_is_left_out_by_name(duplex, tmp_path):
    with pytest.raises(
        UnreadableImageError, match="no ultrasound region of the kind trace; it has tissue, doppler, m_mode"
    ):
        convert_dicom(duplex, tmp_path / "out.png", region="trace")
    with pytest.raises(ValueError, match="region must be"):
        UltrasoundDicomReader("spectrum")


@pytest.mark.parametrize("volume", [False, True])
def test_one_converted_frame_lies_where_it_is_read(tmp_path, volume):
    values = np.random.default_rng(0).integers(0, 256, (5, 6, 7), dtype=np.uint8)
    path = saved(tmp_path, enhanced_volume(values, [0, 1, 2, 3, 4]) if volume else ultrasound(values))
    frame = LoadUltrasound(frame=3)(convert_dicom(path, tmp_path / "a.nii.gz", frame=3))
    read = LoadUltrasound(frame=3)(path)
    np.testing.assert_allclose(frame.numpy(), read.numpy(), atol=1e-6)
    np.testing.assert_allclose(frame.affine[:3, 3].numpy(), read.affine[:3, 3].numpy(), atol=1e-5)


def test_a_file_that_is_dicom_by_its_name_alone_is_not_left_out_silently(tmp_path, scan):
    folder = tmp_path / "in"
    folder.mkdir()
    whole = saved(folder, ultrasound(scan), "a.dcm").read_bytes()
    (folder / "b.dcm").write_bytes(whole[132:])  # without the header that says DICM
    (folder / "._a.dcm").write_bytes(b"of another system")
    (folder / "notes.txt").write_text("no image")
    failed = convert_dicom_folder([folder], output=tmp_path / "out")
    assert len(failed) == 1 and failed[0].startswith(f"{folder / 'b.dcm'}: has no DICOM header")
    with pytest.raises(UnreadableImageError, match=r"b\.dcm: has no DICOM header"):
        LoadUltrasound()(folder / "b.dcm")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["a.nii.gz", "a.nii.gz.json"]
