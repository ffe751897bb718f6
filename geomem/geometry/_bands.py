"""The results of `curves`: the curves with their bands, and what gives the bands.

All in NumPy: each small operation of JAX would be one more program to compile.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Key
from scipy import special

from geomem.geometry.exposure import Exposure
from geomem.points.exact import check_counts

__all__ = [
    "Curves",
    "Estimate",
    "Refinement",
    "bootstrap_fraction",
    "bootstrap_mean",
    "split",
    "stratified_mean",
]

_CONFIDENCE = 0.95
_FEW = 5.0  # differences between draws that are too few to tell their variance
_ROUNDING = 1e-5  # far above the rounding error of a value
_NORMALS = 2**24  # most random numbers drawn at once


class Estimate(NamedTuple):
    """The estimate of a curve at each noise level, with its bootstrap.

    Attributes:
      mean: the estimate.
      low, high: 95% interval, of `bootstrap_fraction`, `stratified_mean` or `bootstrap_mean`.
      replicates: random replicates of the mean.
    """

    mean: Float[np.ndarray, " levels"]
    low: Float[np.ndarray, " levels"]
    high: Float[np.ndarray, " levels"]
    replicates: Float[np.ndarray, "bootstrap levels"]

    def __repr__(self) -> str:
        """Return a summary of the size, without values."""
        return f"Estimate({self.mean.size} noise levels, {len(self.replicates)} replicates)"


class Refinement(NamedTuple):
    """A curve at further noise levels, from the same noise and the same bootstrap resamples.

    Attributes:
      sigma: ascending, inside the cells of the grid in which the curve changes most.
      mean, replicates: as in `Estimate`.
    """

    sigma: Float[np.ndarray, " levels"]
    mean: Float[np.ndarray, " levels"]
    replicates: Float[np.ndarray, "bootstrap levels"]

    def __repr__(self) -> str:
        """Return the number of levels, without values."""
        return f"Refinement({len(self.sigma)} noise levels)"


class Curves(NamedTuple):
    """C(sigma) and W(sigma) with bands and bounds, in float32.

    Attributes:
      sigma: noise levels, ascending.
      coverage: Estimate of C; its band is over held-out points and noise.
      coverage_lower_bound, coverage_upper_bound: certified, sampling-free bounds on the coverage of
        these held-out points: the means of max_i P_i and of min(1, sum_i P_i).
      max_weight: Estimate of W; its band is over noise, for these training points.
      own_weight: estimate of E w_1, the expected weight of the point that was noised; at most W.
      own_weight_lower_bound, own_weight_upper_bound: bounds on E w_1 from distances alone.
      coverage_refinement, max_weight_refinement: Refinement of each curve, or None.
      entropy: Estimate of the expected entropy of the posterior in nats, 0 to log N, or None. Like
        `effective_size`, it has only one replicate.
      effective_size: Estimate of the effective number of points, 1 / sum_j w_j^2, as its geometric
        mean, or None.
        With k copies of each point it is about k where W is about 1 / k.
      group_weight, group_weight_refinement: Estimate, as W, of the weight of a point together with
        its exact copies, or of the largest weight of one point if that is larger; None without
        copies.
      exposure: Exposure of the noised training points, or None.
    """

    sigma: Float[np.ndarray, " levels"]
    coverage: Estimate
    coverage_lower_bound: Float[np.ndarray, " levels"]
    coverage_upper_bound: Float[np.ndarray, " levels"]
    max_weight: Estimate
    own_weight: Float[np.ndarray, " levels"]
    own_weight_lower_bound: Float[np.ndarray, " levels"]
    own_weight_upper_bound: Float[np.ndarray, " levels"]
    coverage_refinement: Refinement | None = None
    max_weight_refinement: Refinement | None = None
    entropy: Estimate | None = None
    effective_size: Estimate | None = None
    group_weight: Estimate | None = None
    group_weight_refinement: Refinement | None = None
    exposure: Exposure | None = None

    def columns(self) -> dict[str, Float[np.ndarray, " levels"]]:
        """Return the curves on the grid as the columns of curves.csv."""
        fields = {
            "sigma": self.sigma,
            "coverage": self.coverage.mean,
            "coverage_low": self.coverage.low,
            "coverage_high": self.coverage.high,
            "coverage_lower_bound": self.coverage_lower_bound,
            "coverage_upper_bound": self.coverage_upper_bound,
            "max_weight": self.max_weight.mean,
            "max_weight_low": self.max_weight.low,
            "max_weight_high": self.max_weight.high,
            "own_weight": self.own_weight,
            "own_weight_lower_bound": self.own_weight_lower_bound,
            "own_weight_upper_bound": self.own_weight_upper_bound,
        }
        for name in ("entropy", "effective_size", "group_weight"):
            if (curve := getattr(self, name)) is not None:
                fields |= {name: curve.mean, f"{name}_low": curve.low, f"{name}_high": curve.high}
        return {name: np.asarray(values) for name, values in fields.items()}

    def __repr__(self) -> str:
        """Return a summary of the grid; `print(danger_zone.find(curves))` describes the curves."""
        levels = f"{len(self.sigma)} noise levels from {self.sigma[0]:.4g} to {self.sigma[-1]:.4g}"
        return f"Curves({levels}, {len(self.coverage.replicates)} bootstrap replicates)"


def split(
    name: str, whole: Estimate, levels: Float[np.ndarray, " more"], count: int
) -> dict[str, Estimate | Refinement | None]:
    """Return the Estimate on the first `count` levels, and the Refinement at those after them."""
    refinement = None
    if len(levels) > count:
        refinement = Refinement(levels[count:], whole.mean[count:], whole.replicates[:, count:])
    on_grid = Estimate(*(field[..., :count] for field in whole))
    return {name: on_grid, f"{name}_refinement": refinement}


def bootstrap_mean(
    key: Key[Array, ""], values: Float[ArrayLike, "rows levels"], count: int
) -> Estimate:
    """Return the Estimate of the mean of `values`, with `count` resamples of its rows."""
    rng, values = _rng(key, count), np.asarray(values)
    rows = len(values)
    times = [np.bincount(rng.integers(rows, size=rows), minlength=rows) for _ in range(count)]
    replicates = np.array(times, np.float32) @ values / np.float32(rows)
    tail = (1 - _CONFIDENCE) / 2
    low, high = np.quantile(replicates, [tail, 1 - tail], axis=0).astype(np.float32)
    mean = values.mean(axis=0, dtype=np.float64).astype(np.float32)
    return Estimate(mean, low, high, replicates)


def bootstrap_fraction(
    key: Key[Array, ""], values: Float[ArrayLike, "rows levels"], draws: int, count: int
) -> Estimate:
    """Return `bootstrap_mean` of fractions of `draws` draws, with an interval near 0 and 1.

    The percentile interval is far too narrow where nearly all values [M, S] are 0 or 1. This one is
    Clopper and Pearson's, computed for an effective number of draws: mean (1 - mean) / var(mean)
    times (z / t)^2, limited to [M, M draws]. It is M where all draws of an image agree. Student's t
    has as many degrees of freedom as there are images with the rarer outcome, because the variance
    is estimated from these.

    Source: Korn and Graubard (1998) for clustered surveys; the degrees of freedom are geomem's.
    """
    estimate = bootstrap_mean(key, values, count)
    values = np.asarray(values, np.float64)
    rows, tail = len(values), (1 - _CONFIDENCE) / 2
    mean = values.mean(axis=0)
    binary = mean * (1 - mean)
    variance = np.maximum(values.var(axis=0) / max(rows - 1, 1), binary / (rows * draws))
    effective = np.full(len(mean), float(rows))
    np.divide(binary, variance, out=effective, where=variance > 0)
    rarer = np.minimum((values > 0).sum(axis=0), (values < 1).sum(axis=0))
    freedom = np.clip(rarer, 1, max(rows - 1, 1))
    effective *= (special.ndtri(1 - tail) / special.stdtrit(freedom, 1 - tail)) ** 2
    effective = np.maximum(effective, rows)
    hits, misses = mean * effective, (1 - mean) * effective
    low = np.where(hits > 0, special.betaincinv(np.maximum(hits, 1e-9), misses + 1, tail), 0)
    high = np.where(misses > 0, special.betaincinv(hits + 1, np.maximum(misses, 1e-9), 1 - tail), 1)
    return estimate._replace(low=low.astype(np.float32), high=high.astype(np.float32))


def stratified_mean(
    key: Key[Array, ""],
    values: Float[ArrayLike, "points draws levels"],
    count: int,
    share: float = 1.0,
) -> Estimate:
    """Return the Estimate of the mean over a fixed set of points, from some draws for each point.

    Values are in [0, 1]. Only the draws vary, so that differences between points do not widen the
    band. Where only a `share` of the points is used, their random choice varies too.

    The interval is that of a beta distribution with the variance of the mean, a Student's t factor
    for its error (Satterthwaite), and one additional draw of value 0 or 1, which stands for values
    not seen yet (Gaffke). For values 0 and 1 it is Clopper and Pearson's. If only a few draws
    differ from others of their point, they tell too little about the variance: the additional draw
    counts more, and so does the variance of all draws around the common mean.
    With one draw for each point, the variation of points and of noise cannot be told apart, and the
    band includes both.

    Source: Satterthwaite (1946); Gaffke (2005); the combination is geomem's.
    """
    values = np.asarray(values, np.float64)
    points, draws, levels = values.shape
    share = share if draws > 1 else 0.0
    mean = values.mean(axis=(0, 1))
    differences = _differences(values - mean, share)
    variance, fourth = (differences**2).sum(axis=0), (differences**4).sum(axis=0)
    # As many squares of normal variables with these two moments; few if few differences dominate.
    freedom = np.divide(3 * variance**2, fourth, out=np.zeros(levels), where=fourth > 0)
    number = 1 / ((1 - share) / points + share / (points * draws))
    freedom *= (variance / (variance + _ROUNDING**2 / number)) ** 2  # rounding errors tell nothing
    unseen = _FEW / (_FEW + freedom)
    tail = (1 - _CONFIDENCE) / 2
    factor = special.stdtrit(np.clip(freedom, 1, None), 1 - tail) / special.ndtri(1 - tail)
    total = ((values - mean) ** 2).mean(axis=(0, 1)) / number
    largest = np.maximum(mean * (1 - mean) / number, variance)  # if all values were 0 or 1
    variance = np.minimum(variance * factor**2 + unseen**2 * total, largest)
    high = _beta_quantile(mean, variance, number, unseen, 1 - tail)
    low = 1 - _beta_quantile(1 - mean, variance, number, unseen, 1 - tail)
    replicates = np.clip(mean + _random_sums(_rng(key, count), differences, count), 0, 1)
    return Estimate(*(field.astype(np.float32) for field in (mean, low, high, replicates)))


def _differences(deviations, share):
    """Independent differences [K, S]; the sum of their squares estimates the mean's variance."""
    points, draws, levels = deviations.shape
    parts = []
    if share < 1:
        between = deviations.mean(axis=1)
        parts.append(between * np.sqrt((1 - share) / (points * max(points - 1, 1))))
    if share > 0:
        # Helmert's contrasts: each draw against the mean of those before it.
        k = np.arange(1, draws)[:, None]
        before = np.cumsum(deviations, axis=1)[:, :-1]
        within = (before - k * deviations[:, 1:]) / np.sqrt(k * (k + 1))
        within *= np.sqrt(share / (draws * (draws - 1))) / points
        parts.append(within.reshape(-1, levels))
    return np.concatenate(parts)


