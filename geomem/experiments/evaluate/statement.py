"""The verdict of an evaluation in plain sentences, and its table of rates."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from geomem.metrics.intervals import Rate

__all__ = ["DETECTORS", "rates", "sentences"]

DETECTORS = {
    "pixels": "d1/d2",
    "aligned": "d1/d2 aligned",
    "features": "d1/d2 of features",
    "without_noise": "d1/d2, noise removed",
    "adaptive": "adaptive score < 1",
    "verdict": "copy",
}
_MISSED = 0.9  # kinds of planted copies that are found less often are named


def sentences(summary: Mapping[str, Any], train: int, heldout: int) -> list[str]:
    """Return what was found, how often the search errs, and what it could not have seen.

    Args:
      summary: the content of report.json.
      train, heldout: numbers of images.
    """
    found = summary["copies"]
    interval = f"{found.rate:.1%}, 95% interval {found.low:.1%} to {found.high:.1%}"
    if found.count:
        first = (
            f"Copies: {found.count:,} of {found.total:,} samples ({interval}) copy "
            f"{summary['copied']:,} of the {train:,} training images."
        )
    else:
        first = (
            f"No copies found: none of {found.total:,} samples copies one of the {train:,} "
            f"training images by this search (95% interval of the rate {found.low:.1%} to "
            f"{found.high:.1%})."
        )
    false = summary["copies_heldout"]
    second = "Without held-out images, the rate of false alarms is unknown."
    if false is not None:
        second = (
            f"Of {heldout:,} held-out images, which are not copies, {false.count:,} were taken for "
            f"copies (false alarms: {false.rate:.1%}, at most {false.high:.1%})."
        )
    return [first, second, _unseen(summary)]


def _unseen(summary):
    if not summary["self_test"]:
        return (
            "No copies were planted, so it is unknown which changed copies the search would miss."
        )
    recalls = {kind: rates["verdict"] for kind, rates in summary["self_test"].items()}
    missed = [
        f"{kind} ({found.count} of {found.total} planted copies found)"
        for kind, found in recalls.items()
        if found.rate < _MISSED
    ]
    known = f"{len(recalls) - len(missed)} of {len(recalls)} kinds of planted copies were found."
    if not missed:
        return f"All {len(recalls)} kinds of planted copies were found; others may be missed."
    return f"{known} Copies with these changes could not have been seen: {', '.join(missed)}."


def rates(summary: Mapping[str, Any]) -> list[tuple[str, Rate, Rate | None]]:
    """Return (criterion, rate of the samples, rate of the held-out images or None)."""
    rows = [("copy", summary["copies"], summary["copies_heldout"])]
    for name, found in summary["detectors"].items():
        label = f"{DETECTORS[name]} < {found['threshold']:.3g}"
        rows.append((label, found["copies"], found["copies_heldout"]))
    return [
        *rows,
        ("strict d1/d2 (paper)", summary["strict"], None),
        (DETECTORS["without_noise"], summary["without_noise"], summary["without_noise_heldout"]),
        ("strict, noise removed", summary["without_noise_strict"], None),
        (DETECTORS["adaptive"], summary["adaptive"], summary["adaptive_heldout"]),
    ]
