"""N points in device memory, and how to visit all of them for a block of queries.

A pass folds an update over the points of each device, chunk by chunk, and then combines the
devices' partial results. A search makes passes until every query is settled: each pass proposes
candidates, which are then checked exactly. The same functions work on one device, on the devices of
a mesh and on a stream (`geomem.points.streaming`); only the loops differ.
"""

from __future__ import annotations

import abc
import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.core import Tracer
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from geomem.points.exact import (
    CHUNK,
    QUERIES,
    TILE,
    Candidates,
    as_rows,
    decode,
    fold_rows,
    gather_block,
    map_rows,
    round_center,
)

__all__ = [
    "Group",
    "Part",
    "Pass",
    "PlacedPoints",
    "Points",
    "Search",
    "as_points",
    "settle",
    "spread",
]


class Pass(NamedTuple):
    """One computation over all points, as a tuple of pure functions.

    `context` is shared by all queries (by default it is the center of the points). States and
    partial results belong to one device; their leaves are [B, ...] for B queries unless noted. A
    pass is a static argument of jit, so make it once for each set of parameters
    (`functools.cache`).
    """

    start: Callable[..., Any]  # (context, *queries) -> state
    empty: Callable[..., Any]  # (context, state) -> the partial result of no points
    update: Callable[..., Any]  # (context, state) -> (partial, rows, index, valid) -> partial
    combine: Callable[..., Any]  # (partial, group) -> the partial result of all devices
    result: Callable[..., Any]  # (context, state, partial, group) -> result, on every device


class Search(NamedTuple):
    """Passes that propose candidates until the state is `done`; functions as in `Pass`."""

    start: Callable[..., Any]
    empty: Callable[..., Any]
    update: Callable[..., Any]
    combine: Callable[..., Any]  # here a partial result is (sums, Candidates)
    # (context, state, candidates, rows [B, K, d], owned [B, K], group) -> results of the check;
    # rows are valid where this device owns the point.
    recheck: Callable[..., Any]
    advance: Callable[..., Any]  # (state, partial, rechecked) -> state
    result: Callable[..., Any]  # (context, state, group) -> result, on every device


class Group(NamedTuple):
    """The devices that hold the points together."""

    axis: Any = None  # the mesh axis over which the points are split, None for a single device
    axes: tuple[str, ...] = ()  # all axes of the mesh

    def sum(self, x: jax.Array) -> jax.Array:
        """Return the sum over the devices."""
        return x if self.axis is None else lax.psum(x, self.axis)

    def max(self, x: jax.Array) -> jax.Array:
        """Return the maximum over the devices."""
        return x if self.axis is None else lax.pmax(x, self.axis)

    def all(self, x: jax.Array) -> jax.Array:
        """Return whether `x` is all true on all devices, so that they loop equally often."""
        done = x.all()
        return lax.pmin(done.astype(jnp.int32), self.axes) > 0 if self.axes else done

    def share(self, x: jax.Array, owned: jax.Array) -> jax.Array:
        """Return `x` with the entries of all devices; each device provides those that it owns."""
        return x if self.axis is None else lax.psum(jnp.where(owned, x, 0), self.axis)

    def merge(self, candidates: Candidates) -> Candidates:
        """Return the best candidates [Q, K] of all devices."""
        if self.axis is None:
            return candidates
        # [Q, D K] in the order of the devices, so that ties stay in the order of the index.
        score, index = (jnp.concatenate(lax.all_gather(a, self.axis), axis=1) for a in candidates)
        score, place = lax.top_k(score, candidates.score.shape[1])
        return Candidates(score, jnp.take_along_axis(index, place, 1))


