# Copyright (c) monai_usfm contributors
# SPDX-License-Identifier: Apache-2.0
"""How sure a result is: bootstrap intervals, paired tests, correction for many comparisons.

Images of one patient are not independent, so everything here that works on cases works on patients.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike
from scipy import stats

__all__ = ["Interval", "PairedTest", "bootstrap_interval", "holm_adjust", "paired_test"]


@dataclass(frozen=True)
class Interval:
    """A value with its confidence interval.

    Args:
        value: the estimate.
        low: lower end; NaN where it cannot be told.
        high: upper end.
        count: patients behind it.
    """

    value: float
    low: float
    high: float
    count: int

    def __str__(self) -> str:
        return f"{self.value:.3f}" + ("" if np.isnan(self.low) else f" [{self.low:.3f}, {self.high:.3f}]")


@dataclass(frozen=True)
class PairedTest:
    """Comparison of two methods on the same patients.

    Args:
        difference: first minus second, mean over patients (or of the statistic that was compared).
        low: lower end of its 95 % bootstrap interval over patients.
        high: upper end.
        p_value: two-sided.
        count: patients.
    """

    difference: float
    low: float
    high: float
    p_value: float
    count: int

    @classmethod
    def of_draws(cls, difference: float, draws: np.ndarray, count: int) -> PairedTest:
        """The bootstrap test of a difference with these draws.

        The p-value is twice the share of draws on the far side of zero, one draw added to both (Davison and Hinkley
        1997, section 4.2); with few patients, of whom no draw may lie there, at least that of chance giving all their
        differences one sign, ``2 ** (1 - count)``.
        """
        low, high = np.percentile(draws, [2.5, 97.5])
        tail = (1 + min((draws <= 0).sum(), (draws >= 0).sum())) / (1 + len(draws))
        return cls(difference, float(low), float(high), float(min(1.0, max(2 * tail, 2.0 ** (1 - count)))), count)


def _codes(patients: Sequence[Hashable]) -> np.ndarray:
    """A number for each patient, in order of appearance; the cases of an unknown one (None, NaN) are of one patient."""
    return pd.factorize(pd.Series(list(patients), dtype=object), use_na_sentinel=False)[0]


def bootstrap_interval(
    statistic: Callable[[np.ndarray], float],
    patients: Sequence[Hashable],
    resamples: int = 2000,
    seed: int = 0,
) -> Interval:
    """Percentile bootstrap over patients of any statistic: whole patients are drawn with replacement.

    Args:
        statistic: case indices (with repetitions) -> value, for example ``lambda i: f1(labels[i], predicted[i])``.
        patients: the patient of each case.
        resamples: draws; a draw for which the statistic is NaN (an AUC without positives) is left out.
        seed: of the draws.

    Returns:
        The interval; its ends are NaN where there are fewer than two patients.
    """
    members = list(pd.Series(range(len(patients))).groupby(_codes(patients)).indices.values())
    value, count = float(statistic(np.arange(len(patients)))), len(members)
    if count < 2:
        return Interval(value, np.nan, np.nan, count)
    drawn = np.random.default_rng(seed).integers(count, size=(resamples, count))
    draws = [float(statistic(np.concatenate([members[m] for m in draw]))) for draw in drawn]
    low, high = np.nanpercentile(draws, [2.5, 97.5])
    return Interval(value, float(low), float(high), count)


def paired_test(
    first: ArrayLike, second: ArrayLike, patients: Sequence[Hashable] | None = None, seed: int = 0
) -> PairedTest:
    """Is the first method better on the same cases? Signed ranks (Wilcoxon) of the patients' mean differences.

    Args:
        first: score of each case, for example Dice.
        second: the same cases scored with the other method.
        patients: the patient of each case; None takes every case for a patient.
        seed: of the bootstrap interval.

    Raises:
        ValueError: for scores that do not pair up or are not finite, or fewer than two patients.
    """
    a, b = np.ravel(first), np.ravel(second)
    if len(a) != len(b) or (patients is not None and len(patients) != len(a)):
        raise ValueError(f"the scores do not pair up: {len(a)} and {len(b)} cases, with a patient each.")
    unknown = int((~np.isfinite(a - b)).sum())
    if unknown:  # pandas would leave them out of the means in silence
        raise ValueError(f"{unknown} of {len(a)} pairs of scores are not finite; leave these cases out of both.")
    means = pd.Series(a - b).groupby(_codes(range(len(a)) if patients is None else patients)).mean().to_numpy()
    if len(means) < 2:
        raise ValueError("a paired test needs at least two patients.")
    p_value = float(stats.wilcoxon(means, zero_method="pratt").pvalue) if means.any() else 1.0
    interval = bootstrap_interval(lambda rows: float(means[rows].mean()), range(len(means)), seed=seed)
    return PairedTest(interval.value, interval.low, interval.high, p_value, len(means))


def holm_adjust(p_values: ArrayLike) -> list[float]:
    """p-values corrected for their number: the family-wise error stays below the level (Holm 1979)."""
    p = np.ravel(p_values)
    order = np.argsort(p)
    result = np.empty(len(p))
    result[order] = np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1)).clip(max=1.0)
    return result.tolist()
