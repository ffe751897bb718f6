"""How well the textures of two images agree: the evidence that one is a copy of the other.

An image's texture is described by cosines of low and middle frequencies on a window, without the
constant one, each divided by its typical size in the data set. So all frequencies count alike, and
two skies do not look alike because both are brighter at the bottom. The evidence is the correlation
of the center of the copy y with a window of the original x that is moved, mirrored, or smaller (if
the copy was enlarged):

    r(x, y) = max_t <u(x, t), u(y)> / (|u(x, t)| |u(y)|).

Brightness and contrast do not change it. Noise of 0.4 standard deviations of the data is added to
the typical sizes, so that frequencies that noise and compression destroy count less. If all that
two images have in common is one edge or one spot, their correlation can be large by accident. So
the number of independent parts that agree is counted too.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import scipy.fft

from geomem.data import to_float
from geomem.metrics.alignment import Transform

__all__ = ["FREQUENCIES", "Fit", "Match", "cosines", "fit", "match"]

FREQUENCIES = 12  # along each axis
_COARSE = 48  # coefficients that propose candidates
_NOISE = 0.4  # tolerated noise, in standard deviations of the data
_ROUNDING = 2 / 255 / 12**0.5  # standard deviation of 8-bit values in [-1, 1]
_SUBSET = 2048  # images from which the typical sizes are estimated


def cosines(
    side: int, margin: int, scale: float, shift: float, count: int = FREQUENCIES
) -> np.ndarray:
    """Return cosines on a window, integrated over each pixel: float64 [K, side].

    Args:
      side: pixels of the image.
      margin: pixels between each border and the centered window of scale 1.
      scale, shift: relative size of the window, and its offset in pixels.
      count: the most frequencies; a window of n pixels has n.
    """
    width = side - 2 * margin
    start = side / 2 + shift - scale * width / 2
    edges = np.clip((np.arange(side + 1) - start) / (scale * width), 0, 1)
    k = np.arange(1, min(count, width))[:, None]
    waves = np.diff(np.sin(np.pi * k * edges), axis=1) * np.sqrt(2) / (np.pi * k)
    return np.concatenate([np.diff(edges)[None], waves]) * np.sqrt(width)


class Fit(NamedTuple):
    """How the textures of a data set are described.

    Attributes:
      weight: 1 / typical size of each coefficient, float32 [K, L, C]; 0 for the constant ones.
      channels: orthonormal combinations of the channels, [C, C]; the first is the mean.
      shape: (H, W).
      margin: the largest shift, and the most pixels cut off at a border.
      coarse: which coefficients propose candidates, bool [K, L, C].
      flat: textures of a smaller norm count as none: half of what rounding to 8 bits adds.
      deviation: standard deviation of the data.
    """

    weight: np.ndarray
    channels: np.ndarray
    shape: tuple[int, int]
    margin: int
    coarse: np.ndarray
    flat: float
    deviation: float


def fit(images: np.ndarray) -> Fit:
    """Estimate the typical size of each coefficient from images [N, H, W, C]."""
    subset = np.asarray(to_float(images[:: -(-len(images) // _SUBSET)]), np.float64)
    shape, channels = subset.shape[1:3], subset.shape[3]
    margin = min(shape) // 8
    single = max(shape) == 1  # vectors
    mixing = np.eye(channels)
    if not single:
        mixing = np.asarray(scipy.fft.dct(mixing, axis=0, norm="ortho"))
    rows, columns = (cosines(side, margin, 1, 0) for side in shape)
    found = np.einsum("ah,nhwc,bw,dc->nabd", rows, subset, columns, mixing, optimize=True)
    power = (found**2).mean(axis=0)
    deviation = max(float(subset.std()), 1e-30)
    weight = 1 / np.sqrt(power + (_NOISE * deviation) ** 2)
    if not single:
        weight[0, 0] = power[0, 0] = 0
    least = np.sort(power, axis=None)[-min(_COARSE, power.size)]
    coarse = (power >= least) & (weight > 0)
    flat = 0.5 * _ROUNDING * float(np.linalg.norm(weight)) if images.dtype == np.uint8 else 0.0
    return Fit(
        weight.astype(np.float32), mixing.astype(np.float32), shape, margin, coarse, flat, deviation
    )


class Match(NamedTuple):
    """How a copy differs from its aligned original.

    Attributes:
      correlation: of the textures, 0 if one has none.
      parts: effective number of independent parts of the image that agree, 1 to 16.
      gain: the copy's contrast over the original's, from the coefficients without weights; 1 if one
        has no texture.
      offset: the copy's mean minus the original's, in standard deviations of the data.
    """

    correlation: float
    parts: float
    gain: float
    offset: float


def match(x: np.ndarray, y: np.ndarray, transform: Transform, model: Fit) -> Match:
    """Compare a window of image x [H, W, C] with the center of y: the definition, in float64.

    Of terms p that add up to the correlation, (sum p)^2 / sum p^2 is the effective number. Terms
    are 4 x 4 blocks of pixels, or the coefficients, of which four count as one part.
    """
    flip, crop, down, right = transform
    scale = 1 - 2 * crop / min(model.shape)
    sides = list(zip(model.shape, (down, right), strict=True))
    windows = [cosines(side, model.margin, scale, shift) for side, shift in sides]
    centers = [cosines(side, model.margin, 1, 0) for side, _ in sides]
    channels = model.channels.astype(np.float64)
    u, v = (
        np.tensordot(
            rows @ np.moveaxis(to_float(image).astype(np.float64), 2, 0) @ columns.T,
            channels,
            (0, 1),
        )
        for image, (rows, columns) in ((x, windows), (y, centers))
    )
    u[:, 1::2] *= -1 if flip else 1
    means = (v - u)[0, 0, 0] / np.sqrt(np.prod([side - 2 * model.margin for side in model.shape]))
    offset = means / np.sqrt(len(channels)) / model.deviation
    weight = model.weight.astype(np.float64)
    gain = (u * v)[weight > 0].sum() / max((u**2)[weight > 0].sum(), 1e-30)
    u, v = weight * u, weight * v
    norm = np.sqrt((u**2).sum()), np.sqrt((v**2).sum())
    if min(norm) <= model.flat:
        return Match(0.0, 1.0, 1.0, offset)
    correlation = (u * v).sum() / (norm[0] * norm[1])
    parts = _effective(u * v) / 4
    if max(model.shape) > 1:
        parts = min(parts, _effective(_blocks(u, v, centers, model.margin)))
    return Match(correlation, max(parts, 1.0), gain, offset)


def _effective(terms):
    return terms.sum() ** 2 / (terms**2).sum()


def _blocks(u, v, centers, margin):
    """Sums over 4 x 4 blocks of the product of two textures, as pixels of the window."""
    bases = [rows[:, margin : rows.shape[1] - margin] for rows in centers]
    x, y = (
        np.einsum("kh,klc,lw->hwc", bases[0], texture, bases[1], optimize=True)
        for texture in (u, v)
    )
    products = (x * y).sum(axis=2)
    for axis, side in enumerate(products.shape):
        starts = np.unique(np.linspace(0, side, 5)[:-1].astype(int))
        products = np.add.reduceat(products, starts, axis=axis)
    return products
