# Copyright (c) monai_usfm contributors
# SPDX-License-Identifier: Apache-2.0
"""How sure a result is: intervals over seeds and patients, paired tests, correction for many comparisons.

Images of one patient are not independent, so everything here that works on cases works on patients.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats

__all__ = [
    "Interval",
    "PairedTest",
    "bootstrap_interval",
    "holm_adjust",
    "mean_interval",
    "paired_bootstrap",
    "paired_test",
    "patient_means",
]


@dataclass(frozen=True)
class Interval:
    """A value with its confidence interval.

    Args:
        value: the estimate.
        low: lower end; NaN where it cannot be told.
        high: upper end.
        count: independent observations behind it: seeds or patients.
    """

    value: float
    low: float
    high: float
    count: int

    def __str__(self) -> str:
        if np.isnan(self.low):
            return f"{self.value:.3f}"
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}]"


@dataclass(frozen=True)
class PairedTest:
    """Comparison of two methods on the same patients.

    Args:
        difference: first minus second, mean over patients (or of the statistic that was compared).
        low: lower end of its 95 % bootstrap interval over patients.
        high: upper end.
        p_value: two-sided.
        count: patients.
        method: the test.
    """

    difference: float
    low: float
    high: float
    p_value: float
    count: int
    method: str


def mean_interval(values: ArrayLike, confidence: float = 0.95) -> Interval:
    """Mean and Student-t interval of independent repetitions, for example seeds; one value has no interval.

    Raises:
        ValueError: for no values.
    """
    sample = _numbers(values)
    mean, count = float(sample.mean()), len(sample)
    if count == 1:
        return Interval(mean, np.nan, np.nan, 1)
    half = float(stats.t.ppf(0.5 + confidence / 2, count - 1) * sample.std(ddof=1) / np.sqrt(count))
    return Interval(mean, mean - half, mean + half, count)


def patient_means(values: ArrayLike, patients: Sequence[Hashable] | None = None) -> tuple[np.ndarray, list[Hashable]]:
    """Mean over the cases of each patient, in order of first appearance; None takes every case for a patient.

    Raises:
        ValueError: unless there is one patient for each value.
    """
    sample = _numbers(values)
    members = _members(patients, len(sample))
    return np.array([sample[rows].mean() for rows in members.values()]), list(members)


def bootstrap_interval(
    statistic: Callable[[np.ndarray], float],
    patients: Sequence[Hashable],
    confidence: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
) -> Interval:
    """Percentile bootstrap over patients of any statistic: whole patients are drawn with replacement.

    Args:
        statistic: case indices (with repetitions) -> value, for example ``lambda i: f1(labels[i], predicted[i])``.
        patients: the patient of each case.
        confidence: of the interval.
        resamples: draws; a draw for which the statistic is NaN (an AUC without positives) is left out.
        seed: of the draws.

    Returns:
        The interval; its ends are NaN where there are fewer than two patients.
    """
    if len(set(patients)) < 2:
        return Interval(float(statistic(np.arange(len(patients)))), np.nan, np.nan, len(set(patients)))
    draws = _bootstrap(statistic, patients, resamples, seed)
    tail = 100 * (1 - confidence) / 2
    low, high = np.nanpercentile(draws, [tail, 100 - tail])
    return Interval(float(statistic(np.arange(len(patients)))), float(low), float(high), len(set(patients)))


def paired_test(
    first: ArrayLike,
    second: ArrayLike,
    patients: Sequence[Hashable] | None = None,
    seed: int = 0,
) -> PairedTest:
    """Is the first method better on the same cases? Signed ranks (Wilcoxon) of the patients' mean differences.

    Args:
        first: score of each case, for example Dice.
        second: the same cases scored with the other method.
        patients: the patient of each case; None takes every case for a patient.
        seed: of the bootstrap interval.

    Raises:
        ValueError: for scores that do not pair up, or fewer than two patients.
    """
    a, b = _numbers(first), _numbers(second)
    if len(a) != len(b):
        raise ValueError(f"the scores do not pair up: {len(a)} and {len(b)} cases.")
    differences, names = patient_means(a - b, patients)
    if len(differences) < 2:
        raise ValueError("a paired test needs at least two patients.")
    p_value = float(stats.wilcoxon(differences, zero_method="pratt").pvalue) if differences.any() else 1.0
    interval = bootstrap_interval(lambda rows: float(differences[rows].mean()), names, seed=seed)
    return PairedTest(interval.value, interval.low, interval.high, p_value, len(differences), "wilcoxon")


def paired_bootstrap(
    difference: Callable[[np.ndarray], float], patients: Sequence[Hashable], resamples: int = 2000, seed: int = 0
) -> PairedTest:
    """Two-sided bootstrap test, over patients, of a difference that is no mean over cases, such as one of macro-F1.

    The p-value is twice the share of draws on the far side of zero, one draw added to both (Davison and Hinkley 1997,
    section 4.2).

    Args:
        difference: case indices (with repetitions) -> statistic of the first method minus that of the second; where no
            draw has one (an AUC without a class) all of the result is NaN.
        patients: the patient of each case.
        resamples: draws.
        seed: of the draws.

    Raises:
        ValueError: for fewer than two patients.
    """
    draws = _bootstrap(difference, patients, resamples, seed)
    draws = draws[np.isfinite(draws)]
    if len(draws) == 0:
        nan = float("nan")
        return PairedTest(nan, nan, nan, nan, len(set(patients)), "bootstrap")
    tail = (1 + min((draws <= 0).sum(), (draws >= 0).sum())) / (1 + len(draws))
    low, high = np.percentile(draws, [2.5, 97.5])
    value = float(difference(np.arange(len(patients))))
    return PairedTest(value, float(low), float(high), float(min(1.0, 2 * tail)), len(set(patients)), "bootstrap")


def holm_adjust(p_values: ArrayLike) -> list[float]:
    """p-values corrected for their number: the family-wise error stays below the level (Holm 1979)."""
    p = _numbers(p_values)
    order = np.argsort(p)
    adjusted = np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1)).clip(max=1.0)
    result = np.empty_like(adjusted)
    result[order] = adjusted
    return result.tolist()


def _bootstrap(
    statistic: Callable[[np.ndarray], float], patients: Sequence[Hashable], resamples: int, seed: int
) -> np.ndarray:
    members = list(_members(patients, len(patients)).values())
    if len(members) < 2:
        raise ValueError(f"a bootstrap over patients needs at least two of them, got {len(members)}.")
    generator = np.random.default_rng(seed)
    draws = generator.integers(len(members), size=(resamples, len(members)))
    return np.array([statistic(np.concatenate([members[m] for m in draw])) for draw in draws], dtype=float)


def _members(patients: Sequence[Hashable] | None, count: int) -> dict[Hashable, np.ndarray]:
    """Case indices of each patient, in order of first appearance."""
    patients = list(patients) if patients is not None else list(range(count))
    if len(patients) != count:
        raise ValueError(f"{len(patients)} patients for {count} cases; give one for each case.")
    rows: dict[Hashable, list[int]] = {}
    for case, patient in enumerate(patients):
        rows.setdefault(patient, []).append(case)
    return {patient: np.array(cases) for patient, cases in rows.items()}


def _numbers(values: ArrayLike) -> np.ndarray:
    array = np.asarray(values, dtype=float).reshape(-1)
    if len(array) == 0:
        raise ValueError("no values were given; at least one is needed.")
    return array
