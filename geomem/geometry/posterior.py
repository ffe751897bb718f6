"""Empirical posterior over training points: weights, denoiser, largest weight; exact in float32.

With X uniform over the points and y = X + sigma Z, the posterior of X given y is
w_j(y, sigma) = softmax_j(-||y - x_j||^2 / (2 sigma^2)) (paper, eq. 3), and its mean is the denoiser
that minimises the training loss (eq. 2).

Cancellation: at small sigma the usual norm + norm - 2 dot is off by more than the logits' spread.
Here centred products only screen. The leading candidates are redone relative to the best one, x_r,
by ||y - x_j||^2 - ||y - x_r||^2 = <x_r - x_j, (y - x_r) + (y - x_j)>, which is small where the
weights are not (`differences`). By how much redoing changes the candidates shows the screening
error, and more are redone until four times that error cannot matter on the weight of all others.
"""

from __future__ import annotations

import functools
import math
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from geomem.geometry.differences import log_weight_ratios
from geomem.geometry.distances import (
    CHUNK,
    QUERIES,
    Leaders,
    after,
    centre,
    first_leader,
    fold_chunks,
    gather_block,
    inner_products,
    last_leader,
    map_rows,
    merge_leaders,
    no_leaders,
)

__all__ = ["check_sigma", "denoise", "empirical_denoiser", "log_weights", "max_weight", "weights"]

_CANDIDATES = 16  # redone at once, for each query
_LOG_TOLERANCE = math.log(4e-5)  # of the weight at risk times the safe error
_SAFETY = 4  # the largest error of N points over the largest among the candidates
_LOG_NEGLIGIBLE = -30.0
_ROUNDING = 1e-6
_LOWEST = jnp.finfo(jnp.float32).min


def log_weights(y: jax.Array, points: jax.Array, sigma: float | jax.Array) -> jax.Array:
    """log w_j(y, sigma) = -||y - x_j||^2 / (2 sigma^2) - logsumexp_i(-||y - x_i||^2 / (2 sigma^2)).

    Args:
      y: float32 [Q, d], noised points.
      points: float32 [N, d], the data.
      sigma: noise level, > 0, a scalar or [Q]; for a grid, `jax.vmap` over it.

    Returns:
      float32 [Q, N]. The weights exp(.) are within 1e-5 of the exact ones at every sigma.

    Raises:
      ValueError: a sigma that is not finite and > 0.

    Source: paper, eq. 3.
    """
    return _log_weights(y, points, check_sigma(sigma))


def weights(y: jax.Array, points: jax.Array, sigma: float | jax.Array) -> jax.Array:
    """Posterior weights w_j(y, sigma) [Q, N], each row sums to 1; see `log_weights`."""
    return jnp.exp(log_weights(y, points, sigma))


def denoise(
    y: jax.Array, points: jax.Array, sigma: float | jax.Array, *, chunk: int = CHUNK
) -> jax.Array:
    """Posterior mean m_sigma(y) = sum_j w_j(y, sigma) x_j, streamed over chunks of points.

    Args:
      y: float32 [Q, d], noised points.
      points: float32 [N, d], the data.
      sigma: noise level, > 0, a scalar or [Q].
      chunk: points per matrix product; memory grows with it, not with Q x N.

    Returns:
      float32 [Q, d], within 1e-5 of the exact mean for data in [-1, 1].

    Raises:
      ValueError: a sigma that is not finite and > 0.

    Source: paper, eq. 2.
    """
    return _stream(y, points, check_sigma(sigma), chunk=chunk, mean=True).mean


def max_weight(
    y: jax.Array, points: jax.Array, sigma: float | jax.Array, *, chunk: int = CHUNK
) -> jax.Array:
    """The largest posterior weight max_j w_j(y, sigma), [Q]; arguments as in `denoise`."""
    return _stream(y, points, check_sigma(sigma), chunk=chunk, mean=False).max_weight


def empirical_denoiser(images: jax.Array):
    """The exact denoiser of `images` [N, H, W, C] as a Denoiser.

    Returns:
      (x [B, H, W, C], sigma scalar or [B]) -> [B, H, W, C].
    """
    points = jnp.reshape(images, (len(images), -1))

    def denoiser(x, sigma):
        return denoise(x.reshape(len(x), -1), points, sigma).reshape(x.shape)

    return denoiser


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


def _aligned(exact, score, baseline):
    """(baseline, largest error): exact logits against score - baseline, [B, K] each, -inf for none.

    A NaN baseline is set to the mean difference, so that the candidates' common error drops out.
    """
    gap = score - exact
    found = score != -jnp.inf
    mean = jnp.mean(gap, axis=1, where=found, keepdims=True)
    baseline = jnp.where(jnp.isnan(baseline), mean, baseline)
    return baseline, jnp.max(jnp.abs(gap - baseline), axis=1, where=found, initial=0, keepdims=True)


def _settled(log_share, error):
    """Whether logits with this `error` may serve for points with this share of the weight."""
    error = _SAFETY * error
    log_expm1 = error + jnp.log(-jnp.expm1(-error))
    # Written so that a NaN, which no further search removes, counts as settled.
    return ~(log_share + log_expm1 > _LOG_TOLERANCE).any()


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
    count = min(_CANDIDATES, len(points))

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
        baseline, new_error = _aligned(redone, score, baseline)
        error = jnp.maximum(error, new_error)
        logits = jnp.where(pending, screened - baseline, exact)
        total = jax.nn.logsumexp(logits, axis=1, keepdims=True)
        rest = jax.nn.logsumexp(logits, axis=1, keepdims=True, where=pending)
        return exact, pending, baseline, error, _settled(rest - total, error)

    one = jnp.ones((len(y), 1))
    start = (screened, jnp.ones(screened.shape, bool), jnp.nan * one, 0 * one, jnp.array(False))
    exact, pending, baseline, *_ = lax.while_loop(lambda state: ~state[-1], redo, start)
    return jax.nn.log_softmax(jnp.where(pending, screened - baseline, exact), axis=1)


