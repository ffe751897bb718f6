"""The distribution of d1 / d2 over samples and held-out images."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float

from geomem.plots.style import COLORS, COLUMN, sheet

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["ratios"]

Ratios = Float[np.ndarray, " images"]


def ratios(
    samples: Mapping[str, Ratios],
    heldout: Mapping[str, Ratios],
    thresholds: Mapping[str, float],
    calibrated: Mapping[str, float],
) -> "Figure":
    """Draw the fraction of images with a ratio below each value, one panel per detector.

    Args:
      samples: ratios of the samples, by the detector's label.
      heldout: ratios of the held-out images; may be empty.
      thresholds: the threshold of each detector.
      calibrated: the thresholds that few held-out images fall below; may be empty.
    """
    with sheet(COLUMN * len(samples), 2.4) as figure:
        panels = figure.subplots(1, len(samples), squeeze=False, sharey=True)[0]
        for axes, (name, values) in zip(panels, samples.items(), strict=True):
            if name in heldout:
                label, color = "held-out images", COLORS["gray"]
                axes.ecdf(heldout[name], label=label, color=color, linestyle="--")
            axes.ecdf(values, label="samples", color=COLORS["vermillion"])
            axes.axvline(
                thresholds[name],
                color="k",
                lw=0.8,
                ls=":",
                label=f"threshold {thresholds[name]:.3g}",
            )
            if name in calibrated:
                label = f"calibrated {calibrated[name]:.3g}"
                axes.axvline(calibrated[name], color=COLORS["blue"], lw=0.8, ls="-.", label=label)
            axes.set(xlim=(0, 1), ylim=(0, 1), xlabel=name)
            axes.legend(loc="lower right")
        panels[0].set_ylabel("fraction of images below")
    return figure
