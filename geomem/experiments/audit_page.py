"""The page of an audit: one HTML file that opens offline, written from audit.json and figures."""

from __future__ import annotations

import base64
import html
import importlib.resources
import string
from collections.abc import Mapping, Sequence
from typing import Any

from geomem.experiments import audit_settings

__all__ = ["OWN_EFFECT", "PAPER_EFFECT", "answers", "headline", "render"]

PAPER_EFFECT = (
    "In the paper, on 2,000 CIFAR-10 images of cars, a gap over the danger zone takes memorization "
    "from 78.8% of samples to 0.7%, and improves FID from 3.72 to 2.35."
)
# What experiments/gap_training/results holds.
OWN_EFFECT = (
    "What geomem itself measured, on 128 digits of 8x8 pixels (experiments/gap_training): from 73% "
    "to 58% with a gap on the zone at threshold 0.8, to 35% at 0.5, at some cost in quality; "
    "stopping the training early did better there."
)

_COLORS = {"risky": "#D55E00", "borderline": "#E69F00", "none": "#009E73"}
_REACH = 1000  # times the images there are: beyond, a line tells nothing
_LISTED = 20  # groups of copies on the page


def headline(report: Mapping[str, Any]) -> str:
    """The answer in one line."""
    zone = report["zone"]
    if report["verdict"] == "risky":
        return f"Risky between sigma = {zone['low']:.3g} and {zone['high']:.3g}."
    if report["verdict"] == "borderline":
        return f"Borderline: perhaps risky around sigma = {zone['peak']:.3g}."
    return f"No danger zone at threshold {zone['threshold']:g}."


def answers(report: Mapping[str, Any]) -> list[str]:
    """Is it risky, where, and what should be changed: plain sentences."""
    zone, copies, advice = report["zone"], report["duplicates"], report["recommendation"]
    lines = [
        f"Coverage and max weight are closest to both being high at sigma = {zone['peak']:.3g}, "
        f"where the lower of the two is {zone['peak_level']:.2f} (1 is the worst)."
    ]
    if advice:
        edm = report["training_noise"][0]["share"]
        lines.append(
            f"Leave sigma from {advice['gap'][0]:g} to {advice['gap'][1]:g} out of training "
            f"(a gap): {edm:.0%} of EDM's training noise."
        )
    else:
        lines.append("No gap to recommend at this threshold.")
    groups = copies["groups"]
    if any(group["exact"] for group in groups):
        lines.append(
            f"Remove the copies first: {_many(copies['images_in_groups'], 'image')} in "
            f"{_many(len(groups), 'group')}. What is seen twice is memorized first."
        )
    elif groups:
        lines.append(
            f"Look at the near copies first: {_many(copies['images_in_groups'], 'image')} in "
            f"{_many(len(groups), 'group')}. What is seen twice is memorized first."
        )
    else:
        lines.append("No exact or near copies among the images.")
    if report["dataset"]["few"]:
        lines.append(
            f"{report['dataset']['different_train']} training images are few: read every number "
            "here as rough."
        )
    return lines


def render(
    report: Mapping[str, Any],
    facts: Mapping[str, Any],
    figures: Mapping[str, tuple[str, bytes]],
) -> str:
    """The whole page.

    Args:
      report: the content of audit.json.
      facts: the content of run.json.
      figures: {name: (mime type, bytes)}: curves, training_noise, and maybe growth and copies.

    Returns:
      HTML, with nothing to load from elsewhere; all names that came from outside are escaped.
    """
    template = importlib.resources.files("geomem") / "assets" / "audit.html"
    return string.Template(template.read_text(encoding="utf-8")).substitute(
        name=html.escape(report["dataset"]["name"]),
        color=_COLORS[report["verdict"]],
        headline=html.escape(headline(report)),
        answers="\n".join(f"<li>{html.escape(line)}</li>" for line in answers(report)),
        data=_data(report["dataset"]),
        copies=_copies(report["duplicates"], figures),
        curves=_curves(report, figures),
        growth=_growth(report, figures),
        training_noise=_training_noise(report, figures),
        change=_change(report),
        made=_made(facts),
    )


def _many(count, noun):
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def _paragraph(text):
    return f"<p>{html.escape(text)}</p>"


def _figure(figures, name, caption):
    mime, content = figures[name]
    source = f"data:{mime};base64,{base64.b64encode(content).decode()}"
    text = html.escape(caption)
    return f'<figure><img src="{source}" alt="{text}"><figcaption>{text}</figcaption></figure>'


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """The first column is text, the others are numbers."""

    def cells(tag, row):
        numbers = (f'<{tag} class="number">{html.escape(cell)}</{tag}>' for cell in row[1:])
        return f"<tr><{tag}>{html.escape(row[0])}</{tag}>{''.join(numbers)}</tr>"

    head = cells("th", header) if header else ""
    return (
        f'<div class="wide"><table>{head}{"".join(cells("td", row) for row in rows)}</table></div>'
    )


