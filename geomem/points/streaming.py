"""N points that are read from disk, step by step, each time they are used."""

from __future__ import annotations

import concurrent.futures
import functools
import math
import os
import pathlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from geomem.data.datasets import Split, to_float
from geomem.points.exact import CHUNK, TILE, decode, gather_block, round_center
from geomem.points.visit import Group, Part, Pass, PlacedPoints, Search, settle, spread

__all__ = ["Rows", "Stream", "open_rows"]

_CENTER_ROWS = 1024  # rows of each device's part that the center is the mean of
_QUERIES = 4096  # most queries for each reading of the stream


class Rows(NamedTuple):
    """N rows of d numbers, read by position."""

    read: Callable[[slice | np.ndarray], np.ndarray]  # -> [n, d], uint8 or float32
    count: int
    dim: int
    dtype: np.dtype


def open_rows(points: Any) -> Rows:
    """Return the Rows of an array [N, ...], the path of an `.npy` file, or a `data.Split`.

    Raises:
      ValueError: values that are neither uint8 nor floats, or fewer than two axes.
    """
    if isinstance(points, str | os.PathLike):
        points = np.load(pathlib.Path(points).expanduser(), mmap_mode="r", allow_pickle=False)
    select = points.at if isinstance(points, Split) else points.__getitem__
    example = select(slice(0, 1))
    if example.ndim < 2 or np.dtype(example.dtype).kind not in "uf":
        shape = (len(points), *example.shape[1:])
        raise ValueError(
            f"points must hold uint8 or floats [N, ...], got {example.dtype} of shape {shape}."
        )
    dim = math.prod(example.shape[1:])
    dtype = np.dtype(np.uint8 if example.dtype == np.uint8 else np.float32)

    def read(index):
        rows = np.asarray(select(index))
        return rows.reshape(len(rows), dim).astype(dtype, copy=False)

    return Rows(read, len(points), dim, dtype)


