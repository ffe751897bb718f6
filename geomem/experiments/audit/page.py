"""The page of an audit: one HTML file that opens offline, written from audit.json and figures."""

from __future__ import annotations

import html
import importlib.resources
import math
import string
from collections.abc import Mapping, Sequence
from typing import Any

from geomem.experiments.audit import recipes
from geomem.experiments.audit.html import code, facts, image, paragraphs, pictures, steps, table

__all__ = ["ABREAST", "GROUPS", "answers", "headline", "render"]

GROUPS = 12  # groups of duplicates shown on the page
ABREAST = 4  # pictures shown of each group

_COLORS = {"risky": "#D55E00", "borderline": "#E69F00", "none": "#009E73"}


def headline(report: Mapping[str, Any]) -> str:
    """Return the verdict in one line."""
    return {
        "risky": "Risky: a diffusion model can memorize these images.",
        "borderline": "Borderline: a diffusion model may be able to memorize these images.",
        "none": "No danger zone: the curves give no reason to expect memorization.",
    }[report["verdict"]]


def answers(report: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return (question, answer) pairs for the top of the page and for the terminal."""
    pairs = [
        ("What does this mean?", _meaning(report)),
        (
            "Will my model memorize?",
            "The audit cannot tell: it looks at the images, not at a model. What a model memorizes "
            "also depends on the network and on how long it trains. To find out, compare images "
            "that it generates with the training images.",
        ),
        ("What should I do?", _advice(report)),
    ]
    if (growth := report["growth"]) and growth["closing"]:
        pairs.append(("Would more images help?", _slope(growth)))
    return [
        *pairs,
        ("How was it measured?", _measurement(report["zone"])),
        ("How sure is this?", _doubts(report)),
    ]


def _meaning(report):
    zone = report["zone"]
    copying = (
        "the answer that training rewards most is one training image, unchanged. A model that "
        "learns this answer generates copies of its training images"
    )
    if zone["low"] is None:
        levels = (
            "These images may have such noise levels."
            if report["verdict"] == "borderline"
            else "This audit found no such noise levels."
        )
        return (
            "A diffusion model learns to remove noise from images. It can memorize if, at some "
            f"noise levels, {copying}. {levels}"
        )
    shares = [noise["share"] for noise in report["training_noise"]]
    return (
        "A diffusion model learns to remove noise from images. At noise levels from "
        f"{zone['low']:.3g} to {zone['high']:.3g}, the danger zone, {copying}. Common training "
        f"recipes spend {min(shares):.0%} to {max(shares):.0%} of their steps in this zone."
    )


def _measurement(zone):
    return (
        "By two curves from 0 to 1, computed from the images alone. Coverage: how often a noisy "
        "new image looks like a noisy training image. Max weight: how much the best denoiser "
        "relies on one training image. The danger zone is where both are at least "
        f"{zone['threshold']:g}; at noise level {zone['peak']:.3g} both are at least "
        f"{zone['peak_level']:.2f}. Noise levels are standard deviations, for pixels scaled to "
        "[-1, 1]."
    )


def _advice(report):
    count, advice = report["duplicates"]["groups_in_training"], report["recommendation"]
    first = (
        f"Remove duplicates: {_many(count, 'group')} with training images. Then stop"
        if count
        else "No duplicates among the training images were found. Stop"
    )
    gap = (
        ". Leaving the danger zone out of the training noise is a further option, which helped in "
        "some settings and did little in others"
        if advice
        else ""
    )
    return f"{first} training before generated images turn into copies{gap}."


def _slope(growth):
    """The change of the zone's width with each doubling, within the measured sizes."""
    few, many = min(growth["count"]), max(growth["count"])
    closing = growth["closing"]
    slope, low, high = (
        math.expm1(value) for value in (closing["slope"], *closing["slope_interval"])
    )
    trend, change = "does not clearly change the zone", f"changes by {slope:+.1%}"
    interval = f"{low:+.1%} to {high:+.1%}"
    if high < 0:
        trend, change = "makes the zone narrower", f"falls by {-slope:.1%}"
        interval = f"{-high:.1%} to {-low:.1%}"
    elif low > 0:
        trend, change = "makes the zone wider", f"rises by {slope:.1%}"
        interval = f"{low:.1%} to {high:.1%}"
    return (
        f"Between {few:,} and {many:,} of these images, each doubling {trend}: the ratio of its "
        f"upper to its lower edge {change} (95% interval {interval}). Nothing is known about more "
        f"than {many:,} images."
    )


def _doubts(report):
    zone, texts = report["zone"], []
    if report["dataset"]["few"]:
        texts.append(
            f"{report['dataset']['different_train']} training images are few, so every number is "
            "rough."
        )
    if zone["open_low"] or zone["open_high"]:
        texts.append("The zone reaches the end of the measured noise levels and may extend beyond.")
    texts.append(
        f"{zone['confidence']:.0%} of the bootstrap samples have a danger zone. This covers the "
        "choice of images and noise; the end of the page lists what the audit cannot tell."
    )
    return " ".join(texts)


def render(
    report: Mapping[str, Any],
    run: Mapping[str, Any],
    figures: Mapping[str, bytes],
    thumbnails: Sequence[Sequence[bytes]],
) -> str:
    """Return the whole page as HTML that loads nothing; all names from outside are escaped.

    Args:
      report: the content of audit.json.
      run: the content of run.json.
      figures: {name: SVG}: curves, training_noise and, if it was measured, growth.
      thumbnails: PNG files of the first ABREAST images of the first GROUPS groups of duplicates.
    """
    template = importlib.resources.files("geomem") / "assets" / "audit.html"
    return string.Template(template.read_text(encoding="utf-8")).substitute(
        name=html.escape(report["dataset"]["name"]),
        color=_COLORS[report["verdict"]],
        headline=html.escape(headline(report)),
        answers="\n".join(
            f"<p><b>{question}</b> {html.escape(text)}</p>" for question, text in answers(report)
        ),
        data=_data(report["dataset"]),
        copies=_copies(report["duplicates"], thumbnails),
        curves_figure=image(figures["curves"], "svg+xml", "coverage and max weight"),
        curves=_curves(report),
        growth=_growth(report["growth"], figures),
        noise_figure=image(figures["training_noise"], "svg+xml", "noise levels of common recipes"),
        training_noise=_training_noise(report),
        change=steps(recipes.steps(report)),
        settings=_settings(report),
        made=_made(run),
    )


def _many(count, noun):
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def _data(dataset):
    height, width, channels = dataset["shape"]
    rows = [
        ("images", f"{dataset['train']:,} training, {dataset['heldout']:,} held out"),
        (
            "size",
            f"{width} x {height}, {_many(channels, 'channel')}: {dataset['dimensions']:,} values",
        ),
        ("classes", f"{dataset['classes']}" if dataset["classes"] else ""),
        (
            "pixels",
            f"{dataset['stored_as']}, scaled to [-1, 1]: mean {dataset['mean']:.2f}, standard "
            f"deviation {dataset['standard_deviation']:.2f}",
        ),
        (
            "measured on",
            f"{dataset['different_train']:,} training images without duplicates; noise was added "
            f"to {dataset['noised_train']:,} of them and to {dataset['noised_heldout']:,} held-out "
            "images",
        ),
    ]
    note = (
        "To limit the time, noise was added to a random part of the images only. They were still "
        "compared with all training images, so the curves are not biased; the bands are wider."
    )
    subset = dataset["noised_train"] < dataset["different_train"]
    return facts([row for row in rows if row[1]]) + paragraphs(note if subset else "")


def _copies(copies, thumbnails):
    groups = copies["groups"]
    search = (
        "Every pair of images was compared, held-out images included. Duplicates have the same "
        f"pixels or a distance below {copies['cutoff']:.3g}; the typical distance to a nearest "
        f"neighbor is {copies['typical_distance']:.3g}. Mirrored, shifted, cropped or brightened "
        "copies are not found, and different flat pictures can look like duplicates."
    )
    if not groups:
        return paragraphs(f"None found. {search}")
    exact, both = sum(group["exact"] for group in groups), copies["groups_over_both"]
    text = paragraphs(
        f"{_many(copies['images_in_groups'], 'image')} in {_many(len(groups), 'group')}: "
        f"{exact:,} with exact copies only, {len(groups) - exact:,} with near copies. Look at "
        "them: if the images of a group are the same, keep one. All curves on this page were "
        "measured on one image of each group.",
        f"{_many(both, 'group')} with both training and held-out images: their held-out images "
        "were left out, because they are not new to a model."
        if both
        else "",
        search,
    )
    rows = []
    for group, files in zip(groups, thumbnails, strict=False):
        names = [
            f"{name} (held out)" if heldout else name
            for name, heldout in zip(group["images"], group["held_out"], strict=True)
        ]
        kind = "exact copies" if group["exact"] else f"distance {group['distance']:.3g}"
        more = f"; {len(names) - len(files):,} more" if len(names) > len(files) else ""
        rows.append(pictures(files, names[: len(files)], kind + more))
    rest = f"All {len(groups):,} groups are in audit.json." if len(groups) > GROUPS else ""
    return f'{text}<div class="groups">{"".join(rows)}</div>{paragraphs(rest)}'


def _curves(report):
    zone, wide = report["zone"], report["wider_zone"]
    confidence = f"{zone['confidence']:.0%} of the bootstrap samples have a danger zone"
    if zone["low"] is None:
        text = (
            f"At no noise level are both curves at {zone['threshold']:g} or more. Their lower one "
            f"peaks at {zone['peak_level']:.2f}, at σ = {zone['peak']:.3g}. {confidence}."
        )
    else:
        low, high = (
            f"{zone[side]:.3g} (95% interval {zone[f'{side}_interval'][0]:.3g} to "
            f"{zone[f'{side}_interval'][1]:.3g})"
            for side in ("low", "high")
        )
        text = (
            f"Both curves are at {zone['threshold']:g} or more from σ = {low} to σ = {high}. "
            f"{confidence}."
        )
    is_open = zone["open_low"] or zone["open_high"]
    return paragraphs(
        text,
        "The zone reaches the end of the measured noise levels and may extend beyond. Measure a "
        "wider range with --sigma-min or --sigma-max."
        if is_open
        else "",
        "The threshold is geomem's choice; the paper names none. At a threshold of "
        f"{wide['threshold']:g} the zone is {_interval(wide)}.",
    )


def _interval(zone):
    return "empty" if zone["low"] is None else f"{zone['low']:.3g} to {zone['high']:.3g}"


def _growth(growth, figures):
    if growth is None:
        return paragraphs("Not measured: fewer than 64 training images, or --growth False.")
    caption = (
        "The edges of the danger zone and the peak of the lower curve, for random subsamples of an "
        "eighth, a quarter and a half of the training images, and for all of them. In each "
        f"subsample, noise was added to at most {growth['noised']:,} training and "
        f"{growth['noised']:,} held-out images."
    )
    picture = image(figures["growth"], "svg+xml", "danger zone and number of training images")
    figure = f"<figure>{picture}<figcaption>{html.escape(caption)}</figcaption></figure>"
    if growth["closing"] is None:
        return figure + paragraphs("Too few subsamples have both edges to estimate a trend.")
    return figure + paragraphs(
        _slope(growth),
        "The interval is that of a straight line through these points. The subsamples share images,"
        " so it describes this figure and is not a forecast.",
    )


def _training_noise(report):
    zone, wide = report["zone"], report["wider_zone"]
    if wide["low"] is None:
        return ""
    return table(
        ["recipe", f"zone at {zone['threshold']:g}", f"zone at {wide['threshold']:g}"],
        [
            (
                noise["name"],
                "none" if noise["share"] is None else f"{noise['share']:.1%}",
                f"{noise['wider_share']:.1%}",
            )
            for noise in report["training_noise"]
        ],
    )


def _settings(report):
    commands = "\n".join(recipes.wrap(command) for command in report["checkpoints"])
    blocks = [("geomem, training without a gap", commands)]
    if advice := report["recommendation"]:
        blocks += recipes.settings(advice)
    return "".join(code(*block) for block in blocks)


def _made(run):
    environment = run["environment"]
    settings = [
        f"{name} {value:.4g}" if isinstance(value, float) else f"{name} {value}"
        for name, value in run["config"].items()
        if name != "out" and value not in (None, (), [])
    ]
    seconds = ", ".join(f"{name} {value:.0f}" for name, value in run["seconds"].items())
    return facts(
        [
            ("geomem", f"{environment['geomem']}, commit {environment['commit']}"),
            ("device", f"{environment['device_count']} x {environment['device']}"),
            ("seconds", seconds),
            ("SHA-256, training", run["data"]["train"]["sha256"]),
            ("SHA-256, held out", run["data"]["test"]["sha256"]),
            ("settings", ", ".join(settings)),
        ]
    )
