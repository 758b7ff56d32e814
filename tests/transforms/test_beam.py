# Copyright (c) monai_usfm contributors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import inspect
import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from monai.data import DataLoader, Dataset, MetaTensor, decollate_batch, list_data_collate
from monai.transforms import Compose, Invertd
from PIL import Image
from scipy.ndimage import gaussian_filter, map_coordinates
from torch.nn.functional import grid_sample

from monai_usfm.transforms import (
    BeamGeometry,
    FitBeam,
    FitBeamd,
    FromBeamSpace,
    FromBeamSpaced,
    NotAConeError,
    ToBeamSpace,
    ToBeamSpaced,
)

SHAPE, SHAPE_3D = (240, 300), (70, 90, 100)
CONVEX = BeamGeometry("convex", (-50.0, 148.0), (75.0, 270.0), (-0.5, 0.45))
PHASED = BeamGeometry("phased", (5.0, 150.0), (0.0, 220.0), (-0.6, 0.65))
LINEAR = BeamGeometry("linear", (6.0, 150.0), (0.0, 200.0), (0.2, 0.2), width=(-80.0, 70.0))
SECTOR3D = BeamGeometry("sector3d", (34.0, -12.0, 50.0), (20.0, 95.0), ((-0.35, 0.3), (-0.45, 0.5)))
ALL = [CONVEX, PHASED, LINEAR, SECTOR3D]
ids = [g.kind for g in ALL]


def shape_of(geometry):
    return SHAPE_3D if geometry.spatial_dims == 3 else SHAPE


def cropped(geometry, start):
    return replace(geometry, apex=tuple(a - s for a, s in zip(geometry.apex, start, strict=True)))


def resized(geometry, old, new):
    """After a resize with pixel edges aligned, as torch's and MONAI's."""
    zoom = [n / o for n, o in zip(new, old, strict=True)]
    apex = tuple((a + 0.5) * z - 0.5 for a, z in zip(geometry.apex, zoom, strict=True))
    return replace(geometry, apex=apex, spacing=tuple(s / z for s, z in zip(geometry.spacing, zoom, strict=True)))


def sector_mask(geometry, shape):
    """The definition in the class docstring, written out in NumPy."""
    grid = np.meshgrid(*[np.arange(n, dtype=float) for n in shape], indexing="ij")
    offset = [(g - a) * s for g, a, s in zip(grid, geometry.apex, geometry.spacing, strict=True)]
    z, x = offset[-2:]
    (r0, r1), angles = geometry.radii, geometry.angles
    if geometry.kind == "linear":
        r, u = z / np.cos(angles[0]), x - z * np.tan(angles[0])
        return (r >= r0) & (r <= r1) & (u >= geometry.width[0]) & (u <= geometry.width[1])
    if geometry.kind == "sector3d":
        r = np.sqrt(sum(o**2 for o in offset))
        tilt = np.arctan2(offset[0], z)
        angle = np.arcsin(np.clip(x / np.maximum(r, 1e-9), -1, 1))
        inside = (tilt >= angles[0][0]) & (tilt <= angles[0][1]) & (angle >= angles[1][0]) & (angle <= angles[1][1])
        return inside & (r >= r0) & (r <= r1)
    r, angle = np.hypot(z, x), np.arctan2(x, z)
    return (r >= r0) & (r <= r1) & (angle >= angles[0]) & (angle <= angles[1])


def phantom(geometry, shape=None, seed=0):
    """Fully developed speckle inside the analytic mask, black outside."""
    shape = shape or shape_of(geometry)
    speckle = np.random.default_rng(seed).rayleigh(0.25, shape).clip(0, 1)
    return torch.as_tensor((sector_mask(geometry, shape) * speckle).astype(np.float32))[None]


def smooth(shape, sigma=4.0, seed=3):
    """Band-limited texture in [0, 1], which interpolation can follow."""
    texture = gaussian_filter(np.random.default_rng(seed).standard_normal(shape), sigma)
    return torch.as_tensor(((texture - texture.min()) / np.ptp(texture)).astype(np.float32))[None]


