"""Large images made smaller by means over areas."""

from __future__ import annotations

import numpy as np

from geomem.data import to_float

__all__ = ["reduced"]

_VALUES = 2**24  # pixels at once


def reduced(images: np.ndarray, chosen: np.ndarray, side: int) -> np.ndarray:
    """Return the chosen images [N, H, W, C] with a shorter side of at most `side` pixels.

    Images that are no larger stay as they are; others become floats.
    """
    height, width = images.shape[1:3]
    if min(height, width) <= side:
        whole = np.array_equal(chosen, np.arange(len(images)))
        return images if whole else images[chosen]
    scale = side / min(height, width)
    rows, columns = (_areas(length, round(length * scale)) for length in (height, width))
    block = max(1, _VALUES // int(np.prod(images.shape[1:])))
    parts = []
    for start in range(0, len(chosen), block):
        pixels = to_float(images[chosen[start : start + block]])
        pixels = np.einsum("ah,nhwc->nawc", rows, pixels, optimize=True)
        parts.append(np.einsum("bw,nawc->nabc", columns, pixels, optimize=True))
    return np.concatenate(parts)


def _areas(side, small):
    """Means over intervals of side / small pixels: float32 [small, side]."""
    edges = np.linspace(0, side, small + 1)
    inside = np.clip(np.arange(1, side + 1) - edges[:, None], 0, 1).astype(np.float64)
    return np.float32((inside[:-1] - inside[1:]) * small / side)
