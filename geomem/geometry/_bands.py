"""The results of `curves`: the curves with their bands, and the bootstrap that gives the bands."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Key
from scipy import special

__all__ = ["Curves", "Estimate", "Refinement", "bootstrap_fraction", "bootstrap_mean"]

_CONFIDENCE = 0.95


class Estimate(NamedTuple):
    """The estimate of a curve at each noise level, with its bootstrap.

    Attributes:
      mean: the estimate.
      low, high: 95% interval: `bootstrap_fraction` for coverage, else the bootstrap's.
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
    if count < 1:
        raise ValueError(f"bootstrap must be at least 1, got {count}.")
    # In NumPy, because compiling this would take longer than running it.
    rng = np.random.default_rng(np.asarray(jax.random.key_data(key)))
    values = np.asarray(values)
    rows = len(values)
    times = [np.bincount(rng.integers(rows, size=rows), minlength=rows) for _ in range(count)]
    replicates = np.array(times, np.float32) @ values / np.float32(rows)
    tail = (1 - _CONFIDENCE) / 2
    low, high = np.quantile(replicates, [tail, 1 - tail], axis=0).astype(np.float32)
    mean = values.mean(axis=0, dtype=np.float64).astype(np.float32)
    return Estimate(*map(jnp.asarray, (mean, low, high, replicates)))


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
    return estimate._replace(low=jnp.asarray(low, jnp.float32), high=jnp.asarray(high, jnp.float32))