def psnr(a, b, mask):
    return -10 * math.log10(float(((a - b)[mask] ** 2).mean()))


# ---------------------------------------------------------------------- geometry


@pytest.mark.parametrize("geometry", ALL, ids=ids)
def test_mask_is_the_documented_region(geometry):
    ours = geometry.mask(shape_of(geometry))
    assert ours.shape == (1, *shape_of(geometry)) and ours.dtype == torch.bool
    assert (ours[0].numpy() != sector_mask(geometry, shape_of(geometry))).mean() < 1e-4


@pytest.mark.parametrize("geometry", ALL, ids=ids)
def test_beam_to_pixel_and_pixel_to_beam_are_inverse(geometry):
    beam = torch.rand(500, geometry.spatial_dims, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    beam[:, -2] = beam[:, -2] * 0.98 + 0.01  # the apex itself has no angle
    assert torch.allclose(geometry.pixel_to_beam(geometry.beam_to_pixel(beam)), beam, atol=1e-12)


def test_beam_samples_lie_where_the_closed_form_puts_them():
    points = CONVEX.beam_to_cartesian((3, 5))
    angle, radius = np.linspace(*CONVEX.angles, 5)[4], np.linspace(*CONVEX.radii, 3)[1]
    expected = [CONVEX.apex[0] + radius * np.cos(angle), CONVEX.apex[1] + radius * np.sin(angle)]
    np.testing.assert_allclose(points[1, 4], expected, rtol=1e-6)


@pytest.mark.parametrize("geometry", ALL, ids=ids)
def test_both_sampling_grids_agree_with_scipy_interpolation(geometry):
    shape = shape_of(geometry)
    image = smooth(shape)
    beam_shape = (9, 21, 17)[-geometry.spatial_dims :]
    ours = grid_sample(image[None], geometry.beam_grid(shape, beam_shape), align_corners=True)[0, 0]
    points = geometry.beam_to_cartesian(beam_shape).numpy()
    inside = ((points >= 0) & (points <= np.array(shape) - 1)).all(-1)
    expected = map_coordinates(image[0].numpy(), np.moveaxis(points, -1, 0), order=1)
    np.testing.assert_allclose(ours.numpy()[inside], expected[inside], atol=2e-4)

    beams = smooth(beam_shape, sigma=1.0)
    ours = grid_sample(beams[None], geometry.image_grid(shape), align_corners=True)[0, 0]
    points = geometry.cartesian_to_beam(shape).numpy() * (np.array(beam_shape) - 1)
    mask = sector_mask(geometry, shape)
    expected = map_coordinates(beams[0].numpy(), np.moveaxis(points, -1, 0), order=1, mode="nearest")
    np.testing.assert_allclose(ours.numpy()[mask], expected[mask], atol=2e-4)


@pytest.mark.parametrize("geometry", ALL, ids=ids)
def test_dictionary_survives_json(geometry):
    assert BeamGeometry.from_dict(json.loads(json.dumps(geometry.to_dict()))) == geometry


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kind": "curved"}, "unknown beam geometry"),
        ({"apex": (0.0,)}, "apex"),
        ({"apex": (0.0, math.nan)}, "finite"),
        ({"radii": (50.0, 20.0)}, "radii"),
        ({"radii": (-5.0, 20.0)}, "radii"),
        ({"angles": (0.5, -0.5)}, "ascending"),
        ({"angles": (-4.0, 0.5)}, "within"),
        ({"width": (0.0, 1.0)}, "only a linear"),
        ({"spacing": (1.0, 0.0)}, "spacing"),
        ({"kind": "linear", "angles": (0.0, 0.0)}, "width"),
        ({"kind": "linear", "width": (0.0, 1.0)}, "steering"),
        ({"kind": "linear", "angles": (0.0, 0.0), "width": (1.0, 0.0)}, "width"),
    ],
)
def test_impossible_geometries_are_refused_by_name(change, message):
    with pytest.raises(ValueError, match=message):
        replace(CONVEX, **change)


