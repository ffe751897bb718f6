"""Figure 2: the fraction of noised and denoised held-out images that are memorized.

geomem noise-level-memorization --preset digits
"""

import dataclasses

import jax

from geomem.experiments.common import command_line, denoisers
from geomem.experiments.common.dataclass_flags import flag
from geomem.metrics import denoising, duplicates
from geomem.plots import denoiser_curves

__all__ = ["Config", "run"]

_COLUMNS = "sigma", "rate", "low", "high", "strict", "strict_low", "strict_high"


@dataclasses.dataclass(frozen=True)
class Config(denoisers.ComparisonFlags):
    """Find the noise levels at which denoising turns held-out images into training images.

    Each held-out image is noised once at each level. A denoised image is memorized if its nearest
    training image is less than --threshold times as far away as the nearest one outside its group
    of near-duplicates. The columns strict, strict_low and strict_high hold the paper's rate, in
    which near-duplicates are images of their own.
    """

    threshold: float = flag(1 / 3, "evaluation")
    """Ratio of the two distances below which an image is memorized."""
    out: str = flag("runs/noise_level_memorization", "output")
    """Folder for rates.csv, run.json, figure.png and figure.pdf."""


def run(config: Config) -> dict[str, denoisers.Table]:
    """Measure the rates, write table and figure, and print where the networks memorize most.

    Returns:
      The columns of `rates`.

    Raises:
      ValueError, OSError: as in `compare_denoisers`.
    """
    draw = denoiser_curves.noise_level_memorization
    return denoisers.compare_denoisers(config, _measure, draw, _summarize)


def _measure(config, sigmas, run):
    options = {"threshold": config.threshold, "batch": config.batch, "progress": True}
    options["group"] = duplicates.find(run.stored).group
    key, images = jax.random.key(config.seed), run.heldout[: config.num_images]
    tables = []
    for kind, denoiser in run.denoisers.items():
        rates = denoising.noise_level_memorization(
            key, denoiser, images, run.train, sigmas, **options
        )
        columns = {name: getattr(rates, name) for name in _COLUMNS}
        tables.append(denoisers.make_table({"kind": kind}, **columns))
    return {"rates": tables}


def _summarize(rates):
    network = denoisers.select(rates, kind="network")
    rate, low, high, strict, sigma = (
        network[name][network["rate"].argmax()]
        for name in ("rate", "low", "high", "strict", "sigma")
    )
    return (
        f"the network memorizes most at sigma {sigma:.3g}: {rate:.1%} [{low:.1%}, {high:.1%}] of "
        f"the held-out images ({strict:.1%} by the paper's strict definition)"
    )


if __name__ == "__main__":
    command_line.main(Config, run, excludes=denoisers.EXCLUDES, needs=denoisers.NEEDS)
