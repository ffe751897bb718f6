"""Compile a program for TPUs or GPUs that you do not have, and report what the compiler finds out.

    geomem compile --target v5e:2x4 --compute bfloat16
    geomem compile --target v5e:8x8 --program posterior --points 1281167 --shape 64 64 3

Nothing is run: memory, operations, bytes and collectives are the compiler's, and the floor is the
shortest time that these and the chip's data sheet allow.
"""

import dataclasses
import functools
import math
import os
import re
import time
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from geomem.diffusion import sampler, training_step, winograd
from geomem.experiments.common import chips, hlo, results
from geomem.experiments.common.dataclass_flags import flag
from geomem.experiments.train import configuration, presets
from geomem.geometry import _curve_kernels, posterior, shells
from geomem.geometry._noise_coordinates import direct_frame
from geomem.points import neighbors
from geomem.points.visit import Points

__all__ = ["Config", "check", "run", "text"]

# Else JAX looks for NVIDIA's driver, before it compiles, and finds none without a GPU.
os.environ["JAX_SKIP_CUDA_CONSTRAINTS_CHECK"] = "1"

_DATA = {"digits": (900, (8, 8, 1)), "cifar10": (50_000, (32, 32, 3))}
_NETWORK = {"compute", "batch"}
_GEOMETRY = {"points", "stored", "queries"}
# The flags that not all programs use, and those that each of them does.
_USES = {
    "train": {*_NETWORK, "points", "stored", "microbatch", "remat", "parallel"},
    "sample": _NETWORK,
    "posterior": _GEOMETRY,
    "nearest": _GEOMETRY,
    "curves": _GEOMETRY,
}
_OUT_OF_MEMORY = re.compile(r"Used ([\d.]+)([KMG]?) of ([\d.]+)([KMG]?)")


@dataclasses.dataclass(frozen=True)
class Config:
    """Compile a program for TPUs or GPUs that you do not have: does it fit, how fast can it be?

    Nothing is run. Needs the extra compile-tpu or compile-cuda.
    """

    target: str = flag("v5e:2x4", positional=True)
    """Chip and topology: v5e:2x4, v5e:8x8, v6e:2x4, v4:2x2x1, h100:1, h100:8."""
    program: Literal["train", "sample", "posterior", "nearest", "curves"] = "train"
    """A training step, a Heun step of the sampler, or the geometry of all points and a block of
    queries."""
    points: int | None = flag(None, "data", most=2**31 - 1)
    """Number of images; default: the preset's."""
    shape: tuple[int, int, int] | None = flag(None, "data", most=2**16)
    """Height, width and channels of the images; default: the preset's."""
    stored: Literal["uint8", "float32"] = flag("uint8", "data")
    """Type of the images in memory."""
    queries: int = flag(1024, "data", most=2**20)
    """Queries at once, for posterior, nearest and curves."""
    preset: Literal["edm_cifar10", "edm_small", "digits", "digits_fourier"] = flag(
        "edm_cifar10", "training"
    )
    """Preset of geomem train."""
    compute: Literal["float32", "tf32", "bfloat16"] | None = flag(None, "training")
    """As in geomem train; default: the preset's."""
    batch: int | None = flag(None, "training", most=2**20)
    """Images over all devices; default: the preset's, and 256 for sample."""
    microbatch: int | None = flag(None, "training", most=2**20)
    """As in geomem train."""
    remat: bool = flag(False, "training")
    """As in geomem train."""
    parallel: Literal["pmap", "shard_map"] = flag("pmap", "training")
    """As in geomem train."""
    out: str = flag("runs/compile", "output")
    """Folder for compile.json."""


def run(config: Config) -> dict[str, Any]:
    """Compile, print the report and write it to compile.json.

    Raises:
      ValueError: a target or a size that cannot be, or a compiler that is not installed.
    """
    for name in sorted(set().union(*_USES.values()) - _USES[config.program]):
        if getattr(config, name) != getattr(Config, name):
            raise ValueError(f"{name} must be left out for the program {config.program}.")
    chip, devices = chips.target(config.target)
    output = results.Run(config)
    report = check(config, chip, devices)
    print(text(config, report))
    output.write_json("compile.json", {"config": config, **report})
    output.finish()
    return report


