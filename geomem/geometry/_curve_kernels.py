"""One pass over the points for a whole sigma grid: the kernels behind `curves`.

||x + sigma z - x_i||^2 = ||x - x_i||^2 + 2 sigma <z, x - x_i> + sigma^2 ||z||^2, so a draw z serves
every sigma, and all it needs is <z, x_i> for all i: one matrix product, in a `Frame`'s coordinates.
"""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from geomem.geometry import shells, weight_bounds
from geomem.geometry._reduced_noise import Frame, with_coordinates
from geomem.points import passes
from geomem.points.blocks import CHUNK
from geomem.points.neighbours import squared_distances
from geomem.points.placement import Stream
from geomem.points.products import inner_products

__all__ = ["coverage_sweep", "weight_sweep"]

_DELTAS = np.float32([1e-3, 1e-2, 1e-1])  # failure probabilities of the own-weight bounds
_TAILS = (0.25, 0.5)  # (1 - q) / delta of the upper bound
_RADII = 128  # of the upper bound, a geometric grid over a factor _REACH
_REACH = 100.0


def _noise(key, index, draws, rank):
    """Standard normal [draws, B, r], the same for (key, query) in any block, on any device."""

    def row(i):
        return jax.random.normal(jax.random.fold_in(key, i), (draws, rank))

    return jnp.swapaxes(jax.vmap(row)(index), 0, 1)


def _noise_and_norm(key, index, draws, rank, missing):
    """Noise [draws, B, r] and its squared norm in all d dimensions, [draws, B]."""
    noise_key, norm_key = jax.random.split(key)
    noise = _noise(noise_key, index, draws, rank)
    norms = jnp.sum(noise**2, axis=2)
    if missing is None:
        return noise, norms

    def unseen(i):
        return jax.random.chisquare(jax.random.fold_in(norm_key, i), missing, (draws,))

    return noise, norms + jax.vmap(unseen)(index).T


class _Context(NamedTuple):
    key: jax.Array
    origin: jax.Array
    missing: jax.Array | None
    sigmas: jax.Array
    limits: jax.Array | None = None
    table: shells.ProbabilityTable | None = None
    reach: jax.Array | None = None


class _Noised(NamedTuple):
    index: jax.Array  # [B]
    queries: jax.Array  # [B, d]
    noise: jax.Array  # [draws, B, r]
    own: jax.Array  # [draws, B], inner product of the noise with the query
    norms: jax.Array  # [draws, B], of the noise, squared


def _run(frame, sweep, index, chunk, **context):
    missing = frame.missing if frame.reduced else None
    context = _Context(origin=frame.origin, missing=missing, reach=frame.reach, **context)
    run = _run_block if isinstance(frame.points, Stream) else _run_block_in_memory
    return run(frame, sweep, index, context, chunk=chunk)


def _run_block(frame, sweep, index, context, *, chunk):
    return passes.run(frame.points, sweep, (index, *frame.query(index)), context, chunk=chunk)


_run_block_in_memory = jax.jit(_run_block, static_argnames=("sweep", "chunk"))


