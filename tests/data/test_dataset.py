# Copyright (c) monai_usfm contributors
# SPDX-License-Identifier: Apache-2.0
"""The dataset that leaves unreadable files out and stores what it decoded."""

from __future__ import annotations

import logging
import time
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from monai.data import DataLoader, decollate_batch, set_track_meta
from monai.transforms import (
    CastToTyped,
    Lambdad,
    RandFlipd,
    RandGaussianNoised,
    Resized,
    SelectItemsd,
    ThreadUnsafe,
    Transform,
)
from PIL import Image
from torch.utils.data import SequentialSampler

from monai_usfm.bundle import training_loader
from monai_usfm.data import (
    LoadUltrasoundd,
    OrganBalancedSampler,
    ResidentImages,
    Uint8Store,
    UltrasoundDataset,
    UnreadableImageError,
    warn_absent_classes,
)
from monai_usfm.handlers.report import known_spacing

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


def masks(folder: Path, *values: list[int]) -> UltrasoundDataset:
    """A stored dataset of label maps with these values."""
    for number, row in enumerate(values):
        Image.fromarray(np.tile(np.array(row, np.uint8), (8, 8))).save(folder / f"mask_{number}.png")
    files = [{"label": str(folder / f"mask_{number}.png")} for number in range(len(values))]
    dataset = UltrasoundDataset(files, [LoadUltrasoundd("label", scale=None)], cache_dir=folder / "store")
    dataset.read_all()
    return dataset


def test_classes_that_no_label_shows_are_told(tmp_path: Path) -> None:
    for name in "ab":
        (tmp_path / name).mkdir()
    training, validation = masks(tmp_path / "a", [0, 1], [0, 2]), masks(tmp_path / "b", [0, 3], [0, 0])
    with pytest.warns(UserWarning, match="training images shows class 3: the network cannot learn it"):
        warn_absent_classes(training, validation, 4)
    with pytest.warns(UserWarning, match="validation images shows class 1, 2: "):
        warn_absent_classes(training, validation, 3)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warn_absent_classes(training, training, 3)


def test_an_unreadable_file_is_raised_as_itself(items):
    with pytest.raises(UnreadableImageError, match=r"1\.png: cannot be decoded .*truncated"):
        UltrasoundDataset(items, FIXED)[1]


def test_with_skipping_the_next_readable_item_takes_the_place(items):
    dataset = UltrasoundDataset(items, FIXED, skip_unreadable=True)
    assert [dataset[index]["number"] for index in range(7)] == [0, 3, 3, 3, 4, 5, 0]
    assert dataset[-1]["number"] == 0


def test_skipped_files_are_listed_and_logged_once(items, caplog):
    dataset = UltrasoundDataset(items, FIXED, skip_unreadable=True)
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            for index in range(7):
                dataset[index]
    assert [Path(path).name for path in dataset.skipped] == ["1.png", "2.png", "6.png"]
    assert [record.getMessage().count("left out") for record in caplog.records] == [1, 1, 1]


def test_what_a_worker_met_is_known_in_the_main_process(items):
    dataset = UltrasoundDataset(items, FIXED, skip_unreadable=True)
    for _ in DataLoader(dataset, batch_size=2, num_workers=1):
        pass
    assert [Path(path).name for path in dataset.skipped] == ["1.png", "2.png", "6.png"]


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
    transform = [*FIXED, RandGaussianNoised("image", prob=1.0)]

    def epoch(dataset: UltrasoundDataset) -> torch.Tensor:
        dataset.transform.set_random_state(5)
        return torch.stack([dataset[index]["image"] for index in range(7)])

    dataset = UltrasoundDataset(items, transform, skip_unreadable=True)
    first, second = epoch(dataset), epoch(dataset)  # the second time the bad files are known
    assert torch.equal(first, second)


def stored(items, transform, tmp_path, **options):
    return UltrasoundDataset(items, transform, cache_dir=tmp_path / "store", **options)


