# Copyright (c) monai_usfm contributors
# SPDX-License-Identifier: Apache-2.0
"""Reading ultrasound files: the same upright image, values and millimeters from every format."""

from __future__ import annotations

import inspect
import pickle
import subprocess
import sys
import warnings
from pathlib import Path

import itk
import nibabel as nib
import numpy as np
import pydicom
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from monai.data import MetaTensor, list_data_collate, set_track_meta
from monai.transforms import SaveImage
from PIL import Image
from pydicom.dataset import FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian

from monai_usfm.data import LoadUltrasound, LoadUltrasoundd, UnreadableImageError, UprightGray
from monai_usfm.data.upright import gray_from_rgb
from monai_usfm.transforms.labels import label_value
from tests.dicom_files import saved, ultrasound

STILLS = ["png", "bmp", "tif", "jpg", "nii", "nii.gz", "mha", "mhd", "nrrd", "dcm"]
VOLUMES = ["tif", "nii", "nii.gz", "mha", "nrrd", "dcm"]
SPACING = {"nii": (3.0, 2.0), "nii.gz": (3.0, 2.0), "mha": (3.0, 2.0), "mhd": (3.0, 2.0), "nrrd": (3.0, 2.0)}


@pytest.fixture(autouse=True)
def tracking():
    yield
    set_track_meta(True)


def asymmetric(shape: tuple[int, ...] = (5, 8)) -> np.ndarray:
    """A image that no flip, turn or transposition leaves as it is; 16 px blocks survive JPEG."""
    blocks = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    return blocks.repeat(16, axis=-1).repeat(16, axis=-2)


def write_mha(path: Path, array: np.ndarray) -> None:
    """``(H, W, c)`` uint8 as MetaImage, without a library."""
    header = f"ObjectType = Image\nNDims = 2\nDimSize = {array.shape[1]} {array.shape[0]}\nElementType = MET_UCHAR\n"
    header += f"ElementNumberOfChannels = {array.shape[2]}\nElementDataFile = LOCAL\n"
    path.write_bytes(header.encode() + array.tobytes())


def write(path: Path, array: np.ndarray) -> Path:
    """Store ``(H, W)`` or ``(D, H, W)``, spacing 2 mm along x, 3 mm along y and 4 mm along z where the format can."""
    kind = path.name.split(".", 1)[1]
    if kind in ("nii", "nii.gz"):
        nib.save(nib.Nifti1Image(array.T, np.diag([2.0, 3.0, 4.0, 1.0])), path)
    elif kind in ("mha", "mhd", "nrrd"):
        img = itk.image_from_array(array)
        img.SetSpacing([2.0, 3.0, 4.0][: array.ndim])
        itk.imwrite(img, str(path))
    elif kind == "dcm":
        saved(path.parent, ultrasound(array), path.name)
    elif array.ndim == 3:
        pages = [Image.fromarray(page) for page in array]
        pages[0].save(path, save_all=True, append_images=pages[1:])
    else:
        Image.fromarray(array).save(path, **({"quality": 100} if kind == "jpg" else {}))
    return path


@pytest.mark.parametrize("kind", STILLS)
def test_a_still_of_every_format_is_the_upright_image(tmp_path, kind):
    pixels = asymmetric()
    img = LoadUltrasound()(write(tmp_path / f"a.{kind}", pixels))
    assert img.shape == (1, *pixels.shape) and img.dtype == torch.float32
    error = np.abs(img.numpy()[0] - pixels / 255).max()
    assert error <= (2 / 255 if kind == "jpg" else 1e-6)


@pytest.mark.parametrize("kind", VOLUMES)
def test_a_volume_of_every_format_has_slices_then_rows_then_columns(tmp_path, kind):
    volume = asymmetric((4, 3, 5))
    img = LoadUltrasound(spatial_dims=3)(write(tmp_path / f"a.{kind}", volume))
    np.testing.assert_allclose(img.numpy()[0], volume / 255, atol=1e-6)


