# ruff: noqa: D102 (the methods of a search are documented in `passes.Search`)
"""The search behind the posterior: screened by products, decided by differences.

Centred products screen all points. The leading candidates are redone relative to the best one, x_r,
by ||y - x_j||^2 - ||y - x_r||^2 = <x_r - x_j, (y - x_r) + (y - x_j)>, which is small where the
weights are not (`differences`). By how much redoing changes the candidates shows the screening
error, and more are redone until four times that error cannot matter on the weight of all others.

Over several devices each keeps the weighted sum of its own points; what they tell each other in a
pass are peaks, totals and candidates, and the row of each query's best candidate.
"""

from __future__ import annotations

import dataclasses
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from geomem.points.differences import log_weight_ratios
from geomem.points.products import inner_products
from geomem.points.top_candidates import (
    Leaders,
    after,
    first_leader,
    last_leader,
    merge_leaders,
    no_leaders,
)

__all__ = ["CANDIDATES", "Found", "PosteriorSearch", "aligned", "settled"]

CANDIDATES = 16  # redone at once, for each query
_LOG_TOLERANCE = math.log(4e-5)  # of the weight at risk times the safe error
_SAFETY = 4  # the largest error of N points over the largest among the candidates
_LOG_NEGLIGIBLE = -30.0
_ROUNDING = 1e-6
_LOWEST = jnp.finfo(jnp.float32).min


def aligned(exact, score, baseline):
    """(baseline, largest error): exact logits against score - baseline, [B, K] each, -inf for none.

    A NaN baseline is set to the mean difference, so that the candidates' common error drops out.
    """
    gap = score - exact
    found = score != -jnp.inf
    mean = jnp.mean(gap, axis=1, where=found, keepdims=True)
    baseline = jnp.where(jnp.isnan(baseline), mean, baseline)
    return baseline, jnp.max(jnp.abs(gap - baseline), axis=1, where=found, initial=0, keepdims=True)


def settled(log_share, error):
    """Whether logits with this `error` may serve for points with this share of the weight."""
    error = _SAFETY * error
    log_expm1 = error + jnp.log(-jnp.expm1(-error))
    # Written so that a NaN, which no further search removes, counts as settled.
    return ~(log_share + log_expm1 > _LOG_TOLERANCE)


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


class Found(NamedTuple):
    """What a search found.

    Attributes:
      mean: [Q, d], or [Q, 0] where it was not asked for.
      weight: [Q, K], the largest posterior weights, descending.
      index: int32 [Q, K], their points.
    """

    mean: jax.Array
    weight: jax.Array
    index: jax.Array


class _State(NamedTuple):
    y: jax.Array  # [B, d]
    variance: jax.Array  # [B, 1]
    redone: _Sums  # over the candidates so far, by exact logits relative to the reference
    rest: _Sums  # over all other points, by screened logits; both moments of this device's points
    best: Leaders  # by exact logits
    reference: jax.Array  # [B, d], the best-screened point
    baseline: jax.Array  # [B, 1], screened less exact logits
    error: jax.Array  # [B, 1], largest deviation from it so far
    cutoff: Leaders  # candidates come after it
    done: jax.Array  # [B]


class _Redone(NamedTuple):
    reference: jax.Array
    exact: jax.Array  # [B, K]
    sums: _Sums  # by exact logits
    screened: _Sums  # of the same points, by screened logits


