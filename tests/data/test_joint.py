# Copyright (c) monai_usfm contributors
# SPDX-License-Identifier: Apache-2.0
"""Several data sets as one list."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from PIL import Image

from monai_usfm.data import JointBatch, JointLabeld, joint_classes, joint_splits, joint_weights
from monai_usfm.transforms import BatchAugmentation


@pytest.fixture
def parts(tmp_path):
    for name in ("breast", "head"):
        for kind in ("image", "label"):
            (tmp_path / name / kind).mkdir(parents=True)
            for i in range(4):
                value = np.full((8, 8), 255 * (i % 2), np.uint8)
                if kind == "image":
                    value = np.random.default_rng(i).integers(0, 255, (8, 8), np.uint8)
                Image.fromarray(value).save(tmp_path / name / kind / f"{i}.png")
        items = [{"image": f"image/{i}.png", "label": f"label/{i}.png", "patient": f"{name}{i}"} for i in range(4)]
        content = {"training": items[:3], "validation": items[3:]}
        (tmp_path / name / "dataset.json").write_text(json.dumps(content))
    free = [{"image": f"breast/image/{i}.png", "organ": "breast"} for i in range(3)]
    (tmp_path / "free.json").write_text(json.dumps({"training": free}))
    return {
        "breast": {"dataset_dir": str(tmp_path / "breast"), "num_classes": 2},
        "unlabeled": {"datalist": str(tmp_path / "free.json")},
        "head": {"dataset_dir": str(tmp_path / "head"), "num_classes": 2},
        "off": None,
    }


def test_items_name_their_part_and_output(parts):
    splits = joint_splits(parts)
    assert [(i["part"], i["dataset"]) for i in splits["training"]] == (
        [("breast", 0)] * 3 + [("unlabeled", -1)] * 3 + [("head", 1)] * 3
    )
    assert [i["part"] for i in splits["validation"]] == ["breast", "head"]


def test_a_part_without_a_folder_is_simulated(parts, tmp_path):
    parts["simulated"] = {"dataset_dir": None, "datalist": None, "num_classes": 2}
    with pytest.raises(ValueError, match="'simulated' has neither dataset_dir nor datalist"):
        joint_splits(parts)
    settings = {"image_size": (32, 32), "num_training": 3, "num_validation": 2, "num_test": 1}
    splits = joint_splits(parts, tmp_path / "made", settings)
    counts = [sum(item["part"] == "simulated" for item in splits[split]) for split in ("training", "validation")]
    assert counts == [3, 2] and all("label" in i for i in splits["training"] if i["part"] == "simulated")


def test_a_validation_item_without_its_label_is_no_missing_list(parts, tmp_path):
    file = tmp_path / "head" / "dataset.json"
    listed = json.loads(file.read_text())
    file.write_text(json.dumps({"training": listed["training"]}))
    assert [i["part"] for i in joint_splits(parts)["validation"]] == ["breast"]
    del listed["validation"][0]["label"]
    file.write_text(json.dumps(listed))
    with pytest.raises(ValueError, match="label"):
        joint_splits(parts)


def test_files_are_read_as_their_items_say(parts, tmp_path):
    for i in range(4):  # 12 of 16 bits: white is 4095, also of the validation image, which is dark
        value = np.full((8, 8), 4095 if i < 3 else 1000, np.uint16)
        Image.fromarray(value).save(tmp_path / "head" / "image" / f"{i}.png")
    listed = json.loads((tmp_path / "head" / "dataset.json").read_text())
    listed["training"][0]["spacing"] = [0.2, 0.2]
    (tmp_path / "head" / "dataset.json").write_text(json.dumps(listed))
    splits = joint_splits(parts)
    items = [item for split in splits.values() for item in split if item["part"] == "head"]
    assert [item["full_scale"] for item in items] == [4095.0] * 4
    assert items[0]["spacing"] == [0.2, 0.2]


def test_parts_that_name_one_output_share_it(parts):
    parts["head"]["output"] = "breast"
    assert joint_classes(parts) == {"breast": 2}
    assert {i["dataset"] for i in joint_splits(parts)["training"]} == {0, -1}


def test_a_shared_output_of_other_classes_is_refused(parts):
    parts["head"] |= {"output": "breast", "num_classes": 3}
    with pytest.raises(ValueError, match="'head' has other num_classes"):
        joint_classes(parts)


def test_without_a_labeled_part_there_is_nothing_to_segment(parts):
    with pytest.raises(ValueError, match="none is labeled"):
        joint_classes({"unlabeled": parts["unlabeled"]})


def test_parts_get_their_share_whatever_their_size():
    items = [{"part": "a", "organ": "x", "image": str(i)} for i in range(9)] + [
        {"part": "b", "organ": "x", "image": "z"}
    ]
    weights = joint_weights(items, {"a": 3.0})
    assert float(weights[:9].sum()) == pytest.approx(0.75)
    assert float(weights[9]) == pytest.approx(0.25)


def test_frames_of_a_sequence_count_as_one_and_organs_are_evened_out():
    items = [{"part": "a", "organ": "liver", "image": str(i), "sequence": "s"} for i in range(10)]
    items += [{"part": "a", "organ": "eye", "image": f"e{i}"} for i in range(4)]
    for temperature, share in ((0.0, 1 / 5), (0.5, 1 / 3), (1.0, 1 / 2)):
        weights = joint_weights(items, temperature=temperature)
        assert float(weights[:10].sum()) == pytest.approx(share)
        assert float(weights[0]) == pytest.approx(share / 10)


def test_a_share_of_no_part_is_told(caplog):
    items = [{"part": "a", "organ": "x", "image": "1"}]
    assert joint_weights(items, {"a": 1.0, "lesons": 2.0}).tolist() == [1.0]
    assert "shares: no images of lesons; there are a." in caplog.text


def test_shares_that_draw_nothing_are_refused():
    with pytest.raises(ValueError, match="all are 0"):
        joint_weights([{"part": "a", "organ": "x", "image": "i"}], {"a": 0.0})


def test_labels_become_classes_and_unlabeled_images_get_an_empty_one(parts):
    transform = JointLabeld("label", parts)
    image = torch.rand(1, 4, 4)
    mask = torch.tensor([0.0, 255.0]).repeat(8).reshape(1, 4, 4)
    labeled = transform({"image": image, "label": mask, "part": "breast", "dataset": 0})
    assert labeled["label"].unique().tolist() == [0, 1]
    empty = transform({"image": image, "part": "unlabeled", "dataset": -1})
    assert empty["label"].shape == (1, 4, 4) and not empty["label"].any()


def test_a_batch_gives_image_label_and_data_set_to_the_network():
    augmentation = BatchAugmentation((8, 8), scale=(1, 1), ratio=(1, 1), rotate=0, flip=0, gamma=1)
    image = torch.randint(0, 256, (2, 1, 8, 8), dtype=torch.uint8)
    label = torch.randint(0, 2, (2, 1, 8, 8), dtype=torch.uint8)
    inputs, target, args, kwargs = JointBatch(augmentation)(
        {"image": image, "label": label, "dataset": torch.tensor([0, -1])}
    )
    torch.testing.assert_close(inputs, image / 255, atol=1e-5, rtol=0)
    assert target is None and kwargs == {}
    assert torch.equal(args[0], label) and args[1].tolist() == [0, -1]


def test_of_several_augmentations_each_batch_draws_one():
    batch = {name: torch.zeros(1, 1, 8, 8, dtype=torch.uint8) for name in ("image", "label")}
    prepare = JointBatch([BatchAugmentation((8, 8)), BatchAugmentation((16, 16))])
    sizes = {prepare({**batch, "dataset": torch.tensor([0])})[0].shape[-1] for _ in range(20)}
    assert sizes == {8, 16}