@pytest.mark.parametrize("kind", VOLUMES)
@pytest.mark.parametrize(("frame", "expected"), [("middle", 2), (0, 0), (3, 3), (-1, 3)])
def test_two_dimensions_take_one_frame_of_a_volume(tmp_path, kind, frame, expected):
    volume = asymmetric((4, 3, 5))
    img = LoadUltrasound(frame=frame)(write(tmp_path / f"a.{kind}", volume))
    np.testing.assert_allclose(img.numpy()[0], volume[expected] / 255, atol=1e-6)
    assert img.meta["frame"] == expected and img.meta["num_frames"] == 4


@pytest.mark.parametrize("kind", ["nii.gz", "mha", "nrrd"])
def test_spacing_follows_the_order_of_the_axes(tmp_path, kind):
    path = write(tmp_path / f"a.{kind}", asymmetric((4, 3, 5)))
    volume, frame = LoadUltrasound(spatial_dims=3)(path), LoadUltrasound()(path)
    assert volume.pixdim.tolist() == pytest.approx([4, 3, 2]) and volume.meta["spacing"].tolist() == [4, 3, 2]
    assert frame.meta["spacing"].tolist() == [3, 2] and frame.meta["spacing_known"] is True


def test_a_format_without_spacing_says_that_it_is_unknown_and_takes_the_items(tmp_path):
    path = write(tmp_path / "a.png", asymmetric())
    assert LoadUltrasound()(path).meta["spacing_known"] is False
    img = LoadUltrasoundd("image")({"image": path, "spacing": [0.2, 0.1]})["image"]
    assert img.meta["spacing"].tolist() == pytest.approx([0.2, 0.1]) and img.meta["spacing_known"] is True


def test_nifti_in_meters_becomes_millimeters(tmp_path):
    img = nib.Nifti1Image(asymmetric().T, np.diag([0.002, 0.003, 1, 1]))
    img.header.set_xyzt_units("meter")
    nib.save(img, tmp_path / "a.nii")
    assert LoadUltrasound()(tmp_path / "a.nii").meta["spacing"].tolist() == pytest.approx([3, 2])


@given(seed=st.integers(0, 2**20), frame=st.integers(0, 3))
@settings(max_examples=15, deadline=None)
def test_a_voxel_keeps_its_place_in_the_world(tmp_path_factory, seed, frame):
    random = np.random.default_rng(seed)
    affine = np.eye(4)
    affine[:3] = random.normal(size=(3, 4))
    path = tmp_path_factory.mktemp("world") / "a.nii"
    nib.save(nib.Nifti1Image(random.integers(0, 255, (6, 5, 4), dtype=np.uint8), affine), path)
    stored = nib.load(path).affine  # header precision
    x, y = 2, 3
    expected = stored @ [x, y, frame, 1]
    volume = LoadUltrasound(spatial_dims=3)(path)
    still = LoadUltrasound(frame=frame)(path)
    np.testing.assert_allclose(volume.affine.numpy() @ [frame, y, x, 1], expected, atol=1e-5)
    np.testing.assert_allclose(still.affine.numpy() @ [y, x, 0, 1], expected, atol=1e-5)


def test_monai_saves_a_volume_back_on_the_grid_of_its_file(tmp_path):
    volume = asymmetric((4, 3, 5))
    affine = np.diag([2.0, 3.0, 4.0, 1.0])
    affine[:3, 3] = 5, 6, 7
    nib.save(nib.Nifti1Image(volume.T, affine), tmp_path / "a.nii.gz")
    img = LoadUltrasound(spatial_dims=3)(tmp_path / "a.nii.gz")
    SaveImage(tmp_path, output_postfix="out", separate_folder=False, print_log=False, resample=True)(img)
    saved = nib.load(tmp_path / "a_out.nii.gz")
    np.testing.assert_allclose(saved.affine, affine)
    np.testing.assert_allclose(saved.get_fdata(), volume.T / 255, atol=1e-6)


def test_a_cine_stored_along_the_fourth_axis_is_a_volume_of_frames(tmp_path):
    cine = asymmetric((4, 3, 5))
    nib.save(nib.Nifti1Image(cine.T[:, :, None], np.eye(4)), tmp_path / "a.nii.gz")
    np.testing.assert_allclose(LoadUltrasound(3)(tmp_path / "a.nii.gz").numpy()[0], cine / 255, atol=1e-6)
    np.testing.assert_allclose(LoadUltrasound(frame=1)(tmp_path / "a.nii.gz").numpy()[0], cine[1] / 255, atol=1e-6)


