"""Repair at sampling time: in the danger zone, another denoiser takes the network's place.

A network that copies its training images does so at the noise levels of the danger zone. `repair`
replaces it on the sampling steps there with a denoiser that does not copy there, such as a local
one of the same images (`geomem.geometry.local`). Nothing is trained again. `blend`, `guide` and
`gate` make milder replacements that keep part of the network. `geomem.experiments.repair` measures
them all.

    local = geomem.geometry.local.ls(images, patch=3)
    sampler.generate(repair(network, local, sigmas, (0.42, 1.39)), seeds, shape, sigmas)

Source: geomem.
"""

from __future__ import annotations

from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial
from jaxtyping import Float

from geomem.diffusion import sampler
from geomem.diffusion.sampler import Denoiser, as_pytree
from geomem.diffusion.schedules import check_interval

__all__ = ["blend", "gate", "guide", "repair", "steps_inside"]


def steps_inside(
    sigmas: Float[np.ndarray, " levels"] | Sequence[float],
    zone: tuple[float, float],
    argument: str = "zone",
) -> range:
    """Return the sampling steps that start at a noise level inside the zone, edges included.

    Args:
      sigmas: descending noise levels, as from `grids.edm_grid`; step i starts at sigmas[i].
      zone: its lower and upper edge.
      argument: what errors call the zone.

    Raises:
      ValueError: edges that do not ascend, or no step starts inside.

    >>> steps_inside([80.0, 3.0, 1.0, 0.5, 0.1, 0.0], (0.4, 1.4))
    range(2, 4)
    """
    low, high = zone
    check_interval(argument, low, high)
    starts = np.asarray(sigmas, np.float64)[:-1]
    inside = np.flatnonzero((starts >= low) & (starts <= high))
    if not len(inside):
        raise ValueError(
            f"{argument} must hold a noise level at which a sampling step starts, got {low:g} to "
            f"{high:g}; more steps make the levels denser."
        )
    return range(int(inside[0]), int(inside[-1]) + 1)


def repair(
    denoiser: Denoiser,
    replacement: Denoiser,
    sigmas: Float[np.ndarray, " levels"] | Sequence[float],
    zone: tuple[float, float],
) -> sampler.Swap:
    """Return the denoiser with a replacement on the sampling steps that start inside the zone.

    Args:
      denoiser: a function of (x, sigma), as for `sampler.solve`.
      replacement: the denoiser that takes its place.
      sigmas: the noise levels of the sampler.
      zone: the lower and upper edge of the noise levels to repair.

    Returns:
      A `Swap` for `sampler.generate` and `sampler.solve` along `sigmas`.

    Raises:
      ValueError: as in `steps_inside`.
    """
    return sampler.swap(denoiser, replacement, steps_inside(sigmas, zone))


def blend(network: Denoiser, local: Denoiser, weight: float) -> Denoiser:
    """Return (1 - weight) network + weight local."""
    return Partial(_blend, as_pytree(network), as_pytree(local), weight)


def guide(network: Denoiser, local: Denoiser, empirical: Denoiser, weight: float) -> Denoiser:
    """Return network + weight (local - empirical): away from copies, toward local structure.

    Args:
      network, local: denoisers.
      empirical: the exact denoiser of the training images (`posterior.empirical_denoiser`).
      weight: 0 leaves the network as it is.
    """
    return Partial(_guide, *map(as_pytree, (network, local, empirical)), weight)


def gate(network: Denoiser, local: Denoiser, empirical: Denoiser, ratio: float) -> Denoiser:
    """Return local for images on which the network acts like a memorizer, else network.

    It does so where |network - empirical| < ratio |local - empirical|, in the L2 norm of an image.

    Args:
      network, local, empirical: as in `guide`.
      ratio: the larger, the more images are replaced.
    """
    return Partial(_gate, *map(as_pytree, (network, local, empirical)), ratio)


def _blend(network, local, weight, x, sigma):
    return (1 - weight) * network(x, sigma) + weight * local(x, sigma)


def _guide(network, local, empirical, weight, x, sigma):
    return network(x, sigma) + weight * (local(x, sigma) - empirical(x, sigma))


def _gate(network, local, empirical, ratio, x, sigma):
    learned, other, copied = (denoiser(x, sigma) for denoiser in (network, local, empirical))

    def distance(image):
        return jnp.sqrt(jnp.sum((image - copied) ** 2, axis=tuple(range(1, x.ndim)), keepdims=True))

    return jnp.where(distance(learned) < ratio * distance(other), other, learned)
