"""Kernels behind `curves`: one pass over the points computes a whole grid of noise levels.

||x + sigma z - x_i||^2 = ||x - x_i||^2 + 2 sigma <z, x - x_i> + sigma^2 ||z||^2, so one draw z
can be reused for every sigma. It takes only <z, x_i> for all i: one matrix product, in the
coordinates of a `Frame` (`_noise_coordinates`).
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import ArrayLike

from geomem.geometry import shells, weight_bounds
from geomem.geometry._noise_coordinates import Frame, with_coordinates
from geomem.points.exact import CHUNK, inner_products
from geomem.points.neighbors import squared_distances
from geomem.points.softmax_search import LOWEST, LogSums, add_log_sums
from geomem.points.visit import Pass, Points

__all__ = ["WeightSweep", "coverage_sweep", "weight_sweep"]

_DELTAS = np.array([1e-3, 1e-2, 1e-1])  # failure probabilities of the own-weight bounds
_TAILS = (0.25, 0.5)  # (1 - q) / delta of the upper bound
_RADII = 128  # number of radii in the upper bound's geometric grid
_REACH = 100.0  # ratio of the largest of these radii to the smallest


def _noise(key, index, draws, rank):
    """Standard normal [draws, B, r]; a query's noise is the same in any block, on any device."""

    def row(i):  # drawn flat: the same numbers, in half the time to compile
        return jax.random.normal(jax.random.fold_in(key, i), (draws * rank,))

    return jnp.swapaxes(jax.vmap(row)(index).reshape(-1, draws, rank), 0, 1)


def _unseen_norms(key, index, draws, frame):
    """Squared norms [B, draws] of the noise outside the frame's coordinates.

    NumPy's, because JAX's chi-square takes seconds to compile.
    """
    if not frame.reduced:
        return np.zeros((len(index), draws), np.float32)
    seed, freedom = np.asarray(jax.random.key_data(key)), float(frame.missing)
    rngs = (np.random.default_rng([*seed, i]) for i in np.asarray(index))
    return np.array([rng.chisquare(freedom, draws) for rng in rngs], np.float32)


class _Context(NamedTuple):
    key: jax.Array
    origin: jax.Array
    sigmas: jax.Array
    limits: jax.Array | None = None
    table: shells.ProbabilityTable | None = None
    reach: jax.Array | None = None


class _Noised(NamedTuple):
    index: jax.Array  # [B]
    queries: jax.Array  # [B, d]
    noise: jax.Array  # [draws, B, r]
    own: jax.Array  # [draws, B], inner product of the noise with the query
    norms: jax.Array | None  # [draws, B], of the noise, squared


def _run(frame, sweep, index, unseen, chunk, **context):
    context = _Context(origin=frame.origin, reach=frame.reach, **context)
    run = _run_in_memory if isinstance(frame.points, Points) else _run_block
    return run(frame, sweep, np.asarray(index, np.int32), unseen, context, chunk=chunk)


def _run_block(frame, sweep, index, unseen, context, *, chunk):
    queries = index, *frame.query(index), unseen
    return frame.points.run(sweep, queries, context, chunk=chunk)


_run_in_memory = jax.jit(_run_block, static_argnames=("sweep", "chunk"))


