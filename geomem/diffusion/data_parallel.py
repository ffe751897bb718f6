"""Data parallelism: one function on every device, by `jax.pmap` or by `jax.shard_map`.

Arrays have a leading axis with one entry per device, spread over the axis "data".
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

__all__ = ["PROGRAMS", "pmap", "replicate", "shard_map", "unreplicate"]


def pmap(steps: Callable, devices: Sequence[Any]) -> Callable:
    """Map (state, images, seed, levels, count) over the leading axes of the first two."""
    return jax.pmap(
        steps,
        axis_name="data",
        in_axes=(0, 0, None, None),
        devices=devices,
        static_broadcasted_argnums=4,
        donate_argnums=0,
    )


def shard_map(steps: Callable, devices: Sequence[Any]) -> Callable:
    """Map like `pmap`, in a single process: each device sees its entry of the leading axes."""
    mesh, split, whole = Mesh(np.array(devices), ("data",)), PartitionSpec("data"), PartitionSpec()

    options = _cpu_options() if devices[0].platform == "cpu" else None

    @functools.partial(jax.jit, static_argnums=4, donate_argnums=0, compiler_options=options)
    def mapped(state, images, seed, levels, count):
        def local(state, images, seed, levels):
            state, images = jax.tree.map(lambda leaf: leaf[0], (state, images))
            return jax.tree.map(lambda leaf: leaf[None], steps(state, images, seed, levels, count))

        specs = split, split, whole, whole
        run = jax.shard_map(local, mesh=mesh, in_specs=specs, out_specs=split, check_vma=False)
        return run(state, images, seed, levels)

    return mapped


@functools.cache
def _cpu_options():
    """Return compiler options with which convolutions use all cores, or None if XLA has none.

    In JAX 0.10, XLA leaves convolutions to a library that computes each of them on one core. These
    options take them away from it.
    """
    options = {"xla_cpu_experimental_ynn_fusion_type": "LIBRARY_FUSION_TYPE_REDUCE"}
    try:
        with jax.default_device(jax.devices("cpu")[0]):
            jax.jit(lambda: 0, compiler_options=options).lower().compile()
    except jax.errors.JaxRuntimeError:  # no such option
        return None
    return options


PROGRAMS = {"pmap": pmap, "shard_map": shard_map}


def replicate(tree: Any, devices: Sequence[Any] | None = None) -> Any:
    """Copy each array to all of this process's devices, which become its leading axis."""
    process = jax.process_index()
    devices = [device for device in devices or jax.devices() if device.process_index == process]
    sharding = NamedSharding(Mesh(np.array(devices), ("data",)), PartitionSpec("data"))

    def put(leaf):
        leaf = np.asarray(leaf)
        return jax.device_put(np.broadcast_to(leaf, (len(devices), *leaf.shape)), sharding)

    return jax.tree.map(put, tree)


def unreplicate(tree: Any) -> Any:
    """Return the first device's copy of a replicated tree, as new NumPy arrays."""
    # NumPy takes the row: JAX would compile the indexing once for each shape.
    return jax.tree.map(lambda leaf: np.array(np.asarray(leaf.addressable_data(0))[0]), tree)
