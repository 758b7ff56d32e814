# Copyright (c) monai_usfm contributors
# SPDX-License-Identifier: Apache-2.0
"""What inferences share: reading ahead, unreadable files, the most probable class."""

import threading

import numpy as np
import pytest
import torch
from PIL import Image

from monai_usfm import build_network, save_network
from monai_usfm.bundle import class_indices
from monai_usfm.data import InferenceDataset, UnreadableImageError
from monai_usfm.workflow import load_bundle


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


@pytest.mark.filterwarnings("ignore:.*values of type")
def test_a_client_that_knows_no_datalist_reads_an_image_with_the_white_of_the_card(tmp_path):
    tiny = {"network_size": "custom", "num_layers": 1, "hidden_size": 24, "mlp_dim": 48, "num_heads": 3}
    network = build_network("classification", **tiny, spatial_size=32)
    save_network(tmp_path / "x.pt", network, preprocessing={"full_scale": 4095.0})
    Image.fromarray(np.full((40, 36), 200, np.uint16)).save(tmp_path / "dark.png")
    places = {"dataset_dir": str(tmp_path), "output_dir": str(tmp_path / "out"), "checkpoint": str(tmp_path / "x.pt")}
    parser = load_bundle("classification", "predict", **places).parser
    dataset, preprocessing = (parser.get_parsed_content(name) for name in ("dataset", "preprocessing"))
    alone = preprocessing({"image": str(tmp_path / "dark.png")})["image"]  # as MONAI Label asks
    assert float(alone.max()) == pytest.approx(200 / 4095, rel=1e-3)
    torch.testing.assert_close(alone, dataset[0]["image"])
