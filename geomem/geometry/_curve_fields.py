"""From the sweeps of `_curve_kernels` to the fields of `Curves`: means, bands and bounds."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from geomem.geometry import exposure
from geomem.geometry._bands import Estimate, bootstrap_fraction, split, stratified_mean
from geomem.geometry._curve_kernels import WeightSweep

__all__ = ["coverage_fields", "weight_fields"]


def coverage_fields(
    key: jax.Array,
    covered: np.ndarray,
    bounds: Sequence[np.ndarray],
    draws: int,
    levels: np.ndarray,
    count: int,
    bootstrap: int,
) -> dict[str, Any]:
    """Return the fields of Curves that are about coverage.

    Args:
      key: PRNG key of the bootstrap.
      covered: float32 [B, S], of `coverage_sweep`.
      bounds: lower and upper bounds, as `covered`.
      draws: noise draws for each query.
      levels: [S], the grid, and after it the extra levels.
      count: number of levels of the grid.
      bootstrap: number of replicates.
    """
    lower, upper = (bound[:, :count].mean(axis=0) for bound in bounds)
    whole = bootstrap_fraction(key, covered, draws, bootstrap)
    return split("coverage", whole, levels, count) | {
        "coverage_lower_bound": lower,
        "coverage_upper_bound": upper,
    }


def weight_fields(
    key: jax.Array,
    sweep: WeightSweep,
    index: np.ndarray,
    total: int,
    levels: np.ndarray,
    count: int,
    bootstrap: int,
) -> dict[str, Any]:
    """Return the fields of Curves that are about the posterior.

    Args:
      key: PRNG key of the bootstrap.
      sweep: of the training points `index` [B], as NumPy arrays.
      index: int [B].
      total: number of training points.
      levels: [S], the grid, and after it the extra levels.
      count: number of levels of the grid.
      bootstrap: number of replicates.
    """

    def mean(values, low=0.0, high=1.0, replicates=1):
        """Estimate of the mean of values between `low` and `high`."""
        unit = np.clip((values - low) / (high - low), 0, 1)
        estimate = stratified_mean(key, unit, replicates, len(index) / total)
        return Estimate(*(low + (high - low) * field for field in estimate))

    largest = mean(sweep.largest, replicates=bootstrap)
    own = sweep.own[..., :count]
    # Each constant bounds the expectation; take the best.
    lower = sweep.lower[..., :count].mean(axis=0).max(axis=0)
    upper = sweep.upper[..., :count].mean(axis=0).min(axis=0)
    curves = split("max_weight", largest, levels, count)
    if (sweep.copies > 1).any():
        grouped = np.maximum(sweep.largest, sweep.own * sweep.copies[:, None, None])
        curves |= split("group_weight", mean(grouped, replicates=bootstrap), levels, count)
    log_size = mean(np.log(sweep.effective_size[..., :count]), 0, np.log(total))
    return curves | {
        "own_weight": own.mean(axis=(0, 1)),
        "own_weight_lower_bound": lower,
        "own_weight_upper_bound": upper,
        "entropy": mean(sweep.entropy[..., :count], 0, np.log(total)),
        "effective_size": Estimate(*map(np.exp, log_size)),
        "exposure": exposure.exposure(index, levels, sweep.own, sweep.copies - 1),
    }
