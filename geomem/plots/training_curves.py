"""Figure 4, and memorization against image quality, for several arms during training."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from geomem.plots.style import COLORS, COLUMN, legend, sheet

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["along_training", "frontier"]

_ORDER = ("gray", "purple", "vermillion", "blue", "green", "sky", "orange", "black")
_MARKERS = "osDv^<>P"


def along_training(rows: Sequence[Mapping[str, Any]]) -> "Figure":
    """Draw Figure 4: memorized fraction and image quality during training.

    Args:
      rows: the rows of results.csv, with arm, seed, kimg, memorized, without_noise, frechet and
        features.
    """
    with sheet(COLUMN, 4.2) as figure:
        top, bottom = figure.subplots(2, sharex=True)
        for marker, (arm, arm_rows) in zip(_markers(), _by_arm(rows).items(), strict=False):
            kimg = np.unique([row["kimg"] for row in arm_rows])
            for axes, key, line in (
                (top, "memorized", "-"),
                (top, "without_noise", ":"),
                (bottom, "frechet", "-"),
            ):
                mean, error = _mean(arm_rows, key)
                label = arm if line == "-" else None
                axes.errorbar(kimg, mean, error, ls=line, label=label, lw=1.1, ms=3, **marker)
        top.set(ylabel="memorized fraction", ylim=(-0.02, 1.02))
        bottom.set(xlabel="training images seen (thousands)", ylabel=_quality(rows))
        top.set_title("solid: samples as they are; dotted: residual noise removed")
        legend(figure, top, title="error bars: standard errors over seeds")
    return figure


def frontier(rows: Sequence[Mapping[str, Any]]) -> "Figure":
    """Draw memorization (noise removed) against image quality; each line is one arm's training.

    Args:
      rows: as for `along_training`.
    """
    arms = _by_arm(rows)
    with sheet(COLUMN, 2.0 + 0.16 * len(arms) / 2) as figure:
        axes = figure.subplots()
        for marker, (arm, arm_rows) in zip(_markers(), arms.items(), strict=False):
            quality, memorized = (_mean(arm_rows, key)[0] for key in ("frechet", "without_noise"))
            axes.plot(quality, memorized, "-", lw=0.9, ms=2.5, alpha=0.8, **marker)
            axes.plot(quality[-1:], memorized[-1:], ls="", ms=6, label=arm, **marker)
        axes.set(xlabel=f"{_quality(rows)}, lower is better", ylim=(-0.02, 1.02))
        axes.set(ylabel="memorized fraction,\nresidual noise removed")
        legend(figure, axes, title="small markers: checkpoints; large: end of training")
    return figure


def _markers():
    """64 different pairs of color and marker."""
    for shift in range(len(_MARKERS)):
        for i, color in enumerate(_ORDER):
            yield {"color": COLORS[color], "marker": _MARKERS[(i + shift) % len(_MARKERS)]}


def _by_arm(rows):
    arms = dict.fromkeys(row["arm"] for row in rows)
    return {arm: [row for row in rows if row["arm"] == arm] for arm in arms}


def _mean(rows, key):
    """Mean and standard error over seeds at each length of training."""
    columns = {}
    for row in rows:
        columns.setdefault(float(row["kimg"]), []).append(float(row[key]))
    values = [np.array(columns[kimg]) for kimg in sorted(columns)]
    errors = [v.std(ddof=1) / np.sqrt(len(v)) if len(v) > 1 else 0.0 for v in values]
    return np.array([v.mean() for v in values]), np.array(errors)


def _quality(rows):
    features = rows[0]["features"]
    return "FID" if features == "inception-2015" else f"Frechet distance ({features})"
