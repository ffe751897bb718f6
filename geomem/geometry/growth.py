"""How the danger zone moves with the number of training images, and when it would close.

Coverage reaches the threshold t at sigma_C (the smallest such level), the max weight leaves it at
sigma_W (the largest level that has it); the zone is open while sigma_C < sigma_W. More images move
both down: shells come nearer, and so do competitors. The width ln(sigma_W / sigma_C) is measured on
subsamples and continued as a straight line in ln N, which is an extrapolation and nothing more.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import scipy.stats
import tqdm

from geomem.geometry import curves as curves_lib
from geomem.geometry.curves import Curves

__all__ = ["Closing", "Growth", "crossings", "extrapolate", "measure"]


class Growth(NamedTuple):
    """The zone on K subsamples of a training set, ascending in size.

    Attributes:
      count: int64 [K], images in each.
      reached, left: float64 [K], sigma_C and sigma_W; NaN where the grid of levels has none.
      peak, peak_level: float64 [K], the sigma with the largest min(C, W), and that value.
      threshold: of both curves.
    """

    count: np.ndarray
    reached: np.ndarray
    left: np.ndarray
    peak: np.ndarray
    peak_level: np.ndarray
    threshold: float

    @property
    def width(self) -> np.ndarray:
        """ln(sigma_W / sigma_C), [K]; negative where the zone is closed."""
        return np.log(self.left / self.reached)


class Closing(NamedTuple):
    """A line through the widths of a `Growth`, and where it is zero.

    Attributes:
      slope: of ln(sigma_W / sigma_C) for each doubling of the number of images.
      slope_interval: its 95% interval.
      closes: whether the width shrinks beyond doubt, the whole interval being below zero.
      count: the number of images at which the line is zero; None unless `closes`.
      count_interval: those at which its 95% band holds zero (Fieller); infinite where it has no
        upper end; None unless `closes`.
    """

    slope: float
    slope_interval: tuple[float, float]
    closes: bool
    count: float | None
    count_interval: tuple[float, float] | None


def crossings(sigma: np.ndarray, coverage: np.ndarray, weight: np.ndarray, threshold: float):
    """(sigma_C, sigma_W), the curves being linear in ln sigma; NaN for one that is not there.

    Args:
      sigma: [S], ascending.
      coverage, weight: [S].
      threshold: of both.

    >>> crossings(np.array([1.0, 4.0]), np.array([0.0, 1.0]), np.array([1.0, 0.0]), 0.5)
    (2.0, 2.0)
    """
    grid = np.log(np.asarray(sigma, np.float64))
    reached = _first(grid, np.asarray(coverage, np.float64) - threshold)
    left = -_first(-grid[::-1], np.asarray(weight, np.float64)[::-1] - threshold)
    return float(np.exp(reached)), float(np.exp(left))


def _first(grid, excess):
    """The first place at which the linear interpolation of `excess` is not negative."""
    inside = np.flatnonzero(excess >= 0)
    if len(inside) == 0:
        return np.nan
    at = inside[0]
    if at == 0:
        return grid[0]
    share = excess[at - 1] / (excess[at - 1] - excess[at])
    return grid[at - 1] + share * (grid[at] - grid[at - 1])


def measure(
    key: jax.Array,
    train: jax.Array,
    heldout: jax.Array,
    whole: Curves,
    *,
    threshold: float = 0.8,
    fractions: Sequence[float] = (1 / 8, 1 / 4, 1 / 2),
    subsets: int = 4,
    noised: int = 500,
    shell_c: float = 5.0,
    progress: bool = False,
) -> Growth:
    """The zone on random, disjoint subsamples of each size, and on the whole set.

    Args:
      key: PRNG key, of the subsamples and the noise.
      train: float32 [N, d].
      heldout: float32 [M, d].
      whole: the curves of all of `train`; their levels are used throughout.
      threshold: in (0, 1).
      fractions: sizes of the subsamples, of N.
      subsets: subsamples of a size, or as many as there are images for.
      noised: at most so many held-out images, and training images, are noised in each.
      shell_c: concentration c of the shells.
      progress: show a tqdm bar.

    Returns:
      Growth.

    Raises:
      ValueError: a subsample of less than 2 images.
    """
    order_key, noise_key = jax.random.split(key)
    order = jax.random.permutation(order_key, len(train))
    parts, rows = [], []
    for fraction in sorted(fractions):
        count = int(fraction * len(train))
        if count < 2:
            raise ValueError(f"fractions: {fraction:g} of {len(train)} images, wanted 2 or more")
        number = min(subsets, len(train) // count)
        parts += [order[subset * count : (subset + 1) * count] for subset in range(number)]
    for part in tqdm.tqdm(parts, "subsamples", unit="subsample", disable=not progress):
        noise_key, subset_key = jax.random.split(noise_key)
        estimated = curves_lib.estimate(
            subset_key,
            jnp.asarray(train)[part],
            heldout[:noised],
            whole.sigma,
            num_base=min(len(part), noised),
            draws_coverage=4,
            draws_weight=4,
            shell_c=shell_c,
            bootstrap=1,
        )
        rows.append((len(part), *_summary(estimated, threshold)))
    rows.append((len(train), *_summary(whole, threshold)))
    count, *columns = zip(*rows, strict=True)
    return Growth(np.array(count), *(np.array(column) for column in columns), threshold)


def _summary(curves, threshold):
    level = np.minimum(curves.coverage.mean, curves.max_weight.mean)
    peak = float(curves.sigma[level.argmax()]), float(level.max())
    return *crossings(curves.sigma, curves.coverage.mean, curves.max_weight.mean, threshold), *peak


def extrapolate(growth: Growth) -> Closing | None:
    """Least squares of the width on ln N, by its own scatter; None for fewer than 4 widths.

    Source: Fieller (1954) for the interval of the zero.

    >>> count = np.array([100, 100, 200, 200, 400, 800])
    >>> width = np.array([2.01, 1.99, 1.5, 1.5, 1.0, 0.5])
    >>> one = np.ones(6)
    >>> closing = extrapolate(Growth(count, one, np.exp(width), one, one, 0.8))
    >>> round(closing.slope, 2), round(closing.count)
    (-0.5, 1600)
    """
    known = np.isfinite(growth.width)
    x, y = np.log2(growth.count[known]), growth.width[known]
    if len(np.unique(x)) < 3 or len(x) < 4:
        return None
    centred = x - x.mean()
    spread = (centred**2).sum()
    slope = (centred * y).sum() / spread
    variance = ((y - y.mean() - slope * centred) ** 2).sum() / (len(x) - 2)
    quantile = scipy.stats.t.ppf(0.975, len(x) - 2)
    half = quantile * np.sqrt(variance / spread)
    interval = float(slope - half), float(slope + half)
    if interval[1] >= 0:
        return Closing(float(slope), interval, False, None, None)
    # Zeros z of (mean + slope z)^2 = q^2 variance (1/n + z^2 / spread), z = log2 N - mean.
    ends = np.roots(
        [
            slope**2 - half**2,
            2 * slope * y.mean(),
            y.mean() ** 2 - quantile**2 * variance / len(x),
        ]
    )
    low, high = (2 ** (x.mean() + end) for end in sorted(ends.real))
    count = float(2 ** (x.mean() - y.mean() / slope))
    return Closing(float(slope), interval, True, count, (float(low), float(high)))
