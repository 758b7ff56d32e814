# Copyright (c) monai_usfm contributors
# SPDX-License-Identifier: Apache-2.0
"""Geometry changes against points tracked by trigonometry, inverses, and labels that have to follow."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from monai.transforms import Compose, Invertd
from scipy import ndimage

from monai_usfm.transforms import (
    BeamGeometry,
    RandDepthZoom,
    RandDepthZoomd,
    change_geometry,
    zoomed_geometry,
)

SIZE = (120, 140)
CONVEX = BeamGeometry("convex", apex=(-30.0, 69.5), radii=(40.0, 140.0), angles=(-0.45, 0.45))
LINEAR = BeamGeometry("linear", apex=(0.0, 69.5), radii=(0.0, 119.0), width=(-60.0, 60.0))
VOLUME = BeamGeometry("sector3d", apex=(15.5, -10.0, 19.5), radii=(15.0, 48.0), angles=((-0.4, 0.4), (-0.4, 0.4)))


def blob(center: tuple[float, ...], radius: float, size: tuple[int, ...] = SIZE) -> torch.Tensor:
    axes = torch.meshgrid(*[torch.arange(n, dtype=torch.float32) for n in size], indexing="ij")
    distance = sum((a - c) ** 2 for a, c in zip(axes, center, strict=True))
    return torch.exp(-0.5 * distance / radius**2)[None]


def center(image: torch.Tensor) -> tuple[float, ...]:
    return ndimage.center_of_mass(np.asarray(image[0]))


def test_a_point_keeps_its_place_along_its_beam_under_another_probe():
    out = change_geometry(blob((50.0, 90.0), 2.0), LINEAR, CONVEX)
    row, column = center(out)
    assert (math.hypot(row + 30, column - 69.5) - 40) / 100 == pytest.approx(50 / 119, abs=0.005)
    assert (math.atan2(column - 69.5, row + 30) + 0.45) / 0.9 == pytest.approx((90 - 9.5) / 120, abs=0.005)


@pytest.mark.parametrize("factor", [0.6, 1.0, 1.3])
@pytest.mark.parametrize("source", [CONVEX, LINEAR])
def test_depth_zoom_is_isotropic_about_the_probe_face(source, factor):
    face = (10.0, 69.5) if source is CONVEX else (0.0, 69.5)
    old, target = zoomed_geometry(source, factor)
    out = change_geometry(blob((40.0, 80.0), 2.0), old, target)
    expected = tuple(f + (p - f) / factor for f, p in zip(face, (40.0, 80.0), strict=True))
    assert center(out) == pytest.approx(expected, abs=0.2)
    # the far end of a smaller depth stays on the screen where it was; a larger one shows the old sector smaller
    bottom = target.apex[0] + target.radii[1] / target.spacing[0]
    assert bottom == pytest.approx(face[0] + (source.apex[0] + source.radii[1] - face[0]) / max(factor, 1.0))


@pytest.mark.parametrize("factor", [0.7, 1.2])
def test_depth_zoom_keeps_world_coordinates(factor):
    image = MetaTensor(blob((40.0, 80.0), 2.0), affine=torch.diag(torch.tensor([0.5, 0.5, 1.0, 1.0])))
    out = RandDepthZoom(1.0, (factor, factor))(image, CONVEX)
    where = out.affine @ torch.tensor([*center(out), 0.0, 1.0], dtype=torch.float64)
    assert where[:2].tolist() == pytest.approx([20.0, 40.0], abs=0.1)


@pytest.mark.parametrize(("source", "target"), [zoomed_geometry(CONVEX, 0.8), (CONVEX, LINEAR)])
def test_labels_follow_the_image(source, target):
    label = ((blob((70.0, 75.0), 12.0) > 0.5).long() * 3).to(torch.uint8)
    image = torch.where(CONVEX.mask(SIZE), 0.2 + 0.2 * label, 0)
    moved, moved_label = change_geometry(image, source, target), change_geometry(label, source, target, "nearest")
    assert moved_label.dtype == torch.uint8 and set(moved_label.unique().tolist()) == {0, 3}
    seen, expected = moved_label > 0, moved > 0.5
    dice = 2 * (seen & expected).sum() / (seen.sum() + expected.sum())
    assert float(dice) > 0.98


def test_field_of_view_of_the_result_is_that_of_the_new_beams_without_a_dark_rim():
    image = torch.where(CONVEX.mask(SIZE), 0.5, 0.0)
    out = change_geometry(image, CONVEX, LINEAR)
    assert torch.equal(out > 0.49, LINEAR.mask(SIZE))
    assert float(out[~LINEAR.mask(SIZE)].max()) == 0


def test_round_trip_gives_the_image_back():
    smooth = torch.where(CONVEX.mask(SIZE), 0.3 + 0.4 * blob((60.0, 75.0), 15.0), 0)
    back = change_geometry(change_geometry(smooth, CONVEX, LINEAR), LINEAR, CONVEX)
    core = ndimage.binary_erosion(np.asarray(CONVEX.mask(SIZE)[0]), iterations=3)
    assert np.abs(np.asarray(back - smooth)[0][core]).max() < 0.01


def test_three_dimensional_sector_zooms_about_its_face():
    volume = blob((18.0, 22.0, 22.0), 1.5, (32, 40, 40))
    out = change_geometry(volume, *zoomed_geometry(VOLUME, 0.8))
    assert center(out) == pytest.approx((15.5 + 2.5 / 0.8, 5 + 17 / 0.8, 19.5 + 2.5 / 0.8), abs=0.2)


def test_a_cine_shares_one_geometry():
    frame = torch.where(CONVEX.mask(SIZE), torch.rand(1, *SIZE), 0)
    out = change_geometry(frame[:, None].expand(-1, 4, -1, -1), CONVEX, LINEAR)
    assert torch.equal(out[:, 2], change_geometry(frame, CONVEX, LINEAR))


def test_dictionary_form_moves_labels_by_nearest_and_stores_the_new_beams():
    label = (blob((60.0, 70.0), 10.0) > 0.5).float()
    effect = RandDepthZoomd(["image", "label"], 1.0, 0.8, mode=["bilinear", "nearest"], geometry_key="beam")
    out = effect({"image": 0.5 * CONVEX.mask(SIZE).float(), "label": label, "beam": CONVEX})
    source, target = zoomed_geometry(CONVEX, 0.8)
    assert out["beam"] == effect.transform.geometry == target
    assert torch.equal(out["label"].as_tensor(), change_geometry(label, source, target, "nearest"))


@pytest.mark.parametrize("prob", [0.0, 1.0])
def test_predictions_can_be_brought_back_with_invertd(prob):
    image = MetaTensor(0.5 * CONVEX.mask(SIZE).float(), affine=torch.diag(torch.tensor([0.4, 0.4, 1.0, 1.0])))
    label = MetaTensor((blob((60.0, 70.0), 12.0) > 0.5).float())
    forward = Compose(
        [
            RandDepthZoomd(["image", "label"], prob, (1.1, 1.1), ["bilinear", "nearest"], "beam"),
        ]
    )
    out = forward({"image": image, "label": label, "beam": CONVEX})
    out["pred"] = out["label"].clone()
    back = Invertd("pred", transform=forward, orig_keys="label", nearest_interp=False, to_tensor=True)(out)["pred"]
    dice = 2 * (back * label).sum() / (back.sum() + label.sum())
    assert float(dice) > 0.97
    restored = forward.inverse({"image": out["image"], "label": out["label"]})
    torch.testing.assert_close(restored["image"].affine, image.affine)


@pytest.mark.parametrize(
    ("build", "words"),
    [
        (lambda: change_geometry(torch.zeros(1, 4, 4), CONVEX, VOLUME), "2D and 3D differ"),
        (lambda: change_geometry(torch.zeros(1, 4, 4), VOLUME, VOLUME), "needs a volume"),
        (lambda: change_geometry(torch.zeros(1, 4, 4), CONVEX, CONVEX, "cubic"), "mode must be"),
        (lambda: zoomed_geometry(CONVEX, 0.0), "factor must be positive|factor must be a positive"),
        (lambda: RandDepthZoom(factor=(0.0, 2.0)), "above 0"),
    ],
)
def test_mistakes_are_named(build, words):
    with pytest.raises(ValueError, match=words):
        build()
