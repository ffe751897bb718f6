"""Time the geometry against baselines on the same machine in the same run.

geomem benchmark --only curves nearest
"""

import dataclasses
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from geomem import data
from geomem.experiments.benchmarks.timing import median_seconds, peak_growth, product_peak, seconds
from geomem.experiments.common import results
from geomem.experiments.common.dataclass_flags import flag
from geomem.geometry import _noise_coordinates, curves, local, posterior, shells
from geomem.metrics import aligned, copies, memorization
from geomem.metrics.alignment import Alignment
from geomem.points import neighbors

_SIGMAS = np.float32(
    [0.02, 0.05, 0.1, 0.14, 0.2, 0.3, 0.4, 0.6, 0.8, 1, 1.5, 2, 3, 4, 5, 8, 12, 20, 40, 80]
)
_DRAWS_COVERAGE, _DRAWS_WEIGHT, _SHELL_C = 8, 4, 5.0
_DIM = 3072

Part = Literal[
    "peak", "curves", "nearest", "memorization", "aligned", "denoise", "local", "scaling"
]


@dataclasses.dataclass(frozen=True)
class Config:
    """Time the geometry against NumPy, FAISS, PyTorch and the device's matrix-product peak."""

    only: tuple[Part, ...] = ("peak", "curves", "nearest", "memorization", "denoise", "scaling")
    """Parts to run. aligned needs CIFAR-10 from TFDS, because images of noise are another case, and
    local compares with PyTorch."""
    repeats: int = 5
    """Timed runs after one warm-up; their median is reported. Slow baselines run once."""
    points: int = 50_000
    """Number of random points, of dimension 3,072, in all parts except curves."""
    out: str | None = flag(None, "output")
    """Folder for benchmark.json; default: only print the table."""


class Row(NamedTuple):
    """One measurement."""

    what: str
    seconds: float  # the median; 0 for a measurement of memory
    ratio: float | None  # baseline's time / ours, a fraction of the baseline, or a value in a unit
    against: str  # the baseline or the unit


def run(config: Config) -> list[Row]:
    """Run the parts, print the table and return its rows.

    Raises:
      ValueError: fewer than 1 repeat or 4096 points.
    """
    if not config.only:
        raise ValueError("only must name at least one part, got none.")
    if config.repeats < 1:
        raise ValueError(f"repeats must be at least 1, got {config.repeats}.")
    if config.points < 4096:
        raise ValueError(f"points must be at least 4096, got {config.points}.")
    output = None if config.out is None else results.Run(config)
    device = jax.devices()[0]
    print(f"{device.device_kind} x {jax.device_count()}, jax {jax.__version__}\n")
    print(f"{'what':62} {'seconds':>9} {'ratio':>8}  against")
    rows = []
    peak = product_peak(median_seconds, config.repeats)
    for part in config.only:
        for row in _PARTS[part](config, peak):
            rows.append(row)
            ratio = "" if row.ratio is None else f"{row.ratio:8.2f}"
            print(f"{row.what:62} {row.seconds:9.3f} {ratio:>8}  {row.against}", flush=True)
    if output is not None:
        facts = {"rows": [row._asdict() for row in rows], "environment": results.environment()}
        output.write_json("benchmark.json", facts)
        output.finish()
    return rows


def _peak_rows(config, peak):
    operations = 2 * 4096 * 4096 * _DIM
    what = "matrix product, 4096 x 4096 x 3072, float32"
    yield Row(what, operations / peak, peak / 1e9, "GFLOP/s")


