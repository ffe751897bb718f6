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

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from geomem.points.exact import center, inner_products
from geomem.points.visit import Pass, PlacedPoints, Points, as_points

__all__ = ["Frame", "direct_frame", "reduced_frame", "with_coordinates"]


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
    missing: jax.Array
    reach: jax.Array | None = None

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


def direct_frame(points: jax.Array | PlacedPoints, queries: jax.Array) -> Frame:
    """Return the frame of all d dimensions for points [N, d] and queries [M, d]."""
    points = as_points(points)
    return Frame(points, jnp.asarray(queries), points.center(), None, jnp.float32(0))


def reduced_frame(points: jax.Array, queries: jax.Array) -> Frame:
    """Return the frame of N + 1 dimensions (see the module's docstring); needs N + 1 < d."""
    return _reduced_frame(jnp.asarray(points), jnp.asarray(queries))


@jax.jit
def _reduced_frame(points, queries):
    count, dim = points.shape
    origin = center(points)
    basis, coordinates = jnp.linalg.qr((points - origin).T)
    inside = inner_products(queries - origin, basis.T)
    outside = queries - origin - inner_products(inside, basis)
    distance = jnp.linalg.norm(outside, axis=1, keepdims=True)
    return Frame(
        Points((points, jnp.pad(coordinates.T, ((0, 0), (0, 1)))), count),
        queries,
        origin,
        jnp.concatenate([inside, distance], axis=1),
        jnp.float32(dim - count - 1),
    )


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
