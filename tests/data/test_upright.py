# Copyright (c) monai_usfm contributors
# SPDX-License-Identifier: Apache-2.0
"""The one road for pixels: every entry sees the same tensor, and what comes back lies on the file's own grid."""

from __future__ import annotations

from pathlib import Path

import itk
import nibabel as nib
import numpy as np
import pytest
import torch
from monai.data import MetaTensor, NibabelReader, list_data_collate
from monai.transforms import (
    Compose,
    EnsureChannelFirstd,
    Invertd,
    LoadImage,
    LoadImaged,
    Resized,
    SaveImaged,
    SpatialCrop,
)
from PIL import Image
from scipy.spatial.transform import Rotation

from monai_usfm.data import LoadUltrasound, LoadUltrasoundd, UltrasoundReader, UprightGray, UprightGrayd
from monai_usfm.files import atomic_writer
from tests.dicom_files import saved, ultrasound

av = pytest.importorskip("av")

STILLS = """
gray.png rgb.png alpha.png palette.png deep.png one.png gray.jpg gray.bmp gray.tif gray.gif gray.webp
still.nii still.nii.gz first.nii.gz last.nii.gz middle.nii float.nii deep.nii
gray.mha color.mha gray.mhd gray.nrrd still.dcm noending
""".split()  # noqa: SIM905 - a list literal would take thirty lines
VOLUMES = [
    "pages.tif",
    "pages.gif",
    "cine.avi",
    "volume.nii.gz",
    "cine.nii.gz",
    "volume.mha",
    "volume.nrrd",
    "cine.dcm",
]


def draw_image() -> np.ndarray:
    """(H, W, 3), without any symmetry: brighter to the lower right, red above."""
    rows, columns = np.mgrid[:48, :64]
    img = np.repeat(((rows * 2 + columns) % 100)[..., None], 3, axis=-1).astype(np.uint8)
    img[:10, :, 0] += 100
    return img


