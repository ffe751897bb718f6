"""Noise that a sampler left in its images, and what distances would be without it.

A sampler that ends early, or a network that denoises badly in some band of noise levels, returns
g = g0 + tau z with z standard normal. E||g - x||^2 = ||g0 - x||^2 + tau^2 d for every x: the noise
adds the same to all squared distances and hides that g0 is a copy.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np

from geomem.geometry.distances import inner_products

__all__ = ["ratio_without_noise", "residual_noise"]


def residual_noise(samples: jax.Array, train: jax.Array, heldout: jax.Array) -> np.ndarray:
    """The rms per pixel of i.i.d. noise in each sample, tau, from where images vary least.

    tau^2 = max(0, (||P (g - mean)||^2 - E) / k): P projects on the k = d // 2 trailing eigenvectors
    of the training images' covariance, and E is the mean of the same energy over held-out images.

    Args:
      samples: float [Q, ...], images.
      train: float [N, ...], images that set the directions.
      heldout: float [M, ...], clean images that set the energy.

    Returns:
      float64 [Q], >= 0.
    """
    samples, train, heldout = (jnp.reshape(a, (len(a), -1)) for a in (samples, train, heldout))
    mean, basis = _trailing(train)
    natural = _energy(heldout, mean, basis).mean()
    excess = (_energy(samples, mean, basis) - natural) / basis.shape[1]
    return np.sqrt(np.maximum(np.float64(excess), 0))


def ratio_without_noise(found, noise: np.ndarray, dim: int) -> np.ndarray:
    """d1 / d2 after the noise is taken out: sqrt((d1^2 - tau^2 d) / (d2^2 - tau^2 d)).

    Args:
      found: Memorization of the samples (its `distance`, [Q, 2]).
      noise: [Q], tau.
      dim: d, the number of pixels times channels.

    Returns:
      float64 [Q]: 0 where the noise explains all of d1, and the plain ratio where it explains all
      of d2 too, which says nothing about the image below it.
    """
    first, second = np.float64(found.distance).T ** 2
    added = np.float64(noise) ** 2 * dim
    rest = np.maximum(first - added, 0), second - added
    known = rest[1] > 0
    return np.where(known, np.sqrt(rest[0] / np.where(known, rest[1], 1)), found.ratio)


@functools.partial(jax.jit)
def _trailing(train):
    mean = train.mean(axis=0)
    centred = train - mean
    _, vectors = jnp.linalg.eigh(inner_products(centred.T, centred.T) / len(train))
    return mean, vectors[:, : train.shape[1] // 2]


@jax.jit
def _energy(images, mean, basis):
    return jnp.sum(inner_products(images - mean, basis.T) ** 2, axis=1)
