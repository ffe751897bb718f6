"""Theorems 4.9 and 4.10: at large noise, denoisers are close to the Gaussian denoiser.

geomem large-noise --preset digits
"""

import dataclasses

import jax
import numpy as np

from geomem.experiments.common import command_line, denoisers
from geomem.experiments.common.dataclass_flags import flag
from geomem.metrics import denoising
from geomem.plots import denoiser_curves

__all__ = ["PAIRS", "Config", "run"]

PAIRS = (("network", "Gaussian"), ("empirical", "Gaussian"), ("network", "empirical"))
_CLOSE = 0.1


@dataclasses.dataclass(frozen=True)
class Config(denoisers.ComparisonFlags):
    """Measure how far the network, the empirical and the Gaussian denoiser are from each other.

    The gap between denoisers a and b is sqrt(E||a - b||^2 / E||b - c||^2), where c is the mean
    image: their difference relative to that of b and the mean. It is measured on noised training
    images.
    """

    draws: int = flag(4, "evaluation", most=100_000)
    """Noise draws for each image and noise level, the same for all denoisers."""
    out: str = flag("runs/large_noise", "output")
    """Folder for gaps.csv, run.json, figure.png and figure.pdf."""


def run(config: Config) -> dict[str, denoisers.Table]:
    """Measure the gaps, write table and figure, and print where they fall below 10%.

    Returns:
      The columns of `gaps`.

    Raises:
      ValueError, OSError: as in `compare_denoisers`.
    """
    draw = denoiser_curves.large_noise
    return denoisers.compare_denoisers(config, _measure, draw, _summarize)


def _measure(config, sigmas, run):
    options = {"draws": config.draws, "batch": config.batch, "progress": True}
    key, images = jax.random.key(config.seed), run.train[: config.num_images]
    tables = []
    for first, second in PAIRS:
        pair = run.denoisers[first], run.denoisers[second]
        gap = denoising.relative_gap(key, *pair, images, sigmas, **options)
        columns = {"gap": gap.relative, "low": gap.low, "high": gap.high, "distance": gap.distance}
        labels = {"first": first, "second": second}
        tables.append(denoisers.make_table(labels, sigma=sigmas, **columns))
    return {"gaps": tables}


def _summarize(gaps):
    empirical = denoisers.select(gaps, first="empirical")
    start = np.flatnonzero(empirical["gap"] >= _CLOSE).max(initial=-1) + 1
    close = empirical["sigma"][start:]
    where = f"from sigma {close[0]:.3g} on" if len(close) else "at none of the noise levels"
    return f"the empirical denoiser is within {_CLOSE:.0%} of the Gaussian denoiser {where}"


if __name__ == "__main__":
    command_line.main(Config, run, excludes=denoisers.EXCLUDES, needs=denoisers.NEEDS)
