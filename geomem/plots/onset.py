"""Images seen until a network copies, against the number of its training images."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from geomem.plots.style import COLORS, COLUMN, legend, sheet

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["onset"]

_ARMS = {"baseline": ("gray", "s", -0.02), "gap": ("blue", "D", 0.02)}


def onset(rows: Sequence[Mapping[str, Any]], facts: Mapping[str, Any]) -> "Figure":
    """Draw the onset of each network with its checkpoints, and the power law of each arm.

    Args:
      rows: rows of onset.csv.
      facts: as in fits.json.
    """
    from matplotlib.ticker import LogLocator

    with sheet(COLUMN, 3.2) as figure:
        axes = figure.subplots()
        sizes = np.array(sorted({row["train_images"] for row in rows}), float)
        for arm, (color, marker, shift) in _ARMS.items():
            color = COLORS[color]
            own = [row for row in rows if row["arm"] == arm and not row["fresh"]]
            _points(axes, own, shift, color=color, marker=marker, label=arm)
            if (exponent := facts[arm].get("exponent")) is not None:
                values = facts[arm]["constant"] * sizes ** exponent["mean"]
                label = f"{arm}: N to the power {exponent['mean']:.2f}"
                axes.plot(sizes, values, color=color, lw=1.0, label=label)
        fresh = [row for row in rows if row["fresh"]]
        _points(axes, fresh, 0, color=COLORS["vermillion"], marker="o", label="fresh trainings")
        axes.set(xscale="log", yscale="log", xlabel="training images N")
        axes.set(ylabel="images seen until copying starts")
        axes.set_xticks(sizes, [f"{size:g}" for size in sizes])
        axes.minorticks_off()
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter("{x:,.0f}")
        legend(figure, axes, title="arrows: no copies yet at the end of the training")
    return figure


def _points(axes, rows, shift, *, color, marker, label):
    """Each network's onset, between two checkpoints; an arrow if it never copied."""
    for row in rows:
        x = row["train_images"] * (1 + shift)
        if row["onset"] is None:
            axes.plot(x, row["without_copies"], "^", color=color, ms=4, mfc="none")
        else:
            axes.plot([x, x], [row["without_copies"], row["with_copies"]], color=color, lw=0.8)
            axes.plot(x, row["onset"], marker, color=color, ms=3, mec="none", label=label)
            label = None
