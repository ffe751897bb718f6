"""Computing time against the number of points."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from geomem.plots.style import COLORS, legend, sheet

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["time_by_points"]

_STYLES = (("blue", "o", "-"), ("vermillion", "s", "--"), ("green", "^", ":"))


def time_by_points(seconds: Mapping[str, Sequence[tuple[int, float]]], title: str = "") -> "Figure":
    """Draw measured times, each with the line through zero that fits it best.

    Args:
      seconds: (points, seconds) pairs by the name of what was timed.
      title: title of the figure.
    """
    with sheet() as figure:
        axes = figure.subplots()
        for (name, pairs), (color, marker, style) in zip(seconds.items(), _STYLES, strict=False):
            count, time = np.array(pairs).T
            slope = (count * time).sum() / (count**2).sum()
            label = f"{name}: {1e6 * slope:.1f} µs per point"
            axes.plot(count / 1000, time, marker, color=COLORS[color], ms=4, label=label)
            ends = np.array([0, count.max()])
            axes.plot(ends / 1000, slope * ends, style, color=COLORS[color], lw=0.8)
        axes.set(xlabel="points on disk (thousands)", ylabel="time (seconds)", title=title)
        axes.set(xlim=(0, None), ylim=(0, None))
        legend(figure, axes, columns=1, title="lines: least-squares fits through zero")
    return figure
