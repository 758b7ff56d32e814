# Copyright (c) monai_usfm contributors
# SPDX-License-Identifier: Apache-2.0
"""Organ-balanced sampling: closed-form weights, and draws that depend on seed and epoch alone."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from monai_usfm.data.sampler import OrganBalancedSampler, WeightedSampler, organ_balanced_weights

ORGANS = ["breast"] * 90 + ["eye"] * 9 + ["bone"]


@given(st.lists(st.sampled_from("abcd"), min_size=1, max_size=50), st.floats(0, 3))
@settings(max_examples=25, deadline=None)
def test_weights_are_a_power_of_the_organs_size(organs, temperature):
    weights = organ_balanced_weights(organs, temperature)
    counts = Counter(organs)
    raw = np.array([counts[organ] ** -float(temperature) for organ in organs])
    np.testing.assert_allclose(weights.numpy(), raw / raw.sum(), rtol=1e-9)


@pytest.mark.parametrize(("temperature", "shares"), [(1.0, [1 / 3, 1 / 3, 1 / 3]), (0.0, [0.9, 0.09, 0.01])])
def test_one_gives_organs_equal_shares_and_zero_gives_images_equal_shares(temperature, shares):
    weights = organ_balanced_weights(ORGANS, temperature)
    assert [weights[:90].sum(), weights[90:99].sum(), weights[99:].sum()] == pytest.approx(shares)


@pytest.mark.parametrize(
    ("organs", "temperature", "message"),
    [
        ([], 1, "there are no images"),
        (["a", None, ""], 1, r"2 of 3 images have no organ \(the first is number 1\)"),
        (["a"], -1, "temperature must be 0 or more"),
        (["a"], float("nan"), "temperature must be 0 or more"),
    ],
)
def test_wrong_input_is_refused(organs, temperature, message):
    with pytest.raises(ValueError, match=message):
        organ_balanced_weights(organs, temperature)


@pytest.mark.parametrize(("temperature", "shares"), [(1.0, [1 / 3, 1 / 3, 1 / 3]), (0.0, [0.9, 0.09, 0.01])])
def test_draws_have_the_shares_of_the_weights(temperature, shares):
    sampler = OrganBalancedSampler(ORGANS, temperature, num_samples=20000, seed=1)
    drawn = np.array(list(sampler))
    counts = [np.mean(drawn < 90), np.mean((drawn >= 90) & (drawn < 99)), np.mean(drawn == 99)]
    np.testing.assert_allclose(counts, shares, atol=4 * np.sqrt(0.25 / 20000))


def test_no_image_of_an_organ_comes_twice_before_all_have_come():
    drawn = [index for index in OrganBalancedSampler(ORGANS, num_samples=60, seed=1) if 90 <= index < 99]
    for start in range(0, len(drawn) - 8, 9):
        assert sorted(drawn[start : start + 9]) == list(range(90, 99))


def test_an_epoch_is_the_same_whatever_was_drawn_before():
    through = OrganBalancedSampler(ORGANS, seed=4)
    epochs = []
    for epoch in range(4):
        through.set_epoch(epoch)
        epochs.append(list(through))
    resumed = OrganBalancedSampler(ORGANS, seed=4)
    resumed.set_epoch(3)
    torch.rand(7)  # nor on the global generator
    assert list(resumed) == epochs[3] and len({tuple(epoch) for epoch in epochs}) == 4


def test_seeds_draw_differently_and_do_not_shift_into_each_others_epochs():
    draws = set()
    for seed in range(3):
        for epoch in range(3):
            sampler = OrganBalancedSampler(ORGANS, seed=seed)
            sampler.set_epoch(epoch)
            draws.add(tuple(sampler))
    assert len(draws) == 9
    for epoch in range(200):
        sampler = OrganBalancedSampler(ORGANS, num_samples=20, seed=9)
        sampler.set_epoch(epoch)
        draws.add(tuple(sampler))
    assert len(draws) == 209


@given(replicas=st.integers(1, 7), samples=st.integers(1, 60))
@settings(max_examples=20, deadline=None)
def test_processes_share_one_draw_without_overlap(replicas, samples):
    parts = [
        list(OrganBalancedSampler(ORGANS, num_samples=samples, seed=2, rank=rank, num_replicas=replicas))
        for rank in range(replicas)
    ]
    total = -(-samples // replicas) * replicas
    assert {len(part) for part in parts} == {total // replicas}
    interleaved = [part[step] for step in range(total // replicas) for part in parts]
    assert interleaved == list(OrganBalancedSampler(ORGANS, num_samples=total, seed=2, rank=0, num_replicas=1))


def test_the_length_is_fixed_and_true():
    sampler = OrganBalancedSampler(ORGANS, num_samples=37, rank=1, num_replicas=4)
    assert len(sampler) == len(list(sampler)) == 10


def test_the_global_generator_is_untouched():
    before = torch.get_rng_state()
    list(OrganBalancedSampler(ORGANS))
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize(
    ("options", "message"), [({"num_samples": 0}, "num_samples"), ({"rank": 2, "num_replicas": 2}, "rank must be in")]
)
def test_options_out_of_range_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        OrganBalancedSampler(ORGANS, **options)


@pytest.mark.parametrize("weights", [[1.0, -1.0], [0.0, 0.0], [], [1.0, float("nan")]])
def test_weights_that_draw_nothing_are_refused(weights):
    with pytest.raises(ValueError, match="with a positive sum"):
        WeightedSampler(weights)


def test_pairs_are_two_frames_of_one_sequence_in_every_process():
    sequences = [i // 3 for i in range(60)] + list(range(100, 140))
    whole = list(OrganBalancedSampler(ORGANS, num_samples=101, seed=4, sequences=sequences))
    assert len(whole) == 102
    for first, second in zip(whole[::2], whole[1::2], strict=True):
        assert sequences[first] == sequences[second]
        assert (first == second) == (first >= 60)  # an image alone is paired with itself
    halves = [
        list(OrganBalancedSampler(ORGANS, num_samples=100, seed=4, rank=r, num_replicas=2, sequences=sequences))
        for r in (0, 1)
    ]
    assert len(halves[0]) == len(halves[1]) == 50
    both = list(OrganBalancedSampler(ORGANS, num_samples=100, seed=4, sequences=sequences))
    pairs = list(zip(both[::2], both[1::2], strict=True))
    assert [list(zip(half[::2], half[1::2], strict=True)) for half in halves] == [pairs[::2], pairs[1::2]]
    resumed = OrganBalancedSampler(ORGANS, num_samples=100, seed=4, sequences=sequences)
    resumed.skip = 30
    assert list(resumed) == both[30:]
    with pytest.raises(ValueError, match="3 sequences for 100 images"):
        OrganBalancedSampler(ORGANS, sequences=[1, 2, 3])


def test_items_are_drawn_by_their_weights_in_parts_of_the_processes_and_resumed():
    weights = torch.tensor([0.0, 1.0, 3.0])
    whole = list(WeightedSampler(weights, 4000, seed=3))
    assert whole.count(0) == 0
    assert whole.count(2) / 4000 == pytest.approx(0.75, abs=0.03)
    parts = [list(WeightedSampler(weights, 4000, seed=3, rank=rank, num_replicas=2)) for rank in (0, 1)]
    assert [parts[i % 2][i // 2] for i in range(4000)] == whole
    again = WeightedSampler(weights, 4000, seed=3)
    again.skip = 100
    assert list(again) == whole[100:]
    again.set_epoch(1)
    assert list(again) != whole
