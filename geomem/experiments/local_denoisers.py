"""Which denoiser predicts a trained network: one that copies, one that is local, or a linear one?

    geomem local-denoisers --preset digits
    geomem local-denoisers --run runs/base

The empirical denoiser copies its training images. Local denoisers of the same images compare
patches and mix many images. Where a network agrees better with a local denoiser than with the
empirical one, it generalizes; where it agrees better with the empirical one, it memorizes.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np

from geomem.experiments.common import command_line, denoisers
from geomem.experiments.common.dataclass_flags import flag
from geomem.geometry import curves, local
from geomem.metrics import denoising
from geomem.plots import denoiser_curves

__all__ = ["Config", "run"]

_WHOLE = 0  # in the column `patch`: compares whole images
_BOOTSTRAP = 1000


def _pca(images, side, rank):
    """The PCA denoiser, with at most as many components as a patch has values."""
    return local.pca(images, side, min(rank, side**2 * images.shape[3]))


_LOCAL = {
    "LS": lambda images, side, rank: local.ls(images, side),
    "ELS": lambda images, side, rank: local.els(images, side),
    "PCA": _pca,
}


@dataclasses.dataclass(frozen=True)
class Config(denoisers.ComparisonFlags):
    """Compare trained networks with the exact, local and linear denoisers of their training images.

    At each noise level: the denoising error on held-out images, and how well each denoiser predicts
    the network's output there (r^2). The patch side of the local denoisers is the one with the
    smallest error on other held-out images at that level.
    """

    num_images: int = flag(256, "evaluation", least=2)
    """Number of held-out images to noise, the first ones."""
    num_calibration: int = flag(64, "evaluation", least=1)
    """Number of held-out images that choose the patch sides, the last ones."""
    sides: tuple[int, ...] = flag((1, 3, 5, 7), "evaluation", most=255)
    """Odd patch sides to choose from."""
    rank: int = flag(8, "evaluation", most=2**16)
    """Number of principal components of a patch that PCA compares."""
    num_sigmas: int = flag(16, "noise")
    """Number of noise levels, evenly spaced in their logarithm."""
    sigma_max: float = flag(20.0, "noise")
    """Largest noise level."""
    out: str = flag("runs/local_denoisers", "output")
    """Folder for local.csv, run.json, figure.png and figure.pdf."""


def run(config: Config) -> dict[str, denoisers.Table]:
    """Measure errors and agreement, write table and figure.

    Returns:
      The columns of `local`: kind, patch (0 for denoisers that compare whole images), sigma; mse,
      the error on held-out images, and r2, the agreement with the network, with 95% intervals.

    Raises:
      ValueError, OSError: sides that are not odd, or as in `compare_denoisers`.
    """
    for side in config.sides:
        if side % 2 == 0:
            raise ValueError(f"sides must be odd, got {side}.")
    if not config.sides:
        raise ValueError("sides must hold at least one patch side, got none.")
    draw = denoiser_curves.local_denoisers
    return denoisers.compare_denoisers(config, _measure, draw, _summarize)


def _measure(config, sigmas, run):
    cut = len(run.heldout) - config.num_calibration
    if cut < config.num_calibration:
        raise ValueError(
            f"num_calibration must be at most half of the {len(run.heldout)} held-out images, got "
            f"{config.num_calibration}."
        )
    images, calibration = run.heldout[:cut][: config.num_images], run.heldout[cut:]
    key, calibration_key, bootstrap_key = jax.random.split(jax.random.key(config.seed), 3)

    def denoise(denoiser, levels=None):
        return denoising.denoise(
            key, denoiser, images, sigmas, levels=levels, batch=config.batch, progress=True
        )

    whole = {**run.denoisers, "Wiener": local.wiener(run.train)}
    outputs = {kind: denoise(denoiser) for kind, denoiser in whole.items()}
    patches = dict.fromkeys(whole, np.full(len(sigmas), _WHOLE))
    train = jnp.asarray(run.train)  # one copy for all patch sides
    for kind, make in _LOCAL.items():
        make = functools.partial(make, train, rank=config.rank)
        table = local.calibrate_patch(calibration_key, make, calibration, sigmas, config.sides)
        patches[kind] = np.array([table[float(sigma)] for sigma in sigmas])
        outputs[kind] = np.empty_like(outputs["network"])
        for side in np.unique(patches[kind]).tolist():
            levels = np.flatnonzero(patches[kind] == side)
            outputs[kind][levels] = denoise(make(side), levels)
    tables = []
    for kind, found in outputs.items():
        errors = ((np.float64(found) - images) ** 2).reshape(*found.shape[:2], -1).sum(axis=2)
        error = curves.bootstrap_mean(bootstrap_key, errors.T, _BOOTSTRAP)
        fit = denoising.agreement(bootstrap_key, found, outputs["network"], _BOOTSTRAP)
        columns = {"mse": error.mean, "mse_low": error.low, "mse_high": error.high}
        columns |= {"r2": fit.r2, "r2_low": fit.low, "r2_high": fit.high}
        labels = {"kind": kind}
        tables.append(denoisers.make_table(labels, patch=patches[kind], sigma=sigmas, **columns))
    return {"local": tables}


def _summarize(local):
    """Where the network is closer to the empirical denoiser, and where to the best local one."""
    others = [denoisers.select(local, kind=kind)["r2"] for kind in _LOCAL]
    empirical = denoisers.select(local, kind="empirical")
    copying = empirical["r2"] > np.max(others, axis=0)
    shown = ", ".join(f"{sigma:.3g}" for sigma in empirical["sigma"][copying])
    where = f"at sigma {shown}" if shown else "at no noise level"
    return f"{where}, the empirical denoiser predicts the network better than every local one"


if __name__ == "__main__":
    command_line.main(Config, run, excludes=denoisers.EXCLUDES, needs=denoisers.NEEDS)
