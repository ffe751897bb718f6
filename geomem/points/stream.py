"""Points that are read from disk while they are used."""

from __future__ import annotations

import concurrent.futures
import functools
from collections.abc import Iterable, Iterator

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from geomem.data.datasets import to_float
from geomem.points.groups import Group, decode
from geomem.points.products import rounded_centre
from geomem.points.rows import Rows

__all__ = ["Stream"]

_SAMPLE = 1024  # rows of each device's part that the centre is taken from


class Stream:
    """N points that are read in steps while they are used; made by `stream`.

    Each step is the next `step` rows of every device's part. A thread reads and sends one step
    ahead of the one that is computed with, so memory holds three.
    """

    def __init__(self, source: Rows, mesh: Mesh | None, step: int):
        """See `stream`."""
        self._rows, self.mesh, self.count = source, mesh, source.count
        self.axis = None if mesh is None else mesh.axis_names[0]
        self.group = Group() if mesh is None else Group(self.axis, mesh.axis_names)
        self._devices = [None] if mesh is None else list(mesh.devices.flat)
        self._length = -(-self.count // len(self._devices))
        self._step = min(step, self._length)
        self._origin = self._centre()

    def __len__(self) -> int:
        """N."""
        return self.count

    @property
    def shape(self) -> tuple[int, int]:
        """(N, d)."""
        return self.count, self._rows.dim

    def centre(self) -> jax.Array:
        """A point [d] near all others, on every device."""
        return self._origin

    def parts(self) -> Iterator[tuple[jax.Array, jax.Array, jax.Array]]:
        """(rows [D, P, d], first [D], stop [D]) of each step, over the devices."""

        def step(start):
            first = [k * self._length + start for k in range(len(self._devices))]
            stop = [self._stop(k) for k in range(len(self._devices))]
            rows = self._place(lambda k: self._filled(first[k], stop[k]))
            return rows, *(self._place(lambda k, e=e: np.int32([e[k]])) for e in (first, stop))

        yield from _ahead(step, range(0, self._length, self._step))

    def _stop(self, k):
        return min((k + 1) * self._length, self.count)

    def _filled(self, first, stop):
        """The next rows before `stop`, filled up to the length of a step."""
        rows = self._rows.read(slice(min(first, stop), min(first + self._step, stop)))
        missing = self._step - len(rows)
        return (np.pad(rows, ((0, missing), (0, 0))) if missing else rows)[None]

    def candidates(self, blocks: Iterable[np.ndarray]) -> Iterator[tuple[jax.Array, jax.Array]]:
        """(rows [D, ..., d], whether they are that device's [D, ...]) of `blocks` of indices [...].

        The rows are as stored. Each process reads those of its own devices' parts.
        """
        dim, dtype = self._rows.dim, self._rows.dtype

        def fetch(index):
            owner = index // self._length

            def rows(k):
                found = np.zeros((1, *index.shape, dim), dtype)
                wanted, place = np.unique(index[owner == k], return_inverse=True)
                if len(wanted):
                    found[0, owner == k] = self._rows.read(wanted)[place]
                return found

            return self._place(rows), self._place(lambda k: (owner == k)[None])

        yield from _ahead(fetch, blocks)

    def take(self, index: jax.Array) -> jax.Array:
        """The points [n, d] at `index` [n], on every device."""
        (found,) = self.candidates([np.asarray(index)])
        return _take_candidates(*found, mesh=self.mesh)

    def _centre(self):
        """The mean of some rows: any point near all others makes distances easy."""

        def sample(k):
            first, stop = k * self._length, self._stop(k)
            index = np.unique(np.linspace(first, stop - 1, _SAMPLE).astype(int))
            rows = to_float(self._rows.read(index[: max(0, stop - first)]))
            return rows.sum(axis=0, keepdims=True), np.float32([len(rows)])

        samples = {k: sample(k) for k in self._local()}
        total = self._place(lambda k: samples[k][0])
        counts = self._place(lambda k: samples[k][1])
        return _centre_of_samples(total, counts, mesh=self.mesh)

    def _local(self):
        here = jax.process_index()
        return [
            k
            for k, device in enumerate(self._devices)
            if device is None or device.process_index == here
        ]

    def _place(self, piece):
        """piece(k) [n, ...] on device k, for this process's devices: [D n, ...] over all."""
        if self.mesh is None:
            return jnp.asarray(piece(0))
        arrays = [jax.device_put(piece(k), self._devices[k]) for k in self._local()]
        length, *rest = arrays[0].shape
        shape = (len(self._devices) * length, *rest)
        sharding = NamedSharding(self.mesh, P(self.axis))
        return jax.make_array_from_single_device_arrays(shape, sharding, arrays)


@functools.partial(jax.jit, static_argnames="mesh")
def _centre_of_samples(total, counts, *, mesh):
    return _everywhere_equal(rounded_centre(total.sum(axis=0) / counts.sum()), mesh)


@functools.partial(jax.jit, static_argnames="mesh")
def _take_candidates(rows, here, *, mesh):
    return _everywhere_equal(jnp.where(here[..., None], decode(rows), 0).sum(axis=0), mesh)


def _everywhere_equal(x, mesh):
    sharding = None if mesh is None else NamedSharding(mesh, P())
    return x if mesh is None else jax.lax.with_sharding_constraint(x, sharding)


def _ahead(f, items):
    """f(item) of each item, the next one computed by a thread meanwhile."""
    with concurrent.futures.ThreadPoolExecutor(1) as thread:
        pending = None
        for item in items:
            following = thread.submit(f, item)
            if pending is not None:
                yield pending.result()
            pending = following
        if pending is not None:
            yield pending.result()
