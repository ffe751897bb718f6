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
      ends: rows of the trained arms, with arm, gap_low, gap_high, memorized and without_noise;
        bars are means over the training runs of an arm, and dots single runs. An arm without a gap
        is a line across all noise levels: the baseline, or one with fewer steps.
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
        for arm in dict.fromkeys(row["arm"] for row in ends):
            rows = [row for row in ends if row["arm"] == arm]
            cleaned = [row["without_noise"] for row in rows]
            if not rows[0]["gap_low"]:
                kind, style = ("no gap", "-") if arm == "baseline" else ("fewer steps", "-.")
                line = dict(color=gray, lw=0.8, label=f"memorized, {kind}")
                axes.plot(sigma[[0, -1]], [np.mean(cleaned)] * 2, style, **line)
                continue
            gap = np.array([rows[0]["gap_low"], rows[0]["gap_high"]])
            line = dict(color=gray, lw=2.0, label="memorized, this gap")
            axes.plot(gap, [np.mean(cleaned)] * 2, "-", **line)
            dot = dict(color=COLORS["purple"], ms=3, label="one training run")
            axes.plot([np.sqrt(gap.prod())] * len(rows), cleaned, "o", **dot)
        noise_axis(axes, 0.02, 20)
        axes.set(ylim=(-0.02, 1.02), ylabel=r"$C_\sigma$, $W_\sigma$, memorized (noise removed)")
        legend(figure, axes)
    return figure
