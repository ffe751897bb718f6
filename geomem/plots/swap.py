"""Figure 10: memorization when another network replaces the first on a window of steps."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from geomem.plots.style import COLORS, COLUMN, legend, sheet

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["swap"]

_COLORS = ("sky", "vermillion", "blue", "orange", "purple", "green")


def swap(rows: Sequence[Mapping[str, Any]], steps: int) -> "Figure":
    """Draw the memorized fraction as a bar over each window of swapped steps.

    Args:
      rows: the rows of table.csv, with denoiser, window, first_step, last_step, memorized,
        memorized_low and memorized_high.
      steps: number of sampling steps.
    """
    with sheet(COLUMN, 4.0) as figure:
        panels = figure.subplots(2, sharex=True)
        windows = dict.fromkeys(row["window"] for row in rows if row["first_step"] is not None)
        colors = dict(zip(windows, _COLORS, strict=False))
        directions = dict.fromkeys(row["denoiser"] for row in rows)
        for axes, direction in zip(panels, directions, strict=True):
            for row in (row for row in rows if row["denoiser"] == direction):
                level = row["memorized"]
                if row["first_step"] is None:
                    axes.axhline(level, color="0.6", lw=0.8, label="no swap")
                    continue
                left, right = row["first_step"] - 0.4, row["last_step"] + 0.4
                color = COLORS[colors[row["window"]]]
                axes.plot([left, right], [level, level], lw=3, color=color, label=row["window"])
                error = [[level - row["memorized_low"]], [row["memorized_high"] - level]]
                axes.errorbar([(left + right) / 2], [level], error, color=color, lw=1)
            axes.set(ylabel="memorized fraction", ylim=(-0.04, 1.04), xlim=(-0.6, steps - 0.4))
            axes.set_title(f"{direction} network; the other network on the bar's steps")
        panels[-1].set(xlabel="sampling step (step 0 has the largest noise level)")
        legend(figure, panels[0], columns=3, title="swapped steps; error bars: 95% intervals")
    return figure
