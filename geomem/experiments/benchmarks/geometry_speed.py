"""How fast the geometry is, each number beside what it is compared with in the same run.

python -m geomem.experiments.benchmark --only curves nearest
"""

from __future__ import annotations

import ctypes
import dataclasses
import pathlib
import statistics
import time
from collections.abc import Callable
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from geomem import data
from geomem.experiments.common import results
from geomem.geometry import curves, posterior, shells
from geomem.metrics import memorization
from geomem.points import exact, neighbours

__all__ = ["Config", "Row", "run"]

_SIGMAS = np.float32(
    [0.02, 0.05, 0.1, 0.14, 0.2, 0.3, 0.4, 0.6, 0.8, 1, 1.5, 2, 3, 4, 5, 8, 12, 20, 40, 80]
)
_DRAWS_COVERAGE, _DRAWS_WEIGHT, _SHELL_C = 8, 4, 5.0
_DIM = 3072

Part = Literal["peak", "curves", "nearest", "memorization", "denoise", "scaling"]


@dataclasses.dataclass(frozen=True)
class Config:
    """Time the geometry against plain NumPy, FAISS and the device's matrix-product peak."""

    only: tuple[Part, ...] = ("peak", "curves", "nearest", "memorization", "denoise", "scaling")
    """Which parts to run."""
    repeats: int = 5
    """Timed runs after one warm-up; the median counts. Slow baselines run once."""
    points: int = 50_000
    """Points of the nearest-neighbour and denoiser parts, each of dimension 3,072."""
    out: str | None = None
    """Folder for benchmark.json; default: print only."""


class Row(NamedTuple):
    """One measurement.

    Attributes:
      what: what was timed.
      seconds: median.
      ratio: how many times faster than what `against` names, or the fraction of it.
      against: what it is compared with.
    """

    what: str
    seconds: float
    ratio: float | None
    against: str


def run(config: Config) -> list[Row]:
    """Run the parts, print the table, return its rows.

    Args:
      config: what to time.

    Raises:
      ValueError: repeats or points that are not positive.
    """
    if config.repeats < 1 or config.points < 4096:
        raise ValueError(
            f"repeats, points: {config.repeats}, {config.points}, wanted >= 1 and >= 4096"
        )
    if config.out is not None:
        folder = results.make_folder(config.out)
    device = jax.devices()[0]
    print(f"{device.device_kind} x {jax.device_count()}, jax {jax.__version__}\n")
    print(f"{'what':62} {'seconds':>9} {'ratio':>8}  against")
    rows = []
    peak = _matmul_peak(config)
    for part in config.only:
        for row in _PARTS[part](config, peak):
            rows.append(row)
            ratio = "" if row.ratio is None else f"{row.ratio:8.2f}"
            print(f"{row.what:62} {row.seconds:9.3f} {ratio:>8}  {row.against}", flush=True)
    if config.out is not None:
        facts = {"rows": [row._asdict() for row in rows], "environment": results.environment()}
        results.write_json(folder / "benchmark.json", facts)
    return rows


def median_seconds(f: Callable[[], object], repeats: int) -> float:
    """Median time of `f()` until its arrays are there, after one call that is not counted."""
    jax.block_until_ready(f())
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        jax.block_until_ready(f())
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def _matmul_peak(config):
    """Operations per second of a large float32 matrix product at full precision."""
    a = jax.random.normal(jax.random.key(0), (4096, _DIM))
    seconds = median_seconds(lambda: _products(a, a), config.repeats)
    return 2 * 4096 * 4096 * _DIM / seconds


_products = jax.jit(exact.inner_products)


def _peak_rows(config, peak):
    yield Row(
        "matrix product, 4096 x 4096 x 3072, float32",
        2 * 4096 * 4096 * _DIM / peak,
        peak / 1e9,
        "GFLOP/s",
    )


def _curves_rows(config, peak):
    dataset = data.load()
    train, heldout = (a.reshape(len(a), -1) for a in (dataset.train, dataset.test))
    on_device = jax.device_put(train), jax.device_put(heldout)

    def ours():
        return curves.estimate(
            jax.random.key(0),
            *on_device,
            _SIGMAS,
            draws_coverage=_DRAWS_COVERAGE,
            draws_weight=_DRAWS_WEIGHT,
            shell_c=_SHELL_C,
        )

    seconds = median_seconds(ours, config.repeats)
    what = "curves: 20 sigmas, 8 + 4 draws, 1,000 + 1,000 images, all bounds"
    yield Row(
        what, seconds, _once(lambda: _numpy_curves(train, heldout)) / seconds, "NumPy float64"
    )
    yield Row(
        what,
        seconds,
        _once(lambda: _curves_per_sigma(*on_device)) / seconds,
        "noising at each sigma (JAX)",
    )


def _once(f):
    start = time.perf_counter()
    jax.block_until_ready(f())
    return time.perf_counter() - start


def _numpy_curves(train, heldout):
    """C and W in float64 NumPy, one product a draw: what one would write without this library."""
    rng = np.random.default_rng(0)
    train, heldout = np.float64(train), np.float64(heldout)
    r_in, r_out = shells.radii(_DIM, _SHELL_C)

    def squares(x):
        return np.maximum((x**2).sum(1)[:, None] + (train**2).sum(1) - 2 * x @ train.T, 0)

    covered, weight = np.zeros(len(_SIGMAS)), np.zeros(len(_SIGMAS))
    for x, draws in ((heldout, _DRAWS_COVERAGE), (train, _DRAWS_WEIGHT)):
        apart = squares(x)
        for _ in range(draws):
            z = rng.standard_normal(x.shape)
            inner = (z * x).sum(1)[:, None] - z @ train.T
            norms = (z**2).sum(1)[:, None]
            for s, sigma in enumerate(np.float64(_SIGMAS)):
                if x is heldout:
                    radius = apart / sigma**2 + 2 * inner / sigma + norms
                    inside = (radius >= r_in**2) & (radius <= r_out**2)
                    covered[s] += inside.any(1).mean() / draws
                else:
                    logit = -apart / (2 * sigma**2) - inner / sigma
                    top = logit.max(1, keepdims=True)
                    weight[s] += (1 / np.exp(logit - top).sum(1)).mean() / draws
    return covered, weight


