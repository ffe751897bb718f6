"""Squared distances and nearest neighbours that cancellation does not reach.

||y - x||^2 = ||y||^2 + ||x||^2 - 2 <y, x> costs one matrix product, but in float32 it is wrong by
about 1e-7 (||y||^2 + ||x||^2), however close y and x are. So the product only screens, on centred
data, and what is close is computed again from the difference y - x.
Memory: queries in blocks, points in chunks; never queries x points x dimensions.
"""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
from jax import lax

from geomem.points import passes
from geomem.points.blocks import CHUNK, gather_block, map_rows
from geomem.points.placement import Points, Stream, as_points
from geomem.points.products import centre, inner_products
from geomem.points.top_candidates import (
    Leaders,
    after,
    first_leader,
    last_leader,
    merge_leaders,
    no_leaders,
)

__all__ = ["Nearest", "nearest", "squared_distances", "two_nearest"]

_CLOSE = 1e-2  # below this fraction of ||x||^2 + ||y||^2 a squared distance is recomputed
_CLOSE_COUNT = 4  # recomputed at once, for each row
_NEAREST_COUNT = 8  # candidates of a pass, at least
_SAFETY = 4  # the largest screening error of all points over that of the candidates


class Nearest(NamedTuple):
    """The K nearest points of each query.

    Attributes:
      distance: [Q, K], Euclidean, ascending.
      index: int32 [Q, K]; of equally distant points the one with the smaller index comes first.
    """

    distance: jax.Array
    index: jax.Array


def _redone(x, points, index):
    """||x - points[index]||^2 from differences: [Q, d], int [Q, K] -> [Q, K]."""

    def block(x, index):
        return jnp.sum((x[:, None, :] - points[index]) ** 2, axis=2)

    return map_rows(block, (x, index), gather_block(index.shape[1], x.shape[1]))


@jax.jit
def squared_distances(x: jax.Array, points: jax.Array) -> jax.Array:
    """||x_i - p_j||^2, with a relative error of about 1e-5 or less however close x_i and p_j are.

    One matrix product; then every pair closer than a tenth of its norms is redone from differences.

    Args:
      x: float32 [Q, d].
      points: float32 [N, d].

    Returns:
      float32 [Q, N]; exactly 0 for equal rows.
    """
    chex.assert_equal_shape_suffix((x, points), 1)
    origin = centre(points)
    centred, others = x - origin, points - origin
    scale = jnp.sum(centred**2, axis=1)[:, None] + jnp.sum(others**2, axis=1)
    screened = jnp.maximum(scale - 2 * inner_products(centred, others), 0)
    rows = jnp.arange(len(x))[:, None]
    count = min(_CLOSE_COUNT, len(points))

    def redo(state):
        squares, pending = state
        value, index = lax.top_k(jnp.where(pending, -screened, -jnp.inf), count)
        exact = jnp.where(value > -jnp.inf, _redone(x, points, index), squares[rows, index])
        return squares.at[rows, index].set(exact), pending.at[rows, index].set(False)

    pending = screened < _CLOSE * scale
    return lax.while_loop(lambda state: state[1].any(), redo, (screened, pending))[0]


def nearest(
    queries: jax.Array,
    points: jax.Array | Points | Stream,
    count: int = 2,
    *,
    chunk: int = CHUNK,
) -> Nearest:
    """The K = `count` nearest points of each query, exactly.

    Candidates come from bfloat16 products over chunks of points, their distances from differences.
    The search goes on until four times the screening error that the candidates show rules all
    other points out.

    Args:
      queries: float32 [Q, d].
      points: float32 [N, d], N >= K; or what `placement.shard` or `placement.stream` returns.
      count: K.
      chunk: points per matrix product.

    Returns:
      Nearest, [Q, K].

    Raises:
      ValueError: fewer than K points.
    """
    points = as_points(points)
    chex.assert_equal_shape_suffix((queries, points), 1)
    if len(points) < count:
        raise ValueError(f"points: {len(points)}, wanted {count} or more")
    return passes.run(points, _NearestSearch(len(points), count), (queries,), chunk=chunk)


def two_nearest(
    queries: jax.Array, points: jax.Array | Points | Stream, *, chunk: int = CHUNK
) -> Nearest:
    """The two nearest points of each query: `nearest` with K = 2."""
    return nearest(queries, points, 2, chunk=chunk)


class _State(NamedTuple):
    queries: jax.Array  # [B, d]
    norms: jax.Array  # [B, 1], from the origin
    squares: jax.Array  # [B, K], of the nearest so far
    index: jax.Array  # int32 [B, K]
    cutoff: Leaders  # candidates come after it
    error: jax.Array  # [B], largest screening error so far
    done: jax.Array  # [B]


@dataclasses.dataclass(frozen=True)
class _NearestSearch:
    """A `passes.Search`; the context is the origin."""

    total: int  # number of points
    count: int  # how many are wanted

    def start(self, origin, queries):
        count = len(queries)
        return _State(
            queries,
            jnp.sum((queries - origin) ** 2, axis=1, keepdims=True),
            jnp.full((count, self.count), jnp.inf),
            jnp.full((count, self.count), self.total, jnp.int32),
            first_leader(count),
            jnp.zeros(count),
            jnp.zeros(count, bool),
        )

    def nothing(self, origin, state):
        # Twice those wanted: with as many, no pass could rule the other points out.
        count = min(max(_NEAREST_COUNT, 2 * self.count), self.total)
        return no_leaders(len(state.queries), count)

    def update(self, origin, state):
        narrow = (2 * (state.queries - origin)).astype(jnp.bfloat16)

        def propose(leaders, rows, index, fresh):
            rows = rows - origin
            # bfloat16 is enough to propose: no distance is made of it, and its error is measured.
            products = lax.dot_general(
                narrow,
                rows.astype(jnp.bfloat16),
                (((1,), (1,)), ((), ())),
                preferred_element_type=jnp.float32,
            )
            score = products - jnp.sum(rows**2, axis=1)
            score = jnp.where(fresh & after(score, index, state.cutoff), score, -jnp.inf)
            return merge_leaders(leaders, score, index)

        return propose

    def combine(self, leaders, group):
        return group.merge(leaders)

    def leaders(self, leaders):
        return leaders

    def redo(self, origin, state, leaders, rows, here, group):
        squares = jnp.sum((state.queries[:, None, :] - rows) ** 2, axis=2)
        squares = group.only(squares, here)
        return jnp.where(leaders.score > -jnp.inf, squares, jnp.inf)

    def advance(self, state, leaders, squares):
        found = leaders.score > -jnp.inf
        gap = jnp.where(found, jnp.abs(state.norms - leaders.score - squares), 0)
        error = jnp.maximum(state.error, gap.max(axis=1))
        # Sorted by distance, then by index.
        squares = jnp.concatenate([state.squares, squares], axis=1)
        index = jnp.concatenate([state.index, leaders.index], axis=1)
        squares, index = lax.sort((squares, index), dimension=1, num_keys=2)
        last = last_leader(leaders)
        # Written so that a NaN, which no further search removes, counts as done.
        open_ = state.norms[:, 0] - last.score[:, 0] - _SAFETY * error <= squares[:, self.count - 1]
        return state._replace(
            squares=squares[:, : self.count],
            index=index[:, : self.count],
            cutoff=last,
            error=error,
            done=~open_,
        )

    def result(self, origin, state, partial, group):
        return Nearest(jnp.sqrt(state.squares), state.index)
