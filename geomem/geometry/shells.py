"""Gaussian shells: radii, membership, coverage by sampling, and a certificate without sampling.

S_sigma(x) = {y : sigma r_in <= ||y - x|| <= sigma r_out} holds x + sigma Z with probability at
least 1 - 2 exp(-c) (paper, Lemma 4.5). Coverage is the probability that a noised held-out point
falls into the shell of at least one training point (Def. 4.6).

For a fixed held-out x, ||x + sigma Z - x_i||^2 / sigma^2 is noncentral chi-square with d degrees of
freedom and noncentrality ||x - x_i||^2 / sigma^2, so each shell's probability P_i is known, and
max_i P_i <= C_sigma(x) <= min(1, sum_i P_i).
"""

from __future__ import annotations

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float, Float32, Float64, Key
from scipy import special

from geomem.geometry.posterior import Sigma, check_sigma
from geomem.points.exact import as_queries, as_rows, check_key, decode, map_rows
from geomem.points.neighbors import squared_distances

__all__ = [
    "ProbabilityTable",
    "check_shell_c",
    "contains",
    "coverage",
    "coverage_bounds",
    "probability_table",
    "radii",
    "shell_probability",
]

_STEPS = 2**15  # of the table; linear interpolation between them errs by less than 1e-8
_VANISHED = 1e-20  # a probability that is negligible even summed over a data set


def radii(dim: int, c: float = 5.0) -> tuple[float, float]:
    """Return r_in = sqrt(d - 2 sqrt(c d)) and r_out = sqrt(d + 2 sqrt(c d) + 2 c).

    They are in units of sigma. For d < 4c the formula for r_in is not real; r_in is then 0, and the
    shell is a ball.

    Args:
      dim: dimension d >= 1.
      c: concentration, > 0; the paper uses 5.

    Returns:
      (r_in, r_out).

    Raises:
      ValueError: c is not positive and finite.

    Source: paper, eq. 6.

    >>> [round(radius, 2) for radius in radii(3072)]
    [53.14, 57.71]
    """
    check_shell_c(c)
    spread = 2 * math.sqrt(c * dim)
    return math.sqrt(max(dim - spread, 0.0)), math.sqrt(dim + spread + 2 * c)


def contains(
    y: Float[ArrayLike, "queries dim"],
    points: Float[ArrayLike, "points dim"],
    sigma: Sigma,
    *,
    c: float = 5.0,
) -> Bool[Array, "queries points"]:
    """Return whether each y is in the shell S_sigma(x_i) of each point x_i.

    Args:
      y: noised points, vectors or images.
      points: the centers of the shells, vectors or images.
      sigma: noise level, > 0, one or one for each y.
      c: shell concentration.

    Raises:
      ValueError: sigma or c is not positive and finite, or shapes or types do not fit.
    """
    y, points = as_queries(y, np.shape(points), "y"), as_rows(points, "points")
    r_in, r_out = radii(y.shape[1], c)
    sigma = jnp.broadcast_to(jnp.asarray(check_sigma(sigma), jnp.float32), (len(y),))[:, None]
    radius = jnp.sqrt(squared_distances(y, points)) / sigma
    return (r_in <= radius) & (radius <= r_out)


def coverage(
    key: Key[Array, ""],
    heldout: Float[ArrayLike, "heldout dim"],
    points: Float[ArrayLike, "points dim"],
    sigma: float,
    *,
    draws: int = 8,
    c: float = 5.0,
) -> Float[Array, " heldout"]:
    """Return the fraction of noised copies of each held-out point inside at least one shell.

    This is Def. 4.6 by Monte Carlo; `curves.estimate` computes it on a whole grid of noise levels.

    Args:
      key: PRNG key.
      heldout: held-out points, vectors or images.
      points: the training points, vectors or images.
      sigma: noise level, > 0.
      draws: noise draws for each held-out point.
      c: shell concentration.

    Returns:
      The fraction for each held-out point, in [0, 1]; its mean estimates C_sigma.

    Raises:
      ValueError: sigma or c is not positive and finite, or shapes or types do not fit.

    Source: paper, Def. 4.6.
    """
    check_key(key)
    check_sigma(sigma)
    heldout = as_queries(heldout, np.shape(points), "heldout")
    points = decode(as_rows(points, "points"))

    def draw(key):
        y = heldout + sigma * jax.random.normal(key, heldout.shape)
        return contains(y, points, sigma, c=c).any(axis=1)

    return jax.lax.map(draw, jax.random.split(key, draws)).mean(axis=0)


