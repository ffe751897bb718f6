"""Empirical posterior over training points: weights, denoiser, largest weights; in float32.

With X uniform over the points and y = X + sigma Z, the posterior of X given y is
w_j(y, sigma) = softmax_j(-||y - x_j||^2 / (2 sigma^2)) (paper, eq. 3), and its mean is the denoiser
that minimises the training loss (eq. 2).

Cancellation: at small sigma the usual norm + norm - 2 dot is off by more than the logits' spread.
Here products only screen, and what matters is computed again from differences (`screening`).
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from geomem.points import passes
from geomem.points.blocks import CHUNK, QUERIES, gather_block, map_rows
from geomem.points.differences import log_weight_ratios
from geomem.points.placement import Points, Stream, as_points
from geomem.points.products import centre, inner_products
from geomem.points.softmax_search import CANDIDATES, PosteriorSearch, aligned, settled

__all__ = [
    "TopWeights",
    "check_sigma",
    "denoise",
    "empirical_denoiser",
    "log_weights",
    "max_weight",
    "top_weights",
    "weights",
]


def log_weights(y: jax.Array, points: jax.Array, sigma: float | jax.Array) -> jax.Array:
    """log w_j(y, sigma) = -||y - x_j||^2 / (2 sigma^2) - logsumexp_i(-||y - x_i||^2 / (2 sigma^2)).

    Args:
      y: float32 [Q, d], noised points.
      points: float32 [N, d], the data.
      sigma: noise level, > 0, a scalar or [Q]; for a grid, `jax.vmap` over it.

    Returns:
      float32 [Q, N]. The weights exp(.) are within 1e-5 of the exact ones at every sigma.

    Raises:
      ValueError: a sigma that is not finite and > 0; points that are sharded or streamed.

    Source: paper, eq. 3.
    """
    if isinstance(points, Points | Stream):
        raise ValueError("points: sharded or streamed, wanted an array (see top_weights)")
    return _log_weights(y, points, check_sigma(sigma))


def weights(y: jax.Array, points: jax.Array, sigma: float | jax.Array) -> jax.Array:
    """Posterior weights w_j(y, sigma) [Q, N], each row sums to 1; see `log_weights`."""
    return jnp.exp(log_weights(y, points, sigma))


def denoise(
    y: jax.Array,
    points: jax.Array | Points | Stream,
    sigma: float | jax.Array,
    *,
    chunk: int = CHUNK,
) -> jax.Array:
    """Posterior mean m_sigma(y) = sum_j w_j(y, sigma) x_j, in one pass over chunks of points.

    Args:
      y: float32 [Q, d], noised points.
      points: the data: float32 [N, d], or uint8 as stored (x / 127.5 - 1); on one device, sharded
        over several, or what `placement.shard` or `placement.stream` returns.
      sigma: noise level, > 0, a scalar or [Q].
      chunk: points per matrix product; memory grows with it, not with Q x N.

    Returns:
      float32 [Q, d], within 1e-5 of the exact mean for data in [-1, 1].

    Raises:
      ValueError: a sigma that is not finite and > 0.

    Source: paper, eq. 2.
    """
    return _search(y, points, sigma, chunk, mean=True, top=0).mean


def max_weight(
    y: jax.Array,
    points: jax.Array | Points | Stream,
    sigma: float | jax.Array,
    *,
    chunk: int = CHUNK,
) -> jax.Array:
    """The largest posterior weight max_j w_j(y, sigma), [Q]; arguments as in `denoise`."""
    return _search(y, points, sigma, chunk, mean=False, top=1).weight[:, 0]


class TopWeights(NamedTuple):
    """The points that a query most likely came from.

    Attributes:
      weight: [Q, k], posterior weights, descending.
      index: int32 [Q, k], positions in the points.
    """

    weight: jax.Array
    index: jax.Array


def top_weights(
    y: jax.Array,
    points: jax.Array | Points | Stream,
    sigma: float | jax.Array,
    k: int,
    *,
    chunk: int = CHUNK,
) -> TopWeights:
    """The k largest posterior weights of each query, and whose they are.

    Args:
      y, points, sigma, chunk: as in `denoise`.
      k: how many, at most N.

    Returns:
      TopWeights, [Q, k]. Each weight is that of its point, and the j-th largest, within 1e-5; equal
      weights come by index.

    Raises:
      ValueError: a sigma that is not finite and > 0, k that is not in 1..N.

    Source: paper, eq. 3.

    >>> points = np.float32([[0, 0], [1, 0], [3, 0]])
    >>> top_weights(np.float32([[1, 0]]), points, 0.5, 2)
    TopWeights(weight=Array([[0.880..., 0.119...]], dtype=float32), index=Array([[1, 0]], ...))
    """
    points = as_points(points)
    if not 1 <= k <= len(points):
        raise ValueError(f"k: {k}, wanted 1 to {len(points)}")
    found = _search(y, points, sigma, chunk, mean=False, top=k)
    return TopWeights(found.weight, found.index)


def empirical_denoiser(images: jax.Array | Points | Stream):
    """The exact denoiser of `images` [N, H, W, C], or of placed points, as a Denoiser.

    Returns:
      (x [B, H, W, C], sigma scalar or [B]) -> [B, H, W, C].
    """
    if isinstance(images, Points | Stream):
        return functools.partial(_denoise_images, images)
    points = jnp.reshape(images, (len(images), -1))
    return jax.tree_util.Partial(_denoise_images, points)  # for jit an argument, not a constant


def _denoise_images(points, x, sigma):
    return denoise(x.reshape(len(x), -1), points, sigma).reshape(x.shape)


def check_sigma(sigma: float | jax.Array) -> float | jax.Array:
    """`sigma` itself; values traced by JAX are not looked at.

    Raises:
      ValueError: a sigma that is not finite and > 0.
    """
    if not isinstance(sigma, jax.core.Tracer):
        values = np.asarray(sigma)
        if not (np.isfinite(values) & (values > 0)).all():
            bad = values[~(np.isfinite(values) & (values > 0))].flat[0]
            raise ValueError(f"sigma: {bad:g}, wanted finite and > 0")
    return sigma


def _prepared(y, sigma):
    chex.assert_rank(y, 2)
    return y, jnp.broadcast_to(jnp.asarray(sigma, y.dtype), (len(y),))


def _search(y, points, sigma, chunk, *, mean, top):
    points = as_points(points)
    chex.assert_equal_shape_suffix((y, points), 1)
    search = PosteriorSearch(len(points), mean, top)
    return passes.run(points, search, _prepared(y, check_sigma(sigma)), chunk=chunk)


@jax.jit
def _log_weights(y, points, sigma):
    block = functools.partial(_log_weights_block, points=points, origin=centre(points))
    return map_rows(block, _prepared(y, sigma), QUERIES)


def _log_weights_block(y, sigma, *, points, origin):
    centred = points - origin
    screened = inner_products(y - origin, centred) - jnp.sum(centred**2, axis=1) / 2
    screened = (screened - screened.max(axis=1, keepdims=True)) / (sigma**2)[:, None]
    reference = points[screened.argmax(axis=1)]
    rows = jnp.arange(len(y))[:, None]
    count = min(CANDIDATES, len(points))

    def relative(y, sigma, reference, index):
        return log_weight_ratios(y, sigma, reference, points[index])

    def redo(state):
        exact, pending, baseline, error, _ = state
        score, index = lax.top_k(jnp.where(pending, screened, -jnp.inf), count)
        found = score != -jnp.inf
        redone = map_rows(
            relative, (y, sigma, reference, index), gather_block(count, points.shape[1])
        )
        exact = exact.at[rows, index].set(jnp.where(found, redone, exact[rows, index]))
        pending = pending.at[rows, index].set(False)
        baseline, new_error = aligned(redone, score, baseline)
        error = jnp.maximum(error, new_error)
        logits = jnp.where(pending, screened - baseline, exact)
        total = jax.nn.logsumexp(logits, axis=1, keepdims=True)
        rest = jax.nn.logsumexp(logits, axis=1, keepdims=True, where=pending)
        return exact, pending, baseline, error, settled(rest - total, error).all()

    one = jnp.ones((len(y), 1))
    start = (screened, jnp.ones(screened.shape, bool), jnp.nan * one, 0 * one, jnp.array(False))
    exact, pending, baseline, *_ = lax.while_loop(lambda state: ~state[-1], redo, start)
    return jax.nn.log_softmax(jnp.where(pending, screened - baseline, exact), axis=1)