def coverage_sweep(
    key: jax.Array,
    index: jax.Array,
    frame: Frame,
    *,
    sigmas: jax.Array,
    limits: jax.Array,
    table: shells.ProbabilityTable,
    draws: int,
    bounds: bool = True,
    chunk: int = CHUNK,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """How often noised queries fall into a shell, and bounds on it without sampling.

    Args:
      key: PRNG key; a query's noise depends on it and the query's index only.
      index: int32 [B], the queries.
      frame: points and queries.
      sigmas: float32 [S].
      limits: float32 [2], the squared shell radii in units of sigma^2.
      table: the shell's probability.
      draws: noise draws for each query.
      bounds: False skips the bounds, which are then not returned.
      chunk: points per matrix product.

    Returns:
      Fraction of draws covered, lower and upper bound of the coverage: float32 [B, S] each.
    """
    sweep = _Coverage(draws, frame.rank, bounds)
    return _run(frame, sweep, index, chunk, key=key, sigmas=sigmas, limits=limits, table=table)


@dataclasses.dataclass(frozen=True)
class _Coverage:
    """A `passes.Pass`."""

    draws: int
    rank: int
    bounds: bool

    def start(self, context, index, queries, coordinates):
        noise, norms = _noise_and_norm(context.key, index, self.draws, self.rank, context.missing)
        return _Noised(index, queries, noise, jnp.sum(noise * coordinates, axis=2), norms)

    def nothing(self, context, state):
        shape = (len(context.sigmas), len(state.index))
        return jnp.zeros((self.draws, *shape), bool), jnp.zeros(shape), jnp.zeros(shape)

    def update(self, context, state):
        sigmas, limits = context.sigmas, context.limits

        def add(partial, rows, _, fresh):
            covered, lower, upper = partial
            points, coordinates = with_coordinates(rows, context.origin)
            squares = squared_distances(state.queries, points)

            def draw(noised):
                z, own, norm = noised
                inner = own[:, None] - inner_products(z, coordinates)

                def level(sigma):
                    radius2 = squares / sigma**2 + (2 / sigma) * inner + norm[:, None]
                    inside = (radius2 >= limits[0]) & (radius2 <= limits[1])
                    return (inside & fresh).any(axis=1)

                return lax.map(level, sigmas)

            def certificate(sigma):
                probability = jnp.where(fresh, context.table(squares / sigma**2), 0)
                return probability.max(axis=1), probability.sum(axis=1)

            hit = lax.map(draw, (state.noise, state.own, state.norms))
            largest, total = lax.map(certificate, sigmas) if self.bounds else (0.0, 0.0)
            return covered | hit, jnp.maximum(lower, largest), upper + total

        return add

    def combine(self, partial, group):
        covered, lower, upper = partial
        covered = group.max(covered.astype(jnp.int32)) > 0
        return covered, group.max(lower), group.sum(upper)

    def result(self, context, state, partial, group):
        covered, lower, upper = partial
        covered = covered.mean(axis=0).T
        return (covered, lower.T, jnp.minimum(upper, 1).T) if self.bounds else (covered,)


def weight_sweep(
    key: jax.Array,
    index: jax.Array,
    frame: Frame,
    *,
    sigmas: jax.Array,
    draws: int,
    bounds: bool = True,
    chunk: int = CHUNK,
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    """Largest and own posterior weight of noised points, and bounds on the own weight's mean.

    Args:
      key: PRNG key; a query's noise depends on it and the query's index only.
      index: int32 [B], positions in `frame.points`.
      frame: points, as from `of_points`.
      sigmas: float32 [S].
      draws: noise draws for each query.
      bounds: False skips the bounds, which are then not returned.
      chunk: points per matrix product.

    Returns:
      Means over draws of the largest and the own weight, float32 [B, S] each; lower bounds
      [B, C, S] and upper bounds [B, C', S] of the expected own weight, for several constants each.
    """
    sweep = _Weight(draws, frame.rank, len(frame.points), bounds)
    return _run(frame, sweep, index, chunk, key=key, sigmas=sigmas)


class _Neighbours(NamedTuple):
    """Partial results of the weight's sweep: sums of exponentials, and what the bounds are of."""

    peak: jax.Array  # [draws, S, B]
    total: jax.Array  # [draws, S, B], sum of exp(logit - peak)
    terms: jax.Array  # [S, deltas, B]
    within: jax.Array  # int32 [radii, B], how many points
    nearest: jax.Array  # [B]


@dataclasses.dataclass(frozen=True)
class _Weight:
    """A `passes.Pass`."""

    draws: int
    rank: int
    total: int
    bounds: bool

    def start(self, context, index, queries, coordinates):
        noise = _noise(context.key, index, self.draws, self.rank)
        return _Noised(index, queries, noise, jnp.sum(noise * coordinates, axis=2), None)

    def nothing(self, context, state):
        levels, count = len(context.sigmas), len(state.index)
        return _Neighbours(
            jnp.full((self.draws, levels, count), jnp.finfo(jnp.float32).min),
            jnp.zeros((self.draws, levels, count)),
            jnp.zeros((levels, len(_DELTAS), count)),
            jnp.zeros((_RADII, count), jnp.int32),
            jnp.full(count, jnp.inf),
        )

    def update(self, context, state):
        sigmas, radii = context.sigmas, _radii(context)

        def add(partial, rows, point_index, fresh):
            points, coordinates = with_coordinates(rows, context.origin)
            squares = squared_distances(state.queries, points)
            own_column = point_index == state.index[:, None]
            other = fresh & ~own_column
            squares = jnp.where(own_column, 0, squares)

            def draw(noised):
                z, own = noised
                # The noised point itself, and exact copies of it, have logit 0 exactly.
                inner = own[:, None] - inner_products(z, coordinates)
                inner = jnp.where(squares > 0, inner, 0)

                def level(sigma):
                    logit = -(squares / (2 * sigma) + inner) / sigma
                    logit = jnp.where(fresh, logit, -jnp.inf)
                    top = jnp.maximum(logit.max(axis=1), jnp.finfo(jnp.float32).min)
                    return top, jnp.exp(logit - top[:, None]).sum(axis=1)

                return lax.map(level, sigmas)

            distances = jnp.sqrt(squares)

            def union(sigma):
                def failure(delta):
                    term = weight_bounds.union_bound_terms(distances, sigma, delta, self.total - 1)
                    return jnp.sum(term, axis=1, where=other)

                return lax.map(failure, _DELTAS)

            top, total = lax.map(draw, (state.noise, state.own))
            found = partial._replace(peak=top, total=total)
            if self.bounds:
                found = found._replace(
                    terms=lax.map(union, sigmas),
                    within=lax.map(lambda r: jnp.sum((distances <= r) & other, axis=1), radii),
                    nearest=jnp.min(distances, axis=1, where=other, initial=jnp.inf),
                )
            return _together(partial, found)

        return add

    def combine(self, partial, group):
        peak = group.max(partial.peak)
        return _Neighbours(
            peak,
            group.sum(partial.total * jnp.exp(partial.peak - peak)),
            group.sum(partial.terms),
            group.sum(partial.within),
            -group.max(-partial.nearest),
        )

    def result(self, context, state, partial, group):
        own = (jnp.exp(-partial.peak) / partial.total).mean(axis=0).T
        largest = (1 / partial.total).mean(axis=0).T
        if not self.bounds:
            return largest, own
        lower = (1 - _DELTAS[:, None]) / (1 + partial.terms.transpose(2, 1, 0))
        upper = _upper_bounds(_radii(context), partial.within.T, partial.nearest, context.sigmas)
        return largest, own, lower, upper


def _together(a, b):
    peak = jnp.maximum(a.peak, b.peak)
    return _Neighbours(
        peak,
        a.total * jnp.exp(a.peak - peak) + b.total * jnp.exp(b.peak - peak),
        a.terms + b.terms,
        a.within + b.within,
        jnp.minimum(a.nearest, b.nearest),
    )


def _radii(context):
    return context.reach * jnp.geomspace(1 / _REACH, 1, _RADII)


def _upper_bounds(radii, counts, nearest, sigmas):
    """(1 - delta) U + delta for all choices of delta and q: [B, choices, S]."""
    radii = jnp.concatenate([nearest[:, None], jnp.broadcast_to(radii, counts.shape)], axis=1)
    counts = jnp.pad(counts, ((0, 0), (1, 0)), constant_values=1)

    def choice(delta, tail):
        def level(sigma):
            return weight_bounds.own_weight_upper_bound(
                radii, counts, sigma, delta, 1 - delta * tail
            )

        return (1 - delta) * lax.map(level, sigmas) + delta

    choices = [choice(float(delta), tail) for delta in _DELTAS for tail in _TAILS]
    return jnp.stack(choices).transpose(2, 0, 1)
