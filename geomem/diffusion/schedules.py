"""The distribution of training noise levels, with or without a gap.

EDM draws ln sigma ~ N(P_mean, P_std^2) with P_mean = -1.2 and P_std = 1.2 (Karras et al. 2022,
table 1, "Noise distribution"). A `Schedule` multiplies that density by a constant on each interval
of sigma. A gap is an interval with the constant 0, or `keep` < 1.
"""

import bisect
import dataclasses
import itertools
import math
import numbers
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float, Float32, Key
from scipy.special import ndtr

__all__ = ["Levels", "Schedule", "check_interval", "dummy", "gap", "lognormal"]

_LEAST_MASS = 0.01
_LARGEST = 1e30  # float32 holds it
_LARGEST_LOG = 60.0  # of ln sigma: beyond it, levels are no floats
_PIECES = 8  # more than most schedules have, so that most arrays have the same shape


class Levels(NamedTuple):
    """A `Schedule` as float32 arrays; a pytree.

    ln sigma is a mixture of normals, each truncated to one piece of the line on one side of the
    median. A piece in the right tail is mirrored into the left one, where float32 is accurate.

    Attributes:
      mean: mean of ln sigma before truncation.
      log_mass: log probability of each piece, -inf for one that is never drawn.
      outer: standard normal CDF at the piece's end that is farther from the median.
      span: increase of the CDF from the outer to the inner end.
      scale: standard deviation of ln sigma, negative in the right tail.
      low, high: the piece's edges in sigma.
    """

    mean: Float32[ArrayLike, ""]
    log_mass: Float32[Array | np.ndarray, " pieces"]
    outer: Float32[Array | np.ndarray, " pieces"]
    span: Float32[Array | np.ndarray, " pieces"]
    scale: Float32[Array | np.ndarray, " pieces"]
    low: Float32[Array | np.ndarray, " pieces"]
    high: Float32[Array | np.ndarray, " pieces"]

    def sample(self, key: Key[Array, ""], shape: tuple[int, ...] = ()) -> Float32[Array, "*shape"]:
        """Draw noise levels; see `Schedule.sample`."""
        key_piece, key_place = jax.random.split(key)
        piece = jax.random.categorical(key_piece, self.log_mass, shape=shape)
        place = 1 - jax.random.uniform(key_place, shape)  # in (0, 1]: the tail's end is excluded
        outer, span, scale, low, high = (jnp.asarray(field)[piece] for field in self[2:])
        z = jax.scipy.special.ndtri(outer + place * span)
        return jnp.clip(jnp.exp(self.mean + scale * z), low, high)


@dataclasses.dataclass(frozen=True)
class Schedule:
    """A distribution of training noise: p(sigma) = w(sigma) Lognormal(sigma; mean, std) / Z.

    Hashable and static under jit. `lognormal`, `gap` and `dummy` make schedules.

    Attributes:
      mean: mean of ln sigma before the weights, EDM's P_mean.
      std: standard deviation of ln sigma before the weights, EDM's P_std.
      edges: ascending noise levels at which the weight w changes.
      weights: w on each interval between edges, one more value than `edges`.
      dummy: interval (low, high) in which dummy images replace the clean ones, or None.
    """

    mean: float = -1.2
    std: float = 1.2
    edges: tuple[float, ...] = ()
    weights: tuple[float, ...] = (1.0,)
    dummy: tuple[float, float] | None = None

    def sample(self, key: Key[Array, ""], shape: tuple[int, ...] = ()) -> Float32[Array, "*shape"]:
        """Draw noise levels by the inverse CDF, never inside an interval of weight 0.

        Both tails are accurate.
        """
        return self.levels().sample(key, shape)

    def levels(self) -> Levels:
        """Return the distribution as arrays, so that one program serves many schedules."""
        points, weights, right, outer, inner = self._tails()
        with np.errstate(divide="ignore"):
            log_mass = np.log(weights * (inner - outer))
        # One step inside, so that no rounding to float32 puts a draw into a gap.
        bounds = np.array([points[:-1], points[1:]], np.float32)
        low, high = np.nextafter(bounds, np.array([[np.inf], [0]], np.float32))
        scale = np.where(right, -self.std, self.std)
        padding = (0, -len(low) % _PIECES)
        log_mass = np.pad(log_mass.astype(np.float32), padding, constant_values=-np.inf)  # no draws
        outer, span, scale, low, high = (
            np.pad(column.astype(np.float32), padding)
            for column in (outer, inner - outer, scale, low, high)
        )
        return Levels(np.float32(self.mean), log_mass, outer, span, scale, low, high)

    def mass(self, low: float = 0.0, high: float = math.inf) -> float:
        """Return the probability that a draw lies in [low, high], in float64."""
        return self._weighted_mass(low, high) / self._weighted_mass(0, math.inf)

    def quantile(self, probability: float) -> float:
        """Return the noise level below which a draw lies with this probability, in (0, 1).

        >>> round(lognormal().quantile(0.5), 6) == round(math.exp(-1.2), 6)
        True
        """
        if not 0 < probability < 1:
            raise ValueError(f"probability must be between 0 and 1, got {probability}.")

        def excess(z):
            return self.mass(0, math.exp(self.mean + self.std * z)) - probability

        from scipy.optimize import brentq  # importing it takes as long as a small run

        z = cast(float, brentq(excess, -37, 37, xtol=1e-13))
        return math.exp(self.mean + self.std * z)

    @property
    def gaps(self) -> tuple[tuple[float, float], ...]:
        """The intervals (low, high) of weight 0, after merging adjacent ones."""
        spans = zip(itertools.pairwise((0, *self.edges, math.inf)), self.weights, strict=True)
        empty = itertools.groupby(spans, lambda span: span[1] == 0)
        runs = [list(run) for is_empty, run in empty if is_empty]
        return tuple((run[0][0][0], run[-1][0][1]) for run in runs)

    def is_dummy(self, sigma: Float[Array, "*shape"]) -> Bool[Array, "*shape"]:
        """Return whether a dummy image replaces the clean image at these noise levels."""
        low, high = self.dummy or (math.inf, math.inf)
        return (sigma >= low) & (sigma <= high)

    def _tails(self, low=0.0, high=math.inf):
        """The pieces of [low, high]: bounds [P + 1], weights, and the normal CDF at both ends [P].

        The line is cut at the edges and at the median. `right` marks the pieces above the median,
        for which the CDF is that of the mirrored piece.
        """
        median = math.exp(self.mean)
        points = np.array([0, *sorted({*self.edges, median}), math.inf])
        weights = np.array([self._weight(point) for point in points[:-1]])
        right = points[:-1] >= median
        with np.errstate(divide="ignore"):
            z = (np.log(np.clip(points, low, high)) - self.mean) / self.std
        outer, inner = ndtr(np.where(right, [-z[1:], -z[:-1]], [z[:-1], z[1:]]))
        return points, weights, right, outer, inner

    def _weight(self, sigma):
        return self.weights[bisect.bisect_right(self.edges, sigma)]

    def _weighted_mass(self, low, high):
        _, weights, _, outer, inner = self._tails(low, high)
        return float(np.sum(weights * (inner - outer)))


