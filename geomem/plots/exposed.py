"""The training images that the posterior recognizes up to the most and to the least noise."""

from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float, Shaped

from geomem.plots.pairs import shown
from geomem.plots.style import COLORS, ZONE, noise_axis, sheet

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["SHOWN", "exposed"]

SHOWN = 8  # images at each end, at most
_PICTURES = 4.12  # inches


def exposed(
    sigma: Float[np.ndarray, " images"],
    images: Shaped[np.ndarray, "images height width channels"] | None = None,
    nearest: Shaped[np.ndarray, "images height width channels"] | None = None,
    zone: tuple[float, float] | None = None,
    title: str = "",
) -> "Figure":
    """Draw how many images are exposed up to each noise level, and the images at both ends.

    Args:
      sigma: from `geometry.exposure`, descending.
      images: the first images in this order, and as many of the last ones; None for other data.
      nearest: the training image nearest to each of `images`.
      zone: edges of the danger zone, shaded.
      title: title of the figure.
    """
    count = 0 if images is None else len(images) // 2
    height = 1.9 + (_PICTURES if count else 0)
    with sheet(7.0, height) as figure:
        figure.set_layout_engine("none")
        axes = figure.add_axes((0.08, 1 - 1.4 / height, 0.9, 1.1 / height))
        bins = np.geomspace(sigma.min() * 0.98, sigma.max() * 1.02, 41)
        axes.hist(sigma, bins, color=COLORS["vermillion"])
        if zone is not None:
            axes.axvspan(*zone, **ZONE, zorder=0)
            axes.legend(loc="upper right")
        noise_axis(axes, bins[0], bins[-1])
        axes.xaxis.set_minor_formatter("{x:g}")  # a range of less than a decade
        axes.set(ylabel="images", xlabel=r"noise level $\sigma$ up to which an image is exposed")
        axes.set_title(title)
        if count:
            _draw_ends(
                figure.add_axes((0, 0, 1, _PICTURES / height)), sigma, images, nearest, count
            )
    return figure


def _draw_ends(axes, sigma, images, nearest, count):
    """Draw the first and the last `count` images, each above its nearest, in inches."""
    axes.set_axis_off()
    side = 0.8
    ends = np.concatenate([sigma[:count], sigma[len(sigma) - count :]])
    for top, kind, places in (
        (0.2, "most exposed", range(count)),
        (2.27, "least exposed", range(count, 2 * count)),
    ):
        axes.text(0.05, top - 0.05, f"{kind}, each with its nearest image", va="bottom")
        for column, at in enumerate(places):
            left = 0.05 + 0.87 * column
            for row, image in enumerate((images[at], nearest[at])):
                upper = top + row * (side + 0.03)
                extent = (left, left + side, upper + side, upper)
                axes.imshow(shown(image), interpolation="nearest", extent=extent)
            label = rf"$\sigma$ = {ends[at]:.3g}"
            axes.text(left + side / 2, top + 2 * side + 0.17, label, ha="center", fontsize=7)
    axes.set(xlim=(0, 7.0), ylim=(_PICTURES, 0), aspect="equal")
