"""Figure 5: memorization after training with gaps, over the curves that define the zone."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from geomem.geometry.curves import Curves
from geomem.geometry.danger_zone import Zone
from geomem.metrics.gap_prediction import Prediction
from geomem.plots.style import COLORS, COLUMN, legend, sheet

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
    gray, purple = COLORS["gray"], COLORS["purple"]
    with sheet(COLUMN, 3.6) as figure:
        axes = figure.subplots()
        yellow = {"color": COLORS["yellow"], "alpha": 0.35, "lw": 0}
        axes.axvspan(zone.low, zone.high, label="danger zone", **yellow)
        sigma = np.asarray(curves.sigma)
        label = r"coverage $C_\sigma$"
        axes.plot(sigma, curves.coverage.mean, "-", color=COLORS["blue"], label=label)
        label = r"max posterior weight $W_\sigma$"
        axes.plot(sigma, curves.max_weight.mean, "--", color=COLORS["vermillion"], label=label)
        decided = prediction.high, prediction.decided
        label = r"predicted, gap up to $\sigma$"
        axes.step(*decided, ":", where="post", color=COLORS["green"], label=label)
        for row in ends:
            low, high = row["gap_low"] or sigma[0], row["gap_high"] or sigma[-1]
            memorized, cleaned = row["memorized"], row["without_noise"]
            label = "memorized, this gap" if row["gap_low"] else "memorized, no gap"
            width = 2.0 if row["gap_low"] else 0.8
            axes.plot([low, high], [memorized] * 2, "-", color=gray, lw=width, label=label)
            if row["gap_low"]:
                middle = np.sqrt(low * high)
                axes.plot([middle] * 2, [memorized, cleaned], "-", color=gray, lw=0.6)
                label = "this gap, noise removed"
                axes.plot([middle], [cleaned], "o", color=purple, ms=4, label=label)
        axes.set(xscale="log", xlim=(0.02, 20), ylim=(-0.02, 1.02))
        axes.set(
            xlabel=r"noise level $\sigma$", ylabel=r"$C_\sigma$, $W_\sigma$, memorized fraction"
        )
        axes.xaxis.set_major_formatter("{x:g}")
        legend(figure, axes)
    return figure
