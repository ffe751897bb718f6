"""Place points where they fit: on one device, over the devices of a mesh, or streamed from disk.

Functions of `geomem.geometry` accept the results in place of an array [N, d]. Of D devices, device
k holds (or reads) rows k L to (k + 1) L with L = ceil(N / D). Apart from the few candidates of a
query, no row is sent to another device. 8-bit images x are kept as they are and become
x / 127.5 - 1 on the device, chunk by chunk.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from geomem import memory
from geomem.points.exact import CHUNK, decode
from geomem.points.streaming import Stream, open_rows
from geomem.points.visit import Points

__all__ = ["place", "shard", "stream"]

_STEP_BYTES = 2**25  # bytes of a stream read and sent at once; malloc reuses blocks of this size


def shard(points: Any, mesh: Mesh | None = None) -> Points:
    """Spread points over the memory of all devices, as evenly as their number allows.

    Args:
      points: [N, ...] floats, or uint8 images as stored; an array, a memory map, the path of an
        `.npy` file, or a `data.Split`. Each process reads only its own devices' rows.
      mesh: points are split over its first axis, queries over its other axes. Default: one axis of
        all devices.

    Returns:
      Points.

    Raises:
      ValueError: an array of another type.

    >>> shard(np.zeros((10, 2, 2), np.float32)).shape
    (10, 4)
    """
    source, mesh = open_rows(points), _default_mesh(mesh)
    if mesh is None:
        return Points(jnp.asarray(source.read(slice(0, source.count))), source.count)
    axis = mesh.axis_names[0]
    length = -(-source.count // mesh.shape[axis])

    def part(index):
        first = index[0].start or 0
        rows = np.zeros((length, source.dim), source.dtype)
        read = source.read(slice(min(first, source.count), min(first + length, source.count)))
        rows[: len(read)] = read
        return rows

    shape = (length * mesh.shape[axis], source.dim)
    rows = jax.make_array_from_callback(shape, NamedSharding(mesh, P(axis)), part)
    return Points(rows, source.count, mesh, axis)


def stream(points: Any, mesh: Mesh | None = None, *, step: int | None = None) -> Stream:
    """Return points that are read step by step each time they are used.

    Args:
      points: as in `shard`; typically the path of an `.npy` file, or a `data.Split`.
      mesh: has one axis; default: all devices. Each device works through its own part of the
        points, which its process reads.
      step: rows sent to a device at once; default: 32 MB of them.

    Returns:
      Stream, which cannot be used inside `jit`.

    Raises:
      ValueError: an array of another type, or a mesh with several axes.
    """
    source, mesh = open_rows(points), _default_mesh(mesh)
    if mesh is not None and len(mesh.axis_names) > 1:
        raise ValueError(f"mesh must have one axis for a stream, got {mesh.axis_names}.")
    if step is None:
        rows = _STEP_BYTES // (source.dim * source.dtype.itemsize)
        step = max(1, rows // CHUNK) * CHUNK
    return Stream(source, mesh, step)


def place(points: Any, mesh: Mesh | None = None) -> Points | Stream:
    """Place points with `shard` if they leave half the devices' memory free, else with `stream`.

    On a single device with enough memory, 8-bit images are converted to float32 right away.

    Args:
      points, mesh: as in `shard`.
    """
    source, used = open_rows(points), _default_mesh(mesh)
    devices = jax.devices()[:1] if used is None else list(used.devices.flat)
    on_cpu = devices[0].platform == "cpu"
    room = _memory(devices[0]) * (1 if on_cpu else len(devices)) / 2
    # In a CPU's memory, what was read is there a second time while it is sent.
    copies = 2 if on_cpu else 1
    if copies * source.count * source.dim * source.dtype.itemsize > room:
        return stream(points, mesh)
    placed = shard(points, mesh)
    if used is None and source.count * source.dim * 4 <= room:
        return dataclasses.replace(placed, rows=jax.jit(decode)(placed.rows))
    return placed


def _default_mesh(mesh):
    """The mesh to use, by default one of all devices; None for a single device."""
    if mesh is None:
        mesh = Mesh(np.asarray(jax.devices()), ("points",))
    return mesh if mesh.size > 1 else None


def _memory(device):
    """Bytes of a device's memory; for a CPU, whose devices share it, what this process may use."""
    if device.platform == "cpu":
        return min(memory.limit(), memory.free())
    return (device.memory_stats() or {}).get("bytes_limit", 2**33)
