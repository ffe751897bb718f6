"""Samples beside their nearest training images, on one page."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Shaped

from geomem.diffusion.sampler import to_uint8
from geomem.plots.style import COLORS, sheet

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["PER_PAGE", "pairs", "shown"]

_PAGE = (7.0, 9.4)  # inches; fits letter and A4 with margins
_COLUMNS, _ROWS = 6, 12  # the rows fit images that are at least as wide as high
PER_PAGE = _COLUMNS * _ROWS
_TILE = 64  # least pixels of an image's side on the page


def pairs(
    samples: Shaped[np.ndarray, "pairs height width channels"],
    nearest: Shaped[np.ndarray, "pairs height width channels"],
    captions: Sequence[str],
    marked: Sequence[bool],
    title: str = "",
) -> "Figure":
    """Draw up to PER_PAGE pairs: sample left, training image right, a caption above each pair.

    Args:
      samples, nearest: uint8, or floats that are clipped to [-1, 1]. Images with three channels are
        shown in color, others in gray, as the mean over channels.
      captions: a short text for each pair.
      marked: whether to highlight each caption.
      title: title of the page, in one or several lines.
    """
    count = min(len(samples), PER_PAGE)
    rows = -(-count // _COLUMNS)
    width, row = _PAGE[0] / _COLUMNS, _PAGE[1] / (_ROWS + 1)
    height, side = samples.shape[1:3]
    factor = -(-_TILE // side)  # one picture of enlarged pixels is drawn faster than many
    inch = factor * side / (0.47 * width)  # pixels
    page = np.full((round((rows + 1) * row * inch), round(_PAGE[0] * inch), 3), 255, np.uint8)
    with sheet(_PAGE[0], row * (rows + 1)) as figure:
        figure.set_layout_engine("none")
        axes = figure.add_axes((0, 0, 1, 1))
        axes.set_axis_off()
        for i in range(count):
            left, top = i % _COLUMNS * width + 0.02 * width, (1 + i // _COLUMNS) * row
            y, x = round(top * inch), round(left * inch)
            for image in (samples[i], nearest[i]):
                tile = shown(image).repeat(factor, axis=0).repeat(factor, axis=1)
                page[y : y + factor * height, x : x + factor * side] = tile[: len(page) - y]
                x += round(1.03 * factor * side)
            color = COLORS["vermillion"] if marked[i] else COLORS["gray"]
            position = left + 0.477 * width, top - 0.03
            axes.text(*position, captions[i], fontsize=6, color=color, ha="center", va="bottom")
        axes.imshow(page, interpolation="nearest", extent=(0, _PAGE[0], row * (rows + 1), 0))
        axes.set(xlim=(0, _PAGE[0]), ylim=(row * (rows + 1), 0), aspect="equal")
        if title:
            axes.text(_PAGE[0] / 2, 0.1, title, fontsize=8, ha="center", va="top")
    return figure


def shown(
    image: Shaped[np.ndarray, "height width channels"],
) -> Shaped[np.ndarray, "height width 3"]:
    """Return an image as 8-bit color: uint8, or floats that are clipped to [-1, 1]."""
    image = np.asarray(image)
    image = image if image.dtype == np.uint8 else to_uint8(image)
    if image.shape[-1] == 3:
        return image
    gray = np.rint(image.mean(axis=-1, keepdims=True)).astype(np.uint8)
    return np.repeat(gray, 3, axis=-1)
