"""Where the points are: on one device, over the devices of a mesh, or streamed from disk.

`shard` and `stream` place points that one device cannot hold, `place` chooses between them; the
functions of the geometry take what they return in the place of an array. Device k of D holds (or
reads) the rows k L to (k + 1) L, L = ceil(N / D), and no row ever goes to another device, but for
the few candidates of a query.

Stored images stay as they are: uint8 rows become x / 127.5 - 1 chunk by chunk, on the device.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from geomem.points.blocks import CHUNK
from geomem.points.groups import Group, Part, decode, spread
from geomem.points.rows import open_rows
from geomem.points.stream import Stream

__all__ = ["Points", "Stream", "as_points", "place", "shard", "stream"]

_STEP_BYTES = 2**25  # of a stream, read and sent at once; malloc hands such memory out again


@dataclasses.dataclass(frozen=True)
class Points:
    """N points in the memory of one device, or of the devices of a mesh.

    Attributes:
      rows: [N, d], or [D L, d] over the D devices; float32 or uint8 as stored; or a pytree.
      count: N.
      mesh: the devices, None for a single one.
      axis: the mesh axis over which the points lie; queries are split over the others.
    """

    rows: Any
    count: int
    mesh: Mesh | None = None
    axis: Any = None

    def __len__(self) -> int:
        """N."""
        return self.count

    @property
    def shape(self) -> tuple[int, int]:
        """(N, d)."""
        return self.count, jax.tree.leaves(self.rows)[0].shape[1]

    @property
    def group(self) -> Group:
        """How results of the devices merge."""
        return Group() if self.mesh is None else Group(self.axis, self.mesh.axis_names)

    @property
    def query_axes(self) -> tuple[str, ...]:
        """The mesh axes over which queries are split."""
        return tuple(name for name in self.group.everyone if name not in _names(self.axis))

    def part(self, rows: Any) -> Part:
        """This device's part, inside `everywhere`."""
        length = len(jax.tree.leaves(rows)[0])
        if self.mesh is None:
            return Part(rows, 0, self.count, self.group)
        first = jax.lax.axis_index(self.axis) * length
        return Part(rows, first, jnp.minimum(first + length, self.count), self.group)

    def everywhere(self, f: Callable, *args: Any, out: P) -> Any:
        """`f(part, *args)` on every device.

        Args:
          f: sees the device's Part, and its part of `args`.
          *args: (value, PartitionSpec) pairs.
          out: PartitionSpec of the result.
        """
        values, specs = zip(*args, strict=True) if args else ((), ())
        return spread(
            self.mesh,
            lambda rows, *values: f(self.part(rows), *values),
            (P(self.axis), *specs),
            out,
        )(self.rows, *values)

    def centre(self) -> jax.Array:
        """A point [d] near all others, on every device."""
        return _centre(self)

    def take(self, index: jax.Array) -> jax.Array:
        """The points [n, d] at `index` [n], on every device."""
        return _take(self, index)


jax.tree_util.register_dataclass(
    Points, data_fields=["rows"], meta_fields=["count", "mesh", "axis"]
)


@jax.jit
def _centre(points):
    return points.everywhere(lambda part: part.centre(points.count), out=P())


@jax.jit
def _take(points, index):
    def rows(part, index):
        rows, here = part.take(index)
        return part.group.only(rows, here[:, None])

    return points.everywhere(rows, (index, P()), out=P())


def _mesh(mesh):
    """The mesh to use: by default one of all devices, None where there is only one."""
    if mesh is None:
        mesh = Mesh(np.asarray(jax.devices()), ("points",))
    return mesh if mesh.size > 1 else None