def _curves_rows(config, peak):
    dataset = data.load()
    train, heldout = (a.reshape(len(a), -1) for a in (dataset.train, dataset.test))
    on_device = jax.device_put(train), jax.device_put(heldout)

    def estimate(sigmas=_SIGMAS):
        return curves.estimate(
            jax.random.key(0),
            *on_device,
            sigmas,
            draws_coverage=_DRAWS_COVERAGE,
            draws_weight=_DRAWS_WEIGHT,
            shell_c=_SHELL_C,
            refine=0,  # the same levels as the baselines
        )

    ours = median_seconds(estimate, config.repeats)
    what = "curves: 20 sigmas, 8 + 4 draws, 1,000 + 1,000 images, all bounds"
    numpy_loop = seconds(lambda: _numpy_curves(train, heldout))
    yield Row(what, ours, numpy_loop / ours, "NumPy float64")
    by_sigma = seconds(lambda: _curves_per_sigma(*on_device))
    yield Row(what, ours, by_sigma / ours, "noising at each sigma (JAX)")
    one = median_seconds(lambda: estimate(_SIGMAS[10:11]), config.repeats)
    yield Row("the same on one level: noise, products, setting up", one, one / ours, "of that")
    rows = len(heldout) * _DRAWS_COVERAGE + len(train) * _DRAWS_WEIGHT
    floor = 2 * rows * len(train) * min(len(train), _DIM) / peak
    yield Row("its matrix products, in coordinates of the data", floor, floor / ours, "of that")
    coordinates = median_seconds(
        lambda: _noise_coordinates.reduced_frame(*on_device), config.repeats
    )
    yield Row("its change to these coordinates", coordinates, coordinates / ours, "of that")
    noise = jax.jit(lambda key: jax.random.normal(key, (rows, len(train) + 1)))
    drawn = median_seconds(lambda: noise(jax.random.key(0)), config.repeats)
    yield Row("its random numbers", drawn, drawn / ours, "of that")


def _numpy_curves(train, heldout):
    """C and W in float64 NumPy, with one product per draw, as one would write them by hand."""
    rng = np.random.default_rng(0)
    train, heldout = np.float64(train), np.float64(heldout)
    r_in, r_out = shells.radii(_DIM, _SHELL_C)

    def squared_distances(x):
        return np.maximum((x**2).sum(1)[:, None] + (train**2).sum(1) - 2 * x @ train.T, 0)

    covered, weight = np.zeros(len(_SIGMAS)), np.zeros(len(_SIGMAS))
    for x, draws in ((heldout, _DRAWS_COVERAGE), (train, _DRAWS_WEIGHT)):
        squared = squared_distances(x)
        for _ in range(draws):
            z = rng.standard_normal(x.shape)
            inner = (z * x).sum(1)[:, None] - z @ train.T
            norms = (z**2).sum(1)[:, None]
            for s, sigma in enumerate(np.float64(_SIGMAS)):
                if x is heldout:
                    radius = squared / sigma**2 + 2 * inner / sigma + norms
                    inside = (radius >= r_in**2) & (radius <= r_out**2)
                    covered[s] += inside.any(1).mean() / draws
                else:
                    logit = -squared / (2 * sigma**2) - inner / sigma
                    top = logit.max(1, keepdims=True)
                    weight[s] += (1 / np.exp(logit - top).sum(1)).mean() / draws
    return covered, weight


def _curves_per_sigma(train, heldout):
    """C and W with new noise at each sigma, so with one product per sigma and draw."""
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
    x, y = jax.device_put(points), jax.device_put(queries)
    ours = median_seconds(lambda: neighbors.two_nearest(y, x), config.repeats)
    what = f"two nearest of 2,000 queries among {config.points:,} points"
    yield Row(what, ours, 2 * 2000 * config.points * _DIM / ours / peak, "of the peak")
    if faiss_seconds := _faiss_seconds(points, queries, min(config.repeats, 3)):
        yield Row(what, ours, faiss_seconds / ours, "FAISS IndexFlatL2")


def _memorization_rows(config, peak):
    """Time `memorization.measure` on images in host memory, including its checks."""
    points, queries = _random_points(config, 10_000)
    repeats = min(config.repeats, 3)
    ours = median_seconds(lambda: memorization.measure(queries, points), repeats)
    what = f"memorization of 10,000 samples against {config.points:,} images"
    growth = peak_growth(lambda: memorization.measure(queries, points))
    if growth is not None:
        yield Row("its memory beyond the data, resident at the peak", 0, growth / 2**20, "MB")
    if faiss_seconds := _faiss_seconds(points, queries, repeats):
        yield Row(what, ours, faiss_seconds / ours, "FAISS IndexFlatL2, search only")
    else:
        yield Row(what, ours, None, "")


