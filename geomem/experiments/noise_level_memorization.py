"""Figure 2: the fraction of noised and denoised held-out images that are copies of training images.

python -m geomem.experiments.noise_level_memorization --preset digits
"""

from __future__ import annotations

import dataclasses

import jax
import numpy as np

from geomem.experiments.common import cli, denoisers
from geomem.metrics import denoising
from geomem.plots import denoiser_curves as plot

__all__ = ["Config", "run"]


@dataclasses.dataclass(frozen=True)
class Config(denoisers.Config):
    """At which noise levels does denoising turn a held-out image into a training image?

    One draw of noise for each held-out image and level (--draws is not used). A denoised image is
    memorized if its nearest training image is less than --threshold times as far as the second.
    """

    threshold: float = 1 / 3
    """Ratio of the two distances below which an image is memorized."""
    out: str = "runs/noise_level_memorization"
    """Folder for rates.csv, run.json, figure.png and figure.pdf."""


def run(config: Config) -> dict[str, dict[str, np.ndarray]]:
    """Measure, write the table and the figure, and print where the networks memorize most.

    Returns:
      The columns of `rates`.

    Raises:
      ValueError, OSError: as in `denoisers.experiment`.
    """
    return denoisers.experiment(config, _measure, plot.noise_level_memorization, _sentence)


def _measure(config, sigmas, one):
    measured = []
    for kind, denoiser in one.denoisers.items():
        found = denoising.noise_level_memorization(
            jax.random.key(config.seed),
            denoiser,
            one.heldout[: config.num_images],
            one.train,
            sigmas,
            threshold=config.threshold,
            batch=config.batch,
            progress=True,
        )
        columns = {"rate": found.rate, "low": found.low, "high": found.high}
        measured += denoisers.rows(sigmas, {"kind": kind}, **columns)
    return {"rates": measured}


def _sentence(rates):
    network = denoisers.select(rates, kind="network")
    rate, low, high, sigma = (
        network[name][network["rate"].argmax()] for name in ("rate", "low", "high", "sigma")
    )
    return f"the network memorizes at most {rate:.1%} [{low:.1%}, {high:.1%}], at sigma {sigma:.3g}"


if __name__ == "__main__":
    cli.main(Config, run)
