"""Copies of images that are nearly flat, such as a cloudless sky.

Compression leaves nothing of their texture but a gradient, and that is no evidence: all skies have
one. But brightness and gradient of a copy are those of the image. So two flat images are copies if
their pixels differ by at most 1.5 gray levels of 256 (root mean square), and by less than a quarter
of the contrast of either. Unrelated skies differ by more.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from geomem.data import to_float

__all__ = ["close_pairs"]

_GAP = 1.5 * 2 / 255  # 1.5 gray levels in [-1, 1]
_FLAT = 16 * 2 / 255  # images of more contrast have texture
_RELATIVE = 0.25  # of the contrast
_VALUES = 2**22  # pixels that are compared at once


def close_pairs(images: np.ndarray) -> Iterator[tuple[int, int, float]]:
    """Yield positions (x, y), x < y, of copies among flat images, and their distance.

    Args:
      images: [N, H, W, C], uint8 or in [-1, 1]. The contrast is the standard deviation within
        channels.

    The distance is the root mean square divided by the lesser contrast. It bounds that of textures,
    sqrt(1 - r^2), if all frequencies count alike.
    """
    size = int(np.prod(images.shape[1:]))
    block = max(1, _VALUES // size)
    starts = range(0, len(images), block)
    contrast = np.concatenate([_contrast(to_float(images[i : i + block])) for i in starts])
    flat = np.flatnonzero(contrast < _FLAT)
    pixels = to_float(images[flat]).reshape(len(flat), size).astype(np.float64)
    means = pixels.mean(axis=1)
    order = np.argsort(means, kind="stable")
    # Means differ by no more than the pixels, so only images of the next brightness can be close.
    ends = np.searchsorted(means[order], means[order] + _GAP, side="right")
    for i, end in enumerate(ends):
        for start in range(i + 1, end, block):
            others = order[start : min(end, start + block)]
            gaps = np.sqrt(((pixels[others] - pixels[order[i]]) ** 2).mean(axis=1))
            least = np.minimum(contrast[flat[others]], contrast[flat[order[i]]])
            for at in np.flatnonzero((gaps <= _GAP) & (gaps < _RELATIVE * least)):
                x, y = sorted((int(flat[order[i]]), int(flat[others[at]])))
                yield x, y, float(gaps[at] / least[at])


def _contrast(images):
    centered = images - images.mean(axis=(1, 2), keepdims=True, dtype=np.float64)
    return np.sqrt((centered**2).mean(axis=(1, 2, 3)))
