"""Figures of an audit: known sets, the zone against the number of images, training noise."""

import io
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Shaped

from geomem.diffusion.conventions import TrainingNoise
from geomem.geometry.growth import Growth
from geomem.plots.style import COLORS, COLUMN, ZONE, legend, noise_axis, sheet

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["copies_by_size", "growth", "thumbnail", "training_noise"]

_SIDE = 64  # pixels of a thumbnail


def thumbnail(image: Shaped[np.ndarray, "height width channels"]) -> bytes:
    """Return a PNG file of an image as stored: uint8, or floats in [-1, 1].

    Images larger than 64 pixels are reduced. Of two or four channels, only the first is shown.
    """
    from PIL import Image

    if image.dtype != np.uint8:
        image = np.rint((np.clip(image, -1, 1) + 1) * 127.5).astype(np.uint8)
    picture = Image.fromarray(image if image.shape[2] == 3 else image[..., 0])
    picture.thumbnail((_SIDE, _SIDE))
    file = io.BytesIO()
    picture.save(file, format="PNG")
    return file.getvalue()


def copies_by_size(networks: Sequence[Mapping[str, Any]], count: int) -> "Figure":
    """Draw the copies that trained networks made against their number of training images.

    Args:
      networks: each with data, count and copied, of which the last is drawn.
      count: number of images of the audited set.
    """
    with sheet(COLUMN, 2.3) as figure:
        axes = figure.subplots()
        axes.axvspan(count / 1.06, count * 1.06, color=COLORS["orange"], lw=0)
        axes.text(count, 112, "this set", ha="center", fontsize=8, weight="bold")
        for network in networks:
            digits = network["data"] == "digits"
            color, marker = ("purple", "D") if digits else ("blue", "o")
            rate = 100 * network["copied"][-1]
            axes.plot(network["count"], rate, marker, color=COLORS[color], ms=5, clip_on=False)
            label = f"{network['count']:,} {'digits' if digits else 'CIFAR-10'}"
            left = network["count"] >= (500 if digits else 10_000)
            place = {"xytext": (-7 if left else 7, 3), "ha": "right" if left else "left"}
            axes.annotate(
                label, (network["count"], rate), textcoords="offset points", fontsize=7, **place
            )
        axes.set(xscale="log", xlim=(min(80, count / 2), max(100_000, 2 * count)), ylim=(-4, 108))
        axes.set(xlabel="number of training images", ylabel="copies among generated\nimages (%)")
        axes.xaxis.set_major_formatter("{x:,.0f}")
    return figure


def growth(subsamples: Growth) -> "Figure":
    """Draw the zone's edges and its peak against the number of training images.

    The lines are least-squares fits within the range of measured sizes.
    """
    count, threshold = subsamples.count, subsamples.threshold
    known = np.isfinite(subsamples.width)
    edges = {
        f"upper edge: max weight = {threshold:g}": (subsamples.left, "vermillion", "s"),
        f"lower edge: coverage = {threshold:g}": (subsamples.reached, "blue", "o"),
    }
    with sheet(height=3.6) as figure:
        top, bottom = figure.subplots(2, 1, sharex=True, height_ratios=(2, 1))
        for label, (edge, color, marker) in edges.items():
            top.plot(count, edge, marker, color=COLORS[color], ms=3, label=label)
        if len(np.unique(count[known])) > 1:
            sizes = np.geomspace(count[known].min(), count[known].max(), 50)
            upper, lower = (
                np.exp(np.polyval(np.polyfit(np.log(count[known]), line, 1), np.log(sizes)))
                for line in (np.log(edge[known]) for edge, _, _ in edges.values())
            )
            for line, label in ((lower, "straight-line fit"), (upper, None)):
                top.plot(sizes, line, "--", color=COLORS["gray"], lw=0.8, label=label)
            top.fill_between(sizes, lower, upper, upper > lower, **ZONE)
        top.set(xscale="log", yscale="log", ylabel=r"noise level $\sigma$")
        top.yaxis.set_major_formatter("{x:g}")
        top.yaxis.set_minor_formatter("{x:g}")
        top.tick_params(which="minor", labelsize=6)
        peak = dict(color=COLORS["green"], ms=3, label="peak of min(C, W)")
        bottom.plot(count, subsamples.peak_level, "D", **peak)
        bottom.axhline(threshold, color="0.6", lw=0.6, zorder=0, label=f"threshold {threshold:g}")
        bottom.set(ylim=(0, 1.05), ylabel="peak of\nmin(C, W)", xlabel="number of training images")
        bottom.set_xticks(np.unique(count), [f"{size:,}" for size in np.unique(count)])
        bottom.set_xticks([], minor=True)
        figure.legend(loc="outside lower center", ncols=2)
    return figure


def training_noise(
    noises: Sequence[TrainingNoise], zone: tuple[float, float] | None, cells: int = 48
) -> "Figure":
    """Draw how often recipes train on each noise level, with the danger zone shaded.

    Args:
      noises: the recipes, at most five.
      zone: the edges of the zone; with None, shading and shares are omitted.
      cells: number of bins, evenly spaced in ln sigma from 0.003 to 300.
    """
    edges = np.geomspace(3e-3, 300, cells + 1)
    middle, width = np.sqrt(edges[1:] * edges[:-1]), np.log(edges[1] / edges[0])
    colors, lines = ("vermillion", "blue", "sky", "green", "purple"), ("-", "-", "--", "-", "--")
    with sheet(height=3.1) as figure:
        axes = figure.subplots()
        if zone:
            axes.axvspan(*zone, **ZONE | {"label": None})
            place = {"ha": "center", "transform": axes.get_xaxis_transform()}
            axes.text(np.sqrt(zone[0] * zone[1]), 1.02, "danger zone", fontsize=7, **place)
        for noise, color, line in zip(noises, colors, lines, strict=False):
            label = f"{noise.name}: {noise.share(*zone):.0%}" if zone else noise.name
            density = np.diff(noise.cumulative(edges)) / width
            axes.plot(middle, density, line, color=COLORS[color], lw=1.1, label=label)
        noise_axis(axes, edges[0], edges[-1])
        axes.set(ylim=(0, None), ylabel=r"share of steps per unit of $\ln \sigma$")
        title = "share of training steps inside the zone" if zone else None
        legend(figure, axes, columns=1, title=title)
    return figure
