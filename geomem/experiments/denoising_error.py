"""Figure 1: denoising error against the noise level, on training and on held-out images.

    python -m geomem.experiments.denoising_error --preset digits
    python -m geomem.experiments.denoising_error --run runs/base runs/gap

Where a network's error on its training images is below that on held-out ones, it memorizes; the
same errors, as a membership test, have an AUC above 1/2 there.
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
    """Denoising error on training and held-out images, and what it tells of membership.

    For each training run: the network, the exact empirical denoiser of its training images, which
    has the least training error there is, and the Gaussian denoiser of their mean and covariance.
    """

    out: str = "runs/denoising_error"
    """Folder for errors.csv, auc.csv, run.json, figure.png and figure.pdf."""


def run(config: Config) -> dict[str, dict[str, np.ndarray]]:
    """Measure, write the tables and the figure, and print how the networks keep to the bounds.

    Returns:
      The columns of `errors` and `auc`, by table. `excess` is the training or held-out error less
      that of the empirical denoiser on the same noise, `excess_error` its standard error.

    Raises:
      ValueError, OSError: as in `denoisers.experiment`.
    """
    return denoisers.experiment(config, _measure, plot.denoising_error, _sentence)


def _measure(config, sigmas, one):
    train_key, heldout_key = jax.random.split(jax.random.key(config.seed))
    splits = {"train": (train_key, one.train), "heldout": (heldout_key, one.heldout)}
    errors = {
        (kind, split): denoising.denoising_error(
            key,
            denoiser,
            images[: config.num_images],
            sigmas,
            draws=config.draws,
            batch=config.batch,
            progress=True,
        )
        for kind, denoiser in one.denoisers.items()
        for split, (key, images) in splits.items()
    }
    error_rows, auc_rows = [], []
    for (kind, split), found in errors.items():
        excess = np.float64(found.per_image) - errors["empirical", split].per_image
        spread = excess.std(axis=1, ddof=1) / np.sqrt(excess.shape[1])
        error_rows += denoisers.rows(
            sigmas,
            {"kind": kind, "split": split},
            mse=found.mean,
            low=found.low,
            high=found.high,
            excess=excess.mean(axis=1),
            excess_error=spread,
        )
    for kind in one.denoisers:
        auc = denoising.membership_auc(errors[kind, "train"], errors[kind, "heldout"])
        auc_rows += denoisers.rows(sigmas, {"kind": kind}, auc=auc.auc, low=auc.low, high=auc.high)
    return {"errors": error_rows, "auc": auc_rows}


def _sentence(errors, **_):
    """Whether the network's training error is between the empirical and the Gaussian one's."""
    network, gaussian = (
        denoisers.select(errors, split="train", kind=kind) for kind in ("network", "Gaussian")
    )
    undercut = network["excess"] / network["excess_error"]
    over = network["mse"] / gaussian["mse"] - 1
    levels = ", ".join(f"{sigma:.3g}" for sigma in network["sigma"][over > 0])
    where = f"above it at sigma {levels}, by at most {over.max():.1%}"
    return (
        f"training error less the empirical denoiser's at least {undercut.min():.1f} standard "
        f"errors; against the Gaussian denoiser's {where if levels else 'below it at every sigma'}"
    )


if __name__ == "__main__":
    cli.main(Config, run)
