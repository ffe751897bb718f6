"""Accurate float32 arithmetic for distances, loops over blocks, and the best candidates by score.

In ||y||^2 + ||x||^2 - 2 <y, x> a small distance is lost to cancellation. So products only propose
candidates, and differences decide between them: log(w_j / w_r) needs ||y - r||^2 - ||y - x_j||^2,
which equals <x_j - r, (y - r) + (y - x_j)>, a sum that is small when both distances are nearly
equal.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

__all__ = [
    "CHUNK",
    "QUERIES",
    "TILE",
    "Candidates",
    "as_queries",
    "as_rows",
    "center",
    "check_counts",
    "check_image_shape",
    "check_key",
    "decode",
    "fold_rows",
    "gather_block",
    "inner_products",
    "log_weight_ratios",
    "map_rows",
    "merge_candidates",
    "round_center",
]

Tree = TypeVar("Tree")  # an array, or a pytree of arrays

CHUNK = 2048  # points per step: fills the matrix units, and stays in a CPU's cache
QUERIES = 1024  # queries per block
TILE = 8  # queries: with fewer rows, a product may sum in another order
_GATHERED = 2**21  # float32 values gathered at once when candidates are checked (8 MB)
_ROUNDING = 10 * 2.0**-24  # error of a float32 sum, relative to the l2 norm of its terms
_WEIGHT_ERROR = 3e-6  # largest error that log_weight_ratios may cause in a posterior weight
_PRECISE = 4  # candidates recomputed at once
_GROUP = 16  # scores are first compared in groups of this size


def as_rows(array: Any, name: str) -> jax.Array:
    """Return vectors [N, d] or images [N, ...] as rows [N, d]: float32, or uint8 as stored.

    Raises:
      ValueError: not an array, fewer than two axes, no rows, or values that are neither floats nor
        uint8.
    """
    try:
        array = jnp.asarray(array)
    except (TypeError, ValueError):
        kind = type(array).__name__
        message = f"{name} must be an array or nested lists of equal lengths, got {kind}."
        raise ValueError(message) from None
    if array.ndim < 2 or array.size == 0:
        raise ValueError(f"{name} must be [N, d] or images [N, ...], got shape {array.shape}.")
    if array.dtype != jnp.uint8 and not jnp.issubdtype(array.dtype, jnp.floating):
        raise ValueError(f"{name} must hold floats or uint8, got {array.dtype}.")
    rows = array if array.ndim == 2 else array.reshape(len(array), -1)
    return rows if rows.dtype == jnp.uint8 else rows.astype(jnp.float32)


def as_queries(array: Any, shape: tuple[int, ...], name: str) -> jax.Array:
    """Return vectors or images as float32 rows [Q, d], to be compared with points of `shape`.

    Raises:
      ValueError: as in `as_rows`, another number of dimensions than the points', or images of
        another shape, such as [Q, C, H, W] for points [N, H, W, C].
    """
    rows, dim = as_rows(array, name), math.prod(shape[1:])
    check_image_shape(array, shape, name, "the points")
    if rows.shape[1] != dim:
        raise ValueError(f"{name} must have {dim} values a row like the points, got {rows.shape}.")
    return decode(rows)


def check_image_shape(array: Any, shape: tuple[int, ...], name: str, other: str) -> None:
    """Refuse images [Q, ...] whose values are in another order than in images of `shape` [N, ...].

    Vectors may be compared with images, and axes of length 1 do not matter.

    Raises:
      ValueError: naming the argument and the other one.
    """
    own, expected = np.shape(array), tuple(shape[1:])
    if min(len(own), len(shape)) > 2 and _without_ones(own[1:]) != _without_ones(expected):
        raise ValueError(
            f"{name} must be images of shape {expected} like {other}, got an array of shape {own}."
        )


def check_counts(least: int = 1, **counts: Any) -> None:
    """Raise a ValueError that names the argument unless all are integers of at least `least`."""
    for name, value in counts.items():
        if not isinstance(value, int | np.integer):
            raise ValueError(f"{name} must be an integer, got {value!r}.")
        if value < least:
            raise ValueError(f"{name} must be at least {least}, got {value}.")


def check_key(key: Any) -> None:
    """Raise a ValueError unless `key` is a single PRNG key, of the new or the old style."""
    dtype, shape = getattr(key, "dtype", None), getattr(key, "shape", None)
    typed = dtype is not None and jnp.issubdtype(dtype, jax.dtypes.prng_key)
    if not (shape == () if typed else dtype == jnp.uint32 and shape == (2,)):
        given = repr(key) if shape is None else f"{dtype} of shape {shape}"
        raise ValueError(f"key must be a PRNG key, such as jax.random.key(0), got {given}.")


def _without_ones(shape):
    return tuple(side for side in shape if side != 1)


def decode(rows: Tree) -> Tree:
    """Return rows as float32; stored 8-bit images become x / 127.5 - 1, as by `data.to_float`."""
    return jax.tree.map(lambda a: _decode(a) if a.dtype == jnp.uint8 else a, rows)


def _decode(pixels):
    # The compiler replaces x / 127.5 by a product with the rounded inverse, which can be off by one
    # bit. With only the 16 leading bits of the quotient, the remainder is exact.
    doubled = 2 * pixels.astype(jnp.float32)
    leading = lax.reduce_precision(doubled / 255, exponent_bits=8, mantissa_bits=15)
    return leading + (doubled - 255 * leading) / 255 - 1


def fold_rows(points: Any, partial: Any, update: Callable[..., Any], chunk: int = CHUNK) -> Any:
    """Fold `update` over `points` [N, ...] (a pytree) in chunks of P = min(chunk, N) rows.

    `update` takes (partial, rows [P, ...], index int32 [P], valid bool [P]). The last chunk ends at
    N and may overlap the one before it; `valid` is False for rows that were seen before.
    """
    total = len(jax.tree.leaves(points)[0])
    size = min(chunk, total)

    def step(i, partial):
        start = jnp.minimum(i * size, total - size)
        index = start + jnp.arange(size, dtype=jnp.int32)
        rows = jax.tree.map(lambda a: lax.dynamic_slice_in_dim(a, start, size), points)
        return update(partial, rows, index, index >= i * size)

    count = -(-total // size)
    return step(0, partial) if count == 1 else lax.fori_loop(0, count, step, partial)


def map_rows(f: Callable[..., Any], rows: tuple, block: int) -> Any:
    """Apply `f` to blocks of at most `block` rows of the arrays (or pytrees) `rows`, [Q, ...].

    The last block is padded with copies of the last row. Memory is that of one block.
    """
    total = len(jax.tree.leaves(rows)[0])
    size = min(block, total)
    count = -(-total // size)
    if count == 1:
        return f(*rows)

    def split(a):
        padding = [(0, count * size - total)] + [(0, 0)] * (a.ndim - 1)
        return jnp.pad(a, padding, mode="edge").reshape(count, size, *a.shape[1:])

    mapped = lax.map(lambda args: f(*args), jax.tree.map(split, rows))
    return jax.tree.map(lambda a: a.reshape(count * size, *a.shape[2:])[:total], mapped)


def gather_block(count: int, dim: int) -> int:
    """Return how many queries may gather `count` points of dimension `dim` at once."""
    return max(1, _GATHERED // (count * dim))


def inner_products(x: jax.Array, y: jax.Array) -> jax.Array:
    """Return <x_i, y_j> in true float32 on every device: [Q, d], [N, d] -> [Q, N]."""
    # The default precision would be TF32 on a GPU and bfloat16 on a TPU.
    return lax.dot_general(x, y, (((1,), (1,)), ((), ())), precision=lax.Precision.HIGHEST)


def center(points: jax.Array) -> jax.Array:
    """Return the mean of `points` [N, d], rounded as in `round_center`: [d]."""
    return round_center(points.mean(axis=0))


def round_center(mean: jax.Array) -> jax.Array:
    """Round a center [d] to about five digits.

    Because the last bits of the center are zero, x - center is exact for x near it, even if the
    compiler fuses the mean's multiplication into the subtraction.
    """
    return lax.reduce_precision(mean, exponent_bits=8, mantissa_bits=16)


def log_weight_ratios(
    y: jax.Array,
    sigma: jax.Array,
    reference: jax.Array,
    points: jax.Array,
    tolerance: float = _WEIGHT_ERROR,
) -> jax.Array:
    """Return log(w_j / w_r) = (||y - r||^2 - ||y - x_j||^2) / (2 sigma^2) for candidates x_j.

    A float32 sum is off by about 1e-7 of its terms, and division by 2 sigma^2 magnifies this error.
    If that would matter (a small sigma, and a y that is nearly equally far from two distant
    points), the sum is computed again with all rounding errors carried along, to about 1e-13 of its
    terms.

    Args:
      y: float32 [B, d].
      sigma: float32 [B].
      reference: float32 [B, d], r.
      points: float32 [B, K, d], x_j.
      tolerance: largest error of a posterior weight that the result may cause.

    Returns:
      float32 [B, K].
    """
    y, reference = y[:, None, :], reference[:, None, :]
    apart, left, right = points - reference, y - reference, y - points
    scale = 2 * sigma[:, None] ** 2
    ratios = jnp.sum(apart * (left + right), axis=2) / scale
    size = jnp.sum((apart * (jnp.abs(left) + jnp.abs(right))) ** 2, axis=2)
    error = _ROUNDING * jnp.sqrt(size) / scale
    # An error e in a point's logit changes no weight by more than e times that point's weight.
    pending = jnp.exp(jnp.minimum(ratios + error, 0)) * error
    rows = jnp.arange(len(y))[:, None]
    count = min(_PRECISE, points.shape[1])

    def repeat_worst(state):
        ratios, pending = state
        _, place = lax.top_k(pending, count)
        precise = _precise_sum(y, reference, points[rows, place]) / scale
        return ratios.at[rows, place].set(precise), pending.at[rows, place].set(0)

    def is_pending(state):
        return (state[1] > tolerance).any()

    return lax.while_loop(is_pending, repeat_worst, (ratios, pending))[0]


def _precise_sum(y, reference, points):
    """The sum of (x - r) ((y - r) + (y - x)), with the rounding error of every step added back."""
    a, a_error = _two_difference(points, reference)
    left, left_error = _two_difference(y, reference)
    right, right_error = _two_difference(y, points)
    b, b_error = _two_sum(left, right)
    b_error = b_error + (left_error + right_error)
    # Factors of 12 bits have exact products in float32.
    a_high, b_high = (lax.reduce_precision(v, 8, 11) for v in (a, b))
    a_low, b_low = a - a_high, b - b_high
    small = a_high * b_low + (a_low * b + (a * b_error + a_error * b))
    # Numbers rounded to a common grid have an exact sum in any order. The remainders are summed on
    # a finer grid, and the remainders of that one are small.
    total, large = 0.0, a_high * b_high
    for _ in range(2):
        bound = jnp.max(jnp.abs(large), axis=2, keepdims=True) * large.shape[2]
        grid = jnp.exp2(jnp.ceil(jnp.log2(jnp.maximum(bound, 2.0**-100))) + 1)
        rounded = (grid + large) - grid
        total = total + jnp.sum(rounded, axis=2)
        large = large - rounded
    return total + jnp.sum(large + small, axis=2)


def _two_sum(a, b):
    """a + b in float32, and its exact rounding error."""
    total = a + b
    shift = total - a
    return total, (a - (total - shift)) + (b - shift)


def _two_difference(a, b):
    return _two_sum(a, -b)


class Candidates(NamedTuple):
    """The best-scored points of each query so far, by score, then by index.

    Attributes:
      score: [Q, K], descending; -inf marks an empty place.
      index: int32 [Q, K], positions in the points.
    """

    score: jax.Array
    index: jax.Array

    @classmethod
    def none(cls, queries: int, count: int) -> Candidates:
        """Return candidates [Q, K] with every place empty."""
        shape = (queries, count)
        return cls(jnp.full(shape, -jnp.inf), jnp.zeros(shape, jnp.int32))

    @classmethod
    def before_all(cls, queries: int) -> Candidates:
        """Return a cutoff [Q, 1] that every point comes after."""
        shape = (queries, 1)
        return cls(jnp.full(shape, jnp.inf), jnp.full(shape, -1, jnp.int32))

    def last(self) -> Candidates:
        """Return the worst candidate [Q, 1], the cutoff for the next pass."""
        return Candidates(self.score[:, -1:], self.index[:, -1:])

    def precede(self, score: jax.Array, index: jax.Array) -> jax.Array:
        """Return whether this cutoff [Q, 1] precedes points with `score` [Q, P], `index` [P]."""
        return (score < self.score) | ((score == self.score) & (index > self.index))


def merge_candidates(candidates: Candidates, score: jax.Array, index: jax.Array) -> Candidates:
    """Return the best of candidates [Q, K] and of points: `score` [Q, P], ascending `index` [P]."""
    queries, size = score.shape
    count = candidates.score.shape[1]
    new = jnp.broadcast_to(index, score.shape)
    if size % _GROUP == 0 and size >= _GROUP * count:
        # The best K lie in the K groups with the best maxima, so far fewer are left to compare.
        grouped = score.reshape(queries, -1, _GROUP)
        groups = jnp.sort(lax.top_k(grouped.max(axis=2), count)[1], axis=1)
        score = jnp.take_along_axis(grouped, groups[:, :, None], 1).reshape(queries, -1)
        new = index[0] + (groups[:, :, None] * _GROUP + jnp.arange(_GROUP)).reshape(queries, -1)
    score = jnp.concatenate([candidates.score, score], axis=1)
    new = jnp.concatenate([candidates.index, new], axis=1)
    score, place = lax.top_k(score, count)
    return Candidates(score, jnp.take_along_axis(new, place, 1))