def _curves_per_sigma(train, heldout):
    """C and W by noising the images at each sigma anew: a product for each sigma and draw."""
    keys = jax.random.split(jax.random.key(0), len(_SIGMAS))
    covered, weight = [], []
    for key, sigma in zip(keys, _SIGMAS, strict=True):
        covered.append(
            shells.coverage(key, heldout, train, sigma, draws=_DRAWS_COVERAGE, c=_SHELL_C).mean()
        )
        for draw in jax.random.split(key, _DRAWS_WEIGHT):
            y = train + sigma * jax.random.normal(draw, train.shape)
            weight.append(posterior.max_weight(y, train, sigma).mean())
    return covered, weight


def _random_points(config, queries):
    rng = np.random.default_rng(0)
    return tuple(
        rng.standard_normal((count, _DIM), dtype=np.float32) for count in (config.points, queries)
    )


def _nearest_rows(config, peak):
    points, queries = _random_points(config, 2000)
    on_device = jax.device_put(points), jax.device_put(queries)
    seconds = median_seconds(
        lambda: neighbours.two_nearest(on_device[1], on_device[0]), config.repeats
    )
    what = f"two nearest of 2,000 queries among {config.points:,} points"
    yield Row(what, seconds, 2 * 2000 * config.points * _DIM / seconds / peak, "of the peak")
    try:
        import faiss
    except ImportError:
        return
    index = faiss.IndexFlatL2(_DIM)
    index.add(points)
    faiss_seconds = median_seconds(lambda: index.search(queries, 2), min(config.repeats, 3))
    yield Row(what, seconds, faiss_seconds / seconds, "FAISS IndexFlatL2")


def _memorization_rows(config, peak):
    """`neighbours` on images in host memory, as a caller has them: checks and verdicts included."""
    points, queries = _random_points(config, 10_000)
    repeats = min(config.repeats, 3)
    seconds = median_seconds(lambda: memorization.measure(queries, points), repeats)
    what = f"memorization of 10,000 samples against {config.points:,} images"
    grown = peak_growth(lambda: memorization.measure(queries, points))
    if grown is not None:
        yield Row("its memory beyond the data, resident at the peak", 0, grown / 2**20, "MB")
    try:
        import faiss
    except ImportError:
        yield Row(what, seconds, None, "")
        return
    index = faiss.IndexFlatL2(_DIM)
    index.add(points)
    faiss_seconds = median_seconds(lambda: index.search(queries, 2), repeats)
    yield Row(what, seconds, faiss_seconds / seconds, "FAISS IndexFlatL2, search only")


def peak_growth(f: Callable[[], object]) -> int | None:
    """By how many bytes the process's resident memory peaks above now during f(); Linux only."""
    try:
        # Memory that earlier calls have freed, but the process still holds, would hide growth.
        ctypes.CDLL(None).malloc_trim(0)
        pathlib.Path("/proc/self/clear_refs").write_text("5")  # resets the peak
        before = _resident("VmRSS")
        jax.block_until_ready(f())
        return _resident("VmHWM") - before
    except (AttributeError, OSError):
        return None


def _resident(field):
    lines = pathlib.Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))


def _denoise_rows(config, peak):
    points, queries = _random_points(config, 1024)
    on_device = jax.device_put(points), jax.device_put(queries)
    for sigma in (0.5, 5.0):
        noised = on_device[0][:1024] + sigma * on_device[1]
        seconds = median_seconds(
            lambda y=noised, sigma=sigma: posterior.denoise(y, on_device[0], sigma),
            config.repeats,
        )
        yield Row(
            f"posterior mean of 1,024 noised points over {config.points:,} points, sigma {sigma:g}",
            seconds,
            4 * 1024 * config.points * _DIM / seconds / peak,
            "of the peak",
        )
    memory = jax.jit(posterior.denoise).lower(*on_device[::-1], 1.0).compile().memory_analysis()
    yield Row("its memory beyond data and result", 0, memory.temp_size_in_bytes / 2**20, "MB")


def _scaling_rows(config, peak):
    points, queries = _random_points(config, 4096)
    for axis, count, total in (
        *(("points", config.points // k, config.points) for k in (4, 2, 1)),
        *(("queries", 4096 // k, 4096) for k in (4, 2, 1)),
    ):
        x = jnp.asarray(points[:count] if axis == "points" else points[: config.points // 4])
        y = jnp.asarray(queries[:1024] if axis == "points" else queries[:count])
        y = x[: len(y)] + 2 * y
        seconds = median_seconds(
            lambda x=x, y=y: posterior.denoise(y, x, 2.0), min(config.repeats, 3)
        )
        if count * 4 == total:
            base = seconds / count
        yield Row(
            f"posterior mean, {len(y):,} queries over {len(x):,} points",
            seconds,
            seconds / count / base,
            f"time per {axis}, of the first",
        )


_PARTS = {
    "peak": _peak_rows,
    "curves": _curves_rows,
    "nearest": _nearest_rows,
    "memorization": _memorization_rows,
    "denoise": _denoise_rows,
    "scaling": _scaling_rows,
}
