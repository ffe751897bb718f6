"""The empirical posterior over training points: its weights and its mean, the optimal denoiser.

With X uniform over the points and y = X + sigma Z, the posterior of X given y has the weights
w_j(y, sigma) = softmax_j(-||y - x_j||^2 / (2 sigma^2)) (paper, eq. 3), and its mean is the denoiser
that minimizes the training loss (eq. 2). `plain_weights` and `plain_denoise` are these definitions.
The other functions compute the same values within 1e-5 at every sigma, in float32. They work with
differences from the best point and never store Q x N x d values (`geomem.points.softmax_search`).
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.core import Tracer
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Int, Shaped

from geomem.geometry._posterior_derivatives import (
    log_weights_derivative,
    mean_derivative,
    moment,
)
from geomem.points.exact import CHUNK, as_queries, as_rows, check_counts, decode, log_weight_ratios
from geomem.points.softmax_search import Softmax, softmax_search
from geomem.points.visit import PlacedPoints, Points, as_points

__all__ = [
    "TopWeights",
    "check_sigma",
    "covariance_product",
    "covariance_trace",
    "denoise",
    "empirical_denoiser",
    "log_weights",
    "max_weight",
    "plain_denoise",
    "plain_weights",
    "score",
    "top_weights",
    "weights",
]

_LEAST_SIGMA = 1e-18  # float32 holds its square

Sigma = float | Float[ArrayLike, " queries"]


def plain_weights(
    y: Float[ArrayLike, "queries dim"], points: Float[ArrayLike, "points dim"], sigma: Sigma
) -> Float[Array, "queries points"]:
    """Return the posterior weights (eq. 3) of vectors y [Q, d] over points [N, d], by definition.

    Accurate unless sigma is small; `weights` is accurate at every sigma.

    >>> plain_weights(np.float32([[1.0]]), np.float32([[0.0], [2.0]]), 1.0)
    Array([[0.5, 0.5]], dtype=float32)
    """
    y, points = as_queries(y, np.shape(points), "y"), decode(as_rows(points, "points"))

    def one_query(y, sigma):
        squared_distances = jnp.sum((y - points) ** 2, axis=1)
        return jax.nn.softmax(-squared_distances / (2 * sigma**2))

    return jax.vmap(one_query)(y, jnp.broadcast_to(sigma, len(y)))


def plain_denoise(
    y: Float[ArrayLike, "queries dim"], points: Float[ArrayLike, "points dim"], sigma: Sigma
) -> Float[Array, "queries dim"]:
    """Return the posterior mean (eq. 2), sum_j w_j(y, sigma) x_j, by definition: [Q, d]."""
    weights, rows = plain_weights(y, points, sigma), decode(as_rows(points, "points"))
    return jnp.matmul(weights, rows, precision=lax.Precision.HIGHEST)


def denoise(
    y: Shaped[ArrayLike, "queries ..."],
    points: Shaped[ArrayLike, "points ..."] | PlacedPoints,
    sigma: Sigma,
    *,
    chunk: int = CHUNK,
) -> Float[Array, "queries ..."]:
    """Return the posterior mean m_sigma(y) = sum_j w_j(y, sigma) x_j, the empirical denoiser.

    Args:
      y: noised points, vectors [Q, d] or images [Q, H, W, C].
      points: the data, vectors [N, d] or images [N, H, W, C]: floats, or uint8 as stored (used as
        x / 127.5 - 1); on one device, sharded over several, or placed by
        `geomem.points.shard` or `geomem.points.stream`.
      sigma: noise level, > 0, a scalar or [Q].
      chunk: points per matrix product; memory grows with it, not with Q x N.

    Returns:
      float32 in the shape of y, within 1e-5 of the exact mean for data in [-1, 1].

    Raises:
      ValueError: sigma is not positive and finite, or shapes or types do not match.

    Source: paper, eq. 2.
    """
    placed, rows, sigma = _arguments(y, points, sigma, chunk)
    mean = _mean if isinstance(placed, Points) else _mean.__wrapped__  # a stream has no derivative
    return mean(chunk, placed, rows, sigma).reshape(np.shape(y))


def score(
    y: Shaped[ArrayLike, "queries ..."],
    points: Shaped[ArrayLike, "points ..."] | PlacedPoints,
    sigma: Sigma,
    *,
    chunk: int = CHUNK,
) -> Float[Array, "queries ..."]:
    """Return (m_sigma(y) - y) / sigma^2, the gradient of the log density of the noised data at y.

    Arguments as in `denoise`. The density is the mixture of N(x_j, sigma^2 I) over the points.
    """
    mean = denoise(y, points, sigma, chunk=chunk)
    variance = jnp.asarray(sigma, jnp.float32) ** 2
    return (mean - decode(jnp.asarray(y))) / variance.reshape(-1, *[1] * (mean.ndim - 1))


def covariance_product(
    y: Shaped[ArrayLike, "queries ..."],
    points: Shaped[ArrayLike, "points ..."] | PlacedPoints,
    sigma: Sigma,
    v: Shaped[ArrayLike, "queries ..."],
    *,
    chunk: int = CHUNK,
) -> Float[Array, "queries ..."]:
    """Return Cov_w v, the posterior covariance sum_j w_j (x_j - m) (x_j - m)^T times v.

    Cov_w / sigma^2 is the Jacobian of `denoise` at y. No d x d matrix is built; the cost is that of
    about four calls of `denoise`.

    Args:
      y, points, sigma, chunk: as in `denoise`.
      v: directions, in the shape of y.
    """
    placed, rows, sigma = _arguments(y, points, sigma, chunk)
    directions = as_queries(v, np.shape(points), "v")
    if directions.shape != rows.shape:
        raise ValueError(f"v must have the shape of y, {np.shape(y)}, got {np.shape(v)}.")
    mean = _mean.__wrapped__(chunk, placed, rows, sigma)
    product = moment("along", chunk, placed, rows, sigma, mean, directions)
    return product.reshape(np.shape(y))


def covariance_trace(
    y: Shaped[ArrayLike, "queries ..."],
    points: Shaped[ArrayLike, "points ..."] | PlacedPoints,
    sigma: Sigma,
    *,
    chunk: int = CHUNK,
) -> Float[Array, " queries"]:
    """Return tr Cov_w = sum_j w_j ||x_j - m||^2, [Q]; arguments as in `denoise`.

    It is the expected squared error of `denoise` given y; trace / sigma^2 is the divergence of
    `denoise`.
    """
    placed, rows, sigma = _arguments(y, points, sigma, chunk)
    mean = _mean.__wrapped__(chunk, placed, rows, sigma)
    return moment("squared_spread", chunk, placed, rows, sigma, mean)[:, 0]


def max_weight(
    y: Shaped[ArrayLike, "queries ..."],
    points: Shaped[ArrayLike, "points ..."] | PlacedPoints,
    sigma: Sigma,
    *,
    chunk: int = CHUNK,
) -> Float[Array, " queries"]:
    """Return the largest posterior weight max_j w_j(y, sigma), [Q]; arguments as in `denoise`."""
    placed, rows, sigma = _arguments(y, points, sigma, chunk)
    return _search(placed, rows, sigma, chunk=chunk, top=1).weight[:, 0]


class TopWeights(NamedTuple):
    """The points that a query most likely came from.

    Attributes:
      weight: [Q, k], posterior weights, descending.
      index: int32 [Q, k], positions in the points.
    """

    weight: Float[Array, "queries k"]
    index: Int[Array, "queries k"]  # type: ignore[assignment]  # hides tuple.index


def top_weights(
    y: Shaped[ArrayLike, "queries ..."],
    points: Shaped[ArrayLike, "points ..."] | PlacedPoints,
    sigma: Sigma,
    k: int,
    *,
    chunk: int = CHUNK,
) -> TopWeights:
    """Return the k largest posterior weights of each query, and the points that have them.

    Args:
      y, points, sigma, chunk: as in `denoise`.
      k: number of weights, at most N.

    Returns:
      TopWeights, [Q, k]. Each weight is exact within 1e-5; equal weights are ordered by index.

    Raises:
      ValueError: as in `denoise`, or k is not in 1..N.

    Source: paper, eq. 3.

    >>> points = np.float32([[0, 0], [1, 0], [3, 0]])
    >>> top_weights(np.float32([[1, 0]]), points, 0.5, 2)
    TopWeights(weight=Array([[0.880..., 0.119...]], dtype=float32), index=Array([[1, 0]], ...))
    """
    placed, rows, sigma = _arguments(y, points, sigma, chunk)
    if not (isinstance(k, int | np.integer) and 1 <= k <= len(placed)):
        raise ValueError(f"k must be 1 to {len(placed)}, the number of points, got {k}.")
    softmax = _search(placed, rows, sigma, chunk=chunk, top=int(k))
    return TopWeights(softmax.weight, softmax.index)


def log_weights(
    y: Shaped[ArrayLike, "queries ..."], points: Shaped[ArrayLike, "points ..."], sigma: Sigma
) -> Float[Array, "queries points"]:
    """Return all log posterior weights log w_j(y, sigma), the logarithm of eq. 3.

    Queries are processed one at a time. If the largest weights are enough, `top_weights` is many
    times faster.

    Args:
      y: noised points, vectors [Q, d] or images [Q, H, W, C].
      points: the data, vectors [N, d] or images [N, H, W, C], on one device.
      sigma: noise level, > 0, a scalar or [Q]; for a grid, `jax.vmap` over it.

    Returns:
      float32 [Q, N]. The weights exp(.) are within 1e-5 of the exact ones at every sigma.

    Raises:
      ValueError: as in `denoise`, or points that are sharded or streamed.

    Source: paper, eq. 3.
    """
    if isinstance(points, PlacedPoints):
        raise ValueError("points must be an array, got placed points; see top_weights.")
    rows = as_rows(points, "points")
    return _log_weights(*_queries(y, np.shape(points), sigma), rows)


def weights(
    y: Shaped[ArrayLike, "queries ..."], points: Shaped[ArrayLike, "points ..."], sigma: Sigma
) -> Float[Array, "queries points"]:
    """Return all posterior weights w_j(y, sigma) [Q, N]; each row sums to 1. See `log_weights`."""
    return jnp.exp(log_weights(y, points, sigma))


def empirical_denoiser(
    images: Shaped[ArrayLike, "points ..."] | PlacedPoints,
) -> Callable[..., jax.Array]:
    """Return the exact denoiser of `images` [N, H, W, C], or of placed points, as a Denoiser.

    It maps (x [B, H, W, C], sigma scalar or [B]) to [B, H, W, C].
    """
    if isinstance(images, PlacedPoints):
        return functools.partial(_denoise_with, images)
    # A Partial, so that jit takes the points as an argument, not as a constant.
    return jax.tree_util.Partial(_denoise_with, as_rows(images, "images"))


def _denoise_with(points, x, sigma):
    return denoise(x, points, sigma)


def check_sigma(sigma: ArrayLike, name: str = "sigma") -> ArrayLike:
    """Return sigma itself; values traced by JAX are not checked; errors use `name`.

    Raises:
      ValueError: sigma is not positive and finite, or float32 cannot hold its square.
    """
    if not isinstance(sigma, Tracer):
        values = np.asarray(sigma)
        if values.dtype.kind not in "iufV":  # V: bfloat16
            raise ValueError(f"{name} must be positive and finite, got {sigma!r}.")
        valid = np.isfinite(values) & (values > 0)
        if not valid.all():
            raise ValueError(f"{name} must be positive and finite, got {values[~valid].flat[0]:g}.")
        if values.size and values.min() < _LEAST_SIGMA:
            raise ValueError(f"{name} must be at least {_LEAST_SIGMA:g}, got {values.min():g}.")
    return sigma


def _queries(y, shape, sigma):
    y = as_queries(y, shape, "y")
    sigma = jnp.asarray(check_sigma(sigma), jnp.float32)
    if sigma.shape not in ((), (1,), (len(y),)):
        raise ValueError(f"sigma must be a scalar or [{len(y)}] like y, got shape {sigma.shape}.")
    return y, jnp.broadcast_to(sigma, (len(y),))


def _arguments(y, points, sigma, chunk):
    """(placed points, queries [Q, d], sigma [Q])."""
    check_counts(chunk=chunk)
    placed = as_points(points)
    return placed, *_queries(y, np.shape(points), sigma)


def _search(placed, *queries, chunk, top) -> Softmax:
    return placed.run(softmax_search(len(placed), moment=None, top=top), queries, chunk=chunk)


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def _mean(chunk, placed, y, sigma):
    return moment("mean", chunk, placed, y, sigma)


_mean.defjvp(mean_derivative, symbolic_zeros=True)


@jax.custom_jvp
@jax.jit
def _log_weights(y, sigma, points):
    points = decode(points)

    def one_query(query):
        y, sigma = query
        reference = points[jnp.sum((y - points) ** 2, axis=1).argmin()]
        logits = log_weight_ratios(y[None], sigma[None], reference[None], points[None])[0]
        return jax.nn.log_softmax(logits)

    return lax.map(one_query, (y, sigma))


_log_weights.defjvp(functools.partial(log_weights_derivative, _log_weights), symbolic_zeros=True)
