# Copyright (c) monai_usfm contributors
# SPDX-License-Identifier: Apache-2.0
"""The dataset that leaves unreadable files out and caches decoded images."""

from __future__ import annotations

import logging
import os
import socket
from pathlib import Path

import numpy as np
import pytest
import torch
from monai.data import DataLoader, set_track_meta
from monai.transforms import Lambdad, RandFlipd, RandGaussianNoised, Resized, SelectItemsd
from PIL import Image

from monai_usfm.data import LoadUltrasoundd, UltrasoundDataset, UnreadableImageError

BAD = (1, 2, 6)
LOAD = LoadUltrasoundd("image")
FIXED = [LOAD, Resized("image", (24, 32), mode="bilinear", anti_aliasing=True)]


@pytest.fixture(autouse=True)
def untracked():
    set_track_meta(False)
    yield
    set_track_meta(True)


@pytest.fixture
def items(tmp_path) -> list[dict]:
    """Seven images of which number 1 is truncated, 2 is missing and 6 is no image."""
    found = []
    for index in range(7):
        path = tmp_path / f"{index}.png"
        noise = np.random.default_rng(index).integers(0, 256, (30 + index, 40), dtype=np.uint8)
        Image.fromarray(noise).save(path)
        found.append({"image": str(path), "number": index})
    truncated = tmp_path / "1.png"
    truncated.write_bytes(truncated.read_bytes()[:400])
    (tmp_path / "2.png").unlink()
    (tmp_path / "6.png").write_text("no image")
    return found


def good(items: list[dict]) -> list[dict]:
    return [item for index, item in enumerate(items) if index not in BAD]


def test_an_unreadable_file_is_raised_as_itself(items):
    with pytest.raises(UnreadableImageError, match=r"1\.png: cannot be decoded .*truncated"):
        UltrasoundDataset(items, FIXED)[1]


def test_with_skipping_the_next_readable_item_takes_the_place(items):
    dataset = UltrasoundDataset(items, FIXED, skip_unreadable=True)
    assert [dataset[index]["number"] for index in range(7)] == [0, 3, 3, 3, 4, 5, 0]
    assert dataset[-1]["number"] == 0


def test_skipped_files_are_listed_once_with_the_reason_and_logged_once(items, caplog):
    dataset = UltrasoundDataset(items, FIXED, skip_unreadable=True)
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            for index in range(7):
                dataset[index]
    assert [Path(path).name for path, _ in dataset.skipped] == ["1.png", "2.png", "6.png"]
    assert "no such file" in dataset.skipped[1][1]
    assert [record.getMessage().count("left out") for record in caplog.records] == [1, 1, 1]


def test_what_a_worker_met_is_known_in_the_main_process(items):
    dataset = UltrasoundDataset(items, FIXED, skip_unreadable=True)
    for _ in DataLoader(dataset, batch_size=2, num_workers=1):
        pass
    assert [Path(path).name for path, _ in dataset.skipped] == ["1.png", "2.png", "6.png"]
    assert "no such file" in dataset.skipped[1][1]


def test_errors_of_other_kinds_are_not_skipped(items):
    dataset = UltrasoundDataset(items, [*FIXED, Lambdad("image", lambda x: x / "two")], skip_unreadable=True)
    with pytest.raises(RuntimeError, match="applying transform"):
        dataset[0]


def test_a_list_without_a_readable_file_is_an_error(items):
    dataset = UltrasoundDataset([items[index] for index in BAD], FIXED, skip_unreadable=True)
    with pytest.raises(RuntimeError, match="none of the 3 files is readable"):
        dataset[1]


def test_an_empty_list_is_an_error():
    with pytest.raises(ValueError, match="the list of data is empty"):
        UltrasoundDataset([], FIXED)


def test_replacing_does_not_depend_on_what_was_met_before(items):
    transform = [LoadUltrasoundd("image", frame="random"), *FIXED[1:], RandGaussianNoised("image", prob=1.0)]

    def epoch(dataset: UltrasoundDataset) -> torch.Tensor:
        dataset.transform.set_random_state(5)
        return torch.stack([dataset[index]["image"] for index in range(7)])

    dataset = UltrasoundDataset(items, transform, skip_unreadable=True)
    first, second = epoch(dataset), epoch(dataset)  # the second time the bad files are known
    assert torch.equal(first, second)


def test_cached_samples_equal_uncached_ones_to_half_a_gray_level(items, tmp_path):
    plain = UltrasoundDataset(good(items), FIXED)
    cached = UltrasoundDataset(good(items), FIXED, cache_dir=tmp_path / "cache")
    for index in range(4):
        assert (cached[index]["image"] - plain[index]["image"]).abs().max() <= 0.5001 / 255
        assert cached[index]["number"] == plain[index]["number"]


@pytest.mark.parametrize("cached", [False, True])
def test_keys_that_the_transforms_drop_stay_away_and_lists_of_other_keys_collate(items, tmp_path, cached):
    mixed = [{**item, "organ": "breast", **({"source": "one"} if i % 2 else {})} for i, item in enumerate(good(items))]
    steps = [*FIXED, SelectItemsd(["image", "organ"])]
    dataset = UltrasoundDataset(mixed, steps, cache_dir=tmp_path / "cache" if cached else None)
    assert [set(sample) for sample in dataset] == [{"image", "organ"}] * 4
    batch = next(iter(DataLoader(dataset, batch_size=4)))
    assert batch["organ"] == ["breast"] * 4 and len(batch["image"]) == 4
    # another set of keys is another cache
    if cached:
        bare = UltrasoundDataset([{"image": item["image"]} for item in mixed], FIXED, cache_dir=tmp_path / "cache")
        assert [set(sample) for sample in bare] == [{"image"}] * 4


