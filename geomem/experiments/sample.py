"""Sample images from a training run, published EDM weights, or a network of another library.

    geomem sample --run runs/digits --count 256 --out samples.npz
    geomem sample --run runs/digits --repair runs/zone/zone.json --out repaired.npz

Writes float32 images, neither clipped nor quantized, with their seeds (samples.npz, keys `images`
and `seeds`), a grid of the first 256 (samples.png), and the settings (samples.json).
"""

import dataclasses
import math
import pathlib
from typing import Literal, NamedTuple

import numpy as np

from geomem import memory, paths
from geomem.diffusion import edm_weights, grids, replacement, sampler
from geomem.experiments.common import command_line, denoisers, image_flags, replacements, results
from geomem.experiments.common.dataclass_flags import flag
from geomem.experiments.train import run_folder

__all__ = ["Config", "Result", "run"]


@dataclasses.dataclass(frozen=True)
class Config:
    """Sample images from a training run, published EDM weights, or a network of another library."""

    run: str | None = None
    """The folder of a training run."""
    weights: str | None = None
    """A file with EDM weights (.npz or .safetensors) instead of a run."""
    denoiser: str | None = None
    """A network of another library: package.module:name of a function (x, sigma) -> clean images,
    or the folder of a saved diffusers pipeline."""
    image_shape: tuple[int, int, int] | None = flag(None, "sampling")
    """Height, width and channels of the images of --denoiser."""
    count: int = 64
    """Number of images."""
    step: int | None = flag(None, "advanced", least=0)
    """The step of the run's checkpoint; default: the newest."""
    average: bool = flag(True, "advanced")
    """Use the moving average of the parameters."""
    seed: int = flag(0, "sampling")
    """Seed of the first image; the others have the next seeds."""
    method: Literal["heun", "euler"] = flag("heun", "sampling")
    """The sampler; heun evaluates the network twice in each step."""
    steps: int = flag(18, "sampling", least=2, most=10_000)
    """Number of sampling steps."""
    sigma_min: float = flag(0.002, "sampling")
    """The last positive noise level."""
    sigma_max: float = flag(80.0, "sampling")
    """The first noise level."""
    rho: float = flag(7.0, "advanced", least=0.1, most=1000)
    """Exponent of EDM's grid of noise levels; larger values put more of them near sigma_min."""
    over_gap: bool = flag(True, "sampling")
    """Cross the gap in the run's training noise in one step."""
    repair: tuple[str, ...] | None = flag(None, "sampling")
    """A zone.json file, or the two edges of an interval of noise levels: on the sampling steps that
    start there, --repair-with takes the network's place, so that fewer samples are copies."""
    repair_with: str = flag("ls", "sampling")
    """The denoiser of --repair: ls or els (patches of the training images at the same or at all
    positions), wiener, gaussian, or the folder of another training run."""
    repair_patch: int | None = flag(None, "sampling", most=1023)
    """Side of the patches of ls and els in pixels, odd; default: 3."""
    repair_data: str | None = flag(None, "sampling")
    """The training images of --weights or --denoiser, or others for --repair; default: the images
    of the run."""
    churn: float = flag(0.0, "advanced", least=0)
    """Amount of noise added during sampling (EDM's S_churn); 0 is deterministic."""
    batch_size: int = flag(256, "advanced")
    """Number of images sampled at once, which does not change the images."""
    out: str = flag("samples.npz", "output")
    """The .npz file; the grid and the settings are written beside it."""

    def __post_init__(self):
        """Give `out` its suffix."""
        path = paths.as_path(self.out)
        if not path.name or self.out.endswith("/"):
            raise ValueError(f"out must name a file, got {self.out}.")
        if path.suffix in (".npy", ".png", ".jpg", ".zip"):
            raise ValueError(f"out must end in .npz, got {self.out}.")
        if path.suffix != ".npz":
            object.__setattr__(self, "out", str(path.with_name(f"{path.name}.npz")))


class Result(NamedTuple):
    """The images, float32 [N, H, W, C], their seeds [N], and the files that hold them."""

    images: np.ndarray
    seeds: np.ndarray
    files: tuple[pathlib.Path, ...]


