"""Rates with exact confidence intervals, and paired comparisons of two rates."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool

__all__ = ["Comparison", "Mean", "Rate", "compare", "mean", "rate"]


class Rate(NamedTuple):
    """A rate `count / total` with its exact (Clopper-Pearson) confidence interval.

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
    """Two arms compared on the same seeds.

    Attributes:
      first, second: Rate of each arm.
      only_first, only_second: number of seeds flagged only in that arm.
      p: p-value of the exact two-sided sign (McNemar) test that both numbers have the same mean.
      difference: second rate minus first rate.
      low, high: paired bootstrap interval of the difference.
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
    """A mean over independent repetitions and its Student t interval (None for one repetition)."""

    mean: float
    low: float | None
    high: float | None


def mean(values: Sequence[float], confidence: float = 0.95) -> Mean:
    """Return the mean of `values` and its interval, e.g. for differences of paired training runs.

    >>> [round(x, 2) for x in mean([-0.33, -0.42, -0.22])]
    [-0.32, -0.57, -0.07]
    """
    from scipy.stats import t

    count, center = len(values), float(np.mean(values))
    if count < 2:
        return Mean(center, None, None)
    error = np.std(values, ddof=1) / np.sqrt(count)
    margin = float(t.ppf((1 + confidence) / 2, count - 1) * error)
    return Mean(center, center - margin, center + margin)


def rate(flags: Bool[np.ndarray, " samples"], confidence: float = 0.95) -> Rate:
    """Return the fraction of true `flags` with its exact Clopper-Pearson interval.

    Raises:
      ValueError: if there are no flags, or `confidence` is not in (0, 1).
    """
    from scipy.stats import binomtest

    flags = np.asarray(flags, bool)
    if flags.size == 0:
        raise ValueError("flags must not be empty.")
    if not 0 < confidence < 1:
        raise ValueError(f"confidence must be between 0 and 1, got {confidence:g}.")
    count, total = int(flags.sum()), flags.size
    low, high = binomtest(count, total).proportion_ci(confidence, method="exact")
    return Rate(count, total, count / total, float(low), float(high))


def compare(
    first: Bool[np.ndarray, " seeds"],
    second: Bool[np.ndarray, " seeds"],
    *,
    confidence: float = 0.95,
    bootstrap: int = 10_000,
    seed: int = 0,
) -> Comparison:
    """Compare the rates of two arms that were sampled from the same seeds.

    Args:
      first, second: flags of the same seeds in both arms.
      confidence: level of the intervals.
      bootstrap: number of resamples of the pairs.
      seed: seed of the bootstrap.

    Raises:
      ValueError: if the arms differ in length or are empty.
    """
    from scipy.stats import binomtest

    first, second = np.asarray(first, bool), np.asarray(second, bool)
    if first.shape != second.shape:
        raise ValueError(f"second must have {len(first)} flags like first, got {len(second)}.")
    rates = rate(first, confidence), rate(second, confidence)
    total = first.size
    only_first, only_second = int((first & ~second).sum()), int((second & ~first).sum())
    discordant = only_first + only_second
    p = binomtest(only_first, discordant).pvalue if discordant else 1.0
    # Resampling the pairs is a multinomial draw from these three kinds of pairs.
    shares = np.array([only_first, only_second, total - discordant]) / total
    draws = np.random.default_rng(seed).multinomial(total, shares, size=bootstrap)
    differences = (draws[:, 1] - draws[:, 0]) / total
    tail = (1 - confidence) / 2
    low, high = np.quantile(differences, [tail, 1 - tail])
    difference = (only_second - only_first) / total
    return Comparison(
        *rates, only_first, only_second, float(p), difference, float(low), float(high)
    )