@pytest.mark.parametrize(
    ("dtype", "largest", "full_scale"),
    [("u1", 200, 255), ("u2", 200, 255), ("u2", 3000, 4095), ("u2", 40000, 65535), ("i2", 3000, 4095), ("i4", 99, 255)],
)
@pytest.mark.parametrize("kind", ["tif", "nii", "mha"])
def test_integers_are_divided_by_the_smallest_usual_range_that_holds_them(tmp_path, kind, dtype, largest, full_scale):
    if kind == "tif" and dtype == "i2":
        pytest.skip("Pillow writes no signed 16-bit TIFF")
    array = np.linspace(0, largest, 48).reshape(6, 8).astype(dtype)
    img = LoadUltrasound()(write(tmp_path / f"a.{kind}", array))
    np.testing.assert_allclose(img.numpy()[0], array / full_scale, atol=1e-6)


def test_dicom_is_divided_by_its_stored_bits_however_dark_it_is(tmp_path):
    array = np.full((4, 6), 100, dtype=np.uint16)
    saved(tmp_path, ultrasound(array, BitsStored=12, HighBit=11), "a.dcm")
    assert LoadUltrasound()(tmp_path / "a.dcm").unique().item() == pytest.approx(100 / 4095)


@pytest.mark.parametrize("kind", ["tif", "nii.gz", "mha"])
def test_all_frames_of_a_deep_volume_share_one_scale(tmp_path, kind):
    volume = np.stack([np.full((4, 5), value, np.uint16) for value in (100, 200, 4000)])
    path = write(tmp_path / f"a.{kind}", volume)
    assert LoadUltrasound(frame=0)(path).max().item() == pytest.approx(100 / 4095)


@pytest.mark.parametrize(("high", "full_scale"), [(1.0, 1), (0.3, 1), (200.0, 255)])
def test_floats_in_a_usual_range_are_not_stretched(tmp_path, high, full_scale):
    array = np.linspace(0.1 * high, high, 48).reshape(6, 8).astype(np.float32)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        img = LoadUltrasound()(write(tmp_path / "a.nii", array))
    np.testing.assert_allclose(img.numpy()[0], array / full_scale, rtol=1e-5)


def test_other_floats_are_stretched_with_one_warning_that_names_the_file(tmp_path):
    array = np.linspace(-60, 0, 48).reshape(6, 8).astype(np.float32)  # decibels
    path = write(tmp_path / "decibel.mha", array)
    load = LoadUltrasound()
    with pytest.warns(UserWarning, match=r"decibel\.mha: float32 values from -60 to 0"):
        img = load(path)
    np.testing.assert_allclose(img.numpy()[0], (array + 60) / 60, atol=1e-6)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load(path)
        LoadUltrasound(scale="minmax")(path)


def test_minmax_of_a_constant_image_is_zero(tmp_path):
    path = write(tmp_path / "a.png", np.full((4, 5), 77, np.uint8))
    assert LoadUltrasound(scale="minmax")(path).abs().max() == 0


def test_label_maps_keep_their_numbers(tmp_path):
    label = np.arange(20, dtype=np.uint8).reshape(4, 5)
    for kind in ("png", "nii.gz", "mha"):
        for dtype in (torch.uint8, np.uint8):  # of either library, as MONAI's readers take them
            img = LoadUltrasound(scale=None, dtype=dtype)(write(tmp_path / f"a.{kind}", label))
            assert img.dtype == torch.uint8 and torch.equal(img.as_tensor()[0], torch.from_numpy(label))


@pytest.mark.parametrize(
    ("palette", "label"),
    [
        ([0, 0, 0, 90, 90, 90, 255, 255, 255], [[0, 90], [255, 90]]),  # gray: its values
        ([255, 255, 255, 0, 0, 0, 7, 7, 7], [[255, 0], [7, 0]]),  # white first
        ([0, 0, 0, 128, 0, 0, 0, 128, 0], [[0, 1], [2, 1]]),  # colors, as of PASCAL VOC: indices
    ],
)
def test_a_palette_label_gives_gray_values_or_else_indices(tmp_path, palette, label):
    img = Image.fromarray(np.array([[0, 1], [2, 1]], dtype=np.uint8), mode="P")
    img.putpalette(palette)
    img.save(tmp_path / "a.png")
    assert LoadUltrasound(scale=None)(tmp_path / "a.png")[0].tolist() == label


