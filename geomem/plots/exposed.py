"""The training images that the posterior recognizes up to the most and to the least noise."""

from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float, Shaped

from geomem.plots.pairs import shown
from geomem.plots.style import COLORS, ZONE, noise_axis, sheet

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["exposed"]

_SHOWN = 8  # images at each end


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
      images: in the same order, with their nearest other training images; None for other data.
      nearest: see `images`.
      zone: edges of the danger zone, shaded.
      title: title of the figure.
    """
    with sheet(7.0, 1.7 if images is None else 5.2) as figure:
        count = min(_SHOWN, len(sigma) // 2) if images is not None else 0
        grid = figure.add_gridspec(5 if count else 1, max(count, 1))
        axes = figure.add_subplot(grid[0, :])
        bins = np.geomspace(sigma.min() * 0.98, sigma.max() * 1.02, 41)
        axes.hist(sigma, bins, color=COLORS["vermillion"])
        if zone is not None:
            axes.axvspan(*zone, **ZONE, zorder=0)
            axes.legend(loc="upper right")
        noise_axis(axes, bins[0], bins[-1])
        axes.set(ylabel="images", xlabel=r"noise level $\sigma$ up to which an image is exposed")
        axes.set_title(title)
        for row, name in ((1, "most exposed"), (3, "least exposed")):
            for column in range(count):
                at = column if row == 1 else len(sigma) - count + column
                for offset, image, kind in ((0, images, name), (1, nearest, "nearest image")):
                    axes = figure.add_subplot(grid[row + offset, column])
                    axes.imshow(shown(image[at]), interpolation="nearest")
                    axes.set(xticks=[], yticks=[])
                    axes.spines[:].set_visible(False)
                    if offset == 0:
                        axes.set_title(rf"$\sigma$ = {sigma[at]:.3g}")
                    if column == 0:
                        axes.set_ylabel(kind)
    return figure
