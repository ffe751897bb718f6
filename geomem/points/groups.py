"""Devices that hold points together: what each of them has, and how partial results merge."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from geomem.points.blocks import CHUNK, fold_chunks
from geomem.points.products import rounded_centre
from geomem.points.top_candidates import Leaders

__all__ = ["Group", "Part", "decode", "spread"]


class Group(NamedTuple):
    """The devices that hold the points together; how partial results of all of them merge.

    Attributes:
      axis: name of the mesh axis over which the points lie, None for a single device.
      everyone: names of all axes of the mesh.
    """

    axis: Any = None
    everyone: tuple[str, ...] = ()

    def sum(self, x: jax.Array) -> jax.Array:
        """The sum over the devices."""
        return x if self.axis is None else jax.lax.psum(x, self.axis)

    def max(self, x: jax.Array) -> jax.Array:
        """The maximum over the devices."""
        return x if self.axis is None else jax.lax.pmax(x, self.axis)

    def all(self, x: jax.Array) -> jax.Array:
        """Whether all of `x` is true on all devices of the mesh, so that all loop alike."""
        done = x.all()
        return jax.lax.pmin(done.astype(jnp.int32), self.everyone) > 0 if self.everyone else done

    def only(self, x: jax.Array, here: jax.Array) -> jax.Array:
        """`x`, of which each device knows what is `here`, with the rest from the others."""
        return x if self.axis is None else jax.lax.psum(jnp.where(here, x, 0), self.axis)

    def merge(self, leaders: Leaders) -> Leaders:
        """The leaders [Q, K] of all devices."""
        if self.axis is None:
            return leaders
        # [Q, D K], in the order of the devices, so that ties keep the order of the index.
        score, index = (jnp.concatenate(jax.lax.all_gather(a, self.axis), axis=1) for a in leaders)
        score, place = jax.lax.top_k(score, leaders.score.shape[1])
        return Leaders(score, jnp.take_along_axis(index, place, 1))


class Part(NamedTuple):
    """The points that one device holds.

    Attributes:
      rows: [L, d], or a pytree of [L, ...]: float32, or uint8 as stored.
      first: the first row's position in all points.
      stop: that of the first row that is only filling.
      group: the devices that hold the other points.
    """

    rows: Any
    first: jax.Array | int
    stop: jax.Array | int
    group: Group

    def fold(self, update: Callable, carry: Any, chunk: int = CHUNK) -> Any:
        """`fold_chunks` over these rows; `index` counts in all points."""

        def step(carry, rows, index, fresh):
            index = self.first + index
            return update(carry, decode(rows), index, fresh & (index < self.stop))

        return fold_chunks(self.rows, carry, step, chunk)

    def take(self, index: jax.Array) -> tuple[Any, jax.Array]:
        """Rows [..., d] at `index` [...], and whether they are here: the others are any rows."""
        length = len(jax.tree.leaves(self.rows)[0])
        local = jnp.clip(index - self.first, 0, length - 1)
        here = (index >= self.first) & (index < self.stop)
        return decode(jax.tree.map(lambda a: a[local], self.rows)), here

    def centre(self, count: int) -> jax.Array:
        """The mean of all points, `count` in number, rounded as in `products.centre`."""
        rows = decode(self.rows)
        if self.group.axis is not None:
            here = self.first + jnp.arange(len(rows)) < self.stop
            rows = jnp.where(here[:, None], rows, 0)
        return rounded_centre(self.group.sum(rows.sum(axis=0)) / count)


def spread(mesh: Mesh | None, f: Callable, in_specs: Any, out_specs: Any) -> Callable:
    """`jax.shard_map`, or `f` itself where there is no mesh."""
    if mesh is None:
        return f
    # The replication that the outputs state comes from collectives in loops: not inferred.
    return jax.shard_map(f, mesh=mesh, in_specs=in_specs, out_specs=out_specs, check_vma=False)


def decode(rows: Any) -> Any:
    """float32 rows: stored images as x / 127.5 - 1, bit for bit as in `data.to_float`."""
    return jax.tree.map(lambda a: _decode(a) if a.dtype == np.uint8 else a, rows)


def _decode(pixels):
    # A compiler makes x / 127.5 a product with the rounded inverse, off by a last bit. From the 16
    # leading bits of that, the remainder is exact.
    doubled = 2 * pixels.astype(jnp.float32)
    leading = jax.lax.reduce_precision(doubled / 255, exponent_bits=8, mantissa_bits=15)
    return leading + (doubled - 255 * leading) / 255 - 1
