# Copyright (c) monai_usfm contributors
# SPDX-License-Identifier: Apache-2.0
"""What holds for every transform of the package: its dictionary form, aliases, backend, input contract, pairs."""

from __future__ import annotations

import inspect
import pickle

import pytest
import torch
from monai.transforms import MapTransform, Randomizable, ThreadUnsafe, Transform
from monai.utils import TransformBackends

import monai_usfm.data as data
import monai_usfm.transforms as transforms
from monai_usfm.transforms import effect
from monai_usfm.transforms.dictionary import DictionaryForm

ARRAYS = {
    name: value
    for name, value in vars(transforms).items()
    if isinstance(value, type) and issubclass(value, Transform) and not issubclass(value, MapTransform)
}
FORMS = {
    name: value
    for name, value in vars(transforms).items()
    if isinstance(value, type) and issubclass(value, DictionaryForm) and name.endswith("d")
}
EFFECTS = [name for name, value in ARRAYS.items() if issubclass(value, effect.RandEffect)]


@pytest.mark.parametrize("name", sorted(ARRAYS))
def test_every_transform_has_a_dictionary_form_with_its_aliases_and_backend(name):
    form = getattr(transforms, f"{name}d")
    assert getattr(transforms, f"{name}D") is form and getattr(transforms, f"{name}Dict") is form
    for transform in (ARRAYS[name], form):
        assert transform.backend and set(transform.backend) <= set(TransformBackends)


@pytest.mark.parametrize("package", [transforms, data])
def test_every_transform_names_its_backend_and_every_dictionary_form_has_the_aliases(package):
    classes = {n: c for n, c in vars(package).items() if isinstance(c, type) and issubclass(c, Transform)}
    assert all(c.backend and set(c.backend) <= set(TransformBackends) for c in classes.values())
    forms = {n: c for n, c in classes.items() if issubclass(c, MapTransform) and n.endswith("d")}
    assert forms and all(classes[f"{n[:-1]}{end}"] is c for n, c in forms.items() for end in ("D", "Dict"))


@pytest.mark.parametrize("name", sorted(FORMS))
def test_dictionary_forms_take_and_document_the_options_of_the_array_forms(name):
    form = FORMS[name]
    parameters = inspect.signature(form).parameters
    for option, parameter in inspect.signature(form.array).parameters.items():
        assert parameters[option].default == parameter.default
    for option in parameters:
        assert f"    {option}: " in form.__doc__ or f"{option}, " in form.__doc__ or f", {option}: " in form.__doc__
    assert issubclass(form, Randomizable) == issubclass(form.array, Randomizable)
    assert issubclass(form, ThreadUnsafe) == issubclass(form.array, ThreadUnsafe)


@pytest.mark.parametrize("name", sorted(set(ARRAYS) - {"ToBeamSpace", "FromBeamSpace", "LabelIndices"}))
def test_what_a_transform_keeps_of_an_image_makes_it_unsafe_for_threads(name):
    options = {
        "FourierBandStop": {"rings": [(0.2, 0.4)]},
        "FitBeam": {"fallback": None},
        "SeparableResize": {"spatial_size": (8, 8)},
    }
    transform = ARRAYS[name](**options.get(name, {}))
    before = vars(transform).copy()
    transform(torch.rand(1, 16, 16, generator=torch.Generator().manual_seed(0)))
    kept = {key: value for key, value in vars(transform).items() if before.get(key) is not value}
    assert isinstance(transform, ThreadUnsafe) or set(kept) <= {"_tracing"}


def test_a_form_survives_pickling_with_its_state():
    first = transforms.RandGaind("image", 1.0).set_random_state(3)
    second = pickle.loads(pickle.dumps(first))
    image = torch.full((1, 8, 8), 0.5)
    assert torch.equal(first({"image": image})["image"], second({"image": image})["image"])


def test_a_misspelled_option_is_refused_by_name():
    with pytest.raises(TypeError, match=r"RandGaind: .*gain"):
        transforms.RandGaind("image", gain=3)


@pytest.mark.parametrize("image", [torch.full((1, 16, 16), 200, dtype=torch.uint8), torch.full((1, 16, 16), 3.0)])
@pytest.mark.parametrize("name", [*sorted(EFFECTS), "RandSpeckleNoise"])
def test_values_that_are_not_in_the_unit_range_are_refused_whatever_the_draw(name, image):
    with pytest.raises(ValueError, match=r"\[0, 1\]"):
        ARRAYS[name](prob=0.0)(image)


def test_a_clipped_band_stop_can_be_followed_by_a_gain():
    image = (torch.rand(1, 64, 64, generator=torch.Generator().manual_seed(0)) > 0.5).float()
    ringing = transforms.RandFourierBandStop(1.0).set_random_state(0)(image)
    assert ringing.min() < -0.01
    with pytest.raises(ValueError, match="clip=True"):
        transforms.RandGain(0.0)(ringing)
    clipped = transforms.RandFourierBandStop(1.0, clip=True).set_random_state(0)(image)
    assert torch.equal(clipped, ringing.clamp(0, 1))
    transforms.RandGain(1.0)(clipped)


@pytest.mark.parametrize("name", sorted(n for n, c in ARRAYS.items() if issubclass(c, Randomizable)))
def test_ranges_take_one_number(name):
    for option, parameter in inspect.signature(ARRAYS[name]).parameters.items():
        if isinstance(parameter.default, tuple) and "Range" in str(parameter.annotation):
            ARRAYS[name](**{option: parameter.default[1]})


def test_one_number_for_a_gain_goes_both_ways():
    assert transforms.RandGain(gain_db=3).ranges["gain_db"] == (-3.0, 3.0)
