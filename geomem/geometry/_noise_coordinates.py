"""Frames: points to measure distances to, and coordinates for their inner products with noise.

Where N + 1 < d, noise of fewer dimensions gives distances of the same joint distribution. Write
z = (z', z''), where z' is the part of z in the span of the centered training points and of one
held-out x, at most N + 1 dimensions. The inner products <z, x - x_i> depend only on z', and
||z||^2 = ||z'||^2 + ||z''||^2. The two parts are independent, and ||z''||^2 is chi-square with
d - N - 1 degrees of freedom. So it is enough to draw a standard normal z' and that chi-square; the
points are given by the training points' orthonormal coordinates (N numbers each), the held-out
point's coordinates in the same basis, and its distance to their span (one more number). At
N = 1,000 and d = 3,072 this takes a third of the random numbers and products.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import tqdm
from scipy import linalg

from geomem.points.exact import decode
from geomem.points.visit import Pass, PlacedPoints, Points, as_points

__all__ = [
    "Frame",
    "direct_frame",
    "frame",
    "in_blocks",
    "join",
    "reduced_frame",
    "reducible",
    "with_coordinates",
]

_QUERIES = 1024  # most queries noised at once
_HOST_VALUES = 2**26  # most float64 numbers of the points on the host (512 MB)
_HOST_PRODUCTS = 2**34  # most products on the host while an accelerator waits: about a second
_NOISE = 2**26  # most random numbers drawn at once (256 MB)


class Frame(NamedTuple):
    """Points to measure distances between, and coordinates for their inner products with noise.

    Attributes:
      points: the training points: rows [N, d], or (rows [N, d], their coordinates [N, r]).
      queries: [M, d], the points that are noised, or None for the training points themselves.
      origin: [d]; where no coordinates are given, they are the point minus the origin.
      query_coordinates: [M, r] or None.
      missing: float scalar, d - r: the noise dimensions that contribute only to its norm.
      reach: float scalar, an upper bound on the distances between points, or None.
    """

    points: PlacedPoints
    queries: jax.Array | None
    origin: jax.Array
    query_coordinates: jax.Array | None
    missing: np.float32
    reach: jax.Array | np.float32 | None = None

    @property
    def reduced(self) -> bool:
        """Whether coordinates are given."""
        return self._rows() is not None

    @property
    def rank(self) -> int:
        """r, how many coordinates there are."""
        rows = self._rows()
        return self.points.shape[1] if rows is None else rows[1].shape[1]

    def _rows(self) -> tuple | None:
        rows = self.points.rows if isinstance(self.points, Points) else None
        return rows if isinstance(rows, tuple) else None

    def of_points(self) -> Frame:
        """Return the frame whose queries are the points themselves."""
        reach = self.reach
        if reach is None:
            reach = self.points.run(_REACH, (jnp.zeros(1),), self.origin)[0]
        return self._replace(queries=None, query_coordinates=None, reach=reach)

    def query(self, index: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Return queries [B, d] and their coordinates [B, r]."""
        if self.queries is None:
            return with_coordinates(self.points.take(index), self.origin)
        rows = self.queries[index]
        if self.query_coordinates is None:
            return rows, rows - self.origin
        return rows, self.query_coordinates[index]


