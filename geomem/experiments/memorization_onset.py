"""After how many images seen does a network that is trained on N images start to copy?

    geomem memorization-onset --preset digits

Trains networks on N images each, with and without the danger zone as a gap, watches them for
copies, and stops each at the first checkpoint that has some. A power law in N is fitted, and tested
with fresh training runs.
"""

import dataclasses
import json
import math
import pathlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from geomem import paths
from geomem.experiments.common import arms, command_line, gap_study, image_flags, parallel, results
from geomem.experiments.common.dataclass_flags import flag
from geomem.experiments.train import configuration
from geomem.metrics import intervals
from geomem.plots import onset as plots

__all__ = ["Config", "PowerLaw", "Result", "fit", "run"]

Rows = list[dict[str, Any]]

_ARMS = _BASELINE, _GAP = "baseline", "gap"
_OBSERVED = "watch/copying", "watch/memorized", "watch/heldout_ratio"
_FRESH = 1000  # seed of the first fresh training


@dataclasses.dataclass(frozen=True)
class Config:
    """Measure how many images a network sees before it copies, for several training sets.

    Each network is trained on its own random subset of the images. It copies once the memorized
    fraction of its samples exceeds that of held-out images (both 95% intervals apart), as in
    `geomem train --watch True`. Finished runs in the output folder are not repeated.
    """

    preset: gap_study.PresetName = "digits"
    """The network and the images, as in gap-training."""
    sizes: tuple[int, ...] = flag((32, 64, 128, 256), "training", most=10**8)
    """Sizes of the training sets."""
    seeds: int = flag(3, "training", most=10_000)
    """Networks of each size and arm, each with its own subset."""
    fresh: int = flag(5, "training", least=0, most=10_000)
    """Networks without a gap, of other seeds and subsets, that test the fit between the sizes."""
    passes: int = flag(1000, "training")
    """Maximum number of passes over the images in each run."""
    every: int = flag(40, "evaluation")
    """Passes over the images between two checkpoints."""
    samples: int = flag(256, "evaluation", least=2, most=2**16)
    """Number of images sampled at each checkpoint."""
    out: str = flag("runs/memorization_onset", "output")
    """Folder for the runs, onset.csv, fits.json and the figure."""
    jobs: int | None = flag(None, "advanced", most=1024)
    """Number of runs at the same time; default: one per core on a CPU, else one."""


class Task(NamedTuple):
    """A network to train until it copies."""

    arm: str
    config: configuration.Config
    mass: float  # of the training noise in the gap


class PowerLaw(NamedTuple):
    """onset = constant N^exponent, by least squares of the logarithms.

    Attributes:
      exponent: Mean, with its 95% interval over the networks.
      constant: the onset for N = 1.
      deviation: residual standard deviation of the natural logarithm.
      sizes: number of training images of each network.
    """

    exponent: intervals.Mean
    constant: float
    deviation: float
    sizes: tuple[float, ...]

    def predict(self, size: float) -> tuple[float, float, float]:
        """Return the onset for N = size and the 95% interval of another network's onset."""
        from scipy.stats import t

        x, center = np.log(self.sizes), math.log(self.constant)
        distance = math.log(size) - x.mean()
        spread = 1 + 1 / len(x) + distance**2 / np.sum((x - x.mean()) ** 2)
        margin = t.ppf(0.975, len(x) - 2) * self.deviation * math.sqrt(spread)
        middle = center + self.exponent.mean * math.log(size)
        return math.exp(middle), math.exp(middle - margin), math.exp(middle + margin)


class Result(NamedTuple):
    """The rows, one for each network; the fit of each arm, or None; the folder."""

    rows: Rows
    fits: dict[str, PowerLaw | None]
    folder: pathlib.Path


def run(config: Config) -> Result:
    """Train the networks until they copy; write the table, the fits and the figure.

    Raises:
      ValueError: an invalid configuration, or images without a danger zone.
    """
    preset = gap_study.resolve(gap_study.StudyFlags(preset=config.preset))
    _check(config, preset.train)
    output = results.Run(config)
    middle = round(math.sqrt(min(config.sizes) * max(config.sizes)))
    with output.phase("zones"):
        runs = output.out / "runs"
        tasks = [
            _make_task(config, preset, runs, arm, size, seed)
            for size in sorted(config.sizes, reverse=True)  # the longest first
            for seed in range(config.seeds)
            for arm in _ARMS
        ]
        fresh = [
            _make_task(config, preset, runs, _BASELINE, middle, _FRESH + i)
            for i in range(config.fresh)
        ]
    with output.phase("runs"):
        rows = parallel.train_and_evaluate_all([*tasks, *fresh], config.jobs, train_until_copying)
    rows.sort(key=lambda row: (row["fresh"], row["train_images"], row["arm"], row["seed"]))
    with output.phase("files"):
        fits = {arm: _fit_rows([r for r in rows if r["arm"] == arm]) for arm in _ARMS}
        facts = _summarize(rows, fits)
        output.write_rows("onset.csv", rows)
        output.write_json("fits.json", facts)
        output.write_figure("onset", plots.onset(rows, facts))
    output.finish(train=dataclasses.asdict(preset.train))
    _print(facts)
    return Result(rows, fits, output.folder)


