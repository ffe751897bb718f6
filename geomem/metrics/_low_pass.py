"""Lower bounds on aligned distances from a few low frequencies, and products that rank candidates.

A window of an image is described by its coefficients in K orthonormal cosines and by the norm of
what they leave. This map never increases a distance, ||f(v) - f(x)|| <= ||v - x||, also if v is
multiplied by a positive factor, and it costs K + 1 instead of all products. Windows are the centers
of the transformed samples, which lie inside every shifted overlap, so the bounds hold for each
transform. Photographs differ mostly in low frequencies, so K = 64 rules out almost all images.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import scipy.fft
from jax import lax

from geomem.points.exact import Candidates, inner_products, map_rows, merge_candidates

__all__ = ["ROUNDING", "compare", "cosines", "screen", "window_features"]

# Margin for float32 sums, relative to the squared norms: ten times the error of such sums.
ROUNDING = 2.0**-18
_SUBSET = 2048  # images whose energies order the cosines
_SCREENED = 2**22  # products computed at once
_CANVAS = 2**24  # values of transformed samples at once


def cosines(images, margin: int, count: int, *, constant: bool) -> jax.Array:
    """Return the `count` cosines of most energy on windows of the images, [D, K], K <= count.

    Args:
      images: [N, H, W, C].
      margin: pixels between the windows and the borders.
      count: K; all cosines if there are fewer.
      constant: whether to include the constant one.
    """
    window = np.asarray(images[:_SUBSET], np.float32)
    window = window[:, margin : window.shape[1] - margin, margin : window.shape[2] - margin]
    shape = window.shape[1:]
    cosines = np.asarray(scipy.fft.dctn(window, axes=(1, 2, 3), norm="ortho"))
    energy = (cosines**2).mean(axis=0).ravel()
    energy[0] = np.inf if constant else -np.inf
    chosen = np.argsort(-energy, kind="stable")[: min(count, energy.size - (not constant))]
    y, x, c = np.unravel_index(chosen, shape)
    rows, columns, channels = (
        np.asarray(scipy.fft.idct(np.eye(side), axis=0, norm="ortho"), np.float32) for side in shape
    )
    vectors = rows[:, None, None, y] * columns[None, :, None, x] * channels[None, None, :, c]
    return jnp.asarray(vectors.reshape(-1, len(chosen)))


def _features(windows, vectors, constant):
    """Coefficients and the norm of the rest: [..., D] -> [..., K + 1]."""
    rows = windows.reshape(-1, windows.shape[-1])
    rows = rows if constant else rows - rows.mean(axis=1, keepdims=True)
    low = jnp.matmul(rows, vectors, precision=lax.Precision.HIGHEST)
    rest = rows - jnp.matmul(low, vectors.T, precision=lax.Precision.HIGHEST)
    features = jnp.concatenate([low, jnp.linalg.norm(rest, axis=1, keepdims=True)], axis=1)
    return features.reshape(*windows.shape[:-1], -1)


@functools.partial(jax.jit, static_argnames=("margin", "shift", "constant"))
def window_features(images, center, vectors, *, margin: int, shift: int, constant: bool):
    """Return the features of all shifted windows of images [N, H, W, C]: [S, N, K + 1]."""
    images = images.astype(jnp.float32) - center
    count, height, width, _ = images.shape
    steps = range(-shift, shift + 1)

    def at(down, right):
        rows = slice(margin + down, height - margin + down)
        return images[:, rows, margin + right : width - margin + right].reshape(count, -1)

    return jnp.stack([_features(at(y, x), vectors, constant) for y in steps for x in steps])


@functools.partial(jax.jit, static_argnames=("gain",))
def screen(candidates, samples, windows, scale, first, own, excluded, *, gain: float):
    """Update the images of the least bounds, as scores -d^2.

    Args:
      candidates: Candidates [Q, M].
      samples: features [Q, V, K + 1] of the transformed samples.
      windows: features [S, N, K + 1] of N training images.
      scale: [V, S], from the window's sum to the distance.
      first: position of the first of these images in the training set.
      own, excluded: their groups [N], -1 for padding, and the groups that samples skip [Q].
      gain: as in `Alignment`.
    """
    shifts, count, _ = windows.shape
    flat = windows.reshape(shifts * count, -1)
    squares = jnp.sum(windows**2, axis=2)

    def block(score, index, samples, excluded):
        products = inner_products(samples.reshape(-1, samples.shape[2]), flat)
        products = products.reshape(*samples.shape[:2], shifts, count)
        norms = jnp.sum(samples**2, axis=2)[:, :, None, None]
        if gain > 1:
            a = jnp.clip(products / jnp.maximum(norms, 1e-30), 1 / gain, gain)
            bound = squares - a * (2 * products - a * norms)
        else:
            bound = squares + norms - 2 * products
        bound = (bound * scale[:, :, None]).min(axis=(1, 2))
        skip = (own == -1) | (own == excluded[:, None])
        new = jnp.where(skip, -jnp.inf, -bound)
        return merge_candidates(Candidates(score, index), new, first + jnp.arange(count))

    rows = (*candidates, samples, excluded)
    return map_rows(block, rows, max(1, _SCREENED // (samples.shape[1] * shifts * count)))


@functools.partial(jax.jit, static_argnames=("crop", "shift", "gain"))
def compare(views, images, center, *, crop: int, shift: int, gain: float):
    """Return squared distances by float32 products, and their margins of error.

    Args:
      views: transformed samples [B, V, H, W, C], crops fastest, with zeros outside of a crop.
      images: M candidates of each sample, [B, M, H, W, C].
      center: [C], subtracted from both.
      crop, shift, gain: as in `Alignment`.

    Returns:
      Squared distances [B, M, V, S, S], and margins [B].
    """
    height, width, channels = images.shape[2:]
    steps = 2 * shift + 1
    rows, columns = (_covered(side, crop, shift) for side in (height, width))  # [crops, S, side]
    size = jnp.einsum("kih,kjw->kij", rows, columns) * channels
    flips = views.shape[1] // (crop + 1)
    tiled = jnp.tile(size, (flips, 1, 1))

    def block(views, images):
        count = len(views)
        inside = jnp.einsum("kh,kw->khw", rows[:, shift], columns[:, shift])
        inside = jnp.tile(inside, (flips, 1, 1))[None, :, :, :, None]
        views, images = (views - center) * inside, images - center
        padding = ((0, 0), (0, 0), (shift, shift), (shift, shift), (0, 0))
        padded = jnp.pad(views, padding)

        def at_row(i):
            row = lax.dynamic_slice_in_dim(padded, 2 * shift - i, height, axis=2)
            moved = [row[:, :, :, 2 * shift - j : 2 * shift - j + width] for j in range(steps)]
            moved = jnp.stack(moved, axis=2).reshape(count, -1, height * width * channels)
            products = jnp.einsum(
                "btd,bmd->bmt",
                moved,
                images.reshape(count, images.shape[1], -1),
                precision=lax.Precision.HIGHEST,
            )
            return products, jnp.sum(moved**2, axis=2), jnp.sum(moved, axis=2)

        products, norms, sums = lax.map(at_row, jnp.arange(steps))

        def arranged(a):  # [S, B, ..., V S] -> [B, ..., V, S, S]
            a = jnp.moveaxis(a, 0, -2).reshape(*a.shape[1:-1], steps, -1, steps)
            return jnp.moveaxis(a, -3, -2)

        products, norms, sums = (arranged(a) for a in (products, norms, sums))
        norms, sums = norms[:, None], sums[:, None]

        def covered(a):  # sums over the overlaps, [B, M, V, S, S]
            a = jnp.einsum("kih,bmhw,kjw->bmkij", rows, a, columns, precision=lax.Precision.HIGHEST)
            return jnp.tile(a, (1, 1, flips, 1, 1))

        squares = covered(jnp.sum(images**2, axis=4))
        margin = ROUNDING * gain**2 * (norms.max((1, 2, 3, 4)) + squares.max((1, 2, 3, 4)))
        if gain > 1:
            total = covered(jnp.sum(images, axis=4))
            products = products - sums * total / tiled
            norms, squares = norms - sums**2 / tiled, squares - total**2 / tiled
            a = jnp.clip(products / jnp.maximum(norms, 1e-30), 1 / gain, gain)
            value = squares - a * (2 * products - a * norms)
        else:
            value = squares + norms - 2 * products
        return value * (height * width * channels / tiled), margin * (
            height * width * channels / tiled.min()
        )

    per = views.shape[1] * steps * height * width * channels
    return map_rows(block, (views, images), max(1, _CANVAS // per))


def _covered(side, crop, shift):
    """Which pixels of the image the sample covers, 0 or 1: [crops, S, side]."""
    start = np.arange(crop + 1)[:, None, None] + np.arange(-shift, shift + 1)[:, None]
    stop = start + side - 2 * np.arange(crop + 1)[:, None, None]
    pixel = np.arange(side)
    return jnp.asarray((pixel >= start) & (pixel < stop), jnp.float32)
