"""Which training points are exposed: up to which noise level the posterior recognizes each.

As a training point is noised more and more, its posterior weight falls from 1. A point far from all
others keeps its weight longest, and a model can memorize it over the widest range of noise levels.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Float, Int
from scipy.special import logit

__all__ = ["Exposure", "exposure"]


class Exposure(NamedTuple):
    """Up to which noise level the posterior recognizes each noised training point.

    Above `sigma`, less than half of the posterior weight is on the point and its exact copies.

    Attributes:
      index: [M], the training points.
      sigma: [M], the geometric mean over the noise draws. A draw that crosses outside the grid of
        noise levels counts with the end of the grid.
      error: [M], standard error of log sigma over the draws; NaN for a single draw.
      copies: [M], number of other training points that equal this one.
    """

    index: Int[np.ndarray, " points"]  # type: ignore[assignment]  # hides tuple.index
    sigma: Float[np.ndarray, " points"]
    error: Float[np.ndarray, " points"]
    copies: Int[np.ndarray, " points"]

    def __repr__(self) -> str:
        """Return the number of points, without values."""
        return f"Exposure({len(self.sigma)} points)"


def exposure(
    index: Int[ArrayLike, " points"],
    sigmas: Float[ArrayLike, " levels"],
    own_weights: Float[ArrayLike, "points draws levels"],
    copies: Int[ArrayLike, " points"],
) -> Exposure:
    """Return the Exposure of points from the weight of each after each noise draw.

    Between two levels, the weight's logit is interpolated linearly in log sigma.

    Args:
      index: the points.
      sigmas: in any order.
      own_weights: the weight of the noised point alone.
      copies: number of other points that equal each point.

    >>> own = np.array([[[0.9, 0.5, 0.1]], [[0.45, 0.3, 0.1]]])
    >>> exposure(np.arange(2), np.array([1.0, 2.0, 4.0]), own, np.array([0, 1])).sigma.round(2)
    array([2.  , 2.34])
    """
    order = np.argsort(np.asarray(sigmas))
    grid = np.log(np.asarray(sigmas, np.float64)[order])
    weights = np.asarray(own_weights, np.float64)[..., order]
    weights = weights * (1 + np.asarray(copies))[:, None, None]
    excess = logit(np.clip(weights, 1e-4, 1 - 1e-4))  # so that rounding near 1 hardly counts
    inside = excess >= 0
    last = len(grid) - 1 - inside[..., ::-1].argmax(axis=-1)
    last = np.where(inside.any(axis=-1), last, -1)  # the last level with at least 1/2
    left, right = (np.clip(last + step, 0, len(grid) - 1) for step in (0, 1))
    above, below = (
        np.take_along_axis(excess, at[..., None], axis=-1)[..., 0] for at in (left, right)
    )
    drop = np.where(right > left, above - below, 1)
    crossing = grid[left] + np.where(right > left, above / drop, 0) * (grid[right] - grid[left])
    draws = crossing.shape[1]
    error = crossing.std(axis=1, ddof=1) / np.sqrt(draws) if draws > 1 else np.nan * crossing[:, 0]
    return Exposure(np.asarray(index), np.exp(crossing.mean(axis=1)), error, np.asarray(copies))