def test_a_palette_image_gives_its_colors(tmp_path):
    img = Image.fromarray(np.array([[0, 1], [2, 1]], dtype=np.uint8), mode="P")
    img.putpalette([0, 0, 0, 90, 90, 90, 255, 255, 255])
    img.save(tmp_path / "a.png")
    expected = np.array([[0, 90], [255, 90]]) / 255
    np.testing.assert_allclose(LoadUltrasound()(tmp_path / "a.png").numpy()[0], expected, atol=1e-6)


def test_gray_stored_as_rgb_is_exactly_gray(tmp_path):
    pixels = np.arange(256, dtype=np.uint8).reshape(16, 16)
    Image.fromarray(np.repeat(pixels[..., None], 3, axis=-1)).save(tmp_path / "a.png")
    Image.fromarray(np.dstack([pixels] * 3 + [np.full_like(pixels, 128)])).save(tmp_path / "b.png")  # with opacity
    for name in ("a.png", "b.png"):
        assert torch.equal(LoadUltrasound(dtype=torch.uint8)(tmp_path / name)[0], torch.from_numpy(pixels))
        assert torch.equal(LoadUltrasound(scale=None)(tmp_path / name)[0], torch.from_numpy(pixels).float())


@pytest.mark.parametrize("kind", ["png", "nii", "mha"])
def test_color_becomes_luma_alike_in_every_format(tmp_path, kind):
    color = np.random.default_rng(0).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    color[:, :5] = color[:, :5, :1]  # most is gray, as in Doppler: MetaImage cannot tell color from frames
    path = tmp_path / f"a.{kind}"
    if kind == "png":
        Image.fromarray(color).save(path)
    elif kind == "nii":
        record = np.dtype([("R", "u1"), ("G", "u1"), ("B", "u1")])
        nib.save(nib.Nifti1Image(color.transpose(1, 0, 2).copy().view(record)[..., 0], np.eye(4)), path)
    else:
        write_mha(path, color)
    luma = (color * [0.299, 0.587, 0.114]).sum(-1)
    np.testing.assert_allclose(LoadUltrasound()(path).numpy()[0] * 255, luma, atol=0.51)


@given(st.integers(0, 2**32 - 1), st.sampled_from([np.uint8, np.uint16, np.float32, np.float64]))
@settings(max_examples=20, deadline=None)
def test_luma_of_equal_channels_is_that_channel(seed, dtype):
    channel = (np.random.default_rng(seed).random((7, 5, 1)) * 255).astype(dtype)
    assert np.array_equal(gray_from_rgb(np.repeat(channel, 3, axis=-1)), channel)


def test_the_file_is_found_to_be_dicom_without_an_ending(tmp_path):
    pixels = asymmetric()
    saved(tmp_path, ultrasound(pixels), "1.2.840.113619")
    np.testing.assert_allclose(LoadUltrasound()(tmp_path / "1.2.840.113619").numpy()[0], pixels / 255, atol=1e-6)


