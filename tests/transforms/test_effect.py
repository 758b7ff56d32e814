# Copyright (c) monai_usfm contributors
# SPDX-License-Identifier: Apache-2.0
"""The contract that every random effect keeps, and the region that effects act on."""

from __future__ import annotations

import ast
import inspect
import re

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from monai.data import MetaTensor, set_track_meta

import monai_usfm.transforms as transforms
from monai_usfm.physics.beam import sample_pixels
from monai_usfm.physics.display import from_power, to_power
from monai_usfm.transforms import BeamGeometry
from monai_usfm.transforms.effect import acting_region

EFFECTS = [
    "RandGain",
    "RandDepthAttenuation",
    "RandTimeGain",
    "RandDynamicRange",
    "RandAcousticShadow",
    "RandReverberation",
    "RandHaze",
]
CONVEX = BeamGeometry("convex", apex=(-20.0, 31.5), radii=(30.0, 80.0), angles=(-0.4, 0.4))


def build(name: str, prob: float = 1.0, seed: int = 0):
    return getattr(transforms, name)(prob=prob).set_random_state(seed)


def sector(seed: int = 0) -> torch.Tensor:
    """Random tissue inside CONVEX, black outside, (1, 64, 64)."""
    tissue = 0.2 + 0.6 * torch.rand((1, 64, 64), generator=torch.Generator().manual_seed(seed))
    return torch.where(CONVEX.mask((64, 64)), tissue, 0)


@pytest.mark.parametrize("prob", [0.0, 1.0])
@pytest.mark.parametrize("name", [*EFFECTS, "RandSpeckleNoise", "RandFourierBandStop"])
def test_plain_images_come_back_with_metadata_while_monai_tracks_them(name, prob):
    image, transform = torch.rand(1, 16, 16), build(name, prob)
    assert isinstance(transform(image), MetaTensor)
    set_track_meta(False)
    try:
        assert not isinstance(transform(image), MetaTensor)
    finally:
        set_track_meta(True)


@pytest.mark.parametrize("name", EFFECTS)
@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    shape=st.one_of(
        st.tuples(st.integers(1, 2), st.integers(1, 40), st.integers(1, 40)),
        st.tuples(st.just(1), st.integers(1, 6), st.integers(1, 20), st.integers(1, 20)),
    ),
    dtype=st.sampled_from([torch.float32, torch.float64, torch.float16]),
    low=st.sampled_from([0.0, 0.3, 1.0]),
    seed=st.integers(0, 2**16),
)
def test_every_effect_keeps_shape_type_and_range_and_repeats_bitwise(name, shape, dtype, low, seed):
    image = (low + (1 - low) * torch.rand(shape, generator=torch.Generator().manual_seed(seed))).to(dtype)
    before = image.clone()
    out = build(name, seed=seed)(image)
    assert out.shape == image.shape and out.dtype == image.dtype
    assert torch.equal(image, before)
    assert bool(torch.isfinite(out).all()) and float(out.min()) >= 0 and float(out.max()) <= 1
    assert torch.equal(out, build(name, seed=seed)(image))


@pytest.mark.parametrize("name", EFFECTS)
def test_nan_is_refused_with_one_clear_error(name):
    image = sector()
    image[0, 40, 30] = torch.nan
    with pytest.raises(ValueError, match="NaN"):
        build(name)(image)


@pytest.mark.parametrize("name", EFFECTS)
@pytest.mark.parametrize("know", ["geometry", "fov", "nothing"])
def test_outside_the_field_of_view_stays_exactly_black_and_inside_changes(name, know):
    image, mask = sector(), CONVEX.mask((64, 64))
    given_ = {"geometry": {"geometry": CONVEX}, "fov": {"fov": mask}, "nothing": {}}[know]
    out = build(name)(image, **given_)
    assert float(out[~mask].abs().max()) == 0
    assert not torch.equal(out, image)


@pytest.mark.parametrize("name", EFFECTS)
def test_probability_is_the_share_of_images_that_change(name):
    image, effect = sector()[:, 10:26, 20:36], build(name, prob=0.3, seed=1)
    draws = 200
    changed = 0
    for _ in range(draws):
        effect.randomize(image)
        changed += effect._do_transform
    assert abs(changed - 0.3 * draws) < 4 * (draws * 0.3 * 0.7) ** 0.5