def _pairs(rows):
    """A table of names and texts."""
    return "".join(
        ['<table class="facts">']
        + [f"<tr><td>{html.escape(a)}</td><td>{html.escape(b)}</td></tr>" for a, b in rows]
        + ["</table>"]
    )


def _data(dataset):
    height, width, channels = dataset["shape"]
    rows = [
        ("images", f"{dataset['train']:,} training, {dataset['heldout']:,} held out"),
        (
            "size",
            f"{width} x {height}, {_many(channels, 'channel')}: {dataset['dimensions']:,} numbers",
        ),
        (
            "values",
            f"{dataset['stored_as']}, scaled to [-1, 1]: mean {dataset['mean']:.2f}, standard "
            f"deviation {dataset['standard_deviation']:.2f}",
        ),
        (
            "measured on",
            f"{dataset['different_train']:,} training images, one of each group of copies; "
            f"{dataset['noised_train']:,} of them and {dataset['noised_heldout']:,} held-out "
            "images were noised",
        ),
    ]
    if dataset["classes"]:
        rows.insert(2, ("classes", f"{dataset['classes']}"))
    bounded = dataset["noised_train"] < dataset["different_train"]
    note = (
        _paragraph(
            "Not every image was noised, to bound the time: those that were are a random part. All "
            "training images are there as what a noised image may be mistaken for, so nothing is "
            "biased by it; the bands are wider."
        )
        if bounded
        else ""
    )
    return _pairs(rows) + note


def _copies(copies, figures):
    criterion = (
        f"Every pair was compared, held-out images too. Copies are pairs with the same pixels, or "
        f"closer than {copies['cutoff']:.3g}; the typical distance to a nearest neighbour is "
        f"{copies['typical_distance']:.3g}."
    )
    groups = copies["groups"]
    if not groups:
        return _paragraph(f"None found. {criterion}")
    exact = sum(group["exact"] for group in groups)
    parts = [
        _paragraph(
            f"{_many(copies['images_in_groups'], 'image')} in {_many(len(groups), 'group')} are "
            f"copies of each other: {exact:,} of exact copies, "
            f"{len(groups) - exact:,} with near ones. A model sees such an image "
            "more often than others and memorizes it first. Keep one of each group, unless you "
            "see that they differ. The curves below are measured with one of each."
        )
    ]
    if copies["groups_over_both"]:
        parts.append(
            _paragraph(
                f"{_many(copies['groups_over_both'], 'group')} reach from the training into the "
                "held-out images: such a held-out image measures nothing, and was left out."
            )
        )
    parts.append(
        _figure(figures, "copies", "Groups of copies side by side; the largest groups come first.")
    )
    rows = [
        (
            ", ".join(
                f"{name} (held out)" if out else name
                for name, out in zip(group["images"][:6], group["held_out"], strict=False)
            )
            + (f" and {len(group['images']) - 6:,} more" if len(group["images"]) > 6 else ""),
            "exact" if group["exact"] else f"{group['distance']:.3g}",
        )
        for group in groups[:_LISTED]
    ]
    parts.append(_table(("images", "largest distance to its nearest"), rows))
    if len(groups) > _LISTED:
        parts.append(_paragraph(f"All {len(groups):,} groups are in audit.json."))
    return "".join(parts) + f'<p class="soft">{html.escape(criterion)}</p>'


def _curves(report, figures):
    zone = report["zone"]
    caption = (
        "Coverage and max weight against the noise level, with 95% bands. The dotted lines are "
        "certified: coverage lies between them by a closed formula, without any sampling. The "
        "dash-dotted line is the weight of the image that was noised, without its rivals."
    )
    if zone["low"] is None:
        text = (
            f"At no noise level are both at {zone['threshold']:g} or more. They come closest at "
            f"sigma = {zone['peak']:.3g}, where the lower of the two is {zone['peak_level']:.2f}. "
            f"In {zone['confidence']:.0%} of the bootstrap replicates there is a zone all the same."
        )
    else:
        edges = "; ".join(
            f"{name} edge {zone[side]:.3g} (95% {zone[f'{side}_interval'][0]:.3g} to "
            f"{zone[f'{side}_interval'][1]:.3g})"
            for side, name in (("low", "lower"), ("high", "upper"))
        )
        text = (
            f"Both are at {zone['threshold']:g} or more for sigma from {zone['low']:.3g} to "
            f"{zone['high']:.3g}: {edges}. {zone['confidence']:.0%} of the bootstrap replicates "
            "have such a zone. "
        )
        if zone["open_low"] or zone["open_high"]:
            text += (
                "It touches the end of the measured noise levels and may go on beyond: measure "
                "again with --sigma-min or --sigma-max moved. "
            )
    text += (
        " The threshold is a choice: the paper names none. At "
        f"{report['wider_zone']['threshold']:g} the zone is {_interval(report['wider_zone'])}."
    )
    return _figure(figures, "curves", caption) + _paragraph(text)


def _interval(zone):
    return "empty" if zone["low"] is None else f"{zone['low']:.3g} to {zone['high']:.3g}"


