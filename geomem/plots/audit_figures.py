"""Figures of an audit: the zone against N, the noise of usual training, thumbnails of copies."""

from __future__ import annotations

import io
from collections.abc import Sequence

import numpy as np

from geomem.diffusion.conventions import TrainingNoise
from geomem.geometry.growth import Closing, Growth
from geomem.plots.style import COLORS, sheet

__all__ = ["growth", "thumbnail", "training_noise"]

_SIDE = 64  # pixels of a thumbnail


def thumbnail(image: np.ndarray) -> bytes:
    """A PNG file of an image [H, W, C] as stored (uint8, or floats in [-1, 1]), at most 64 wide.

    Of two or four channels only the first is shown.
    """
    from PIL import Image

    if image.dtype != np.uint8:
        image = np.rint((np.clip(image, -1, 1) + 1) * 127.5).astype(np.uint8)
    picture = Image.fromarray(image if image.shape[2] == 3 else image[..., 0])
    picture.thumbnail((_SIDE, _SIDE))
    file = io.BytesIO()
    picture.save(file, format="PNG")
    return file.getvalue()


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
