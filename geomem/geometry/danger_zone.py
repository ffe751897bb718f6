"""The danger zone: the noise levels at which coverage C and max posterior weight W are both high.

Between two levels the logits of both curves are interpolated linearly in log sigma, because the
curves are nearly sigmoids. The levels of `Curves.coverage_refinement` and `.max_weight_refinement`
are used too.
"""

from __future__ import annotations

import numbers
from typing import NamedTuple

import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Bool, Float
from scipy.special import expit, logit

from geomem.geometry.curves import Curves, check_sigmas

__all__ = ["Zone", "check_threshold", "crossings", "find", "find_danger_zone", "in_zone"]

# Values shrink by this fraction toward 1/2, so that 0 and 1 have logits. It is about the resolution
# of 8,000 draws.
_SHRINK = 1e-4


def in_zone(
    coverage: Float[ArrayLike, " levels"],
    max_weight: Float[ArrayLike, " levels"],
    threshold: float = 0.8,
) -> Bool[np.ndarray, " levels"]:
    """Return whether min(C, W) >= threshold at each noise level.

    Source: the paper reads the zone off the two curves by eye; the threshold is geomem's.

    >>> in_zone(np.array([0.1, 0.9, 1.0]), np.array([1.0, 0.9, 0.2]))
    array([False,  True, False])
    """
    return np.minimum(np.asarray(coverage), np.asarray(max_weight)) >= threshold


class Zone(NamedTuple):
    """The danger zone of a data set, in units of sigma.

    Attributes:
      low, high: edges of the main interval, the one with the peak; None if there is none.
      peak: the sigma with the largest min(C, W), which does not depend on the threshold.
      peak_level: min(C, W) at the peak.
      threshold: the value that both curves reach inside the zone.
      low_interval, high_interval: 95% bootstrap intervals of the edges, or None.
      confidence: fraction of bootstrap replicates with an interval that overlaps the main one; for
        an empty zone, the fraction with any interval.
      open_low, open_high: whether that edge is an end of the grid, so that the zone may extend
        beyond it.
      others: (low, high) of the other intervals above the threshold, ascending.
    """

    low: float | None
    high: float | None
    peak: float
    peak_level: float
    threshold: float
    low_interval: tuple[float, float] | None
    high_interval: tuple[float, float] | None
    confidence: float
    open_low: bool
    open_high: bool
    others: tuple[tuple[float, float], ...] = ()

    @property
    def intervals(self) -> tuple[tuple[float, float], ...]:
        """(low, high) of all intervals above the threshold, the main one first."""
        if self.low is None or self.high is None:
            return ()
        return (self.low, self.high), *self.others

    def __repr__(self) -> str:
        """Return the edges, the peak and the threshold."""
        edges = "empty" if self.low is None else f"{self.low:.3g} to {self.high:.3g}"
        return f"Zone({edges}, peak {self.peak:.3g}, threshold {self.threshold:g})"

    def __str__(self) -> str:
        """Return one or two sentences that describe the zone."""
        if self.low is None:
            return (
                f"No danger zone at threshold {self.threshold:g}: coverage and max weight never "
                f"both reach it. They come closest at sigma = {self.peak:.3g}, where the lower of "
                f"the two is {self.peak_level:.2f}."
            )
        low = _edge(self.low, self.low_interval, self.open_low, "smallest")
        high = _edge(self.high, self.high_interval, self.open_high, "largest")
        text = (
            f"Danger zone at threshold {self.threshold:g}: sigma from {low} to {high}, with its "
            f"peak at {self.peak:.3g}."
        )
        if self.others:
            listed = " and ".join(f"{low:.3g} to {high:.3g}" for low, high in self.others)
            text += f" Both curves also reach the threshold from {listed}."
        return text


