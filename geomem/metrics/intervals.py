"""Fractions with exact intervals, and two fractions compared seed by seed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

__all__ = ["Comparison", "Mean", "Rate", "compare", "mean", "rate"]


class Rate(NamedTuple):
    """A fraction with its exact (Clopper-Pearson) confidence interval.

    >>> print(rate([True, False, False, False]))
    25.0% [0.6%, 80.6%] (1 of 4)
    """

    count: int
    total: int
    rate: float
    low: float
    high: float

    def __str__(self) -> str:
        interval = f"[{self.low:.1%}, {self.high:.1%}]"
        return f"{self.rate:.1%} {interval} ({self.count:,} of {self.total:,})"


class Comparison(NamedTuple):
    """Two arms on the same seeds.

    Attributes:
      first, second: their rates.
      only_first, only_second: seeds that are flagged in one arm only.
      p: of the exact two-sided sign (McNemar) test that such seeds fall on either side alike.
      difference: second minus first rate.
      low, high: its paired bootstrap interval.
    """

    first: Rate
    second: Rate
    only_first: int
    only_second: int
    p: float
    difference: float
    low: float
    high: float


class Mean(NamedTuple):
    """A mean over independent repetitions, with its Student t interval (None for only one)."""

    mean: float
    low: float | None
    high: float | None


def mean(values: Sequence[float], confidence: float = 0.95) -> Mean:
    """The mean of `values` [R], say differences of R pairs of trainings, and where the true one is.

    >>> [round(x, 2) for x in mean([-0.33, -0.42, -0.22])]
    [-0.32, -0.57, -0.07]
    """
    from scipy.stats import t

    values = np.asarray(values, float)
    middle = float(values.mean())
    if len(values) < 2:
        return Mean(middle, None, None)
    error = values.std(ddof=1) / np.sqrt(len(values))
    reach = float(t.ppf((1 + confidence) / 2, len(values) - 1) * error)
    return Mean(middle, middle - reach, middle + reach)


def rate(flags: np.ndarray, confidence: float = 0.95) -> Rate:
    """The fraction of true `flags` [Q] with its exact Clopper-Pearson interval.

    Raises:
      ValueError: no flags, or a confidence that is not in (0, 1).
    """
    from scipy.stats import binomtest

    flags = np.asarray(flags, bool)
    if flags.size == 0:
        raise ValueError("flags: none, wanted 1 or more")
    if not 0 < confidence < 1:
        raise ValueError(f"confidence: {confidence:g}, wanted between 0 and 1")
    count, total = int(flags.sum()), flags.size
    low, high = binomtest(count, total).proportion_ci(confidence, method="exact")
    return Rate(count, total, count / total, float(low), float(high))


def compare(
    first: np.ndarray,
    second: np.ndarray,
    *,
    confidence: float = 0.95,
    bootstrap: int = 10_000,
    seed: int = 0,
) -> Comparison:
    """Compare two arms whose samples come from the same seeds, pair by pair.

    Args:
      first, second: bool [Q], the flags of the same seeds in both arms.
      confidence: of the intervals.
      bootstrap: resamplings of the pairs.
      seed: of the bootstrap.

    Returns:
      Comparison.

    Raises:
      ValueError: arms of different length, or empty ones.
    """
    from scipy.stats import binomtest

    first, second = np.asarray(first, bool), np.asarray(second, bool)
    if first.shape != second.shape:
        raise ValueError(f"second: shape {second.shape}, wanted {first.shape}, one flag per seed")
    rates = rate(first, confidence), rate(second, confidence)
    total = first.size
    lost, gained = int((first & ~second).sum()), int((second & ~first).sum())
    p = binomtest(lost, lost + gained).pvalue if lost + gained else 1.0
    # Resampled pairs are a multinomial draw: lost, gained, alike.
    shares = np.array([lost, gained, total - lost - gained]) / total
    draws = np.random.default_rng(seed).multinomial(total, shares, size=bootstrap)
    differences = (draws[:, 1] - draws[:, 0]) / total
    tail = (1 - confidence) / 2
    low, high = np.quantile(differences, [tail, 1 - tail])
    difference = (gained - lost) / total
    return Comparison(*rates, lost, gained, float(p), difference, float(low), float(high))
