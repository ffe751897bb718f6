"""Figures 1 and 2, and the gap at large noise: denoisers at each noise level.

Panels or line styles distinguish the training sets, and colors the denoisers.
"""

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Shaped

from geomem.plots.style import COLORS, COLUMN, legend, noise_axis, plain, sheet

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["denoising_error", "large_noise", "local_denoisers", "noise_level_memorization"]

Table = Mapping[str, Shaped[np.ndarray, " rows"]]  # columns by name

_COLORS = {
    "network": "vermillion",
    "empirical": "blue",
    "Gaussian": "green",
    "Wiener": "sky",
    "LS": "orange",
    "ELS": "purple",
    "PCA": "gray",
}
_DASHES = {"network": "-", "empirical": "-", "Gaussian": "--", "Wiener": "--"}
_SPLITS = {"train": ("-", "training images"), "heldout": (":", "held-out images")}
_PAIRS = {
    ("network", "Gaussian"): ("vermillion", "-"),
    ("empirical", "Gaussian"): ("blue", "--"),
    ("network", "empirical"): ("purple", "-."),
}
_BANDS = "bands: 95% intervals"


def denoising_error(errors: Table, auc: Table) -> "Figure":
    """Draw Figure 1: the denoising error, a panel for each training set, and the membership AUC.

    Args:
      errors: columns run, train_images, kind, split, sigma, mse, low, high.
      auc: columns run, train_images, kind, sigma, auc, low, high.
    """
    runs = _run_labels(errors)
    with sheet(2 * COLUMN, 2.6) as figure:
        *panels, auc_panel = figure.subplots(1, len(runs) + 1)
        for axes, (run, title) in zip(panels, runs.items(), strict=True):
            for kind, split, rows in _groups(errors, "kind", "split", run=run):
                style, images = _SPLITS[split]
                _line(axes, rows, "mse", COLORS[_COLORS[kind]], style, f"{kind}, {images}")
            _format_levels(axes, errors, title)
            axes.set(yscale="log", ylim=_log_limits(errors["mse"]))
            axes.sharey(panels[0])
        formula = r"$E\,\Vert m_\sigma(x + \sigma z) - x\Vert^2$"
        panels[0].set_ylabel(f"denoising error\n{formula}")
        for axes in panels[1:]:
            axes.tick_params(labelleft=False)
        legend(figure, panels[0], columns=3, title=_BANDS)
        for run, style in zip(runs, _styles(runs), strict=True):
            for kind, rows in _groups(auc, "kind", run=run):
                _line(auc_panel, rows, "auc", COLORS[_COLORS[kind]], style)
        auc_panel.axhline(0.5, color="0.6", lw=0.6, zorder=0)
        right = auc_panel.get_yaxis_transform()
        auc_panel.text(1, 0.49, "chance", fontsize=6, ha="right", va="top", transform=right)
        first, *others = (label.removesuffix(" images") for label in runs.values())
        title = ", ".join([f"solid: {first}", *(f"dashed: {label}" for label in others)])
        _format_levels(auc_panel, auc, f"{title} images")
        auc_panel.set(ylabel="AUC, membership inferred\nfrom denoising error", ylim=(None, 1.02))
    return figure


def noise_level_memorization(rates: Table) -> "Figure":
    """Draw Figure 2: the fraction of denoised held-out images that are memorized.

    Args:
      rates: columns run, train_images, kind, sigma, rate, low, high.
    """
    runs = _run_labels(rates)
    with sheet() as figure:
        axes = figure.subplots()
        for (run, label), style in zip(runs.items(), _styles(runs), strict=True):
            for kind, rows in _groups(rates, "kind", run=run):
                _line(axes, rows, "rate", COLORS[_COLORS[kind]], style, f"{kind}, {label}")
        _format_levels(axes, rates, "")
        axes.set(ylabel="memorized fraction of\ndenoised held-out images", ylim=(-0.02, 1.02))
        legend(figure, axes, title=f"denoiser and its number of training images; {_BANDS}")
    return figure


