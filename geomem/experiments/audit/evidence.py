"""What trained networks did with sets of known size: the measurements that an audit compares with.

They are in assets/audit_evidence.json: danger zones at threshold 0.8 with the commands that made
them, the fraction of copies among generated images against the length of training, and the effect
of gaps. Entries with a "file" come from that file of this repository; a test compares the two.
"""

from __future__ import annotations

import functools
import importlib.resources
import json
import math
from collections.abc import Sequence
from typing import Any

__all__ = [
    "COPIED",
    "NARROW",
    "NOT_COPIED",
    "NOT_COPIED_DIFFERENT",
    "THRESHOLD",
    "evidence",
    "onset",
    "width",
]

THRESHOLD = 0.8  # of the reference zones
COPIED = 2_000  # largest set of which trained networks were seen to make copies
NOT_COPIED = 50_000  # smallest set of natural images of which they were not: CIFAR-10
_SEEN = 0.01  # fraction of copies that counts as seen


@functools.cache
def evidence() -> dict[str, Any]:
    """Return the content of assets/audit_evidence.json."""
    file = importlib.resources.files("geomem") / "assets" / "audit_evidence.json"
    return json.loads(file.read_text(encoding="utf-8"))


def width(zone: Sequence[float]) -> float:
    """Return the ratio of a zone's upper edge to its lower edge."""
    return zone[1] / zone[0]


def onset() -> tuple[int, int]:
    """Return at which training lengths copies were first seen, in images per training image.

    The smallest and the largest of the experiments that measured several lengths, rounded down.
    """
    first = [
        next(seen for seen, rate in zip(run["seen"], run["copied"], strict=True) if rate > _SEEN)
        for run in evidence()["networks"]
        if len(run["seen"]) > 1
    ]
    first += evidence()["onset"]["passes"]
    return min(first), max(first)


def _narrow():
    """Half as wide, in the logarithm, as the zone of 1,000 CIFAR-10 images."""
    zone = next(row["zone"] for row in evidence()["references"] if row["count"] == 1000)
    return math.sqrt(width(zone))


def _not_copied_different():
    """Images of this set without duplicates, rounded down to hundreds, as an audit counts them."""
    row = next(row for row in evidence()["networks"] if row["count"] == NOT_COPIED)
    return row["different"] // 100 * 100


NARROW = _narrow()
NOT_COPIED_DIFFERENT = _not_copied_different()
