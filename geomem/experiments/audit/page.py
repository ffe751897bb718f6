"""The page of an audit: one HTML file that opens offline, written from audit.json and figures."""

from __future__ import annotations

import html
import importlib.resources
import string
from collections.abc import Mapping, Sequence
from typing import Any

from geomem.experiments.audit import recipes
from geomem.experiments.audit.html import code, facts, image, paragraphs, pictures, table

__all__ = ["ABREAST", "GROUPS", "LINE", "answers", "headline", "render"]

_PAPER_EFFECT = (
    "In the paper, on 2,000 CIFAR-10 images of cars, a gap over the danger zone takes memorization "
    "from 78.8% of samples to 0.7%, and improves FID from 3.72 to 2.35."
)
# What experiments/gap_training/results holds.
_OWN_EFFECT = (
    "What geomem itself measured, on 128 digits of 8x8 pixels (experiments/gap_training): from 60% "
    "to 41% with a gap on the zone at threshold 0.8, to 27% at 0.5. A gap of the same size just "
    "below the zone did better there (10%), and so did stopping the training early."
)
# What audit/results/cifar10_sample and danger_zone/results/cifar10_50k in experiments/ hold.
LINE = (
    "That the line goes straight on is an assumption, and on CIFAR-10 it is too steep: the line "
    "through 125 to 1,000 images gives a width of 0.82 at 50,000, where 0.93 was measured."
)
GROUPS = 12  # of copies on the page
ABREAST = 4  # pictures of each

_COLORS = {"risky": "#D55E00", "borderline": "#E69F00", "none": "#009E73"}
_REACH = 1000  # times the images there are: beyond, a line tells nothing


def headline(report: Mapping[str, Any]) -> str:
    """The answer in one line."""
    zone = report["zone"]
    if report["verdict"] == "risky":
        low, high = zone["low"], zone["high"]
        return f"Risky: these images can be memorized at noise levels {low:.3g} to {high:.3g}."
    if report["verdict"] == "borderline":
        return f"Borderline: these images can perhaps be memorized around noise {zone['peak']:.3g}."
    return f"No noise level at which memorization is likely (threshold {zone['threshold']:g})."


def answers(report: Mapping[str, Any]) -> list[tuple[str, str]]:
    """(question, answer): why, where, what should be changed, how sure is all this."""
    zone, growth, advice = report["zone"], report["growth"], report["recommendation"]
    found = [
        (
            "Why?",
            "Both signs of memorization, coverage and max weight, reach "
            f"{zone['peak_level']:.2f} at noise level sigma = {zone['peak']:.3g}, their worst "
            f"(1 would be certain, {zone['threshold']:g} is the threshold).",
        )
    ]
    if advice:
        shares = [noise["share"] for noise in report["training_noise"]]
        found.append(
            (
                "Where?",
                f"Sigma from {zone['low']:.3g} to {zone['high']:.3g}, for images in [-1, 1]. Usual "
                f"recipes spend {min(shares):.0%} to {max(shares):.0%} of their steps there.",
            )
        )
    change = [_copies_line(report["duplicates"])]
    if advice:
        low, high = advice["gap"]
        change.append(f"Leave sigma {low:g} to {high:g} out of training: settings below.")
    found.append(("What to change?", " ".join(filter(None, change)) or "Nothing for this reason."))
    if growth and growth["closing"]:
        found.append(("More images?", _closing_line(growth["closing"], max(growth["count"]))))
    doubts = []
    if report["dataset"]["few"]:
        count = report["dataset"]["different_train"]
        doubts.append(f"{count} training images are few: read every number as rough.")
    if zone["open_low"] or zone["open_high"]:
        doubts.append("The zone touches the end of the measured noise levels.")
    doubts.append("This is about the images, not about a trained model; see the limits below.")
    return [*found, ("How sure?", " ".join(doubts))]


def _copies_line(copies):
    groups = copies["groups"]
    if not groups:
        return ""
    verb = "Remove the copies" if any(group["exact"] for group in groups) else "Look at near copies"
    return (
        f"{verb} first: {_many(copies['images_in_groups'], 'image')} in "
        f"{_many(len(groups), 'group')}; what is seen twice is memorized first."
    )