def _beta_quantile(mean, variance, number, unseen, level):
    """The quantile of (1 - w) R + w; R has the given moments, w is beta(unseen, number)."""
    weight = unseen / (number + unseen)
    spread = weight * (1 - weight) / (number + unseen + 1)
    # The factor makes the result exact for a beta distribution of R.
    variance = ((1 - weight) ** 2 + spread) * variance * number / (number + 1)
    variance += spread * (1 - mean) ** 2
    mean = mean + weight * (1 - mean)
    size = np.clip(mean * (1 - mean) / np.maximum(variance, 1e-30) - 1, 1e-9, 1e12)
    a, b = np.maximum(mean * size, 1e-12), np.maximum((1 - mean) * size, 1e-12)
    return special.betaincinv(a, b, level)


def _rng(key, count):
    check_counts(bootstrap=count)
    return np.random.default_rng(np.asarray(jax.random.key_data(key)))


def _random_sums(rng, rows, count):
    """`count` sums of rows [K, S] with standard normal factors: [count, S]."""
    sums = np.zeros((count, rows.shape[1]))
    step = max(1, _NORMALS // count)
    for start in range(0, len(rows), step):
        block = rows[start : start + step].astype(np.float32)
        sums += rng.standard_normal((count, len(block)), np.float32) @ block
    return sums