def check(config: Config, chip: chips.Chip, devices: list[Any]) -> dict[str, Any]:
    """Compile the program for the devices and return the report; sizes are those of one chip."""
    lower, items, compute = _PROGRAMS[config.program](config, devices)
    report: dict[str, Any] = {"run": "nothing was run: compiled only", "chips": len(devices)}
    jax.config.update("jax_enable_compilation_cache", False)  # it needs the chips
    start = time.perf_counter()
    lowered = lower()
    report["lower_seconds"] = round(time.perf_counter() - start, 1)
    report["float32_convolutions"] = len(
        re.findall(r"stablehlo\.convolution.*: \(tensor<\w+xf32>", lowered.as_text())
    )
    try:
        compiled = lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        if not (used := _OUT_OF_MEMORY.search(str(error))):
            raise
        needed, room = (
            float(number) * 2.0 ** {"": 0, "K": 10, "M": 20, "G": 30}[unit]
            for number, unit in (used.group(1, 2), used.group(3, 4))
        )
        return report | {"fits": False, "missing_bytes": needed - room}
    seconds = time.perf_counter() - start - report["lower_seconds"]
    report["compile_seconds"] = round(seconds, 1)
    memory, costs = compiled.memory_analysis(), compiled.cost_analysis() or {}
    costs = costs[0] if isinstance(costs, list) else costs
    held = memory.argument_size_in_bytes + memory.output_size_in_bytes - memory.alias_size_in_bytes
    needed = held + memory.temp_size_in_bytes + memory.generated_code_size_in_bytes
    program = compiled.as_text()
    linked = hlo.collectives(program)
    report |= {
        "fits": needed <= chip.memory,
        "missing_bytes": max(0.0, needed - chip.memory),
        "argument_bytes": memory.argument_size_in_bytes,
        "temporary_bytes": memory.temp_size_in_bytes,
        "collectives": linked,
    }
    if hlo.has_loops(program) or config.program not in ("train", "sample"):
        return report
    flop = costs.get("flops") or _operations(config, items // len(devices))
    traffic = hlo.memory_traffic(program)
    seconds = {
        "products": flop / chip.peak(compute),
        "memory": traffic / chip.bandwidth,
        "link": 2 * sum(entry["bytes"] for entry in linked.values()) / chip.link,
    }
    floor = max(seconds.values())
    return report | {
        "flop": flop,
        "bytes_accessed": costs.get("bytes accessed"),  # None for a GPU
        "memory_traffic_bytes": traffic,
        "floor_seconds": seconds,
        "share_of_peak": seconds["products"] / floor,
        "items_per_second": items / floor,
    }


def _operations(config, batch):
    """The operations of one chip's program as XLA counts them before it compiles."""
    devices = jax.devices("cpu")[:1]
    lower, _, _ = _PROGRAMS[config.program](dataclasses.replace(config, batch=batch), devices)
    with winograd.disabled():
        return lower().cost_analysis()["flops"]


def text(config: Config, report: dict[str, Any]) -> str:
    """Return the report in words."""
    what = f"{config.program} for {config.target} ({report['chips']} chips)"
    if not report["fits"]:
        return f"{what}: does not fit: {report['missing_bytes'] / 1e9:.2f} GB a chip are missing"
    lines = [
        f"{what}: compiled in {report['compile_seconds']:.0f} s; nothing was run",
        f"fits: arguments {report['argument_bytes'] / 1e9:.3f} GB, temporaries "
        f"{report['temporary_bytes'] / 1e9:.3f} GB a chip",
    ]
    lines += [
        f"{name}: {entry['count']}, {entry['bytes'] / 1e6:.1f} MB a chip"
        for name, entry in report["collectives"].items()
    ]
    if "flop" not in report:
        return "\n".join([*lines, "no floor: compilers count the body of a loop once"])
    seconds = report["floor_seconds"]
    accessed = report["bytes_accessed"]
    accessed = "" if accessed is None else f"{accessed / 1e9:.2f} GB accessed, "
    return "\n".join(
        [
            *lines,
            f"{report['flop'] / 1e12:.3f} TFLOP a chip; {accessed}"
            f"{report['memory_traffic_bytes'] / 1e9:.2f} GB read and written in its large memory",
            "floor: "
            + ", ".join(f"{name} {value * 1e3:.2f} ms" for name, value in seconds.items())
            + f"; at most {report['items_per_second']:,.0f} images/s, "
            f"{report['share_of_peak']:.0%} of the peak",
        ]
    )


def _sizes(config):
    """(number of images, their shape) of the configuration or else its preset."""
    preset = presets.PRESETS[config.preset]
    count, shape = _DATA[preset.dataset]
    return config.points or preset.num_train or count, config.shape or shape


def _network(config, batch):
    """(denoiser, recipe, the training configuration)."""
    preset = presets.PRESETS[config.preset]
    given = {name: getattr(config, name) for name in ("microbatch", "remat", "parallel")}
    compute = config.compute or preset.compute
    training = dataclasses.replace(
        preset, compute=compute, batch=config.batch or batch or preset.batch, **given
    )
    training = configuration.resolve(training)
    _, shape = _sizes(config)
    facts = {"image_shape": list(shape), "sigma_data": training.sigma_data or 0.5}
    denoiser, recipe = configuration.build({"config": dataclasses.asdict(training), "data": facts})
    return denoiser, recipe, training


def _train(config, devices):
    denoiser, recipe, training = _network(config, None)
    count, shape = _sizes(config)
    state = jax.eval_shape(lambda: training_step.init(denoiser, recipe, shape))
    one = functools.partial(jax.ShapeDtypeStruct, shape, jnp.float32)
    pixels = jax.ShapeDtypeStruct((count, math.prod(shape)), config.stored)
    images = training_step.Images(pixels, one(), one())
    mapped, constants = training_step.program(denoiser, recipe, devices, training.parallel)
    split = NamedSharding(Mesh(np.array(devices), ("data",)), PartitionSpec("data"))

    def stacked(leaf):
        return jax.ShapeDtypeStruct((len(devices), *leaf.shape), leaf.dtype, sharding=split)

    arguments = jax.tree.map(stacked, (state, images))
    return lambda: mapped.lower(*arguments, *constants, 1), recipe.batch, training.compute


def _sample(config, devices):
    denoiser, _, training = _network(config, 256)
    _, shape = _sizes(config)
    mesh = Mesh(np.array(devices), ("data",))
    params = jax.eval_shape(lambda: denoiser.init(jax.random.key(0), shape))
    params = _on(mesh, PartitionSpec(), params)
    batch = math.ceil(training.batch / len(devices)) * len(devices)
    x = jax.ShapeDtypeStruct((batch, *shape), jnp.float32)
    x = _on(mesh, PartitionSpec("data"), x)
    step = jax.jit(lambda denoiser, x: sampler.solve(denoiser, x, (2.0, 1.0)))
    return functools.partial(step.lower, denoiser.bind(params), x), batch, training.compute


def _geometry(kernel, config, devices):
    count, shape = _sizes(config)
    dim, mesh = math.prod(shape), Mesh(np.array(devices), ("points",))
    length = -(-count // len(devices)) * len(devices)
    rows = jax.ShapeDtypeStruct((length, dim), config.stored)
    rows = _on(mesh, PartitionSpec("points"), rows)
    queries = _on(mesh, PartitionSpec(), jax.ShapeDtypeStruct((config.queries, dim), jnp.float32))

    @jax.jit
    def program(rows, queries):
        several = mesh.size > 1
        points = Points(rows, count, mesh if several else None, "points" if several else None)
        return kernel(points, queries)

    return functools.partial(program.lower, rows, queries), config.queries, "float32"


def _on(mesh, spec, tree):
    sharding = NamedSharding(mesh, spec)
    return jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=sharding), tree)


def _coverage(points, queries):
    dim = points.shape[1]
    return _curve_kernels.coverage_sweep(
        jax.random.key(0),
        np.arange(len(queries)),
        direct_frame(points, queries),
        sigmas=jnp.geomspace(0.01, 80, 40),
        limits=jnp.asarray(shells.radii(dim), jnp.float32) ** 2,
        table=shells.probability_table(dim),
        draws=8,
    )


_PROGRAMS = {
    "train": _train,
    "sample": _sample,
    "posterior": functools.partial(_geometry, lambda x, y: posterior.denoise(y, x, 2.0)),
    "nearest": functools.partial(_geometry, lambda x, y: neighbors.two_nearest(y, x)),
    "curves": functools.partial(_geometry, _coverage),
}
