"""Points that are streamed from disk: time and memory against their number, and the arithmetic.

Run: python -m geomem.experiments.scale [--out DIR]
"""

from __future__ import annotations

import contextlib
import dataclasses
import pathlib
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, Literal, NamedTuple

import jax
import numpy as np

from geomem import data
from geomem.experiments.common import results
from geomem.geometry import posterior
from geomem.plots import scaling, style
from geomem.points import exact, neighbours, placement

__all__ = ["Config", "Machine", "floors", "run"]

_SHAPE = (32, 32, 3)
_DIM = 3072
_BLOCK = 5000  # images written at once


@dataclasses.dataclass(frozen=True)
class Config:
    """Stream points from disk: is the time linear in their number, and the memory constant?

    Writes a synthetic file of mosaics of bundled images to a temporary folder, which is removed,
    and takes the posterior mean and the two nearest neighbours over its first rows.
    """

    counts: tuple[int, ...] = (25_000, 50_000, 100_000, 200_000)
    """Numbers of points, ascending."""
    stored: Literal["uint8", "float32"] = "uint8"
    """What the file holds."""
    queries: int = 256
    """Noised points."""
    sigma: float = 2.0
    """Their noise level."""
    repeats: int = 3
    """Timed runs after one warm-up; the fastest counts, as other programs only slow it down."""
    temporary: str | None = None
    """Where the temporary folder is made; default: the system's."""
    out: str = "runs/scale"
    """Folder for scale.json, figure.png and figure.pdf."""


class Row(NamedTuple):
    """One measurement.

    Attributes:
      points: how many.
      mean, nearest: seconds of the posterior mean and of the two nearest neighbours.
      memory: the largest resident memory that is not page cache, in MB, the program included.
    """

    points: int
    mean: float
    nearest: float
    memory: float


class Machine(NamedTuple):
    """What a machine can do at most, by its vendor; per device.

    Attributes:
      name: what it is called.
      devices: how many.
      product: operations per second of float32 matrix products.
      memory: bytes of memory.
      bandwidth: bytes per second from it.
      link: bytes per second to other devices.
    """

    name: str
    devices: int
    product: float
    memory: float
    bandwidth: float
    link: float


# NVIDIA's H100 SXM data sheet: float32 without tensor cores. Google's page on TPU v5e: 197 TFLOP/s
# in bfloat16, of which a float32 product at full precision takes six; 1,600 Gbit/s between chips.
MACHINES = (
    Machine("H100 SXM", 1, 67e12, 80e9, 3.35e12, 1.0),
    Machine("TPU v5e-8", 8, 197e12 / 6, 16e9, 819e9, 200e9),
    Machine("TPU v5e-64", 64, 197e12 / 6, 16e9, 819e9, 200e9),
)


def floors(
    machine: Machine, points: int, dim: int, queries: int = 1024, efficiency: float = 1.0
) -> dict[str, float]:
    """The least time of a posterior mean, term by term.

    Args:
      machine: where.
      points, dim: of the data.
      queries: how many at once.
      efficiency: fraction of the vendor's peak that products reach.

    Returns:
      Gigabytes for each device, terabytes of memory traffic and gigabytes between devices, and the
      seconds of each term: product (4 Q N d operations), memory (each chunk is read, written
      centred, and read by two products), candidates (16 rows a query on every device, five times
      through memory), link (two all-reduces of Q x d, and 16 scores and indices from each device).
    """
    n, d, q = machine.devices, dim, queries
    held = points * d * 4 / n
    traffic = 4 * held
    redone = 5 * q * 16 * d * 4
    linked = 2 * 2 * (n - 1) / n * q * d * 4 + (n - 1) * q * 16 * 8
    return {
        "gigabytes_held": held / 1e9,
        "gigabytes_held_as_uint8": held / 4e9,
        "teraoperations": 4 * q * points * d / n / 1e12,
        "gigabytes_linked": linked / 1e9,
        "product_seconds": 4 * q * points * d / n / machine.product / efficiency,
        "memory_seconds": traffic / machine.bandwidth,
        "candidates_seconds": redone / machine.bandwidth,
        "link_seconds": linked / machine.link,
    }


