"""Figures 1 and 2, and the gap at large noise: denoisers against the noise level.

One panel for each training set; a colour for each denoiser made from it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np

from geomem.plots.style import COLORS, COLUMN, sheet

__all__ = ["denoising_error", "large_noise", "noise_level_memorization"]

Table = Mapping[str, np.ndarray]

_COLORS = {"network": "vermillion", "empirical": "blue", "Gaussian": "green"}
_SPLITS = {"train": "-", "heldout": ":"}
_PAIRS = {
    ("network", "Gaussian"): ("vermillion", "-"),
    ("empirical", "Gaussian"): ("blue", "--"),
    ("network", "empirical"): ("purple", "-."),
}


def denoising_error(errors: Table, auc: Table):
    """Figure 1: error on training (solid) and held-out images (dotted); membership beside it.

    Args:
      errors: columns run, train_images, kind, split, sigma, mse, low, high.
      auc: columns run, train_images, kind, sigma, auc, low, high.

    Returns:
      A matplotlib Figure: one panel of errors for each training set, then one of the AUC.
    """
    runs = _runs(errors)
    with sheet(2 * COLUMN, 2.6) as figure:
        *panels, last = figure.subplots(1, len(runs) + 1)
        for axes, (name, title) in zip(panels, runs.items(), strict=True):
            for kind, split, part in _lines(errors, "kind", "split", run=name):
                color = COLORS[_COLORS[kind]]
                label = f"{kind}, {'training' if split == 'train' else 'held-out'} images"
                axes.plot(part["sigma"], part["mse"], _SPLITS[split], color=color, label=label)
                axes.fill_between(
                    part["sigma"], part["low"], part["high"], color=color, alpha=0.25, lw=0
                )
            _levels(axes, errors, title)
            axes.set(yscale="log", ylim=_decades(errors["mse"]))
            axes.sharey(panels[0])
        panels[0].set_ylabel(r"$E\,\Vert m_\sigma(x + \sigma z) - x\Vert^2$")
        for axes in panels[1:]:
            axes.tick_params(labelleft=False)
        handles = panels[0].get_legend_handles_labels()
        figure.legend(*handles, loc="outside lower center", ncols=3)
        for i, name in enumerate(runs):
            for kind, part in _lines(auc, "kind", run=name):
                _band(last, part, "auc", COLORS[_COLORS[kind]], "-" if i == 0 else "--")
        last.axhline(0.5, color="0.6", lw=0.6, zorder=0)
        _levels(last, auc, _styled(runs))
        last.set(ylabel="AUC of membership by error", ylim=(None, 1.02))
    return figure


def noise_level_memorization(rates: Table):
    """Figure 2: the fraction of denoised held-out images that are memorized, with 95% intervals.

    Args:
      rates: columns run, train_images, kind, sigma, rate, low, high.

    Returns:
      A matplotlib Figure.
    """
    runs = _runs(rates)
    with sheet() as figure:
        axes = figure.subplots()
        for i, (name, title) in enumerate(runs.items()):
            for kind, part in _lines(rates, "kind", run=name):
                style, label = "-" if i == 0 else "--", f"{kind}, {title}"
                _band(axes, part, "rate", COLORS[_COLORS[kind]], style, label)
        _levels(axes, rates, "")
        axes.set(ylabel="denoised held-out images\nthat are memorized", ylim=(-0.02, 1.02))
        handles = axes.get_legend_handles_labels()
        title = "denoiser, number of its training images"
        figure.legend(*handles, loc="outside lower center", ncols=2, title=title, title_fontsize=7)
    return figure


def large_noise(gaps: Table):
    """Theorems 4.9 and 4.10: relative gaps between denoisers, on noised training images.

    Args:
      gaps: columns run, train_images, first, second, sigma, gap, low, high.

    Returns:
      A matplotlib Figure: one panel for each training set.
    """
    runs = _runs(gaps)
    with sheet(COLUMN * (1 + (len(runs) > 1)), 2.6) as figure:
        panels = figure.subplots(1, len(runs), sharey=True, squeeze=False)[0]
        for axes, (name, title) in zip(panels, runs.items(), strict=True):
            for first, second, part in _lines(gaps, "first", "second", run=name):
                color, style = _PAIRS[first, second]
                _band(axes, part, "gap", COLORS[color], style, f"{first} - {second}")
            _levels(axes, gaps, title)
            axes.set(yscale="log", ylim=_decades(gaps["gap"]))
        panels[0].set_ylabel("relative gap between denoisers")
        figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=3)
    return figure


def _lines(table: Table, *names: str, **where) -> Iterator[tuple]:
    """(values of `names`..., rows) for each combination in order of appearance."""
    kept = np.all([table[name] == value for name, value in where.items()], axis=0)
    keys = list(zip(*(table[name] for name in names), strict=True))
    for key in dict.fromkeys(key for key, keep in zip(keys, kept, strict=True) if keep):
        rows = kept & np.array([other == key for other in keys])
        yield *map(str, key), {name: column[rows] for name, column in table.items()}


def _band(axes, part, name, color, style, label=None):
    axes.plot(part["sigma"], part[name], style, color=color, label=label)
    axes.fill_between(part["sigma"], part["low"], part["high"], color=color, alpha=0.25, lw=0)


def _levels(axes, table, title):
    axes.set(xscale="log", xlim=(table["sigma"].min(), table["sigma"].max()))
    axes.set_xlabel(r"noise level $\sigma$")
    axes.xaxis.set_major_formatter("{x:g}")
    axes.set_title(title, fontsize=7)


def _decades(values):
    """Limits for a logarithmic axis: five decades and a little, at most."""
    return max(values[values > 0].min(), values.max() * 1e-5) / 1.5, values.max() * 2


def _runs(table):
    """What to call each run, by name."""
    sizes = dict(zip(table["run"], table["train_images"], strict=True))
    labels = {name: f"{size:,.0f} images" for name, size in sizes.items()}
    return labels if len(set(labels.values())) == len(labels) else {name: name for name in labels}


def _styled(runs):
    first, *others = (label.removesuffix(" images") for label in runs.values())
    return f"{first} (solid)" + (f", {', '.join(others)} (dashed)" if others else "") + " images"
