"""The posterior's moments and largest weights: products screen all points, differences decide.

Products of centered rows give every logit, up to a screening error. The logits of the leading
candidates of a pass are computed again, relative to the best one (`exact.log_weight_ratios`). How
much they change shows the screening error. The search continues with the next candidates until
four times that error, applied to the weight of all other points, no longer matters.

Second moments may be tiny next to the squared distances of the points, so their search is sharp:
its tolerance is relative to the weight of all points but the best, and the candidates of the last
pass count as unchecked, because their screened sums do not cancel exactly.

With several devices, each keeps the weighted sum of its own points. In each pass they exchange
peaks, totals, candidates, and the row of each query's best candidate.
"""

from __future__ import annotations

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from geomem.points.exact import Candidates, inner_products, log_weight_ratios, merge_candidates
from geomem.points.moments import MOMENTS
from geomem.points.visit import Search

__all__ = ["LOWEST", "LogSums", "Softmax", "add_log_sums", "softmax_search"]

LOWEST = float(np.finfo(np.float32).min)  # stands for -inf where sums must not become NaN
_CANDIDATES = 16  # checked at once for each query
_LOG_TOLERANCE = math.log(4e-5)  # for the unchecked weight times its error
_SAFETY = 4  # assumed ratio of the largest error of all points to that of the candidates
_INFORMATIVE = 4  # least number of different logits that can show the error; copies cannot
_APRIORI = 10 * 2.0**-24  # error assumed for fewer: a product's rounding, relative to the norms
_LOG_NEGLIGIBLE = -30.0
_ROUNDING = 1e-6
_SHARP_WEIGHT_ERROR = 1e-8  # for `log_weight_ratios`, in a sharp search


class LogSums(NamedTuple):
    """Running sums that do not overflow: sum_j exp(l_j) = exp(peak) total.

    Attributes:
      peak: [...], the largest logit so far.
      total: [...].
      moment: [..., D], exp(peak) moment = sum_j exp(l_j) of what is summed; None if not needed.
    """

    peak: jax.Array
    total: jax.Array
    moment: jax.Array | None


def add_log_sums(a: LogSums, b: LogSums) -> LogSums:
    """Return the sums over the points of `a` and of `b`."""
    peak = jnp.maximum(a.peak, b.peak)
    left, right = jnp.exp(a.peak - peak), jnp.exp(b.peak - peak)
    return LogSums(peak, *jax.tree.map(lambda x, y: left * x + right * y, a[1:], b[1:]))


class Softmax(NamedTuple):
    """The result of the search.

    Attributes:
      moment: [Q, D], the posterior expectation that was asked for, else [Q, 0].
      weight: [Q, K], the largest posterior weights, descending.
      index: int32 [Q, K], the points that have them.
    """

    moment: jax.Array
    weight: jax.Array
    index: jax.Array


class _State(NamedTuple):
    y: jax.Array  # [B, d]
    center: jax.Array  # [B, d], the origin of moments over candidates
    v: jax.Array | None  # [B, d], the direction of "along"
    variance: jax.Array  # [B, 1]
    checked: LogSums  # [B, 1] and [B, d]: over all candidates so far, from checked logits
    rest: LogSums  # over all other points, from screened logits; moments of this device's points
    best: Candidates  # by checked logits
    reference: jax.Array  # [B, d], the point with the best screened logit
    baseline: jax.Array  # [B, 1], mean of screened minus checked logits
    error: jax.Array  # [B, 1], the largest deviation from the baseline so far
    informative: jax.Array  # [B, 1], number of candidates behind `error`, without copies
    scale: jax.Array  # [B, 1], ||y - origin||^2 / sigma^2, the scale of rounding errors
    tied: jax.Array  # [B, 1], number of candidates so far that equal the reference
    cutoff: Candidates  # the next candidates come after it
    done: jax.Array  # [B]


class _Checked(NamedTuple):
    reference: jax.Array
    logit: jax.Array  # [B, K], relative to the reference
    sums: LogSums  # from these logits
    screened: LogSums  # of the same points, from screened logits


