"""The danger zone: the noise levels at which coverage and concentration are both high."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from geomem.geometry.curves import Curves

__all__ = ["Zone", "find", "find_danger_zone"]


class Zone(NamedTuple):
    """The danger zone of a data set, in units of sigma.

    Attributes:
      low, high: its edges, None where no sigma reaches the threshold.
      peak: the sigma with the largest min(C, W), which needs no threshold.
      peak_level: min(C, W) there.
      threshold: what both curves reach inside.
      low_interval, high_interval: 95% bootstrap intervals of the edges, None without edges.
      confidence: share of bootstrap replicates that have a zone.
      open_low, open_high: the zone touches the end of the sigma grid, so it may go on beyond.
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

    def __str__(self) -> str:
        """One sentence that says what the zone is."""
        if self.low is None:
            return (
                f"No danger zone at threshold {self.threshold:g}: coverage and max weight are "
                f"never both that high; they come closest at sigma = {self.peak:.3g}, where the "
                f"lower of the two is {self.peak_level:.2f}."
            )
        low, high = (
            f"{edge:.3g} [{interval[0]:.3g}, {interval[1]:.3g}]{' (the end of the grid)' * is_open}"
            for edge, interval, is_open in (
                (self.low, self.low_interval, self.open_low),
                (self.high, self.high_interval, self.open_high),
            )
        )
        return (
            f"Danger zone at threshold {self.threshold:g}: sigma from {low} to {high}, worst at "
            f"{self.peak:.3g}: there held-out noise falls onto training shells and the posterior "
            "picks a single training image."
        )


def find(curves: Curves, threshold: float = 0.8) -> Zone:
    """The interval around the peak of min(C, W) on which both curves reach `threshold`.

    The curves are linear in log sigma between grid points; the edges are where one of them crosses
    the threshold. An empty zone and one that touches the end of the grid are results.

    Args:
      curves: from `curves.estimate`.
      threshold: in (0, 1). The paper names none; 0.8 is geomem's choice.

    Returns:
      Zone.

    Raises:
      ValueError: a threshold outside (0, 1).
    """
    if not 0 < threshold < 1:
        raise ValueError(f"threshold: {threshold:g}, wanted between 0 and 1")
    grid = np.log(np.asarray(curves.sigma, np.float64))
    found = _zone(grid, curves.coverage.mean, curves.max_weight.mean, threshold)
    replicates = [
        _zone(grid, coverage, weight, threshold)[:2]
        for coverage, weight in zip(
            np.asarray(curves.coverage.replicates),
            np.asarray(curves.max_weight.replicates),
            strict=True,
        )
    ]
    edges = np.exp(np.array([edge for edge in replicates if edge[0] is not None]).reshape(-1, 2))
    low, high, peak, level = found
    intervals = (None, None)
    if low is not None:
        # Few replicates with a zone, and the point estimate may be outside of theirs.
        edges = edges if len(edges) else np.exp([[low, high]])
        intervals = (tuple(np.quantile(edge, [0.025, 0.975]).tolist()) for edge in edges.T)
    low_interval, high_interval = intervals
    return Zone(
        low=None if low is None else float(np.exp(low)),
        high=None if high is None else float(np.exp(high)),
        peak=float(np.exp(peak)),
        peak_level=float(level),
        threshold=float(threshold),
        low_interval=low_interval,
        high_interval=high_interval,
        confidence=float(np.mean([edge[0] is not None for edge in replicates])),
        open_low=low is not None and bool(low <= grid[0]),
        open_high=high is not None and bool(high >= grid[-1]),
    )


find_danger_zone = find  # the name that `geomem` exports


def _zone(grid, coverage, weight, threshold):
    """(low, high, peak, level) in log sigma; low and high are None without a zone."""
    coverage, weight = np.asarray(coverage, np.float64), np.asarray(weight, np.float64)
    # Between these nodes min(C, W) and its comparison with the threshold are linear and constant.
    nodes = np.unique(
        np.concatenate(
            [
                grid,
                *(_roots(grid, curve - threshold) for curve in (coverage, weight)),
                _roots(grid, coverage - weight),
            ]
        )
    )
    level = np.minimum(np.interp(nodes, grid, coverage), np.interp(nodes, grid, weight))
    peaks = np.flatnonzero(level == level.max())
    peak = peaks[len(peaks) // 2]
    inside = level >= threshold - 1e-9
    if not inside[peak]:
        return None, None, nodes[peak], level[peak]
    outside = np.flatnonzero(~inside)
    low = outside[outside < peak].max(initial=-1) + 1
    high = outside[outside > peak].min(initial=len(nodes)) - 1
    return nodes[low], nodes[high], nodes[peak], level[peak]


def _roots(grid, values):
    """Where the linear interpolation of `values` changes sign inside a cell."""
    left, right = values[:-1], values[1:]
    cells = np.flatnonzero(left * right < 0)
    share = left[cells] / (left[cells] - right[cells])
    return grid[cells] + share * np.diff(grid)[cells]
