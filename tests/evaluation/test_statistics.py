# Copyright (c) monai_usfm contributors
# SPDX-License-Identifier: Apache-2.0
"""Intervals and tests against closed forms and SciPy."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from monai_usfm.evaluation import Interval, PairedTest, bootstrap_interval, holm_adjust, paired_test


def test_the_bootstrap_interval_has_the_width_of_the_normal_theory():
    values = np.random.default_rng(0).normal(size=400)
    interval = bootstrap_interval(lambda i: values[i].mean(), range(400))
    half = 1.96 * values.std() / math.sqrt(400)
    assert interval.high - interval.low == pytest.approx(2 * half, rel=0.06)
    assert (interval.low + interval.high) / 2 == pytest.approx(values.mean(), abs=0.1 * half)


def test_the_ends_are_those_of_95_percent():
    values = np.repeat([0.0, 1.0], [7, 3])  # a draw without a one has 0.7 ** 10 = 2.8 %
    assert bootstrap_interval(lambda i: values[i].mean(), range(10), resamples=20_000).low == 0
    assert bootstrap_interval(lambda i: 1 - values[i].mean(), range(10), resamples=20_000).high == 1
    assert bootstrap_interval(lambda i: values[i].mean(), [0] * 7 + [1] * 3).low == 0  # of two patients
    found = PairedTest.of_draws(0.5, np.linspace(0, 1, 1001), 30)
    assert (found.low, found.high) == pytest.approx((0.025, 0.975))
    assert str(Interval(0.5, math.nan, math.nan, 1)) == "0.500"
    assert str(Interval(0.5, 0.25, 0.75, 2)) == "0.500 [0.250, 0.750]"


def test_repeated_images_of_a_patient_do_not_narrow_the_interval():
    values = np.random.default_rng(0).normal(size=100)
    single = bootstrap_interval(lambda i: values[i].mean(), range(100))
    ninefold = np.repeat(values, 9)
    repeated = bootstrap_interval(lambda i: ninefold[i].mean(), np.repeat(np.arange(100), 9).tolist())
    assert repeated.high - repeated.low == pytest.approx(single.high - single.low)
    assert repeated.count == 100


def test_cases_of_an_unknown_patient_are_kept_as_those_of_one():
    values = np.array([1.0, 2.0, 3.0, 4.0])
    found = bootstrap_interval(lambda i: values[i].mean(), ["a", None, "b", "b"])
    assert (found.count, found.value) == (3, 2.5)
    assert bootstrap_interval(lambda i: values[i].mean(), [None] * 4).count == 1


def test_wilcoxon_equals_scipy_on_patient_means():
    generator = np.random.default_rng(0)
    first, second = generator.normal(0.3, 1, 60), generator.normal(size=60)
    patients = (np.arange(60) // 2).tolist()
    means = (first - second).reshape(30, 2).mean(1)
    found = paired_test(first, second, patients)
    assert found.p_value == pytest.approx(stats.wilcoxon(means).pvalue)
    assert found.difference == pytest.approx(means.mean()) and found.count == 30


def test_equal_methods_are_not_told_apart():
    found = paired_test([0.1, 0.5, 0.9], [0.1, 0.5, 0.9])
    assert found.p_value == 1.0 and found.difference == 0.0
    assert PairedTest.of_draws(0.0, np.zeros(1000), 30).p_value == 1.0


def test_the_bootstrap_test_agrees_with_the_t_test_on_a_mean():
    generator = np.random.default_rng(1)
    values = generator.normal(0.15, 1, 200)
    draws = values[generator.integers(200, size=(10_000, 200))].mean(1)
    found = PairedTest.of_draws(values.mean(), draws, 200)
    assert found.p_value == pytest.approx(stats.ttest_1samp(values, 0).pvalue, abs=0.02)
    opposite = PairedTest.of_draws(-values.mean(), -draws, 200)
    assert opposite.p_value == found.p_value and opposite.low == pytest.approx(-found.high)


@pytest.mark.parametrize(("patients", "p_value"), [(2, 0.5), (3, 0.25), (30, 2 / 1001)])
def test_a_few_patients_of_one_sign_are_no_proof(patients: int, p_value: float) -> None:
    assert PairedTest.of_draws(0.1, np.full(1000, 0.1), patients).p_value == pytest.approx(p_value)


def test_the_interval_leaves_out_draws_without_a_value():
    values = np.array([1.0, 2.0, np.nan, 3.0])
    assert 1.0 <= bootstrap_interval(lambda i: values[i].mean(), range(4)).low <= 3.0


def test_holm_correction_of_a_textbook_example():
    # 0.005 * 4; 0.01 * 3; then 0.03 * 2; 0.04 * 1 is raised to its predecessor
    assert holm_adjust([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm_adjust([0.9, 0.8]) == [1, 1]


def test_scores_that_do_not_pair_up_are_refused():
    with pytest.raises(ValueError, match="3 and 2 cases"):
        paired_test([1, 2, 3], [1, 2])
    with pytest.raises(ValueError, match="2 and 2 cases, with a patient each"):
        paired_test([1, 2], [1, 2], ["a"])
    with pytest.raises(ValueError, match="at least two patients"):
        paired_test([1, 2], [1, 3], ["a", "a"])
    with pytest.raises(ValueError, match="1 of 3 pairs of scores are not finite"):
        paired_test([1, 2, float("nan")], [1, 2, 3])
