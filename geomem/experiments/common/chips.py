"""TPU and GPU chips: their data sheets, and their compilers without the chips."""

import importlib.util
import math
import os
import re
from typing import Any, NamedTuple

import jax
from jax.experimental import topologies


class Chip(NamedTuple):
    """A chip's peak rates according to its vendor."""

    name: str  # in messages and tables
    kind: str  # part of JAX's device_kind
    memory: float  # bytes
    bandwidth: float  # bytes per second from memory
    link: float  # bytes per second to other chips, one way
    teraflops: dict[str, float]  # dense peak of products by `compute`, in 10^12 operations/s

    def peak(self, compute: str) -> float:
        """Return the peak of matrix products in operations per second.

        A TPU has no float32 products: one at full precision takes six in bfloat16.
        """
        return self.teraflops.get(compute, self.teraflops["bfloat16"] / 6) * 1e12


def _tpu(name, kind, gigabytes, bandwidth, link, bfloat16):
    peaks = {"tf32": bfloat16, "bfloat16": bfloat16}
    return Chip(name, kind, gigabytes * 2**30, bandwidth * 1e9, link * 1e9, peaks)


def _gpu(name, gigabytes, bandwidth, link, float32, tf32, bfloat16):
    peaks = {"float32": float32, "tf32": tf32, "bfloat16": bfloat16}
    return Chip(name, name, gigabytes * 1e9, bandwidth * 1e9, link * 1e9, peaks)


# Google's pages on Cloud TPU versions, and NVIDIA's data sheets (SXM).
CHIPS = {
    "v4": _tpu("TPU v4", "TPU v4", 32, 1228, 300, 275),
    "v5e": _tpu("TPU v5e", "TPU v5 lite", 16, 819, 200, 197),
    "v5p": _tpu("TPU v5p", "TPU v5", 95, 2765, 600, 459),
    "v6e": _tpu("TPU v6e", "TPU v6 lite", 32, 1640, 400, 918),
    "a100": _gpu("A100", 80, 2039, 300, 19.5, 156, 312),
    "h100": _gpu("H100", 80, 3350, 450, 67, 495, 989),
    "h200": _gpu("H200", 141, 4800, 450, 67, 495, 989),
}

# The description that XLA's compiler needs of an H100 (XLA's issue 25919).
_H100 = """
gpu_device_info {
  threads_per_block_limit: 1024 threads_per_warp: 32 shared_memory_per_block: 49152
  shared_memory_per_core: 233472 threads_per_core_limit: 2048 core_count: 132 fpus_per_core: 128
  block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
  memory_bandwidth: 3352320000000 l2_cache_size: 52428800 clock_rate_ghz: 1.98
  device_memory_size: 84929347584 shared_memory_per_block_optin: 232448
  cuda_compute_capability { major: 9 } registers_per_core_limit: 65536
  registers_per_block_limit: 65536
}
platform_name: "CUDA"
dnn_version_info { major: 9 minor: 12 }
runtime_version { major: 13 minor: 0 patch: 0 }
device_description_str: "NVIDIA H100 80GB HBM3"
"""


def find(device_kind: str) -> Chip | None:
    """Return the chip of JAX's `device_kind`, or None if it is not known."""
    return next((chip for chip in CHIPS.values() if chip.kind in device_kind), None)


def target(name: str) -> tuple[Chip, list[Any]]:
    """Return a chip and devices that programs can be compiled for without having them.

    Args:
      name: "v5e:2x4", "v6e:2x4", "v5p:2x2x1", "v4:2x2x1" or "h100:8": chip and topology. A TPU's
        topology is that of its slice, a GPU's is their number.

    Raises:
      ValueError: another name, or the compiler is not installed.
    """
    kind, _, shape = name.partition(":")
    if kind not in ("v4", "v5e", "v5p", "v6e", "h100") or not re.fullmatch(
        r"[1-9][0-9]?(x[1-9][0-9]?)*", shape
    ):
        raise ValueError(f"target must be like v5e:2x4, v4:2x2x1 or h100:8, got {name!r}.")
    compiler, extra = ("jax_cuda13_plugin", "cuda") if kind == "h100" else ("libtpu", "tpu")
    if importlib.util.find_spec(compiler) is None:
        raise ValueError(
            f"target must be a chip whose compiler is installed, got {name}: "
            f"pip install 'geomem[compile-{extra}]'."
        )
    try:
        topology = _gpus(int(shape)) if kind == "h100" else _tpus(kind, shape)
    except Exception as error:  # libtpu raises errors of several types
        reason = str(error).partition("\n")[0]
        raise ValueError(f"target must be a topology of its chip, got {name} ({reason}).") from None
    return CHIPS[kind], list(topology.devices)


def _tpus(kind, shape):
    # libtpu must not look for chips, for a cloud's metadata or for its own lock.
    chips = math.prod(map(int, shape.split("x")))
    prefix, cores = {
        "v4": ("v4", 2), "v5e": ("v5litepod", 1), "v5p": ("v5p", 2), "v6e": ("v6e", 1),
    }[kind]  # fmt: skip
    os.environ |= {
        "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
        "TPU_SKIP_MDS_QUERY": "1",
        "TPU_WORKER_HOSTNAMES": "localhost",
        "TPU_ACCELERATOR_TYPE": f"{prefix}-{chips * cores}",
    }
    jax.config.update("jax_platforms", "cpu")
    return topologies.get_topology_desc(f"{kind}:{shape}", platform="tpu")


def _gpus(count):
    jax.config.update("jax_platforms", "cpu")
    return topologies.get_topology_desc(
        platform="cuda", target_config=_H100, topology=f"1x1x{count}"
    )