def test_a_second_dataset_reads_no_image_file(items, tmp_path):
    transform = [*FIXED, RandFlipd("image", prob=0.5)]
    first = UltrasoundDataset(good(items), transform, cache_dir=tmp_path / "cache")
    UltrasoundDataset._run, run = None, UltrasoundDataset._run  # reading would fail
    try:
        second = UltrasoundDataset(good(items), transform, cache_dir=tmp_path / "cache")
        images = []
        for dataset in (first, second):
            dataset.transform.set_random_state(1)
            images.append(dataset[2]["image"])
        assert torch.equal(*images)
    finally:
        UltrasoundDataset._run = run


def test_random_transforms_stay_random_after_the_cache(items, tmp_path):
    dataset = UltrasoundDataset(good(items), [*FIXED, RandGaussianNoised("image", prob=1.0)], cache_dir=tmp_path / "c")
    assert not torch.equal(dataset[0]["image"], dataset[0]["image"])


@pytest.mark.parametrize("change", ["file", "size", "list", "frame", "spacing"])
def test_any_change_builds_another_cache(items, tmp_path, change):
    items, transform = good(items), list(FIXED)
    UltrasoundDataset(items, transform, cache_dir=tmp_path / "cache")
    if change == "file":
        Image.fromarray(np.zeros((30, 40), np.uint8)).save(items[0]["image"])
    elif change == "size":
        transform[1] = Resized("image", (16, 16))
    elif change == "list":
        items = items[::-1]
    else:  # whatever a transform may read from the item
        items[0][change] = 0
    dataset = UltrasoundDataset(items, transform, cache_dir=tmp_path / "cache")
    assert len(list((tmp_path / "cache").iterdir())) == 2
    if change == "file":
        assert not dataset[0]["image"].any()


def test_an_interrupted_build_leaves_nothing_and_the_next_one_succeeds(items, tmp_path, monkeypatch):
    def interrupted(self, index, end=None):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(UltrasoundDataset, "_run", interrupted)
        UltrasoundDataset(good(items), FIXED, cache_dir=tmp_path / "cache")
    assert list((tmp_path / "cache").iterdir()) == []
    assert UltrasoundDataset(good(items), FIXED, cache_dir=tmp_path / "cache")[0]["image"].any()


def test_what_a_killed_build_left_is_not_used_and_is_removed(items, tmp_path):
    finished = UltrasoundDataset(good(items), FIXED, cache_dir=tmp_path / "cache")
    folder = finished._cache.folder
    dead = folder.with_name(folder.name + f".part-{socket.gethostname()}-99999999")
    folder.rename(dead)
    (dead / "skipped.json").unlink()
    dataset = UltrasoundDataset(good(items), FIXED, cache_dir=tmp_path / "cache")
    assert [path.name for path in (tmp_path / "cache").iterdir()] == [folder.name]
    assert dataset[0]["image"].any()


def test_what_a_killed_build_of_this_number_left_is_replaced(items, tmp_path):
    finished = UltrasoundDataset(good(items), FIXED, cache_dir=tmp_path / "cache")
    folder = finished._cache.folder
    folder.rename(folder.with_name(folder.name + f".part-{socket.gethostname()}-{os.getpid()}"))
    assert UltrasoundDataset(good(items), FIXED, cache_dir=tmp_path / "cache")[0]["image"].any()
    assert [path.name for path in (tmp_path / "cache").iterdir()] == [folder.name]


def test_the_cache_remembers_unreadable_files(items, tmp_path):
    for _ in range(2):  # built, then opened
        dataset = UltrasoundDataset(items, FIXED, skip_unreadable=True, cache_dir=tmp_path / "cache")
        assert [dataset[index]["number"] for index in range(7)] == [0, 3, 3, 3, 4, 5, 0]
        assert [Path(path).name for path, _ in dataset.skipped] == ["1.png", "2.png", "6.png"]
    with pytest.raises(UnreadableImageError, match=r"1\.png"):
        UltrasoundDataset(items, FIXED, cache_dir=tmp_path / "cache")


def test_the_cache_works_in_workers(items, tmp_path):
    dataset = UltrasoundDataset(good(items), FIXED, cache_dir=tmp_path / "cache")
    expected = torch.stack([dataset[index]["image"] for index in range(4)])
    batch = next(iter(DataLoader(dataset, batch_size=4, num_workers=1)))
    assert torch.equal(batch["image"], expected)


def test_images_of_different_size_are_refused_by_the_cache(items, tmp_path):
    with pytest.raises(ValueError, match=r"3\.png: shape .* a cache needs one size"):
        UltrasoundDataset(good(items), [LOAD], cache_dir=tmp_path / "cache")
    assert list((tmp_path / "cache").iterdir()) == []


def test_values_outside_the_unit_range_are_refused_by_the_cache(items, tmp_path):
    transform = [LoadUltrasoundd("image", scale=None), *FIXED[1:]]
    with pytest.raises(ValueError, match=r"0\.png: values from .* the cache holds \[0, 1\] only"):
        UltrasoundDataset(good(items), transform, cache_dir=tmp_path / "cache")


def test_a_random_loader_cannot_be_cached(items, tmp_path):
    with pytest.raises(ValueError, match="nothing to cache before the first random transform"):
        UltrasoundDataset(items, [LoadUltrasoundd("image", frame="random")], cache_dir=tmp_path / "cache")


def test_labels_cannot_be_cached(items, tmp_path):
    pairs = [{**item, "label": item["image"]} for item in good(items)]
    transform = [LoadUltrasoundd(["image", "label"]), Resized(["image", "label"], (24, 32))]
    with pytest.raises(ValueError, match="the cache holds 'image' only, but the transforms also made label"):
        UltrasoundDataset(pairs, transform, cache_dir=tmp_path / "cache")