@pytest.mark.parametrize("name", EFFECTS)
def test_dictionary_form_has_the_same_defaults_and_the_same_result(name):
    array, dictionary = getattr(transforms, name), getattr(transforms, name + "d")
    mine, theirs = inspect.signature(array).parameters, inspect.signature(dictionary).parameters
    assert {k: p.default for k, p in mine.items()}.items() <= {k: p.default for k, p in theirs.items()}.items()
    image = sector()
    item = {"a": image, "b": image, "beam": CONVEX, "other": 3}
    out = dictionary(["a", "b"], prob=1.0, geometry_key="beam").set_random_state(5)(item)
    expected = build(name, seed=5)(image, geometry=CONVEX)
    assert torch.equal(out["a"], expected) and torch.equal(out["b"], expected)
    assert out["other"] == 3 and item["a"] is image


@pytest.mark.parametrize("name", EFFECTS)
def test_global_random_state_is_untouched_and_metadata_kept(name):
    image = MetaTensor(sector(), affine=torch.diag(torch.tensor([0.3, 0.2, 1.0, 1.0])), meta={"origin": "probe"})
    np.random.seed(3)
    torch.manual_seed(3)
    expected = np.random.rand(), torch.rand(1)
    np.random.seed(3)
    torch.manual_seed(3)
    out = build(name)(image)
    assert (np.random.rand(), torch.rand(1)) == expected
    assert isinstance(out, MetaTensor) and out.meta["origin"] == "probe"


@pytest.mark.parametrize("name", EFFECTS)
def test_a_2d_geometry_serves_every_slice_of_a_volume(name):
    if name in ("RandHaze", "RandAcousticShadow"):
        pytest.skip("draws along the first axis too")
    image = sector()
    volume = image[:, None].expand(-1, 3, -1, -1)
    out, flat = build(name)(volume, geometry=CONVEX), build(name)(image, geometry=CONVEX)
    for index in range(3):
        torch.testing.assert_close(out[:, index], flat)


@pytest.mark.parametrize("name", EFFECTS)
def test_black_images_and_numpy_arrays_have_a_defined_result(name):
    assert torch.equal(build(name)(np.zeros((1, 16, 16), dtype=np.float32)), torch.zeros(1, 16, 16))


def test_region_without_knowledge_is_exact_for_a_sector_with_a_cyst():
    image, mask = sector(), CONVEX.mask((64, 64))
    image[0, 35:42, 28:36] = 0
    assert torch.equal(acting_region(image), mask)


def test_field_of_view_of_another_size_is_refused():
    with pytest.raises(ValueError, match="field of view must be"):
        acting_region(sector(), torch.ones(1, 8, 8))


def test_power_is_zero_for_black_and_inverts():
    values = torch.linspace(0, 1, 11, dtype=torch.float64)
    for dynamic_range in (60.0, None):
        power = to_power(values, dynamic_range)
        assert float(power[0]) == 0 and float(power[-1]) == pytest.approx(1, abs=1e-5)
        torch.testing.assert_close(from_power(power, dynamic_range), values, atol=1e-9, rtol=0)


@pytest.mark.parametrize("dims", [2, 3])
def test_sampling_at_pixel_centres_gives_the_pixels_and_zero_beyond_the_image(dims):
    image = torch.rand((2, *(5, 6, 7)[-dims:]))
    axes = [torch.arange(-1, n + 1, dtype=torch.float64) for n in image.shape[1:]]
    out = sample_pixels(image, torch.stack(torch.meshgrid(*axes, indexing="ij"), -1))
    padded = torch.nn.functional.pad(image, (1, 1) * dims)
    torch.testing.assert_close(out, padded, atol=1e-5, rtol=0)


def test_documented_defaults_are_those_of_the_code(repository):
    text = (repository / "docs" / "transforms.md").read_text(encoding="utf-8")
    documented = 0
    for line in text.splitlines():
        name = re.match(r"\| `(Rand\w+)`", line)
        if name is None:
            continue
        parameters = inspect.signature(getattr(transforms, name[1]).__init__).parameters
        for argument, value in re.findall(r"`(\w+)=([^`]+)`", line):
            assert parameters[argument].default == ast.literal_eval(value), (name[1], argument)
            documented += 1
    assert documented >= 14