class ProbabilityTable(NamedTuple):
    """The probability of a shell as a function of the distance to its center.

    Attributes:
      values: P at ||x - x_i|| / sigma = 0, step, 2 step, ...; 0 beyond the last.
      step: the distance between two of them.
    """

    values: Float32[Array | np.ndarray, " steps"]
    step: Float32[ArrayLike, ""]

    def __call__(self, noncentrality: Float[ArrayLike, "*shape"]) -> Float[Array, "*shape"]:
        """Return P for noncentralities ||x - x_i||^2 / sigma^2 >= 0."""
        place = jnp.minimum(jnp.sqrt(noncentrality) / self.step, len(self.values) - 1.0)
        left = jnp.minimum(place.astype(jnp.int32), len(self.values) - 2)
        values = jnp.asarray(self.values)
        low, high = values[left], values[left + 1]
        return low + (place - left) * (high - low)


def check_shell_c(c: float) -> None:
    """Raise a ValueError unless the shell's concentration `c` is positive and finite."""
    if not (math.isfinite(c) and c > 0):
        raise ValueError(f"shell_c must be positive and finite, got {c:g}.")


def shell_probability(
    noncentrality: Float[ArrayLike, "*shape"], dim: int, c: float = 5.0
) -> Float64[np.ndarray, "*shape"]:
    """Return P(x + sigma Z in S_sigma(x_i)) for lambda = ||x - x_i||^2 / sigma^2, in float64.

    It is F(r_out^2; d, lambda) - F(r_in^2; d, lambda), where F is the noncentral chi-square CDF.
    SciPy's F agrees with the Poisson mixture of chi-squares to 1e-12 (absolute) and
    1e-9 (relative), for d from 1 to 196,608 and far into the tails.

    Args:
      noncentrality: lambda >= 0.
      dim: dimension d.
      c: shell concentration.
    """
    r_in, r_out = radii(dim, c)
    noncentrality = np.asarray(noncentrality, np.float64)
    outer, inner = (special.chndtr(r**2, dim, noncentrality) for r in (r_out, r_in))
    return outer - inner


@functools.lru_cache(maxsize=16)
def probability_table(dim: int, c: float = 5.0) -> ProbabilityTable:
    """Return `shell_probability` tabulated over ||x - x_i|| / sigma up to where it vanishes.

    Args:
      dim: dimension d.
      c: shell concentration.

    Returns:
      ProbabilityTable, within 1e-6 (float32 rounding) of the exact values.
    """
    end = radii(dim, c)[1] / 64
    while shell_probability(end**2, dim, c) > _VANISHED:
        end *= 1.1
    values = shell_probability(np.linspace(0, end, _STEPS + 1) ** 2, dim, c)
    return ProbabilityTable(values.astype(np.float32), np.float32(end / _STEPS))


def coverage_bounds(
    heldout: Float[ArrayLike, "heldout dim"],
    points: Float[ArrayLike, "points dim"],
    sigma: float,
    *,
    c: float = 5.0,
) -> tuple[Float[Array, " heldout"], Float[Array, " heldout"]]:
    """Return max_i P_i and min(1, sum_i P_i) for each held-out point, which bound its coverage.

    Args:
      heldout: held-out points, vectors or images.
      points: the training points, vectors or images.
      sigma: noise level, > 0.
      c: shell concentration.

    Returns:
      (lower, upper); their means bound C_sigma.

    Raises:
      ValueError: sigma or c is not positive and finite, or shapes or types do not fit.
    """
    check_sigma(sigma)
    heldout = as_queries(heldout, np.shape(points), "heldout")
    points = decode(as_rows(points, "points"))
    table = probability_table(heldout.shape[1], c)

    def block(x):
        probability = table(squared_distances(x, points) / sigma**2)
        return probability.max(axis=1), jnp.minimum(probability.sum(axis=1), 1)

    return map_rows(block, (heldout,), 256)
