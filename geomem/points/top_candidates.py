"""The best-scored points of each query, kept while the points pass by in chunks."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

__all__ = ["Leaders", "after", "first_leader", "last_leader", "merge_leaders", "no_leaders"]

_GROUP = 16


class Leaders(NamedTuple):
    """The best-scored points of each query so far, by score, then by index.

    Attributes:
      score: [Q, K], descending; -inf marks an empty place.
      index: int32 [Q, K], positions in the points.
    """

    score: jax.Array
    index: jax.Array


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
