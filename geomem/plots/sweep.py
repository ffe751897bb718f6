"""Figure 5: what gaps memorize, laid over the curves that say where they should lie."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from geomem.plots.style import COLORS, COLUMN, sheet

__all__ = ["sweep"]


def sweep(curves, zone, prediction, ends: Sequence[Mapping[str, Any]]):
    """C and W with the zone shaded, the gaps as bars at the height of what they memorize.

    Args:
      curves: Curves.
      zone: Zone, shaded.
      prediction: Prediction, the fraction decided above each noise level.
      ends: rows of trained arms: gap_low, gap_high, memorized, without_noise; an arm without a gap
        is a line across.

    Returns:
      A matplotlib Figure.
    """
    with sheet(COLUMN, 3.4) as figure:
        axes = figure.subplots()
        axes.axvspan(zone.low, zone.high, color=COLORS["yellow"], alpha=0.35, lw=0)
        sigma = np.asarray(curves.sigma)
        axes.plot(sigma, curves.coverage.mean, "-", color=COLORS["blue"], label="coverage")
        axes.plot(sigma, curves.max_weight.mean, "--", color=COLORS["vermillion"], label="weight")
        label = "decided above (no training)"
        decided = prediction.high, prediction.decided
        axes.step(*decided, ":", where="post", color=COLORS["green"], label=label)
        for row in ends:
            low, high = row["gap_low"] or sigma[0], row["gap_high"] or sigma[-1]
            plain, cleaned = row["memorized"], row["without_noise"]
            middle = np.sqrt(low * high)
            width = 2.0 if row["gap_low"] else 0.8
            axes.plot([low, high], [plain, plain], "-", color=COLORS["gray"], lw=width)
            if row["gap_low"]:
                axes.plot([middle, middle], [plain, cleaned], "-", color=COLORS["gray"], lw=0.6)
                axes.plot([middle], [cleaned], "o", color=COLORS["purple"], ms=4)
        if ends:
            axes.plot([], [], "-", color=COLORS["gray"], lw=2, label="gap trained: memorized")
            label = "the same, noise removed"
            axes.plot([], [], "o", color=COLORS["purple"], ms=4, label=label)
        axes.set(xscale="log", xlim=(0.02, 20), ylim=(-0.02, 1.02))
        axes.set(xlabel=r"noise level $\sigma$", ylabel="probability, weight, fraction")
        axes.xaxis.set_major_formatter("{x:g}")
        figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=2)
    return figure