def large_noise(gaps: Table) -> "Figure":
    """Draw the relative gaps between denoisers on noised training images (Theorems 4.9, 4.10).

    Args:
      gaps: columns run, train_images, first, second, sigma, gap, low, high.
    """
    runs = _run_labels(gaps)
    with sheet(COLUMN * (1 + (len(runs) > 1)), 2.6) as figure:
        panels = figure.subplots(1, len(runs), sharey=True, squeeze=False)[0]
        for axes, (run, title) in zip(panels, runs.items(), strict=True):
            for first, second, rows in _groups(gaps, "first", "second", run=run):
                color, style = _PAIRS[first, second]
                _line(axes, rows, "gap", COLORS[color], style, f"{first}, {second}")
            _format_levels(axes, gaps, title)
            axes.set(yscale="log", ylim=_log_limits(gaps["gap"]))
        formula = r"$\sqrt{E\,\Vert a - b\Vert^2 / E\,\Vert b - c\Vert^2}$"
        panels[0].set_ylabel("relative gap\nbetween denoisers")
        title = f"relative gap of a, b: {formula}, c the mean image\n{_BANDS}"
        legend(figure, panels[0], columns=3 if len(runs) > 1 else 2, title=title)
    return figure


def local_denoisers(local: Table) -> "Figure":
    """Draw each denoiser's error on held-out images, and how well it predicts the network.

    Args:
      local: columns run, train_images, kind, sigma, mse, mse_low, mse_high, r2, r2_low, r2_high.
    """
    runs = _run_labels(local)
    with sheet(COLUMN * (1 + (len(runs) > 1)), 4.2) as figure:
        panels = figure.subplots(2, len(runs), sharex=True, sharey="row", squeeze=False)
        for (errors, agreement), (run, title) in zip(panels.T, runs.items(), strict=True):
            for kind, rows in _groups(local, "kind", run=run):
                color, style = COLORS[_COLORS[kind]], _DASHES.get(kind, ":")
                _line(errors, rows, "mse", color, style, kind, "mse_")
                if kind != "network":
                    _line(agreement, rows, "r2", color, style, kind, "r2_")
            _format_levels(errors, local, title)
            _format_levels(agreement, local, "")
            errors.set(yscale="log", ylim=_log_limits(local["mse"]), xlabel="")
            agreement.set(ylim=(-0.55, 1.05))
            agreement.axhline(0, color="0.6", lw=0.6, zorder=0)
        panels[0, 0].set_ylabel("denoising error on\nheld-out images")
        panels[1, 0].set_ylabel(r"$r^2$ to the network")
        legend(figure, panels[0, 0], columns=4, title=_BANDS)
    return figure


def _groups(table: Table, *names: str, **where) -> Iterator[tuple]:
    """Yield (values of `names`..., rows) for each combination, in order of appearance."""
    kept = np.all([table[name] == value for name, value in where.items()], axis=0)
    keys = list(zip(*(table[name] for name in names), strict=True))
    for key in dict.fromkeys(key for key, keep in zip(keys, kept, strict=True) if keep):
        rows = kept & np.array([row_key == key for row_key in keys])
        yield *map(str, key), {name: column[rows] for name, column in table.items()}


def _line(axes, rows, name, color, style, label=None, band=""):
    axes.plot(rows["sigma"], rows[name], style, color=color, label=label)
    low, high = rows[f"{band}low"], rows[f"{band}high"]
    axes.fill_between(rows["sigma"], low, high, color=color, alpha=0.25, lw=0)


def _format_levels(axes, table, title):
    noise_axis(axes, table["sigma"].min(), table["sigma"].max())
    axes.set_title(title)


def _log_limits(values):
    """Limits of a logarithmic axis, at most about five decades."""
    return max(values[values > 0].min(), values.max() * 1e-5) / 1.5, values.max() * 2


def _run_labels(table):
    """Labels by run: the numbers of training images if they all differ, else the runs' names."""
    sizes = dict(zip(table["run"], table["train_images"], strict=True))
    labels = {run: f"{size:,.0f} images" for run, size in sizes.items()}
    differ = len(set(labels.values())) == len(labels)
    return labels if differ else {run: plain(run) for run in labels}


def _styles(runs):
    return ["-"] + ["--"] * (len(runs) - 1)
