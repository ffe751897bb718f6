"""Time the training command, and find out where the time goes.

    geomem benchmark-training --preset edm_cifar10 --batch 512 --side 32 --image-channels 3 \\
        --compute float32 tf32 bfloat16

Runs the command, with its logging, on random images, and compares it with the same updates in a
plain loop.
"""

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

from geomem.diffusion import data_parallel, training_step, unet, winograd
from geomem.experiments.benchmarks.timing import fastest_seconds
from geomem.experiments.common import chips, compilation, image_flags, results
from geomem.experiments.common.dataclass_flags import flag
from geomem.experiments.train import configuration, loop, presets

_ROUNDS = 8  # of geomem and PyTorch in turn, because the speed of a shared machine drifts


@dataclasses.dataclass(frozen=True)
class Config:
    """Measure the training speed of a preset in images per second, in each precision."""

    preset: Literal["edm_cifar10", "edm_small", "digits"] = "digits"
    """Preset of geomem.experiments.train."""
    compute: tuple[Literal["float32", "tf32", "bfloat16"], ...] = ("float32", "bfloat16")
    """Precisions to measure."""
    batch: int | None = None
    """Images per step over all devices; default: the preset's."""
    side: int = 8
    """Height and width of the random images."""
    image_channels: int = 1
    """Channels of the random images."""
    channels: int | None = flag(None, most=2**14)
    """Base number of channels; default: the preset's."""
    multipliers: tuple[int, ...] | None = flag(None, most=64)
    """Channels of each resolution level as multiples of the base; default: the preset's."""
    torch: bool = False
    """Also time the same network and an equivalent step in PyTorch on the CPU, in turn with geomem;
    float32, without augmentation."""
    steps: int = 100
    """Steps in each timed window, after a window of as many to warm up."""
    profile: bool = True
    """Also trace the steps, and report the three most expensive operations."""
    out: str = flag("runs/benchmark_training", "output")
    """Folder for benchmark_training.json."""


def run(config: Config) -> list[dict[str, Any]]:
    """Return one row for each precision; write them to benchmark_training.json.

    Raises:
      ValueError: a batch or image side that the preset cannot use.
    """
    if not config.compute:
        raise ValueError("compute must name at least one precision, got none.")
    if config.torch:
        if config.compute != ("float32",):
            raise ValueError(f"compute must be float32 with torch, got {' '.join(config.compute)}.")
        if presets.PRESETS[config.preset].augment:
            raise ValueError(f"torch must be left out for {config.preset}, which augments images.")
        if jax.default_backend() != "cpu":
            raise ValueError("torch must be left out on an accelerator: it compares CPU time.")
    output = results.Run(config)
    rows = []
    for compute in config.compute:
        with tempfile.TemporaryDirectory() as scratch:
            rows.append(_time_training(config, compute, pathlib.Path(scratch)))
        print("  ".join(f"{name} {_text(value)}" for name, value in rows[-1].items()))
    facts = {"config": config, "environment": results.environment(), "rows": rows}
    output.write_json("benchmark_training.json", facts)
    output.finish()
    return rows


def _time_training(config, compute, scratch):
    shape = (256, config.side, config.side, config.image_channels)
    pixels = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    np.save(scratch / "images.npy", pixels)
    preset = presets.PRESETS[config.preset]
    batch = config.batch or preset.batch
    training = dataclasses.replace(
        preset,
        out=str(scratch / "run"),
        dataset=str(scratch / "images.npy"),
        num_train=None,
        batch=batch,
        compute=compute,
        channels=config.channels or preset.channels,
        multipliers=config.multipliers or preset.multipliers,
        kimg=3 * config.steps * batch / 1000,
        log_every=config.steps,
        checkpoint_every=3 * config.steps,
        samples=0,
    )
    split = image_flags.load(training).train_split
    facts = configuration.facts(configuration.resolve(training), split)
    denoiser, recipe = configuration.build(facts)
    bare_loop = _time_bare_loop(denoiser, recipe, split.pixels, config, scratch)
    speed = loop.run(training).images_per_second
    flops = 3 * _forward_flops(denoiser, shape[1:])  # a backward pass costs two forward passes
    peak, peak_source = _peak(compute)
    return {
        "compute": compute,
        "batch": batch,
        "images_per_second": round(speed, 1),
        "seconds_per_step": batch / speed,
        "outside_device": max(0.0, 1 - speed * bare_loop.pop("seconds_per_step") / batch),
        "gigaflop_per_image": flops / 1e9,
        "mfu": speed * flops / peak / jax.device_count(),
        "peak_teraflops": round(peak / 1e12, 3),
        "peak_source": peak_source,
        **bare_loop,
    }