def _aligned_rows(config, peak):
    """Time `aligned.nearest` of photographs with flips and shifts, compilation included."""
    dataset, times = data.load("cifar10"), []
    samples, train = dataset.test, dataset.train[: config.points]
    transforms = len(Alignment().transforms())

    def search():
        times.append(seconds(lambda: aligned.nearest(samples, train, exact_below=copies.PROVED)))

    growth = peak_growth(search)
    if not times:
        search()
    what = f"aligned, {transforms} transforms: {len(samples):,} samples against {len(train):,}"
    if growth is not None:
        yield Row("its memory beyond the data, resident at the peak", 0, growth / 2**20, "MB")
    flat = train.reshape(len(train), -1), samples.reshape(len(samples), -1)
    if faiss_seconds := _faiss_seconds(*flat, 1):
        ratio = faiss_seconds * transforms / times[0]
        yield Row(what, times[0], ratio, f"FAISS IndexFlatL2 times {transforms}")
    plain = median_seconds(lambda: neighbors.two_nearest(*flat[::-1]), 1)
    yield Row(what, times[0], times[0] / plain, "plain searches by geomem, as many times as long")


def _faiss_seconds(points, queries, repeats):
    """The median time of an exact FAISS search for two neighbors; None without FAISS."""
    try:
        import faiss
    except ImportError:
        return None
    index = faiss.IndexFlatL2(_DIM)
    index.add(points)
    return median_seconds(lambda: index.search(queries, 2), repeats)


def _denoise_rows(config, peak):
    points, queries = map(jax.device_put, _random_points(config, 1024))
    for sigma in (0.5, 5.0):
        noised = points[:1024] + sigma * queries
        ours = median_seconds(
            lambda y=noised, sigma=sigma: posterior.denoise(y, points, sigma), config.repeats
        )
        yield Row(
            f"posterior mean of 1,024 noised points over {config.points:,} points, sigma {sigma:g}",
            ours,
            4 * 1024 * config.points * _DIM / ours / peak,
            "of the peak",
        )
    memory = jax.jit(posterior.denoise).lower(queries, points, 1.0).compile().memory_analysis()
    yield Row("its memory beyond data and result", 0, memory.temp_size_in_bytes / 2**20, "MB")


def _local_rows(config, peak):
    """Time ELS on natural images with PyTorch in the same run, on the same batch."""
    images = data.load().train
    noise = np.random.default_rng(0).standard_normal((16, *images.shape[1:]), dtype=np.float32)
    sigma, pixels = 1.0, 16 * 32 * 32
    y = images[:16] + sigma * noise
    for side in (5, 9):
        denoiser = local.els(jnp.asarray(images), side)
        ours = median_seconds(lambda d=denoiser: d(y, sigma), min(config.repeats, 3))
        growth = peak_growth(lambda d=denoiser: d(y, sigma))
        what = f"ELS, patches of {side} x {side}: 16 of 1,000 CIFAR-10 images"
        operations = 2 * pixels * len(images) * 32 * 32 * 3 * (side**2 + 1)
        yield Row(what, ours, operations / ours / peak, "of the peak")
        if growth is not None:
            yield Row("its memory beyond the data, resident at the peak", 0, growth / 2**20, "MB")
        if (theirs := _torch_seconds(y, images, sigma, side)) is not None:
            yield Row(what, ours, theirs / ours, "PyTorch float32")


def _torch_seconds(y, images, sigma, side):
    """The time of one call of the PyTorch baseline; None without PyTorch."""
    try:
        from geomem.experiments.benchmarks import torch_local
    except ImportError:
        return None
    return seconds(lambda: torch_local.els(y, images, sigma, side))


def _scaling_rows(config, peak):
    points, queries = _random_points(config, 4096)
    for axis, count, first in (
        *(("points", config.points // k, config.points // 4) for k in (4, 2, 1)),
        *(("queries", 4096 // k, 1024) for k in (4, 2, 1)),
    ):
        x = jnp.asarray(points[:count] if axis == "points" else points[: config.points // 4])
        y = jnp.asarray(queries[:1024] if axis == "points" else queries[:count])
        y = x[: len(y)] + 2 * y
        ours = median_seconds(lambda x=x, y=y: posterior.denoise(y, x, 2.0), min(config.repeats, 3))
        if count == first:
            base = ours / count
        yield Row(
            f"posterior mean, {len(y):,} queries over {len(x):,} points",
            ours,
            ours / count / base,
            f"time per {axis}, of the first",
        )


_PARTS = {
    "peak": _peak_rows,
    "curves": _curves_rows,
    "nearest": _nearest_rows,
    "memorization": _memorization_rows,
    "aligned": _aligned_rows,
    "denoise": _denoise_rows,
    "local": _local_rows,
    "scaling": _scaling_rows,
}