@dataclasses.dataclass(frozen=True)
class PosteriorSearch:
    """A `passes.Search` for the posterior's mean and largest weights; the context is the origin.

    Attributes:
      total: number of points.
      mean: whether the mean is wanted.
      top: how many of the largest weights are wanted.
    """

    total: int
    mean: bool
    top: int

    def start(self, origin, y, sigma):
        count, dim = y.shape
        return _State(
            y=y,
            variance=(sigma**2)[:, None],
            redone=_no_sums(count, dim * self.mean),
            rest=_no_sums(count, dim * self.mean),
            best=no_leaders(count, self.top),
            reference=jnp.zeros_like(y),
            baseline=jnp.full((count, 1), jnp.nan),
            error=jnp.zeros((count, 1)),
            cutoff=first_leader(count),
            done=jnp.zeros(count, bool),
        )

    def nothing(self, origin, state):
        leaders = no_leaders(len(state.y), min(max(CANDIDATES, self.top), self.total))
        return _no_sums(*state.rest.moment.shape), leaders

    def update(self, origin, state):
        """Sums over the points after the cutoff by screened logits, and the leaders among them."""
        centred, dim = state.y - origin, state.rest.moment.shape[1]

        def screen(partial, rows, index, fresh):
            sums, leaders = partial
            rows = rows - origin
            logit = inner_products(centred, rows) - jnp.sum(rows**2, axis=1) / 2
            logit = logit / state.variance
            logit = jnp.where(fresh & after(logit, index, state.cutoff), logit, -jnp.inf)
            new = _sums(logit, lambda weight: inner_products(weight, rows[:, :dim].T))
            return _added(sums, new), merge_leaders(leaders, logit, index)

        return screen

    def combine(self, partial, group):
        sums, leaders = partial
        peak = group.max(sums.peak)
        scale = jnp.exp(sums.peak - peak)
        return _Sums(peak, group.sum(scale * sums.total), scale * sums.moment), group.merge(leaders)

    def leaders(self, partial):
        return partial[1]

    def redo(self, origin, state, leaders, rows, here, group):
        dim = state.rest.moment.shape[1]
        first = jnp.isnan(state.baseline)
        best = group.only(rows[:, 0], here[:, :1])
        reference = jnp.where(first, best, state.reference)
        if group.axis is not None:  # nothing to be precise about in other devices' rows
            rows = jnp.where(here[:, :, None], rows, reference[:, None])
        sigma = jnp.sqrt(state.variance[:, 0])
        exact = group.only(log_weight_ratios(state.y, sigma, reference, rows), here)
        exact = jnp.where(leaders.score == -jnp.inf, -jnp.inf, exact)
        centred = rows[:, :, :dim] - origin[:dim]

        def moment(weight):
            return jnp.sum(jnp.where(here, weight, 0)[:, :, None] * centred, axis=1)

        return _Redone(reference, exact, _sums(exact, moment), _sums(leaders.score, moment))

    def advance(self, state, partial, redone):
        sums, leaders = partial
        screened = redone.screened
        baseline, error = aligned(redone.exact, leaders.score, state.baseline)
        error = jnp.maximum(error, state.error)
        # All sums less the candidates' (both have the best candidate as their peak), unless what
        # is left, at most `bound`, cannot be told from rounding.
        bound = leaders.score[:, -1:] + math.log(self.total)
        left = bound - sums.peak > _LOG_NEGLIGIBLE
        rest = _Sums(
            jnp.where(left, sums.peak - baseline, _LOWEST),
            jnp.where(left, jnp.maximum(sums.total - screened.total, 0), 0),
            jnp.where(left, sums.moment - screened.moment, 0),
        )
        new = _added(state.redone, redone.sums)
        both = _added(new, rest)
        share = jnp.where(left, sums.peak + jnp.log(rest.total + _ROUNDING * sums.total), bound)
        return state._replace(
            redone=new,
            rest=rest,
            best=_better(state.best, redone.exact, leaders.index),
            reference=redone.reference,
            baseline=baseline,
            error=error,
            cutoff=last_leader(leaders),
            done=settled(share - baseline - both.peak - jnp.log(both.total), error)[:, 0],
        )

    def result(self, origin, state, partial, group):
        both = _added(state.redone, state.rest)
        weight = jnp.exp(state.best.score - both.peak) / both.total
        weight = jnp.where(both.total > 0, weight, jnp.nan)  # a NaN query has no candidates
        moment = group.sum(both.moment)
        return Found(origin[: moment.shape[1]] + moment / both.total, weight, state.best.index)


def _no_sums(count, dim):
    return _Sums(jnp.full((count, 1), _LOWEST), jnp.zeros((count, 1)), jnp.zeros((count, dim)))


def _better(best, score, index):
    """The best of `best` [B, K] and of points with `score` and `index` [B, P], ties by index."""
    score = jnp.concatenate([best.score, score], axis=1)
    index = jnp.concatenate([best.index, index], axis=1)
    score, index = lax.sort((-score, index), dimension=1, num_keys=2)
    count = best.score.shape[1]
    return Leaders(-score[:, :count], index[:, :count])
