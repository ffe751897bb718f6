"""Figure 3: the coverage and the max posterior weight of a data set, with the danger zone."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping
from typing import Any

import numpy as np

from geomem import paths
from geomem.plots.style import COLORS, sheet

__all__ = ["danger_zone", "read_run"]


def read_run(folder: paths.AnyPath) -> tuple[dict[str, np.ndarray], dict[str, Any], dict]:
    """(columns of curves.csv, zone.json, run.json) of a danger-zone run.

    Raises:
      ValueError: the folder holds no such run.
    """
    folder = paths.as_path(folder)
    try:
        rows = list(csv.DictReader((folder / "curves.csv").read_text().splitlines()))
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
    blue, vermillion = COLORS["blue"], COLORS["vermillion"]
    with sheet() as figure:
        axes = figure.subplots()
        sigma = curves["sigma"]
        if zone["low"] is not None:
            axes.axvspan(zone["low"], zone["high"], color=COLORS["yellow"], alpha=0.35, lw=0)
            middle = np.sqrt(zone["low"] * zone["high"])
            axes.text(middle, 1.03, "danger zone", ha="center", va="bottom", fontsize=7)
        for name, label, color, style in (
            ("coverage", r"coverage $C_\sigma$", blue, "-"),
            ("max_weight", r"max weight $W_\sigma$", vermillion, "--"),
        ):
            low, high = curves[f"{name}_low"], curves[f"{name}_high"]
            axes.fill_between(sigma, low, high, color=color, alpha=0.3, lw=0)
            axes.plot(sigma, curves[name], style, color=color, label=label)
        lower, upper = curves["coverage_lower_bound"], curves["coverage_upper_bound"]
        axes.plot(sigma, lower, ":", color=blue, lw=0.8, label="coverage, certified bounds")
        axes.plot(sigma, upper, ":", color=blue, lw=0.8)
        axes.plot(sigma, curves["own_weight"], "-.", color=vermillion, lw=0.8, label="own weight")
        axes.axhline(zone["threshold"], color="0.6", lw=0.6, zorder=0)
        axes.set(xscale="log", ylim=(-0.02, 1.02), xlim=(sigma[0], sigma[-1]))
        axes.set(xlabel=r"noise level $\sigma$", ylabel="probability, weight")
        axes.xaxis.set_major_formatter("{x:g}")
        if title:
            axes.set_title(title, fontsize=7, pad=13)
        figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=2)
    return figure