def test_wrong_shapes_are_refused():
    with pytest.raises(ValueError, match="2 positive sizes"):
        CONVEX.mask((10, 10, 10))
    with pytest.raises(ValueError, match="positive sizes"):
        SECTOR3D.beam_to_cartesian((4, 0, 4))


# ---------------------------------------------------------------------- fit


PHANTOMS = [
    CONVEX,
    PHASED,
    BeamGeometry("convex", (-300.0, 150.0), (310.0, 520.0), (-0.2, 0.2)),
    BeamGeometry("convex", (-30.0, 150.0), (60.0, 230.0), (-0.95, 0.95)),
    BeamGeometry("convex", (-40.0, 120.0), (60.0, 250.0), (-0.25, 0.55)),
]


@pytest.mark.parametrize("truth", PHANTOMS)
def test_fit_finds_apex_angles_and_radii_of_a_phantom(truth):
    fit = FitBeam()(phantom(truth))
    assert fit.kind == truth.kind and fit.confidence > 0.9
    assert math.dist(fit.apex, truth.apex) < 1.5
    np.testing.assert_allclose(np.degrees(fit.angles), np.degrees(truth.angles), atol=0.25)
    np.testing.assert_allclose(fit.radii, truth.radii, atol=1.5 if truth.radii[0] > 0 else 4.0)


def corrupt(image, kind):
    image, rng = image.clone(), np.random.default_rng(5)
    if kind == "text":
        image[:, 5:15, 5:60:3], image[:, 20:100, 0:3] = 1.0, 0.7
        image[:, 200:210, 240:290:3] = 1.0
    elif kind == "dark sector":
        axial, lateral = CONVEX.cartesian_to_beam(SHAPE).unbind(-1)
        image[:, (lateral > 0.75) & (axial > 0.35)] = 0.0  # shadow at the edge
        image[:, ((axial - 0.6) / 0.2) ** 2 + ((lateral - 0.05) / 0.1) ** 2 < 1] = 0.0  # cyst across the edge
    elif kind == "noise":
        image = (image + 0.015 * torch.as_tensor(rng.standard_normal(image.shape))).float()
    elif kind == "box":
        image[:, 190:, 200:] = 0.0
    elif kind == "annotations inside":
        image[:, 120, 100:200:4], image[:, 60:63, 140:150] = 1.0, 1.0
    return image


@pytest.mark.parametrize("kind", ["text", "dark sector", "noise", "box", "annotations inside"])
def test_fit_withstands(kind):
    fit = FitBeam()(corrupt(phantom(CONVEX), kind))
    assert math.dist(fit.apex, CONVEX.apex) < 4
    np.testing.assert_allclose(np.degrees(fit.angles), np.degrees(CONVEX.angles), atol=1.0)
    np.testing.assert_allclose(fit.radii, CONVEX.radii, atol=4)


def test_fit_of_a_sector_cut_by_the_image_still_finds_the_apex():
    window = phantom(CONVEX)[:, 60:190, 60:240]
    fit, truth = FitBeam()(window), cropped(CONVEX, (60, 60))
    assert math.dist(fit.apex, truth.apex) < 4
    np.testing.assert_allclose(np.degrees(fit.angles), np.degrees(truth.angles), atol=1.0)