def bad_file(folder: Path, name: str) -> Path:
    path = folder / name
    if "folder" in name:
        path.mkdir()
    elif "empty" in name:
        path.touch()
    elif "truncated" in name:
        volume = np.random.default_rng(0).integers(0, 255, (8, 64, 64), dtype=np.uint8)
        write(path, volume[0] if path.suffix in (".png", ".jpg", ".bmp") else volume)
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    elif "text" in name:
        path.write_text("not an image")
    elif "nan" in name:
        volume = np.zeros((4, 5, 6), np.float32)
        volume[0, 0, 0], volume[1, 1, 1] = np.nan, np.inf
        write(path, volume)
    elif "two_channels.mha" in name:
        write_mha(path, np.zeros((4, 5, 2), np.uint8))
    elif "two_channels.nii" in name:
        nib.save(nib.Nifti1Image(np.zeros((4, 5, 1, 1, 2), np.uint8), np.eye(4)), path)
    elif "complex" in name:
        nib.save(nib.Nifti1Image(np.zeros((4, 5), np.complex64), np.eye(4)), path)
    elif "sequence" in name:
        nib.save(nib.Nifti1Image(np.zeros((4, 5, 3, 2), np.uint8), np.eye(4)), path)
    elif "report" in name:
        ds = pydicom.Dataset()
        ds.file_meta = FileMetaDataset()
        ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        ds.SOPClassUID, ds.SOPInstanceUID = "1.2.840.10008.5.1.4.1.1.88.11", "1.2.3"
        ds.save_as(path, enforce_file_format=True)
    return path


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("missing.png", "no such file; check dataset_dir"),
        ("folder.png", "is a folder"),
        ("empty.png", "an empty file"),
        ("truncated.png", "truncated"),
        ("truncated.jpg", "truncated"),
        ("truncated.bmp", "truncated"),
        ("truncated.tif", "truncated"),
        ("truncated.nii", "truncated"),
        ("truncated.nii.gz", "truncated"),
        ("truncated.mha", "truncated"),
        ("truncated.nrrd", "truncated"),
        ("truncated.dcm", "truncated"),
        ("text.png", "not of the type its name says: save it anew"),
        ("text.nii.gz", "not of the type its name says"),
        ("text.dcm", "not of the type its name says"),
        ("text.xyz", "unsupported file type; supported are .png"),
        ("nan.nii.gz", "has 2 NaN or infinite of 120 values"),
        ("nan.mha", "has 2 NaN or infinite of 120 values"),
        ("two_channels.mha", "has 2 channels of unsigned_char; expected 1"),
        ("two_channels.nii", "has 2 channels; expected 1"),
        ("complex.nii", "values of type complex64"),
        ("sequence.nii", "a sequence of volumes; .* one map of class numbers"),
        ("report.dcm", "without an image"),
    ],
)
def test_a_bad_file_gives_one_error_with_its_name_and_the_reason(tmp_path, name, message):
    path = bad_file(tmp_path, name)
    with pytest.raises(UnreadableImageError, match=message) as caught:
        LoadUltrasound()(path)
    assert str(caught.value).startswith(f"{path}: ") and caught.value.path == str(path)
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)


def test_a_still_is_no_volume(tmp_path):
    with pytest.raises(UnreadableImageError, match=r"a\.png: a still image, but spatial_dims=3"):
        LoadUltrasound(spatial_dims=3)(write(tmp_path / "a.png", asymmetric()))


def test_a_frame_that_does_not_exist_is_refused(tmp_path):
    path = write(tmp_path / "a.nii", asymmetric((3, 2, 2)))
    with pytest.raises(UnreadableImageError, match="has 3 frames, so there is no frame 7"):
        LoadUltrasoundd("image")({"image": path, "frame": 7})


def test_a_label_in_colors_of_16_bits_is_refused():
    with pytest.raises(UnreadableImageError, match="a colored image where a label map is expected"):
        UprightGray(scale=None)(torch.arange(900).reshape(3, 15, 20))


@pytest.mark.parametrize("dtype", [torch.float32, torch.int32])
def test_each_color_of_a_label_has_a_number_of_its_own(tmp_path, dtype):
    edges = [0, 1, 2, 127, 254, 255]
    colors = np.array([[r, g, b] for r in edges for g in edges for b in edges], np.uint8)
    Image.fromarray(colors.reshape(12, 18, 3)).save(tmp_path / "a.png")
    label = LoadUltrasound(scale=None, dtype=dtype)(tmp_path / "a.png").flatten().tolist()
    assert len(set(label)) == len(colors)
    assert label == [label_value(color) for color in colors.tolist()]
    assert [value for value, (r, g, b) in zip(label, colors, strict=True) if r == g == b] == edges


def test_several_masks_of_an_image_are_one_label(tmp_path):
    masks = np.zeros((3, 6, 8), dtype=np.uint8)
    masks[0, 1:3, 1:3], masks[1, 4:, 5:], masks[2, 0, 0] = 255, 255, 1
    for number, mask in enumerate(masks):
        Image.fromarray(mask).save(tmp_path / f"{number}.png")
    files = [str(tmp_path / f"{number}.png") for number in range(3)]
    np.testing.assert_array_equal(LoadUltrasound(scale=None)(files)[0], masks.max(0))
    item = {"image": files[0], "label": files}
    np.testing.assert_array_equal(
        LoadUltrasoundd(["image", "label"], scale=("auto", None))(item)["label"][0], masks.max(0)
    )
    with pytest.raises(UnreadableImageError, match="an image is one file"):
        LoadUltrasound()(files)
    Image.fromarray(masks[0, :4]).save(tmp_path / "small.png")
    with pytest.raises(UnreadableImageError, match=r"small\.png: has size \(4, 8\), but .*0\.png \(6, 8\)"):
        LoadUltrasound(scale=None)([files[0], str(tmp_path / "small.png")])


