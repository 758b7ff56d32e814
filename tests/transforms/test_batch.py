# Copyright (c) monai_usfm contributors
# SPDX-License-Identifier: Apache-2.0
"""Batch augmentation: identity, geometry of image and label, statistics of its draws."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from monai_usfm.transforms import BatchAppearance, BatchAugmentation

STILL = {"scale": (1.0, 1.0), "ratio": (1.0, 1.0), "rotate": 0.0, "flip": 0.0, "gamma": 1.0}
SHAPES = [(12, 20), (6, 10, 14)]


@pytest.mark.parametrize("shape", SHAPES)
def test_settings_that_change_nothing_return_the_image(shape: tuple[int, ...]) -> None:
    image = torch.rand(3, 2, *shape)
    out, _ = BatchAugmentation(shape, **STILL).augment(image)
    assert torch.allclose(out, image, atol=1e-5)


@pytest.mark.parametrize("shape", SHAPES)
def test_flip_mirrors_the_last_axis_and_no_other(shape: tuple[int, ...]) -> None:
    image = torch.rand(2, 1, *shape)
    out, _ = BatchAugmentation(shape, **{**STILL, "flip": 1.0}).augment(image)
    assert torch.allclose(out, image.flip(-1), atol=1e-5)


def test_images_are_flipped_as_often_as_asked() -> None:
    torch.manual_seed(0)
    image = torch.linspace(0, 1, 8).expand(4000, 1, 4, 8)
    out, _ = BatchAugmentation((4, 8), **{**STILL, "flip": 0.3}).augment(image)
    flipped = (out[:, 0, 0, 0] > out[:, 0, 0, -1]).float().mean().item()
    assert flipped == pytest.approx(0.3, abs=4 * (0.3 * 0.7 / 4000) ** 0.5)


@pytest.mark.parametrize("shape", SHAPES)
def test_label_follows_the_image_exactly(shape: tuple[int, ...]) -> None:
    torch.manual_seed(1)
    # An image whose gray values are its classes: resampled like a label it must be the label.
    label = torch.randint(0, 4, (5, 1, *shape), dtype=torch.uint8)
    batch = {"image": label.float() / 3, "label": label}
    settings = {"rotate": 30.0, "scale": (0.4, 0.9), "gamma": 1.0, "label_key": "label"}
    torch.manual_seed(2)
    image, moved = BatchAugmentation(shape, **settings)(batch)
    torch.manual_seed(2)
    same, continuous = BatchAugmentation(shape, **settings, continuous_label=True)({**batch, "label": batch["image"]})
    assert torch.equal(same, image)
    assert torch.equal(continuous, image)
    assert moved.dtype == torch.uint8
    assert set(moved.unique().tolist()) <= {0, 1, 2, 3}
    # Inside blocks of one class, bilinear and nearest values are that class.
    blocks = torch.nn.functional.interpolate(label.float(), scale_factor=4)
    image, moved = BatchAugmentation([4 * n for n in shape], **settings)({"image": blocks / 3, "label": blocks})
    inside = (3 * image - (3 * image).round()).abs() < 1e-4
    assert inside.float().mean() > 0.3
    assert ((3 * image).round() == moved)[inside].float().mean() > 0.99


def test_rotation_is_rigid_in_pixels_of_an_image_that_is_not_square(monkeypatch: pytest.MonkeyPatch) -> None:
    # A point at a known place of a 41 x 81 image, turned by exactly 20 degrees about the center.
    rows, columns = torch.meshgrid(torch.arange(41.0), torch.arange(81.0), indexing="ij")
    image = torch.exp(-((rows - 12) ** 2 + (columns - 58) ** 2) / 8)[None, None]
    draws = iter([0.5, 0.5, 0.5, 1.0, 0.5])  # scale, ratio, center, angle at its limit, no flip
    monkeypatch.setattr(torch, "rand", lambda *shape, **_: torch.full(shape, next(draws)))
    out, _ = BatchAugmentation((41, 81), **{**STILL, "rotate": 20.0}).augment(image)
    mass = out[0, 0] / out.sum()
    found = np.array([(mass * rows).sum().item() - 20, (mass * columns).sum().item() - 40])
    start, angle = np.array([12 - 20, 58 - 40]), np.deg2rad(20)
    assert np.linalg.norm(found) == pytest.approx(np.linalg.norm(start), abs=0.05)  # rigid: the radius is kept
    turned = np.arctan2(found[0], found[1]) - np.arctan2(start[0], start[1])
    assert abs(turned) == pytest.approx(angle, abs=0.005)
    # Bell stays round: no shear.
    spread = [(mass * (axis - (mass * axis).sum()) ** 2).sum().item() for axis in (rows, columns)]
    assert spread[0] == pytest.approx(spread[1], rel=0.02)


def test_crop_has_the_share_of_the_image_it_was_asked_for() -> None:
    torch.manual_seed(0)
    ramp = torch.linspace(0, 1, 64)
    image = torch.stack([ramp[:, None].expand(64, 64), ramp[None].expand(64, 64)])[None].expand(200, -1, -1, -1)
    out, _ = BatchAugmentation((64, 64), **{**STILL, "scale": (0.25, 0.25)}).augment(image)
    height = out[:, 0, -1, 32] - out[:, 0, 0, 32]
    width = out[:, 1, 32, -1] - out[:, 1, 32, 0]
    assert torch.allclose(height * width, torch.tensor(0.25), atol=0.01)
    assert out[:, 0].amin() < 0.02 and out[:, 0].amax() > 0.98  # crops reach every edge


@pytest.mark.parametrize("shape", SHAPES)
def test_shrunk_images_are_whole_on_black_and_their_labels_with_them(shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    size = [(4 if len(shape) == 2 else 2) * n for n in shape]
    image = torch.ones(300, 1, *size)
    settings = {**STILL, "shrink_prob": 0.4}
    out, label = BatchAugmentation(size, **settings).augment(image, image)
    assert torch.allclose(out, label, atol=1e-5)
    share = out.flatten(1).mean(1)  # of the output that the image covers; a crop of the whole image covers all
    shrunk = share < 0.999
    assert shrunk.float().mean().item() == pytest.approx(0.4, abs=4 * (0.24 / 300) ** 0.5)
    for axis, length in enumerate(size):
        lines = out[shrunk].flatten(1).reshape(-1, *size).amax(dim=[d + 1 for d in range(len(size)) if d != axis])
        side = (lines > 0.5).float().sum(1)  # whole: as long as the factor says, wherever it is put
        assert length / 2 - 1 <= side.min() < 0.62 * length and 0.85 * length < side.max() <= length
        assert torch.log(length / side).mean().item() == pytest.approx(np.log(2) / 2, abs=0.08)
        first = (lines > 0.5).float().argmax(1)
        assert (first == 0).float().mean() < 0.5 and first.float().mean() > 0.04 * length


def test_enlarged_image_is_not_darkened_at_its_edges() -> None:
    out, _ = BatchAugmentation((20, 32), **STILL).augment(torch.ones(1, 1, 10, 8))
    assert torch.allclose(out, torch.ones(1, 1, 20, 32), atol=1e-5)


def test_what_a_rotation_brings_in_from_outside_is_black() -> None:
    torch.manual_seed(0)
    image = torch.ones(40, 1, 32, 32)
    out, label = BatchAugmentation((32, 32), **{**STILL, "rotate": 45.0}).augment(image, image)
    assert torch.allclose(out, label, atol=1e-5)
    assert ((out == 0) | ((out - 1).abs() < 1e-5)).all()
    assert (out[:, 0, 0, 0] == 0).float().mean() > 0.9
    assert (out[:, :, 8:24, 8:24] > 0.5).all()


def test_gamma_keeps_order_and_range_and_is_drawn_evenly_both_ways() -> None:
    torch.manual_seed(0)
    image = torch.full((4000, 1, 2, 2), 0.5)
    out, _ = BatchAugmentation((2, 2), **{**STILL, "gamma": 2.0}).augment(image)
    power = torch.log(out[:, 0, 0, 0]) / np.log(0.5)
    assert 0.5 <= power.min() < 0.52 and 1.94 < power.max() <= 2.001
    assert torch.log(power).mean().item() == pytest.approx(0.0, abs=0.03)


def test_bytes_are_scaled_and_the_batch_is_not_edited() -> None:
    image = torch.full((1, 1, 8, 8), 51, dtype=torch.uint8)
    out, target = BatchAugmentation((8, 8), **STILL)({"image": image})
    assert torch.allclose(out, torch.tensor(0.2))
    assert target is out
    assert (image == 51).all() and image.dtype == torch.uint8


def test_a_continuous_label_is_scaled_as_its_image_and_other_types_are_refused() -> None:
    image = torch.randint(256, (2, 1, 8, 8), dtype=torch.uint8)
    augment = BatchAugmentation((8, 8), label_key="label", continuous_label=True)
    out, label = augment({"image": image, "label": image})
    assert torch.equal(out, label) and out.max() <= 1
    with pytest.raises(ValueError, match="uint8 or floats"):
        augment({"image": image.int(), "label": image})


def test_label_that_is_no_image_is_passed_on() -> None:
    batch = {"image": torch.rand(3, 1, 8, 8), "class": torch.tensor([2, 0, 1])}
    _, label = BatchAugmentation((8, 8), label_key="class")(batch)
    assert torch.equal(label, batch["class"])


def test_output_has_the_size_asked_for() -> None:
    out, _ = BatchAugmentation((8, 24)).augment(torch.rand(2, 1, 20, 30))
    assert out.shape == (2, 1, 8, 24)


@given(
    st.lists(st.integers(5, 33), min_size=2, max_size=3),
    st.integers(4, 40),
    st.floats(0.05, 1.0),
    st.floats(1.0, 3.0),
    st.floats(0.0, 180.0),
    st.floats(1.0, 4.0),
    st.floats(0.0, 1.0),
    st.integers(0, 2**31),
)
@settings(max_examples=60, deadline=None)
def test_whatever_is_drawn_the_output_is_an_image_and_its_label(
    shape: list[int], side: int, share: float, ratio: float, rotate: float, gamma: float, shrink_prob: float, seed: int
) -> None:
    augmentation = BatchAugmentation(
        [side] * len(shape), (share, 1.0), (1 / ratio, ratio), rotate, 0.5, gamma, shrink_prob, 1.0 + ratio
    )
    generator = torch.Generator().manual_seed(seed)
    image = torch.rand(3, 1, *shape, generator=generator)
    label = torch.randint(0, 4, (3, 1, *shape), generator=generator) * 7
    torch.manual_seed(seed)
    first, moved = augmentation.augment(image, label)
    torch.manual_seed(seed)
    second, again = augmentation.augment(image, label)
    assert first.shape == moved.shape == (3, 1, *[side] * len(shape))
    assert first.min() >= 0 and first.max() <= 1 + 1e-6
    assert moved.dtype == label.dtype and set(moved.unique().tolist()) <= {0, 7, 14, 21}
    assert torch.equal(first, second) and torch.equal(moved, again)


@pytest.mark.parametrize(
    "bad",
    [
        {"scale": (0.0, 1.0)},
        {"scale": (0.5, 1.5)},
        {"ratio": (2.0, 1.0)},
        {"gamma": 0.5},
        {"flip": 1.5},
        {"rotate": -1.0},
        {"shrink_prob": 1.5},
        {"shrink_prob": 2.0},
    ],
)
def test_range_out_of_bounds_is_refused(bad: dict) -> None:
    with pytest.raises(ValueError, match=r"must be|need"):
        BatchAugmentation((8, 8), **bad)


def test_appearance_keeps_black_and_range() -> None:
    torch.manual_seed(0)
    image = torch.rand(6, 1, 32, 32)
    image[..., :8] = 0
    changed = BatchAppearance(prob=1.0)(image)
    assert changed[..., :8].max() == 0
    assert changed.min() >= 0 and changed.max() <= 1 and not torch.equal(changed, image)


def test_appearance_without_probability_changes_nothing() -> None:
    image = torch.rand(3, 1, 16, 16).clamp(min=0.02)
    assert torch.allclose(BatchAppearance(prob=0.0)(image), image, atol=1e-6)


def test_style_gives_the_gray_values_of_the_source_and_keeps_the_order() -> None:
    image, source = torch.rand(1, 1, 16, 16), torch.rand(1, 1, 16, 16) ** 3
    appearance = BatchAppearance(style_share=1.0)
    torch.manual_seed(1)
    shares = torch.rand(2, 1, 1, 1, 1)
    torch.manual_seed(1)
    styled = appearance.style(image, source)
    rank = styled.flatten().argsort()
    mixed = torch.fft.rfftn(image, dim=(2, 3))
    other = torch.fft.rfftn(source, dim=(2, 3)).abs()
    mixed = torch.polar(torch.lerp(mixed.abs(), other, shares[0, 0]), mixed.angle())
    mixed = torch.fft.irfftn(mixed, s=(16, 16), dim=(2, 3))
    expected = mixed.flatten().sort().values.lerp(source.flatten().sort().values, shares[1].flatten())
    assert torch.allclose(styled.flatten()[rank], expected.clamp(0, 1), atol=1e-5)
    assert (mixed.flatten()[rank][int((styled == 0).sum()) :].diff() >= 0).all()  # clamped pixels have no order


def test_only_the_named_images_are_styled() -> None:
    image = torch.rand(4, 1, 16, 16).clamp(min=0.02)
    changed = BatchAppearance(prob=0.0, style_prob=1.0)(image, torch.tensor([1, 2]), torch.tensor([3]))
    same = [bool(torch.allclose(changed[i], image[i], atol=1e-6)) for i in range(4)]
    assert same == [True, False, False, True]