@pytest.fixture
def reads(monkeypatch) -> list[int]:
    """Numbers of the items that were read from their files."""
    seen, run = [], UltrasoundDataset._run

    def counted(self, index, end=None):
        seen.append(self.data[index]["number"])
        return run(self, index, end)

    monkeypatch.setattr(UltrasoundDataset, "_run", counted)
    return seen


@pytest.mark.parametrize("cache", [True, False])
def test_all_files_are_read_before_the_first_sample_and_the_first_wrong_one_is_raised(items, tmp_path, cache):
    dataset = UltrasoundDataset(items[:1] + items[3:], FIXED, cache_dir=tmp_path / "store" if cache else None)
    with pytest.raises(UnreadableImageError, match=r"6\.png: cannot be decoded"):
        dataset.read_all()


def test_what_was_read_once_is_not_read_by_samples_or_other_runs(items, tmp_path, reads):
    dataset = stored(good(items), FIXED, tmp_path)
    assert (dataset.read_all(), stored(good(items), FIXED, tmp_path).read_all()) == (4, 0)
    dataset[2]
    assert sorted(reads) == [0, 3, 4, 5]


def test_processes_share_the_reading(items, tmp_path, reads):
    assert [stored(good(items), FIXED, tmp_path).read_all(rank, 3) for rank in range(3)] == [2, 1, 1]
    assert sorted(reads) == [0, 3, 4, 5]


def test_with_skipping_nothing_is_read_before(items):
    assert UltrasoundDataset(items, FIXED, skip_unreadable=True).read_all() == 0


def test_stored_samples_equal_others_to_half_a_gray_level_from_the_first_time_on(items, tmp_path):
    plain, dataset = UltrasoundDataset(good(items), FIXED), stored(good(items), FIXED, tmp_path)
    for index in range(4):
        first, second = dataset[index], dataset[index]
        assert torch.equal(first["image"], second["image"])
        assert (second["image"] - plain[index]["image"]).abs().max() <= 0.5001 / 255
        assert second["number"] == plain[index]["number"]


def test_stored_validation_images_know_their_file_and_their_millimeters(items, tmp_path):
    set_track_meta(True)
    listed = [{**item, "spacing": [0.5, 0.25]} for item in good(items)]
    plain = UltrasoundDataset(listed, FIXED)
    for _ in range(2):  # of the fixed transforms, of the store
        batch = next(iter(DataLoader(stored(listed, FIXED, tmp_path), batch_size=4)))
        for image, expected in zip(decollate_batch(batch["image"]), plain, strict=True):
            assert image.meta["filename_or_obj"] == expected["image"].meta["filename_or_obj"]
            assert known_spacing(image) == known_spacing(expected["image"]) == [0.5, 0.25]
            assert known_spacing(image, image.shape[1:]) == known_spacing(expected["image"], (24, 32))


@pytest.mark.parametrize("cached", [False, True])
def test_keys_that_the_transforms_drop_stay_away_and_lists_of_other_keys_collate(items, tmp_path, cached):
    mixed = [{**item, "organ": "breast", **({"source": "one"} if i % 2 else {})} for i, item in enumerate(good(items))]
    steps = [*FIXED, SelectItemsd(["image", "organ"])]
    dataset = UltrasoundDataset(mixed, steps, cache_dir=tmp_path / "store" if cached else None)
    for _ in range(2):
        assert [set(sample) for sample in dataset] == [{"image", "organ"}] * 4
    batch = next(iter(DataLoader(dataset, batch_size=4)))
    assert batch["organ"] == ["breast"] * 4 and len(batch["image"]) == 4


def test_labels_are_stored_exactly_and_sizes_may_differ(items, tmp_path):
    pairs = [{**item, "label": item["image"]} for item in good(items)]
    load = LoadUltrasoundd(["image", "label"], scale=["auto", None])
    plain, dataset = UltrasoundDataset(pairs, [load]), stored(pairs, [load], tmp_path)
    for _ in range(2):
        for index in range(4):
            assert torch.equal(dataset[index]["label"], plain[index]["label"])
            assert dataset[index]["image"].shape == (1, 30 + pairs[index]["number"], 40)


