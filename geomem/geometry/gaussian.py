"""The denoiser of a Gaussian with the data's mean and covariance: the Wiener filter.

At large sigma the empirical denoiser approaches this one (paper, Theorems 4.9 and 4.10).
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

__all__ = ["Gaussian", "fit_gaussian", "gaussian_denoise"]


class Gaussian(NamedTuple):
    """A normal distribution, given by the leading eigenvectors of its covariance.

    Attributes:
      mean: [d].
      basis: [d, r], orthonormal columns; the variance is 0 outside their span.
      variance: [r].
    """

    mean: jax.Array
    basis: jax.Array
    variance: jax.Array


@jax.jit
def fit_gaussian(points: jax.Array) -> Gaussian:
    """Return the normal distribution with the mean and covariance (over N) of `points` [N, d]."""
    mean = points.mean(axis=0)
    _, singular, basis = jnp.linalg.svd(points - mean, full_matrices=False)
    return Gaussian(mean, basis.T, singular**2 / len(points))


@jax.jit
def gaussian_denoise(y: jax.Array, gaussian: Gaussian, sigma: float | jax.Array) -> jax.Array:
    """Return mu + S (S + sigma^2 I)^-1 (y - mu), the posterior mean of a normal prior.

    Args:
      y: float32 [Q, d], noised points.
      gaussian: the prior.
      sigma: noise level, > 0, a scalar or [Q].

    Returns:
      float32 [Q, d].

    Source: paper, Theorems 4.9 and 4.10 (the denoiser at large sigma).
    """
    variance = jnp.broadcast_to(jnp.asarray(sigma, y.dtype) ** 2, (len(y),))[:, None]
    precision = jax.lax.Precision.HIGHEST
    coordinates = jnp.matmul(y - gaussian.mean, gaussian.basis, precision=precision)
    shrunk = coordinates * gaussian.variance / (gaussian.variance + variance)
    return gaussian.mean + jnp.matmul(shrunk, gaussian.basis.T, precision=precision)