def write(path: Path) -> Path:
    """A file of every kind that is read; the gray ones hold one and the same image."""
    color = draw_image()
    gray = color[..., 1]
    volume = np.stack([gray, gray // 2, gray // 3])  # (z, rows, columns)
    kind, _, ending = path.name.partition(".")
    if ending.startswith("nii"):
        values = {
            "still": gray.T,
            "first": gray.T[None],
            "middle": gray.T[:, None],
            "last": gray.T[:, :, None],
            "float": gray.T.astype(np.float32) / 255,
            "deep": gray.T.astype(np.int16) * 16,
            "volume": volume.T,
            "cine": volume.T[:, :, None],
        }[kind]
        affine = np.diag([0.3, 0.4, 0.5, 1.0])
        affine[:3, 3] = 1, 2, 3
        nib.save(nib.Nifti1Image(values, affine), path)
    elif ending in ("mha", "mhd", "nrrd"):
        values = {"gray": gray, "color": color, "volume": volume}[kind]
        itk.imwrite(itk.image_from_array(np.ascontiguousarray(values), is_vector=kind == "color"), str(path))
    elif ending in ("dcm", ""):
        saved(path.parent, ultrasound(volume if kind == "cine" else gray), path.name)
    elif ending == "avi":
        with av.open(str(path), "w") as container:
            stream = container.add_stream("ffv1", rate=20, width=64, height=48, pix_fmt="gray")
            for frame in volume:
                for packet in stream.encode(av.VideoFrame.from_ndarray(frame, format="gray")):
                    container.mux(packet)
            for packet in stream.encode():
                container.mux(packet)
    elif kind == "pages":
        pages = [Image.fromarray(page) for page in volume]
        pages[0].save(path, save_all=True, append_images=pages[1:])
    else:
        values = {
            "gray": gray,
            "rgb": color,
            "alpha": np.dstack([color, gray]),
            "deep": gray.astype(np.uint16) * 16,
            "one": gray > 50,
            "palette": gray,
        }[kind]
        img = Image.fromarray(values)
        img = img.convert("P") if kind == "palette" else img
        img.save(path, **({"lossless": True} if ending == "webp" else {}))
    return path


def save(item: dict, folder: Path, ending: str, dtype: str) -> None:
    """As the bundles do."""
    options = {"separate_folder": False, "resample": False, "print_log": False, "output_dtype": dtype}
    writer = atomic_writer(ending)
    SaveImaged("pred", output_dir=folder, output_postfix="mask", output_ext=ending, writer=writer, **options)(item)


def chain(spatial_dims: int, reader=UltrasoundReader) -> Compose:
    """Reading as in inference.json."""
    return Compose(
        [LoadImaged("image", reader=reader), EnsureChannelFirstd("image"), UprightGrayd("image", spatial_dims)]
    )


def test_a_frame_of_a_cine_lies_where_the_file_says_whoever_reads_it(tmp_path):
    path = write(tmp_path / "cine.nii.gz")
    ours, theirs = (
        Compose([LoadImage(reader, ensure_channel_first=True), UprightGray(2, frame=2)])(path)
        for reader in (UltrasoundReader, NibabelReader)
    )
    assert torch.equal(ours.affine, theirs.affine) and ours.meta["cine"] is theirs.meta["cine"] is True


def test_the_middle_is_that_of_the_slices_that_are_left(tmp_path):
    volume = LoadImage(UltrasoundReader, ensure_channel_first=True)(write(tmp_path / "volume.nii.gz"))
    cropped = SpatialCrop(roi_slices=[slice(None), slice(None), slice(0, 2)])(volume)
    assert UprightGray(2, frame=-1)(cropped).meta["frame"] == 1
    assert UprightGray(2)(torch.cat([volume, volume], -1)).meta["frame"] == 3


@pytest.mark.parametrize(("name", "spatial_dims"), [(n, 2) for n in STILLS] + [(n, d) for n in VOLUMES for d in (2, 3)])
@pytest.mark.filterwarnings("ignore:.*no header tells")
def test_every_entry_sees_the_same_tensor(tmp_path, name, spatial_dims):
    path = write(tmp_path / name)
    wanted = LoadUltrasound(spatial_dims)(path)
    assert wanted.std() > 0.02
    # training, dictionary form
    assert torch.equal(LoadUltrasoundd("image", spatial_dims)({"image": str(path)})["image"], wanted)
    # inference and MONAI Label
    read = chain(spatial_dims)({"image": str(path)})["image"]
    assert torch.equal(read.as_tensor(), wanted.as_tensor())
    torch.testing.assert_close(read.affine, wanted.affine)
    assert read.meta["spacing"].tolist() == wanted.meta["spacing"].tolist()
    # MONAI Deploy: array and metadata in memory, LoadImage left out
    array, meta = UltrasoundReader().get_data(UltrasoundReader().read(str(path)))
    held = {"image": MetaTensor(torch.as_tensor(array.astype(np.float32)), meta=meta)}
    for step in chain(spatial_dims).transforms[1:]:
        held = step(held)
    assert torch.equal(held["image"].as_tensor(), wanted.as_tensor())


@pytest.mark.parametrize(
    ("name", "spatial_dims"),
    [(n, 2) for n in STILLS if n not in ("still.dcm", "noending", "alpha.png", "palette.png", "color.mha")]
    + [(n, d) for n in ("volume.nii.gz", "cine.nii.gz", "volume.mha", "volume.nrrd") for d in (2, 3)],
)
@pytest.mark.filterwarnings("ignore:.*no header tells")
def test_monais_own_readers_lead_to_the_same_tensor(tmp_path, name, spatial_dims):
    if name.endswith((".gif", ".webp")):
        pytest.skip("MONAI's readers do not take these")
    path = write(tmp_path / name)
    wanted = LoadUltrasound(spatial_dims)(path)
    torch.testing.assert_close(
        chain(spatial_dims, None)({"image": str(path)})["image"].as_tensor(),
        wanted.as_tensor(),
        rtol=0,
        atol=1e-6,
    )


@pytest.mark.parametrize(
    ("name", "spatial_dims"),
    [(n, 2) for n in ("still.nii", "first.nii.gz", "middle.nii", "last.nii.gz")]
    + [("volume.nii.gz", 3), ("cine.nii.gz", 3), ("gray.mha", 2), ("volume.mha", 3)],
)
@pytest.mark.parametrize("resize", [False, True])
def test_a_mask_comes_back_in_the_files_own_shape_and_place(tmp_path, name, spatial_dims, resize):
    path = write(tmp_path / name)
    size = [24, 40] if spatial_dims == 2 else [3, 24, 40]
    reading = Compose([chain(spatial_dims), *([Resized("image", size)] if resize else [])])
    item = reading({"image": str(path)})
    item["pred"] = item["image"].clone()
    item = Invertd("pred", reading, orig_keys="image", nearest_interp=False)(item)
    save(item, tmp_path, ".nii.gz", "float32")
    written = nib.load(tmp_path / f"{path.name.split('.')[0]}_mask.nii.gz")
    if path.suffix == ".mha":
        stored = itk.array_from_image(itk.imread(str(path))).T
        affine = np.diag([-1.0, -1, 1, 1])
    else:
        stored, affine = np.asarray(nib.load(path).dataobj), nib.load(path).affine
    assert written.shape == stored.shape
    np.testing.assert_allclose(written.affine, affine)
    tolerance = 0.25 if resize else 1e-6  # resampled twice
    assert np.abs(written.get_fdata() - stored / 255).mean() < tolerance / 5


def test_a_frame_of_a_cine_across_the_world_has_an_affine_that_can_be_written(tmp_path):
    nib.save(nib.Nifti1Image(np.ones((1, 8, 6, 5), np.uint8), np.diag([0.1, 0.2, 0.3, 1])), tmp_path / "a.nii")
    steps = chain(2)
    back = steps.transforms[-1].inverse(steps({"image": str(tmp_path / "a.nii")}))["image"]
    assert back.shape == (1, 8, 6)
    assert np.allclose(back.affine[:3, :3], [[0, 0, 0.1], [0.2, 0, 0], [0, 0.3, 0]])
    save({"pred": back}, tmp_path, ".nii.gz", "uint8")
    written = nib.load(tmp_path / "a_mask.nii.gz")
    assert written.shape == (8, 6, 1) and np.allclose(written.affine, back.affine)


@pytest.mark.parametrize("name", ["a.nii.gz", "a.mha", "a.nrrd"])
@pytest.mark.parametrize("axis, degrees", [(0, 30), (0, 60), (0, 90), (1, 60), (1, 90), (2, 30)])
@pytest.mark.parametrize("slices", [1, 3])
def test_pixels_of_a_plane_anywhere_in_the_world_keep_their_millimeters(tmp_path, name, axis, degrees, slices):
    turn = Rotation.from_rotvec(np.radians(degrees) * np.eye(3)[axis]).as_matrix()
    affine = np.eye(4)
    affine[:3, :3] = turn @ np.diag([0.35, 0.2, 1.5])
    values = np.ones((12, 10, slices), np.uint8)
    if name.endswith("gz"):
        nib.save(nib.Nifti1Image(values, affine), tmp_path / name)
    else:
        image = itk.image_view_from_array(np.ascontiguousarray(values.T))
        image.SetSpacing([0.35, 0.2, 1.5])
        image.SetDirection(itk.matrix_from_array(np.diag([-1, -1, 1]) @ turn))
        itk.imwrite(image, str(tmp_path / name))
    image = LoadUltrasound()(tmp_path / name)
    np.testing.assert_allclose(image.meta["spacing"], [0.2, 0.35], rtol=1e-5)
    given = LoadUltrasoundd("image")({"image": str(tmp_path / name), "spacing": [0.1, 0.3]})["image"]
    np.testing.assert_allclose(given.meta["spacing"], [0.1, 0.3], rtol=1e-5)


@pytest.mark.parametrize("degrees, known", [(0.0, True), (0.3, True), (10.0, False)])
def test_a_sheared_volume_is_not_measured_in_millimeters(tmp_path, degrees, known):
    affine = Rotation.from_rotvec([0.3, 0.2, 0.1]).as_matrix() @ np.diag([0.5, 0.6, 0.7])
    affine[:, 2] += affine[:, 0] / 0.5 * 0.7 * np.tan(np.radians(degrees))
    whole = np.eye(4)
    whole[:3, :3] = affine
    img = nib.Nifti1Image(np.zeros((8, 9, 10), np.uint8), whole)
    img.header.set_xyzt_units("mm")
    nib.save(img, tmp_path / "a.nii")
    load = LoadUltrasound(3)
    if known:
        assert load(tmp_path / "a.nii").meta["spacing_known"]
    else:
        with pytest.warns(UserWarning, match=r"a\.nii: the axes of its affine are not at right angles"):
            assert not load(tmp_path / "a.nii").meta["spacing_known"]
    assert LoadUltrasound(2)(tmp_path / "a.nii").meta["spacing_known"]  # a slice has right angles


def test_the_inverse_in_memory_has_every_axis_of_the_file(tmp_path):
    for name, shape in (("first.nii.gz", (1, 64, 48)), ("middle.nii", (64, 1, 48)), ("last.nii.gz", (64, 48, 1))):
        reading = chain(2)
        item = reading({"image": str(write(tmp_path / name))})
        item["pred"] = item["image"].new_ones((5, *item["image"].shape[1:]))
        pred = Invertd("pred", reading, orig_keys="image")(item)["pred"]
        assert pred.shape == (5, *shape) and tuple(pred.meta["spatial_shape"]) == shape


def test_a_mask_of_an_image_in_a_nifti_of_one_slice_is_a_whole_image(tmp_path):
    reading = chain(2)
    item = reading({"image": str(write(tmp_path / "first.nii.gz"))})
    item["pred"] = (item["image"] * 255).clone()
    item = Invertd("pred", reading, orig_keys="image")(item)
    save(item, tmp_path, ".png", "uint8")
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "first_mask.png")), draw_image()[..., 1])


