"""Samples beside the training images that they are nearest to, on one page."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from geomem.plots.style import COLORS, sheet

__all__ = ["PER_PAGE", "pairs"]

_PAGE = (7.0, 9.4)  # inches: letter and A4 with margins
_COLUMNS, _ROWS = 6, 12
PER_PAGE = _COLUMNS * _ROWS


def pairs(
    samples: np.ndarray,
    nearest: np.ndarray,
    captions: Sequence[str],
    marked: Sequence[bool],
    title: str = "",
):
    """Up to PER_PAGE pairs: sample left, training image right, a caption above each.

    Args:
      samples, nearest: [P, H, W, C], in [-1, 1] (clipped) or uint8, C = 1 or 3.
      captions: [P], short.
      marked: [P], whether the caption stands out.
      title: of the page; may have several lines.

    Returns:
      A matplotlib Figure.
    """
    count = min(len(samples), PER_PAGE)
    rows = -(-count // _COLUMNS)
    height = 0.7 + (_PAGE[1] - 0.7) * rows / _ROWS
    with sheet(_PAGE[0], height) as figure:
        figure.get_layout_engine().set(w_pad=0.03, h_pad=0.03)
        axes = figure.subplots(rows, _COLUMNS, squeeze=False).ravel()
        for axis in axes:
            axis.set_axis_off()
        for i, axis in enumerate(axes[:count]):
            left, right = _shown(samples[i]), _shown(nearest[i])
            rule = np.full((len(left), max(1, left.shape[1] // 16), 3), 255, np.uint8)
            axis.imshow(np.concatenate([left, rule, right], axis=1), interpolation="nearest")
            color = COLORS["vermillion"] if marked[i] else COLORS["gray"]
            axis.set_title(captions[i], fontsize=6, pad=1.5, color=color)
        if title:
            figure.suptitle(title, fontsize=8)
    return figure


def _shown(image):
    image = np.asarray(image)
    if image.dtype != np.uint8:
        image = np.clip(image * 127.5 + 128, 0, 255).astype(np.uint8)
    return np.repeat(image, 3, axis=-1) if image.shape[-1] == 1 else image[..., :3]
