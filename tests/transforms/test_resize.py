# Copyright (c) monai_usfm contributors
# SPDX-License-Identifier: Apache-2.0
"""Resizing by matrix products equals MONAI's, values and metadata, forward and back."""

import pytest
import torch
from monai.data import MetaTensor
from monai.transforms import Resize, Resized

from monai_usfm.transforms import SeparableResize, SeparableResized


@pytest.mark.parametrize(
    ("before", "after"), [((61, 83), (40, 30)), ((61, 83), (40, 90)), ((30, 20), (60, 40)), ((20, 24, 31), (9, 24, 15))]
)
def test_values_and_record_are_those_of_monai(before, after):
    image = MetaTensor(torch.rand(2, *before, generator=torch.Generator().manual_seed(1)))
    mode = "bilinear" if len(before) == 2 else "trilinear"
    theirs, ours = (kind(after, mode=mode, anti_aliasing=True) for kind in (Resize, SeparableResize))
    wanted, got = theirs(image), ours(image)
    torch.testing.assert_close(torch.Tensor(got), torch.Tensor(wanted), atol=3e-5, rtol=0)
    assert torch.equal(got.affine, wanted.affine)
    assert got.applied_operations[0].keys() == wanted.applied_operations[0].keys()
    torch.testing.assert_close(torch.Tensor(ours.inverse(got)), torch.Tensor(theirs.inverse(wanted)), atol=3e-5, rtol=0)


def test_labels_and_plain_tensors_are_resized_as_by_monai():
    item = {"image": torch.rand(1, 40, 50), "label": (torch.rand(1, 40, 50) > 0.5).float()}
    options = {"spatial_size": [24, 32], "mode": ["bilinear", "nearest"], "anti_aliasing": [True, False]}
    wanted, got = (kind(["image", "label"], **options)(item) for kind in (Resized, SeparableResized))
    assert torch.equal(torch.Tensor(got["label"]), torch.Tensor(wanted["label"]))
    torch.testing.assert_close(torch.Tensor(got["image"]), torch.Tensor(wanted["image"]), atol=3e-5, rtol=0)
    assert type(got["image"]) is torch.Tensor
    resize = SeparableResize([24, 32], mode="bilinear", anti_aliasing=True)
    array = resize(item["image"].numpy())
    assert torch.equal(torch.Tensor(array), got["image"]) and resize.inverse(array).shape == (1, 40, 50)
