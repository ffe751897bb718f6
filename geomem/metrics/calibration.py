"""The threshold of a ratio at which few held-out images would count as copies."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from jaxtyping import Float

__all__ = ["Threshold", "calibrate"]


class Threshold(NamedTuple):
    """A quantile of held-out ratios and its interval over held-out images.

    >>> print(calibrate(np.linspace(0.2, 1, 2000)))
    0.201 [0, 0.202] (at most 0.1% of 2,000 held-out images below)

    Attributes:
      value: the largest threshold below which at most `rate` of the held-out ratios lie.
      low, high: interval of the quantile; low is 0 if there are too few images for a bound.
      rate: the accepted false-positive rate.
      total: number of held-out images.
    """

    value: float
    low: float
    high: float
    rate: float
    total: int

    def __str__(self) -> str:
        return (
            f"{self.value:.3g} [{self.low:.3g}, {self.high:.3g}] "
            f"(at most {self.rate:.1%} of {self.total:,} held-out images below)"
        )


def calibrate(
    ratios: Float[np.ndarray, " heldout"], rate: float = 0.001, confidence: float = 0.95
) -> Threshold:
    """Return the threshold of d1 / d2 that at most `rate` of held-out images fall below.

    The interval holds the true quantile with this confidence, whatever the distribution: the number
    of ratios below it is binomial, so two order statistics enclose it.

    Args:
      ratios: of images that were not trained on, each an independent draw.
      rate: accepted false-positive rate, in (0, 1).
      confidence: of the interval, conditional on the training set.

    Raises:
      ValueError: no ratios, or `rate` out of range.
    """
    from scipy.stats import binom

    if not 0 < rate < 1:
        raise ValueError(f"rate must be between 0 and 1, got {rate:g}.")
    ordered = np.sort(np.asarray(ratios, np.float64))
    total = len(ordered)
    if total == 0:
        raise ValueError("ratios must hold 1 or more values, got none.")
    tail = (1 - confidence) / 2
    # x_(i), counted from 1, is at most the quantile if at least i ratios lie below or on it.
    below = int(binom.ppf(tail, total, rate))
    above = int(binom.ppf(1 - tail, total, rate)) + 1
    return Threshold(
        float(ordered[int(rate * total)]),
        float(ordered[below - 1]) if below >= 1 else 0.0,
        float(ordered[above - 1]) if above <= total else 1.0,
        rate,
        total,
    )