@functools.cache
def softmax_search(total: int, *, moment: str | None, top: int) -> Search:
    """Return the search for a posterior moment and the `top` largest weights among `total` points.

    Its queries are (y [Q, d], sigma [Q]), then for moments about the posterior mean this mean
    [Q, d], then for "along" v [Q, d]; its context is the origin [d], and its result a Softmax.
    `moment` is a name in `MOMENTS`, or None.
    """
    sharp = moment not in (None, "mean")

    def moments(*args):
        return MOMENTS[moment](*args) if moment else jnp.zeros((len(args[0]), 0))

    def start(origin, y, sigma, mean=None, v=None):
        count, dim = y.shape
        size = {None: 0, "squared_spread": 1, "with_log_weight": 2 * dim + 1}.get(moment, dim)
        return _State(
            y=y,
            center=jnp.broadcast_to(origin, y.shape) if mean is None else mean,
            v=v,
            variance=(sigma**2)[:, None],
            checked=_no_sums(count, size),
            rest=_no_sums(count, size),
            best=Candidates.none(count, top),
            reference=jnp.zeros_like(y),
            baseline=jnp.full((count, 1), jnp.nan),
            error=jnp.zeros((count, 1)),
            informative=jnp.zeros((count, 1), jnp.int32),
            scale=jnp.sum(((y - origin) / sigma[:, None]) ** 2, axis=1, keepdims=True),
            tied=jnp.zeros((count, 1), jnp.int32),
            cutoff=Candidates.before_all(count),
            done=jnp.zeros(count, bool),
        )

    def empty(origin, state):
        candidates = Candidates.none(len(state.y), min(max(_CANDIDATES, top), total))
        return _no_sums(*state.rest.moment.shape), candidates

    def update(origin, state):
        """Sums over the points after the cutoff, from screened logits, and the best candidates."""
        centered, center = state.y - origin, state.center - origin

        def screen(partial, rows, index, valid):
            sums, candidates = partial
            rows = rows - origin
            logit = inner_products(centered, rows) - jnp.sum(rows**2, axis=1) / 2
            logit = logit / state.variance
            logit = jnp.where(valid & state.cutoff.precede(logit, index), logit, -jnp.inf)
            new = _sums(logit, lambda weight: moments(weight, rows, centered, center, state.v))
            return add_log_sums(sums, new), merge_candidates(candidates, logit, index)

        return screen

    def combine(partial, group):
        sums, candidates = partial
        peak = group.max(sums.peak)
        scale = jnp.exp(sums.peak - peak)
        sums = LogSums(peak, group.sum(scale * sums.total), scale * sums.moment)
        return sums, group.merge(candidates)

    def recheck(origin, state, candidates, rows, owned, group):
        first = jnp.isnan(state.baseline)
        reference = jnp.where(first, group.share(rows[:, 0], owned[:, :1]), state.reference)
        if group.axis is not None:  # do not spend precision on rows of other devices
            rows = jnp.where(owned[:, :, None], rows, reference[:, None])
        sigma = jnp.sqrt(state.variance[:, 0])
        tolerance = {"tolerance": _SHARP_WEIGHT_ERROR} if sharp else {}
        logit = log_weight_ratios(state.y, sigma, reference, rows, **tolerance)
        logit = jnp.where(candidates.score == -jnp.inf, -jnp.inf, group.share(logit, owned))
        centered, y = rows - state.center[:, None], state.y - state.center

        def own(weight):
            weight = jnp.where(owned, weight, 0)
            return moments(weight, centered, y, jnp.zeros_like(y), state.v)

        return _Checked(reference, logit, _sums(logit, own), _sums(candidates.score, own))

    def advance(state, partial, checked):
        sums, candidates = partial
        baseline, error, informative = _screening_error(state, candidates.score, checked)
        # Subtract the candidates' sums (which have the same peak) from the sums over all points,
        # unless the remainder, at most `bound`, is no larger than rounding errors.
        bound = candidates.score[:, -1:] + math.log(total)
        remains = bound - sums.peak > _LOG_NEGLIGIBLE
        total_left = sums.total - checked.screened.total
        positive = remains & (total_left > 0)
        rest = LogSums(
            jnp.where(positive, sums.peak - baseline, LOWEST),
            jnp.where(positive, total_left, 0),
            jnp.where(positive, sums.moment - checked.screened.moment, 0),
        )
        new = add_log_sums(state.checked, checked.sums)
        both = add_log_sums(new, rest)
        share = sums.peak + jnp.log(rest.total + _ROUNDING * sums.total)
        share = jnp.where(remains, share, bound) - baseline - both.peak - jnp.log(both.total)
        tied = state.tied + (checked.logit == 0).sum(axis=1, keepdims=True)
        if sharp:
            others = jnp.maximum(1 - tied * jnp.exp(-both.peak) / both.total, _ROUNDING)
            share = sums.peak - baseline - both.peak + jnp.log(sums.total / (both.total * others))
        return state._replace(
            checked=new,
            rest=rest,
            best=_better(state.best, checked.logit, candidates.index),
            reference=checked.reference,
            baseline=baseline,
            error=error,
            informative=informative,
            cutoff=candidates.last(),
            tied=tied,
            done=_is_settled(state, share, error, informative)[:, 0],
        )

    def result(origin, state, group):
        both = add_log_sums(state.checked, state.rest)
        weight = jnp.exp(state.best.score - both.peak) / both.total
        weight = jnp.where(both.total > 0, weight, jnp.nan)  # a NaN query has no candidates
        expected = group.sum(both.moment) / both.total
        if moment == "mean":
            expected = origin + expected
        return Softmax(expected, weight, state.best.index)

    return Search(start, empty, update, combine, recheck, advance, result)