class Part(NamedTuple):
    """The points that one device holds."""

    rows: Any  # [L, d], or a pytree of [L, ...]: float32, or uint8 as stored
    first: jax.Array | int  # position of the first row in all points
    stop: jax.Array | int  # position of the first row that is only padding
    group: Group

    def fold(self, update: Callable[..., Any], partial: Any, chunk: int = CHUNK) -> Any:
        """Fold `update` over these rows as in `fold_rows`; `index` is the global position."""

        def step(partial, rows, index, valid):
            index = self.first + index
            return update(partial, decode(rows), index, valid & (index < self.stop))

        return fold_rows(self.rows, partial, step, chunk)

    def take(self, index: jax.Array) -> tuple[Any, jax.Array]:
        """Return rows [..., d] at `index` [...], and which of them this device owns."""
        length = len(jax.tree.leaves(self.rows)[0])
        local = jnp.clip(index - self.first, 0, length - 1)
        owned = (index >= self.first) & (index < self.stop)
        return decode(jax.tree.map(lambda a: a[local], self.rows)), owned


def spread(mesh: Mesh | None, f: Callable, in_specs: Any, out_specs: Any) -> Callable:
    """Return `jax.shard_map` of f, or f itself without a mesh."""
    if mesh is None:
        return f
    # The outputs are replicated by collectives inside loops, which JAX cannot infer.
    return jax.shard_map(f, mesh=mesh, in_specs=in_specs, out_specs=out_specs, check_vma=False)


class PlacedPoints(abc.ABC):
    """Points that have a place: `Points` in device memory, or a `Stream` from disk."""

    @abc.abstractmethod
    def __len__(self) -> int:
        """Return N."""

    @property
    @abc.abstractmethod
    def shape(self) -> tuple[int, int]:
        """(N, d)."""

    @abc.abstractmethod
    def center(self) -> jax.Array:
        """Return a point [d] near all others, on every device."""

    @abc.abstractmethod
    def take(self, index: jax.Array) -> Any:
        """Return the points [n, d] at `index` [n], on every device."""

    @abc.abstractmethod
    def run(
        self, search: Pass | Search, queries: tuple, context: Any = None, *, chunk: int = CHUNK
    ) -> Any:
        """Return the result of a pass or search for queries [Q, ...]: a pytree of [Q, ...]."""


@dataclasses.dataclass(frozen=True)
class Points(PlacedPoints):
    """N points in the memory of one device, or of the devices of a mesh.

    Attributes:
      rows: [N, d], or [D L, d] over the D devices; float32 or uint8 as stored; or a pytree.
      count: N.
      mesh: the devices, None for a single one.
      axis: the mesh axis over which the points are split; queries are split over the others.
    """

    rows: Any
    count: int
    mesh: Mesh | None = None
    axis: Any = None

    def __len__(self) -> int:
        """Return N."""
        return self.count

    @property
    def shape(self) -> tuple[int, int]:
        """(N, d)."""
        return self.count, jax.tree.leaves(self.rows)[0].shape[1]

    def center(self) -> jax.Array:
        """Return a point [d] near all others, on every device."""
        return _center(self)

    def take(self, index: jax.Array) -> Any:
        """Return the points [n, d] at `index` [n], on every device."""
        return _take(self, index)

    def run(
        self, search: Pass | Search, queries: tuple, context: Any = None, *, chunk: int = CHUNK
    ) -> Any:
        """Return the result of a pass or search for queries [Q, ...]: a pytree of [Q, ...]."""
        return _run(self, search, queries, context, chunk=chunk)

    def everywhere(self, f: Callable, *args: tuple[Any, P], out: P) -> Any:
        """Return f(part, *values) from every device; `args` are (value, PartitionSpec) pairs."""
        values, specs = zip(*args, strict=True) if args else ((), ())
        run = spread(
            self.mesh, lambda rows, *v: f(self._part(rows), *v), (P(self.axis), *specs), out
        )
        return run(self.rows, *values)

    def _part(self, rows):
        length = len(jax.tree.leaves(rows)[0])
        if self.mesh is None:
            return Part(rows, 0, self.count, Group())
        first = lax.axis_index(self.axis) * length
        group = Group(self.axis, self.mesh.axis_names)
        return Part(rows, first, jnp.minimum(first + length, self.count), group)


