"""Squared distances and nearest neighbours that cancellation does not reach.

||y - x||^2 = ||y||^2 + ||x||^2 - 2 <y, x> costs one matrix product, but in float32 it is wrong by
about 1e-7 (||y||^2 + ||x||^2), however close y and x are. So the product only screens, on centred
data, and what is close is computed again from the difference y - x.
Memory: queries in blocks, points in chunks; never queries x points x dimensions.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
from jax import lax

__all__ = [
    "CHUNK",
    "Leaders",
    "Nearest",
    "centre",
    "fold_chunks",
    "inner_products",
    "map_rows",
    "merge_leaders",
    "nearest",
    "no_leaders",
    "squared_distances",
    "two_nearest",
]

CHUNK = 2048  # points per step: fills the matrix units, and stays in a CPU's cache
QUERIES = 1024  # queries per block
_GATHERED = 2**21  # float32 values gathered at once when candidates are recomputed (8 MB)
_CLOSE = 1e-2  # below this fraction of ||x||^2 + ||y||^2 a squared distance is recomputed
_CLOSE_COUNT = 4  # recomputed at once, for each row
_NEAREST_COUNT = 8
_SAFETY = 4  # the largest screening error of all points over that of the candidates
_GROUP = 16


class Leaders(NamedTuple):
    """The best-scored points of each query so far, by score, then by index.

    Attributes:
      score: [Q, K], descending; -inf marks an empty place.
      index: int32 [Q, K], positions in the points.
    """

    score: jax.Array
    index: jax.Array


class Nearest(NamedTuple):
    """The K nearest points of each query.

    Attributes:
      distance: [Q, K], Euclidean, ascending.
      index: int32 [Q, K]; of equally distant points the one with the smaller index comes first.
    """

    distance: jax.Array
    index: jax.Array


def inner_products(x: jax.Array, y: jax.Array) -> jax.Array:
    """<x_i, y_j> in true float32 on every device: [Q, d], [N, d] -> [Q, N]."""
    # The enum, not a name: "default" would be TF32 on a GPU and bfloat16 on a TPU.
    return lax.dot_general(x, y, (((1,), (1,)), ((), ())), precision=lax.Precision.HIGHEST)


def centre(points: jax.Array) -> jax.Array:
    """The mean of `points` [N, d] to about five digits, [d].

    With its last bits empty, x - centre is exact for x near it, and stays so when the compiler
    fuses the mean's own multiplication into the subtraction.
    """
    return lax.reduce_precision(points.mean(axis=0), exponent_bits=8, mantissa_bits=16)


def fold_chunks(
    points: Any,
    carry: Any,
    update: Callable[[Any, Any, jax.Array, jax.Array], Any],
    chunk: int = CHUNK,
) -> Any:
    """Fold `update` over `points` [N, d] in chunks of P = min(chunk, N) rows, without copying them.

    Args:
      points: [N, d], or a pytree of arrays [N, ...].
      carry: the initial state, a pytree.
      update: (carry, rows [P, d], index int32 [P], fresh bool [P]) -> carry. The last chunk ends at
        N and may overlap the one before it; `fresh` is False for rows already seen.
      chunk: largest number of rows at once.

    Returns:
      The final carry.
    """
    total = len(jax.tree.leaves(points)[0])
    size = min(chunk, total)

    def body(step, carry):
        start = jnp.minimum(step * size, total - size)
        index = start + jnp.arange(size, dtype=jnp.int32)
        rows = jax.tree.map(lambda a: lax.dynamic_slice_in_dim(a, start, size), points)
        return update(carry, rows, index, index >= step * size)

    count = -(-total // size)
    return body(0, carry) if count == 1 else lax.fori_loop(0, count, body, carry)


def map_rows(f: Callable[..., Any], rows: tuple, block: int) -> Any:
    """Apply `f` to blocks of at most `block` rows of the arrays `rows`; memory is that of a block.

    Args:
      f: takes as many arrays as `rows` has, each [B, ...], and returns a pytree of [B, ...].
      rows: arrays [Q, ...] of the same Q. The last block is filled up with copies of the last row.
      block: largest B.

    Returns:
      The pytree of [Q, ...].
    """
    total = len(rows[0])
    size = min(block, total)
    count = -(-total // size)
    if count == 1:
        return f(*rows)

    def blocks(a):
        padding = [(0, count * size - total)] + [(0, 0)] * (a.ndim - 1)
        return jnp.pad(a, padding, mode="edge").reshape(count, size, *a.shape[1:])

    mapped = lax.map(lambda args: f(*args), tuple(blocks(a) for a in rows))
    return jax.tree.map(lambda a: a.reshape(count * size, *a.shape[2:])[:total], mapped)


def no_leaders(queries: int, count: int) -> Leaders:
    """Leaders [Q, K] with every place empty."""
    shape = (queries, count)
    return Leaders(jnp.full(shape, -jnp.inf), jnp.zeros(shape, jnp.int32))


def merge_leaders(leaders: Leaders, score: jax.Array, index: jax.Array) -> Leaders:
    """The leaders among `leaders` [Q, K] and points with `score` [Q, P], ascending `index` [P]."""
    queries, size = score.shape
    count = leaders.score.shape[1]
    new = jnp.broadcast_to(index, score.shape)
    if size % _GROUP == 0 and size >= _GROUP * count:
        # The best K lie in the K groups with the best maxima: a far shorter list to select from.
        grouped = score.reshape(queries, -1, _GROUP)
        groups = jnp.sort(lax.top_k(grouped.max(axis=2), count)[1], axis=1)
        score = jnp.take_along_axis(grouped, groups[:, :, None], 1).reshape(queries, -1)
        new = index[0] + (groups[:, :, None] * _GROUP + jnp.arange(_GROUP)).reshape(queries, -1)
    score = jnp.concatenate([leaders.score, score], axis=1)
    new = jnp.concatenate([leaders.index, new], axis=1)
    score, place = lax.top_k(score, count)
    return Leaders(score, jnp.take_along_axis(new, place, 1))


def gather_block(count: int, dim: int) -> int:
    """How many queries may gather `count` points of dimension `dim` at once."""
    return max(1, _GATHERED // (count * dim))


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


@functools.partial(jax.jit, static_argnames=("count", "chunk"))
def nearest(
    queries: jax.Array, points: jax.Array, count: int = 2, *, chunk: int = CHUNK
) -> Nearest:
    """The K = `count` nearest points of each query, exactly.

    Candidates come from bfloat16 products over chunks of points, their distances from differences.
    The search goes on until four times the screening error that the candidates show rules all
    other points out.

    Args:
      queries: float32 [Q, d].
      points: float32 [N, d], N >= K.
      count: K.
      chunk: points per matrix product.

    Returns:
      Nearest, [Q, K].

    Raises:
      ValueError: fewer than K points.
    """
    chex.assert_equal_shape_suffix((queries, points), 1)
    if len(points) < count:
        raise ValueError(f"points: {len(points)}, wanted {count} or more")
    block = functools.partial(
        _nearest_block, points=points, origin=centre(points), count=count, chunk=chunk
    )
    squares, index = map_rows(block, (queries,), QUERIES)
    return Nearest(jnp.sqrt(squares), index)


def two_nearest(queries: jax.Array, points: jax.Array, *, chunk: int = CHUNK) -> Nearest:
    """The two nearest points of each query: `nearest` with K = 2."""
    return nearest(queries, points, 2, chunk=chunk)


def _nearest_block(queries, *, points, origin, count, chunk):
    centred = queries - origin
    norms = jnp.sum(centred**2, axis=1, keepdims=True)
    candidates = min(max(_NEAREST_COUNT, count), len(points))

    narrow = (2 * centred).astype(jnp.bfloat16)

    def search(state):
        best, best_index, cutoff, error, _ = state

        def update(leaders, rows, index, fresh):
            rows = rows - origin
            # bfloat16 is enough to propose: no distance is made of it, and its error is measured.
            products = lax.dot_general(
                narrow,
                rows.astype(jnp.bfloat16),
                (((1,), (1,)), ((), ())),
                preferred_element_type=jnp.float32,
            )
            score = products - jnp.sum(rows**2, axis=1)
            return merge_leaders(
                leaders, jnp.where(fresh & after(score, index, cutoff), score, -jnp.inf), index
            )

        leaders = fold_chunks(points, no_leaders(len(queries), candidates), update, chunk)
        found = leaders.score > -jnp.inf
        squares = jnp.where(found, _redone(queries, points, leaders.index), jnp.inf)
        gap = jnp.where(found, jnp.abs(norms - leaders.score - squares), 0)
        error = jnp.maximum(error, gap.max(axis=1))
        # Sorted by distance, then by index.
        squares = jnp.concatenate([best, squares], axis=1)
        index = jnp.concatenate([best_index, leaders.index], axis=1)
        squares, index = lax.sort((squares, index), dimension=1, num_keys=2)
        last = last_leader(leaders)
        # Written so that a NaN, which no further search removes, counts as done.
        open_ = norms[:, 0] - last.score[:, 0] - _SAFETY * error <= squares[:, count - 1]
        return squares[:, :count], index[:, :count], last, error, ~open_.any()

    start = (
        jnp.full((len(queries), count), jnp.inf),
        jnp.full((len(queries), count), len(points), jnp.int32),
        first_leader(len(queries)),
        jnp.zeros(len(queries)),
        jnp.array(False),
    )
    squares, index, *_ = lax.while_loop(lambda state: ~state[-1], search, start)
    return squares, index


def first_leader(queries: int) -> Leaders:
    """A cutoff [Q, 1] that every point comes after."""
    shape = (queries, 1)
    return Leaders(jnp.full(shape, jnp.inf), jnp.full(shape, -1, jnp.int32))


def last_leader(leaders: Leaders) -> Leaders:
    """The worst of the leaders, as a cutoff [Q, 1] for the next search."""
    return Leaders(leaders.score[:, -1:], leaders.index[:, -1:])


def after(score: jax.Array, index: jax.Array, cutoff: Leaders) -> jax.Array:
    """Whether points with `score` [Q, P] and `index` [P] come after `cutoff` [Q, 1]: [Q, P]."""
    return (score < cutoff.score) | ((score == cutoff.score) & (index > cutoff.index))
