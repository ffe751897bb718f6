"""Figure 5: memorization after training with gaps, over the curves that define the zone."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from geomem.geometry.curves import Curves
from geomem.geometry.danger_zone import Zone
from geomem.metrics.gap_prediction import Prediction
from geomem.plots.style import COLORS, COLUMN, ZONE, legend, noise_axis, sheet

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["sweep"]


def sweep(
    curves: Curves, zone: Zone, prediction: Prediction, ends: Sequence[Mapping[str, Any]]
) -> "Figure":
    """Draw C and W with the danger zone, and each gap as a bar at its memorized fraction.

    Args:
      curves: coverage and max posterior weight.
      zone: the danger zone.
      prediction: the predicted fraction of memorized samples for each upper edge of a gap.
      ends: rows of the trained arms, with gap_low, gap_high, memorized and without_noise. An arm
        without a gap is drawn as a line across all noise levels.
    """
    gray, sigma = COLORS["gray"], np.asarray(curves.sigma)
    coverage = dict(color=COLORS["blue"], label=r"coverage $C_\sigma$")
    weight = dict(color=COLORS["vermillion"], label=r"max posterior weight $W_\sigma$")
    predicted = dict(color=COLORS["green"], label=r"predicted, gap up to $\sigma$")
    with sheet(COLUMN, 3.6) as figure:
        axes = figure.subplots()
        axes.axvspan(zone.low, zone.high, **ZONE)
        axes.plot(sigma, curves.coverage.mean, "-", **coverage)
        axes.plot(sigma, curves.max_weight.mean, "--", **weight)
        axes.step(prediction.high, prediction.decided, ":", where="post", **predicted)
        for row in ends:
            memorized, cleaned = row["memorized"], row["without_noise"]
            if not row["gap_low"]:
                line = dict(color=gray, lw=0.8, label="memorized, no gap")
                axes.plot(sigma[[0, -1]], [memorized] * 2, "-", **line)
                continue
            gap = np.array([row["gap_low"], row["gap_high"]])
            line = dict(color=gray, lw=2.0, label="memorized, this gap")
            axes.plot(gap, [memorized] * 2, "-", **line)
            middle = np.sqrt(gap.prod())
            axes.plot([middle] * 2, [memorized, cleaned], "-", color=gray, lw=0.6)
            dot = dict(color=COLORS["purple"], ms=4, label="this gap, noise removed")
            axes.plot([middle], [cleaned], "o", **dot)
        noise_axis(axes, 0.02, 20)
        axes.set(ylim=(-0.02, 1.02), ylabel=r"$C_\sigma$, $W_\sigma$, memorized fraction")
        legend(figure, axes)
    return figure