def _time_bare_loop(denoiser, recipe, pixels, config, scratch):
    """The time of the updates alone, with as many steps per launch as in the command."""
    update = training_step.make_update(denoiser, recipe)
    state = data_parallel.replicate(training_step.init(denoiser, recipe, pixels.shape[1:]))
    images = data_parallel.replicate(training_step.load_images(pixels))
    count = 1 if jax.default_backend() == "cpu" else math.gcd(10, config.steps)

    def window(state):
        start, start_cpu = time.perf_counter(), time.process_time()
        for _ in range(config.steps // count):
            state = update(state, images, count)
        jax.block_until_ready(state)
        ends = time.perf_counter() - start, time.process_time() - start_cpu
        return state, *(seconds / config.steps for seconds in ends)

    start = time.perf_counter()
    state = jax.block_until_ready(update(state, images, count))
    first = time.perf_counter() - start
    torch_window = _torch_window(denoiser, recipe, pixels, config) if config.torch else None
    seconds, cpu_seconds, torch_seconds = [], [], []
    with _compilations() as compiled:
        state, *_ = window(state)
        for _ in range(_ROUNDS if config.torch else 1):
            state, *ends = window(state)
            seconds.append(ends[0])
            cpu_seconds.append(ends[1])
            if torch_window:
                torch_seconds.append(torch_window())
    memory = jax.local_devices()[0].memory_stats() or {}
    costs = _costs(lambda: window(state), scratch) if config.profile else None
    compared = {}
    if config.torch:
        ratios = sorted(np.divide(torch_seconds, cpu_seconds).tolist())
        compared = {
            "torch_images_per_cpu_second": round(recipe.batch / np.median(torch_seconds), 1),
            "ratio_to_torch": float(np.median(ratios)),
            "ratio_range": [ratios[0], ratios[-1]],
        }
    return compared | {
        "images_per_cpu_second": round(recipe.batch / np.median(cpu_seconds), 1),
        "seconds_per_step": float(np.median(seconds)),
        "first_step_seconds": round(first, 2),
        "compilations_after": len(compiled),
        "peak_memory_gib": memory["peak_bytes_in_use"] / 2**30 if memory else None,
        "largest_costs": costs,
    }


def _torch_window(denoiser, recipe, pixels, config):
    """Return a function that runs PyTorch's steps, once warmed up: the CPU seconds of a step."""
    from geomem.experiments.benchmarks import torch_training

    params = training_step.init(denoiser, recipe, pixels.shape[1:]).params
    step = torch_training.trainer(denoiser, recipe, params, pixels)

    def window():
        start = time.process_time()
        for _ in range(config.steps):
            step()
        return (time.process_time() - start) / config.steps

    window()
    return window


@contextlib.contextmanager
def _compilations():
    """Yield a list to which each compilation inside the block adds its seconds."""
    durations = []

    def listen(event, seconds):
        if event == compilation.END:
            durations.append(seconds)

    with compilation.listening(listen):
        yield durations


def _forward_flops(denoiser, image_shape):
    """Floating-point operations of one image's forward pass, counted by XLA before optimization."""
    params = jax.eval_shape(lambda key: denoiser.init(key, image_shape), jax.random.key(0))
    x = jax.ShapeDtypeStruct((1, *image_shape), jnp.float32)
    with winograd.disabled():
        lowered = jax.jit(lambda *a: denoiser(*a)).lower(params, x, jnp.ones(1))
    return lowered.cost_analysis()["flops"]


def _peak(compute):
    """(peak flop/s of one device, source of the number)."""
    if chip := chips.find(jax.devices()[0].device_kind):
        return chip.peak(compute), "data sheet"
    dtype, precision = unet.COMPUTE[compute]
    side = 1024
    matrix = jnp.ones((side, side), dtype)
    product = jax.jit(lambda a: jnp.matmul(a, a, precision=precision))
    seconds = fastest_seconds(lambda: [product(matrix) for _ in range(20)], 1)
    return 20 * 2 * side**3 / seconds, "measured matrix product"


def _costs(work, scratch):
    """The three most expensive operations of a trace: [(name, share of all operations' time)]."""
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
