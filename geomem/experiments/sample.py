"""Sample images from a training run, or from published EDM weights.

    python -m geomem.experiments.sample --run runs/digits --count 256 --out samples.npz

Writes float32 images, unclipped and unquantized (key `images`), their seeds, and a PNG grid.
"""

from __future__ import annotations

import dataclasses
import pathlib
from typing import Literal, NamedTuple

import numpy as np

from geomem import paths
from geomem.diffusion import edm_weights, grids, sampler
from geomem.experiments.common import cli, results
from geomem.experiments.train import run_folder

__all__ = ["Config", "Result", "run"]


@dataclasses.dataclass(frozen=True)
class Config:
    """Sample from a trained denoiser.

    Attributes:
      run: the run folder of geomem.experiments.train.
      weights: an EDM state dict (.npz, .safetensors) instead of a run.
      step: of the run's checkpoint; default the newest.
      average: use the moving average of the parameters.
      out: the .npz to write; the grid goes beside it.
      count: number of images.
      seed: of the first image; the next ones count up.
      method: sampler; heun takes two evaluations a step.
      steps: sampler steps.
      sigma_min: last positive noise level.
      sigma_max: first noise level.
      rho: crowding of the levels towards sigma_min.
      over_gap: step over the noise levels that a gap left out of the run's training.
      churn: noise renewed over the trajectory (EDM's S_churn); 0 is deterministic.
      batch_size: images at a time; the images do not depend on it.
    """

    run: str | None = None
    weights: str | None = None
    step: int | None = None
    average: bool = True
    out: str = "samples.npz"
    count: int = 64
    seed: int = 0
    method: Literal["heun", "euler"] = "heun"
    steps: int = 18
    sigma_min: float = 0.002
    sigma_max: float = 80.0
    rho: float = 7.0
    over_gap: bool = True
    churn: float = 0.0
    batch_size: int = 256


class Result(NamedTuple):
    """The images, float32 [N, H, W, C], their seeds [N], and the files that hold them."""

    images: np.ndarray
    seeds: np.ndarray
    files: tuple[pathlib.Path, ...]


def run(config: Config) -> Result:
    """Sample `config.count` images and write them.

    Raises:
      ValueError: not exactly one of run and weights, or one that is unusable.
      OSError: the output cannot be written.
    """
    if config.count < 1:
        raise ValueError(f"count: {config.count}, wanted 1 or more")
    sigmas = grids.edm_grid(config.steps, config.sigma_min, config.sigma_max, config.rho)
    denoiser, params, image_shape = _load(config)
    if config.run and config.over_gap:
        whole, sigmas = sigmas, run_folder.sampling_grid(config.run, sigmas)
        if not np.array_equal(sigmas, whole):
            print("steps over the levels that training left out (--over-gap False samples them)")
    seeds = np.arange(config.seed, config.seed + config.count)
    images = sampler.generate(
        denoiser.bind(params),
        seeds,
        image_shape,
        sigmas,
        method=config.method,
        churn=sampler.Churn(config.churn),
        batch_size=config.batch_size,
        progress=True,
    )
    path = paths.as_path(config.out).with_suffix(".npz")
    path = results.make_folder(path.parent) / path.name
    with path.open("wb") as file:
        np.savez(file, images=images, seeds=seeds)
    grid = path.with_suffix(".png")
    results.write_image_grid(grid, sampler.to_uint8(images[:256]))
    print(f"wrote {path} and {grid}")
    return Result(images, seeds, (path, grid))


def _load(config):
    if (config.run is None) == (config.weights is None):
        raise ValueError("run: wanted either --run FOLDER or --weights FILE")
    if config.weights is not None:
        denoiser, params = edm_weights.load(config.weights)
        return denoiser, params, edm_weights.image_shape(params)
    return run_folder.load(config.run, config.step, average=config.average)


if __name__ == "__main__":
    cli.main(Config, run)