def find(curves: Curves, threshold: float = 0.8, *, group_copies: bool = False) -> Zone:
    """Return the intervals of sigma on which both curves reach `threshold`, the main one first.

    The main interval is the one with the peak of min(C, W). A zone that is empty, or that reaches
    an end of the grid, is a valid result.

    Args:
      curves: from `curves.estimate`.
      threshold: in (0, 1). The paper gives none; 0.8 is geomem's choice.
      group_copies: use the weight of each point together with its exact copies. With k copies, W is
        at most 1 / k, although the posterior is concentrated.

    Returns:
      Zone.

    Raises:
      ValueError: a threshold outside (0, 1), levels that do not ascend, or a curve that is not
        finite or not as long as the grid.
    """
    check_threshold(threshold)
    if not isinstance(curves, Curves):
        raise ValueError(f"curves must be Curves, from estimate, got {type(curves).__name__}.")
    coverage = _logits("coverage", curves.sigma, curves.coverage, curves.coverage_refinement)
    name = "group_weight" if group_copies and curves.group_weight is not None else "max_weight"
    refinement = getattr(curves, f"{name}_refinement")
    weight = _logits(name, curves.sigma, getattr(curves, name), refinement)
    level = _logit(threshold)
    peak, peak_level = _peak(*(curve[:2] for curve in (coverage, weight)))
    inside = _both_above(*coverage[:2], *weight[:2], level)
    replicates = [
        _both_above(coverage[0], c, weight[0], w, level)
        for c, w in zip(coverage[2], weight[2], strict=True)
    ]
    if not inside:
        matching, main, others = [edges for edges in replicates if edges], None, ()
    else:
        main = min(inside, key=lambda edges: max(edges[0] - peak, peak - edges[1], 0))
        others = tuple(edges for edges in inside if edges != main)
        matching = [edges for edges in (_overlapping(main, each) for each in replicates) if edges]
    ends = np.log(np.float64(curves.sigma[0])), np.log(np.float64(curves.sigma[-1]))
    low = high = low_interval = high_interval = None
    if main is not None:
        low, high = (float(np.exp(edge)) for edge in main)
        # Without a replicate that has the interval, its edges are all that is known.
        bands = np.exp(np.quantile(matching or [main], [0.025, 0.975], axis=0)).T.tolist()
        low_interval, high_interval = ((left, right) for left, right in bands)
    return Zone(
        low=low,
        high=high,
        peak=float(np.exp(peak)),
        peak_level=float((expit(peak_level) - _SHRINK) / (1 - 2 * _SHRINK)),
        threshold=float(threshold),
        low_interval=low_interval,
        high_interval=high_interval,
        confidence=len(matching) / len(replicates),
        open_low=main is not None and bool(main[0] <= ends[0]),
        open_high=main is not None and bool(main[1] >= ends[1]),
        others=tuple((float(np.exp(low)), float(np.exp(high))) for low, high in others),
    )


find_danger_zone = find  # the name that `geomem` exports


def crossings(curves: Curves, threshold: float = 0.8) -> tuple[float, float]:
    """Return the lowest sigma at which C reaches `threshold`, and the highest at which W does.

    Args:
      curves: from `curves.estimate`.
      threshold: in (0, 1).

    Returns:
      (sigma_C, sigma_W). The zone is empty if sigma_C > sigma_W. NaN for a curve that never reaches
      the threshold, or that is already above it at the end of the grid, so that its crossing is
      unknown.

    Raises:
      ValueError: as in `find`.
    """
    check_threshold(threshold)
    coverage = _logits("coverage", curves.sigma, curves.coverage, curves.coverage_refinement)
    weight = _logits("max_weight", curves.sigma, curves.max_weight, curves.max_weight_refinement)
    grid, *_ = coverage
    reached = [low for low, _ in _above(*coverage[:2], _logit(threshold))]
    left = [high for _, high in _above(*weight[:2], _logit(threshold))]
    return (
        float(np.exp(reached[0])) if reached and reached[0] > grid[0] else np.nan,
        float(np.exp(left[-1])) if left and left[-1] < grid[-1] else np.nan,
    )