def coverage_sweep(
    key: jax.Array,
    index: ArrayLike,
    frame: Frame,
    *,
    sigmas: ArrayLike,
    limits: ArrayLike,
    table: shells.ProbabilityTable,
    draws: int,
    chunk: int = CHUNK,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Return how often noised queries fall into a shell, and sampling-free bounds on that.

    Args:
      key: PRNG key; a query's noise depends only on the key and the query's index.
      index: int32 [B], the queries.
      frame: points and queries.
      sigmas: float32 [S].
      limits: float32 [2], the squared shell radii in units of sigma^2.
      table: the probability of a shell.
      draws: noise draws for each query.
      chunk: points per matrix product.

    Returns:
      Fraction of draws covered, lower and upper bound of the coverage: float32 [B, S] each.
    """
    sweep = _coverage_pass(draws, frame.rank)
    unseen = _unseen_norms(key, index, draws, frame)
    context = {"sigmas": sigmas, "limits": limits, "table": table}
    return _run(frame, sweep, index, unseen, chunk, key=key, **context)


@functools.cache
def _coverage_pass(draws: int, rank: int) -> Pass:
    def start(context, index, queries, coordinates, unseen):
        noise = _noise(context.key, index, draws, rank)
        norms = jnp.sum(noise**2, axis=2) + unseen.T
        return _Noised(index, queries, noise, jnp.sum(noise * coordinates, axis=2), norms)

    def empty(context, state):
        shape = (len(context.sigmas), len(state.index))
        return jnp.zeros((draws, *shape), bool), jnp.zeros(shape), jnp.zeros(shape)

    def update(context, state):
        sigmas, limits = context.sigmas, context.limits

        def add(partial, rows, _, valid):
            covered, lower, upper = partial
            points, coordinates = with_coordinates(rows, context.origin)
            squares = squared_distances(state.queries, points)

            def draw(noised):
                z, own, norm = noised
                inner = own[:, None] - inner_products(z, coordinates)

                def level(sigma):
                    radius2 = squares / sigma**2 + (2 / sigma) * inner + norm[:, None]
                    inside = (radius2 >= limits[0]) & (radius2 <= limits[1])
                    return (inside & valid).any(axis=1)

                return lax.map(level, sigmas)

            def certificate(sigma):
                probability = jnp.where(valid, context.table(squares / sigma**2), 0)
                return probability.max(axis=1), probability.sum(axis=1)

            hit = lax.map(draw, (state.noise, state.own, state.norms))
            largest, total = lax.map(certificate, sigmas)
            return covered | hit, jnp.maximum(lower, largest), upper + total

        return add

    def combine(partial, group):
        covered, lower, upper = partial
        covered = group.max(covered.astype(jnp.int32)) > 0
        return covered, group.max(lower), group.sum(upper)

    def result(context, state, partial, group):
        covered, lower, upper = partial
        return covered.mean(axis=0).T, lower.T, jnp.minimum(upper, 1).T

    return Pass(start, empty, update, combine, result)


class WeightSweep(NamedTuple):
    """The posterior of noised points.

    Attributes:
      largest: float32 [B, draws, S], the largest weight.
      own: float32 [B, draws, S], the weight of the point that was noised.
      entropy: float32 [B, draws, S], -sum_j w_j log w_j.
      effective_size: float32 [B, draws, S], 1 / sum_j w_j^2.
      copies: int32 [B], how many points equal the one that was noised, itself included.
      lower: float32 [B, C, S], lower bounds on the expected own weight, for several constants.
      upper: float32 [B, C', S], upper bounds.
    """

    largest: jax.Array
    own: jax.Array
    entropy: jax.Array
    effective_size: jax.Array
    copies: jax.Array
    lower: jax.Array
    upper: jax.Array


def weight_sweep(
    key: jax.Array,
    index: ArrayLike,
    frame: Frame,
    *,
    sigmas: ArrayLike,
    draws: int,
    chunk: int = CHUNK,
) -> WeightSweep:
    """Return what the posterior of noised points looks like, and bounds on their own weight.

    Args:
      key: PRNG key; a query's noise depends only on the key and the query's index.
      index: int32 [B], positions in `frame.points`.
      frame: the points, from `Frame.of_points`.
      sigmas: float32 [S].
      draws: noise draws for each query.
      chunk: points per matrix product.

    Returns:
      WeightSweep.
    """
    sweep = _weight_pass(draws, frame.rank, len(frame.points))
    return _run(frame, sweep, index, None, chunk, key=key, sigmas=sigmas)


class _Weights(NamedTuple):
    """Partial results of the weights: sums of exponentials, and the ingredients of the bounds."""

    sums: LogSums  # [draws, S, B], with the moment sum_j exp(l_j) l_j
    doubled: LogSums  # [draws, S, B], sum_j exp(2 l_j)
    copies: jax.Array  # int32 [B]
    terms: jax.Array  # [S, deltas, B], sums of the union bound's terms
    within: jax.Array  # int32 [radii, B], number of points within each radius
    nearest: jax.Array  # [B], distance to the nearest other point


@functools.cache
def _weight_pass(draws: int, rank: int, total: int) -> Pass:
    def start(context, index, queries, coordinates, unseen):
        noise = _noise(context.key, index, draws, rank)
        return _Noised(index, queries, noise, jnp.sum(noise * coordinates, axis=2), None)

    def empty(context, state):
        levels, count = len(context.sigmas), len(state.index)
        shape = (draws, levels, count)
        return _Weights(
            LogSums(jnp.full(shape, LOWEST), jnp.zeros(shape), jnp.zeros(shape)),
            LogSums(jnp.full(shape, LOWEST), jnp.zeros(shape), None),
            jnp.zeros(count, jnp.int32),
            jnp.zeros((levels, len(_DELTAS), count)),
            jnp.zeros((_RADII, count), jnp.int32),
            jnp.full(count, jnp.inf),
        )

    def update(context, state):
        sigmas, radii = context.sigmas, _radii(context)

        def add(partial, rows, point_index, valid):
            points, coordinates = with_coordinates(rows, context.origin)
            own_column = point_index == state.index[:, None]
            other = valid & ~own_column
            squares = squared_distances(state.queries, points, own_column)

            def draw(noised):
                z, own = noised
                # The noised point itself and its exact copies have logit exactly 0.
                inner = own[:, None] - inner_products(z, coordinates)
                inner = jnp.where(squares > 0, inner, 0)

                def level(sigma):
                    logit = -(squares / (2 * sigma) + inner) / sigma
                    logit = jnp.where(valid, logit, -jnp.inf)
                    peak = jnp.maximum(logit.max(axis=1), LOWEST)
                    terms = jnp.exp(logit - peak[:, None])
                    moment = jnp.where(terms > 0, terms * logit, 0).sum(axis=1)
                    sums = LogSums(peak, terms.sum(axis=1), moment)
                    doubled = jnp.maximum(2 * peak, LOWEST)
                    return sums, LogSums(doubled, (terms**2).sum(axis=1), None)

                return lax.map(level, sigmas)

            distances = jnp.sqrt(squares)

            def union(sigma):
                def failure(delta):
                    term = weight_bounds.union_bound_terms(distances, sigma, delta, total - 1)
                    return jnp.sum(term, axis=1, where=other)

                return lax.map(failure, jnp.asarray(_DELTAS, jnp.float32))

            sums, doubled = lax.map(draw, (state.noise, state.own))
            within = lax.map(
                lambda r: jnp.sum((distances <= r) & other, axis=1, dtype=jnp.int32), radii
            )
            nearest = jnp.min(distances, axis=1, where=other, initial=jnp.inf)
            return _Weights(
                sums=add_log_sums(partial.sums, sums),
                doubled=add_log_sums(partial.doubled, doubled),
                copies=partial.copies + jnp.sum((squares == 0) & valid, axis=1, dtype=jnp.int32),
                terms=partial.terms + lax.map(union, sigmas),
                within=partial.within + within,
                nearest=jnp.minimum(partial.nearest, nearest),
            )

        return add

    def combine(partial, group):
        def whole(sums):
            peak = group.max(sums.peak)
            scale = jnp.exp(sums.peak - peak)
            return LogSums(peak, *jax.tree.map(lambda x: group.sum(x * scale), sums[1:]))

        return _Weights(
            whole(partial.sums),
            whole(partial.doubled),
            group.sum(partial.copies),
            group.sum(partial.terms),
            group.sum(partial.within),
            -group.max(-partial.nearest),
        )

    def result(context, state, partial, group):
        peak, total, moment = partial.sums
        log_total = peak + jnp.log(total)
        log_doubled = partial.doubled.peak + jnp.log(partial.doubled.total)
        by_draw = (
            1 / total,
            jnp.exp(-peak) / total,
            jnp.maximum(log_total - moment / total, 0),
            jnp.exp(2 * log_total - log_doubled),
        )
        lower = (1 - np.float32(_DELTAS[:, None])) / (1 + partial.terms.transpose(2, 1, 0))
        upper = _upper_bounds(_radii(context), partial.within.T, partial.nearest, context.sigmas)
        by_draw = (values.transpose(2, 0, 1) for values in by_draw)
        return WeightSweep(*by_draw, partial.copies, lower, upper)

    return Pass(start, empty, update, combine, result)


def _radii(context):
    return context.reach * jnp.geomspace(1 / _REACH, 1, _RADII)


def _upper_bounds(radii, counts, nearest, sigmas):
    """(1 - delta) U + delta for all choices of delta and q: [B, choices, S]."""
    radii = jnp.concatenate([nearest[:, None], jnp.broadcast_to(radii, counts.shape)], axis=1)
    counts = jnp.pad(counts, ((0, 0), (1, 0)), constant_values=1)

    delta = np.repeat(_DELTAS, len(_TAILS))[:, None, None]  # float64, as 1 - q is small
    q = 1 - delta * np.tile(_TAILS, len(_DELTAS))[:, None, None]

    def level(sigma):
        bound = weight_bounds.own_weight_upper_bound(radii, counts, sigma, delta, q)
        return bound + np.float32(delta[..., 0]) * (1 - bound)

    return lax.map(level, sigmas).transpose(2, 1, 0)
