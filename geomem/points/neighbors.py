"""Squared distances and nearest neighbors without cancellation.

||y - x||^2 = ||y||^2 + ||x||^2 - 2 <y, x> costs one matrix product, but in float32 it is wrong by
about 1e-7 (||y||^2 + ||x||^2), however close y and x are. So the product of centered data only
screens the pairs, and small distances are computed again from the difference y - x. Queries are
processed in blocks and points in chunks; no array of queries x points x dimensions is built.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float, Int, Shaped

from geomem.points.exact import (
    CHUNK,
    Candidates,
    as_queries,
    as_rows,
    center,
    decode,
    gather_block,
    inner_products,
    map_rows,
    merge_candidates,
)
from geomem.points.visit import PlacedPoints, Search, as_points

__all__ = ["Nearest", "nearest", "squared_distances", "two_nearest"]

_CLOSE = 1e-2  # below this fraction of ||x||^2 + ||y||^2 a squared distance is recomputed
_CLOSE_COUNT = 4  # distances of each row that are recomputed at once
_CANDIDATES = 8  # least number of candidates in a pass
_SAFETY = 4  # assumed ratio of the largest screening error of all points to that of the candidates


class Nearest(NamedTuple):
    """The K nearest points of each query.

    Attributes:
      distance: [Q, K], Euclidean, ascending.
      index: int32 [Q, K]; equally distant points are ordered by index.
    """

    distance: Float[Array, "queries k"]
    index: Int[Array, "queries k"]


def _from_differences(x, points, index):
    """||x - points[index]||^2: [Q, d], [N, d], int [Q, K] -> [Q, K]."""

    def block(x, index):
        return jnp.sum((x[:, None, :] - points[index]) ** 2, axis=2)

    return map_rows(block, (x, index), gather_block(index.shape[1], x.shape[1]))


@jax.jit
def squared_distances(
    x: Shaped[ArrayLike, "queries dim"],
    points: Shaped[ArrayLike, "points dim"],
    same: Bool[ArrayLike, "queries points"] | None = None,
) -> Float[Array, "queries points"]:
    """Return ||x_i - p_j||^2 with a relative error of about 1e-5 at most, however close they are.

    One matrix product gives all pairs; pairs closer than about a tenth of their norms are then
    computed again from differences.

    Args:
      x: float32 [Q, d].
      points: float32 [N, d].
      same: bool [Q, N], pairs known to be equal, whose distances need not be computed again.

    Returns:
      float32 [Q, N]; exactly 0 for equal rows.
    """
    points = decode(as_rows(points, "points"))
    x = as_queries(x, points.shape, "x")
    origin = center(points)
    centered, others = x - origin, points - origin
    scale = jnp.sum(centered**2, axis=1)[:, None] + jnp.sum(others**2, axis=1)
    screened = jnp.maximum(scale - 2 * inner_products(centered, others), 0)
    pending = screened < _CLOSE * scale
    if same is not None:
        screened, pending = jnp.where(same, 0, screened), pending & ~jnp.asarray(same)
    rows = jnp.arange(len(x))[:, None]
    count = min(_CLOSE_COUNT, len(points))

    def repeat_closest(state):
        squares, pending = state
        value, index = lax.top_k(jnp.where(pending, -screened, -jnp.inf), count)
        exact = _from_differences(x, points, index)
        exact = jnp.where(value > -jnp.inf, exact, squares[rows, index])
        return squares.at[rows, index].set(exact), pending.at[rows, index].set(False)

    return lax.while_loop(lambda state: state[1].any(), repeat_closest, (screened, pending))[0]


def nearest(
    queries: Shaped[ArrayLike, "queries ..."],
    points: Shaped[ArrayLike, "points ..."] | PlacedPoints,
    count: int = 2,
    *,
    chunk: int = CHUNK,
) -> Nearest:
    """Return the K = `count` nearest points of each query, exactly.

    bfloat16 products over chunks of points propose candidates, and differences give their
    distances. The comparison shows the screening error. The search ends once no other point can be
    among the nearest, even with four times that error.

    Args:
      queries: [Q, d] or images [Q, ...].
      points: [N, d] or images [N, ...], N >= K; or placed points (`placement.shard`, `.stream`).
      count: K.
      chunk: points per matrix product.

    Returns:
      Nearest, [Q, K].

    Raises:
      ValueError: K outside 1..N, or shapes or types that do not match.
    """
    placed = as_points(points)
    queries, points = as_queries(queries, np.shape(points), "queries"), placed
    if not 1 <= count <= len(points):
        raise ValueError(f"count must be 1 to {len(points)}, the number of points, got {count}.")
    return points.run(_nearest_search(len(points), count), (queries,), chunk=chunk)


def two_nearest(
    queries: Shaped[ArrayLike, "queries ..."],
    points: Shaped[ArrayLike, "points ..."] | PlacedPoints,
    *,
    chunk: int = CHUNK,
) -> Nearest:
    """Return the two nearest points of each query: `nearest` with K = 2."""
    return nearest(queries, points, 2, chunk=chunk)


class _State(NamedTuple):
    queries: jax.Array  # [B, d]
    norms: jax.Array  # [B, 1], squared, from the origin
    squares: jax.Array  # [B, K], squared distances to the nearest so far
    index: jax.Array  # int32 [B, K]
    cutoff: Candidates  # the next candidates come after it
    error: jax.Array  # [B], the largest screening error so far
    done: jax.Array  # [B]


@functools.cache
def _nearest_search(total: int, count: int) -> Search:
    """The search for the `count` nearest of `total` points; the context is the origin."""

    def start(origin, queries):
        size = len(queries)
        return _State(
            queries,
            jnp.sum((queries - origin) ** 2, axis=1, keepdims=True),
            jnp.full((size, count), jnp.inf),
            jnp.full((size, count), total, jnp.int32),
            Candidates.before_all(size),
            jnp.zeros(size),
            jnp.zeros(size, bool),
        )

    def empty(origin, state):
        # Twice as many as asked for; with exactly `count`, no pass could rule out the other points.
        size = min(max(_CANDIDATES, 2 * count), total)
        return (), Candidates.none(len(state.queries), size)

    def update(origin, state):
        narrow = (2 * (state.queries - origin)).astype(jnp.bfloat16)

        def propose(partial, rows, index, valid):
            rows = rows - origin
            # bfloat16 is enough to propose candidates: no distance is computed from it, and its
            # error is measured.
            products = lax.dot_general(
                narrow,
                rows.astype(jnp.bfloat16),
                (((1,), (1,)), ((), ())),
                preferred_element_type=jnp.float32,
            )
            score = products - jnp.sum(rows**2, axis=1)
            score = jnp.where(valid & state.cutoff.precede(score, index), score, -jnp.inf)
            return (), merge_candidates(partial[1], score, index)

        return propose

    def combine(partial, group):
        return (), group.merge(partial[1])

    def recheck(origin, state, candidates, rows, owned, group):
        squares = jnp.sum((state.queries[:, None, :] - rows) ** 2, axis=2)
        return jnp.where(candidates.score > -jnp.inf, group.share(squares, owned), jnp.inf)

    def advance(state, partial, squares):
        _, candidates = partial
        valid = candidates.score > -jnp.inf
        gap = jnp.where(valid, jnp.abs(state.norms - candidates.score - squares), 0)
        error = jnp.maximum(state.error, gap.max(axis=1))
        # Sorted by distance, then by index.
        squares = jnp.concatenate([state.squares, squares], axis=1)
        index = jnp.concatenate([state.index, candidates.index], axis=1)
        squares, index = lax.sort((squares, index), dimension=1, num_keys=2)
        last = candidates.last()
        # A lower bound on the squared distances of all other points.
        unseen = state.norms[:, 0] - last.score[:, 0] - _SAFETY * error
        return state._replace(
            squares=squares[:, :count],
            index=index[:, :count],
            cutoff=last,
            error=error,
            # Negated so that NaN, which no further search removes, counts as done. Points whose
            # squared distances overflow are never proposed.
            done=~(unseen <= squares[:, count - 1]) | ~valid.any(axis=1),
        )

    def result(origin, state, group):
        return Nearest(jnp.sqrt(state.squares), state.index)

    return Search(start, empty, update, combine, recheck, advance, result)
