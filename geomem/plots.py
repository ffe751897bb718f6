"""Figures from saved results: numbers and files in, matplotlib figures out.

Sized for one column of a two-column paper; colours from the Okabe-Ito palette, which colour-blind
readers can tell apart, and line styles that survive a gray print.
"""

from __future__ import annotations

import csv
import json
import os
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np

__all__ = ["danger_zone", "read_run", "save"]

_COLUMN = 3.4  # inches
_BLUE, _VERMILLION, _YELLOW = "#0072B2", "#D55E00", "#F0E442"
_STYLE = {
    "font.size": 8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.6,
    "lines.linewidth": 1.4,
    "legend.frameon": False,
    "legend.fontsize": 7,
    "pdf.fonttype": 42,
}


def read_run(folder: str | os.PathLike) -> tuple[dict[str, np.ndarray], dict[str, Any], dict]:
    """(columns of curves.csv, zone.json, run.json) of a danger-zone run.

    Raises:
      ValueError: the folder holds no such run.
    """
    folder = pathlib.Path(folder)
    try:
        with open(folder / "curves.csv", newline="") as file:
            rows = list(csv.DictReader(file))
        zone, run = (json.loads((folder / f"{name}.json").read_text()) for name in ("zone", "run"))
    except (OSError, json.JSONDecodeError) as error:
        raise ValueError(f"plot_only: {folder} is not a danger-zone run ({error})") from None
    return {name: np.array([float(row[name]) for row in rows]) for name in rows[0]}, zone, run


def danger_zone(curves: Mapping[str, np.ndarray], zone: Mapping[str, Any], title: str = ""):
    """Figure 3: coverage and max posterior weight against sigma, bands, bounds, the zone shaded.

    Args:
      curves: the columns of curves.csv, [S] each.
      zone: the content of zone.json.
      title: what the data are.

    Returns:
      A matplotlib Figure.
    """
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(_COLUMN, 2.7), layout="constrained")
        FigureCanvasAgg(figure)
        axes = figure.subplots()
        sigma = curves["sigma"]
        if zone["low"] is not None:
            axes.axvspan(zone["low"], zone["high"], color=_YELLOW, alpha=0.35, lw=0)
            middle = np.sqrt(zone["low"] * zone["high"])
            axes.text(middle, 1.03, "danger zone", ha="center", va="bottom", fontsize=7)
        for name, label, color, style in (
            ("coverage", r"coverage $C_\sigma$", _BLUE, "-"),
            ("max_weight", r"max weight $W_\sigma$", _VERMILLION, "--"),
        ):
            low, high = curves[f"{name}_low"], curves[f"{name}_high"]
            axes.fill_between(sigma, low, high, color=color, alpha=0.3, lw=0)
            axes.plot(sigma, curves[name], style, color=color, label=label)
        lower, upper = curves["coverage_lower_bound"], curves["coverage_upper_bound"]
        axes.plot(sigma, lower, ":", color=_BLUE, lw=0.8, label="coverage, certified bounds")
        axes.plot(sigma, upper, ":", color=_BLUE, lw=0.8)
        axes.plot(sigma, curves["own_weight"], "-.", color=_VERMILLION, lw=0.8, label="own weight")
        axes.axhline(zone["threshold"], color="0.6", lw=0.6, zorder=0)
        axes.set(xscale="log", ylim=(-0.02, 1.02), xlim=(sigma[0], sigma[-1]))
        axes.set(xlabel=r"noise level $\sigma$", ylabel="probability, weight")
        axes.xaxis.set_major_formatter("{x:g}")
        if title:
            axes.set_title(title, fontsize=7, pad=13)
        figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=2)
    return figure


def save(figure, folder: str | os.PathLike, name: str = "figure") -> list[pathlib.Path]:
    """Write NAME.png (300 dpi) and NAME.pdf; returns their paths."""
    paths = [pathlib.Path(folder) / f"{name}.{suffix}" for suffix in ("png", "pdf")]
    for path in paths:
        # No creation date: the same numbers give the same bytes.
        metadata = {"CreationDate": None} if path.suffix == ".pdf" else None
        figure.savefig(path, dpi=300, metadata=metadata)
    return paths
