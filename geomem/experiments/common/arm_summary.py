"""Summaries of arms: means over seeds, and comparisons with an early-stopped baseline."""

from __future__ import annotations

import collections
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

__all__ = ["early_stopping", "summarize"]


def summarize(rows: Iterable[dict[str, Any]], *keys: str) -> list[dict[str, Any]]:
    """Return the mean and standard error over the seeds of each of `keys`, by arm and kimg.

    Returns:
      Rows in order of first appearance: arm, kimg, seeds (a count), KEY and KEY_error. The error is
      None for a single seed; both are None if a row lacks the value.
    """
    groups = collections.defaultdict(list)
    for row in rows:
        groups[row["arm"], row["kimg"]].append(row)
    summary = []
    for (arm, kimg), members in groups.items():
        line = {"arm": arm, "kimg": kimg, "seeds": len(members)}
        for key in keys:
            values = [member[key] for member in members]
            known = None not in values
            error = np.std(values, ddof=1) / np.sqrt(len(values)) if known and values[1:] else None
            line |= {key: float(np.mean(values)) if known else None, f"{key}_error": error}
        summary.append(line)
    return summary


def early_stopping(
    rows: Sequence[dict[str, Any]], arm: str, baseline: str
) -> dict[str, float | None]:
    """Compare the end of an arm's training with a baseline stopped early at equal quality.

    For each seed, the baseline's checkpoint is the one that memorizes least among those with a
    Frechet distance no larger than the arm's final one.

    Returns:
      frechet, without_noise and kimg at the end of the arm's training, as means over the seeds, and
      baseline_KEY for the baseline's checkpoints. The latter are None if a seed has no baseline
      checkpoint of that quality.
    """
    pairs = []
    for seed in dict.fromkeys(row["seed"] for row in rows):
        arm_rows, baseline_rows = (
            [row for row in rows if (row["arm"], row["seed"]) == (name, seed)]
            for name in (arm, baseline)
        )
        end = max(arm_rows, key=lambda row: row["kimg"])
        as_good = [row for row in baseline_rows if row["frechet"] <= end["frechet"]]
        pairs.append((end, min(as_good, key=lambda row: row["without_noise"], default=None)))
    ends, stops = zip(*pairs, strict=True)
    comparison: dict[str, float | None] = {}
    for prefix, chosen in (("", ends), ("baseline_", stops)):
        for key in ("frechet", "without_noise", "kimg"):
            known = None not in chosen
            comparison[prefix + key] = float(np.mean([r[key] for r in chosen])) if known else None
    return comparison
