"""Passes over all points, wherever they are, and searches that make several of them.

A pass folds an update over the points of each device; the partial results of the devices then
combine into one, as those of two chunks do. A search makes passes until it is done: each proposes
candidates for each query, which are looked at again, exactly, before the next. The same functions
serve one device, the devices of a mesh and a stream; only the loops around them differ.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import PartitionSpec as P

from geomem.points.blocks import CHUNK, QUERIES, gather_block, map_rows
from geomem.points.groups import Group, Part, decode, spread
from geomem.points.placement import Points, Stream
from geomem.points.top_candidates import Leaders

__all__ = ["Pass", "Search", "run"]

_STREAM_QUERIES = 4096  # at most, for each reading of a stream


class Pass(Protocol):
    """One pass over the points; hashable, a static argument.

    `context` is what all queries share; the state and the partial result are those of one device.
    """

    def start(self, context: Any, *queries: Any) -> Any:
        """The state for a block of queries."""

    def nothing(self, context: Any, state: Any) -> Any:
        """The partial result of no points."""

    def update(self, context: Any, state: Any) -> Callable[..., Any]:
        """(partial, rows [P, d], index [P], fresh [P]) -> partial with these rows' results."""

    def combine(self, partial: Any, group: Group) -> Any:
        """The partial results of all devices as one; what only enters sums may stay apart."""

    def result(self, context: Any, state: Any, partial: Any, group: Group) -> Any:
        """What the pass found, the same on every device (a search: with None for `partial`)."""


class Search(Pass, Protocol):
    """Passes with candidates, until `done`; each leaf of the state is [B, ...]."""

    def leaders(self, partial: Any) -> Leaders:
        """The candidates of a combined partial result."""

    def redo(
        self,
        context: Any,
        state: Any,
        leaders: Leaders,
        rows: jax.Array,
        here: jax.Array,
        group: Group,
    ) -> Any:
        """Look at candidates again: rows [B, K, d], real where they are `here` [B, K]."""

    def advance(self, state: Any, partial: Any, redone: Any) -> Any:
        """The state after a pass; its field `done` [B] says which queries are settled."""