def test_frames_of_a_volume_become_a_batch_with_images(tmp_path):
    names = ("gray.png", "first.nii.gz", "last.nii.gz", "cine.avi", "still.dcm", "gray.mha")
    items = [chain(2)({"image": str(write(tmp_path / name))}) for name in names]
    assert list_data_collate(items)["image"].shape == (6, 1, 48, 64)


def test_the_array_form_takes_any_tensor_in_memory():
    plain = torch.arange(6.0).reshape(1, 3, 2) / 5  # (C, x, y), no metadata
    assert torch.equal(UprightGray()(plain).as_tensor()[0], plain[0].T)
    assert UprightGray(dtype=torch.uint8)(plain).tolist() == [[[0, 102, 204], [51, 153, 255]]]


def test_stored_numbers_are_kept_or_refused_in_another_type():
    plain = torch.tensor([[[0.0, 0.9999], [255.0, 7.0]]])
    labels = UprightGray(scale=None, dtype=torch.uint8)
    assert labels(plain).tolist() == [[[0, 255], [1, 7]]]
    assert labels(torch.tensor([[[3, 250]]], dtype=torch.uint16)).tolist() == [[[3], [250]]]
    for value in (300.0, -1.0, 0.5):
        with pytest.raises(ValueError, match=r"do not fit into torch\.uint8"):
            labels(torch.where(plain == 7, value, plain))


def test_a_cine_has_its_frame_time(tmp_path):
    assert LoadUltrasound(3)(write(tmp_path / "cine.avi")).meta["frame_time"] == pytest.approx(1 / 20)
