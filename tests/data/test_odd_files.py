# Copyright (c) monai_usfm contributors
# SPDX-License-Identifier: Apache-2.0
"""Files that look ordinary and were once read wrongly without a word; expected values are literals."""

from __future__ import annotations

import json
import os
import warnings
from pathlib import Path

import av
import cv2
import itk
import nibabel as nib
import nrrd
import numpy as np
import pytest
import tifffile
import torch
from monai.transforms import LoadImage
from PIL import Image, TiffImagePlugin

from monai_usfm.bundle import full_scale_of, inference_items, preprocessing_of
from monai_usfm.data import (
    LoadUltrasound,
    LoadUltrasoundd,
    UltrasoundReader,
    UnreadableImageError,
    UprightGrayd,
    dataset_full_scale,
    load_splits,
    unreadable_reason,
)
from monai_usfm.data.formats import MAX_PIXELS
from monai_usfm.transforms import LabelIndices

GRAY = (np.arange(48 * 64).reshape(48, 64) // 13 % 256).astype(np.uint8)
MASK = np.zeros((48, 64), np.uint8)
MASK[4:20, 10:50] = 1
PAIR = LoadUltrasoundd(["image", "label"], scale=("auto", None))


def values(path: Path, **options) -> np.ndarray:
    return LoadUltrasound(dtype=torch.uint8, **options)(path).numpy()[0]


def label(path: Path) -> np.ndarray:
    return LoadUltrasound(scale=None)(path).numpy()[0]


# more than one image in a file


def test_a_phones_jpeg_gives_its_primary_image(tmp_path):
    small = Image.fromarray(np.full((12, 16), 200, np.uint8))
    Image.fromarray(GRAY).save(tmp_path / "a.jpg", "MPO", save_all=True, append_images=[small], quality=98)
    img = LoadUltrasound()(tmp_path / "a.jpg")
    assert img.meta["num_frames"] == 1
    np.testing.assert_allclose(img.numpy()[0] * 255, GRAY, atol=6)


def test_a_tiff_with_a_preview_is_a_still(tmp_path):
    reduced = TiffImagePlugin.ImageFileDirectory_v2()
    reduced[254] = 1
    preview = Image.fromarray(GRAY[::4, ::4])
    preview.encoderinfo = {"tiffinfo": reduced}
    Image.fromarray(GRAY).save(tmp_path / "a.tif", save_all=True, append_images=[preview])
    assert np.array_equal(values(tmp_path / "a.tif"), GRAY)


# EXIF


def turned(path: Path, array: np.ndarray, turn: int, **options) -> Path:
    exif = Image.Exif()
    exif[0x0112] = turn
    Image.fromarray(array).save(path, exif=exif, **options)
    return path


@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.webp", "a.tif"])
def test_every_container_is_turned_by_exif(tmp_path, name):
    options = {"a.jpg": {"quality": 98}, "a.webp": {"lossless": True}}.get(name, {})
    found = values(turned(tmp_path / name, np.rot90(GRAY).copy(), 6, **options))
    np.testing.assert_allclose(found.astype(int), GRAY, atol=6 if name == "a.jpg" else 0)


@pytest.mark.parametrize("turn", [2, 3, 4])
def test_a_mask_of_stored_pixels_beside_a_turned_image_is_refused(tmp_path, turn):
    turned(tmp_path / "a.jpg", GRAY, turn)
    Image.fromarray(MASK).save(tmp_path / "mask.png")
    with pytest.raises(UnreadableImageError, match=rf"mask\.png: has EXIF orientation 1, but .*a\.jpg {turn}"):
        PAIR({"image": str(tmp_path / "a.jpg"), "label": str(tmp_path / "mask.png")})


def test_a_mask_that_was_drawn_upright_is_taken(tmp_path):
    turned(tmp_path / "a.jpg", np.rot90(GRAY).copy(), 6)  # 64 x 48 stored, 48 x 64 seen
    Image.fromarray(MASK).save(tmp_path / "mask.png")
    item = PAIR({"image": str(tmp_path / "a.jpg"), "label": str(tmp_path / "mask.png")})
    assert np.array_equal(item["label"].numpy()[0], MASK)


# videos


def mp4(path: Path, rotated: bool = False) -> Path:
    """Three frames of MPEG-4 at 20 Hz: GRAY, its negative, GRAY, each pixel enlarged fourfold."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=20, options={"qscale": "1"})
        stream.width, stream.height, stream.pix_fmt, stream.bit_rate = 256, 192, "yuv420p", 20_000_000
        for frame in (SMOOTH, 255 - SMOOTH, SMOOTH):
            large = np.repeat(np.repeat(frame, 4, 0), 4, 1)
            for packet in stream.encode(av.VideoFrame.from_ndarray(np.repeat(large[..., None], 3, 2), "rgb24")):
                container.mux(packet)
        for packet in stream.encode():
            container.mux(packet)
    if rotated:  # the matrix of the track's header: shown after a quarter turn clockwise
        data, one = path.read_bytes(), bytes.fromhex("00010000")
        plain = one + bytes(12) + one + bytes(12) + bytes.fromhex("40000000")
        turned = bytes(4) + one + bytes(4) + bytes.fromhex("ffff0000") + bytes(16) + bytes.fromhex("40000000")
        at = data.index(plain, data.index(b"tkhd"))
        path.write_bytes(data[:at] + turned + data[at + len(plain) :])
    return path


SMOOTH = np.add.outer(np.arange(48) * 3, np.arange(64)).astype(np.uint8)


def test_an_mp4_is_a_cine_with_its_values_and_frame_rate(tmp_path):
    img = LoadUltrasound(3)(mp4(tmp_path / "a.mp4"))
    assert img.shape == (1, 3, 192, 256) and img.meta["frame_time"] == pytest.approx(0.05)
    np.testing.assert_allclose(img.numpy()[0, :, 2::4, 2::4] * 255, [SMOOTH, 255 - SMOOTH, SMOOTH], atol=6)
    middle = LoadUltrasound()(tmp_path / "a.mp4")
    np.testing.assert_allclose(middle.numpy()[0, 2::4, 2::4] * 255, 255 - SMOOTH, atol=6)


def test_a_colon_in_the_name_of_a_video_is_no_protocol(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    mp4(tmp_path / "scan.mp4")
    os.rename("scan.mp4", "scan:1.mp4")
    assert LoadUltrasound()("scan:1.mp4").ndim == 3


def test_a_video_is_turned_as_it_is_shown(tmp_path):
    img = LoadUltrasound(frame=0)(mp4(tmp_path / "a.mp4", rotated=True))
    assert img.meta["turn"] == 6
    np.testing.assert_allclose(img.numpy()[0, 2::4, 2::4] * 255, np.rot90(SMOOTH, -1), atol=6)


# masks


def test_a_mask_in_the_opacity_is_found(tmp_path):
    for color in (255, 0):
        Image.fromarray(np.dstack([np.full((48, 64, 3), color, np.uint8), MASK * 255])).save(tmp_path / "a.png")
        assert np.array_equal(label(tmp_path / "a.png"), MASK * 255)


def test_a_mask_on_transparent_ground_is_its_color(tmp_path):
    Image.fromarray(np.dstack([MASK * 255] * 4)).save(tmp_path / "a.png")
    assert np.array_equal(label(tmp_path / "a.png"), MASK * 255)


def test_a_mask_whose_colors_and_opacity_differ_is_refused(tmp_path):
    Image.fromarray(np.dstack([MASK * 255] * 3 + [GRAY])).save(tmp_path / "a.png")
    with pytest.raises(UnreadableImageError, match="both its colors and its opacity vary"):
        label(tmp_path / "a.png")


def test_a_black_and_white_palette_with_white_first_is_no_inverted_mask(tmp_path):
    img = Image.fromarray(1 - MASK, mode="P")
    img.putpalette([255, 255, 255, 0, 0, 0])
    img.save(tmp_path / "a.png", bits=1)
    found = LabelIndices(2)(LoadUltrasound(scale=None)(tmp_path / "a.png"))
    assert np.array_equal(found.numpy()[0], MASK)


def test_a_colored_palette_with_black_elsewhere_is_no_inverted_mask(tmp_path):
    img = Image.fromarray(1 - MASK, mode="P")
    img.putpalette([255, 0, 0, 0, 0, 0])
    img.save(tmp_path / "a.png")
    with pytest.raises(UnreadableImageError, match=r"a\.png: its palette has black elsewhere than at index 0"):
        label(tmp_path / "a.png")


@pytest.mark.parametrize("frame", range(3))
def test_every_frame_of_a_gif_of_masks_has_its_values(tmp_path, frame):
    masks = [np.roll(MASK * (1 + number), 9 * number) for number in range(3)]
    pages = [Image.fromarray(mask) for mask in masks]
    pages[0].save(tmp_path / "masks.gif", save_all=True, append_images=pages[1:])
    load = LoadUltrasound(3, scale=None)
    assert np.array_equal(load(tmp_path / "masks.gif")[0], masks)
    assert np.array_equal(LoadUltrasound(2, frame, scale=None)(tmp_path / "masks.gif")[0], masks[frame])


def test_a_colored_gif_of_masks_is_refused_for_what_it_is(tmp_path):
    pages = [Image.fromarray(np.roll(MASK, number)) for number in range(3)]
    for page in pages:
        page.putpalette([0, 0, 0, 255, 0, 0])
    pages[0].save(tmp_path / "masks.gif", save_all=True, append_images=pages[1:])
    with pytest.raises(UnreadableImageError, match=r"masks\.gif: a colored animation where label maps are expected"):
        LoadUltrasound(3, scale=None)(tmp_path / "masks.gif")


def test_zeros_and_ones_as_jpeg_are_a_mask(tmp_path):
    Image.fromarray(MASK).save(tmp_path / "a.jpg", quality=95)
    found = LabelIndices(2)(LoadUltrasound(scale=None)(tmp_path / "a.jpg")).numpy()[0]
    assert (found != MASK).mean() < 0.02 and found.any()


@pytest.mark.parametrize("scale", [3, 20])
def test_a_jpeg_mask_of_another_scale_is_no_empty_label(tmp_path, scale):
    Image.fromarray(MASK * scale).save(tmp_path / "a.jpg", quality=95)
    with pytest.raises(ValueError, match=r"a\.jpg: JPEG does not keep the values"):
        LabelIndices(2)(LoadUltrasound(scale=None)(tmp_path / "a.jpg"))


def test_nearly_whole_labels_are_whole(tmp_path):
    array = np.where(MASK, np.float32(0.99999994), np.float32(1e-7))
    array[0, 0] = 1.0000001
    nib.save(nib.Nifti1Image(array.T, np.eye(4)), tmp_path / "a.nii")
    found = LabelIndices(2)(LoadUltrasound(scale=None)(tmp_path / "a.nii")).numpy()[0]
    assert found.sum() == MASK.sum() + 1
    with pytest.raises(ValueError, match="stand for no class"):
        LabelIndices(2)(torch.tensor([[[0.0, 0.4, 1.0]]]))


# places


def placed(path: Path, array: np.ndarray, affine: np.ndarray) -> Path:
    """An array with axes (x, y, z) and its matrix in RAS."""
    if path.name.endswith((".nii", ".nii.gz")):
        nib.save(nib.Nifti1Image(array, affine), path)
        return path
    lps = np.diag([-1.0, -1, 1, 1]) @ affine
    spacing = np.linalg.norm(lps[:3, :3], axis=0)
    img = itk.image_from_array(np.ascontiguousarray(array.T))
    img.SetSpacing(spacing.tolist())
    img.SetOrigin(lps[:3, 3].tolist())
    img.SetDirection(itk.matrix_from_array(lps[:3, :3] / spacing))
    itk.imwrite(img, str(path))
    return path


@pytest.mark.parametrize("kind", ["nrrd", "mha", "nii.gz"])
@pytest.mark.parametrize("origin", [(0, 0, 0), (5, -7, 3)])
def test_a_label_stored_backwards_is_refused_or_resampled_in_every_type(tmp_path, kind, origin):
    image = np.random.default_rng(0).integers(0, 255, (6, 7, 5)).astype(np.uint8)
    mask = (image > 128).astype(np.uint8)
    affine = np.diag([0.5, 0.4, 1.0, 1.0])
    affine[:3, 3] = origin
    back = affine.copy()
    back[:3, 0], back[:3, 3] = -affine[:3, 0], affine[:3, 3] + affine[:3, 0] * 5
    item = {
        "image": str(placed(tmp_path / "image.nii", image, affine)),
        "label": str(placed(tmp_path / f"label.{kind}", mask[::-1].copy(), back)),
    }
    load = LoadUltrasoundd(["image", "label"], 3, scale=("auto", None))
    with pytest.raises(UnreadableImageError, match=r"label\..*lies up to .* mm from the grid of .*image\.nii"):
        load(item)
    fixed = LoadUltrasoundd(["image", "label"], 3, scale=("auto", None), resample=True)(item)
    assert np.array_equal(fixed["label"].numpy()[0], mask.T)
    # the same place, the same order
    item["label"] = str(placed(tmp_path / f"same.{kind}", mask, affine))
    assert np.array_equal(load(item)["label"].numpy()[0], mask.T)


def test_another_size_is_resampled_where_both_say_where_they_lie(tmp_path):
    image, mask = np.zeros((8, 8, 8), np.uint8), np.zeros((4, 4, 4), np.uint8)
    mask[2:] = 1
    coarse = np.diag([2.0, 2, 2, 1])
    coarse[:3, 3] = 0.5
    item = {
        "image": str(placed(tmp_path / "a.nii", image, np.eye(4))),
        "label": str(placed(tmp_path / "b.nii", mask, coarse)),
    }
    found = LoadUltrasoundd(["image", "label"], 3, scale=("auto", None), resample=True)(item)["label"].numpy()[0]
    assert found.shape == (8, 8, 8) and not found[..., :4].any() and found[..., 5:].all()


# axes of NRRD


def nrrd_file(path: Path, array: np.ndarray, **fields) -> Path:
    """``array`` with the slowest axis first."""
    kind = {"uint8": "uchar", "uint16": "ushort"}[array.dtype.name]
    lines = ["NRRD0005", f"type: {kind}", f"dimension: {array.ndim}", f"sizes: {' '.join(map(str, array.shape[::-1]))}"]
    lines += [f"{name.replace('_', ' ')}: {value}" for name, value in fields.items()]
    path.write_bytes("\n".join([*lines, "endian: little", "encoding: raw", "", ""]).encode() + array.tobytes())
    return path


@pytest.mark.parametrize("count", [3, 4, 5])
@pytest.mark.parametrize("kind", ["list", "time", "vector"])
def test_frames_of_nrrd_are_not_taken_for_colors(tmp_path, count, kind):
    cine = np.random.default_rng(0).integers(0, 255, (count, 6, 8), dtype=np.uint8)
    path = nrrd_file(tmp_path / "a.nrrd", np.ascontiguousarray(np.moveaxis(cine, 0, -1)), kinds=f"{kind} domain domain")
    found = LoadUltrasound(3, dtype=torch.uint8)(path)
    assert np.array_equal(found.numpy()[0], cine)
    assert np.array_equal(values(path, frame=1), cine[1])
    path = nrrd_file(tmp_path / "b.nrrd", cine, kinds=f"domain domain {kind}")
    assert np.array_equal(values(path, frame=1), cine[1])


def test_colors_of_nrrd_are_colors(tmp_path):
    color = np.random.default_rng(0).integers(0, 255, (6, 8, 3), dtype=np.uint8)
    path = nrrd_file(tmp_path / "a.nrrd", color, kinds="RGB-color domain domain")
    np.testing.assert_allclose(values(path), color @ [0.299, 0.587, 0.114], atol=0.51)


@pytest.mark.parametrize("kind", ["HSV-color", "XYZ-color", "complex", "2D-matrix"])
def test_other_numbers_than_gray_and_colors_are_refused(tmp_path, kind):
    path = nrrd_file(tmp_path / "a.nrrd", np.zeros((6, 8, 3), np.uint8), kinds=f"{kind} domain domain")
    with pytest.raises(UnreadableImageError, match=rf"a\.nrrd: has an axis of kind {kind.lower()}"):
        values(path)


def mha(path: Path, array: np.ndarray, sizes: tuple[int, ...], channels: int = 1) -> Path:
    head = f"NDims = {len(sizes)}\nElementNumberOfChannels = {channels}\nDimSize = {' '.join(map(str, sizes))}\n"
    path.write_bytes(f"ObjectType = Image\n{head}ElementType = MET_UCHAR\nElementDataFile = LOCAL\n".encode() + array)
    return path


def test_a_fourth_axis_of_metaimage_holds_frames(tmp_path):
    cine = np.random.default_rng(0).integers(0, 255, (3, 6, 8), dtype=np.uint8)
    assert np.array_equal(values(mha(tmp_path / "a.mha", cine.tobytes(), (8, 6, 1, 3)), frame=2), cine[2])


def test_channels_of_metaimage_that_may_be_frames_are_refused(tmp_path):
    cine = np.random.default_rng(0).integers(0, 255, (6, 8, 3), dtype=np.uint8)
    with pytest.raises(UnreadableImageError, match=r"a\.mha: its 3 channels differ in most pixels"):
        values(mha(tmp_path / "a.mha", cine.tobytes(), (8, 6), 3))


@pytest.mark.parametrize("frames", [1, 3])
def test_a_label_of_other_frames_than_the_image_is_refused(tmp_path, frames):
    for name, count in (("image.tif", frames), ("label.tif", 5)):
        pages = [Image.fromarray(MASK) for _ in range(count)]
        pages[0].save(tmp_path / name, save_all=True, append_images=pages[1:])
    shown = rf"label\.tif: has 5 frames, but .*image\.tif {frames}, .* class numbers"
    with pytest.raises(UnreadableImageError, match=shown):
        PAIR({"image": str(tmp_path / "image.tif"), "label": str(tmp_path / "label.tif")})


def test_a_first_axis_of_three_of_which_nothing_is_said_holds_frames(tmp_path):
    cine = np.random.default_rng(0).integers(0, 255, (3, 6, 8), dtype=np.uint8)
    path = nrrd_file(tmp_path / "a.nrrd", np.ascontiguousarray(np.moveaxis(cine, 0, -1)))
    assert np.array_equal(values(path, frame=2), cine[2])


# gray scale


@pytest.mark.parametrize("ending", ["a.tif", "a"])
def test_sixteen_bits_of_tiff_in_which_white_is_zero_are_turned_round(tmp_path, ending):
    Image.fromarray((255 - GRAY).astype(np.uint16) * 257).save(tmp_path / "a.tif", big_tiff=ending == "a")
    content = (tmp_path / "a.tif").read_bytes()
    tag = b"\x06\x01\x03\x00\x01\x00"  # PhotometricInterpretation, one short
    at = content.index(tag) + (12 if ending == "a" else 8)
    (tmp_path / ending).write_bytes(content[:at] + b"\0" + content[at + 1 :])
    with pytest.warns(UserWarning, match="taken as 65535"):
        assert np.array_equal(values(tmp_path / ending), GRAY)


@pytest.mark.filterwarnings("ignore:.*no header tells")
def test_colors_of_sixteen_bits_keep_the_lower_eight(tmp_path):
    for factor in (1, 257):
        colors = np.stack([GRAY.astype(np.uint16) * factor] * 3, axis=-1)
        cv2.imwrite(str(tmp_path / "50%d.png"), colors)
        tifffile.imwrite(tmp_path / "b.tif", colors, photometric="rgb", byteorder=">", compression="zlib")
        tifffile.imwrite(tmp_path / "c.tif", np.moveaxis(colors, -1, 0), photometric="rgb", planarconfig="separate")
        for name in ("50%d.png", "b.tif", "c.tif"):
            np.testing.assert_allclose(LoadUltrasound()(tmp_path / name).numpy()[0], GRAY / 255, atol=1e-6)
    cv2.imwrite(str(tmp_path / "d.png"), np.stack([MASK.astype(np.uint16)] * 3, axis=-1))
    np.testing.assert_array_equal(label(tmp_path / "d.png"), MASK)
    tifffile.imwrite(tmp_path / "e.tif", np.stack([colors] * 2), photometric="rgb")
    tifffile.imwrite(tmp_path / "f.tif", colors, photometric="rgb", tile=(16, 16))
    for name in ("e.tif", "f.tif"):
        with pytest.raises(UnreadableImageError, match=rf"{name}: colors of 16 bits in tiles or several pages"):
            LoadUltrasound()(tmp_path / name)


@pytest.mark.filterwarnings("ignore:.*no header tells")
@pytest.mark.parametrize("order", "<>")
def test_a_tiff_of_either_byte_order_is_read_or_refused(tmp_path, order):
    for dtype in (np.float64, np.float32, np.int16, np.int32, np.uint32):
        written = (GRAY / 255 if np.dtype(dtype).kind == "f" else GRAY).astype(dtype)
        for compression in (None, "zlib"):
            tifffile.imwrite(tmp_path / "a.tif", written, byteorder=order, compression=compression)
            if order == ">" and compression:
                with pytest.raises(UnreadableImageError, match=r"a\.tif: a compressed big-endian TIFF"):
                    LoadUltrasound()(tmp_path / "a.tif")
            else:
                np.testing.assert_allclose(LoadUltrasound()(tmp_path / "a.tif").numpy()[0], GRAY / 255, atol=1e-6)


@pytest.mark.parametrize("dtype", [">u2", ">i4", ">f4"])
def test_masks_of_the_other_byte_order_are_read(tmp_path, dtype):
    header = nib.Nifti1Header(endianness=">")
    header.set_data_dtype(dtype)
    nib.save(nib.Nifti1Image(MASK.T.astype(dtype), np.eye(4), header), tmp_path / "a.nii")
    nrrd.write(str(tmp_path / "a.nrrd"), MASK.T.astype(dtype))
    for name in ("a.nii", "a.nrrd"):
        np.testing.assert_array_equal(label(tmp_path / name), MASK)


@pytest.mark.parametrize("dtype", [np.uint16, np.int16, np.float32])
@pytest.mark.filterwarnings("ignore:.*no header tells")
def test_one_pixel_beyond_eight_bits_does_not_darken_the_image(tmp_path, dtype):
    array = GRAY.astype(dtype)
    found = []
    for top in (255, 256):
        array[0, 0] = top
        nib.save(nib.Nifti1Image(array.T, np.eye(4)), tmp_path / f"{top}.nii")
        found.append(LoadUltrasound()(tmp_path / f"{top}.nii").numpy())
    np.testing.assert_allclose(found[0], found[1], atol=1e-6)


def test_a_data_set_has_one_scale(tmp_path):
    files = []
    for number, top in enumerate((200, 3000)):
        array = np.linspace(0, top, 48 * 64).reshape(48, 64).astype(np.uint16)
        Image.fromarray(array).save(tmp_path / f"{number}.png")
        files.append(tmp_path / f"{number}.png")
    scale = dataset_full_scale(files)
    assert scale == 4095
    item = LoadUltrasoundd("image")({"image": str(files[0]), "full_scale": scale})
    assert item["image"].max().item() == pytest.approx(200 / 4095)
    Image.fromarray(GRAY).save(tmp_path / "eight.png")
    assert dataset_full_scale([tmp_path / "eight.png"]) is None
    assert LoadUltrasound(full_scale=4095)(tmp_path / "eight.png").max().item() == GRAY.max() / np.float32(
        255
    )  # its type decides


def test_the_scale_of_a_data_set_is_told_from_all_parts_of_its_list(tmp_path):
    for number in range(31):
        top = 200 if number < 16 else 3000
        Image.fromarray(np.linspace(0, top, 48).reshape(6, 8).astype(np.uint16)).save(tmp_path / f"{number:02}.png")
    assert dataset_full_scale(sorted(tmp_path.iterdir()), sample=16) == 4095


@pytest.mark.parametrize(
    ("written", "white", "read"),
    [
        (np.linspace(0, 1, 3072), 65535.0, 1.0),  # shares of 1 beside 16 bits
        (np.linspace(0, 60000, 3072).astype(np.uint16), 1.0, 65535.0),
        (np.linspace(0, 60000, 3072).astype(np.uint16), 4095.0, 65535.0),
        (np.linspace(0, 5000, 3072).astype(np.uint16), 4095.0, 4095.0),  # a little above: clipped
        (np.linspace(0, 200, 3072).astype(np.uint16), 4095.0, 4095.0),
        (np.zeros(3072, np.float32), 255.0, 255.0),
    ],
)
@pytest.mark.filterwarnings("ignore:.*no header tells")
def test_a_file_of_another_kind_than_its_list_is_read_by_itself(tmp_path, written, white, read):
    array = written.reshape(48, 64)
    Image.fromarray(array.astype(np.float32) if array.dtype.kind == "f" else array).save(tmp_path / "a.tif")
    item = {"image": str(tmp_path / "a.tif"), "full_scale": white}
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        image = LoadUltrasoundd("image")(item)["image"]
    np.testing.assert_allclose(image[0].numpy(), np.clip(array / read, 0, 1), atol=1e-6)
    assert any("are of another kind" in str(w.message) and "a.tif" in str(w.message) for w in told) == (white != read)


@pytest.mark.filterwarnings("ignore:.*no header tells")
def test_the_scale_of_a_data_set_is_on_every_item_and_on_the_card(tmp_path):
    for name, top in (("a", 300), ("b", 3000), ("c", 200)):
        Image.fromarray(np.linspace(0, top, 48 * 64).reshape(48, 64).astype(np.uint16)).save(tmp_path / f"{name}.png")
    lists = {"training": [{"image": "a.png"}, {"image": "b.png"}], "validation": [{"image": "c.png"}]}
    (tmp_path / "dataset.json").write_text(json.dumps(lists))
    found = load_splits(tmp_path, synthetic_dir=tmp_path)
    assert [item["full_scale"] for items in found.values() for item in items] == [4095] * 3
    card = {"preprocessing": preprocessing_of(found["training"])}
    (tmp_path / "new").mkdir()
    (tmp_path / "c.png").rename(tmp_path / "new" / "c.png")  # alone it would be taken for 8 bits
    (item,) = inference_items(str(tmp_path / "new"), full_scale=full_scale_of(card))
    assert UprightGrayd("image")(
        {**item, "image": LoadImage(UltrasoundReader, ensure_channel_first=True)(item["image"])}
    )["image"].max().item() == pytest.approx(200 / 4095)
    (alone,) = inference_items(str(tmp_path / "new"))
    assert alone["full_scale"] == 255


# millimeters


def test_the_size_of_a_pixel_comes_from_png_and_from_the_file_beside_it(tmp_path):
    Image.fromarray(GRAY).save(tmp_path / "a.png", dpi=(25.4 / 0.0291, 25.4 / 0.0291))
    img = LoadUltrasound()(tmp_path / "a.png")
    assert img.meta["spacing"].tolist() == pytest.approx([0.0291] * 2, rel=1e-3) and img.meta["spacing_known"] is True
    (tmp_path / "a.png.json").write_text(json.dumps({"spacing_mm": [0.2, 0.1], "full_scale": None}))
    assert LoadUltrasound()(tmp_path / "a.png").meta["spacing"].tolist() == pytest.approx([0.2, 0.1])
    (tmp_path / "a.png.json").write_text("[1, 2]")  # some other program's
    assert LoadUltrasound()(tmp_path / "a.png").meta["spacing"].tolist() == pytest.approx([0.0291] * 2, rel=1e-3)
    for dpi in (96, 100, 120, 144, 200, 220):  # what programs write by default
        Image.fromarray(GRAY).save(tmp_path / "b.png", dpi=(dpi, dpi))
        assert LoadUltrasound()(tmp_path / "b.png").meta["spacing_known"] is False
    for mm in (0.05, 0.1, 0.2, 0.0833):
        Image.fromarray(GRAY).save(tmp_path / "c.png", dpi=(25.4 / mm, 25.4 / mm))
        assert LoadUltrasound()(tmp_path / "c.png").meta["spacing_known"] is True
    for mm, corner, known in ((1.0, 0.0, False), (1.0, 20.0, True), (0.3, 0.0, True)):
        volume = itk.image_from_array(np.stack([GRAY] * 3))
        volume.SetSpacing([mm] * 3)
        volume.SetOrigin([corner] * 3)
        itk.imwrite(volume, str(tmp_path / "d.mha"))
        assert LoadUltrasound(3)(tmp_path / "d.mha").meta["spacing_known"] is known


@pytest.mark.parametrize(
    ("unit", "dots", "mm"),
    [("mm", 10, 0.1), ("cm", 40, 0.25), (r"\u00B5m", 0.01, 0.1), ("pixel", 10, None), (None, 300, None)],
)
def test_the_size_of_a_pixel_that_imagej_states_is_taken_and_print_resolution_is_not(tmp_path, unit, dots, mm):
    tags = {282: float(dots), 283: dots / 2, 296: 3}
    text = {} if unit is None else {270: f"ImageJ=1.54f\nunit={unit}\n"}
    Image.fromarray(GRAY).save(tmp_path / "a.tif", tiffinfo=tags | text)
    meta = LoadUltrasound()(tmp_path / "a.tif").meta
    assert meta["spacing_known"] is (mm is not None)
    assert meta["spacing"].tolist() == pytest.approx([1, 1] if mm is None else [2 * mm, mm])


@pytest.mark.parametrize(
    "header",
    [
        {"space": "LPS", "space directions": np.eye(2, 3) / 20, "space origin": [1, 2, 3], "space units": ["cm"] * 3},
        {"spacings": [0.05, 0.05], "units": ["cm", "cm"]},
    ],
)
def test_units_of_nrrd_become_mm(tmp_path, header):
    nrrd.write(str(tmp_path / "a.nrrd"), GRAY, header)
    img = LoadUltrasound()(tmp_path / "a.nrrd")
    assert img.meta["spacing"].tolist() == pytest.approx([0.5, 0.5])
    if "space origin" in header:
        assert img.affine[:3, 3].tolist() == pytest.approx([-10, -20, 30])


@pytest.mark.parametrize("ending", ["gif", "png", "webp"])
def test_animations_have_their_frame_time(tmp_path, ending):
    frames = [Image.fromarray(np.full((16, 16, 3), 60 * n, np.uint8)) for n in range(3)]
    frames[0].save(tmp_path / f"a.{ending}", save_all=True, append_images=frames[1:], duration=40)
    assert LoadUltrasound(3)(tmp_path / f"a.{ending}").meta["frame_time"] == pytest.approx(0.04)


def test_a_name_that_begins_as_a_home_is_a_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Image.fromarray(GRAY).save("~scan.png")
    assert LoadUltrasound()("~scan.png").shape == (1, *GRAY.shape)


def test_pages_are_a_volume_in_mm_where_their_distance_is_stated(tmp_path):
    stack, known = np.stack([GRAY] * 5), {"PhysicalSizeX": 100, "PhysicalSizeY": 200}
    tifffile.imwrite(tmp_path / "a.ome.tif", stack, metadata={"axes": "ZYX", **known})
    tifffile.imwrite(tmp_path / "b.ome.tif", stack, metadata={"axes": "ZYX", **known, "PhysicalSizeZ": 500})
    still, volume = LoadUltrasound()(tmp_path / "a.ome.tif"), LoadUltrasound(3)(tmp_path / "b.ome.tif")
    assert still.meta["spacing"].tolist() == pytest.approx([0.2, 0.1]) and still.meta["cine"] is True
    assert volume.meta["spacing"].tolist() == pytest.approx([0.5, 0.2, 0.1]) and volume.meta["cine"] is False


# what is refused


def test_a_pipe_and_a_device_are_refused_at_once(tmp_path):
    os.mkfifo(tmp_path / "a.png")
    for path in (tmp_path / "a.png", Path("/dev/zero")):
        with pytest.raises(UnreadableImageError, match="is a pipe, socket or device"):
            LoadUltrasound()(path)
        assert unreadable_reason(path) is not None


@pytest.mark.parametrize("name", ["/etc/passwd", "../secret.raw", "LIST\n../secret.raw"])
@pytest.mark.parametrize("kind", ["mhd", "nhdr"])
def test_a_header_that_names_data_elsewhere_is_refused(tmp_path, name, kind):
    (tmp_path / "secret.raw").write_bytes(bytes(100))
    (tmp_path / "in").mkdir()
    path = tmp_path / "in" / f"a.{kind}"
    if kind == "mhd":
        text = f"ObjectType = Image\nNDims = 2\nDimSize = 10 10\nElementType = MET_UCHAR\nElementDataFile = {name}\n"
    else:
        text = f"NRRD0004\ntype: uchar\ndimension: 2\nsizes: 10 10\nencoding: raw\ndata file: {name}\n"
    path.write_text(text)
    with pytest.raises(UnreadableImageError, match="no file beside or below it"):
        LoadUltrasound()(path)


def test_a_huge_image_is_refused_by_name_before_it_is_decoded(tmp_path):
    Image.new("1", (12_000, 9_000)).save(tmp_path / "a.png")
    with pytest.raises(UnreadableImageError, match=r"a\.png: has 12000 x 9000 pixels, more than the 50,000,000"):
        LoadUltrasound()(tmp_path / "a.png")
    header = nib.Nifti1Header()
    header.set_data_shape((30_000, 30_000, 100))
    header.set_data_dtype(np.uint8)
    (tmp_path / "b.nii").write_bytes(header.binaryblock + bytes(1000))
    with pytest.raises(UnreadableImageError, match=r"b\.nii: has 30000 x 30000 pixels in 100 frames"):
        LoadUltrasound()(tmp_path / "b.nii")
    assert MAX_PIXELS == 50_000_000


def test_a_plain_file_warns_of_nothing(tmp_path):
    Image.fromarray(GRAY).save(tmp_path / "a.png")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        LoadUltrasound()(tmp_path / "a.png")
    assert unreadable_reason(tmp_path / "a.png") is None