CUT = {  # geometry, window (rows, columns) of the image that is left
    "both edges cut": (BeamGeometry("convex", (-60.0, 150.0), (90.0, 260.0), (-0.6, 0.6)), (0, 70), (240, 230)),
    "one edge cut": (BeamGeometry("convex", (-60.0, 150.0), (90.0, 260.0), (-0.6, 0.6)), (0, 0), (240, 180)),
    "steered, one edge cut": (BeamGeometry("convex", (-60.0, 150.0), (90.0, 260.0), (-0.2, 0.8)), (0, 60), (240, 280)),
    "near arc alone": (BeamGeometry("convex", (-60.0, 150.0), (90.0, 400.0), (-0.6, 0.6)), (0, 60), (200, 240)),
    "far arc alone": (BeamGeometry("convex", (-60.0, 150.0), (20.0, 270.0), (-0.6, 0.6)), (70, 50), (240, 250)),
}


@pytest.mark.parametrize("name", list(CUT))
def test_fit_of_a_sector_whose_edges_the_image_cuts_off_goes_by_its_arcs(name):
    geometry, start, stop = CUT[name]
    window = phantom(geometry, (240, 400))[:, start[0] : stop[0], start[1] : stop[1]]
    fit, truth = FitBeam()(window), cropped(geometry, start)
    assert math.dist(fit.apex, truth.apex) < 2
    model, visible = fit.mask(window.shape[1:]), truth.mask(window.shape[1:])
    assert (model & visible).sum() / (model | visible).sum() > 0.99
    if "near" not in name:
        assert fit.radii[1] == pytest.approx(truth.radii[1], abs=2)
    if "far" not in name:
        assert fit.radii[0] == pytest.approx(truth.radii[0], abs=2)


def test_an_edge_that_is_cut_off_lies_at_the_outermost_visible_pixel():
    geometry, start, stop = CUT["one edge cut"]
    fit = FitBeam()(phantom(geometry, (240, 400))[:, start[0] : stop[0], start[1] : stop[1]])
    assert fit.angles[0] == pytest.approx(-0.6, abs=0.01)
    rows, columns = np.nonzero(geometry.mask((240, 180))[0].numpy())
    assert fit.angles[1] == pytest.approx(np.arctan2(columns - 150, rows + 60).max(), abs=0.01)


def test_arcs_about_a_point_below_the_image_are_no_cone():
    geometry, start, stop = CUT["both edges cut"]
    window = phantom(geometry, (240, 400))[:, start[0] : stop[0], start[1] : stop[1]]
    assert FitBeam(fallback=None)(window.flip(1)) is None


def test_fit_is_the_same_at_every_call():
    geometry, start, stop = CUT["both edges cut"]
    window = phantom(geometry, (240, 400))[:, start[0] : stop[0], start[1] : stop[1]]
    assert FitBeam()(window) == FitBeam()(window)


def test_fit_follows_a_flip():
    image = phantom(CONVEX)
    mirrored, fit = FitBeam()(image.flip(2)), FitBeam()(image)
    assert math.dist(mirrored.apex, (fit.apex[0], SHAPE[1] - 1 - fit.apex[1])) < 0.5
    np.testing.assert_allclose(mirrored.angles, (-fit.angles[1], -fit.angles[0]), atol=0.005)


def test_fit_uses_the_voxel_size_of_an_anisotropic_image():
    truth = resized(CONVEX, SHAPE, (SHAPE[0], 2 * SHAPE[1]))
    image = phantom(truth, (SHAPE[0], 2 * SHAPE[1]))
    fit = FitBeam()(MetaTensor(image, affine=torch.diag(torch.tensor([1.0, 0.5, 1.0, 1.0]))))
    assert fit.spacing == (1.0, 0.5)
    np.testing.assert_allclose(fit.radii, truth.radii, atol=1.5)
    np.testing.assert_allclose(np.degrees(fit.angles), np.degrees(truth.angles), atol=0.3)


def test_fit_finds_a_3d_sector():
    fit = FitBeam()(phantom(SECTOR3D))
    assert fit.kind == "sector3d" and fit.confidence > 0.85
    assert math.dist(fit.apex, SECTOR3D.apex) < 2
    np.testing.assert_allclose(np.degrees(fit.angles), np.degrees(SECTOR3D.angles), atol=1.5)
    np.testing.assert_allclose(fit.radii, SECTOR3D.radii, atol=2)


