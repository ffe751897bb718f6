"""Where further noise levels go: into the cells of a grid in which a curve changes most.

The place comes from a pilot in NumPy, on few images with one noise draw each: compiling a first
pass for it would take longer than the pilot, and a pass over the points costs little more with a
few levels more.
"""

from __future__ import annotations

from collections.abc import Callable

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Float32

from geomem.points.exact import check_counts
from geomem.points.visit import PlacedPoints, Points

__all__ = ["pilot_coverage", "pilot_max_weight", "refined_grid", "refined_sigmas"]

_IMAGES = 64  # noised in the pilot
_POINTS, _VALUES = 20_000, 2**26  # of all points, at most, in the pilot (256 MB, twice)


def pilot_coverage(
    rng: np.random.Generator, points: PlacedPoints, heldout, sigmas, limits
) -> Float[np.ndarray, " levels"]:
    """Return a rough C(sigma): coverage of some held-out points with one noise draw each.

    Args:
      rng: of the noise and the choice of points.
      points: the training points.
      heldout: [M, d].
      sigmas: [S].
      limits: squared shell radii in units of sigma^2.
    """
    index = rng.permutation(len(heldout))[:_IMAGES]
    rows, _ = _some(rng, points)
    squares, inner, norms = _products(rng, rows, np.asarray(heldout)[np.sort(index)])
    coverage = []
    for sigma in np.asarray(sigmas):
        radius2 = squares / sigma**2 + 2 * inner / sigma + norms
        coverage.append(((limits[0] <= radius2) & (radius2 <= limits[1])).any(axis=1).mean())
    return np.array(coverage)


def pilot_max_weight(
    rng: np.random.Generator, points: PlacedPoints, sigmas
) -> Float[np.ndarray, " levels"]:
    """Return a rough W(sigma) from some training points with one noise draw each; see above."""
    rows, index = _some(rng, points)
    own = rng.permutation(len(index))[:_IMAGES]
    squares, inner, _ = _products(rng, rows, rows[own])
    squares[np.arange(len(own)), own] = inner[np.arange(len(own)), own] = 0
    weight = []
    for sigma in np.asarray(sigmas, np.float64):
        logit = -(squares / (2 * sigma) + inner) / sigma
        logit -= logit.max(axis=1, keepdims=True)
        weight.append((1 / np.exp(logit).sum(axis=1)).mean())
    return np.array(weight)


def _some(rng, points):
    """(rows [n, d], index [n]) of the points, or of a random part of many."""
    index = np.arange(len(points))
    most = min(_POINTS, max(_IMAGES, _VALUES // points.shape[1]))
    if len(index) > most:
        index = np.sort(rng.permutation(index)[:most])
    if isinstance(points, Points) and isinstance(points.rows, tuple):  # a reduced frame's
        return np.asarray(points.rows[0])[index], index
    return np.asarray(points.take(jnp.asarray(index))), index


def _products(rng, points, queries):
    """||x - x_i||^2, <z, x - x_i> [m, n] and ||z||^2 [m, 1] of one draw z for each query x."""
    center = points.mean(axis=0)
    points, queries = points - center, queries - center
    z = rng.standard_normal(queries.shape, np.float32)
    norms = np.einsum("nd,nd->n", points, points)  # without a copy
    squares = (queries**2).sum(axis=1)[:, None] + norms - 2 * queries @ points.T
    inner = (z * queries).sum(axis=1)[:, None] - z @ points.T
    return np.maximum(squares, 0), inner, (z**2).sum(axis=1)[:, None]


def refined_grid(
    sigmas: Float[np.ndarray, " levels"], count: int, pilot: Callable[[], np.ndarray]
) -> Float[np.ndarray, " more"]:
    """Return the grid, and after it `count` more levels where the pilot's curve changes most."""
    check_counts(0, refine=count)
    if count == 0 or len(sigmas) == 1:
        return sigmas
    extra = refined_sigmas(sigmas, pilot(), count)
    return np.concatenate([sigmas, extra])


def refined_sigmas(
    sigmas: Float[np.ndarray, " levels"], values: Float[np.ndarray, " levels"], count: int
) -> Float32[np.ndarray, " count"]:
    """Return `count` levels inside the cells of a grid, more of them where a curve changes more.

    One level after the other goes to the cell whose pieces, of equal width in log sigma, differ
    most in the curve's logit.

    Args:
      sigmas: [S], ascending, S >= 2.
      values: [S], the curve.
      count: number of levels.

    >>> refined_sigmas(np.array([1.0, 4.0, 8.0]), np.array([0.0, 0.9, 1.0]), 1)
    array([2.], dtype=float32)
    """
    # Shrunk, so that noise near 0 and 1 does not attract levels.
    shrunk = 0.02 + 0.96 * np.asarray(values, np.float64)
    change = np.abs(np.diff(np.log(shrunk / (1 - shrunk))))
    grid = np.log(np.asarray(sigmas, np.float64))
    pieces = np.ones(len(change), int)
    for _ in range(count):
        pieces[np.argmax(change / pieces)] += 1
    cells = zip(grid[:-1], grid[1:], pieces, strict=True)
    inner = [np.linspace(low, high, number + 1)[1:-1] for low, high, number in cells]
    return np.exp(np.concatenate(inner)).astype(np.float32)