def run(config: Config) -> list[Row]:
    """Measure, print and write the rows.

    Raises:
      ValueError: counts that are not ascending, or not positive numbers.
    """
    counts = list(config.counts)
    if not counts or counts[0] < config.queries or sorted(set(counts)) != counts:
        raise ValueError(f"counts: {counts}, wanted ascending, the first >= {config.queries}")
    if min(config.queries, config.repeats) < 1:
        raise ValueError(f"queries, repeats: {config.queries}, {config.repeats}, wanted >= 1")
    posterior.check_sigma(config.sigma)
    folder = results.make_folder(config.out)
    rows = []
    with tempfile.TemporaryDirectory(dir=config.temporary) as temporary:
        path = pathlib.Path(temporary) / "points.npy"
        _write(path, counts[-1], config.stored)
        stored = np.load(path, mmap_mode="r")
        clean = data.to_float(stored[: config.queries].reshape(config.queries, -1))
        noise = np.random.default_rng(1).standard_normal(clean.shape, np.float32)
        noised = jax.device_put(clean + np.float32(config.sigma) * noise)
        print(f"{'points':>8} {'mean, s':>8} {'nearest, s':>11} {'memory, MB':>11}")
        for count in counts:
            rows.append(_measure(config, stored[:count], noised))
            row = rows[-1]
            print(f"{row.points:8} {row.mean:8.2f} {row.nearest:11.2f} {row.memory:11.0f}")
        difference = _difference(stored[: counts[0]], noised, config.sigma)
        efficiency = _efficiency(stored[: counts[0]], noised, config.sigma)
    print(f"streamed and in memory differ by {difference:.1e}; {efficiency:.0%} of the peak")
    facts: dict[str, Any] = {
        "config": dataclasses.asdict(config) | {"temporary": None},
        "rows": [row._asdict() for row in rows],
        "relative_difference_to_memory": difference,
        "fraction_of_product_peak_in_memory": efficiency,
        "imagenet64": {m.name: floors(m, 1_281_167, 12_288) for m in MACHINES},
        "environment": results.environment(),
    }
    results.write_json(folder / "scale.json", facts)
    curves = {
        "posterior mean": [(row.points, row.mean) for row in rows],
        "two nearest": [(row.points, row.nearest) for row in rows],
    }
    title = f"{config.queries} queries, {config.stored} rows of {_DIM:,}, streamed"
    for written in style.save(scaling.time_by_points(curves, title), folder):
        print(written)
    return rows


def _write(path, count, stored):
    """Mosaics of the quadrants of four random bundled images, as an `.npy` file."""
    images = data.load().train_split.pixels
    rng = np.random.default_rng(0)
    file = np.lib.format.open_memmap(path, "w+", stored, (count, *_SHAPE))
    for start in range(0, count, _BLOCK):
        size = min(_BLOCK, count - start)
        pixels = images[rng.integers(0, len(images), size)]
        for quadrant in np.s_[:, :16, 16:], np.s_[:, 16:, :16], np.s_[:, 16:, 16:]:
            pixels[quadrant] = images[rng.integers(0, len(images), size)][quadrant]
        file[start : start + size] = pixels if stored == "uint8" else data.to_float(pixels)
    file.flush()


def _measure(config, stored, noised):
    points = placement.stream(stored)
    with _peak_memory() as memory:
        mean = _fastest(lambda: posterior.denoise(noised, points, config.sigma), config.repeats)
        nearest = _fastest(lambda: neighbours.two_nearest(noised, points), config.repeats)
    return Row(len(stored), mean, nearest, memory())


def _fastest(f: Callable[[], object], repeats: int) -> float:
    times = []
    for _ in range(repeats + 1):  # the first compiles
        start = time.perf_counter()
        jax.block_until_ready(f())
        times.append(time.perf_counter() - start)
    return min(times[1:])


@contextlib.contextmanager
def _peak_memory() -> Iterator[Callable[[], float]]:
    """The largest anonymous resident memory inside the block, in MB; 0 where Linux is not."""
    peak, stop = [0.0], threading.Event()
    status = pathlib.Path("/proc/self/status")

    def watch():
        while not stop.wait(0.01):
            for line in status.read_text().splitlines():
                if line.startswith("RssAnon"):
                    peak[0] = max(peak[0], int(line.split()[1]) / 1024)

    thread = threading.Thread(target=watch, daemon=True)
    if status.exists():
        thread.start()
    try:
        yield lambda: peak[0]
    finally:
        stop.set()


def _difference(stored, noised, sigma):
    """||streamed - in memory|| / ||in memory||, the largest of all queries."""
    streamed = posterior.denoise(noised, placement.stream(stored), sigma)
    resident = posterior.denoise(noised, _in_memory(stored), sigma)
    norm = np.linalg.norm(np.float64(resident), axis=1)
    return float((np.linalg.norm(np.float64(streamed) - resident, axis=1) / norm).max())


def _efficiency(stored, noised, sigma):
    """Operations of the posterior mean in memory, of those of one large product in that time."""
    points = jax.device_put(data.to_float(_in_memory(stored)))
    noised = np.tile(np.asarray(noised), (-(-1024 // len(noised)), 1))[:1024]
    seconds = _fastest(lambda: posterior.denoise(noised, points, sigma), 3)
    large = jax.random.normal(jax.random.key(0), (4096, _DIM))
    product = jax.jit(exact.inner_products)
    peak = 2 * 4096 * 4096 * _DIM / _fastest(lambda: product(large, large), 3)
    return 4 * len(noised) * len(stored) * _DIM / seconds / peak


def _in_memory(stored):
    return np.array(stored).reshape(len(stored), -1)
