# Copyright (c) monai_usfm contributors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import nibabel as nib
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from monai.data import MetaTensor
from monai.transforms import Compose, CropForegroundd

from monai_usfm.transforms import FieldOfView, FieldOfViewd


def sector(shape=(160, 200), apex=(-20.0, 100.0), radii=(40.0, 160.0), half_angle=0.6):
    """Mask and speckled image of a convex sector, written out in NumPy."""
    rows, columns = np.mgrid[: shape[0], : shape[1]]
    radius = np.hypot(rows - apex[0], columns - apex[1])
    angle = np.arctan2(columns - apex[1], rows - apex[0])
    mask = (radius >= radii[0]) & (radius <= radii[1]) & (abs(angle) <= half_angle)
    speckle = np.random.default_rng(0).rayleigh(0.25, shape)
    return mask, (mask * speckle.clip(0, 1)).astype(np.float32)


def ball(shape=(40, 48, 56), radius=16):
    grid = np.stack(np.meshgrid(*[np.arange(n) - n / 2 for n in shape], indexing="ij"))
    mask = np.sqrt((grid**2).sum(0)) < radius
    return mask, (mask * np.random.default_rng(1).rayleigh(0.3, shape).clip(0, 1)).astype(np.float32)


def dice(a, b):
    a, b = np.asarray(a, bool), np.asarray(b, bool)
    return 2 * (a & b).sum() / (a.sum() + b.sum())


@pytest.mark.parametrize("make", [sector, ball])
def test_mask_of_a_speckled_phantom_is_the_region_it_was_drawn_in(make):
    mask, image = make()
    assert dice(FieldOfView()(image[None])[0], mask) > 0.99


def test_text_rulers_and_gray_bars_beside_the_sector_are_left_out():
    mask, image = sector()
    image[5:15, 3:40:2] = 1.0  # text
    image[20:120, 1:4] = np.linspace(1, 0.1, 100)[:, None]  # gray bar
    image[10:150:10, 196:199] = 0.8  # depth ruler
    assert dice(FieldOfView()(image[None])[0], mask) > 0.985


def test_faint_text_and_a_bar_a_pixel_beside_the_sector_do_not_join_it():
    mask, image = sector()
    speckle = np.random.default_rng(3).uniform(0.02, 0.2, (9, 16)).astype(np.float32)
    edge = int(np.flatnonzero(mask[60])[0])
    image[56:65, edge - 24 : edge - 8] = speckle  # four pixels from the sector at the lowest row
    image[20:75, :4] = np.linspace(1, 0.1, 55)[:, None]
    assert not FieldOfView()(image[None])[0, 20:64, : edge - 8].any()


def test_cysts_inside_the_sector_are_filled():
    _, image = sector()
    image[70:95, 85:115] = 0.0
    assert FieldOfView()(image[None])[0, 70:95, 85:115].all()


def test_noise_on_the_screen_does_not_join_the_field_of_view():
    mask, image = sector()
    noisy = image + 0.01 * np.random.default_rng(2).standard_normal(image.shape).astype(np.float32)
    assert dice(FieldOfView()(noisy[None])[0], mask) > 0.98


def test_a_constant_alpha_channel_changes_nothing():
    _, image = sector()
    rgba = np.stack([image, image, image, np.ones_like(image)])
    assert torch.equal(FieldOfView()(rgba), FieldOfView()(image[None]))


@pytest.mark.parametrize("value", [0.0, 0.5, 255.0])
def test_a_constant_image_is_all_field_of_view(value):
    assert FieldOfView()(torch.full((1, 30, 40), value)).all()


def test_integer_and_float_images_have_the_same_mask():
    _, image = sector()
    counts = (image * 255).round()
    expected = FieldOfView()(counts[None])
    for dtype in (torch.uint8, torch.int32, torch.float64):
        assert torch.equal(FieldOfView()(torch.as_tensor(counts[None]).to(dtype)), expected)


def test_pixels_that_are_not_finite_lie_outside():
    _, image = sector()
    image[60:64, 100] = np.nan
    image[70, 100] = np.inf
    mask = FieldOfView()(image[None])[0]
    assert not mask[60:64, 100].any() and not mask[70, 100] and mask[80, 100]


@pytest.mark.parametrize(
    ("name", "least"),
    [
        pytest.param("liver_sweep", 0.995, marks=pytest.mark.slow),
        ("plus_layered", 0.975),
        ("spine_phantom_a", 0.985),
        ("spine_phantom_b", 0.96),
    ],
)
def test_real_volumes_agree_with_their_insonified_voxels(shared_data, name, least):
    folder = shared_data / "volumes_3d"
    image = np.asarray(nib.load(folder / f"{name}.nii.gz").dataobj).transpose(2, 1, 0)
    insonified = np.asarray(nib.load(folder / f"{name}_fov.nii.gz").dataobj).transpose(2, 1, 0)
    assert dice(FieldOfView()(image[None])[0], insonified) > least


def test_cropping_by_monai_takes_one_box_for_image_and_label_and_its_inverse_restores_the_size():
    mask, image = sector()
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    options = {"source_key": "image", "select_fn": FieldOfView(), "allow_smaller": True}
    pipeline = Compose([CropForegroundd(["image", "label"], **options)])
    out = pipeline({"image": MetaTensor(image[None]), "label": MetaTensor(mask[None].astype(np.uint8))})
    assert out["image"].shape == out["label"].shape
    assert np.abs(np.subtract(out["image"].shape[1:], (np.ptp(rows) + 1, np.ptp(columns) + 1))).max() <= 1
    np.testing.assert_array_equal(pipeline.inverse(out)["label"][0], mask)


def test_dictionary_form_stores_the_mask_of_the_array_form():
    _, image = sector()
    out = FieldOfViewd("image")({"image": torch.as_tensor(image[None])})
    assert torch.equal(out["image_fov"], FieldOfView()(image[None]))


def test_input_and_meta_data_stay_as_they_were():
    _, image = sector()
    tensor = MetaTensor(image[None].copy(), affine=torch.diag(torch.tensor([2.0, 3.0, 1.0, 1.0])))
    mask = FieldOfView()(tensor)
    assert isinstance(mask, MetaTensor) and torch.equal(mask.affine, tensor.affine) and mask.dtype == torch.bool
    np.testing.assert_array_equal(tensor[0].numpy(), image)


@settings(max_examples=25, deadline=None)
@given(
    shape=st.lists(st.integers(1, 24), min_size=3, max_size=4).filter(lambda s: s[0] <= 4),
    dtype=st.sampled_from([torch.uint8, torch.int16, torch.float16, torch.float32, torch.float64]),
    scale=st.sampled_from([0.0, 1.0, 255.0, -1.0]),
    seed=st.integers(0, 99),
)
def test_any_image_gets_a_mask_of_its_shape_that_is_not_empty(shape, dtype, scale, seed):
    image = (torch.rand(shape, generator=torch.Generator().manual_seed(seed)) * scale).to(dtype)
    mask = FieldOfView()(image)
    assert mask.shape == (1, *shape[1:]) and mask.any()


@pytest.mark.parametrize("shape", [(4,), (4, 4), (1, 0, 4), (1, 2, 2, 2, 2)])
def test_other_shapes_are_refused_by_name(shape):
    with pytest.raises(ValueError, match="the image must be"):
        FieldOfView()(torch.zeros(shape))


@pytest.mark.parametrize("threshold", [-0.1, 1.0])
def test_a_threshold_outside_the_range_is_refused(threshold):
    with pytest.raises(ValueError, match="threshold"):
        FieldOfView(threshold)