def test_a_second_dataset_reads_no_file_and_a_subset_neither(items, tmp_path, reads):
    transform = [*FIXED, RandFlipd("image", prob=0.5)]
    images = [item["image"] for item in stored(good(items), transform, tmp_path, seed=1)]
    assert len(reads) == 4
    again = stored(good(items), transform, tmp_path, seed=1)
    assert all(torch.equal(again[index]["image"], images[index]) for index in (3, 1, 0, 2))
    stored(good(items)[2:], transform, tmp_path)[0]
    assert len(reads) == 4


def test_random_transforms_stay_random_after_the_store(items, tmp_path):
    dataset = stored(good(items), [*FIXED, RandGaussianNoised("image", prob=1.0)], tmp_path)
    assert not torch.equal(dataset[0]["image"], dataset[0]["image"])


@pytest.mark.parametrize("change", ["file", "note", "size", "frame"])
def test_what_changed_is_read_anew(items, tmp_path, reads, change):
    items, transform = good(items), list(FIXED)
    list(stored(items, transform, tmp_path))
    if change == "file":
        Image.fromarray(np.zeros((30, 40), np.uint8)).save(items[0]["image"])
    elif change == "note":
        Path(items[0]["image"] + ".json").write_text('{"spacing_mm": [0.2, 0.1]}')
    elif change == "size":
        transform[1] = Resized("image", (16, 16))
    else:  # whatever a transform may read from the item
        items[0]["frame"] = 0
    dataset = stored(items, transform, tmp_path)
    reads.clear()
    dataset[0], dataset[1]
    assert reads == ([0, 3] if change == "size" else [0])
    assert bool(dataset[0]["image"].any()) != (change == "file")


@pytest.mark.parametrize(("header", "pixels"), [("mhd", "raw"), ("nhdr", "raw.gz"), ("hdr", "img")])
def test_pixels_beside_a_header_are_part_of_an_image(tmp_path, header, pixels):
    store, item = Uint8Store(tmp_path / "store", []), {"image": str(tmp_path / f"a [1].{header}")}
    for ending in (header, pixels):
        (tmp_path / f"a [1].{ending}").write_bytes(b"0")
    before = store.key(item)
    (tmp_path / f"a [2].{pixels}").write_bytes(b"00")  # of another image
    assert store.key(item) == before
    (tmp_path / f"a [1].{pixels}").write_bytes(b"00")
    assert store.key(item) != before


@pytest.mark.parametrize("empty", [True, False])
def test_items_of_a_lost_shard_are_read_from_their_files_again(items, tmp_path, reads, empty):
    list(stored(good(items), FIXED, tmp_path))
    shard = next((tmp_path / "store").glob("*.bin"))
    shard.write_bytes(b"") if empty else shard.unlink()
    reads.clear()
    assert stored(good(items), FIXED, tmp_path)[0]["image"].any() and reads == [0]


def test_a_forked_process_writes_a_shard_of_its_own(tmp_path):
    store = Uint8Store(tmp_path, [])
    store.put({"image": "a"}, {"image": torch.zeros(1, 4, 4)})
    store._process = -1  # as a process finds it that was forked here
    store.put({"image": "b"}, {"image": torch.ones(1, 4, 4)})
    assert len(list(tmp_path.glob("*.bin"))) == 2


class Remembers(ThreadUnsafe, Transform):
    def __call__(self, data):
        self.number = data["number"]
        time.sleep(0.01)  # another thread takes its turn
        return {**data, "seen": torch.tensor([self.number])}


def test_threads_share_no_transform_that_keeps_something(items, tmp_path, monkeypatch):
    monkeypatch.setattr("os.cpu_count", lambda: 4)
    dataset = stored(good(items), [LOAD, Remembers()], tmp_path)
    dataset.read_all()
    assert [int(item["seen"]) for item in dataset] == [0, 3, 4, 5]


