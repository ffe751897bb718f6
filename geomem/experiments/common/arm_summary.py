"""The rows of arms over their seeds: means, and an arm against a baseline that is stopped early."""

from __future__ import annotations

import collections
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

__all__ = ["early_stopping", "summarize"]


def summarize(rows: Iterable[dict[str, Any]], *keys: str) -> list[dict[str, Any]]:
    """Mean and standard error over the seeds of the columns `keys`, for each arm and kimg.

    Returns:
      Rows in the order of their first appearance, with seeds (a count), KEY and KEY_error, which is
      None for a single seed; both are None where a row lacks the value.
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
    """An arm's end against the baseline stopped as early as its quality allows.

    For each seed the baseline's checkpoint of least memorization is taken among those of a Frechet
    distance no larger than the arm's at its end.

    Returns:
      frechet, without_noise: of the arm at its end, means over the seeds; baseline_frechet,
      baseline_without_noise: of the baseline's checkpoints, None if a seed has none as good.
    """
    pairs = []
    for seed in dict.fromkeys(row["seed"] for row in rows):
        mine, other = (
            [row for row in rows if (row["arm"], row["seed"]) == (name, seed)]
            for name in (arm, baseline)
        )
        end = max(mine, key=lambda row: row["kimg"])
        as_good = [row for row in other if row["frechet"] <= end["frechet"]]
        pairs.append((end, min(as_good, key=lambda r: r["without_noise"], default=None)))
    ends, stops = zip(*pairs, strict=True)
    found: dict[str, float | None] = {}
    for prefix, chosen in (("", ends), ("baseline_", stops)):
        for key in ("frechet", "without_noise", "kimg"):
            missing = None in chosen
            found[prefix + key] = None if missing else float(np.mean([r[key] for r in chosen]))
    return found
