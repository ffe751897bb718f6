"""A second look at samples whose pixels are saturated, as in copies that were made brighter.

Pixels that were clipped at the ends of [-1, 1] have lost their value, so no change of brightness
turns such a copy back into the training image. Here they are left out of the aligned distance:

    d^2(y, x) = min_(a, b)  n / |m|  sum_(p in m)  (a y_t(p) + b - x(p))^2,

with m the unsaturated pixels of the overlap and t the transform that the search found; a and b are
those of `metrics.alignment`. d1 and d2 are the least distances under this one transform.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Array, Bool, Float, Int

from geomem.metrics.aligned import Aligned
from geomem.metrics.alignment import Alignment, Transform, overlap, shrink

__all__ = ["aligned_copy", "refine", "squared_distances"]

Images = Float[Array | np.ndarray, "images height width channels"]

_SATURATED = 1 - 1e-3
_BORDERLINE = 0.75  # larger ratios are not looked at again
_LEAST = 0.25  # of the values must remain
_BLOCK = 2**23  # float64 values of training images at once


def refine(
    found: Aligned,
    samples: Images,
    train: Images,
    alignment: Alignment,
    group: Int[np.ndarray, " images"],
    threshold: float,
) -> Aligned:
    """Return the neighbors with those of saturated copies replaced.

    Only samples with a ratio from `threshold` to 0.75 are looked at, and only new ratios below
    `threshold` are kept.

    Args:
      found: the neighbors of `samples` in `train`, by `aligned.nearest`.
      samples, train, alignment, group: as there.
      threshold: of the ratio.
    """
    samples = np.asarray(samples)
    rows = np.flatnonzero((found.ratio >= threshold) & (found.ratio < _BORDERLINE))
    rows = rows[(np.abs(samples[rows]) >= _SATURATED).any(axis=(1, 2, 3))]
    found = Aligned(*(np.array(field) for field in found))
    transforms, size = alignment.transforms(), samples[0].size
    for row in rows:
        copy, mask = aligned_copy(samples[row], transforms[found.transform[row, 0]])
        if mask.sum() < _LEAST * size:
            continue
        squares = squared_distances(copy, mask, train, alignment.gain)
        first = int(squares.argmin())
        others = np.where(group == group[first], np.inf, squares)
        second = int(others.argmin())
        d1, d2 = np.sqrt([squares[first], others[second]])
        if d1 < threshold * d2:
            found.distance[row], found.index[row] = (d1, d2), (first, second)
            found.transform[row], found.ratio[row] = found.transform[row, 0], d1 / d2
    return found


def aligned_copy(
    sample: Float[np.ndarray, "height width channels"], transform: Transform
) -> tuple[Float[np.ndarray, "height width channels"], Bool[np.ndarray, "height width channels"]]:
    """Return the transformed sample on the training image's pixels, and where it is known."""
    flip, crop, down, right = transform
    height, width, _ = sample.shape
    y = np.flip(sample, 1) if flip else sample
    known = np.abs(y) < _SATURATED
    if crop:  # a pixel is known if the same place of the enlarged image is
        rows, columns = (_centers(side, crop) for side in (height, width))
        known = known[rows][:, columns]
        y = np.einsum("ah,hwc->awc", shrink(height, crop), y)
        y = np.einsum("bw,awc->abc", shrink(width, crop), y)
    copy, mask = np.zeros(sample.shape), np.zeros(sample.shape, bool)
    (top, bottom), (left, end) = overlap(height, crop, down), overlap(width, crop, right)
    at = slice(top, bottom), slice(left, end)
    own = (
        slice(top - crop - down, bottom - crop - down),
        slice(left - crop - right, end - crop - right),
    )
    copy[at], mask[at] = y[own], known[own]
    return copy, mask


def squared_distances(
    copy: Float[np.ndarray, "height width channels"],
    mask: Bool[np.ndarray, "height width channels"],
    train: Images,
    gain: float,
) -> Float[np.ndarray, " images"]:
    """Return the squared distances of one aligned sample, in float64: the definition.

    Args:
      copy, mask: of `aligned_copy`.
      train: the training images.
      gain: as in `Alignment`.
    """
    y, squares = copy[mask], np.zeros(len(train))
    y = y - y.mean()
    norm = y @ y
    block = max(1, _BLOCK // copy.size)
    for start in range(0, len(train), block):
        x = np.asarray(train[start : start + block])[:, mask].astype(np.float64)
        x -= x.mean(axis=1, keepdims=True)
        a = np.clip(x @ y / norm, 1 / gain, gain) if norm > 0 else np.ones(len(x))
        squares[start : start + block] = ((a[:, None] * y - x) ** 2).sum(axis=1)
    return squares * (copy.size / len(y))


def _centers(side, crop):
    """Which pixel of the enlarged image lies at each pixel of the small one."""
    small = side - 2 * crop
    return np.minimum((np.arange(small) + 0.5) * side / small, side - 1).astype(int)