def shard(points: Any, mesh: Mesh | None = None) -> Points:
    """Spread points over the memory of all devices, as evenly as their number allows.

    Args:
      points: [N, ...], float32, or uint8 images as stored (x / 127.5 - 1 on the device); an array,
        a memory map, the path of an `.npy` file, or a `data.Split`. Of several processes each reads
        its own devices' rows.
      mesh: the points lie over its first axis; queries are split over its other axes. Default: one
        axis of all devices.

    Returns:
      Points, for any function of the geometry in the place of an array [N, d].

    Raises:
      ValueError: an array of another type.

    >>> shard(np.zeros((10, 2, 2), np.float32)).shape
    (10, 4)
    """
    source, mesh = open_rows(points), _mesh(mesh)
    if mesh is None:
        return Points(jnp.asarray(source.read(slice(0, source.count))), source.count)
    axis = mesh.axis_names[0]
    length = -(-source.count // mesh.shape[axis])

    def part(index):
        first = index[0].start or 0
        rows = np.zeros((length, source.dim), source.dtype)
        there = source.read(slice(min(first, source.count), min(first + length, source.count)))
        rows[: len(there)] = there
        return rows

    shape = (length * mesh.shape[axis], source.dim)
    rows = jax.make_array_from_callback(shape, NamedSharding(mesh, P(axis)), part)
    return Points(rows, source.count, mesh, axis)


def stream(points: Any, mesh: Mesh | None = None, *, step: int | None = None) -> Stream:
    """Points larger than the devices' memory: read step by step, each time that they are used.

    Args:
      points: as in `shard`; typically the path of an `.npy` file, or a `data.Split`.
      mesh: of one axis; default all devices. Each device works through its own part of the points,
        which the process that it belongs to reads.
      step: rows that are sent to a device at once, by default 32 MB of them.

    Returns:
      Stream, for any function of the geometry in the place of an array [N, d], outside of `jit`.

    Raises:
      ValueError: an array of another type, a mesh of several axes.
    """
    source, mesh = open_rows(points), _mesh(mesh)
    if mesh is not None and len(mesh.axis_names) > 1:
        raise ValueError(f"mesh: axes {mesh.axis_names}, wanted one axis for a stream")
    if step is None:
        rows = _STEP_BYTES // (source.dim * source.dtype.itemsize)
        step = max(1, rows // CHUNK) * CHUNK
    return Stream(source, mesh, step)


def place(points: Any, mesh: Mesh | None = None) -> Points | Stream:
    """`shard` where half the memory of the devices holds the points, else `stream`.

    On a single device that has the room, stored images become float32 at once.

    Args:
      points, mesh: as in `shard`.

    Returns:
      Points or Stream.
    """
    source, used = open_rows(points), _mesh(mesh)
    devices = jax.devices()[:1] if used is None else list(used.devices.flat)
    room = _memory(devices[0]) * (1 if devices[0].platform == "cpu" else len(devices)) / 2
    if source.count * source.dim * source.dtype.itemsize > room:
        return stream(points, mesh)
    placed = shard(points, mesh)
    if used is None and source.count * source.dim * 4 <= room:
        return dataclasses.replace(placed, rows=jax.jit(decode)(placed.rows))
    return placed


def _memory(device):
    """Bytes of a device's memory; of the machine's for a CPU, whose devices share it."""
    if device.platform == "cpu":
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return (device.memory_stats() or {}).get("bytes_limit", 2**33)


def as_points(points: Any) -> Points | Stream:
    """Points, a Stream, or an array [N, d]: one device's, or over the devices of its sharding.

    Raises:
      ValueError: an array that is not [N, d].
    """
    if isinstance(points, Points | Stream):
        return points
    points = jnp.asarray(points)
    if points.ndim != 2:
        raise ValueError(f"points: shape {points.shape}, wanted [N, d]")
    sharding = None if isinstance(points, jax.core.Tracer) else points.sharding
    if isinstance(sharding, NamedSharding) and sharding.spec and sharding.spec[0] is not None:
        return Points(points, len(points), sharding.mesh, sharding.spec[0])
    return Points(points, len(points))


def _names(axis):
    return axis if isinstance(axis, tuple) else (axis,)
