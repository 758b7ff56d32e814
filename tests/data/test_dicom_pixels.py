# Copyright (c) monai_usfm contributors
# SPDX-License-Identifier: Apache-2.0
"""Pixels of DICOM as a viewer shows them; expected values are computed by hand from the standard."""

from __future__ import annotations

import io
import warnings

import numpy as np
import pytest
from PIL import Image
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate
from pydicom.sequence import Sequence
from pydicom.uid import JPEGBaseline8Bit

from monai_usfm.data import LoadUltrasound, UnreadableImageError, convert_dicom
from tests.dicom_files import region, saved, ultrasound

RAMP = np.array([[0, 50, 100, 120], [150, 200, 220, 255]], dtype=np.uint8)


def shown(tmp_path, pixels, **attributes) -> list:
    return LoadUltrasound()(saved(tmp_path, ultrasound(pixels, **attributes))).as_tensor()[0].tolist()


def test_a_window_is_applied(tmp_path):
    # PS3.3 C.11.2.1.2: ((x - (c - 0.5)) / (w - 1) + 0.5), c = 100, w = 101
    expected = [[0, 0.005, 0.505, 0.705], [1, 1, 1, 1]]
    assert np.allclose(shown(tmp_path, RAMP, WindowCenter=100, WindowWidth=101), expected, atol=1e-6)


@pytest.mark.parametrize("width", [256, 0])
def test_a_window_of_the_whole_range_or_without_width_changes_nothing(tmp_path, width):
    np.testing.assert_allclose(shown(tmp_path, RAMP, WindowCenter=128, WindowWidth=width), RAMP / 255, atol=1e-6)


@pytest.mark.parametrize(
    ("function", "expected"), [("LINEAR_EXACT", [0.25, 0.75]), ("SIGMOID", [1 / (1 + np.e), np.e / (1 + np.e)])]
)
def test_other_window_functions(tmp_path, function, expected):
    pixels = np.array([[75, 125]], np.uint8)
    found = shown(tmp_path, pixels, WindowCenter=100, WindowWidth=100, VOILUTFunction=function)
    np.testing.assert_allclose(found[0], expected, atol=1e-6)


