"""Figures of an audit: copies side by side, the zone against N, the noise of usual training."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from geomem.diffusion.conversions import TrainingNoise
from geomem.geometry.growth import Closing, Growth
from geomem.plots.style import COLORS, COLUMN, sheet

__all__ = ["COPIES", "copies", "growth", "training_noise"]

COPIES = 4  # shown of each group
_LABEL = 24  # letters of a file's name


def copies(groups: Sequence[tuple[np.ndarray, Sequence[str]]]):
    """Thumbnails of groups of copies.

    Args:
      groups: for each, float images [K, H, W, C] in [-1, 1], C = 1 or 3, and their K names.
        The first COPIES are shown, and dots for the others.

    Returns:
      A matplotlib Figure.
    """
    # Pairs stand two on a row.
    cells = 2 if all(len(images) <= 2 for images, _ in groups) else COPIES
    across = COPIES // cells
    rows = -(-len(groups) // across)
    widths = ([1] * cells + [0.4]) * across
    with sheet(COLUMN, 0.2 + 1.0 * rows) as figure:
        grid = figure.subplots(rows, len(widths), squeeze=False, width_ratios=widths)
        for axes in grid.ravel():
            axes.axis("off")
        for place, (images, names) in enumerate(groups):
            row, column = divmod(place, across)
            start = column * (cells + 1)
            for axes, image, name in zip(grid[row, start:], images[:cells], names, strict=False):
                shown = np.clip((image + 1) / 2, 0, 1)
                shown = shown if image.shape[2] == 3 else shown[..., 0]
                axes.imshow(shown, cmap="gray", vmin=0, vmax=1, interpolation="nearest")
                short = name if len(name) <= _LABEL else f"…{name[1 - _LABEL :]}"
                axes.set_title(short, fontsize=5, pad=2, parse_math=False)
            if len(images) > cells:
                grid[row, start + cells].text(0, 0.5, "…", fontsize=8)
    return figure


def growth(measured: Growth, closing: Closing | None):
    """The zone's edges and its peak against the number of training images.

    Args:
      measured: the zone on subsamples.
      closing: the line through its width, drawn as one line for each edge; or None.

    Returns:
      A matplotlib Figure.
    """
    count = measured.count
    with sheet(height=3.6) as figure:
        top, bottom = figure.subplots(2, 1, sharex=True, height_ratios=(2, 1))
        reach = count.max() * (16 if closing else 1.3)
        line = np.union1d(np.geomspace(count.min(), reach, 50), [count.max()])
        known = np.isfinite(measured.width)
        edges = []
        for edge, color, marker, label in (
            (measured.left, "vermillion", "s", r"max weight leaves {:g}"),
            (measured.reached, "blue", "o", r"coverage reaches {:g}"),
        ):
            label = label.format(measured.threshold)
            top.plot(count, edge, marker, color=COLORS[color], ms=3, label=label)
            if closing:
                fit = np.polyfit(np.log(count[known]), np.log(edge[known]), 1)
                edges.append(np.exp(np.polyval(fit, np.log(line))))
                top.plot(line, edges[-1], "--", color=COLORS[color], lw=0.8)
        if closing:
            upper, lower = edges
            inside = (line <= count.max()) & (upper > lower)
            beyond = (line >= count.max()) & (upper > lower)
            top.fill_between(line, lower, upper, inside, color=COLORS["yellow"], alpha=0.35, lw=0)
            top.fill_between(line, lower, upper, beyond, color=COLORS["yellow"], alpha=0.15, lw=0)
        for axes in (top, bottom):
            axes.axvline(count.max(), color="0.6", lw=0.6)
        top.annotate(
            "  extrapolated" if closing else "",
            (count.max(), 1.0),
            xycoords=("data", "axes fraction"),
            fontsize=6,
            va="top",
        )
        top.set(xscale="log", yscale="log", ylabel=r"noise level $\sigma$")
        top.yaxis.set_major_formatter("{x:g}")
        top.yaxis.set_minor_formatter("{x:g}")
        top.tick_params(which="minor", labelsize=6)
        bottom.plot(count, measured.peak_level, "D", color=COLORS["green"], ms=3)
        bottom.axhline(measured.threshold, color="0.6", lw=0.6, zorder=0)
        bottom.set(ylim=(0, 1.02), ylabel="peak of\nmin(C, W)", xlabel="training images")
        handles = top.get_legend_handles_labels()
        figure.legend(*handles, loc="outside lower center", ncols=2)
    return figure


def training_noise(
    noises: Sequence[TrainingNoise], zone: tuple[float, float] | None, cells: int = 48
):
    """How often recipes train on each noise level, with the zone shaded.

    Args:
      noises: the recipes.
      zone: its edges, or None for no shading and no shares.
      cells: of equal width in ln sigma, between 0.003 and 300, in which the levels are counted.

    Returns:
      A matplotlib Figure.
    """
    edges = np.geomspace(3e-3, 300, cells + 1)
    middle, width = np.sqrt(edges[1:] * edges[:-1]), np.log(edges[1] / edges[0])
    styles = zip(
        ("vermillion", "blue", "sky", "green", "purple"), ("-", "-", "--", "-", "--"), strict=True
    )
    with sheet(height=3.1) as figure:
        axes = figure.subplots()
        if zone:
            axes.axvspan(*zone, color=COLORS["yellow"], alpha=0.35, lw=0)
            axes.text(
                np.sqrt(zone[0] * zone[1]),
                1.02,
                "danger zone",
                ha="center",
                fontsize=7,
                transform=axes.get_xaxis_transform(),
            )
        for noise, (color, style) in zip(noises, styles, strict=False):
            label = f"{noise.name}: {noise.share(*zone):.0%}" if zone else noise.name
            density = np.diff(noise.cumulative(edges)) / width
            axes.plot(middle, density, style, color=COLORS[color], lw=1.1, label=label)
        axes.set(xscale="log", xlim=(edges[0], edges[-1]), ylim=(0, None))
        axes.set(xlabel=r"noise level $\sigma$", ylabel=r"training steps per unit of $\ln \sigma$")
        axes.xaxis.set_major_formatter("{x:g}")
        handles = axes.get_legend_handles_labels()
        title = "share of training steps inside the zone" if zone else None
        figure.legend(*handles, loc="outside lower center", ncols=1, title=title, title_fontsize=7)
    return figure