def _check(config, train):
    for name in ("seeds", "passes", "every"):
        if getattr(config, name) < 1:
            raise ValueError(f"{name} must be positive, got {getattr(config, name)}.")
    different = len(set(config.sizes))
    if different < max(3, len(config.sizes)) or min(config.sizes) < 4:
        shown = " ".join(map(str, config.sizes))
        raise ValueError(f"sizes must be three or more different numbers from 4, got {shown}.")
    if config.passes * max(config.sizes) >= 2**31 * train.batch:
        raise ValueError(f"passes must give fewer than 2^31 steps, got {config.passes}.")
    whole = image_flags.load(dataclasses.replace(train, num_train=None)).train_split
    if max(config.sizes) > len(whole):
        raise ValueError(
            f"sizes must be at most {len(whole)}, the number of images, got {max(config.sizes)}."
        )


def _make_task(config, preset, runs, arm, size, seed):
    """A training on its own subset of `size` images, with checkpoints every `config.every` passes.

    The gap is the danger zone of the subset.
    """
    base = preset.train
    every = max(1, round(config.every * size / base.batch))
    changes = {
        "num_train": size,
        "subset_seed": seed,
        "seed": seed,
        "kimg": config.passes * size / 1000,
        "log_every": every,
        "checkpoint_every": every,
        "keep_checkpoints": 2,
        "samples": 0,
        "watch": True,
        "watch_samples": config.samples,
        "stop_when_copying": True,
        "out": str(runs / f"{arm}-{size}-{seed}"),
    }
    train, mass = dataclasses.replace(base, **changes), 0.0
    if arm == _GAP:
        dataset, threshold = image_flags.load(train), preset.thresholds[-1]
        zone = gap_study.find_zones(dataset.train, dataset.test, [threshold])[1][threshold]
        mass = configuration.base_schedule(train).mass(zone.low, zone.high)
        train = dataclasses.replace(train, gap=(zone.low, zone.high))
    return Task(arm, train, mass)


def train_until_copying(task: Task) -> Rows:
    """Train a network until it copies, or to the end of its budget; return its row.

    The onset is the geometric mean of the images seen at the last checkpoint without copies and at
    the first with some; None if the network did not copy.
    """
    arms.train(task.config)
    seen = _observations(task.config.out)
    images, last = seen[-1]
    before = seen[-2][0] if len(seen) > 1 else task.config.batch
    copying = bool(last["watch/copying"])
    low, high = task.config.gap or (None, None)
    row = {
        "arm": task.arm,
        "train_images": task.config.num_train,
        "seed": task.config.seed,
        "fresh": task.config.seed >= _FRESH,
        "gap_low": low,
        "gap_high": high,
        "gap_mass": task.mass,
        "without_copies": before if copying else images,
        "with_copies": images if copying else None,
        "onset": math.sqrt(before * images) if copying else None,
        "memorized": last["watch/memorized"],
        "heldout_ratio": last["watch/heldout_ratio"],
    }
    return [row]


def _observations(out):
    """(images seen, the observation) at each checkpoint of a run.

    Raises:
      ValueError: its metrics are damaged.
    """
    path = paths.as_path(out) / "metrics.jsonl"
    try:
        lines = [json.loads(line) for line in path.read_text().splitlines()]
        seen = [(1000 * line["kimg"], line) for line in lines if "watch/copying" in line]
        numbers = [(at, *(line[name] for name in _OBSERVED)) for at, line in seen]
        if not seen or not np.isfinite(np.float64(numbers)).all():
            raise ValueError("no observations")
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        raise ValueError(
            f"out must hold runs with whole metrics, got {path}; without the folder {out}, the "
            "same command trains this run again."
        ) from None
    return seen


