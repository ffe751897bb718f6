"""Figure 10: memorization when one network takes the other's place on a window of steps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from geomem.plots.style import COLORS, COLUMN, sheet

__all__ = ["swap"]

_LOOKS = ("sky", "vermillion", "blue", "orange", "purple", "green")


def swap(rows: Sequence[Mapping[str, Any]], steps: int):
    """One panel for each direction; a bar spans the swapped steps at the memorized fraction.

    Args:
      rows: of table.csv: denoiser, window, first_step, last_step, memorized with its interval.
      steps: of the sampler.

    Returns:
      A matplotlib Figure.
    """
    with sheet(COLUMN, 4.0) as figure:
        panels = figure.subplots(2, sharex=True)
        names = dict.fromkeys(row["window"] for row in rows if row["first_step"] is not None)
        looks = dict(zip(names, _LOOKS, strict=False))
        for axes, direction in zip(
            panels, dict.fromkeys(row["denoiser"] for row in rows), strict=True
        ):
            for row in (row for row in rows if row["denoiser"] == direction):
                level = row["memorized"]
                if row["first_step"] is None:
                    axes.axhline(level, color="0.6", lw=0.8, label="no swap")
                    continue
                left, right = row["first_step"] - 0.4, row["last_step"] + 0.4
                color = COLORS[looks[row["window"]]]
                axes.plot([left, right], [level, level], lw=3, color=color, label=row["window"])
                error = [[level - row["memorized_low"]], [row["memorized_high"] - level]]
                axes.errorbar([(left + right) / 2], [level], error, color=color, lw=1)
            axes.set(ylabel="memorized", ylim=(-0.04, 1.04), xlim=(-0.6, steps - 0.4))
            axes.set_title(f"{direction} network, the other one on the bar's steps", fontsize=7)
        panels[-1].set(xlabel="sampling step (0 is the largest noise)")
        handles = panels[0].get_legend_handles_labels()
        figure.legend(*handles, loc="outside lower center", ncols=3)
    return figure