def test_eight_bits_in_sixteen_are_not_black(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        np.testing.assert_allclose(shown(tmp_path, RAMP.astype(np.uint16)), RAMP / 255, atol=1e-6)
    found = shown(tmp_path, RAMP.astype(np.uint16), WindowCenter=128, WindowWidth=256)
    np.testing.assert_allclose(found, RAMP / 255, atol=1e-6)


@pytest.mark.parametrize("window", [{}, {"WindowCenter": 128, "WindowWidth": 256}])
def test_a_rescale_with_a_negative_slope_turns_the_scale_round_before_a_window(tmp_path, window):
    found = shown(tmp_path, RAMP, RescaleSlope=-1, RescaleIntercept=255, **window)
    np.testing.assert_allclose(found, 1 - RAMP / 255, atol=1e-6)


def test_a_window_counts_in_rescaled_values(tmp_path):
    # 2 x - 100 of 50, 100, 150 is 0, 100, 200; the window from 0 to 200 by LINEAR_EXACT
    pixels = np.array([[50, 100, 150, 150]], np.uint8)
    found = shown(
        tmp_path, pixels, RescaleSlope=2, RescaleIntercept=-100, WindowCenter=100, WindowWidth=200,
        VOILUTFunction="LINEAR_EXACT",
    )  # fmt: skip
    np.testing.assert_allclose(found, [[0, 0.5, 1, 1]], atol=1e-6)


@pytest.mark.parametrize(
    "attributes",
    [
        {"PresentationLUTShape": "INVERSE"},
        {"PhotometricInterpretation": "MONOCHROME1"},
        {"PresentationLUTShape": "INVERSE", "PhotometricInterpretation": "MONOCHROME1"},  # says it twice, as PS3.3 asks
        {"PresentationLUTShape": "INVERSE", "WindowCenter": 128, "WindowWidth": 256},
    ],
)
def test_an_inverse_presentation_is_inverted_once(tmp_path, attributes):
    np.testing.assert_allclose(shown(tmp_path, RAMP, **attributes), 1 - RAMP / 255, atol=1e-6)


def test_signed_values_span_their_range(tmp_path):
    pixels = np.array([[-128, 0, 127, 127]], np.int8).view(np.uint8)
    found = shown(tmp_path, pixels, PixelRepresentation=1)
    np.testing.assert_allclose(found, [[0, 128 / 255, 1, 1]], atol=1e-6)


@pytest.mark.parametrize(("dtype", "signed"), [(np.int16, 1), (np.uint32, 0)])
def test_a_file_that_claims_all_bits_of_wide_values_is_guessed_by_its_values(tmp_path, dtype, signed):
    with pytest.warns(UserWarning, match="taken as 255"):
        found = shown(tmp_path, RAMP.astype(dtype), PixelRepresentation=signed)
    np.testing.assert_allclose(found, RAMP / 255, atol=1e-6)


def test_bits_that_lie_elsewhere_are_refused(tmp_path):
    with pytest.raises(UnreadableImageError, match=r"made\.dcm: High Bit 15 is not Bits Stored - 1"):
        shown(tmp_path, RAMP.astype(np.uint16) << 6, BitsStored=10, HighBit=15)


def test_a_table_of_values_of_interest_is_applied(tmp_path):
    table = Dataset()
    table.LUTDescriptor = [256, 0, 8]
    table.LUTData = (np.arange(256, dtype=np.uint16)[::-1]).astype("<u2").tobytes()
    found = shown(tmp_path, RAMP, VOILUTSequence=Sequence([table]))
    np.testing.assert_allclose(found, 1 - RAMP / 255, atol=1e-6)


def test_labels_keep_stored_numbers(tmp_path):
    path = saved(tmp_path, ultrasound(RAMP, WindowCenter=100, WindowWidth=101, PhotometricInterpretation="MONOCHROME1"))
    assert LoadUltrasound(scale=None)(path)[0].tolist() == RAMP.tolist()


@pytest.mark.parametrize("compressed", [False, True])
def test_frames_are_counted_where_the_header_does_not_tell(tmp_path, compressed):
    cine = np.stack([np.full((16, 16), value, np.uint8) for value in (10, 80, 160, 240)])
    ds = ultrasound(cine)
    if compressed:
        ds.file_meta.TransferSyntaxUID = JPEGBaseline8Bit
        ds.PixelData = encapsulate([_jpeg(frame) for frame in cine])
        ds["PixelData"].is_undefined_length = True
    del ds.NumberOfFrames
    found = LoadUltrasound(spatial_dims=3)(saved(tmp_path, ds))
    np.testing.assert_allclose(found.numpy()[0], cine / 255, atol=1.5 / 255)


def _jpeg(image: np.ndarray, marked: bool = True, subsampling: int = 0) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(image).save(stream, "JPEG", quality=98, **({"subsampling": subsampling} if image.ndim == 3 else {}))
    data = stream.getvalue()
    return data if marked else data[:2] + data[4 + int.from_bytes(data[4:6], "big") :]  # without the JFIF mark


@pytest.mark.parametrize("marked", [True, False])
@pytest.mark.parametrize("subsampling", [0, 2])
@pytest.mark.parametrize("stated", ["RGB", "YBR_FULL", "YBR_FULL_422"])
@pytest.mark.filterwarnings("ignore:.*Photometric Interpretation")
def test_the_codestream_decides_over_a_header_that_says_rgb(tmp_path, marked, subsampling, stated):
    color = np.repeat(np.linspace(20, 235, 32, dtype=np.uint8)[None, :, None].repeat(16, 0), 3, axis=2)
    color[:8, :8] = 200, 60, 60
    ds = ultrasound(color, PhotometricInterpretation=stated)
    ds.file_meta.TransferSyntaxUID = JPEGBaseline8Bit
    ds.PixelData = encapsulate([_jpeg(color, marked, subsampling)])
    ds["PixelData"].is_undefined_length = True
    luma = color @ np.array([0.299, 0.587, 0.114])
    found = LoadUltrasound()(saved(tmp_path, ds)).numpy()[0] * 255
    assert np.abs(found - luma).mean() < 1.5


def test_a_scale_of_one_of_two_regions_is_not_known_for_the_whole_image(tmp_path):
    regions = Sequence([region((0, 0, 9, 11), (0.01, 0.01)), region((10, 0, 19, 11), (0.03, 0.03))])
    path = saved(tmp_path, ultrasound(np.zeros((12, 20), np.uint8), SequenceOfUltrasoundRegions=regions))
    with pytest.warns(UserWarning, match=r"different scales: 0\.1 x 0\.1 mm \(region 0\), 0\.3 x 0\.3 mm \(region 1\)"):
        img = LoadUltrasound()(path)
    assert img.meta["spacing_known"] is False and img.meta["spacing"].tolist() == [1, 1]
    with pytest.warns(UserWarning, match="different scales"):
        convert_dicom(path, tmp_path / "whole.nii.gz")
    assert LoadUltrasound()(tmp_path / "whole.nii.gz").meta["spacing_known"] is False
    convert_dicom(path, tmp_path / "one.nii.gz", region=1)
    one = LoadUltrasound()(tmp_path / "one.nii.gz").meta
    assert one["spacing"].tolist() == pytest.approx([0.3, 0.3]) and one["spacing_box"].tolist() == [0, 12, 10, 20]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        chosen = LoadUltrasound(region=1)(path)
    assert chosen.meta["spacing"].tolist() == pytest.approx([0.3, 0.3]) and chosen.meta["spacing_known"] is True
    assert chosen.meta["spacing_box"].tolist() == [0, 12, 10, 20]


def test_what_has_no_region_is_not_cropped(tmp_path):
    path = saved(tmp_path, ultrasound(np.zeros((12, 20), np.uint8)))
    with pytest.raises(UnreadableImageError, match="has no ultrasound region to crop to"):
        convert_dicom(path, tmp_path / "a.png", crop=True)
    with pytest.raises(ValueError, match="crop is to an ultrasound region"):
        convert_dicom(path, tmp_path / "a.png", crop=True, region=None)
    assert not (tmp_path / "a.png").exists()


@pytest.mark.parametrize("delta", [float("nan"), float("inf"), 0.0])
def test_a_region_without_a_usable_scale_has_none_and_the_pixel_spacing_counts(tmp_path, delta):
    made = ultrasound(np.zeros((8, 9), np.uint8), PixelSpacing=[0.3, 0.2])
    made.SequenceOfUltrasoundRegions = [region((0, 0, 8, 7), (delta, 0.02))]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        read = LoadUltrasound()(saved(tmp_path, made))
    np.testing.assert_allclose(read.meta["spacing"], [0.3, 0.2], rtol=1e-6)


def test_two_regions_of_one_scale_are_one(tmp_path):
    regions = Sequence([region((0, 0, 9, 11), (0.01, 0.01)), region((10, 0, 19, 11), (0.01, 0.01))])
    path = saved(tmp_path, ultrasound(np.zeros((12, 20), np.uint8), SequenceOfUltrasoundRegions=regions))
    img = LoadUltrasound()(path)
    assert img.meta["spacing_known"] is True and img.meta["spacing_box"].tolist() == [0, 12, 0, 20]
