"""How the danger zone changes with the number of training images.

sigma_C is the lowest noise level at which coverage reaches the threshold, sigma_W the highest at
which the max weight does (`danger_zone.crossings`). More images lower both, because the nearest
shell and the competing images come closer. `measure` finds both on random subsamples; `extrapolate`
fits a line to the width ln(sigma_W / sigma_C) against log2 N. The line describes only the measured
range: the width is convex in log N, so a line fitted to small subsets falls too fast beyond them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, cast

import jax
import numpy as np
import tqdm
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Int, Key

from geomem.geometry import curves as curves_lib
from geomem.geometry import danger_zone
from geomem.geometry.curves import Curves
from geomem.points.exact import as_rows, check_key

__all__ = ["Closing", "Growth", "extrapolate", "measure"]


class Growth(NamedTuple):
    """The zone on subsamples of a training set, ascending in size.

    Attributes:
      count: images in each.
      reached, left: sigma_C and sigma_W; NaN if the curve does not cross the threshold inside the
        grid of noise levels.
      peak, peak_level: the sigma with the largest min(C, W), and that value.
      threshold: of both curves.
    """

    count: Int[np.ndarray, " subsamples"]
    reached: Float[np.ndarray, " subsamples"]
    left: Float[np.ndarray, " subsamples"]
    peak: Float[np.ndarray, " subsamples"]
    peak_level: Float[np.ndarray, " subsamples"]
    threshold: float

    @property
    def width(self) -> Float[np.ndarray, " subsamples"]:
        """ln(sigma_W / sigma_C); negative where the zone is empty, NaN at an open end."""
        return np.log(self.left / self.reached)


class Closing(NamedTuple):
    """How fast the zone of a `Growth` narrows, within the measured range of N.

    Attributes:
      slope: change of ln(sigma_W / sigma_C) per doubling of the number of images.
      slope_interval: its 95% interval, from the scatter of the subsamples around the line. Only
        descriptive, because the subsamples share training and held-out images.
      closes: whether the whole interval is below zero, so that the zone narrows.
    """

    slope: float
    slope_interval: tuple[float, float]
    closes: bool


def measure(
    key: Key[Array, ""],
    train: Float[ArrayLike, "train dim"],
    heldout: Float[ArrayLike, "heldout dim"],
    whole: Curves,
    *,
    threshold: float = 0.8,
    fractions: Sequence[float] = (1 / 8, 1 / 4, 1 / 2),
    subsets: int = 4,
    noised: int = 500,
    shell_c: float = 5.0,
    progress: bool = False,
) -> Growth:
    """Return the zone on random, disjoint subsamples of each size, and on the whole set.

    Args:
      key: PRNG key, of the subsamples and the noise.
      train: training points.
      heldout: held-out points.
      whole: the curves of all of `train`; the subsamples use its noise levels.
      threshold: in (0, 1).
      fractions: sizes of the subsamples as fractions of N.
      subsets: maximum number of subsamples of each size.
      noised: maximum number of held-out images, and of training images, noised in each subsample.
      shell_c: concentration c of the shells.
      progress: show a tqdm bar.

    Returns:
      Growth.

    Raises:
      ValueError: a subsample of fewer than 2 images.
    """
    check_key(key)
    train, heldout = as_rows(train, "train"), as_rows(heldout, "heldout")
    order_key, noise_key = jax.random.split(key)
    order = jax.random.permutation(order_key, len(train))
    parts, rows = [], []
    for fraction in sorted(fractions):
        count = int(fraction * len(train))
        if count < 2:
            raise ValueError(
                f"fractions must each leave at least 2 of {len(train)} images, got {fraction:g}."
            )
        number = min(subsets, len(train) // count)
        parts += [order[subset * count : (subset + 1) * count] for subset in range(number)]
    for part in tqdm.tqdm(parts, "subsamples", unit="subsample", disable=not progress):
        noise_key, subset_key = jax.random.split(noise_key)
        curves = curves_lib.estimate(
            subset_key,
            train[part],
            heldout[:noised],
            whole.sigma,
            num_base=min(len(part), noised),
            draws_coverage=4,
            draws_weight=4,
            shell_c=shell_c,
            bootstrap=1,
        )
        rows.append((len(part), *_summary(curves, threshold)))
    rows.append((len(train), *_summary(whole, threshold)))
    count, reached, left, peak, peak_level = map(np.array, zip(*rows, strict=True))
    return Growth(count, reached, left, peak, peak_level, threshold)


def _summary(curves, threshold):
    zone = danger_zone.find(curves, threshold)
    return *danger_zone.crossings(curves, threshold), zone.peak, zone.peak_level


def extrapolate(growth: Growth) -> Closing | None:
    """Return the least-squares slope of the width on log2 N, ignoring subsamples with NaN.

    Returns None for fewer than 3 sizes or fewer than 4 widths.

    >>> count = np.array([100, 100, 200, 200, 400, 800])
    >>> width = np.array([2.01, 1.99, 1.5, 1.5, 1.0, 0.5])
    >>> ones = np.ones(6)
    >>> closing = extrapolate(Growth(count, ones, np.exp(width), ones, ones, 0.8))
    >>> round(closing.slope, 2), closing.closes
    (-0.5, True)
    """
    known = np.isfinite(growth.width)
    x, y = np.log2(growth.count[known]), growth.width[known]
    if len(np.unique(x)) < 3 or len(x) < 4:
        return None
    from scipy import stats

    line = cast(Any, stats.linregress(x, y))
    half = stats.t.ppf(0.975, len(x) - 2) * line.stderr
    interval = float(line.slope - half), float(line.slope + half)
    return Closing(float(line.slope), interval, interval[1] < 0)