def _growth(report, figures):
    growth = report["growth"]
    if growth is None:
        return _paragraph(
            "Not measured: fewer than 64 different training images, or --growth False."
        )
    caption = (
        "Where coverage reaches the threshold and max weight leaves it, on subsamples of an "
        "eighth, a quarter, a half and all of the training images; the zone is between the two. "
        "Dashed: straight lines through the points, an extrapolation right of the gray line."
    )
    text, closing, images = "", growth["closing"], max(growth["count"])
    if closing is None:
        text = "Too few subsamples have both edges for a line through them."
    else:
        low, high = closing["slope_interval"]
        text = (
            f"Each doubling of the number of images changes the zone's width, ln(high / low), by "
            f"{closing['slope']:+.3f} (95% {low:+.3f} to {high:+.3f}). "
        )
        if not closing["closes"]:
            text += "No sign of closing: the width does not shrink beyond doubt."
        else:
            text += _closing_text(closing, images)
    return _figure(figures, "growth", caption) + _paragraph(text)


def _closing_text(closing, images):
    """Where the straight line is zero, and how little that says."""
    low, high = closing["count_interval"]
    top = f"to {_rough(high)}" if high < 1e15 else "upwards, without an upper end"
    where = (
        f"if the straight line went on, the zone would close at about {_rough(closing['count'])} "
        f"images (95% for the line: {_rough(low)} {top})"
    )
    doubt = (
        "That it goes on is an assumption, and on CIFAR-10 it is too steep: the line through 125 "
        "to 1,000 images gives a width of 0.79 at 50,000, where 0.93 was measured."
    )
    if low > _REACH * images:
        return f"No sign of closing within {_REACH:,} times as many images: {where}. {doubt}"
    return f"Extrapolated: {where}; there are {images:,}. {doubt}"


def _rough(count):
    for size, word in ((1e12, "trillion"), (1e9, "billion"), (1e6, "million")):
        if count >= size:
            return (
                f"{count / size:,.2g} {word}"
                if count < 100 * size
                else f"{count / size:,.0f} {word}"
            )
    return f"{float(f'{count:.2g}'):,.0f}"


def _training_noise(report, figures):
    zone, wide = report["zone"], report["wider_zone"]
    noises = report["training_noise"]
    caption = (
        "How often usual recipes train on each noise level, in steps; loss weights are left out. "
        "All in geomem's units: sigma is the noise over the signal, for images in [-1, 1]."
    )
    if wide["low"] is None:
        return _figure(figures, "training_noise", caption)
    header = ["recipe", f"zone at {zone['threshold']:g}", f"zone at {wide['threshold']:g}"]
    rows = [
        (
            noise["name"],
            "none" if noise["share"] is None else f"{noise['share']:.1%}",
            f"{noise['wider_share']:.1%}",
        )
        for noise in noises
    ]
    return _figure(figures, "training_noise", caption) + _table(header, rows)


def _change(report):
    advice = report["recommendation"]
    if advice is None:
        text = (
            "No gap to recommend. Neither the data nor the noise levels call for one at this "
            "threshold; a lower --threshold gives one all the same where the curves allow it."
        )
        if report["duplicates"]["groups"]:
            text = "Remove the copies. " + text
        return _paragraph(text)
    low, high = advice["gap"]
    parts = [
        _paragraph(
            f"Train with a gap: draw no noise level between {low:g} and {high:g}. The network "
            "interpolates there from what it learns on both sides, and cannot learn to name single "
            "images where naming them matters."
        ),
        _paragraph(
            "The trade-off: what is not trained is not learned. A wider gap, or one in the wrong "
            "place, costs quality, and left-over noise in samples can look like less memorization: "
            "check quality and memorization together. keep between 0 and 1 thins the interval "
            "instead of emptying it: start at 0, and raise it if quality suffers. A narrower gap "
            f"comes with a higher --threshold; the zone at {report['wider_zone']['threshold']:g} "
            f"({_interval(report['wider_zone'])}) is the bold choice."
        ),
        _paragraph(f"{PAPER_EFFECT} {OWN_EFFECT} Yours may differ: measure it."),
    ]
    for title, code in audit_settings.settings(advice):
        parts.append(f"<h3>{html.escape(title)}</h3><pre><code>{html.escape(code)}</code></pre>")
    return "".join(parts)


def _made(facts):
    environment = facts["environment"]
    seconds = ", ".join(f"{name} {value:.1f}" for name, value in facts["seconds"].items())
    rows = [
        ("geomem", f"{environment['geomem']}, commit {environment['commit']}"),
        ("device", f"{environment['device_count']} x {environment['device']}"),
        ("seconds", seconds),
        ("SHA-256, training", facts["data"]["train"]["sha256"]),
        ("SHA-256, held out", facts["data"]["test"]["sha256"]),
        (
            "settings",
            ", ".join(
                f"{name} {value}" for name, value in facts["config"].items() if name != "out"
            ),
        ),
    ]
    return _pairs(rows)
