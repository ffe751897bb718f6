"""Tables of trained arms: means over training runs, and paired differences between arms."""

import collections
import itertools
from typing import Any

import numpy as np

from geomem.metrics import intervals

__all__ = ["ENDPOINTS", "compare_pairs", "differences", "summarize"]

Rows = list[dict[str, Any]]

# Fixed before the runs: the first is primary. All are at the last checkpoint of a run.
ENDPOINTS = ("without_noise", "frechet", "recall", "coverage")


def summarize(rows: Rows, *keys: str) -> Rows:
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


def differences(rows: Rows, name: str, other: str = "baseline") -> dict[str, dict[str, Any]]:
    """Return arm minus other in each endpoint: mean, 95% interval and each difference.

    Pairs share the seed, and with it the training images. An interval that holds 0 leaves the sign
    open.
    """
    ends = {(row["arm"], row["seed"]): row for row in rows}  # the last checkpoints
    seeds = [seed for arm, seed in ends if arm == name]
    result = {}
    for key in ENDPOINTS:
        pairs = [(ends[name, seed][key], ends[other, seed][key]) for seed in seeds]
        if not any(None in pair for pair in pairs):
            each = [arm - reference for arm, reference in pairs]
            result[key] = intervals.mean(each)._asdict() | {"each": each}
    return result


def compare_pairs(rows: Rows) -> Rows:
    """Return the differences of every pair of arms in each endpoint, at the end of training.

    Returns:
      Rows of first, second, endpoint, and the mean of second minus first over training runs of the
      same seed, with its 95% interval, low and high. The intervals are not corrected for the
      number of pairs: with so many, some exclude 0 by chance.
    """
    names = dict.fromkeys(row["arm"] for row in rows)
    return [
        {"first": first, "second": second, "endpoint": key, "mean": mean, "low": low, "high": high}
        for first, second in itertools.combinations(names, 2)
        for key, found in differences(rows, second, first).items()
        for mean, low, high in [(found["mean"], found["low"], found["high"])]
    ]