jax.tree_util.register_dataclass(
    Points, data_fields=["rows"], meta_fields=["count", "mesh", "axis"]
)


def as_points(points: Any) -> PlacedPoints:
    """Return `points` as placed points, on one device or on the devices of their sharding.

    Placed points are returned unchanged.

    Raises:
      ValueError: not an array [N, d] or images [N, ...] of floats or uint8, or no rows.
    """
    if isinstance(points, PlacedPoints):
        return points
    points = as_rows(points, "points")
    sharding = None if isinstance(points, Tracer) else points.sharding
    if isinstance(sharding, NamedSharding) and isinstance(sharding.mesh, Mesh):
        axis = sharding.spec[0] if sharding.spec else None
        if axis is not None:
            return Points(points, len(points), sharding.mesh, axis)
    return Points(points, len(points))


@jax.jit
def _center(points):
    def mean(part):
        rows = decode(part.rows)
        if part.group.axis is not None:
            index = part.first + jnp.arange(len(rows))
            rows = jnp.where((index < part.stop)[:, None], rows, 0)
        return round_center(part.group.sum(rows.sum(axis=0)) / points.count)

    return points.everywhere(mean, out=P())


@jax.jit
def _take(points, index):
    def rows(part, index):
        rows, owned = part.take(index)
        return part.group.share(rows, owned[:, None])

    return points.everywhere(rows, (index, P()), out=P())


@functools.partial(jax.jit, static_argnames=("search", "chunk"))
def _run(points, search, queries, context, *, chunk):
    context = points.center() if context is None else context
    names = points.axis if isinstance(points.axis, tuple) else (points.axis,)
    sizes = {} if points.mesh is None else dict(points.mesh.shape)
    query_axes = tuple(name for name in sizes if name not in names)
    # Pad the queries to the same number on each of their devices, a multiple of TILE.
    total = len(jax.tree.leaves(queries)[0])
    missing = -total % (TILE * math.prod(sizes[name] for name in query_axes))
    if missing:
        queries = jax.tree.map(
            lambda a: jnp.concatenate([a, jnp.repeat(a[-1:], missing, axis=0)]), queries
        )

    def visit(part, queries, context):
        def block(*queries):
            state = search.start(context, *queries)
            return _visit(part, search, context, state, chunk)

        return map_rows(block, queries, QUERIES)

    over = P(query_axes or None)
    results = points.everywhere(visit, (queries, over), (context, P()), out=over)
    return jax.tree.map(lambda a: a[:total], results) if missing else results


def _visit(part, search, context, state, chunk):
    group = part.group

    def one_pass(state):
        partial = part.fold(search.update(context, state), search.empty(context, state), chunk)
        return search.combine(partial, group)

    if isinstance(search, Pass):
        return search.result(context, state, one_pass(state), group)

    def recheck(state, candidates):
        rows, owned = part.take(candidates.index)
        return search.recheck(context, state, candidates, rows, owned, group)

    def again(carry):
        state, _ = carry
        partial = one_pass(state)
        block = gather_block(partial[1].index.shape[1], part.rows.shape[1])
        rechecked = map_rows(recheck, (state, partial[1]), block)
        state = settle(state, search.advance(state, partial, rechecked))
        return state, group.all(state.done)

    state, _ = lax.while_loop(lambda carry: ~carry[1], again, (state, jnp.array(False)))
    return search.result(context, state, group)


def settle(state: Any, advanced: Any) -> Any:
    """Return the advanced state; settled queries keep theirs, whatever else is in the batch."""

    def keep(old, new):
        return jnp.where(state.done.reshape(-1, *[1] * (old.ndim - 1)), old, new)

    return jax.tree.map(keep, state, advanced)
