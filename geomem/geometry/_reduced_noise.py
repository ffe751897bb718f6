"""What distances of noised points to all points are made of: rows, and coordinates for the noise.

Fewer dimensions, same law. Where N + 1 < d, write z = (z', z'') with z' its part in the span of the
centred training points and of one held-out x, at most N + 1 dimensions. The inner products
<z, x - x_i> depend on z' alone, ||z||^2 = ||z'||^2 + ||z''||^2, and z'' is independent of z' with
||z''||^2 chi-square of d - N - 1 degrees of freedom. So orthonormal coordinates of the training
points (N numbers each), the held-out point's coordinates there and its distance to their span (one
number more) give, with standard normal z' and that chi-square, the same joint law of all
||x + sigma z - x_i||, for a third of the random numbers and products at N = 1,000, d = 3,072.
"""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from geomem.points import passes
from geomem.points.placement import Points, Stream, as_points
from geomem.points.products import centre, inner_products

__all__ = ["Frame", "direct_frame", "reduced_frame", "with_coordinates"]


class Frame(NamedTuple):
    """Points to measure distances between, and coordinates to take inner products with noise in.

    Attributes:
      points: the training points: rows [N, d], or (rows [N, d], their coordinates [N, r]).
      queries: [M, d], the points that are noised, or None for the training points themselves.
      origin: [d]; coordinates that are not given are the point less the origin.
      query_coordinates: [M, r] or None.
      missing: float scalar, d - r: dimensions of the noise that only its norm sees.
      reach: float scalar, no smaller than any distance between points, or None.
    """

    points: Points | Stream
    queries: jax.Array | None
    origin: jax.Array
    query_coordinates: jax.Array | None
    missing: jax.Array
    reach: jax.Array | None = None

    @property
    def reduced(self) -> bool:
        """Whether coordinates are given."""
        return isinstance(self.points, Points) and isinstance(self.points.rows, tuple)

    @property
    def rank(self) -> int:
        """r, how many coordinates there are."""
        return self.points.rows[1].shape[1] if self.reduced else self.points.shape[1]

    def of_points(self) -> Frame:
        """The frame whose queries are the points themselves."""
        reach = passes.run(self.points, _Reach(), (jnp.zeros(1),), self.origin)[0]
        return self._replace(queries=None, query_coordinates=None, reach=reach)

    def query(self, index: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Queries [B, d] and their coordinates [B, r]."""
        if self.queries is None:
            return with_coordinates(self.points.take(index), self.origin)
        rows = self.queries[index]
        if self.query_coordinates is None:
            return rows, rows - self.origin
        return rows, self.query_coordinates[index]


def with_coordinates(rows: Any, origin: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Rows [B, d] of a frame's points and their coordinates [B, r], computed now if not given."""
    return rows if isinstance(rows, tuple) else (rows, rows - origin)


def direct_frame(points: jax.Array | Points | Stream, queries: jax.Array) -> Frame:
    """The frame of all d dimensions: points [N, d], queries [M, d]."""
    points = as_points(points)
    return Frame(points, jnp.asarray(queries), points.centre(), None, jnp.float32(0))


def reduced_frame(points: jax.Array, queries: jax.Array) -> Frame:
    """The frame of N + 1 dimensions (see the module's docstring), for N + 1 < d."""
    return _reduced_frame(jnp.asarray(points), jnp.asarray(queries))


@jax.jit
def _reduced_frame(points, queries):
    count, dim = points.shape
    origin = centre(points)
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


@dataclasses.dataclass(frozen=True)
class _Reach:
    """A `passes.Pass`: twice the largest distance from the origin, no smaller than any distance."""

    def start(self, context, query):
        return query

    def nothing(self, context, state):
        return jnp.zeros(len(state))

    def update(self, context, state):
        def add(largest, rows, _, fresh):
            points = rows[0] if isinstance(rows, tuple) else rows
            norms = jnp.sum((points - context) ** 2, axis=1)
            return jnp.maximum(largest, jnp.max(jnp.where(fresh, norms, 0)))

        return add

    def combine(self, partial, group):
        return group.max(partial)

    def result(self, context, state, partial, group):
        return 2 * jnp.sqrt(partial)
