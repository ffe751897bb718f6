"""Measure time and memory of streaming points from disk, against their number.

    geomem scale --out runs/scale

`roofline` computes the shortest time that a machine's data sheet allows.
"""

import dataclasses
import pathlib
import tempfile
from typing import Any, Literal, NamedTuple

import jax
import numpy as np

from geomem import data
from geomem.experiments.benchmarks.timing import fastest_seconds, peak_memory, product_peak
from geomem.experiments.common import chips, results
from geomem.experiments.common.dataclass_flags import flag
from geomem.experiments.common.output import make_folder
from geomem.geometry import posterior
from geomem.plots import scaling
from geomem.points import neighbors, placement

_SHAPE = (32, 32, 3)
_DIM = 3072
_BLOCK = 5000  # images written at once


@dataclasses.dataclass(frozen=True)
class Config:
    """Stream points from disk, and measure time and memory against their number.

    Writes mosaics of the bundled images to a file in a temporary folder, which is removed at the
    end, and computes the posterior mean and the two nearest neighbors over the file's first rows.
    """

    counts: tuple[int, ...] = (25_000, 50_000, 100_000, 200_000)
    """Numbers of points, ascending."""
    stored: Literal["uint8", "float32"] = "uint8"
    """Data type of the file."""
    queries: int = 256
    """Number of noised points."""
    sigma: float = 2.0
    """Noise level of the queries."""
    repeats: int = 3
    """Timed runs after one warm-up; the fastest is reported, because other programs add time."""
    temporary: str | None = flag(None, "output")
    """Folder in which to create the temporary folder; default: the system's."""
    out: str = flag("runs/scale", "output")
    """Folder for scale.json, figure.png and figure.pdf."""


class Row(NamedTuple):
    """One measurement."""

    points: int
    mean: float  # seconds of the posterior mean
    nearest: float  # seconds of the two nearest neighbors
    memory: float  # the program's peak resident memory without page cache, in MB


# Chips and their number.
MACHINES = {"H100 SXM": ("h100", 1), "TPU v5e-8": ("v5e", 8), "TPU v5e-64": ("v5e", 64)}


def roofline(
    chip: chips.Chip, devices: int, points: int, dim: int, queries: int = 1024
) -> dict[str, float]:
    """Return the shortest time of a posterior mean on several chips, term by term.

    Args:
      chip: its data sheet.
      devices: number of chips.
      points, dim, queries: size of the data, and noised points denoised at once.

    Returns:
      Gigabytes held and sent by each device, and the seconds of each term: product (4 Q N d
      operations), memory (each chunk is read, written centered, and read by two products),
      candidates (16 rows a query on every device, five times through memory), link (two all-reduces
      of Q x d, and 16 scores and indices from each device).
    """
    n, d, q = devices, dim, queries
    data_bytes = points * d * 4 / n
    link_bytes = 2 * 2 * (n - 1) / n * q * d * 4 + (n - 1) * q * 16 * 8
    operations = 4 * q * points * d / n
    return {
        "gigabytes_held": data_bytes / 1e9,
        "gigabytes_held_as_uint8": data_bytes / 4e9,
        "teraoperations": operations / 1e12,
        "gigabytes_linked": link_bytes / 1e9,
        "product_seconds": operations / chip.peak("float32"),
        "memory_seconds": 4 * data_bytes / chip.bandwidth,
        "candidates_seconds": 5 * q * 16 * d * 4 / chip.bandwidth,
        "link_seconds": link_bytes / chip.link,
    }


def run(config: Config) -> list[Row]:
    """Time each number of points, print the table, write scale.json and the figure.

    Raises:
      ValueError: counts that are not ascending, or numbers that are not positive.
    """
    counts = list(config.counts)
    for name in ("queries", "repeats"):
        if getattr(config, name) < 1:
            raise ValueError(f"{name} must be at least 1, got {getattr(config, name)}.")
    if not counts or counts[0] < config.queries or sorted(set(counts)) != counts:
        raise ValueError(
            f"counts must ascend from at least {config.queries} (the queries), got {counts}."
        )
    posterior.check_sigma(config.sigma)
    if config.temporary is not None:
        make_folder(config.temporary, "temporary")
    recorded = dataclasses.replace(config, temporary=None)  # a path on this machine
    output = results.Run(recorded)
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
            row = _time_stream(config, stored[:count], noised)
            rows.append(row)
            print(f"{row.points:8} {row.mean:8.2f} {row.nearest:11.2f} {row.memory:11.0f}")
        difference = _difference(stored[: counts[0]], noised, config.sigma)
        efficiency = _efficiency(stored[: counts[0]], noised, config.sigma)
    print(
        f"streamed and in-memory results differ by at most {difference:.1e} (relative); in memory, "
        f"the posterior mean reaches {efficiency:.0%} of the matrix-product peak"
    )
    facts: dict[str, Any] = {
        "config": recorded,
        "rows": [row._asdict() for row in rows],
        "relative_difference_to_memory": difference,
        "fraction_of_product_peak_in_memory": efficiency,
        "imagenet64": {
            name: roofline(chips.CHIPS[kind], count, 1_281_167, 12_288)
            for name, (kind, count) in MACHINES.items()
        },
        "environment": results.environment(),
    }
    output.write_json("scale.json", facts)
    curves = {
        "posterior mean": [(row.points, row.mean) for row in rows],
        "two nearest": [(row.points, row.nearest) for row in rows],
    }
    title = f"{config.queries} queries, {config.stored} rows of {_DIM:,}, streamed"
    output.write_figure("figure", scaling.time_by_points(curves, title))
    output.finish()
    return rows


def _write(path, count, stored):
    """Write an `.npy` file of mosaics from the quadrants of four random bundled images."""
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


def _time_stream(config, stored, noised):
    points = placement.stream(stored)
    with peak_memory() as memory:
        mean = fastest_seconds(
            lambda: posterior.denoise(noised, points, config.sigma), config.repeats
        )
        nearest = fastest_seconds(lambda: neighbors.two_nearest(noised, points), config.repeats)
    return Row(len(stored), mean, nearest, memory())


def _difference(stored, noised, sigma):
    """The largest ||streamed - in memory|| / ||in memory|| over the queries."""
    streamed = posterior.denoise(noised, placement.stream(stored), sigma)
    resident = np.float64(
        posterior.denoise(noised, np.array(stored).reshape(len(stored), -1), sigma)
    )
    error = np.linalg.norm(streamed - resident, axis=1)
    return float((error / np.linalg.norm(resident, axis=1)).max())


def _efficiency(stored, noised, sigma):
    """Operations per second of the posterior mean in memory, as a fraction of a product's."""
    points = jax.device_put(data.to_float(np.array(stored).reshape(len(stored), -1)))
    noised = np.tile(np.asarray(noised), (-(-1024 // len(noised)), 1))[:1024]
    seconds = fastest_seconds(lambda: posterior.denoise(noised, points, sigma), 3)
    return 4 * len(noised) * len(stored) * _DIM / seconds / product_peak(fastest_seconds, 3)
