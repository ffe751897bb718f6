"""The page of an audit: one HTML file that works offline, made from audit.json and figures."""

from __future__ import annotations

import html
import importlib.resources
import string
from collections.abc import Mapping, Sequence
from typing import Any

from geomem.experiments.audit import advice, snippets, verdict
from geomem.experiments.audit.evidence import evidence
from geomem.experiments.audit.verdict import count
from geomem.experiments.common.html import code, facts, image, paragraphs, pictures, steps, table

__all__ = ["ABREAST", "GROUPS", "render"]

GROUPS = 12  # groups of duplicates shown on the page
ABREAST = 4  # pictures shown of each group

_COLORS = {"high": "#D55E00", "moderate": "#E69F00", "low": "#56B4E9", "none": "#009E73"}


def render(
    report: Mapping[str, Any],
    run: Mapping[str, Any],
    figures: Mapping[str, bytes],
    thumbnails: Sequence[Sequence[bytes]],
) -> str:
    """Return the page as HTML that loads no other files; all external names are escaped.

    Args:
      report: the content of audit.json.
      run: the content of run.json.
      figures: {name: SVG}: scale, curves, training_noise, images and, if it was measured, growth.
      thumbnails: PNG files of the first ABREAST images of the first GROUPS groups of duplicates.
    """
    template = importlib.resources.files("geomem") / "assets" / "audit.html"
    decision = report["verdict"]
    different = report["dataset"]["different_train"]
    return string.Template(template.read_text(encoding="utf-8")).substitute(
        name=html.escape(report["dataset"]["name"]),
        color=_COLORS[decision["risk"]],
        headline=html.escape(decision["headline"]),
        why=html.escape(decision["why"]),
        first=_first(report["advice"]),
        scale_figure=image(figures["scale"], "svg+xml", "copies by number of training images"),
        length=html.escape(verdict.length(different)),
        lengths=_lengths(),
        scale=_scale(report),
        rule=html.escape(verdict.RULE),
        data=_data(report["dataset"]),
        copies=_copies(report["duplicates"], thumbnails),
        curves_figure=image(figures["curves"], "svg+xml", "coverage and max weight"),
        curves=_curves(report),
        exposed=_exposed(report, figures),
        growth=_growth(report["growth"], figures),
        noise_figure=image(figures["training_noise"], "svg+xml", "noise levels of common recipes"),
        training_noise=_training_noise(report),
        advice=steps([_advice(item) for item in report["advice"]]),
        settings=_settings(report),
        made=_made(run),
    )


def _first(items):
    """The first three actions, with the sentence that says most about each."""
    lines = (
        f"<li><b>{html.escape(item['action'])}.</b> {html.escape(item['how'])}</li>"
        for item in items[:3]
    )
    return f"<ol>{''.join(lines)}</ol>"


def _advice(item):
    return item["action"], [item["effect"], f"Source: {item['measured']}", f"How: {item['how']}"]


def _scale(report):
    def row(entry):
        name, zone = entry["name"], entry["zone"]
        return (
            f"{name} (this set)" if entry["this_set"] else name,
            f"{entry['count']:,}",
            "none" if zone is None else f"{zone[0]:.3g} to {zone[1]:.3g}",
            "" if zone is None else f"{zone[1] / zone[0]:.2g}",
            "none" if entry["share"] is None else f"{entry['share']:.0%}",
        )

    header = ["data", "images", "danger zone", "upper / lower edge", "training steps in it"]
    return table(header, [row(entry) for entry in report["scale"]]) + paragraphs(
        f"Training steps are those of {report['recipe']}. Zones are at threshold 0.8 and in the "
        "units of each set."
    )


def _lengths():
    networks = evidence()["networks"]
    rows = [
        (
            f"{run['data']}, {run['count']:,}",
            ", ".join(f"{seen:,}" for seen in run["seen"]) or "not known",
            ", ".join(f"{rate:.0%}" for rate in run["copied"]),
        )
        for run in networks
    ]
    sources = [f"{run['data']}, {run['count']:,}: {run['source']}." for run in networks]
    found = evidence()["onset"]
    few, many = found["sizes"]
    rows.append(
        (f"{found['data']}, {few} to {many}", " to ".join(map(str, found["passes"])), "first")
    )
    sources.append(
        f"{found['data']}, {few} to {many}: experiments/memorization_onset, "
        f"{found['networks']} training runs, stopped at the first copies."
    )
    header = ["training images", "times each was seen", "copies"]
    return table(header, rows) + paragraphs(" ".join(sources))