def test_a_cine_gets_the_geometry_of_its_frames():
    cine = torch.stack([phantom(CONVEX, seed=s)[0] for s in range(5)])[None]
    fit = FitBeam()(cine)
    assert fit.kind == "convex" and math.dist(fit.apex, CONVEX.apex) < 1.5


def not_cones():
    rng = np.random.default_rng(7)
    noise = torch.as_tensor(rng.random((1, 120, 150), dtype=np.float32))
    framed = torch.zeros(1, 160, 200)
    framed[:, 20:140, 25:175] = noise
    rows, columns = np.mgrid[:160, :200]
    disc = torch.as_tensor(np.hypot(rows - 80, columns - 100) < 60)[None] * 0.5
    upside_down = phantom(CONVEX).flip(1)
    return {
        "black": torch.zeros(1, 50, 60),
        "constant": torch.full((1, 50, 60), 0.4),
        "noise": noise,
        "framed noise": framed,
        "disc": disc,
        "upside down": upside_down,
        "one pixel": torch.ones(1, 1, 1),
        "a row": torch.rand(1, 1, 40, generator=torch.Generator().manual_seed(0)),
    }


@pytest.mark.parametrize("name", list(not_cones()))
def test_images_without_a_cone_are_refused(name):
    image = not_cones()[name]
    with pytest.raises(NotAConeError, match="no cone"):
        FitBeam()(image)
    assert FitBeam(fallback=None)(image) is None
    assert FitBeam(fallback="linear")(image).kind == "linear"


def test_linear_fallback_finds_a_framed_rectangle_and_a_steered_one():
    fit = FitBeam(fallback="linear")(not_cones()["framed noise"])
    assert fit.confidence > 0.95
    np.testing.assert_allclose([fit.apex[0], *fit.radii, *fit.width], [19.5, 0, 120, -75, 75], atol=1.0)
    fit = FitBeam(fallback="linear")(phantom(LINEAR))
    assert fit.angles[0] == pytest.approx(LINEAR.angles[0], abs=0.01) and fit.confidence > 0.9
    np.testing.assert_allclose(fit.width[1] - fit.width[0], 150, atol=2)


def test_fallback_without_evidence_has_no_confidence():
    assert FitBeam(fallback="linear")(torch.full((1, 50, 60), 0.4)).confidence == 0


def test_real_liver_frames_of_one_sweep_share_their_geometry(shared_data):
    files = sorted((shared_data / "liver_sweep_2d" / "images").glob("*.png"))[::5]
    fits = [FitBeam()(np.array(Image.open(f))[None]) for f in files]
    assert all(f.kind == "convex" and f.confidence > 0.9 for f in fits)
    assert np.std([f.apex for f in fits], axis=0).max() < 1.0
    assert np.degrees(np.std([f.angles for f in fits], axis=0)).max() < 0.5


def test_at_most_a_quarter_of_real_fetal_heads_is_refused(shared_data):
    files = sorted((shared_data / "fetal_head_hc18" / "images").glob("*.png"))[::80]
    fits = [FitBeam(fallback=None)(np.array(Image.open(f))[None]) for f in files]
    assert sum(f is None for f in fits) <= len(files) // 4
    # the masks of sectors agree with what is bright, and their apex lies above the image
    assert all(f.apex[0] < 0 and f.confidence >= 0.35 for f in fits if f is not None)


def test_real_breast_images_of_linear_probes_are_refused(shared_data):
    files = sorted((shared_data / "busbra" / "images").glob("*.png"))[::100]
    assert all(FitBeam(fallback=None)(np.array(Image.open(f))[None]) is None for f in files)


# ---------------------------------------------------------------------- beam space