def check_threshold(threshold: float) -> None:
    """Raise a ValueError unless `threshold` is in (0, 1)."""
    if not isinstance(threshold, numbers.Real):
        raise ValueError(f"threshold must be a number between 0 and 1, got {threshold!r}.")
    if not 0 < threshold < 1:
        raise ValueError(f"threshold must be between 0 and 1, got {threshold:g}.")


def _edge(sigma, interval, is_open, end):
    if is_open:
        return f"{sigma:.3g} (the {end} noise level: the zone may extend beyond it)"
    return f"{sigma:.3g} [{interval[0]:.3g}, {interval[1]:.3g}]"


def _logit(values):
    return logit(_SHRINK + (1 - 2 * _SHRINK) * np.asarray(values, np.float64))


def _logits(name, sigma, estimate, refinement):
    """(log sigma [S + R], logits of the mean [S + R] and of the replicates [B, S + R]), sorted."""
    parts = [(sigma, estimate.mean, estimate.replicates)]
    if refinement is not None:
        parts.append(refinement)
    if not len(check_sigmas(sigma)) == len(estimate.mean) == np.shape(estimate.replicates)[-1]:
        raise ValueError(
            f"{name} must have {len(sigma)} levels like sigma, got {len(estimate.mean)}."
        )
    sigma, mean, replicates = (
        np.concatenate([np.asarray(a, np.float64) for a in field], axis=-1)
        for field in zip(*parts, strict=True)
    )
    if not np.isfinite(mean).all():
        bad = np.argmin(np.isfinite(mean))
        raise ValueError(f"{name} must be finite, got {mean[bad]:g} at sigma {sigma[bad]:g}.")
    order = np.argsort(sigma)
    return np.log(sigma[order]), _logit(mean[order]), _logit(replicates[:, order])


def _above(grid, values, level):
    """The intervals on which the linear interpolation of `values` is at least `level`."""
    excess = values - level
    inside = np.concatenate([[False], excess >= 0, [False]])
    starts = np.flatnonzero(inside[1:] & ~inside[:-1])
    stops = np.flatnonzero(inside[:-1] & ~inside[1:]) - 1
    return [
        (_crossing(grid, excess, start, start - 1), _crossing(grid, excess, stop, stop + 1))
        for start, stop in zip(starts, stops, strict=True)
    ]


def _crossing(grid, excess, inside, outside):
    """Where the interpolation crosses zero between two neighboring levels, or the grid's end."""
    if not 0 <= outside < len(grid):
        return grid[inside]
    share = excess[inside] / (excess[inside] - excess[outside])
    return grid[inside] + share * (grid[outside] - grid[inside])


def _both_above(coverage_grid, coverage, weight_grid, weight, level):
    """The intervals (low, high) in log sigma on which both curves are at least `level`."""
    pairs = [
        (max(a[0], b[0]), min(a[1], b[1]))
        for a in _above(coverage_grid, coverage, level)
        for b in _above(weight_grid, weight, level)
    ]
    return [(low, high) for low, high in pairs if low <= high]


def _overlapping(main, intervals):
    """The interval with the largest overlap with `main`, or None."""

    def overlap(edges):
        return min(main[1], edges[1]) - max(main[0], edges[0])

    best = max(intervals, key=overlap, default=None)
    return None if best is None or overlap(best) < 0 else best


def _peak(coverage, weight):
    """(log sigma, logit) of the largest minimum of two curves (grid, values)."""
    grid = np.union1d(coverage[0], weight[0])
    coverage, weight = (np.interp(grid, *curve) for curve in (coverage, weight))
    difference = coverage - weight
    cells = np.flatnonzero(difference[:-1] * difference[1:] < 0)
    crossings = [_crossing(grid, difference, cell, cell + 1) for cell in cells]
    nodes = np.union1d(grid, crossings)
    lower = np.minimum(np.interp(nodes, grid, coverage), np.interp(nodes, grid, weight))
    peaks = np.flatnonzero(lower == lower.max())
    return nodes[peaks[len(peaks) // 2]], lower.max()
