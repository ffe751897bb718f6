"""The passes over images that local denoisers make: sums over patches, weighted by a softmax.

For each pixel of a query y, a pass sums over training patches x the weights
exp(-||patch(y) - patch(x)||^2 / (2 sigma^2)) and the weighted center pixels, image by image, with a
running maximum. Memory is that of a few images' patches, whatever the number of images.

Distances are not small where no training patch is near, and dividing them by 2 sigma^2 magnifies
their rounding errors. So pixels are split into a part on a coarse grid, whose squared distances are
exact in float32, and a small remainder. The exact parts are subtracted before anything is rounded.
"""

from __future__ import annotations

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from geomem.points.exact import inner_products, map_rows
from geomem.points.softmax_search import LOWEST
from geomem.points.visit import Pass

__all__ = ["all_positions", "images_at_once", "patches", "same_position", "same_subspace"]

_TILE = 1024  # patches of queries that are compared at once with _KEYS patches of images
_KEYS = 2048
_VALUES = 2**22  # of the distances of all pixels that are in memory at once (16 MB)
_HALF_BITS = 11  # squared distances on a grid of this many bits are exact in float32
_RANGE = 2.0  # of centered pixels in [-1, 1]
_LOOSE = 3e-5  # bound on a product's rounding error in a logit that changes no mean by 1e-5


class _Sums(NamedTuple):
    """Sums of exp(-(s_j + r_j) / (2 sigma^2)) over patches j, where s_j is exact and r_j small.

    Attributes:
      offset: [..., 1], s of a patch that is about the nearest.
      peak: [..., 1], the largest of -((s_j - offset) + r_j) / (2 sigma^2); `total` and `moment` are
        relative to it.
      total: [..., 1].
      moment: [..., C], the same sum, weighted with the center pixels.
    """

    offset: jax.Array
    peak: jax.Array
    total: jax.Array
    moment: jax.Array


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
    split = functools.partial(_split, dim=side**2 * shape[2])

    def represent(center, y):
        return split(y - center.mean())

    def squared_distances(center, y, images):
        (coarse_y, fine_y), (coarse, fine) = y, split(images - center.mean())
        apart, rest = coarse_y[:, None] - coarse, fine_y[:, None] - fine
        both = jnp.stack([apart**2, (2 * apart + rest) * rest])
        return _box_sum(_box_sum(both.sum(axis=5), side, 3), side, 4)

    return _per_position(shape, represent, squared_distances)


@functools.cache
def same_subspace(shape: tuple[int, int, int], side: int) -> Pass:
    """Return the pass that compares patches at the same position by their coordinates.

    Its context is a basis at each position, [H, W, side * side * C, rank].
    """

    def coordinates(basis, images):
        precision = lax.Precision.HIGHEST
        return jnp.einsum("nhwk,hwkr->rnhw", patches(images, side), basis, precision=precision)

    def represent(basis, y):
        return jnp.moveaxis(coordinates(basis, y), 0, 1)

    def squared_distances(basis, y, images):
        def add(total, pair):
            return total + (pair[0][:, None] - pair[1]) ** 2, None

        start = jnp.zeros((len(y), len(images), *shape[:2]))
        squared = lax.scan(add, start, (jnp.moveaxis(y, 1, 0), coordinates(basis, images)))[0]
        return squared, jnp.zeros_like(squared)

    return _per_position(shape, represent, squared_distances)