@pytest.mark.parametrize("geometry", ALL, ids=ids)
def test_round_trip_keeps_the_image_inside_the_beams(geometry):
    image = smooth(shape_of(geometry))
    convert = ToBeamSpace()
    back = convert.inverse(convert(MetaTensor(image), geometry)).as_tensor()
    mask = geometry.mask(shape_of(geometry))
    assert psnr(back, image, mask) > 40
    assert back[~mask].abs().max() == 0


@pytest.mark.parametrize("geometry", ALL, ids=ids)
def test_round_trip_keeps_labels(geometry):
    label = (smooth(shape_of(geometry)) > 0.55).to(torch.uint8)
    convert = ToBeamSpace(mode="nearest")
    back = convert.inverse(convert(MetaTensor(label), geometry)).as_tensor()
    mask = geometry.mask(shape_of(geometry))
    a, b = back[mask].bool(), label[mask].bool()
    assert back.dtype == torch.uint8 and set(back.unique().tolist()) <= {0, 1}
    assert 2 * (a & b).sum() / (a.sum() + b.sum()) > 0.98


def test_arcs_of_constant_depth_become_rows():
    rows, columns = np.mgrid[: SHAPE[0], : SHAPE[1]]
    depth = np.hypot(rows - CONVEX.apex[0], columns - CONVEX.apex[1])
    beams = ToBeamSpace((40, 60))(torch.as_tensor(depth[None].astype(np.float32)), CONVEX)[0]
    expected = torch.linspace(*CONVEX.radii, 40)[:, None]
    visible = beams > 0  # corners of this sector lie outside the image
    assert (beams - expected)[visible].abs().max() < 0.5


def test_scan_conversion_is_the_opposite_of_beam_space():
    beams = smooth((80, 90), sigma=3.0)
    convert = FromBeamSpace(SHAPE)
    inner = (slice(None), slice(5, 60), slice(5, -5))
    wide = replace(CONVEX, apex=(-70.0, 148.0))
    back = convert.inverse(convert(MetaTensor(beams), wide)).as_tensor()
    assert psnr(back[inner], beams[inner], ...) > 38


def test_a_cine_is_resampled_frame_by_frame():
    cine = torch.cat([smooth(SHAPE, seed=s) for s in range(3)])[None]
    convert = ToBeamSpace((30, 40))
    out = convert(MetaTensor(cine), CONVEX)
    assert out.shape == (1, 3, 30, 40)
    assert torch.equal(out[0, 1].as_tensor(), convert(cine[:, 1], CONVEX)[0])
    assert convert.inverse(out).shape == cine.shape


def items(count=2):
    return [
        {
            "image": MetaTensor(phantom(CONVEX, seed=s), affine=torch.diag(torch.tensor([0.3, 0.3, 1.0, 1.0]))),
            "label": MetaTensor((smooth(SHAPE, seed=s) > 0.5).to(torch.uint8)),
        }
        for s in range(count)
    ]


def beam_pipeline():
    to_beams = ToBeamSpaced(
        ["image", "label"], beam_key="image_beam", beam_shape=(128, 96), mode=("bilinear", "nearest")
    )
    return Compose([FitBeamd("image"), to_beams])


def test_compose_inverse_restores_shape_affine_and_an_empty_history():
    pipeline, item = beam_pipeline(), items(1)[0]
    out = pipeline(item)
    assert out["image"].shape == out["label"].shape == (1, 128, 96) and out["label"].dtype == torch.uint8
    assert len(item["image"].applied_operations) == 0
    back = pipeline.inverse(out)
    assert back["image"].shape == (1, *SHAPE) and torch.equal(back["image"].affine, item["image"].affine)
    assert len(back["image"].applied_operations) == 0