def lognormal(mean: float = -1.2, std: float = 1.2) -> Schedule:
    """Return EDM's training noise, ln sigma ~ N(mean, std^2) (Karras et al. 2022, table 1).

    Raises:
      ValueError: mean is not finite, or std not positive and finite.
    """
    if not isinstance(mean, numbers.Real) or not abs(mean) <= _LARGEST_LOG:
        raise ValueError(f"mean must be at most {_LARGEST_LOG:g} in size, got {mean!r}.")
    if not isinstance(std, numbers.Real) or not 0 < std <= _LARGEST_LOG:
        raise ValueError(f"std must be positive and at most {_LARGEST_LOG:g}, got {std!r}.")
    return Schedule(mean, std)


def gap(base: Schedule, low: float, high: float, keep: float = 0.0) -> Schedule:
    """Return the base distribution with [low, high] removed or thinned, renormalized.

    Args:
      base: a schedule, which may already have gaps.
      low, high: the interval of sigma, for example a danger zone.
      keep: factor in [0, 1) by which the density inside is multiplied; 0 removes it.

    Raises:
      ValueError: not 0 < low < high, keep outside [0, 1), or less than 1% of the mass is left.

    >>> schedule = gap(lognormal(), 0.5, 5.0)
    >>> schedule.mass(0.5, 5.0), round(schedule.mass(0.0, 0.5), 4)
    (0.0, 0.9857)
    """
    check_interval("gap", low, high)
    if not 0 <= keep < 1:
        raise ValueError(f"keep must be in [0, 1), got {keep}.")
    left = 1 - (1 - keep) * base.mass(low, high)
    if left < _LEAST_MASS:
        raise ValueError(
            f"gap must leave at least {_LEAST_MASS:.0%} of the training noise, got {low:g} to "
            f"{high:g}, which leaves {left:.2%}."
        )
    edges = sorted({*base.edges, low, high})
    weights = [
        base._weight(start) * (keep if low <= start and end <= high else 1)
        for start, end in itertools.pairwise((0, *edges, math.inf))
    ]
    return dataclasses.replace(base, edges=tuple(edges), weights=tuple(weights))


def dummy(base: Schedule, low: float, high: float) -> Schedule:
    """Return the "dummy" control: the base's noise levels, but dummy images in [low, high].

    At these levels the training step replaces each clean image by Gaussian noise with the training
    set's per-pixel mean and standard deviation, independent for each pixel. The paper does not
    define its 2k-Dummy run; this definition is geomem's.

    Raises:
      ValueError: not 0 < low < high.
    """
    check_interval("dummy", low, high)
    return dataclasses.replace(base, dummy=(low, high))


def check_interval(argument: str, low: Any, high: Any) -> None:
    """Raise a ValueError that names `argument` unless 0 < low < high <= 1e30, both numbers."""
    real = all(isinstance(edge, numbers.Real) and edge is not True for edge in (low, high))
    if not (real and 0 < low < high):
        raise ValueError(f"{argument} must satisfy 0 < low < high, got {low} to {high}.")
    if high > _LARGEST:
        raise ValueError(f"{argument} must be at most {_LARGEST:g}, got {str(high)[:20]}.")
