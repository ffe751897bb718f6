"""One pass over the points for a whole sigma grid: the kernels behind `curves`.

||x + sigma z - x_i||^2 = ||x - x_i||^2 + 2 sigma <z, x - x_i> + sigma^2 ||z||^2, so a draw z serves
every sigma, and all it needs is <z, x_i> for all i: one matrix product.

Fewer dimensions, same law. Where N + 1 < d, write z = (z', z'') with z' its part in the span of the
centred training points and of one held-out x, at most N + 1 dimensions. The inner products
<z, x - x_i> depend on z' alone, ||z||^2 = ||z'||^2 + ||z''||^2, and z'' is independent of z' with
||z''||^2 chi-square of d - N - 1 degrees of freedom. So orthonormal coordinates of the training
points (N numbers each), the held-out point's coordinates there and its distance to their span (one
number more) give, with standard normal z' and that chi-square, the same joint law of all
||x + sigma z - x_i||, for a third of the random numbers and products at N = 1,000, d = 3,072.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from geomem.geometry import bounds, shells
from geomem.geometry.distances import centre, fold_chunks, inner_products, squared_distances

__all__ = ["Frame", "coverage_sweep", "direct_frame", "reduced_frame", "weight_sweep"]

_DELTAS = np.float32([1e-3, 1e-2, 1e-1])  # failure probabilities of the own-weight bounds
_TAILS = (0.25, 0.5)  # (1 - q) / delta of the upper bound
_RADII = 128  # of the upper bound, a geometric grid over a factor _REACH
_REACH = 100.0


class Frame(NamedTuple):
    """Points to measure distances between, and coordinates to take inner products with noise in.

    Attributes:
      points: [N, d], the training points.
      queries: [M, d], the points that are noised.
      origin: [d]; where a field of coordinates is None they are the point less the origin.
      point_coordinates: [N, r] or None.
      query_coordinates: [M, r] or None.
      missing: float scalar, d - r: dimensions of the noise that only its norm sees.
    """

    points: jax.Array
    queries: jax.Array
    origin: jax.Array
    point_coordinates: jax.Array | None
    query_coordinates: jax.Array | None
    missing: jax.Array

    def of_points(self) -> Frame:
        """The frame whose queries are the points themselves."""
        return self._replace(queries=self.points, query_coordinates=self.point_coordinates)

    def coordinates(self, points: jax.Array, coordinates: jax.Array | None) -> jax.Array:
        """The coordinates of some `points`, computed now if they were not."""
        return points - self.origin if coordinates is None else coordinates

    def query(self, index: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Queries [B, d] and their coordinates [B, r]."""
        coordinates = self.query_coordinates
        rows = self.queries[index]
        return rows, self.coordinates(rows, None if coordinates is None else coordinates[index])


@jax.jit
def direct_frame(points: jax.Array, queries: jax.Array) -> Frame:
    """The frame of all d dimensions: points [N, d], queries [M, d]."""
    return Frame(points, queries, centre(points), None, None, jnp.float32(0))


@jax.jit
def reduced_frame(points: jax.Array, queries: jax.Array) -> Frame:
    """The frame of N + 1 dimensions (see the module's docstring), for N + 1 < d."""
    count, dim = points.shape
    origin = centre(points)
    basis, coordinates = jnp.linalg.qr((points - origin).T)
    inside = inner_products(queries - origin, basis.T)
    outside = queries - origin - inner_products(inside, basis)
    distance = jnp.linalg.norm(outside, axis=1, keepdims=True)
    return Frame(
        points,
        queries,
        origin,
        jnp.pad(coordinates.T, ((0, 0), (0, 1))),
        jnp.concatenate([inside, distance], axis=1),
        jnp.float32(dim - count - 1),
    )


def _noise(key, index, frame, draws):
    """Standard normal [draws, B, r], the same for (key, query) in any block, on any device."""
    dim = frame.origin.shape[0]
    if frame.point_coordinates is not None:
        dim = frame.point_coordinates.shape[1]

    def row(i):
        return jax.random.normal(jax.random.fold_in(key, i), (draws, dim))

    return jnp.swapaxes(jax.vmap(row)(index), 0, 1)


def _noise_and_norm(key, index, frame, draws):
    """Noise [draws, B, r] and its squared norm in all d dimensions, [draws, B]."""
    noise_key, norm_key = jax.random.split(key)
    noise = _noise(noise_key, index, frame, draws)
    norms = jnp.sum(noise**2, axis=2)
    if frame.point_coordinates is None:
        return noise, norms

    def unseen(i):
        return jax.random.chisquare(jax.random.fold_in(norm_key, i), frame.missing, (draws,))

    return noise, norms + jax.vmap(unseen)(index).T


