"""Which noise levels a denoiser is trained on, and which a sampler visits.

A `Schedule` is EDM's lognormal with its density multiplied by a constant on each interval of sigma.
A gap is an interval whose constant is 0 (or `keep` < 1).
"""

from __future__ import annotations

import bisect
import dataclasses
import itertools
import math
import numbers
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import scipy.optimize
import scipy.special

__all__ = [
    "Levels",
    "Schedule",
    "dummy",
    "equal_mass_gap",
    "gap",
    "lognormal",
]

_LEAST_MASS = 0.01
_PIECES = 8  # more than most schedules have, so that their arrays have one shape


class Levels(NamedTuple):
    """A `Schedule` as float32 arrays, [P] for P pieces of the line; a pytree.

    Attributes:
      mean: of ln sigma.
      log_mass: of each piece, -inf if it is never drawn.
      near, span: the standard normal's distribution function at the piece's outer end, seen from
        the tail that it lies in, and its growth from there to the inner end.
      scale: standard deviation of ln sigma, negative in the right tail.
      low, high: the piece's edges.
    """

    mean: jax.Array
    log_mass: jax.Array
    near: jax.Array
    span: jax.Array
    scale: jax.Array
    low: jax.Array
    high: jax.Array

    def sample(self, key: jax.Array, shape: tuple[int, ...] = ()) -> jax.Array:
        """As `Schedule.sample`."""
        key_piece, key_place = jax.random.split(key)
        piece = jax.random.categorical(key_piece, self.log_mass, shape=shape)
        place = 1 - jax.random.uniform(key_place, shape)  # in (0, 1]: the tail's end is excluded
        near, span, scale, low, high = (jnp.asarray(field)[piece] for field in self[2:])
        z = jax.scipy.special.ndtri(near + place * span)
        return jnp.clip(jnp.exp(self.mean + scale * z), low, high)


@dataclasses.dataclass(frozen=True)
class Schedule:
    """A distribution of training noise levels: p(sigma) = w(sigma) Lognormal(sigma; mean, std) / Z.

    A value: hashable, static under jit. Made by `lognormal`, `gap`, `equal_mass_gap` and `dummy`.

    Attributes:
      mean, std: of ln sigma, before the weights.
      edges: ascending noise levels at which the weight w changes.
      weights: w on each interval between edges, one more than there are edges.
      dummy: the interval (low, high) whose clean images are replaced by dummy images, or None.
    """

    mean: float = -1.2
    std: float = 1.2
    edges: tuple[float, ...] = ()
    weights: tuple[float, ...] = (1.0,)
    dummy: tuple[float, float] | None = None

    def sample(self, key: jax.Array, shape: tuple[int, ...] = ()) -> jax.Array:
        """Draw noise levels by the inverse CDF, with no rejection.

        The line is cut at the edges and at the median. A piece is drawn by its mass, then a place
        in it by the inverse of its own tail, so that both far tails are accurate in float32.

        Args:
          key: a typed PRNG key.
          shape: the shape of the draw.

        Returns:
          float32 [*shape], positive; never inside an interval of weight 0.
        """
        return self.levels().sample(key, shape)

    def levels(self) -> Levels:
        """The distribution as arrays, so that one program can serve many schedules."""
        low, high, weight = self._pieces()
        right = low >= math.exp(self.mean)  # mirrored: z -> -z turns a right tail into a left one
        near = scipy.special.ndtr(np.where(right, -self._z(high), self._z(low)))
        far = scipy.special.ndtr(np.where(right, -self._z(low), self._z(high)))
        with np.errstate(divide="ignore"):
            log_mass = np.log(weight * (far - near))
        scale = np.where(right, -self.std, self.std)
        empty = -len(low) % _PIECES  # pieces that are never drawn
        # One step inside, so that no rounding to float32 puts a draw into a gap.
        inside = np.nextafter(np.float32([low, high]), np.float32([[np.inf], [0]]))
        columns = (log_mass, near, far - near, scale, *inside)
        fills = (-np.inf, 0, 0, 0, 0, 0)
        padded = (
            np.pad(np.float32(column), (0, empty), constant_values=fill)
            for column, fill in zip(columns, fills, strict=True)
        )
        return Levels(np.float32(self.mean), *padded)

    def log_density(self, sigma: jax.Array) -> jax.Array:
        """ln p(sigma), a density in sigma: [...] -> [...]; -inf inside a gap of weight 0."""
        edges, weights = jnp.asarray(self.edges), jnp.log(jnp.asarray(self.weights))
        log_weight = jnp.maximum(  # an edge belongs to the interval of larger weight
            weights[jnp.searchsorted(edges, sigma, side="left")],
            weights[jnp.searchsorted(edges, sigma, side="right")],
        )
        z = (jnp.log(sigma) - self.mean) / self.std
        normalizer = math.log(self._weighted_mass(0, math.inf) * self.std * math.sqrt(2 * math.pi))
        return log_weight - z**2 / 2 - jnp.log(sigma) - normalizer

    def mass(self, low: float = 0.0, high: float = math.inf) -> float:
        """The probability that a draw lies in [low, high], in float64."""
        return self._weighted_mass(low, high) / self._weighted_mass(0, math.inf)

    def quantile(self, probability: float) -> float:
        """The noise level below which a draw lies with this probability, in (0, 1).

        >>> round(lognormal().quantile(0.5), 6) == round(math.exp(-1.2), 6)
        True
        """
        if not 0 < probability < 1:
            raise ValueError(f"probability: {probability}, wanted between 0 and 1")

        def excess(z):
            return self.mass(0, math.exp(self.mean + self.std * z)) - probability

        return math.exp(self.mean + self.std * scipy.optimize.brentq(excess, -37, 37, xtol=1e-13))

    @property
    def gaps(self) -> tuple[tuple[float, float], ...]:
        """The intervals (low, high) that no draw lies in."""
        spans = zip(itertools.pairwise((0, *self.edges, math.inf)), self.weights, strict=True)
        empty = itertools.groupby(spans, lambda span: span[1] == 0)
        runs = [list(run) for is_empty, run in empty if is_empty]
        return tuple((run[0][0][0], run[-1][0][1]) for run in runs)

    def is_dummy(self, sigma: jax.Array) -> jax.Array:
        """Where the clean image is replaced by a dummy image: [...] -> bool [...]."""
        low, high = self.dummy or (math.inf, math.inf)
        return (sigma >= low) & (sigma <= high)

    def _z(self, sigma):
        with np.errstate(divide="ignore"):
            return (np.log(sigma) - self.mean) / self.std

    def _pieces(self):
        """Bounds and weights of the intervals between edges, also cut at the median."""
        points = np.array([0, *sorted({*self.edges, math.exp(self.mean)}), math.inf])
        return points[:-1], points[1:], np.array([self._weight(low) for low in points[:-1]])

    def _weight(self, sigma):
        return self.weights[bisect.bisect_right(self.edges, sigma)]

    def _weighted_mass(self, low, high):
        lows, highs, weights = self._pieces()
        a = self._z(np.clip(lows, low, high))
        b = self._z(np.clip(highs, low, high))
        a, b = np.where(a >= 0, -b, a), np.where(a >= 0, -a, b)
        return float(np.sum(weights * (scipy.special.ndtr(b) - scipy.special.ndtr(a))))


