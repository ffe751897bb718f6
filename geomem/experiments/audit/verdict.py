"""The verdict of an audit and the answers to a reader's first questions, as plain text."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

__all__ = ["answers", "count", "headline", "trend"]


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
            "The audit cannot tell, because it looks at the images, not at a model. What a model "
            "memorizes also depends on the network and on how long it trains. To find out, compare "
            "generated images with the training images.",
        ),
        ("What should I do?", _advice(report)),
    ]
    if (growth := report["growth"]) and growth["closing"]:
        pairs.append(("Would more images help?", trend(growth)))
    return [
        *pairs,
        ("How was it measured?", _measurement(report["zone"])),
        ("How sure is this?", _doubts(report)),
    ]


def trend(growth: Mapping[str, Any]) -> str:
    """Return a sentence on how the zone changes with each doubling of the number of images.

    Args:
      growth: `growth` of audit.json, with a slope under "closing".
    """
    few, many = min(growth["count"]), max(growth["count"])
    closing = growth["closing"]
    slope, low, high = (
        math.expm1(value) for value in (closing["slope"], *closing["slope_interval"])
    )
    verb, change = "does not clearly change the zone", f"changes by {slope:+.1%}"
    interval = f"{low:+.1%} to {high:+.1%}"
    if high < 0:
        verb, change = "makes the zone narrower", f"falls by {-slope:.1%}"
        interval = f"{-high:.1%} to {-low:.1%}"
    elif low > 0:
        verb, change = "makes the zone wider", f"rises by {slope:.1%}"
        interval = f"{low:.1%} to {high:.1%}"
    return (
        f"Between {few:,} and {many:,} of these images, each doubling {verb}: the ratio of its "
        f"upper to its lower edge {change} (95% interval {interval}). Nothing is known about more "
        f"than {many:,} images."
    )


def count(number: int, noun: str) -> str:
    """Return a number with its noun: "1 image", "1,000 images"."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


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
        f"{zone['threshold']:g}. The lower of the two peaks at {zone['peak_level']:.2f}, at noise "
        f"level {zone['peak']:.3g}. Noise levels are standard deviations for pixels in [-1, 1]."
    )


def _advice(report):
    groups, advice = report["duplicates"]["groups_in_training"], report["recommendation"]
    first = (
        f"Remove duplicates: {count(groups, 'group')} with training images. Then stop"
        if groups
        else "No duplicates among the training images were found. Stop"
    )
    gap = (
        ". You can also leave the danger zone out of the training noise, which helped in some "
        "settings and did little in others"
        if advice
        else ""
    )
    return f"{first} training before generated images turn into copies{gap}."


def _doubts(report):
    zone, texts = report["zone"], []
    if report["dataset"]["few"]:
        texts.append(
            f"There are only {report['dataset']['different_train']} training images, so every "
            "number is rough."
        )
    if zone["open_low"] or zone["open_high"]:
        texts.append("The zone reaches the end of the measured noise levels and may extend beyond.")
    texts.append(
        f"{zone['confidence']:.0%} of the bootstrap samples have a danger zone. This accounts for "
        "the choice of images and noise; the end of the page lists what the audit cannot tell."
    )
    return " ".join(texts)