def _screening_error(state, score, checked):
    """(baseline, largest error so far, number of different candidates behind it): [B, 1] each."""
    gap = score - checked.logit
    valid = score != -jnp.inf
    # An error that all candidates share does not change the weights.
    mean = jnp.mean(gap, axis=1, where=valid, keepdims=True)
    baseline = jnp.where(jnp.isnan(state.baseline), mean, state.baseline)
    error = jnp.max(jnp.abs(gap - baseline), axis=1, where=valid, initial=0, keepdims=True)
    ordered = jnp.sort(checked.logit, axis=1)
    differ = (ordered != jnp.roll(ordered, 1, axis=1)) & (ordered != 0) & (ordered != -jnp.inf)
    informative = state.informative + differ.sum(axis=1, keepdims=True)
    return baseline, jnp.maximum(error, state.error), informative


def _is_settled(state, log_share, error, informative):
    """Whether screened logits are accurate enough for points with this share of the weight."""
    error = _SAFETY * error
    apriori = _APRIORI * state.scale
    error = jnp.where(informative < _INFORMATIVE, jnp.maximum(error, apriori), error)
    log_expm1 = error + jnp.log(-jnp.expm1(-error))
    # Negated so that NaN, which no further search removes, counts as settled.
    return ~(log_share + log_expm1 > _LOG_TOLERANCE)


def _sums(logit, moment):
    """LogSums of logits [B, K]; -inf marks an empty place; moment: weights [B, K] -> [B, d]."""
    peak = jnp.maximum(logit.max(axis=1, keepdims=True), LOWEST)
    weight = jnp.exp(logit - peak)
    return LogSums(peak, weight.sum(axis=1, keepdims=True), moment(weight))


def _no_sums(count, dim):
    return LogSums(jnp.full((count, 1), LOWEST), jnp.zeros((count, 1)), jnp.zeros((count, dim)))


def _better(best, score, index):
    """The best of `best` [B, K] and of points with `score` and `index` [B, P], ties by index."""
    score = jnp.concatenate([best.score, score], axis=1)
    index = jnp.concatenate([best.index, index], axis=1)
    score, index = lax.sort((-score, index), dimension=1, num_keys=2)
    count = best.score.shape[1]
    return Candidates(-score[:, :count], index[:, :count])
