"""The results of `curves`: the curves with their bands, and the bootstrap that gives the bands."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Key

__all__ = ["Curves", "Estimate", "Refinement", "bootstrap_fraction", "bootstrap_mean"]

_CONFIDENCE = 0.95
_FEW = 5  # points whose draws differ, below which these differences count for less than half
_WEIGHTS = 2**25  # random weights at once
_SIGNS = 2**25  # random signs at once


class Estimate(NamedTuple):
    """The estimate of a curve at each noise level, with its bootstrap.

    Attributes:
      mean: the estimate.
      low, high: 95% interval, of `bootstrap_fraction` or `bootstrap_mean`.
      replicates: bootstrap replicates of the mean.
    """

    mean: Float[Array, " levels"]
    low: Float[Array, " levels"]
    high: Float[Array, " levels"]
    replicates: Float[Array, "bootstrap levels"]

    def __repr__(self) -> str:
        """Return a summary of the size, without values."""
        return f"Estimate({self.mean.size} noise levels, {len(self.replicates)} replicates)"


class Refinement(NamedTuple):
    """A curve at further noise levels, from the same noise and the same bootstrap resamples.

    Attributes:
      sigma: ascending, inside the cells of the grid in which the curve changes most.
      mean, replicates: as in `Estimate`.
    """

    sigma: Float[Array, " levels"]
    mean: Float[Array, " levels"]
    replicates: Float[Array, "bootstrap levels"]

    def __repr__(self) -> str:
        """Return the number of levels, without values."""
        return f"Refinement({len(self.sigma)} noise levels)"


class Curves(NamedTuple):
    """C(sigma) and W(sigma) with bands and bounds, in float32.

    Attributes:
      sigma: noise levels, ascending.
      coverage: Estimate of C, over held-out points and noise.
      coverage_lower_bound, coverage_upper_bound: certified, sampling-free bounds on the coverage of
        these held-out points: the means of max_i P_i and of min(1, sum_i P_i).
      max_weight: Estimate of W, over training points and noise.
      own_weight: estimate of E w_1, the expected weight of the point that was noised; at most W.
      own_weight_lower_bound, own_weight_upper_bound: bounds on E w_1 from distances alone.
      coverage_refinement, max_weight_refinement: Refinement of each curve, or None.
    """

    sigma: Float[Array, " levels"]
    coverage: Estimate
    coverage_lower_bound: Float[Array, " levels"]
    coverage_upper_bound: Float[Array, " levels"]
    max_weight: Estimate
    own_weight: Float[Array, " levels"]
    own_weight_lower_bound: Float[Array, " levels"]
    own_weight_upper_bound: Float[Array, " levels"]
    coverage_refinement: Refinement | None = None
    max_weight_refinement: Refinement | None = None

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
        return {name: np.asarray(values) for name, values in fields.items()}

    def __repr__(self) -> str:
        """Return a summary of the grid; `print(danger_zone.find(curves))` describes the curves."""
        levels = f"{len(self.sigma)} noise levels from {self.sigma[0]:.4g} to {self.sigma[-1]:.4g}"
        return f"Curves({levels}, {len(self.coverage.replicates)} bootstrap replicates)"


def bootstrap_mean(
    key: Key[Array, ""], values: Float[ArrayLike, "rows levels"], count: int
) -> Estimate:
    """Return the Estimate of the mean of `values`, with `count` resamples of its rows."""
    rng, values = _rng(key, count), np.asarray(values)
    rows = len(values)
    times = [np.bincount(rng.integers(rows, size=rows), minlength=rows) for _ in range(count)]
    replicates = np.array(times, np.float32) @ values / np.float32(rows)
    tail = (1 - _CONFIDENCE) / 2
    low, high = np.quantile(replicates, [tail, 1 - tail], axis=0)
    return _estimate(values.mean(axis=0, dtype=np.float64), low, high, replicates)


def bootstrap_fraction(
    key: Key[Array, ""],
    values: Float[ArrayLike, "points draws levels"],
    count: int,
    *,
    share: float = 0.0,
) -> Estimate:
    """Return the Estimate of the mean of values in [0, 1] of n points with K draws each.

    The points are a random sample without replacement, `share` = n / N of a fixed set of N points.
    With share 0 the interval is for a population, such as that of held-out images; with share 1
    only the draws vary, and differences between points add nothing to it.

    The replicates are a Bayesian bootstrap: random weights, exponential and then normalized, on the
    points' deviations (share 0) or on the draws' deviations from their points (share 1). The
    interval gives one more draw, of value 0 for the lower end and 1 for the upper end, such a
    weight. For values 0 and 1 it is then Clopper and Pearson's. Where only a few points show any
    difference between their draws, the draws' deviations from the mean of all are used instead, by
    degrees, because those few tell too little about the variance.

    Source: Rubin (1981); Gaffke (2005) for the additional draw; the mixture is geomem's.
    """
    rng, values = _rng(key, count), np.asarray(values)
    n, draws, levels = values.shape
    points = values.mean(axis=1, dtype=np.float64)
    mean = points.mean(axis=0)
    share = share if draws > 1 else 0.0  # one draw: points and noise cannot be told apart
    between = np.sqrt((1 - share) * (n + 1) / max(n - 1, 1)) * (points - mean)
    replicates = mean + (0 if share == 1 else _weighted_means(rng, between, count))
    if share > 0:
        within = values - points[:, None]
        squares = (within**2).sum(axis=1, dtype=np.float64)
        fourth = (squares**2).sum(axis=0)
        telling = np.divide(
            squares.sum(axis=0) ** 2, fourth, out=np.zeros(levels), where=fourth > 0
        )
        known = telling / (telling + _FEW)
        within = known * np.sqrt(draws / (draws - 1)) * within + (1 - known) * (values - mean)
        within = np.sqrt(share) * within.reshape(n * draws, levels)
        replicates = replicates + _weighted_means(rng, within, count)
    effective = 1 / ((1 - share) / n + share / (n * draws))
    weight = rng.standard_exponential((count, 1))
    weight /= weight + rng.gamma(effective, size=(count, 1))
    tail = (1 - _CONFIDENCE) / 2
    low = np.quantile((1 - weight) * replicates, tail, axis=0)
    high = np.quantile((1 - weight) * replicates + weight, 1 - tail, axis=0)
    return _estimate(mean, *np.clip([low, high], 0, 1), np.clip(replicates, 0, 1))


def _estimate(*fields):
    return Estimate(*(jnp.asarray(field, jnp.float32) for field in fields))


def _rng(key, count):
    """NumPy's random numbers: compiling JAX's for this would take longer than running it."""
    if count < 1:
        raise ValueError(f"bootstrap must be at least 1, got {count}.")
    return np.random.default_rng(np.asarray(jax.random.key_data(key)))


def _weighted_means(rng, deviations, count):
    """`count` means of deviations [n, S] from their mean, with random weights: [count, S]."""
    total, sums = 0.0, 0.0
    step = max(1, _WEIGHTS // count)
    for start in range(0, len(deviations), step):
        block = np.asarray(deviations[start : start + step], np.float32)
        weights = rng.standard_exponential((count, len(block)), dtype=np.float32)
        total, sums = total + weights.sum(axis=1, keepdims=True), sums + weights @ block
    return sums / total - deviations.mean(axis=0)
