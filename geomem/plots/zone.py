"""Figure 3: coverage and max posterior weight against the noise level, with the danger zone."""

import csv
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float

from geomem import paths
from geomem.diffusion.schedules import check_interval
from geomem.geometry.curves import Curves, check_sigmas
from geomem.geometry.danger_zone import Zone, check_threshold
from geomem.plots.style import COLORS, ZONE, legend, noise_axis, sheet

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["danger_zone", "read_run"]


def read_run(folder: paths.AnyPath) -> tuple[dict[str, np.ndarray], dict[str, Any], dict]:
    """Return the columns of curves.csv, zone.json and run.json of a finished danger-zone run.

    Raises:
      ValueError: the folder does not hold such a run.
    """
    folder = paths.as_path(folder)
    try:
        rows = list(csv.DictReader((folder / "curves.csv").read_text().splitlines()))
        columns = {name: np.array([float(row[name]) for row in rows]) for name in rows[0]}
        zone, run = (paths.read_json(folder / f"{name}.json") for name in ("zone", "run"))
        _check(columns, zone)
    except (OSError, ValueError, TypeError, KeyError, IndexError, csv.Error) as error:
        raise ValueError(f"plot_only must be a danger-zone run, got {folder} ({error}).") from None
    return columns, zone, run


def _check(columns, zone):
    """Raise a ValueError if these cannot be results."""
    check_sigmas(columns["sigma"])
    for name, values in columns.items():
        is_fraction = name.startswith(("coverage", "max_weight", "own_weight"))
        if is_fraction and not (np.abs(values - 0.5) <= 0.5 + 1e-5).all():
            raise ValueError(f"{name} must be in [0, 1] in curves.csv")
    check_threshold(zone["threshold"])
    intervals = [(zone["low"], zone["high"]), *zone.get("others", ())]
    for low, high in intervals if intervals[0] != (None, None) else ():
        check_interval("the zone", low, high)


def danger_zone(
    curves: Curves | Mapping[str, Float[np.ndarray, " levels"]],
    zone: Zone | Mapping[str, Any],
    title: str = "",
) -> "Figure":
    """Draw coverage and max posterior weight with 95% bands and bounds, and shade the danger zone.

    Args:
      curves: from `geometry.curves.estimate`; or the columns of curves.csv.
      zone: from `geometry.danger_zone.find`; or the content of zone.json.
      title: describes the data.
    """
    columns = curves.columns() if isinstance(curves, Curves) else curves
    zone = zone._asdict() if isinstance(zone, Zone) else zone
    blue, vermillion = COLORS["blue"], COLORS["vermillion"]
    sigma = columns["sigma"]
    with sheet(height=3.0) as figure:
        axes = figure.subplots()
        others = zone.get("others", ())
        for low, high in [(zone["low"], zone["high"]), *others] if zone["low"] else ():
            axes.axvspan(low, high, **ZONE)
        threshold = f"threshold {zone['threshold']:g}"
        axes.axhline(zone["threshold"], color="0.5", lw=0.7, zorder=0, label=threshold)
        for name, label, color, style in (
            ("coverage", r"coverage $C_\sigma$, 95% band", blue, "-"),
            ("max_weight", r"max weight $W_\sigma$, 95% band", vermillion, "--"),
        ):
            low, high = columns[f"{name}_low"], columns[f"{name}_high"]
            axes.fill_between(sigma, low, high, color=color, alpha=0.3, lw=0)
            axes.plot(sigma, columns[name], style, color=color, label=label)
        label = r"certified bounds on $C_\sigma$"
        for name in ("coverage_lower_bound", "coverage_upper_bound"):
            axes.plot(sigma, columns[name], ":", color=blue, lw=0.9, label=label)
        label = "weight of the noised image"
        axes.plot(sigma, columns["own_weight"], "-.", color=vermillion, lw=0.8, label=label)
        noise_axis(axes, sigma[0], sigma[-1])
        axes.set(ylim=(-0.02, 1.02), ylabel=r"coverage $C_\sigma$, max weight $W_\sigma$")
        axes.set_title(title)
        legend(figure, axes)
    return figure