@pytest.mark.parametrize("options", [{"spatial_dims": 4}, {"frame": "first"}, {"frame": True}, {"scale": "bright"}])
def test_an_unknown_option_is_refused(options):
    with pytest.raises(ValueError, match=next(iter(options))):
        LoadUltrasound(**options)


def test_without_tracking_a_plain_tensor_of_the_same_values_comes(tmp_path):
    for kind in STILLS:
        path = write(tmp_path / f"a.{kind}", asymmetric())
        tracked = LoadUltrasound()(path)
        set_track_meta(False)
        plain = LoadUltrasound()(path)
        set_track_meta(True)
        assert isinstance(tracked, MetaTensor) and not isinstance(plain, MetaTensor)
        assert torch.equal(tracked.as_tensor(), plain)


def test_a_batch_of_mixed_formats_collates(tmp_path):
    load = LoadUltrasoundd("image")
    paths = [write(tmp_path / f"a.{kind}", asymmetric()) for kind in STILLS]
    paths.append(write(tmp_path / "cine.tif", asymmetric((3, 5, 8))))
    batch = list_data_collate([load({"image": path}) for path in paths])
    assert batch["image"].shape == (11, 1, 80, 128)


def test_an_items_own_frame_wins(tmp_path):
    path = write(tmp_path / "a.mha", asymmetric((9, 3, 5)))
    assert LoadUltrasoundd("image", frame=2)({"image": path, "frame": 5})["image"].meta["frame"] == 5


def test_both_forms_have_the_same_defaults():
    array = inspect.signature(LoadUltrasound.__init__).parameters
    dictionary = inspect.signature(LoadUltrasoundd.__init__).parameters
    assert {name: p.default for name, p in array.items()} == {
        name: p.default for name, p in dictionary.items() if name not in ("keys", "resample", "allow_missing_keys")
    }