@pytest.mark.parametrize("damage", ["byte", "cut", "index"])
def test_a_damaged_item_is_read_from_its_file_again(items, tmp_path, reads, damage):
    wanted = [item["image"] for item in stored(good(items), FIXED, tmp_path)]
    shard, index = next((tmp_path / "store").glob("*.bin")), next((tmp_path / "store").glob("*.index"))
    if damage == "byte":
        content = bytearray(shard.read_bytes())
        content[-1] ^= 255
        shard.write_bytes(content)
    else:  # as a killed process or a full disk leaves it
        file = shard if damage == "cut" else index
        file.write_bytes(file.read_bytes()[:-5])
    dataset = stored(good(items), FIXED, tmp_path)
    reads.clear()
    for _ in range(2):
        assert all(torch.equal(dataset[number]["image"], wanted[number]) for number in range(4))
    assert reads == [5]


def test_unreadable_files_are_left_out_and_known(items, tmp_path):
    for _ in range(2):
        dataset = stored(items, FIXED, tmp_path, skip_unreadable=True)
        assert [dataset[index]["number"] for index in range(7)] == [0, 3, 3, 3, 4, 5, 0]
        assert [Path(path).name for path in dataset.skipped] == ["1.png", "2.png", "6.png"]
    with pytest.raises(UnreadableImageError, match=r"1\.png"):
        stored(items, FIXED, tmp_path)[1]


def test_workers_fill_shards_of_their_own_that_all_read(items, tmp_path, reads):
    dataset = stored(good(items), FIXED, tmp_path)
    batches = [batch["image"] for batch in DataLoader(dataset, batch_size=2, num_workers=2)]
    assert len(list((tmp_path / "store").glob("*.bin"))) == 2
    assert torch.equal(torch.stack([dataset[index]["image"] for index in range(4)]), torch.cat(batches))
    assert reads == []  # in this process


def large(x):
    return 300 * torch.cat([x] * 6)


def few(x):
    return x[:, :2, :2] - 0.5


def test_a_few_values_of_any_size_are_stored_exactly(items, tmp_path):
    steps = [*FIXED, Lambdad("image", few)]
    plain, dataset = UltrasoundDataset(good(items), steps), stored(good(items), steps, tmp_path)
    assert all(torch.equal(dataset[0]["image"], plain[0]["image"]) for _ in range(2))


def test_values_that_a_byte_does_not_hold_are_refused(items, tmp_path):
    with pytest.raises(ValueError, match=r"0\.png: values from .* the store holds \[0, 1\] and whole numbers"):
        stored(good(items), [*FIXED, Lambdad("image", large)], tmp_path)[0]


def renumbered(number):
    return number + 1


def test_other_entries_that_the_transforms_change_are_refused(items, tmp_path):
    with pytest.raises(ValueError, match="also made or changed 'number'"):
        stored(good(items), [*FIXED, Lambdad("number", renumbered)], tmp_path)[0]


def test_warnings_that_were_given_do_not_change_what_is_stored(items, tmp_path):
    steps = [LoadUltrasoundd("image")]
    list(stored(good(items), steps, tmp_path))
    steps[0].loaders[0].upright._warned.add("guessed")
    assert good(items)[0] in stored(good(items), steps, tmp_path)._store


def test_a_random_loader_cannot_be_stored(items, tmp_path):
    with pytest.raises(ValueError, match="nothing to store before the first random transform"):
        stored(items, [RandGaussianNoised("image")], tmp_path)


def test_transforms_that_cannot_be_told_apart_are_run_every_time(items, tmp_path, caplog):
    with caplog.at_level(logging.WARNING):
        dataset = stored(good(items), [*FIXED, Lambdad("image", lambda x: x / 2)], tmp_path)
    assert "decoded every time" in caplog.text
    assert dataset[0]["image"].any() and not (tmp_path / "store").exists()