def _data(dataset):
    size = " x ".join(map(str, dataset["shape"]))
    kind = "images" if dataset["images"] else "latents" if len(dataset["shape"]) == 3 else "vectors"
    scaled = ", scaled to [-1, 1]" if dataset["images"] else ""
    rows = [
        (kind, f"{dataset['train']:,} training, {dataset['heldout']:,} held out"),
        ("size", f"{size} (height, width, channels)" if len(dataset["shape"]) == 3 else size),
        ("classes", f"{dataset['classes']}" if dataset["classes"] else ""),
        (
            "values",
            f"{dataset['stored_as']}{scaled}: mean {dataset['mean']:.2f}, standard "
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
        "To limit the time, noise was added only to a random part of the images. They were still "
        "compared with all training images, so the curves are unbiased, but the bands are wider."
    )
    subset = dataset["noised_train"] < dataset["different_train"]
    return facts([row for row in rows if row[1]]) + paragraphs(note if subset else "")


def _copies(copies, thumbnails):
    groups = copies["groups"]
    search = (
        "All images were compared, held-out images included. Duplicates have the same pixels, or "
        f"the distance of their aligned textures is below {copies['cutoff']:.3g}; the typical "
        f"distance to a nearest neighbor is {copies['typical_distance']:.3g}. Mirrored, shifted, "
        "cropped and brightened copies are found too."
    )
    if not groups:
        return paragraphs(f"None found. {search}")
    exact, both = sum(group["exact"] for group in groups), copies["groups_over_both"]
    text = paragraphs(
        f"{count(both, 'group')} with both training and held-out images, shown first. Their "
        "held-out images were left out, because they are not new to a model."
        if both
        else "",
        f"In all, {count(copies['images_in_groups'], 'image')} in {count(len(groups), 'group')}: "
        f"{exact:,} with exact copies only, {len(groups) - exact:,} with near copies. Look at "
        "them: if the images of a group are the same, keep one. All curves on this page were "
        "measured on one image of each group.",
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
    return text + "".join(rows) + paragraphs(rest)


def _curves(report):
    zone, wide = report["zone"], report["wider_zone"]
    confidence = f"{zone['confidence']:.0%} of the bootstrap samples have a danger zone"
    if zone["low"] is None:
        text = (
            f"At no noise level are both curves at {zone['threshold']:g} or more. The lower of the "
            f"two peaks at {zone['peak_level']:.2f}, at σ = {zone['peak']:.3g}. {confidence}."
        )
    else:
        text = (
            f"Both curves are at {zone['threshold']:g} or more from σ = {_edge(zone, 'low')} to "
            f"σ = {_edge(zone, 'high')}. {confidence}."
        )
    is_open = zone["open_low"] or zone["open_high"]
    others = " and ".join(f"{low:.3g} to {high:.3g}" for low, high in zone["others"])
    return paragraphs(
        text,
        f"Outside this zone, both are also at {zone['threshold']:g} or more from σ = {others}."
        if others
        else "",
        "The zone reaches the end of the measured noise levels and may extend beyond. Measure a "
        "wider range with --sigma-min or --sigma-max."
        if is_open
        else "",
        "The threshold is geomem's choice; the paper gives none. At a threshold of "
        f"{wide['threshold']:g} the zone is {_interval(wide)}.",
    )


def _edge(zone, side):
    interval = zone[f"{side}_interval"]
    bounds = f" (95% interval {interval[0]:.3g} to {interval[1]:.3g})" if interval else ""
    return f"{zone[side]:.3g}{bounds}"


def _interval(zone):
    return "empty" if zone["low"] is None else f"{zone['low']:.3g} to {zone['high']:.3g}"


def _exposed(report, figures):
    noised, different = (report["dataset"][key] for key in ("noised_train", "different_train"))
    which = "" if noised == different else f" The ranking is of {noised:,} images drawn at random."
    rows = [
        (
            row["file"],
            f"{row['exposed_up_to']:.3g}",
            f"{row['copies']:,}",
            f"{row['nearest_file']}, at distance {row['distance']:.3g}",
        )
        for row in report["exposed"]
    ]
    header = ["most exposed", "up to σ", "duplicates", "nearest training image"]
    return (
        image(figures["images"], "svg+xml", "exposed images")
        + table(header, rows)
        + paragraphs("Duplicates count as one image. All ranked images are in images.csv." + which)
    )


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
        verdict.trend(growth),
        "The interval is for the slope of a straight line through these points. Because the "
        "subsamples share images, it describes this figure and is not a forecast.",
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
    blocks = [("geomem", "\n".join(advice.wrap(line, 72) for line in report["commands"]))]
    if not report["commands"]:
        blocks = []
    if report["gap"]:
        blocks += snippets.snippets(report["gap"])
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