def test_invertd_brings_a_batched_prediction_back_to_the_image_grid():
    pipeline = beam_pipeline()
    batch = next(iter(DataLoader(Dataset(items(), pipeline), batch_size=2, collate_fn=list_data_collate)))
    assert len(batch["image_beam"]) == 2
    batch["prediction"] = batch["label"].clone()
    invert = Invertd("prediction", transform=pipeline, orig_keys="image", nearest_interp=True)
    for item, original in zip(decollate_batch(batch), items(), strict=True):
        prediction = torch.as_tensor(invert(item)["prediction"])
        assert prediction.shape == (1, *SHAPE) and set(prediction.unique().tolist()) <= {0, 1}
        mask = item["image_beam"].mask(SHAPE)
        a, b = prediction[mask].bool(), original["label"].as_tensor()[mask].bool()
        assert 2 * (a & b).sum() / (a.sum() + b.sum()) > 0.96  # 128 x 96 beam samples are coarser than the image


def test_dictionary_scan_conversion_equals_the_array_form():
    beams = smooth((80, 90))
    out = FromBeamSpaced("beams", "geometry", SHAPE)({"beams": beams, "geometry": CONVEX})["beams"]
    assert torch.equal(torch.as_tensor(out), torch.as_tensor(FromBeamSpace(SHAPE)(beams, CONVEX)))


@pytest.mark.parametrize(
    ("array", "dictionary"), [(FitBeam, FitBeamd), (ToBeamSpace, ToBeamSpaced), (FromBeamSpace, FromBeamSpaced)]
)
def test_both_forms_have_equal_defaults(array, dictionary):
    ours, theirs = (inspect.signature(c).parameters for c in (array, dictionary))
    assert all(theirs[name].default == parameter.default for name, parameter in ours.items())


@settings(max_examples=25, deadline=None)
@given(
    kind=st.sampled_from(["convex", "linear"]),
    shape=st.tuples(st.integers(1, 4), st.integers(1, 20), st.integers(1, 20)),
    beam_shape=st.tuples(st.integers(1, 9), st.integers(1, 9)),
    dtype=st.sampled_from([torch.uint8, torch.int32, torch.float16, torch.float32, torch.float64]),
)
def test_any_image_is_resampled_to_finite_values_within_its_range(kind, shape, beam_shape, dtype):
    geometry = CONVEX if kind == "convex" else LINEAR
    geometry = resized(geometry, SHAPE, shape[1:])
    image = (torch.rand(shape, generator=torch.Generator().manual_seed(0)) * 200).to(dtype)
    before = image.clone()
    beams = ToBeamSpace(beam_shape)(image, geometry)
    assert beams.shape == (shape[0], *beam_shape) and torch.equal(image, before)
    assert beams.isfinite().all() and beams.min() >= 0 and beams.max() <= image.max() + 1e-3
    assert FromBeamSpace(shape[1:])(beams, geometry).shape == image.shape


@settings(max_examples=20, deadline=None)
@given(
    shape=st.lists(st.integers(1, 40), min_size=2, max_size=3),
    dtype=st.sampled_from([torch.uint8, torch.float32, torch.float64]),
    black=st.floats(0, 1),
    seed=st.integers(0, 99),
)
def test_fit_of_any_image_gives_a_geometry_or_none(shape, dtype, black, seed):
    image = torch.rand([1, *shape], generator=torch.Generator().manual_seed(seed)) * 255
    image[..., : int(black * shape[-1])] = 0
    fit = FitBeam(fallback=None)(image.to(dtype))
    assert fit is None or (0 <= fit.confidence <= 1 and math.isfinite(sum(fit.apex)))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: ToBeamSpace(mode="bicubic"), "mode"),
        (lambda: ToBeamSpace()(torch.zeros(1, 8, 8), None), "must be a BeamGeometry"),
        (lambda: ToBeamSpace()(torch.zeros(1, 8, 8), SECTOR3D), "cannot resample"),
        (lambda: FitBeam(fallback="circle"), "fallback"),
        (lambda: FitBeam(min_confidence=2), "min_confidence"),
    ],
)
def test_wrong_use_is_refused_by_name(call, message):
    with pytest.raises(ValueError, match=message):
        call()