def _per_position(shape, represent, squared_distances):
    """A pass over images; distances are two summands [B, n, H, W], the first of them exact."""

    def start(context, y, sigma):
        return represent(context, y.reshape(-1, *shape)), 2 * sigma[:, None, None, None] ** 2

    def empty(_, state):
        return _no_sums(len(state[1]), shape)

    def update(context, state):
        y, spread = state

        def add(sums, rows, index, valid):
            images = rows.reshape(-1, *shape)
            exact, rest = squared_distances(context, y, images)
            valid = valid[:, None, None]
            offset = _least(exact, valid, axis=1)
            logit = jnp.where(valid, -((exact - offset) + rest) / spread, -jnp.inf)
            peak = jnp.maximum(logit.max(axis=1, keepdims=True), LOWEST)
            weight = jnp.exp(logit - peak)
            moment = jnp.einsum("bnhw,nhwc->bhwc", weight, images, precision=lax.Precision.HIGHEST)
            scalars = (a[:, 0, :, :, None] for a in (offset, peak, weight.sum(1, keepdims=True)))
            return _add(sums, _Sums(*scalars, moment), spread)  # pyright: ignore

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
        return y.reshape(-1, *shape), 2 * sigma[:, None, None, None] ** 2

    def empty(_, state):
        return _no_sums(len(state[1]), shape)

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

            def tile(y, spread, sums):
                allowed = usable
                if same_border:
                    ours, theirs = jnp.tile(border, len(y)), jnp.tile(border, len(images))
                    allowed = allowed & (ours[:, None] == theirs)
                spreads = jnp.repeat(spread.reshape(-1, 1), pixels, axis=0)
                offset, logit = _relative_logits(flat_patches(y), keys, spreads, allowed)
                logit = jnp.where(allowed, logit, -jnp.inf)
                peak = jnp.maximum(logit.max(axis=1, keepdims=True), LOWEST)
                new = inner_products(jnp.exp(logit - peak), values.T)
                new = _Sums(offset, peak, new[:, :1], new[:, 1:])
                new = jax.tree.map(lambda a: a.reshape(len(y), height, width, -1), new)
                return _add(sums, new, spread)

            return map_rows(tile, (*state, sums), max(1, _TILE // pixels))

        return add

    return Pass(start, empty, update, _combine, _mean)


def _relative_logits(a, b, spread, allowed):
    """(offset, logits -(||a_i - b_j||^2 - f(i) - offset_i) / spread_i): [Q, 1], [Q, N].

    The function f depends only on the batch of queries. If the rounding error of a product, about
    1e-7 |a| |b| / sigma^2, does not matter, the product alone decides, and the offset is 0.
    """
    dim = a.shape[1]

    def by_product(a, b):
        logit = (inner_products(a, b) - jnp.sum(b**2, axis=1) / 2) / (spread / 2)
        return jnp.zeros_like(spread), logit

    def by_parts(a, b):
        (coarse_a, fine_a), (coarse_b, fine_b) = _split(a, dim), _split(b, dim)
        norms = jnp.sum(coarse_a**2, axis=1)[:, None] + jnp.sum(coarse_b**2, axis=1)
        exact = norms - 2 * inner_products(coarse_a, coarse_b)
        offset = _least(exact, allowed, axis=1)
        left = jnp.concatenate([coarse_a, fine_a], axis=1)
        cross = inner_products(left, jnp.concatenate([fine_b, b], axis=1))
        rest = jnp.sum((b + coarse_b) * fine_b, axis=1) - 2 * cross
        return offset, -((exact - offset) + rest) / spread

    # The bound must not depend on b: all b are compared in the same way.
    size = jnp.sqrt(jnp.max(jnp.sum(a**2, axis=1)) * dim)
    return lax.cond(size * 2.0**-24 <= _LOOSE * jnp.min(spread) / 2, by_product, by_parts, a, b)


def _split(x, dim):
    """x as a part on a grid, where squared distances of `dim` values are exact, and the rest."""
    step = 2.0 ** math.ceil(math.log2(_RANGE * math.sqrt(dim)) - _HALF_BITS)
    limit = math.floor(_RANGE / step) * step
    coarse = jnp.clip(jnp.round(x / step) * step, -limit, limit)
    return coarse, x - coarse


def _least(x, allowed, axis):
    return jnp.min(x, axis=axis, keepdims=True, where=allowed, initial=-LOWEST)


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
    zeros = jnp.zeros((count, *shape[:2], 1))
    return _Sums(zeros, zeros + LOWEST, zeros, jnp.zeros((count, *shape)))


def _add(a, b, spread):
    """The sums over the patches of `a` and of `b`."""
    ahead = (a.peak - b.peak) - (a.offset - b.offset) / spread
    left, right = jnp.exp(jnp.minimum(ahead, 0)), jnp.exp(jnp.minimum(-ahead, 0))
    offset, peak = (jnp.where(ahead >= 0, x, y) for x, y in zip(a[:2], b[:2], strict=True))
    total, moment = (left * x + right * y for x, y in zip(a[2:], b[2:], strict=True))
    return _Sums(offset, peak, total, moment)


def _combine(sums, group):
    return sums  # `_mean` adds those of the devices, because it knows sigma


def _mean(context, state, sums, group):
    # The reference is the device with the largest term, up to rounding.
    level = sums.peak - sums.offset / state[1]
    first = level == group.max(level)
    offset, peak = (group.max(jnp.where(first, x, LOWEST)) for x in sums[:2])
    scale = jnp.exp((sums.peak - peak) - (sums.offset - offset) / state[1])
    mean = group.sum(scale * sums.moment) / group.sum(scale * sums.total)
    return mean.reshape(len(mean), -1)