def test_images_in_memory_are_told_apart_by_all_their_values(tmp_path):
    images = [torch.zeros(1, 40, 60), torch.zeros(1, 40, 60)]
    images[1][0, 20, 30] = 1
    dataset = stored([{"image": image} for image in images], [Resized("image", (20, 30))], tmp_path)
    assert [bool(dataset[k]["image"].any()) for k in (0, 1, 0)] == [False, True, False]


@pytest.mark.parametrize("drop_last", [False, True])
def test_a_resident_data_set_gives_the_batches_of_a_loader_and_leaves_the_same_randomness(items, tmp_path, drop_last):
    dataset = stored(good(items), FIXED, tmp_path)
    order = OrganBalancedSampler(["any"] * len(dataset), num_samples=11)
    loaders = [
        DataLoader(dataset, batch_size=3, sampler=order, drop_last=drop_last),
        training_loader(dataset, 3, order, "cpu", resident=True, drop_last=drop_last),
    ]
    found = []
    for loader in loaders:
        torch.manual_seed(0)
        for epoch in range(2):
            order.set_epoch(epoch)
            batches = [batch["image"] for batch in loader]
            found.append(torch.cat([*(x.flatten() for x in batches), torch.rand(3)]))
        assert len(loader) == len(batches) == (3 if drop_last else 4)
    assert all(torch.equal(a, b) for a, b in zip(found[:2], found[2:], strict=True))


def test_a_resident_data_set_refuses_what_would_be_drawn_once(items, tmp_path):
    dataset = stored(good(items), [*FIXED, RandFlipd("image", prob=0.5)], tmp_path)
    with pytest.raises(ValueError, match="no random transforms of single items: leave resident out"):
        ResidentImages(dataset, "cpu")


def test_a_resident_data_set_names_the_file_of_another_size(tmp_path):
    items = []
    for number, width in enumerate((32, 32, 40)):
        items.append({"image": str(tmp_path / f"{number}.png"), "file": f"{number}.png"})
        Image.fromarray(np.zeros((32, width), np.uint8)).save(items[-1]["image"])
    loader = training_loader(
        UltrasoundDataset(items, [LoadUltrasoundd("image")]), 1, SequentialSampler(items), "cpu", True
    )
    with pytest.raises(
        ValueError, match=r"image of 2\.png is \[1, 32, 40\], the first \[1, 32, 32\]: leave resident out"
    ):
        next(iter(loader))


def test_a_resident_data_set_holds_labels_as_bytes_and_collates_the_rest(tmp_path):
    items = [
        {"image": torch.full((1, 4, 4), k / 5), "label": torch.full((1, 4, 4), k).byte(), "part": k} for k in range(5)
    ]
    transform = CastToTyped("image", torch.float32)
    loader = training_loader(UltrasoundDataset(items, [transform]), 3, SequentialSampler(items), "cpu", True)
    batch = next(iter(loader))
    assert batch["label"][:, 0, 0, 0].tolist() == batch["part"].tolist() == [0, 1, 2]
    torch.testing.assert_close(batch["image"][:, 0, 0, 0], torch.tensor([0, 0.2, 0.4]), rtol=0, atol=1 / 510)
    wrong = [{**item, "label": item["label"].float()} for item in items]
    loader = training_loader(UltrasoundDataset(wrong, [transform]), 3, SequentialSampler(wrong), "cpu", True)
    with pytest.raises(ValueError, match=r"not the label of an item \(float32, 0 to 0\)"):
        next(iter(loader))


def test_a_resident_data_set_that_could_not_be_read_is_read_again(tmp_path):
    items = [{"image": torch.full((1, 4, 4), value)} for value in (0.5, 1.5)]
    transform = CastToTyped("image", torch.float32)
    loader = training_loader(UltrasoundDataset(items, [transform]), 1, SequentialSampler(items), "cpu", True)
    for _ in range(2):
        with pytest.raises(ValueError, match=r"images in \[0, 1\], not the image of an item \(float32, 1.5 to 1.5\)"):
            next(iter(loader))
