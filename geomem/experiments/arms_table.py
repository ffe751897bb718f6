"""The rows of arms over their seeds: means, and an arm against a baseline that is stopped early."""

from __future__ import annotations

import collections
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

__all__ = ["early_stopping", "summarize"]


def summarize(rows: Iterable[dict[str, Any]], *keys: str) -> list[dict[str, Any]]:
    """Mean and standard error over the seeds of the columns `keys`, for each arm, kimg and grid.

    Returns:
      Rows in the order of their first appearance, with seeds (a count), KEY and KEY_error, which is
      None for a single seed.
    """
    groups = collections.defaultdict(list)
    for row in rows:
        groups[row["arm"], row["kimg"], row["sampling_steps"]].append(row)
    summary = []
    for (arm, kimg, grid), members in groups.items():
        line = {"arm": arm, "kimg": kimg, "sampling_steps": grid, "seeds": len(members)}
        for key in keys:
            values = np.array([member[key] for member in members], float)
            error = values.std(ddof=1) / np.sqrt(len(values)) if len(values) > 1 else None
            line |= {key: float(values.mean()), f"{key}_error": error}
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
    grid = rows[0]["sampling_steps"]
    pairs = []
    for seed in dict.fromkeys(row["seed"] for row in rows):
        mine, other = (
            [r for r in rows if (r["arm"], r["seed"], r["sampling_steps"]) == (name, seed, grid)]
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
