"""The passes over images that local denoisers make: sums over patches, weighted by a softmax.

For each pixel of a query y, a pass sums over training patches x the weights
exp(-||patch(y) - patch(x)||^2 / (2 sigma^2)) and the weighted center pixels, image by image, with a
running maximum. Memory is that of a few images' patches, whatever the number of images.
"""

from __future__ import annotations

import functools
import math

import jax
import jax.numpy as jnp
from jax import lax

from geomem.points.exact import inner_products, map_rows
from geomem.points.softmax_search import LOWEST, LogSums, add_log_sums
from geomem.points.visit import Pass

__all__ = ["all_positions", "images_at_once", "patches", "same_position", "same_subspace"]

_TILE = 1024  # patches of queries that are compared at once with _KEYS patches of images
_KEYS = 2048
_VALUES = 2**22  # of the distances of all pixels that are in memory at once (16 MB)
_HALF_BITS = 11  # a grid of this many bits keeps sums of products exact in float32
_RANGE = 2.0  # of centered pixels in [-1, 1]
_LOOSE = 3e-5  # bound on a product's rounding error in a logit that changes no mean by 1e-5


def patches(images: jax.Array, side: int, pad: jax.Array | float = 0.0) -> jax.Array:
    """Return the patch around each pixel: [N, H, W, C] -> [N, H, W, side * side * C].

    Outside the image, pixels are `pad`.
    """
    half = side // 2
    height, width = images.shape[1:3]
    widths = ((0, 0), (half, half), (half, half), (0, 0))
    padded = jnp.pad(images, widths, constant_values=pad)
    rows = jnp.concatenate([padded[:, k : k + height] for k in range(side)], axis=3)
    return jnp.concatenate([rows[:, :, k : k + width] for k in range(side)], axis=3)