def run(
    points: Points | Stream,
    search: Pass | Search,
    queries: tuple,
    context: Any = None,
    *,
    chunk: int = CHUNK,
) -> Any:
    """The results of a pass or a search.

    Args:
      points: where the points are.
      search: what to do.
      queries: arrays [Q, ...].
      context: what all queries share; default: the centre of the points [d].
      chunk: points per matrix product.

    Returns:
      The pytree `search.result`, [Q, ...].

    Raises:
      ValueError: a stream inside of `jax.jit`.
    """
    if isinstance(points, Points):
        return _run_resident(points, search, queries, context, chunk=chunk)
    if any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves((queries, context))):
        raise ValueError("points: a stream inside of a JAX transformation, wanted outside")
    context = points.centre() if context is None else context
    total = len(jax.tree.leaves(queries)[0])
    size = -(-total // -(-total // _STREAM_QUERIES))
    found = []
    for start in range(0, total, size):
        # The last block is filled up, so that there is one shape, one compilation.
        at = np.minimum(np.arange(start, start + size), total - 1)
        block = queries if size == total else jax.tree.map(lambda a, at=at: a[at], queries)
        found.append(_run_stream(points, search, block, context, chunk))
    return jax.tree.map(lambda *parts: jnp.concatenate(parts)[:total], *found)


def _repeats(search):
    return hasattr(search, "redo")


@functools.partial(jax.jit, static_argnames=("search", "chunk"))
def _run_resident(points, search, queries, context, *, chunk):
    total = len(jax.tree.leaves(queries)[0])
    over = P(points.query_axes or None)
    # Queries are filled up to a number that their devices divide.
    missing = -total % int(np.prod([points.mesh.shape[name] for name in points.query_axes] or [1]))
    if missing:
        queries = jax.tree.map(
            lambda a: jnp.concatenate([a, jnp.repeat(a[-1:], missing, axis=0)]), queries
        )

    def everything(part, queries, context):
        context = part.centre(points.count) if context is None else context

        def block(*queries):
            state = search.start(context, *queries)
            return _in_memory(part, search, context, state, chunk)

        return map_rows(block, queries, QUERIES)

    found = points.everywhere(everything, (queries, over), (context, P()), out=over)
    return jax.tree.map(lambda a: a[:total], found) if missing else found


def _in_memory(part, search, context, state, chunk):
    group = part.group

    def one_pass(state):
        partial = part.fold(search.update(context, state), search.nothing(context, state), chunk)
        return search.combine(partial, group)

    if not _repeats(search):
        return search.result(context, state, one_pass(state), group)

    def redo(state, leaders):
        rows, here = part.take(leaders.index)
        return search.redo(context, state, leaders, rows, here, group)

    def again(carry):
        state, _ = carry
        partial = one_pass(state)
        leaders = search.leaders(partial)
        block = gather_block(leaders.index.shape[1], part.rows.shape[1])
        state = search.advance(state, partial, map_rows(redo, (state, leaders), block))
        return state, group.all(state.done)

    state, _ = lax.while_loop(lambda carry: ~carry[1], again, (state, jnp.array(False)))
    return search.result(context, state, None, group)


def _run_stream(points, search, queries, context, chunk):
    call = functools.partial(_call, plan=_Plan(search, points.group, chunk), mesh=points.mesh)
    state = call(_start, (context, *queries), ())
    while True:
        partial = call(_nothing, (context,), (state,))
        for part in points.parts():
            # Wait for the step before this one: this one's rows were read and sent meanwhile.
            jax.block_until_ready(partial)
            partial = call(_update, (context,), (state, partial, *part))
        partial = call(_combine, (), (partial,))
        if not _repeats(search):
            return call(_result, (context,), (state, partial), everywhere=True)
        redone = _redo_stream(points, search, call, context, state, partial)
        state = call(_advance, (), (state, partial, redone))
        if _here(state.done).all():
            return call(_result, (context,), (state, None), everywhere=True)


def _redo_stream(points, search, call, context, state, partial):
    """What `search.redo` finds, in blocks of queries."""
    leaders = search.leaders(partial)
    index = _here(leaders.index)
    total, count = index.shape
    size = min(gather_block(count, points.shape[1]), total)
    places = [
        np.minimum(np.arange(start, start + size), total - 1) for start in range(0, total, size)
    ]
    found = points.candidates(index[place] for place in places)
    return [
        call(_redo, (context, place), (state, leaders, *rows))
        for place, rows in zip(places, found, strict=True)
    ]


class _Plan(NamedTuple):
    search: Pass | Search
    group: Group
    chunk: int


@functools.partial(jax.jit, static_argnames=("f", "plan", "mesh", "everywhere"))
def _call(f, shared, private, *, plan, mesh, everywhere=False):
    """f(plan, *shared, *private) on every device.

    Args:
      f: one of the functions below.
      shared: arguments that are the same on all devices.
      private: arguments of which each device has its own, on a first axis [D].
      plan, mesh: as elsewhere.
      everywhere: whether the result is the same on all devices; else it is on a first axis [D].
    """

    def local(shared, private):
        found = f(plan, *shared, *jax.tree.map(lambda a: a[0], private))
        return found if everywhere else jax.tree.map(lambda a: a[None], found)

    over = P(None if mesh is None else mesh.axis_names[0])
    return spread(mesh, local, (P(), over), P() if everywhere else over)(shared, private)


def _start(plan, context, *queries):
    return plan.search.start(context, *queries)


def _nothing(plan, context, state):
    return plan.search.nothing(context, state)


def _update(plan, context, state, partial, rows, first, stop):
    part = Part(rows, first, stop, plan.group)
    return part.fold(plan.search.update(context, state), partial, plan.chunk)


def _combine(plan, partial):
    return plan.search.combine(partial, plan.group)


def _redo(plan, context, place, state, leaders, rows, here):
    state, leaders = jax.tree.map(lambda a: a[place], (state, leaders))
    return plan.search.redo(context, state, leaders, decode(rows), here, plan.group)


def _advance(plan, state, partial, redone):
    total = len(state.done)
    redone = jax.tree.map(lambda *blocks: jnp.concatenate(blocks)[:total], *redone)
    return plan.search.advance(state, partial, redone)


def _result(plan, context, state, partial):
    return plan.search.result(context, state, partial, plan.group)


def _here(array):
    """This process's copy of an array [D, ...] whose D parts are equal, without the D."""
    return np.asarray(array.addressable_shards[0].data)[0]
