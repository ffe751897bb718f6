"""What may take a network's place on some sampling steps, by its name on the command line."""

from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np

from geomem import paths
from geomem.diffusion.sampler import Denoiser
from geomem.diffusion.schedules import check_interval
from geomem.experiments.train import configuration, run_folder
from geomem.geometry import local
from geomem.geometry.gaussian import gaussian_denoiser

__all__ = ["NEED_IMAGES", "PATCH", "make", "read_edges"]

PATCH = 3  # default side of a local denoiser's patches
_LOCAL = {"ls": local.ls, "els": local.els}
_OTHER = {"wiener": local.wiener, "gaussian": gaussian_denoiser}
NEED_IMAGES = (*_LOCAL, *_OTHER)


def make(
    name: str,
    images: np.ndarray | None,
    patch: int | None = None,
    shape: tuple[int, ...] | None = None,
) -> Denoiser:
    """Return a denoiser.

    Args:
      name: ls, els, wiener or gaussian, or the folder of a training run.
      images: the images [N, H, W, C] of the first four.
      patch: the side of the patches of ls and els; default: PATCH.
      shape: (height, width, channels) of the images that a training run must have.

    Raises:
      ValueError: an unknown name, or a patch that is not odd or would be ignored.
    """
    if patch is not None and name not in _LOCAL:
        raise ValueError(f"repair_patch must be left out unless ls or els repairs, got {patch}.")
    if name not in NEED_IMAGES:
        if not paths.as_path(name).is_dir():
            known = ", ".join(NEED_IMAGES)
            raise ValueError(f"repair_with must be {known} or the folder of a run, got {name}.")
        try:
            network, params, own = run_folder.load(name)
        except ValueError as error:
            raise ValueError(f"repair_with{str(error).removeprefix('run')}") from None
        if shape is not None and own != shape:
            raise ValueError(f"repair_with must be a run on images of shape {shape}, got {own}.")
        return network.bind(params)
    images = jnp.asarray(images)
    if name in _OTHER:
        return _OTHER[name](images)
    side = PATCH if patch is None else patch
    if side % 2 == 0:
        raise ValueError(f"repair_patch must be odd, got {side}.")
    return _LOCAL[name](images, side)


def read_edges(values: Sequence[str]) -> tuple[float, float]:
    """Return the edges of the zone in `values`: two numbers, or a zone.json.

    Raises:
      ValueError: neither.
    """
    if len(values) == 1:
        return configuration.read_zone(values[0], "repair")
    try:
        low, high = map(float, values)
    except ValueError:
        shown = " ".join(values) or "nothing"
        message = f"repair must be a zone.json or two noise levels, got {shown}."
        raise ValueError(message) from None
    check_interval("repair", low, high)
    return low, high