class Stream(PlacedPoints):
    """N points that are read in steps while they are used; made by `placement.stream`.

    A step is the next `step` rows of each device's part. A thread reads and sends the next step
    during the computation, so memory holds up to three steps.
    """

    def __init__(self, source: Rows, mesh: Mesh | None, step: int):
        self._rows, self.mesh, self.count = source, mesh, source.count
        self.axis = None if mesh is None else mesh.axis_names[0]
        self._group = Group() if mesh is None else Group(self.axis, mesh.axis_names)
        self._devices = [None] if mesh is None else list(mesh.devices.flat)
        self._length = -(-self.count // len(self._devices))
        self._step = min(step, self._length)
        self._origin = self._center()

    def __len__(self) -> int:
        """Return N."""
        return self.count

    @property
    def shape(self) -> tuple[int, int]:
        """(N, d)."""
        return self.count, self._rows.dim

    def center(self) -> jax.Array:
        """Return a point [d] near all others, on every device."""
        return self._origin

    def take(self, index: jax.Array) -> jax.Array:
        """Return the points [n, d] at `index` [n], on every device."""
        (candidates,) = self._candidates([np.asarray(index)])
        return _take_candidates(*candidates, mesh=self.mesh)

    def run(
        self, search: Pass | Search, queries: tuple, context: Any = None, *, chunk: int = CHUNK
    ) -> Any:
        """Return the result of a pass or search for queries [Q, ...]; as `Points.run`.

        Raises:
          ValueError: inside a JAX transformation, where files cannot be read.
        """
        if any(isinstance(leaf, Tracer) for leaf in jax.tree.leaves((queries, context))):
            raise ValueError("points must not be a stream inside a JAX transformation.")
        context = self.center() if context is None else context
        total = len(jax.tree.leaves(queries)[0])
        size = -(-total // -(-total // _QUERIES))
        size += -size % TILE
        results = []
        for start in range(0, total, size):
            # The last block is padded to the same shape, so that it compiles only once.
            at = np.minimum(np.arange(start, start + size), total - 1)
            block = queries if size == total else jax.tree.map(lambda a, at=at: a[at], queries)
            results.append(self._run_block(search, block, context, chunk))
        return jax.tree.map(lambda *blocks: jnp.concatenate(blocks)[:total], *results)

    def _run_block(self, search, queries, context, chunk):
        plan = _Plan(search, self._group, chunk)
        call = functools.partial(_call, plan=plan, mesh=self.mesh)
        state = call(_start, (context, *queries), ())
        while True:
            partial = call(_empty, (context,), (state,))
            for part in self._parts():
                # Wait for the previous step; this step's rows were read and sent meanwhile.
                jax.block_until_ready(partial)
                partial = call(_update, (context,), (state, partial, *part))
            partial = call(_combine, (), (partial,))
            if isinstance(search, Pass):
                return call(_result_of_pass, (context,), (state, partial), everywhere=True)
            rechecked = self._recheck(call, context, state, partial[1])
            state = call(_advance, (), (state, partial, rechecked))
            if _local_copy(state.done).all():
                return call(_result_of_search, (context,), (state,), everywhere=True)

    def _recheck(self, call, context, state, candidates):
        """The results of `search.recheck`, in blocks of queries."""
        index = _local_copy(candidates.index)
        total, count = index.shape
        size = min(gather_block(count, self._rows.dim), total)
        places = [
            np.minimum(np.arange(start, start + size), total - 1) for start in range(0, total, size)
        ]
        rows = self._candidates(index[place] for place in places)
        return [
            call(_recheck, (context, place), (state, candidates, *block))
            for place, block in zip(places, rows, strict=True)
        ]

    def _parts(self):
        """(rows [D, P, d], first [D], stop [D]) of each step, over the devices."""

        def step(start):
            first = [k * self._length + start for k in range(len(self._devices))]
            stop = [self._stop(k) for k in range(len(self._devices))]
            rows = self._place(lambda k: self._filled(first[k], stop[k]))
            return rows, *(
                self._place(lambda k, e=e: np.array([e[k]], np.int32)) for e in (first, stop)
            )

        yield from _one_ahead(step, range(0, self._length, self._step))

    def _stop(self, k):
        return min((k + 1) * self._length, self.count)

    def _filled(self, first, stop):
        """The next rows before `stop`, padded to the length of a step."""
        rows = self._rows.read(slice(min(first, stop), min(first + self._step, stop)))
        missing = self._step - len(rows)
        return (np.pad(rows, ((0, missing), (0, 0))) if missing else rows)[None]

    def _candidates(self, blocks: Iterable[np.ndarray]):
        """(rows as stored [D, ..., d], owned [D, ...]) for blocks of indices [...].

        Each process reads only its own devices' rows.
        """

        def fetch(index):
            owner = index // self._length

            def rows(k):
                filled = np.zeros((1, *index.shape, self._rows.dim), self._rows.dtype)
                unique, place = np.unique(index[owner == k], return_inverse=True)
                if len(unique):
                    filled[0, owner == k] = self._rows.read(unique)[place]
                return filled

            return self._place(rows), self._place(lambda k: (owner == k)[None])

        yield from _one_ahead(fetch, blocks)

    def _center(self):
        """The mean of a sample of rows; any point close to all others would do."""

        def sample(k):
            first, stop = k * self._length, self._stop(k)
            index = np.unique(np.linspace(first, stop - 1, _CENTER_ROWS).astype(int))
            rows = to_float(self._rows.read(index[: max(0, stop - first)]))
            return rows.sum(axis=0, keepdims=True), np.array([len(rows)], np.float32)

        samples = {k: sample(k) for k in self._local_devices()}
        total = self._place(lambda k: samples[k][0])
        counts = self._place(lambda k: samples[k][1])
        return _center_of_samples(total, counts, mesh=self.mesh)

    def _local_devices(self):
        process = jax.process_index()
        return [
            k
            for k, device in enumerate(self._devices)
            if device is None or device.process_index == process
        ]

    def _place(self, piece):
        """An array [D n, ...] over all devices, of which device k holds piece(k) [n, ...]."""
        if self.mesh is None:
            return jnp.asarray(piece(0))
        arrays = [jax.device_put(piece(k), self._devices[k]) for k in self._local_devices()]
        length, *rest = arrays[0].shape
        shape = (len(self._devices) * length, *rest)
        sharding = NamedSharding(self.mesh, P(self.axis))
        return jax.make_array_from_single_device_arrays(shape, sharding, arrays)


class _Plan(NamedTuple):
    search: Pass | Search
    group: Group
    chunk: int


@functools.partial(jax.jit, static_argnames=("f", "plan", "mesh", "everywhere"))
def _call(f, shared, private, *, plan, mesh, everywhere=False):
    """f(plan, *shared, *private) on every device.

    `shared` is the same on all devices. `private` has a leading axis [D], one entry per device, and
    so does the result, unless it is the same `everywhere`.
    """

    def local(shared, private):
        result = f(plan, *shared, *jax.tree.map(lambda a: a[0], private))
        return result if everywhere else jax.tree.map(lambda a: a[None], result)

    over = P(None if mesh is None else mesh.axis_names[0])
    return spread(mesh, local, (P(), over), P() if everywhere else over)(shared, private)


def _start(plan, context, *queries):
    return plan.search.start(context, *queries)


def _empty(plan, context, state):
    return plan.search.empty(context, state)


def _update(plan, context, state, partial, rows, first, stop):
    part = Part(rows, first, stop, plan.group)
    return part.fold(plan.search.update(context, state), partial, plan.chunk)


def _combine(plan, partial):
    return plan.search.combine(partial, plan.group)


def _recheck(plan, context, place, state, candidates, rows, owned):
    state, candidates = jax.tree.map(lambda a: a[place], (state, candidates))
    return plan.search.recheck(context, state, candidates, decode(rows), owned, plan.group)


def _advance(plan, state, partial, rechecked):
    total = len(state.done)
    rechecked = jax.tree.map(lambda *blocks: jnp.concatenate(blocks)[:total], *rechecked)
    return settle(state, plan.search.advance(state, partial, rechecked))


def _result_of_pass(plan, context, state, partial):
    return plan.search.result(context, state, partial, plan.group)


def _result_of_search(plan, context, state):
    return plan.search.result(context, state, plan.group)


def _local_copy(array):
    """This process's copy of an array [D, ...] whose D parts are equal, without the axis D."""
    return np.asarray(array.addressable_shards[0].data)[0]


@functools.partial(jax.jit, static_argnames="mesh")
def _center_of_samples(total, counts, *, mesh):
    return _replicated(round_center(total.sum(axis=0) / counts.sum()), mesh)


@functools.partial(jax.jit, static_argnames="mesh")
def _take_candidates(rows, owned, *, mesh):
    return _replicated(jnp.where(owned[..., None], decode(rows), 0).sum(axis=0), mesh)


def _replicated(x, mesh):
    sharding = None if mesh is None else NamedSharding(mesh, P())
    return x if mesh is None else jax.lax.with_sharding_constraint(x, sharding)


def _one_ahead(f: Callable, items: Iterable) -> Iterator:
    """Yield f(item) for each item; a thread computes the next one meanwhile."""
    with concurrent.futures.ThreadPoolExecutor(1) as thread:
        pending = None
        for item in items:
            following = thread.submit(f, item)
            if pending is not None:
                yield pending.result()
            pending = following
        if pending is not None:
            yield pending.result()