class _Sums(NamedTuple):
    """sum_j exp(l_j) = exp(peak) total and sum_j exp(l_j) (x_j - origin) = exp(peak) moment."""

    peak: jax.Array  # [B, 1]
    total: jax.Array  # [B, 1]
    moment: jax.Array  # [B, d], or [B, 0] where the mean is not asked for


def _sums(logit, moment):
    """_Sums of logits [B, K], of which -inf marks none; moment: weights [B, K] -> [B, d]."""
    peak = jnp.maximum(logit.max(axis=1, keepdims=True), _LOWEST)
    weight = jnp.exp(logit - peak)
    return _Sums(peak, weight.sum(axis=1, keepdims=True), moment(weight))


def _added(a, b):
    peak = jnp.maximum(a.peak, b.peak)
    left, right = jnp.exp(a.peak - peak), jnp.exp(b.peak - peak)
    return _Sums(peak, left * a.total + right * b.total, left * a.moment + right * b.moment)


class _Posterior(NamedTuple):
    mean: jax.Array  # [Q, d]
    max_weight: jax.Array  # [Q]


@functools.partial(jax.jit, static_argnames=("chunk", "mean"))
def _stream(y, points, sigma, *, chunk, mean):
    chex.assert_equal_shape_suffix((y, points), 1)
    block = functools.partial(
        _stream_block,
        points=points,
        origin=centre(points),
        chunk=chunk,
        dim=points.shape[1] if mean else 0,
    )
    return map_rows(block, _prepared(y, sigma), QUERIES)


class _Search(NamedTuple):
    redone: _Sums  # over the candidates so far, by exact logits relative to the reference
    rest: _Sums  # over all other points, by screened logits
    reference: jax.Array  # int32 [B], the best-screened point
    baseline: jax.Array  # [B, 1], screened less exact logits
    error: jax.Array  # [B, 1], largest deviation from it so far
    cutoff: Leaders  # candidates come after it
    done: jax.Array


def _stream_block(y, sigma, *, points, origin, chunk, dim):
    centred, variance = y - origin, (sigma**2)[:, None]
    count = min(_CANDIDATES, len(points))
    nothing = _Sums(
        jnp.full((len(y), 1), _LOWEST), jnp.zeros((len(y), 1)), jnp.zeros((len(y), dim))
    )

    def screen(cutoff):
        """Sums over the points after `cutoff` by screened logits, and the leaders among them."""

        def update(carry, rows, index, fresh):
            sums, leaders = carry
            rows = rows - origin
            logit = (inner_products(centred, rows) - jnp.sum(rows**2, axis=1) / 2) / variance
            logit = jnp.where(fresh & after(logit, index, cutoff), logit, -jnp.inf)
            new = _sums(logit, lambda weight: inner_products(weight, rows[:, :dim].T))
            return _added(sums, new), merge_leaders(leaders, logit, index)

        return fold_chunks(points, (nothing, no_leaders(len(y), count)), update, chunk)

    def redo(y, sigma, reference, index, screened):
        """Exact logits of candidates, and the sums over them by exact and by screened logits."""
        rows = points[index]
        exact = log_weight_ratios(y, sigma, points[reference], rows)
        exact = jnp.where(screened == -jnp.inf, -jnp.inf, exact)
        rows = rows[:, :, :dim] - origin[:dim]

        def moment(weight):
            return jnp.sum(weight[:, :, None] * rows, axis=1)

        return exact, _sums(exact, moment), _sums(screened, moment)

    def search(state):
        sums, leaders = screen(state.cutoff)
        first = jnp.isnan(state.baseline[:, 0])
        reference = jnp.where(first, leaders.index[:, 0], state.reference)
        exact, redone, screened = map_rows(
            redo,
            (y, sigma, reference, leaders.index, leaders.score),
            gather_block(count, points.shape[1]),
        )
        baseline, error = _aligned(exact, leaders.score, state.baseline)
        error = jnp.maximum(error, state.error)
        # All sums less the candidates' (both have the best candidate as their peak), unless what
        # is left, at most `bound`, cannot be told from rounding.
        bound = leaders.score[:, -1:] + jnp.log(len(points))
        left = bound - sums.peak > _LOG_NEGLIGIBLE
        rest = _Sums(
            jnp.where(left, sums.peak - baseline, _LOWEST),
            jnp.where(left, jnp.maximum(sums.total - screened.total, 0), 0),
            jnp.where(left, sums.moment - screened.moment, 0),
        )
        redone = _added(state.redone, redone)
        both = _added(redone, rest)
        share = jnp.where(left, sums.peak + jnp.log(rest.total + _ROUNDING * sums.total), bound)
        done = _settled(share - baseline - both.peak - jnp.log(both.total), error)
        return _Search(redone, rest, reference, baseline, error, last_leader(leaders), done)

    start = _Search(
        redone=nothing,
        rest=nothing,
        reference=jnp.zeros(len(y), jnp.int32),
        baseline=jnp.full((len(y), 1), jnp.nan),
        error=jnp.zeros((len(y), 1)),
        cutoff=first_leader(len(y)),
        done=jnp.array(False),
    )
    found = lax.while_loop(lambda state: ~state.done, search, start)
    both = _added(found.redone, found.rest)
    largest = jnp.exp(found.redone.peak - both.peak) / both.total
    largest = jnp.where(both.total > 0, largest, jnp.nan)  # a NaN query has no candidates
    return _Posterior(origin[:dim] + both.moment / both.total, largest[:, 0])
