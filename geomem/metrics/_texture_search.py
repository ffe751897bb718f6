"""Search for images with the same texture: coarse candidates, then the best transform of each pair.

Textures and their correlation are defined in `metrics._texture`. Here they are float32 vectors of
norm 1, so that products are correlations.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import tqdm
from jax import lax

from geomem.data import to_float
from geomem.metrics._texture import Fit, cosines, fit
from geomem.points.exact import Candidates, inner_products, map_rows, merge_candidates

__all__ = ["Agreement", "Textures", "align", "candidates", "coarse_step"]

_CHUNKS = 512, 4096  # images at once, for few and for many images; so few shapes are compiled
_SCREENED = 2**20  # correlations of a block
_PARTNERS = 8  # images that are compared with one image's windows at once
_VALUES = 2**23  # values of windows at once


class Textures:
    """Images whose textures are compared.

    Args:
      images: [N, H, W, C], as stored.

    Attributes:
      images, model: the images and their `Fit`.
      even, odd: the textures of all centers, [N, E] and [N, O].
      blank: whether an image has no texture beyond rounding, [N].
    """

    def __init__(self, images: np.ndarray):
        self.images, self.model = images, fit(images)
        size = _chunk(len(images))
        starts = range(0, len(images), size)
        places = [np.arange(start, start + size) % len(images) for start in starts]
        parts = [describe(images[place], self.model, 0, [0], [0]) for place in places]
        self.even, self.odd = (
            np.concatenate([part[i][:, 0] for part in parts])[: len(images)] for i in (0, 1)
        )
        self.blank = ~self.even.any(axis=1) & ~self.odd.any(axis=1)


def describe(
    images: np.ndarray, model: Fit, crop: int, down: Sequence[int], right: Sequence[int]
) -> list[np.ndarray]:
    """Return textures of norm 1 of windows at all pairs of shifts.

    Returns:
      The parts of even and of odd columns, [N, windows, E] and [N, windows, O].
    """
    scale = 1 - 2 * crop / min(model.shape)
    rows, columns = (
        np.array([cosines(side, model.margin, scale, shift) for shift in shifts], np.float32)
        for side, shifts in zip(model.shape, (down, right), strict=True)
    )
    images = to_float(np.asarray(images))
    found = _describe(images, rows, columns, model.channels, model.weight, model.flat)
    return [np.asarray(part) for part in found]


@jax.jit
def _describe(images, rows, columns, channels, weight, flat):
    precision = lax.Precision.HIGHEST
    found = jnp.einsum("nhwc,dc->nhwd", images.astype(jnp.float32), channels, precision=precision)
    found = jnp.einsum("sah,nhwd->nsawd", rows, found, precision=precision)
    found = weight * jnp.einsum("tbw,nsawd->nstabd", columns, found, precision=precision)
    found = found.reshape(len(images), -1, *weight.shape)
    norm = jnp.sqrt(jnp.sum(found**2, axis=(2, 3, 4), keepdims=True))
    found = jnp.where(norm > flat, found / jnp.maximum(norm, 1e-30), 0)
    # A mirrored window has the same even and the opposite odd cosines.
    return [found[:, :, :, i::2].reshape(*found.shape[:2], -1) for i in (0, 1)]


def candidates(
    textures: Textures,
    rows: np.ndarray,
    columns: np.ndarray,
    count: int,
    progress: bool = False,
) -> tuple[np.ndarray, np.ndarray]:
    """Return pairs (x, y) of positions: for each x of `rows`, the `count` likeliest of `columns`.

    The coarse textures of centers y are compared with those of some windows of x.
    """
    model, even, odd = textures.model, textures.even, textures.odd
    step = coarse_step(model)
    steps = sorted({-step, 0, step})
    parts = model.coarse[:, ::2].ravel(), model.coarse[:, 1::2].ravel()
    count, found = min(count, len(columns)), []
    size, width = _chunk(len(rows)), _chunk(len(columns))
    starts = range(0, len(rows), size)
    for first in tqdm.tqdm(starts, "copies", disable=not progress or len(starts) < 3):
        own = np.resize(rows[first : first + size], size)
        images = textures.images[own]
        # Half of the shifts are enough, because the others come with the pair (y, x).
        views = [
            describe(images, model, 0, sorted({0, step}), steps),
            describe(images, model, step, [0], [0]),
        ]
        views = [np.concatenate([view[i] for view in views], axis=1)[..., parts[i]] for i in (0, 1)]
        best = Candidates.none(size, count)
        for start in range(0, len(columns), width):
            other = np.full(width, -1)
            other[: len(columns) - start] = columns[start : start + width]
            centers = _normalized([even[other][:, parts[0]], odd[other][:, parts[1]]])
            best = _screen(best, *_normalized(views), own, *centers, other, start)
        score, index = (np.asarray(a)[: len(rows) - first] for a in best)
        known = score > 0
        found.append((np.repeat(rows[first : first + size], known.sum(1)), columns[index[known]]))
    x, y = (np.concatenate(part) for part in zip(*found, strict=True))
    return x, y


def _chunk(count):
    return _CHUNKS[count > _CHUNKS[0]]


def coarse_step(model: Fit) -> int:
    """Return the shift in pixels, and the crop, between neighbors on the coarse grid."""
    return round(0.75 * model.margin)


def _normalized(parts):
    norm = np.sqrt(sum((part**2).sum(axis=-1, keepdims=True) for part in parts))
    return [np.divide(part, norm, out=np.zeros_like(part), where=norm > 0) for part in parts]


@jax.jit
def _screen(best, even, odd, own, other_even, other_odd, others, start):
    """Update the candidates of windows [Q, V, E] with the centers [P, E]."""
    count = len(others)

    def block(score, index, even, odd, own):
        found = -jnp.inf
        for v in range(even.shape[1]):
            mirrored = jnp.abs(inner_products(odd[:, v], other_odd))
            found = jnp.maximum(found, inner_products(even[:, v], other_even) + mirrored)
        found = jnp.where((own[:, None] == others) | (others < 0), -jnp.inf, found)
        return merge_candidates(Candidates(score, index), found, start + jnp.arange(count))

    return map_rows(block, (*best, even, odd, own), max(1, _SCREENED // count))


class Agreement(NamedTuple):
    """The best agreement of pairs (x, y) for each crop.

    Attributes:
      value: correlations [P, crops].
      flip, down, right: of the best transform, [P, crops].
    """

    value: np.ndarray
    flip: np.ndarray
    down: np.ndarray
    right: np.ndarray


def align(textures: Textures, x: np.ndarray, y: np.ndarray, crops: Sequence[int]) -> Agreement:
    """Return the best agreement of windows of the images `x` [P] with the centers of `y` [P]."""
    model = textures.model
    steps = range(-model.margin, model.margin + 1)
    shifts = np.array([(down, right) for down in steps for right in steps])
    # Each row compares one image with up to _PARTNERS others.
    order = np.argsort(x, kind="stable")
    image, first, size = np.unique(x[order], return_index=True, return_counts=True)
    place = np.arange(len(x)) - np.repeat(first, size)
    lines = np.cumsum([0, *-(-size // _PARTNERS)])
    line = np.repeat(lines[:-1], size) + place // _PARTNERS
    owner = np.repeat(image, -(-size // _PARTNERS))
    partner = np.zeros((len(owner), _PARTNERS), int)
    partner[line, place % _PARTNERS] = y[order]
    values = len(shifts) * (textures.even.shape[1] + textures.odd.shape[1])
    block = min(128, max(1, _VALUES // values))
    value = np.zeros((len(owner), _PARTNERS, len(crops)), np.float32)
    window, flip = np.zeros(value.shape, int), np.zeros(value.shape, bool)
    for start in range(0, len(owner), block):
        at = np.arange(start, start + block) % len(owner)
        others = textures.even[partner[at]], textures.odd[partner[at]]
        for i, crop in enumerate(crops):
            views = describe(textures.images[owner[at]], model, crop, steps, steps)
            found = _best(*views, *others)
            stop = min(block, len(owner) - start)
            for full, part in zip((value, window, flip), found, strict=True):
                full[start : start + block, :, i] = part[:stop]
    back = np.argsort(order, kind="stable")
    at = line[back], place[back] % _PARTNERS
    moved = shifts[window[at]]
    return Agreement(value[at], flip[at], moved[..., 0], moved[..., 1])


@jax.jit
def _best(even, odd, other_even, other_odd):
    """The largest correlation [B, M] over the windows [B, S, E], its window, and if mirrored."""
    precision = lax.Precision.HIGHEST
    plain = jnp.einsum("bse,bme->bms", even, other_even, precision=precision)
    odd = jnp.einsum("bso,bmo->bms", odd, other_odd, precision=precision)
    window = jnp.argmax(plain + jnp.abs(odd), axis=2)
    plain, odd = (jnp.take_along_axis(a, window[..., None], 2)[..., 0] for a in (plain, odd))
    return plain + jnp.abs(odd), window, odd < 0
