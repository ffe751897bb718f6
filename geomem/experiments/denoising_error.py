"""Figure 1: denoising error of training and held-out images against the noise level.

    geomem denoising-error --preset digits
    geomem denoising-error --run runs/base runs/gap

A network memorizes at noise levels where its error on training images is below its error on
held-out images. At these levels the error also serves as a membership test, with an AUC above 1/2.
"""

import dataclasses

import jax
import numpy as np

from geomem.experiments.common import command_line, denoisers
from geomem.experiments.common.dataclass_flags import flag
from geomem.metrics import denoising, membership
from geomem.plots import denoiser_curves

__all__ = ["Config", "run"]


@dataclasses.dataclass(frozen=True)
class Config(denoisers.ComparisonFlags):
    """Measure the denoising error on training and held-out images, and whether it separates them.

    Compares each trained network with the empirical denoiser of its training images, which has the
    smallest possible training error, and with the Gaussian denoiser of these images.
    """

    draws: int = flag(4, "evaluation", most=100_000)
    """Noise draws for each image and noise level, the same for all denoisers."""
    out: str = flag("runs/denoising_error", "output")
    """Folder for errors.csv, auc.csv, run.json, figure.png and figure.pdf."""


def run(config: Config) -> dict[str, denoisers.Table]:
    """Measure the errors, write tables and figure, and compare the networks with both denoisers.

    Returns:
      The columns of the tables `errors` and `auc`. `excess` is the error minus that of the
      empirical denoiser on the same noise, and `excess_error` is its standard error.

    Raises:
      ValueError, OSError: as in `compare_denoisers`.
    """
    draw = denoiser_curves.denoising_error
    return denoisers.compare_denoisers(config, _measure, draw, _summarize)


def _measure(config, sigmas, run):
    options = {"draws": config.draws, "batch": config.batch, "progress": True}
    train_key, heldout_key = jax.random.split(jax.random.key(config.seed))
    splits = {"train": (train_key, run.train), "heldout": (heldout_key, run.heldout)}
    errors = {
        (kind, split): denoising.denoising_error(
            key, denoiser, images[: config.num_images], sigmas, **options
        )
        for kind, denoiser in run.denoisers.items()
        for split, (key, images) in splits.items()
    }
    tables = {"errors": [], "auc": []}
    for (kind, split), error in errors.items():
        excess = np.float64(error.per_image) - errors["empirical", split].per_image
        table = denoisers.make_table(
            {"kind": kind, "split": split},
            sigma=sigmas,
            mse=error.mean,
            low=error.low,
            high=error.high,
            excess=excess.mean(axis=1),
            excess_error=excess.std(axis=1, ddof=1) / np.sqrt(excess.shape[1]),
        )
        tables["errors"].append(table)
    for kind in run.denoisers:
        auc = membership.membership_auc(errors[kind, "train"], errors[kind, "heldout"])
        tables["auc"].append(denoisers.make_table({"kind": kind}, **auc._asdict()))
    return tables


def _summarize(errors, auc):
    network, gaussian = (
        denoisers.select(errors, split="train", kind=kind) for kind in ("network", "Gaussian")
    )
    least = (network["excess"] / network["excess_error"]).min()
    above = network["mse"] / gaussian["mse"] - 1
    levels = ", ".join(f"{sigma:.3g}" for sigma in network["sigma"][above > 0])
    where = f"at sigma {levels}, by at most {above.max():.1%}" if levels else "nowhere"
    return (
        "the network's training error exceeds the empirical denoiser's by at least "
        f"{least:.1f} standard errors, and the Gaussian denoiser's {where}"
    )


if __name__ == "__main__":
    command_line.main(Config, run, excludes=denoisers.EXCLUDES, needs=denoisers.NEEDS)
