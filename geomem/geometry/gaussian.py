"""The denoiser of a Gaussian with the data's mean and covariance: the Wiener filter.

At large sigma the empirical denoiser approaches this one (paper, Theorems 4.9 and 4.10).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Shaped

from geomem.geometry.posterior import Sigma, check_sigma
from geomem.points.exact import as_queries, as_rows, decode

__all__ = ["Gaussian", "fit_gaussian", "gaussian_denoise", "gaussian_denoiser"]


class Gaussian(NamedTuple):
    """A normal distribution, given by the leading eigenvectors of its covariance.

    Attributes:
      mean: its mean.
      basis: orthonormal columns; the variance is 0 outside their span.
      variance: along each column of the basis.
    """

    mean: Float[Array, " dim"]
    basis: Float[Array, "dim rank"]
    variance: Float[Array, " rank"]


def fit_gaussian(points: Shaped[ArrayLike, "points ..."]) -> Gaussian:
    """Return the normal distribution with the mean and the covariance (1/N) of `points`.

    Args:
      points: vectors [N, d] or images [N, H, W, C], floats or uint8 as stored.
    """
    return _fit(decode(as_rows(points, "points")))


@jax.jit
def _fit(points):
    mean = points.mean(axis=0)
    _, singular, basis = jnp.linalg.svd(points - mean, full_matrices=False)
    return Gaussian(mean, basis.T, singular**2 / len(points))


def gaussian_denoise(
    y: Shaped[ArrayLike, "queries ..."], gaussian: Gaussian, sigma: Sigma
) -> Float[Array, "queries ..."]:
    """Return mu + S (S + sigma^2 I)^-1 (y - mu), the posterior mean of a normal prior.

    Args:
      y: noised points, vectors or images.
      gaussian: the prior.
      sigma: noise level, > 0, one or one for each y.

    Source: paper, Theorems 4.9 and 4.10 (the denoiser at large sigma).
    """
    rows = as_queries(y, (1, len(gaussian.mean)), "y")
    return _denoise(rows, gaussian, check_sigma(sigma)).reshape(np.shape(y))


def gaussian_denoiser(points: Shaped[ArrayLike, "points ..."]) -> Callable[..., jax.Array]:
    """Return the function (x, sigma) that denoises by the Gaussian fitted to `points`; a pytree."""
    return Partial(_denoise_like, fit_gaussian(points))


def _denoise_like(gaussian, x, sigma):
    return gaussian_denoise(x, gaussian, sigma)


@jax.jit
def _denoise(y, gaussian, sigma):
    variance = jnp.broadcast_to(jnp.asarray(sigma, y.dtype) ** 2, (len(y),))[:, None]
    precision = jax.lax.Precision.HIGHEST
    coordinates = jnp.matmul(y - gaussian.mean, gaussian.basis, precision=precision)
    shrunk = coordinates * gaussian.variance / (gaussian.variance + variance)
    return gaussian.mean + jnp.matmul(shrunk, gaussian.basis.T, precision=precision)
