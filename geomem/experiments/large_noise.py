"""Theorems 4.9 and 4.10: at large noise, denoisers are close to the Gaussian denoiser.

geomem large-noise --preset digits
"""

from __future__ import annotations

import dataclasses

import jax
import numpy as np

from geomem.experiments.common import command_line
from geomem.experiments.common.dataclass_flags import flag
from geomem.experiments.common.denoisers import (
    ComparisonFlags,
    Table,
    compare_denoisers,
    make_rows,
    select,
)
from geomem.metrics import denoising
from geomem.plots import denoiser_curves

__all__ = ["PAIRS", "Config", "run"]

PAIRS = (("network", "Gaussian"), ("empirical", "Gaussian"), ("network", "empirical"))
_CLOSE = 0.1


@dataclasses.dataclass(frozen=True)
class Config(ComparisonFlags):
    """Measure how far the network, the empirical and the Gaussian denoiser are from each other.

    The gap between denoisers a and b is sqrt(E||a - b||^2 / E||b - c||^2), where c is the mean
    image: their difference relative to that of b and the mean. It is measured on noised training
    images.
    """

    draws: int = flag(4, "evaluation")
    """Noise draws for each image and noise level, the same for all denoisers."""
    out: str = flag("runs/large_noise", "output")
    """Folder for gaps.csv, run.json, figure.png and figure.pdf."""


def run(config: Config) -> dict[str, Table]:
    """Measure the gaps, write table and figure, and print where they fall below 10%.

    Returns:
      The columns of `gaps`.

    Raises:
      ValueError, OSError: as in `compare_denoisers`.
    """
    return compare_denoisers(config, _measure, denoiser_curves.large_noise, _summarize)


def _measure(config, sigmas, run):
    rows = []
    for first, second in PAIRS:
        gap = denoising.relative_gap(
            jax.random.key(config.seed),
            run.denoisers[first],
            run.denoisers[second],
            run.train[: config.num_images],
            sigmas,
            draws=config.draws,
            batch=config.batch,
            progress=True,
        )
        rows += make_rows(
            sigmas,
            {"first": first, "second": second},
            gap=gap.relative,
            low=gap.low,
            high=gap.high,
            distance=gap.distance,
        )
    return {"gaps": rows}


def _summarize(gaps):
    empirical = select(gaps, first="empirical")
    start = np.flatnonzero(empirical["gap"] >= _CLOSE).max(initial=-1) + 1
    close = empirical["sigma"][start:]
    where = f"from sigma {close[0]:.3g} on" if len(close) else "at none of the noise levels"
    return f"the empirical denoiser is within {_CLOSE:.0%} of the Gaussian denoiser {where}"


if __name__ == "__main__":
    command_line.main(Config, run)