def with_coordinates(rows: Any, origin: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Return rows [B, d] of a frame's points and their coordinates [B, r], given or computed."""
    return rows if isinstance(rows, tuple) else (rows, rows - origin)


def frame(points: PlacedPoints, heldout: Any, noised: int) -> Frame:
    """Return the cheaper frame for this many noised copies of `heldout`, or None, and the points.

    Raises:
      ValueError: fewer than 2 points, or held-out points of another dimension.
    """
    if len(points) < 2:
        raise ValueError(f"train must hold at least 2 points, got {len(points)}.")
    heldout = points.take(jnp.arange(1)) if heldout is None else decode(heldout)
    if heldout.shape[1] != points.shape[1]:
        columns = f"{points.shape[1]} columns like train"
        raise ValueError(f"heldout must have {columns}, got shape {heldout.shape}.")
    # The reduction saves d - N of d dimensions and costs about as much as N + M noised copies.
    (n, d), heldouts = points.shape, len(heldout)
    worth_it = reducible(n, heldouts, d) and noised * (d - n) > (n + heldouts) * d
    if worth_it and isinstance(points, Points) and points.mesh is None:
        # Rounding errors can make the Gram matrix of many images in few dimensions indefinite.
        with contextlib.suppress(linalg.LinAlgError):
            return reduced_frame(decode(points.rows), heldout)
    return direct_frame(points, heldout)


def reducible(points: int, heldout: int, dim: int) -> bool:
    """Whether the host can reduce the dimensions of N and M points [d], in memory and in time."""
    small = points + 1 < dim and points * (dim + 3 * points) <= _HOST_VALUES
    in_time = points * (points + heldout) * dim <= _HOST_PRODUCTS
    return small and (in_time or jax.default_backend() == "cpu")


def direct_frame(points: jax.Array | PlacedPoints, queries: jax.Array) -> Frame:
    """Return the frame of all d dimensions for points [N, d] and queries [M, d]."""
    points = as_points(points)
    return Frame(points, jnp.asarray(queries), points.center(), None, np.float32(0))


def reduced_frame(points: jax.Array | np.ndarray, queries: jax.Array | np.ndarray) -> Frame:
    """Return the frame of N + 1 dimensions (see the module's docstring); needs N + 1 < d.

    With the points' Gram matrix L L^T, L triangular, a point's coordinates are its row of L. In
    float64, on the host: float32 would lose the distances between near copies.

    Raises:
      LinAlgError: the points lie in so few dimensions that rounding errors decide.
    """
    rows, heldout = np.asarray(points, np.float64), np.asarray(queries)
    origin = rows.mean(axis=0)
    rows -= origin
    gram = rows @ rows.T
    largest = np.sqrt(gram.diagonal().max())
    # Centering makes the matrix singular, and so do copies. A relative 1e-12 is above its rounding
    # errors, unless about 600 points or more lie in one or two dimensions.
    gram.flat[:: len(rows) + 1] = gram.diagonal() * (1 + 1e-12) + np.finfo(np.float64).tiny
    # LAPACK overwrites a matrix in Fortran's order, the transpose of this symmetric one.
    factor = linalg.cholesky(gram.T, lower=True, overwrite_a=True, check_finite=False)
    coordinates, size = [], min(_QUERIES, max(1, _HOST_VALUES // (4 * rows.shape[1])))
    for first in range(0, len(heldout), size):
        block = np.float64(heldout[first : first + size]) - origin
        inside = linalg.solve_triangular(factor, rows @ block.T, lower=True, check_finite=False).T
        outside = (block**2).sum(axis=1) - (inside**2).sum(axis=1)  # 0 or more, but for rounding
        coordinates.append(np.column_stack([inside, np.sqrt(np.maximum(outside, 0))]))
    padded = np.zeros((len(rows), len(rows) + 1), np.float32)
    padded[:, :-1] = factor
    return Frame(
        Points((jnp.asarray(points), jnp.asarray(padded)), len(rows)),
        jnp.asarray(queries),
        _float32(origin),
        _float32(np.concatenate(coordinates)),
        np.float32(rows.shape[1] - len(rows) - 1),
        np.float32(2 * largest),
    )


def _float32(array):  # converted by NumPy: JAX would compile a program for it
    return jnp.asarray(array.astype(np.float32))


def _reach_update(origin, state):
    def add(largest, rows, _, valid):
        points = rows[0] if isinstance(rows, tuple) else rows
        norms = jnp.sum((points - origin) ** 2, axis=1)
        return jnp.maximum(largest, jnp.max(jnp.where(valid, norms, 0)))

    return add


# Twice the largest distance from the origin: no distance between points is larger.
_REACH = Pass(
    start=lambda origin, query: query,
    empty=lambda origin, state: jnp.zeros(len(state)),
    update=_reach_update,
    combine=lambda partial, group: group.max(partial),
    result=lambda origin, state, partial, group: 2 * jnp.sqrt(partial),
)


def in_blocks(
    index: np.ndarray, frame: Frame, draws: int, kernel: Callable, label: str | None
) -> list[Any]:
    """Return `kernel(index, frame)` over blocks of the queries `index` [M], for `join`.

    The device may still be at work on the last two.
    """
    size = min(_QUERIES, len(index), max(1, _NOISE // (draws * frame.rank)))
    starts = range(0, len(index), size)
    blocks = []
    for start in tqdm.tqdm(starts, label, disable=label is None or len(starts) < 3, unit="block"):
        # The last block is filled up, so that there is one shape, one compilation.
        at = np.minimum(np.arange(start, start + size), len(index) - 1)
        blocks.append(kernel(index[at], frame))
        if len(blocks) > 2:  # let the device run ahead of the bar, but not far
            jax.block_until_ready(blocks[-3])
    return blocks


def join(blocks: list[Any], count: int) -> list[Any]:
    """Return the results of `in_blocks`: NumPy arrays [count, ...]."""
    # NumPy from here on: each small operation of JAX would be one more program to compile.
    return [np.concatenate(parts)[:count] for parts in zip(*blocks, strict=True)]
