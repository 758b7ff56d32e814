# Copyright (c) monai_usfm contributors
# SPDX-License-Identifier: Apache-2.0
"""What inferences share: reading ahead, unreadable files, the most probable class."""

import threading

import pytest
import torch

from monai_usfm.bundle import class_indices
from monai_usfm.data import InferenceDataset, UnreadableImageError


def read(item):
    if item["image"] == "bad":
        raise UnreadableImageError("bad", "damaged.")
    return {**item, "thread": threading.get_ident()}


def test_items_read_ahead_are_those_of_the_list_in_its_order():
    items = [{"image": str(k)} for k in range(7)]
    dataset = InferenceDataset(items, read, ahead=3)
    for _ in range(2):
        found = [dataset[k] for k in range(7)]
        assert [item["image"] for item in found] == [item["image"] for item in items]
        assert all(item["thread"] != threading.get_ident() for item in found)


def test_an_error_met_ahead_is_raised_at_its_item():
    dataset = InferenceDataset([{"image": "good"}, {"image": "bad"}], read, False, ahead=1)
    assert dataset[0]["image"] == "good"
    with pytest.raises(UnreadableImageError, match="bad"):
        dataset[1]
    skipping = InferenceDataset([{"image": "bad"}], read, skip_unreadable=True, ahead=1)
    assert isinstance(skipping[0], UnreadableImageError)


@pytest.mark.parametrize("classes", [1, 2, 5])
def test_the_most_probable_class_is_that_of_argmax(classes):
    probabilities = torch.randint(0, 4, (classes, 30, 40), generator=torch.Generator().manual_seed(0)) / 4  # ties
    assert torch.equal(class_indices(probabilities).long(), probabilities.argmax(0, keepdim=True))