def _closing_line(closing, images):
    """What the straight line through the zone's width says, or does not."""
    if not closing["closes"]:
        return "No sign that more of them close the zone: its width does not shrink beyond doubt."
    low, high = closing["count_interval"]
    if low > _REACH * images:
        return f"The zone narrows, with no sign of closing within {_REACH:,} times as many."
    top = f"to {_rough(high)}" if high < 1e12 else "upwards, without an upper end"
    return (
        f"Extrapolated, the zone closes at about {_rough(closing['count'])} images (95% for the "
        f"line: {_rough(low)} {top}); there are {images:,}."
    )


def _rough(count):
    for size, word in ((1e12, " trillion"), (1e9, " billion"), (1e6, " million"), (1, "")):
        if count >= size:
            return f"{float(f'{count / size:.2g}'):,g}{word}"
    return f"{count:.2g}"


def render(
    report: Mapping[str, Any],
    run: Mapping[str, Any],
    figures: Mapping[str, bytes],
    thumbnails: Sequence[Sequence[bytes]],
) -> str:
    """The whole page.

    Args:
      report: the content of audit.json.
      run: the content of run.json.
      figures: {name: SVG}: curves, training_noise, and maybe growth.
      thumbnails: PNG files of the first ABREAST images of the first GROUPS groups of copies.

    Returns:
      HTML, with nothing to load from elsewhere; all names that came from outside are escaped.
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
        growth=_growth(report, figures),
        noise_figure=image(figures["training_noise"], "svg+xml", "noise of usual training"),
        training_noise=_training_noise(report),
        change=_change(report),
        made=_made(run),
    )


def _many(count, noun):
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def _data(dataset):
    height, width, channels = dataset["shape"]
    values = (
        f"{dataset['stored_as']}, scaled to [-1, 1]: mean {dataset['mean']:.2f}, standard "
        f"deviation {dataset['standard_deviation']:.2f}"
    )
    measured = (
        f"{dataset['different_train']:,} training images, one of each group of copies; "
        f"{dataset['noised_train']:,} of them and {dataset['noised_heldout']:,} held-out images "
        "were noised"
    )
    rows = [
        ("images", f"{dataset['train']:,} training, {dataset['heldout']:,} held out"),
        (
            "size",
            f"{width} x {height}, {_many(channels, 'channel')}: {dataset['dimensions']:,} numbers",
        ),
        ("classes", f"{dataset['classes']}" if dataset["classes"] else ""),
        ("values", values),
        ("measured on", measured),
    ]
    note = (
        "Not every image was noised, to bound the time: those that were are a random part. All "
        "training images are there as what a noised image may be mistaken for, so nothing is "
        "biased by it; the bands are wider."
    )
    bounded = dataset["noised_train"] < dataset["different_train"]
    return facts([row for row in rows if row[1]]) + paragraphs(note if bounded else "")


def _copies(copies, thumbnails):
    groups = copies["groups"]
    criterion = (
        f"Every pair of images was compared, held-out ones too. Copies have the same pixels, or a "
        f"distance below {copies['cutoff']:.3g}; the typical distance to a nearest neighbour is "
        f"{copies['typical_distance']:.3g}."
    )
    if not groups:
        return paragraphs(f"None found. {criterion}")
    exact, both = sum(group["exact"] for group in groups), copies["groups_over_both"]
    text = paragraphs(
        f"{_many(copies['images_in_groups'], 'image')} in {_many(len(groups), 'group')} are copies "
        f"of each other, or nearly: {exact:,} of exact copies, {len(groups) - exact:,} with near "
        "ones. A model sees such an image more often than others and memorizes it first. Keep one "
        "of each group, unless you see that they differ. All that follows was measured with one "
        "of each.",
        f"{_many(both, 'group')} with training and held-out images: such a held-out image "
        "measures nothing, and was left out."
        if both
        else "",
        criterion,
    )
    rows = []
    for group, files in zip(groups, thumbnails, strict=False):
        names = [
            f"{name} (held out)" if out else name
            for name, out in zip(group["images"], group["held_out"], strict=True)
        ]
        more = f"and {len(names) - len(files):,} more; " if len(names) > len(files) else ""
        kind = "exact" if group["exact"] else f"distance {group['distance']:.3g}"
        rows.append(pictures(files, names, more + kind))
    rest = f"All {len(groups):,} groups are in audit.json." if len(groups) > GROUPS else ""
    return f'{text}<div class="groups">{"".join(rows)}</div>{paragraphs(rest)}'


def _curves(report):
    zone, wide = report["zone"], report["wider_zone"]
    sure = f"{zone['confidence']:.0%} of the bootstrap replicates have"
    if zone["low"] is None:
        text = (
            f"At no noise level are both at {zone['threshold']:g} or more. They come closest at "
            f"sigma = {zone['peak']:.3g}, where the lower of the two is {zone['peak_level']:.2f}; "
            f"{sure} a zone all the same."
        )
    else:
        low, high = (
            f"{zone[side]:.3g} (95% {zone[f'{side}_interval'][0]:.3g} to "
            f"{zone[f'{side}_interval'][1]:.3g})"
            for side in ("low", "high")
        )
        text = (
            f"Both are at {zone['threshold']:g} or more for sigma from {low} to {high}; {sure} "
            "such a zone."
        )
    is_open = zone["open_low"] or zone["open_high"]
    return paragraphs(
        text,
        "The zone touches the end of the measured noise levels and may go on beyond: measure "
        "again with --sigma-min or --sigma-max moved."
        if is_open
        else "",
        f"The threshold is a choice: the paper names none. At {wide['threshold']:g} the zone is "
        f"{_interval(wide)}.",
    )


def _interval(zone):
    return "empty" if zone["low"] is None else f"{zone['low']:.3g} to {zone['high']:.3g}"


def _growth(report, figures):
    growth = report["growth"]
    if growth is None:
        return paragraphs("Not measured: fewer than 64 training images, or --growth False.")
    caption = (
        "Where coverage reaches the threshold and max weight leaves it, on subsamples of an "
        "eighth, a quarter, a half and all of the training images; the zone is between the two. "
        f"In each subsample at most {growth['noised']:,} training and held-out images were noised. "
        "Dashed: straight lines through the points, an extrapolation right of the gray line."
    )
    picture = image(figures["growth"], "svg+xml", "the zone against the number of images")
    figure = f"<figure>{picture}<figcaption>{html.escape(caption)}</figcaption></figure>"
    closing = growth["closing"]
    if closing is None:
        return figure + paragraphs("Too few subsamples have both edges for a line through them.")
    low, high = closing["slope_interval"]
    return figure + paragraphs(
        f"Each doubling of the number of images changes the zone's width, ln(high / low), by "
        f"{closing['slope']:+.3f} (95% {low:+.3f} to {high:+.3f}). "
        + _closing_line(closing, max(growth["count"])),
        LINE if closing["closes"] else "",
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


def _change(report):
    advice = report["recommendation"]
    copies = (
        "First keep one image of each group of copies." if report["duplicates"]["groups"] else ""
    )
    if advice is None:
        return paragraphs(
            copies,
            "No gap to recommend: the curves call for none at this threshold. A lower --threshold "
            "gives one all the same where they allow it.",
        )
    low, high = advice["gap"]
    wide = report["wider_zone"]
    text = paragraphs(
        copies,
        f"Train with a gap: draw no noise level between {low:g} and {high:g}. The network "
        "cannot learn to name single images where naming them matters. What it says at levels it "
        "never saw is arbitrary, so do not ask it there: sample with one step over the gap.",
        "The trade-off: what is not trained is not learned. A wider gap, or one in the wrong "
        "place, costs quality, and left-over noise in samples can look like less memorization: "
        "check quality and memorization together. The interval can be thinned instead of emptied "
        "(geomem: --keep 0.1 draws a tenth of it): start at 0, and raise it if quality suffers. A "
        f"narrower gap comes with a higher --threshold; the zone at {wide['threshold']:g} "
        f"({_interval(wide)}) is the bold choice.",
        f"{_PAPER_EFFECT} {_OWN_EFFECT} Yours may differ: measure it.",
    )
    return text + "".join(code(*setting) for setting in recipes.settings(advice))


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
