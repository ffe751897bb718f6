"""Copies against image quality, and against the place of the repair, for the repair experiment."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from geomem.plots.style import COLORS, COLUMN, ZONE, legend, noise_axis, sheet

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["frontier", "windows"]

Rows = Sequence[Mapping[str, Any]]

_WORDS = {"zone": "in", "above": "above", "below": "below"}
_COLORS = "blue", "vermillion", "green"
_PLACES = {"zone": ("vermillion", "o"), "above": ("sky", "^"), "below": ("green", "v")}


def frontier(summary: Rows, chosen: str) -> "Figure":
    """Draw copies against the Frechet distance: repairs, gap training, and early stopping.

    Args:
      summary: rows of summary.csv.
      chosen: the replacement that was fixed before the runs.
    """
    with sheet(COLUMN, 3.6) as figure:
        axes = figure.subplots()
        plain = [row for row in summary if row["variant"] == "none" and row["arm"] == "baseline"]
        line = dict(color=COLORS["gray"], lw=1.0, ms=3, marker="s")
        axes.plot(*_columns(plain), label="no repair, stopped earlier", **line)
        axes.plot(*_columns(plain[-1:]), "s", color=COLORS["gray"], ms=7, label="no repair")
        gap = [row for row in summary if row["arm"] == "gap"]
        axes.plot(*_columns(gap), "D", color=COLORS["blue"], ms=5, label="gap training")
        for row in summary:
            place, _, name = row["variant"].partition(": ")
            if place not in _PLACES:
                continue
            color, marker = _PLACES[place]
            style = dict(color=COLORS[color], marker=marker, ls="", mec="none")
            axes.plot(
                *_columns([row]), ms=4, alpha=0.6, label=f"repair {_WORDS[place]} the zone", **style
            )
            if row["variant"] == f"zone: {chosen}":
                circle = dict(mfc="none", mec=COLORS["vermillion"], ms=9, marker="o", ls="")
                axes.plot(*_columns([row]), label=f"{name}, chosen before", **circle)
        axes.set(xlabel="Frechet distance to held-out images, lower is better", ylim=(-0.02, 1.02))
        axes.set(ylabel="copies (aligned, calibrated)")
        legend(figure, axes, title="means over networks")
    return figure


def windows(summary: Rows, zone: Sequence[float], chosen: str) -> "Figure":
    """Draw copies after repairs on windows of steps, each as a bar over its noise levels.

    Args:
      summary: rows of summary.csv.
      zone: edges of the danger zone.
      chosen: the replacement.
    """
    bars = [row for row in summary if row["variant"].startswith("window")]
    counts = [_steps(row) for row in bars]
    plain = [row for row in summary if row["variant"] == "none" and row["arm"] == "baseline"][-1]
    with sheet(COLUMN, 4.2) as figure:
        panels = figure.subplots(2, sharex=True)
        for axes, key, label in (
            (panels[0], "aligned", "copies (aligned,\ncalibrated)"),
            (panels[1], "frechet", "Frechet distance"),
        ):
            axes.axvspan(*zone, **ZONE)
            axes.axhline(plain[key], color=COLORS["gray"], lw=0.8, ls="--", label="no repair")
            for color, count in zip(_COLORS, sorted(set(counts)), strict=False):
                some = [row for row, own in zip(bars, counts, strict=True) if own == count]
                middle = [np.sqrt(row["sigma_from"] * row["sigma_to"]) for row in some]
                values = [row[key] for row in some]
                steps = f"{count} step{'s' * (count > 1)}"
                axes.plot(middle, values, "o-", color=COLORS[color], ms=3, lw=1.0, label=steps)
            axes.set(ylabel=label)
        panels[0].set(ylim=(-0.02, 1.02))
        sigmas = [row[edge] for row in bars for edge in ("sigma_from", "sigma_to")]
        noise_axis(panels[1], min(sigmas) / 1.3, max(sigmas) * 1.3)
        panels[1].set_xlabel(r"middle of the repaired steps, noise level $\sigma$")
        legend(figure, panels[0], title=f"{chosen} in place of the network on")
    return figure


def _columns(rows):
    return [row["frechet"] for row in rows], [row["aligned"] for row in rows]


def _steps(row):
    first, last = row["variant"].rpartition("steps ")[2].split(" to ")
    return int(last) - int(first) + 1
