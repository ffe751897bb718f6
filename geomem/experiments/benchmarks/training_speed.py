"""How fast the training command is, and where its time goes, on the devices at hand.

    python -m geomem.experiments.benchmark_training --preset edm_cifar10 --batch 512 \\
        --compute float32 tf32 bfloat16

Trains on random images by the command itself (logging included), and compares with the same updates
launched with nothing around them. Writes benchmark_training.json and prints a table.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import math
import pathlib
import re
import tempfile
import time
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from geomem.diffusion import training_step as training
from geomem.diffusion import unet
from geomem.experiments.common import results
from geomem.experiments.train import configuration, loop, presets

__all__ = ["Config", "run"]

# Dense peak of one device, teraflop/s, by a part of its name: vendors' data sheets.
_PEAKS = {
    "H100": {"float32": 67, "tf32": 495, "bfloat16": 989},
    "H200": {"float32": 67, "tf32": 495, "bfloat16": 989},
    "A100": {"float32": 19.5, "tf32": 156, "bfloat16": 312},
    "TPU v4": {"tf32": 275, "bfloat16": 275},
    "TPU v5 lite": {"tf32": 197, "bfloat16": 197},
    "TPU v5": {"tf32": 459, "bfloat16": 459},
    "TPU v6 lite": {"tf32": 918, "bfloat16": 918},
}
_COMPILATION = "/jax/core/compile/backend_compile_duration"


@dataclasses.dataclass(frozen=True)
class Config:
    """Measure training speed.

    Attributes:
      out: folder for benchmark_training.json.
      preset: of geomem.experiments.train.
      batch: images per step over all devices; default the preset's.
      compute: precisions to measure.
      side: height and width of the random images.
      image_channels: their channels.
      steps: steps measured, after as many to warm up.
      profile: also trace one window and name the three largest costs.
    """

    out: str = "runs/benchmark_training"
    preset: Literal["edm_cifar10", "edm_small", "digits"] = "digits"
    batch: int | None = None
    compute: tuple[Literal["float32", "tf32", "bfloat16"], ...] = ("float32", "bfloat16")
    side: int = 8
    image_channels: int = 1
    steps: int = 100
    profile: bool = True


def run(config: Config) -> list[dict[str, Any]]:
    """One row for each precision, also written to `config.out`.

    Raises:
      ValueError: a batch or image side that the preset cannot use.
    """
    folder = results.make_folder(config.out)
    rows = []
    for compute in config.compute:
        with tempfile.TemporaryDirectory() as scratch:
            rows.append(_measure(config, compute, pathlib.Path(scratch)))
        print("  ".join(f"{name} {_text(value)}" for name, value in rows[-1].items()))
    path = folder / "benchmark_training.json"
    results.write_json(path, {"config": config, "environment": results.environment(), "rows": rows})
    print(f"wrote {path}")
    return rows


def _measure(config, compute, scratch):
    shape = (256, config.side, config.side, config.image_channels)
    pixels = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    np.save(scratch / "images.npy", pixels)
    preset = presets.PRESETS[config.preset]
    batch = config.batch or preset.batch
    flags = dataclasses.replace(
        preset,
        out=str(scratch / "run"),
        dataset=str(scratch / "images.npy"),
        num_train=None,
        batch=batch,
        compute=compute,
        kimg=3 * config.steps * batch / 1000,
        log_every=config.steps,
        checkpoint_every=3 * config.steps,
        samples=0,
    )
    facts = {
        "config": dataclasses.asdict(configuration.resolve(flags)),
        "data": {"sigma_data": preset.sigma_data or 0.5},
    }
    denoiser, recipe = configuration.build(facts)
    bare = _bare(denoiser, recipe, pixels, config, scratch)
    command = loop.run(flags).images_per_second
    flops = 3 * _forward_flops(denoiser, shape[1:])  # the backward pass costs twice the forward's
    peak, source = _peak(compute)
    return {
        "compute": compute,
        "batch": batch,
        "images_per_second": round(command, 1),
        "seconds_per_step": batch / command,
        "outside_device": max(0.0, 1 - command * bare.pop("seconds_per_step") / batch),
        "gigaflop_per_image": flops / 1e9,
        "mfu": command * flops / peak / jax.device_count(),
        "peak_teraflops": round(peak / 1e12, 3),
        "peak_source": source,
        **bare,
    }


def _bare(denoiser, recipe, pixels, config, scratch):
    """The update alone, back to back, in dispatches as the command makes them."""
    update = training.make_update(denoiser, recipe)
    state = training.replicate(training.init(denoiser, recipe, pixels.shape[1:]))
    images = training.replicate(training.load_images(pixels))
    count = 1 if jax.default_backend() == "cpu" else math.gcd(10, config.steps)

    def window(state):
        start = time.perf_counter()
        for _ in range(config.steps // count):
            state = update(state, images, count)
        jax.block_until_ready(state)
        return state, (time.perf_counter() - start) / config.steps

    start = time.perf_counter()
    state = jax.block_until_ready(update(state, images, count))
    first = time.perf_counter() - start
    with _compilations() as compiled:
        state, _ = window(state)
        state, seconds = window(state)
    memory = jax.local_devices()[0].memory_stats() or {}
    costs = _costs(lambda: window(state), scratch) if config.profile else None
    return {
        "seconds_per_step": seconds,
        "first_step_seconds": round(first, 2),
        "compilations_after": len(compiled),
        "peak_memory_gib": memory["peak_bytes_in_use"] / 2**30 if memory else None,
        "largest_costs": costs,
    }


@contextlib.contextmanager
def _compilations():
    """A list that grows with each program compiled inside the block."""
    seen = []

    def listen(event, seconds, **_):
        if event == _COMPILATION:
            seen.append(seconds)

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        yield seen
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)


def _forward_flops(denoiser, image_shape):
    """Floating-point operations of one image's forward pass, counted by XLA before it optimizes."""
    params = jax.eval_shape(lambda key: denoiser.init(key, image_shape), jax.random.key(0))
    x = jax.ShapeDtypeStruct((1, *image_shape), jnp.float32)
    return jax.jit(denoiser).lower(params, x, jnp.ones(1)).cost_analysis()["flops"]


def _peak(compute):
    """(flop/s of one device, where that number is from)."""
    kind = jax.devices()[0].device_kind
    for name, peaks in _PEAKS.items():
        if name in kind and compute in peaks:
            return peaks[compute] * 1e12, "data sheet"
    dtype, precision = unet.COMPUTE[compute]
    side = 1024
    matrix = jnp.ones((side, side), dtype)
    product = jax.jit(lambda a: jnp.matmul(a, a, precision=precision))
    jax.block_until_ready(product(matrix))
    start = time.perf_counter()
    outputs = [product(matrix) for _ in range(20)]
    jax.block_until_ready(outputs)
    return 20 * 2 * side**3 / (time.perf_counter() - start), "measured matrix product"


def _costs(work, scratch):
    """The three operations that take most of a trace: [(name, share of all operations' time)]."""
    with jax.profiler.trace(str(scratch / "trace")):
        work()
    (path,) = (scratch / "trace").rglob("*.xplane.pb")
    seconds = collections.Counter()
    for plane in jax.profiler.ProfileData.from_file(str(path)).planes:
        for line in plane.lines:
            for event in line.events:
                if name := dict(event.stats).get("hlo_op"):
                    seconds[re.sub(r"[.\d]+$", "", str(name))] += event.duration_ns
    total = sum(seconds.values())
    return [(name, round(value / total, 3)) for name, value in seconds.most_common(3)]


def _text(value):
    return f"{value:.4g}" if isinstance(value, float) else str(value)