def fit(sizes: Sequence[float], onsets: Sequence[float]) -> PowerLaw:
    """Return the power law through the onsets of networks trained on `sizes` images.

    >>> found = fit([10, 20, 40, 80], [105, 190, 400, 820])
    >>> round(found.exponent.mean, 2), round(found.predict(40)[0])
    (1.0, 402)
    """
    from scipy.stats import linregress, t

    x, y = np.log(sizes), np.log(onsets)
    line = linregress(x, y)
    margin = float(t.ppf(0.975, len(x) - 2) * line.stderr)
    slope = float(line.slope)
    residuals = y - line.intercept - slope * x
    deviation = math.sqrt(float(np.sum(residuals**2)) / (len(x) - 2))
    exponent = intervals.Mean(slope, slope - margin, slope + margin)
    return PowerLaw(exponent, math.exp(line.intercept), deviation, tuple(sizes))


def _fit_rows(rows):
    """The fit of an arm's networks; None if one did not copy, which would bias it."""
    rows = [row for row in rows if not row["fresh"]]
    if any(row["onset"] is None for row in rows):
        return None
    return fit([row["train_images"] for row in rows], [row["onset"] for row in rows])


def _summarize(rows, fits):
    """The fits, the delay by the gap, and how many fresh trainings began where predicted."""
    facts: dict[str, Any] = {}
    for arm, law in fits.items():
        own = [row for row in rows if row["arm"] == arm and not row["fresh"]]
        facts[arm] = {"networks": len(own), "copied": sum(r["onset"] is not None for r in own)}
        if law is not None:
            passes = np.log([row["onset"] / row["train_images"] for row in own])
            facts[arm] |= {
                "exponent": law.exponent._asdict(),
                "constant": law.constant,
                "deviation": law.deviation,
                "passes": {k: math.exp(v) for k, v in intervals.mean(passes)._asdict().items()},
            }
    facts["delay"] = _delay(rows)
    if fits[_BASELINE] is not None and any(row["fresh"] for row in rows):
        facts["fresh"] = [
            {
                "train_images": row["train_images"],
                "seed": row["seed"],
                "onset": row["onset"],
                "predicted": (law := fits[_BASELINE].predict(row["train_images"]))[0],
                "low": law[1],
                "high": law[2],
                "inside": row["onset"] is not None and law[1] <= row["onset"] <= law[2],
            }
            for row in rows
            if row["fresh"]
        ]
    return facts


def _delay(rows):
    """The factor by which the gap delays copying, over pairs of networks with the same images.

    `plain` counts all images; `matched` counts the baseline's as if it left out the same share of
    its steps, so that both have as many steps outside the gap. Pairs in which one network did not
    copy are counted but left out.
    """
    onsets = {(r["arm"], r["train_images"], r["seed"]): r for r in rows if not r["fresh"]}
    pairs = [(onsets[_BASELINE, *key], row) for (arm, *key), row in onsets.items() if arm == _GAP]
    known = [(a, b) for a, b in pairs if a["onset"] and b["onset"]]
    delay: dict[str, Any] = {"pairs": len(pairs), "copied": len(known)}
    if len(known) > 1:
        plain = [math.log(b["onset"] / a["onset"]) for a, b in known]
        matched = [
            log + math.log1p(-b["gap_mass"]) for log, (_, b) in zip(plain, known, strict=True)
        ]
        for name, logs in (("plain", plain), ("matched", matched)):
            delay[name] = {k: math.exp(v) for k, v in intervals.mean(logs)._asdict().items()}
    return delay


def _print(facts):
    for arm in _ARMS:
        found = facts[arm]
        print(f"{arm}: {found['copied']} of {found['networks']} networks copied", end="")
        if "exponent" in found:
            mean, low, high = found["exponent"].values()
            passes = found["passes"]["mean"]
            print(
                f", each image seen {passes:.0f} times before; onset grows as N to the power "
                f"{mean:.2f} [{low:.2f}, {high:.2f}]",
                end="",
            )
        print()
    if "plain" in facts["delay"]:
        for name, words in (("plain", ""), ("matched", ", with as many steps outside the gap")):
            mean, low, high = facts["delay"][name].values()
            print(
                f"the gap delays copying by a factor of {mean:.2f} [{low:.2f}, {high:.2f}]{words}"
            )
    if "fresh" in facts:
        inside = sum(entry["inside"] for entry in facts["fresh"])
        print(f"{inside} of {len(facts['fresh'])} fresh trainings started where the fit predicts")


if __name__ == "__main__":
    command_line.main(Config, run, resumes=True)
