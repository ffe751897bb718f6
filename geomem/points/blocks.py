"""Loops over blocks of rows: the memory of a block, one compiled shape."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

__all__ = ["CHUNK", "QUERIES", "fold_chunks", "gather_block", "map_rows"]

CHUNK = 2048  # points per step: fills the matrix units, and stays in a CPU's cache
QUERIES = 1024  # queries per block
_GATHERED = 2**21  # float32 values gathered at once when candidates are recomputed (8 MB)


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
      f: takes as many arguments as `rows` has, each [B, ...], and returns a pytree of [B, ...].
      rows: arrays [Q, ...] of the same Q, or pytrees of them. The last block is filled up with
        copies of the last row.
      block: largest B.

    Returns:
      The pytree of [Q, ...].
    """
    total = len(jax.tree.leaves(rows)[0])
    size = min(block, total)
    count = -(-total // size)
    if count == 1:
        return f(*rows)

    def blocks(a):
        padding = [(0, count * size - total)] + [(0, 0)] * (a.ndim - 1)
        return jnp.pad(a, padding, mode="edge").reshape(count, size, *a.shape[1:])

    mapped = lax.map(lambda args: f(*args), jax.tree.map(blocks, rows))
    return jax.tree.map(lambda a: a.reshape(count * size, *a.shape[2:])[:total], mapped)


def gather_block(count: int, dim: int) -> int:
    """How many queries may gather `count` points of dimension `dim` at once."""
    return max(1, _GATHERED // (count * dim))