def lognormal(mean: float = -1.2, std: float = 1.2) -> Schedule:
    """EDM's training noise, ln sigma ~ N(mean, std^2) (Karras et al. 2022, table 1).

    Raises:
      ValueError: std is not positive.
    """
    if not std > 0:
        raise ValueError(f"std: {std}, wanted a positive number")
    return Schedule(mean, std)


def gap(base: Schedule, low: float, high: float, keep: float = 0.0) -> Schedule:
    """The base distribution with the interval [low, high] removed or thinned, renormalised.

    Args:
      base: what to leave the interval out of; may have gaps already.
      low, high: the interval of sigma, for example a danger zone's edges.
      keep: the factor in [0, 1) on the density inside; 0 removes it.

    Raises:
      ValueError: not 0 < low < high, keep outside [0, 1), or less than 1% of the mass is left.

    >>> schedule = gap(lognormal(), 0.5, 5.0)
    >>> schedule.mass(0.5, 5.0), round(schedule.mass(0.0, 0.5), 4)
    (0.0, 0.9857)
    """
    check_interval("gap", low, high)
    if not 0 <= keep < 1:
        raise ValueError(f"keep: {keep}, wanted a factor in [0, 1)")
    left = 1 - (1 - keep) * base.mass(low, high)
    if left < _LEAST_MASS:
        raise ValueError(
            f"gap: {low:g} to {high:g} leaves {left:.2%} of the training noise, wanted at least 1%"
        )
    edges = sorted({*base.edges, low, high})
    weights = [
        base._weight(start) * (keep if low <= start and end <= high else 1)
        for start, end in itertools.pairwise((0, *edges, math.inf))
    ]
    return dataclasses.replace(base, edges=tuple(edges), weights=tuple(weights))


def equal_mass_gap(base: Schedule, center: float, mass: float, keep: float = 0.0) -> Schedule:
    """A control gap: [center / r, center r], with r such that it holds `mass` of the base.

    Args:
      base: what to leave the interval out of.
      center: the gap's geometric centre, a noise level.
      mass: the probability inside, for example `base.mass(low, high)` of the gap to compare with.
      keep: as in `gap`.

    Returns:
      The Schedule; its `edges` hold the gap's.

    Raises:
      ValueError: center is not positive, or mass is not in (0, 0.99].
    """
    if not center > 0:
        raise ValueError(f"center: {center}, wanted a positive noise level")
    if not 0 < mass <= 1 - _LEAST_MASS:
        raise ValueError(f"mass: {mass}, wanted a probability in (0, 0.99]")

    def excess(width):
        return base.mass(center * math.exp(-width), center * math.exp(width)) - mass

    width = scipy.optimize.brentq(excess, 0, 300, xtol=1e-13)
    return gap(base, center * math.exp(-width), center * math.exp(width), keep)


def dummy(base: Schedule, low: float, high: float) -> Schedule:
    """The "dummy" control: all of base's noise levels, but dummy images inside [low, high].

    The clean images of levels inside are replaced by i.i.d. Gaussian images with the data set's
    per-pixel mean and standard deviation (by the trainer). The paper does not define its 2k-Dummy
    run; this definition is geomem's.

    Raises:
      ValueError: not 0 < low < high.
    """
    check_interval("dummy", low, high)
    return dataclasses.replace(base, dummy=(low, high))


def check_interval(argument, low, high):
    real = all(isinstance(edge, numbers.Real) for edge in (low, high))
    if not (real and 0 < low < high < math.inf):
        raise ValueError(f"{argument}: {low} to {high}, wanted 0 < low < high")
