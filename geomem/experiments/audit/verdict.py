"""The verdict of an audit: a risk, the rule that decides it, and its reason in two sentences."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from geomem.experiments.audit.evidence import (
    COPIED,
    NARROW,
    NOT_COPIED,
    NOT_COPIED_DIFFERENT,
    THRESHOLD,
    evidence,
    onset,
    width,
)
from geomem.geometry.danger_zone import Zone

__all__ = ["RISKS", "RULE", "count", "decide", "exceeds", "length", "trend"]

RISKS = ("none", "low", "moderate", "high")  # ascending
_FEW = 50  # different training images, fewer of which give no usable curves
_MANY_DUPLICATES = 0.05  # of the training images
_BORDERLINE = 0.05  # of the bootstrap samples have a zone

RULE = (
    f"No risk without a danger zone at threshold {THRESHOLD:g}. Otherwise high up to {COPIED:,} "
    f"different training images, because trained networks copied sets of this size; low from "
    f"{NOT_COPIED_DIFFERENT:,}, as in CIFAR-10, where no copies were seen; moderate "
    f"between, where no network was measured. "
    f"A zone with upper edge / lower edge below {NARROW:.2g} (half the width of 1,000 CIFAR-10 "
    f"images on a logarithmic scale) turns high into moderate. Duplicates among at least "
    f"{_MANY_DUPLICATES:.0%} of the training images raise the risk by one step. Fewer than {_FEW} "
    "images always count as high. The limits are geomem's choice; they rest on the tables above."
)


def decide(different: int, train: int, zone: Zone) -> dict[str, Any]:
    """Return the risk, its reason, the headline and the explanation.

    Args:
      different: training images without duplicates.
      train: all training images.
      zone: the danger zone at threshold 0.8.
    """
    copied = next(run for run in evidence()["networks"] if run["count"] == COPIED)["copied"][-1]
    size = f"This set has {count(different, 'different image')}."
    measured = (
        f"Of the images from a network trained on {COPIED:,} images, {copied:.0%} were copies; "
        f"from one trained on the {NOT_COPIED:,} of CIFAR-10 ({NOT_COPIED_DIFFERENT:,} without "
        "duplicates), none were"
    )
    if different < _FEW:
        risk, reason = "high", "few"
        text = "too few images to measure."
        why = f"{size} Any network that trains long enough can store them all."
    elif zone.low is None or zone.high is None:
        unsure = zone.confidence > _BORDERLINE
        risk, reason = ("low", "borderline") if unsure else ("none", "zone")
        text = (
            "these images may just reach the conditions for copying."
            if unsure
            else "nothing in the geometry of these images calls for copying."
        )
        why = (
            f"At no noise level do the two conditions for copying both reach {THRESHOLD:g}; they "
            f"come closest at noise level {zone.peak:.3g}, with {zone.peak_level:.2f}."
        )
    elif different >= NOT_COPIED_DIFFERENT:
        risk, reason = "low", "large"
        text = "networks trained on a set of this size were not seen to copy."
        why = f"{size} {measured}. Images that occur several times can still be copied."
    elif (ratio := width((zone.low, zone.high))) < NARROW:
        risk, reason = "moderate", "narrow"
        text = "copying is possible, but only in a narrow range of noise."
        reference = next(row for row in evidence()["references"] if row["count"] == 1000)
        why = (
            f"The danger zone spans a factor of {ratio:.2g} in noise; that of "
            f"{reference['count']:,} CIFAR-10 images, which networks copied, spans "
            f"{width(reference['zone']):.2g}. {size}"
        )
    elif different <= COPIED:
        risk, reason = "high", "small"
        text = "trained networks have copied sets like this one."
        why = f"{size} {measured}."
    else:
        risk, reason = "moderate", "between"
        text = "this set is larger than those that networks were seen to copy."
        why = f"{size} {measured}."
    removed = train - different
    if different >= _FEW and removed >= _MANY_DUPLICATES * train:
        risk, reason = RISKS[min(RISKS.index(risk) + 1, len(RISKS) - 1)], "duplicates"
        why = (
            f"{removed:,} of {train:,} training images are copies of others, and "
            f"what occurs several times is memorized first. {why}"
        )
        text = "clean the data first."
    headline = f"{'No' if risk == 'none' else risk.capitalize()} risk: {text}"
    return {"risk": risk, "reason": reason, "headline": headline, "why": why}


def exceeds(risk: str, limit: str | None) -> bool:
    """Return whether a risk is above the limit of --fail-above, if there is one."""
    return limit is not None and RISKS.index(risk) > RISKS.index(limit)


def length(different: int) -> str:
    """Return a sentence on the training length at which copying would start."""
    first, last = onset()
    return (
        f"In the experiments that measured it, copies appeared after {first:,} to {last:,} images "
        f"seen per training image, which is {_images(first * different)} to "
        f"{_images(last * different)} training images here. EDM's setting for CIFAR-10 trains on "
        "200 million."
    )


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


def _images(number):
    return f"{number / 1e6:.2g} million" if number >= 1e6 else f"{round(number, -3):,}"