def run(config: Config) -> Result:
    """Sample `config.count` images and write them.

    Raises:
      ValueError: not exactly one of run, weights and denoiser is given, or it is invalid.
      OSError: the output cannot be written.
    """
    if config.count < 1:
        raise ValueError(f"count must be 1 or more, got {config.count}.")
    if [config.run, config.weights, config.denoiser].count(None) != 2:
        raise ValueError("run, weights or denoiser must be given, and only one of them.")
    if (config.denoiser is None) != (config.image_shape is None):
        raise ValueError("image_shape must be given for a denoiser, and only for one.")
    if config.seed + config.count > 2**32:
        raise ValueError(f"seed and count must give seeds below 2^32, got {config.seed}.")
    edges = None if config.repair is None else replacements.read_edges(config.repair)
    output = results.Run(config)
    sigmas = grids.edm_grid(config.steps, config.sigma_min, config.sigma_max, config.rho)
    if config.denoiser is not None:
        image_shape = config.image_shape
        denoiser = denoisers.load_network(config.denoiser, image_shape)
    elif config.weights is not None:
        network, params = edm_weights.load(config.weights)
        denoiser, image_shape = network.bind(params), edm_weights.image_shape(params)
    else:
        network, params, image_shape = run_folder.load(
            config.run, config.step, average=config.average
        )
        denoiser = network.bind(params)
    if config.run and config.over_gap:
        full_grid, sigmas = sigmas, run_folder.sampling_grid(config.run, sigmas)
        if not np.array_equal(sigmas, full_grid):
            print("Skipping the noise levels that training left out (--over-gap False keeps them).")
    if edges is not None:
        denoiser = _repair(config, denoiser, image_shape, sigmas, edges)
    memory.check("count", 4 * config.count * math.prod(image_shape), config.count)
    seeds = np.arange(config.seed, config.seed + config.count)
    with output.phase("sample"):
        images = sampler.generate(
            denoiser,
            seeds,
            image_shape,
            sigmas,
            method=config.method,
            churn=sampler.Churn(config.churn),
            batch_size=config.batch_size,
            progress=True,
        )
    if bad := int((~np.isfinite(images)).any(axis=(1, 2, 3)).sum()):
        source = next(k for k in ("run", "weights", "denoiser") if getattr(config, k) is not None)
        raise ValueError(
            f"{source} must give finite images with these sampling flags, got {bad} of "
            f"{len(images)} with NaN or infinite pixels."
        )
    path = output.folder / paths.as_path(config.out).name
    with paths.open_whole(path) as file:
        np.savez(file, images=images, seeds=seeds)
    files = [path.name]
    if image_shape[-1] in (1, 3):
        files.append(path.with_suffix(".png").name)
        results.write_image_grid(path.with_suffix(".png"), sampler.to_uint8(images[:256]))
    output.finish()
    return Result(images, seeds, tuple(output.out / name for name in files))


def _repair(config, denoiser, image_shape, sigmas, edges):
    """The denoiser with a replacement on the steps that start inside the edges."""
    steps = replacement.steps_inside(sigmas, edges, "repair")
    levels = sigmas[steps]
    print(f"Repairing {len(steps)} steps, from sigma {levels[0]:.3g} to {levels[-1]:.3g}.")
    images = None
    if config.repair_with in replacements.NEED_IMAGES:
        images = _training_images(config)
        if images.shape[1:] != tuple(image_shape):
            raise ValueError(
                f"repair_data must hold images of shape {tuple(image_shape)}, got "
                f"{images.shape[1:]}."
            )
    elif config.repair_data is not None:
        raise ValueError("repair_data must be left out if another run repairs.")
    other = replacements.make(config.repair_with, images, config.repair_patch, tuple(image_shape))
    return sampler.swap(denoiser, other, steps)


def _training_images(config):
    if config.repair_data is not None:
        return image_flags.load(image_flags.ImageFlags(dataset=config.repair_data)).train
    if config.run is None:
        raise ValueError("repair_data must be given to repair a network that is not a run's.")
    return denoisers.load_images(config.run).train


if __name__ == "__main__":
    of_run = "step", "average", "over_gap"
    command_line.main(
        Config,
        run,
        excludes={"weights": of_run, "denoiser": of_run},
        needs=dict.fromkeys(("repair_with", "repair_patch", "repair_data"), ("repair",)),
    )
