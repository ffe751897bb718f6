"""Theorems 4.9 and 4.10: at large noise the denoiser is near the Gaussian one; from which level on?

python -m geomem.experiments.large_noise --preset digits
"""

from __future__ import annotations

import dataclasses

import jax
import numpy as np

from geomem.experiments.common import cli, denoisers
from geomem.metrics import denoising
from geomem.plots import denoiser_curves as plot

__all__ = ["Config", "run"]

_PAIRS = (("network", "Gaussian"), ("empirical", "Gaussian"), ("network", "empirical"))
_SMALL = 0.1


@dataclasses.dataclass(frozen=True)
class Config(denoisers.Config):
    """How far are the network, the empirical and the Gaussian denoiser from each other?

    The gap of a from b is sqrt(E||a - b||^2 / E||b - c||^2), with c the mean image: the difference
    relative to what b does beyond returning the mean. On noised training images.
    """

    out: str = "runs/large_noise"
    """Folder for gaps.csv, run.json, figure.png and figure.pdf."""


def run(config: Config) -> dict[str, dict[str, np.ndarray]]:
    """Measure, write the table and the figure, and print from where on the gap is below a tenth.

    Returns:
      The columns of `gaps`.

    Raises:
      ValueError, OSError: as in `denoisers.experiment`.
    """
    return denoisers.experiment(config, _measure, plot.large_noise, _sentence)


def _measure(config, sigmas, one):
    measured = []
    for first, second in _PAIRS:
        found = denoising.relative_gap(
            jax.random.key(config.seed),
            one.denoisers[first],
            one.denoisers[second],
            one.train[: config.num_images],
            sigmas,
            draws=config.draws,
            batch=config.batch,
            progress=True,
        )
        measured += denoisers.rows(
            sigmas,
            {"first": first, "second": second},
            gap=found.relative,
            low=found.low,
            high=found.high,
            distance=found.distance,
        )
    return {"gaps": measured}


def _sentence(gaps):
    exact = denoisers.select(gaps, first="empirical")
    start = np.flatnonzero(exact["gap"] >= _SMALL).max(initial=-1) + 1
    sigma = exact["sigma"][start:]
    where = f"from sigma {sigma[0]:.3g} on" if len(sigma) else "at no sigma here"
    return f"empirical denoiser within {_SMALL:.0%} of the Gaussian one {where}"


if __name__ == "__main__":
    cli.main(Config, run)
