"""Figure 4 and its frontier: memorization and quality of several arms along their training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from geomem.plots.style import COLORS, COLUMN, sheet

__all__ = ["along_training", "frontier"]

_ORDER = ("gray", "purple", "vermillion", "blue", "green", "sky", "orange")
_MARKERS = "osDv^<>"


def along_training(rows: Sequence[Mapping[str, Any]]):
    """Figure 4: memorized fraction (dotted: after noise removal) and quality against training.

    Args:
      rows: of results.csv: arm, seed, kimg, memorized, without_noise,
        frechet, features.

    Returns:
      A matplotlib Figure. Bars are standard errors over the seeds.
    """
    with sheet(COLUMN, 4.2) as figure:
        top, bottom = figure.subplots(2, sharex=True)
        for look, (arm, of_arm) in zip(_looks(), _by_arm(rows).items(), strict=False):
            kimg = np.unique([row["kimg"] for row in of_arm])
            for axes, key, line in (
                (top, "memorized", "-"),
                (top, "without_noise", ":"),
                (bottom, "frechet", "-"),
            ):
                mean, error = _mean(of_arm, key)
                label = arm if line == "-" else None
                axes.errorbar(kimg, mean, error, ls=line, label=label, lw=1.1, ms=3, **look)
        top.set(ylabel="memorized fraction", ylim=(-0.02, 1.02))
        bottom.set(xlabel="images seen (thousands)", ylabel=_quality(rows))
        top.set_title("solid: as sampled; dotted: after left-over noise is removed", fontsize=7)
        figure.legend(*top.get_legend_handles_labels(), loc="outside lower center", ncols=2)
    return figure


def frontier(rows: Sequence[Mapping[str, Any]]):
    """Memorization after noise removal against quality; each line is one arm along its training.

    Args:
      rows: as for `along_training`.

    Returns:
      A matplotlib Figure. Large markers are the ends of the trainings.
    """
    arms = _by_arm(rows)
    with sheet(COLUMN, 2.0 + 0.16 * len(arms) / 2) as figure:
        axes = figure.subplots()
        for look, (arm, of_arm) in zip(_looks(), arms.items(), strict=False):
            quality, memorized = (_mean(of_arm, key)[0] for key in ("frechet", "without_noise"))
            axes.plot(quality, memorized, "-", lw=0.9, ms=2.5, alpha=0.8, **look)
            axes.plot(quality[-1:], memorized[-1:], ls="", ms=6, label=arm, **look)
        axes.set(xlabel=f"{_quality(rows)} (lower is better)", ylim=(-0.02, 1.02))
        axes.set(ylabel="memorized, noise removed")
        figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=2)
    return figure


def _looks():
    """Colors and markers that differ from arm to arm, 49 of them."""
    for shift in range(len(_MARKERS)):
        for i, color in enumerate(_ORDER):
            yield {"color": COLORS[color], "marker": _MARKERS[(i + shift) % len(_MARKERS)]}


def _by_arm(rows):
    arms = dict.fromkeys(row["arm"] for row in rows)
    return {arm: [row for row in rows if row["arm"] == arm] for arm in arms}


def _mean(rows, key):
    """Mean and standard error over seeds, [K] each, at each length of training."""
    columns = {}
    for row in rows:
        columns.setdefault(float(row["kimg"]), []).append(float(row[key]))
    values = [np.array(columns[kimg]) for kimg in sorted(columns)]
    errors = [v.std(ddof=1) / np.sqrt(len(v)) if len(v) > 1 else 0.0 for v in values]
    return np.array([v.mean() for v in values]), np.array(errors)


def _quality(rows):
    features = rows[0]["features"]
    return "FID" if features == "inception-2015" else f"Frechet distance ({features})"