@functools.partial(jax.jit, static_argnames="draws")
def coverage_sweep(
    key: jax.Array,
    index: jax.Array,
    frame: Frame,
    *,
    sigmas: jax.Array,
    limits: jax.Array,
    table: shells.ProbabilityTable,
    draws: int,
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

    Returns:
      Fraction of draws covered, lower and upper bound of the coverage: float32 [B, S] each.
    """
    queries, coordinates = frame.query(index)
    noise, norms = _noise_and_norm(key, index, frame, draws)

    def update(carry, rows, _, fresh):
        covered, lower, upper = carry
        points, point_coordinates = rows
        point_coordinates = frame.coordinates(points, point_coordinates)
        squares = squared_distances(queries, points)

        def draw(noise_and_norm):
            z, norm = noise_and_norm
            own = jnp.sum(z * coordinates, axis=1, keepdims=True)
            inner = own - inner_products(z, point_coordinates)

            def level(sigma):
                radius2 = squares / sigma**2 + (2 / sigma) * inner + norm[:, None]
                return ((radius2 >= limits[0]) & (radius2 <= limits[1])).any(axis=1)

            return lax.map(level, sigmas)

        def certificate(sigma):
            probability = jnp.where(fresh, table(squares / sigma**2), 0)
            return probability.max(axis=1), probability.sum(axis=1)

        hit = lax.map(draw, (noise, norms))
        largest, total = lax.map(certificate, sigmas)
        return covered | hit, jnp.maximum(lower, largest), upper + total

    shape = (len(sigmas), len(index))
    start = jnp.zeros((draws, *shape), bool), jnp.zeros(shape), jnp.zeros(shape)
    covered, lower, upper = fold_chunks((frame.points, frame.point_coordinates), start, update)
    return covered.mean(axis=0).T, lower.T, jnp.minimum(upper, 1).T


@functools.partial(jax.jit, static_argnames="draws")
def weight_sweep(
    key: jax.Array, index: jax.Array, frame: Frame, *, sigmas: jax.Array, draws: int
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    """Largest and own posterior weight of noised points, and bounds on the own weight's mean.

    Args:
      key: PRNG key; a query's noise depends on it and the query's index only.
      index: int32 [B], positions in `frame.points`, which are the frame's queries too.
      frame: points.
      sigmas: float32 [S].
      draws: noise draws for each query.

    Returns:
      Means over draws of the largest and the own weight, float32 [B, S] each; lower bounds
      [B, C, S] and upper bounds [B, C', S] of the expected own weight, for several constants each.
    """
    queries, coordinates = frame.query(index)
    others = len(frame.points) - 1
    noise = _noise(key, index, frame, draws)
    reach = 2 * jnp.sqrt(jnp.max(jnp.sum((frame.points - frame.origin) ** 2, axis=1)))
    radii = reach * jnp.geomspace(1 / _REACH, 1, _RADII)
    shape = (len(sigmas), len(index))

    def update(carry, rows, point_index, fresh):
        (peak, total), terms, counts, nearest = carry
        points, point_coordinates = rows
        point_coordinates = frame.coordinates(points, point_coordinates)
        squares = squared_distances(queries, points)
        own_column = point_index == index[:, None]
        other = fresh & ~own_column
        squares = jnp.where(own_column, 0, squares)

        def draw(z):
            own = jnp.sum(z * coordinates, axis=1, keepdims=True)
            # The noised point itself, and exact copies of it, have logit 0 exactly.
            inner = jnp.where(squares > 0, own - inner_products(z, point_coordinates), 0)

            def level(sigma):
                logit = -(squares / (2 * sigma) + inner) / sigma
                logit = jnp.where(fresh, logit, -jnp.inf)
                top = logit.max(axis=1)
                return top, jnp.exp(logit - top[:, None]).sum(axis=1)

            return lax.map(level, sigmas)

        distances = jnp.sqrt(squares)

        def union(sigma):
            def failure(delta):
                term = bounds.union_bound_terms(distances, sigma, delta, others)
                return jnp.sum(term, axis=1, where=other)

            return lax.map(failure, _DELTAS)

        top, sums = lax.map(draw, noise)
        new_peak = jnp.maximum(peak, top)
        total = total * jnp.exp(peak - new_peak) + sums * jnp.exp(top - new_peak)
        within = lax.map(lambda r: jnp.sum((distances <= r) & other, axis=1), radii)
        nearest = jnp.minimum(nearest, jnp.min(distances, axis=1, where=other, initial=jnp.inf))
        return (new_peak, total), terms + lax.map(union, sigmas), counts + within, nearest

    lowest = jnp.full((draws, *shape), jnp.finfo(jnp.float32).min)
    start = (
        (lowest, jnp.zeros((draws, *shape))),
        jnp.zeros((len(sigmas), len(_DELTAS), len(index))),
        jnp.zeros((_RADII, len(index)), jnp.int32),
        jnp.full(len(index), jnp.inf),
    )
    (peak, total), terms, counts, nearest = fold_chunks(
        (frame.points, frame.point_coordinates), start, update
    )
    lower = (1 - _DELTAS[:, None]) / (1 + terms.transpose(2, 1, 0))
    upper = _upper_bounds(radii, counts.T, nearest, sigmas)
    own = jnp.exp(-peak) / total
    return (1 / total).mean(axis=0).T, own.mean(axis=0).T, lower, upper


def _upper_bounds(radii, counts, nearest, sigmas):
    """(1 - delta) U + delta for all choices of delta and q: [B, choices, S]."""
    radii = jnp.concatenate([nearest[:, None], jnp.broadcast_to(radii, counts.shape)], axis=1)
    counts = jnp.pad(counts, ((0, 0), (1, 0)), constant_values=1)

    def choice(delta, tail):
        def level(sigma):
            return bounds.own_weight_upper_bound(radii, counts, sigma, delta, 1 - delta * tail)

        return (1 - delta) * lax.map(level, sigmas) + delta

    choices = [choice(float(delta), tail) for delta in _DELTAS for tail in _TAILS]
    return jnp.stack(choices).transpose(2, 0, 1)