@given(
    shape=st.tuples(st.integers(1, 6), st.integers(1, 6), st.integers(1, 4)),
    dtype=st.sampled_from(["u1", "u2", "i2", "i4", "f4", "f8"]),
    seed=st.integers(0, 999),
)
@settings(max_examples=25, deadline=None)
def test_any_readable_volume_gives_finite_values_in_the_unit_range(tmp_path_factory, shape, dtype, seed):
    random = np.random.default_rng(seed)
    array = (random.normal(size=shape) * 10.0 ** random.integers(-2, 5)).astype("f8")
    array = array.clip(0, 65535) if dtype == "u2" else array.clip(0, 255) if dtype == "u1" else array.clip(-3e4, 3e4)
    path = tmp_path_factory.mktemp("any") / "a.nii"
    nib.save(nib.Nifti1Image(array.astype(dtype), np.eye(4)), path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        img = LoadUltrasound()(path)
    wide = [n for n in shape if n > 1]
    if len(wide) >= 2:  # axes of size 1 are no rows or columns
        assert img.shape == (1, wide[1], wide[0])
    assert torch.isfinite(img).all() and img.min() >= 0 and img.max() <= 1


def test_real_volumes_and_cines_are_read(shared_data):
    liver = LoadUltrasound(spatial_dims=3)(shared_data / "volumes_3d" / "liver_sweep.nii.gz")
    stored = nib.load(shared_data / "volumes_3d" / "liver_sweep.nii.gz")
    assert liver.shape[1:] == stored.shape[::-1]
    assert liver.meta["spacing"].tolist() == pytest.approx(list(stored.header.get_zooms())[::-1])
    frame = LoadUltrasound(frame=7)(shared_data / "cine_2dt" / "bone_linear_21f.nii.gz")
    cine = np.asarray(nib.load(shared_data / "cine_2dt" / "bone_linear_21f.nii.gz").dataobj)
    np.testing.assert_allclose(frame.numpy()[0], cine[:, :, 7].T / 255, atol=1e-6)


def test_images_of_one_item_lie_on_one_grid(tmp_path):
    volume = np.arange(90, dtype=np.uint8).reshape(5, 3, 6)
    affine = np.diag([0.5, 0.5, 2.0, 1.0])
    nib.save(nib.Nifti1Image(volume, affine), tmp_path / "a.nii.gz")
    load = LoadUltrasoundd(["image", "label"], spatial_dims=3, scale=("auto", None))

    def item(name, array=volume, matrix=affine):
        nib.save(nib.Nifti1Image(array, matrix), tmp_path / name)
        return {"image": str(tmp_path / "a.nii.gz"), "label": str(tmp_path / name)}

    assert load(item("same.nii.gz"))["label"].shape == (1, 6, 3, 5)
    nudged = affine.copy()
    nudged[0, 3] = 0.2  # less than half a voxel
    load(item("nudged.nii.gz", matrix=nudged))
    shifted = affine.copy()
    shifted[0, 3] = 100.0
    with pytest.raises(UnreadableImageError, match=r"shifted\.nii\.gz: lies up to 100 mm from the grid of .*a\.nii"):
        load(item("shifted.nii.gz", matrix=shifted))
    with pytest.raises(UnreadableImageError, match=r"short\.nii\.gz: has size .* must lie on one grid"):
        load(item("short.nii.gz", array=volume[:, :, :4]))


@pytest.mark.parametrize("frame, expected", [(2.0, 2), (0.0, 0), (None, 4)])
def test_frames_of_a_table_are_indices(tmp_path, frame, expected):
    path = write(tmp_path / "a.mha", asymmetric((9, 3, 5)))
    assert LoadUltrasoundd("image")({"image": path, "frame": frame})["image"].meta["frame"] == expected


@pytest.mark.parametrize("spacing", [[0.3, 0.4, 0.5], "wide", [0.3, -1.0], float("nan")])
def test_an_impossible_spacing_names_the_file(tmp_path, spacing):
    path = write(tmp_path / "a.png", asymmetric())
    with pytest.raises(UnreadableImageError, match=r"a\.png: spacing must be positive mm per axis of 2"):
        LoadUltrasoundd("image")({"image": path, "spacing": spacing})


def test_itk_is_imported_before_threads_read(tmp_path):
    """It changes the working directory while it is imported, which moves the relative paths of other threads."""
    program = """if True:
        import os, threading
        from pathlib import Path
        from monai_usfm.data import InferenceDataset, LoadUltrasoundd
        from monai_usfm.files import atomic_writer
        head = "ObjectType = Image\\nNDims = 2\\nDimSize = 4 5\\nElementType = MET_UCHAR\\nElementDataFile = LOCAL\\n"
        Path("a.mha").write_bytes(head.encode() + bytes(20))
        moved, change = [], os.chdir
        os.chdir = lambda place: (moved.append(threading.current_thread().name), change(place))
        data = InferenceDataset([{"image": "a.mha"}] * 2, LoadUltrasoundd("image"), ahead=1)
        assert data[0]["image"].shape == data[1]["image"].shape == (1, 5, 4)
        assert set(moved) == {"MainThread"}, moved
    """
    subprocess.run([sys.executable, "-c", program], cwd=tmp_path, check=True, timeout=300)


@pytest.mark.parametrize("kind", ["nii.gz", "mha", "nrrd"])
def test_gray_stored_as_three_equal_slices_is_a_still(tmp_path: Path, kind: str) -> None:
    still, label = asymmetric(), write(tmp_path / f"label.{kind}", asymmetric() // 128)
    bands = np.stack([still] * 3)
    path = write(tmp_path / f"a.{kind}", bands)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = LoadUltrasoundd(["image", "label"], scale=("auto", None))({"image": path, "label": label})
    assert np.array_equal(found["image"][0].numpy() * 255, still)
    assert found["image"].meta["num_frames"] == 1 and not found["image"].meta["cine"]
    bands[2, 0, 0] += 1
    assert LoadUltrasound()(write(tmp_path / f"a.{kind}", bands)).meta["num_frames"] == 3