def images_at_once(queries: int, shape: tuple[int, ...], everywhere: bool) -> int:
    """Return the images per step: of a pass over all positions, or over the same position."""
    pixels = shape[0] * shape[1]
    return max(1, _KEYS // pixels if everywhere else _VALUES // (min(queries, 1024) * pixels))


@functools.cache
def same_position(shape: tuple[int, int, int], side: int) -> Pass:
    """Return the pass that compares patches at the same position; images are [N, *shape]."""

    def squared_distances(_, y, images):
        squared = jnp.sum((y[:, None] - images) ** 2, axis=4)  # [B, n, H, W]
        return _box_sum(_box_sum(squared, side, 2), side, 3)

    return _per_position(shape, lambda _, y: y, squared_distances)


@functools.cache
def same_subspace(shape: tuple[int, int, int], side: int) -> Pass:
    """Return the pass that compares patches at the same position by their coordinates.

    Its context is a basis at each position, [H, W, side * side * C, rank].
    """

    def coordinates(basis, images):
        precision = lax.Precision.HIGHEST
        return jnp.einsum("nhwk,hwkr->nhwr", patches(images, side), basis, precision=precision)

    def squared_distances(basis, y, images):
        left, right = jnp.moveaxis(y, 3, 0), jnp.moveaxis(coordinates(basis, images), 3, 0)

        def add(total, pair):
            return total + (pair[0][:, None] - pair[1]) ** 2, None

        start = jnp.zeros((len(y), len(images), *y.shape[1:3]))
        return lax.scan(add, start, (left, right))[0]

    return _per_position(shape, coordinates, squared_distances)


def _per_position(shape, represent, squared_distances):
    """A pass whose `squared_distances` are [B, n, H, W], from queries as `represent` returns."""

    def start(context, y, sigma):
        return represent(context, y.reshape(-1, *shape)), 2 * sigma[:, None, None, None] ** 2

    def empty(_, state):
        return _no_sums(len(state[0]), shape)

    def update(context, state):
        def add(sums, rows, index, valid):
            images = rows.reshape(-1, *shape)
            logit = -squared_distances(context, state[0], images) / state[1]
            logit = jnp.where(valid[:, None, None], logit, -jnp.inf)
            peak = jnp.maximum(logit.max(axis=1), LOWEST)
            weight = jnp.exp(logit - peak[:, None])
            moment = jnp.einsum("bnhw,nhwc->bhwc", weight, images, precision=lax.Precision.HIGHEST)
            return add_log_sums(sums, LogSums(peak[..., None], weight.sum(1)[..., None], moment))

        return add

    return Pass(start, empty, update, _combine, _mean)


@functools.cache
def all_positions(shape: tuple[int, int, int], side: int, same_border: bool) -> Pass:
    """Return the pass that compares patches at all positions; images are [N, *shape].

    With `same_border`, only those at positions with the same relation to the border.
    """
    height, width, channels = shape
    pixels = height * width
    border = _border_relation(height, width, side // 2)

    def start(_, y, sigma):
        return y.reshape(-1, *shape), sigma

    def empty(_, state):
        return _no_sums(len(state[0]), shape)

    def update(center, state):
        mean = center.mean()

        def flat_patches(images):
            return patches(images - mean, side, -mean).reshape(-1, side * side * channels)

        def add(sums, rows, index, valid):
            images = rows.reshape(-1, *shape)
            keys = flat_patches(images)
            values = images.reshape(-1, channels)
            values = jnp.concatenate([jnp.ones_like(values[:, :1]), values], axis=1)
            usable = jnp.repeat(valid, pixels)

            def tile(y, sigma, sums):
                variance = jnp.repeat(sigma**2, pixels)[:, None]
                logit = _log_weights(flat_patches(y), keys, variance)
                allowed = usable
                if same_border:
                    ours, theirs = jnp.tile(border, len(y)), jnp.tile(border, len(images))
                    allowed = allowed & (ours[:, None] == theirs)
                logit = jnp.where(allowed, logit, -jnp.inf)
                peak = jnp.maximum(logit.max(axis=1, keepdims=True), LOWEST)
                new = inner_products(jnp.exp(logit - peak), values.T)
                new = LogSums(peak, new[:, :1], new[:, 1:])
                new = jax.tree.map(lambda a: a.reshape(len(y), height, width, -1), new)
                return add_log_sums(sums, new)

            return map_rows(tile, (*state, sums), max(1, _TILE // pixels))

        return add

    return Pass(start, empty, update, _combine, _mean)


def _log_weights(a, b, variance):
    """-||a_i - b_j||^2 / (2 variance_i) plus any function of i: [Q, K], [N, K], [Q, 1] -> [Q, N].

    A product's rounding error is about 1e-7 |a| |b|. If that is too much at the smallest variance,
    a and b are rounded to a grid on which all sums are exact, and the remainders, which are small,
    are taken into account by a second product.
    """
    dim = a.shape[1]
    step = 2.0 ** math.ceil(math.log2(_RANGE * math.sqrt(dim)) - _HALF_BITS)

    def by_product(a, b):
        return (inner_products(a, b) - jnp.sum(b**2, axis=1) / 2) / variance

    def by_parts(a, b):
        limit = jnp.floor(_RANGE / step) * step
        coarse_a, coarse_b = (jnp.clip(jnp.round(v / step) * step, -limit, limit) for v in (a, b))
        fine_a, fine_b = a - coarse_a, b - coarse_b
        norms = jnp.sum(coarse_a**2, axis=1)[:, None] + jnp.sum(coarse_b**2, axis=1)
        squared = norms - 2 * inner_products(coarse_a, coarse_b)
        cross = inner_products(
            jnp.concatenate([coarse_a, fine_a], axis=1), jnp.concatenate([fine_b, b], axis=1)
        )
        return -(squared + (jnp.sum((b + coarse_b) * fine_b, axis=1) - 2 * cross)) / (2 * variance)

    largest = jnp.sqrt(jnp.max(jnp.sum(a**2, axis=1)) * jnp.max(jnp.sum(b**2, axis=1)))
    loose = largest * 2.0**-24 <= _LOOSE * jnp.min(variance)
    return lax.cond(loose, by_product, by_parts, a, b)


def _border_relation(height, width, half):
    """A number for each pixel [H W]; equal numbers have patches that are cut off equally."""

    def relation(length):
        place = jnp.arange(length)
        before = jnp.maximum(half - place, 0)
        after = jnp.maximum(half - (length - 1 - place), 0)
        return before * (half + 1) + after

    return (relation(height)[:, None] * (half + 1) ** 2 + relation(width)).reshape(-1)


def _box_sum(x, side, axis):
    """Sums over `side` neighbors along an axis, zero outside; about log2(side) additions each."""
    length, half = x.shape[axis], side // 2
    widths = [(half, half) if k == axis else (0, 0) for k in range(x.ndim)]
    run, width, start, total = jnp.pad(x, widths), 1, 0, None
    while width <= side:  # `run` holds sums over `width` neighbors
        if side & width:
            part = lax.slice_in_dim(run, start, start + length, axis=axis)
            total = part if total is None else total + part
            start += width
        shorter = run.shape[axis] - width
        if shorter < 1:
            break
        run = lax.slice_in_dim(run, 0, shorter, axis=axis) + lax.slice_in_dim(
            run, width, None, axis=axis
        )
        width *= 2
    return total


def _no_sums(count, shape):
    pixels = (count, *shape[:2], 1)
    return LogSums(jnp.full(pixels, LOWEST), jnp.zeros(pixels), jnp.zeros((count, *shape)))


def _combine(sums, group):
    peak = group.max(sums.peak)
    scale = jnp.exp(sums.peak - peak)
    return LogSums(peak, group.sum(scale * sums.total), group.sum(scale * sums.moment))


def _mean(context, state, sums, group):
    mean = sums.moment / sums.total
    return mean.reshape(len(mean), -1)
