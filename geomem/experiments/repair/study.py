"""Can another denoiser in the danger zone repair a network that copies, without training it again?

    geomem repair --preset digits

Trains networks that copy, each on its own subset of the images, and samples from them with other
denoisers in place of the network on some sampling steps: inside the danger zone, above it, below
it, and on windows everywhere. Early stopping and gap training stand beside it.
"""

import dataclasses
import functools
import pathlib
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from geomem import data
from geomem.diffusion import sampler
from geomem.experiments.common import arms, gap_study, image_flags, parallel, results
from geomem.experiments.common.dataclass_flags import flag
from geomem.experiments.repair import measure, variants
from geomem.metrics import intervals
from geomem.plots import repaired as plots
from geomem.points.neighbors import nearest

__all__ = ["Config", "Result", "compare", "run", "summarize"]

Rows = list[dict[str, Any]]

_BASELINE, _GAP = "baseline", "gap"
# Fixed before the runs: what replaces the network inside the zone.
_CHOSEN = {
    "digits": variants.Replacement("ls", 3),
    "cifar16": variants.Replacement("els", 5),
    "cifar10": variants.Replacement("els", 5),
}


@dataclasses.dataclass(frozen=True)
class Config(gap_study.StudyFlags):
    """Put other denoisers in the place of networks that copy, and measure the samples.

    Finished runs and evaluations in the output folder are not repeated.
    """

    seeds: int | None = flag(6, "training", most=10_000)
    """Number of networks."""
    own_subsets: bool = flag(True, "training")
    """Train each network on its own random subset of the images, so that intervals also cover the
    choice of the training images."""
    quick: bool = flag(False, "evaluation")
    """Only the main comparison, with fewer denoisers and without sliding windows."""
    out: str = flag("runs/repair", "output")
    """Folder for the runs, the tables and the figures."""


class Result(NamedTuple):
    """The rows (one for each network, checkpoint and variant), the comparisons, the folder."""

    rows: Rows
    comparisons: Rows
    folder: pathlib.Path


def run(config: Config) -> Result:
    """Train the networks, sample from them in all variants, write tables and figures.

    Raises:
      ValueError: an invalid configuration, or images without a danger zone.
    """
    preset, chosen = gap_study.resolve(config), _CHOSEN[config.preset]
    output = results.Run(config)
    with output.phase("zones"):
        tasks, zones, dataset = _make_tasks(config, preset, chosen, output.out)
    output.write_json("zones.json", zones)
    with output.phase("runs"):
        rows = parallel.train_and_evaluate_all(tasks, config.jobs, measure.measure_run)
    with output.phase("files"):
        comparisons, summary = compare(rows, chosen), summarize(rows)
        output.write_rows("results.csv", rows)
        output.write_rows("summary.csv", summary)
        output.write_json("comparisons.json", comparisons)
        zone = [float(np.mean([zone[edge] for zone in zones])) for edge in ("low", "high")]
        output.write_figure("frontier", plots.frontier(summary, str(chosen)))
        if not config.quick:
            output.write_figure("windows", plots.windows(summary, zone, str(chosen)))
        _draw_samples(output, tasks[0], dataset)
    output.finish(**gap_study.study_facts(preset, [], dataset), chosen=str(chosen))
    _print(comparisons)
    return Result(rows, comparisons, output.folder)


def _make_tasks(config, preset, chosen, folder):
    """A baseline and an arm with the zone as its gap for each seed; the zones; the first images."""
    tasks, zones, first = [], [], None
    threshold = preset.thresholds[-1]
    for seed in range(preset.seeds):
        configure = functools.partial(
            arms.Arm.configure,
            config=preset.train,
            seed=seed,
            runs=folder / "runs",
            own_subset=config.own_subsets,
        )
        baseline = arms.Arm(_BASELINE)
        dataset = image_flags.load(configure(baseline))
        first = first or dataset
        found = gap_study.find_zones(dataset.train, dataset.test, [threshold])[1][threshold]
        zone = found.low, found.high
        zones.append({"seed": seed, "threshold": threshold, "low": zone[0], "high": zone[1]})
        for arm in (baseline, arms.Arm(_GAP, zone)):
            ways = preset.evaluation, zone, chosen, config.quick
            tasks.append(measure.Task(arm.name, configure(arm), *ways))
    return tasks, zones, first


def summarize(rows: Rows) -> Rows:
    """Return the mean of each measure over the networks with its 95% interval, by variant."""
    groups: dict[tuple, Rows] = {}
    for row in rows:
        groups.setdefault((row["arm"], row["variant"], row["kimg"]), []).append(row)
    lines = []
    for (arm, variant, kimg), members in groups.items():
        line = {"arm": arm, "variant": variant, "kimg": kimg, "networks": len(members)}
        for edge in ("sigma_from", "sigma_to"):
            known = [row[edge] for row in members if row[edge] is not None]
            line[edge] = float(np.mean(known)) if known else None
        for key in measure.MEASURES:
            values = [row[key] for row in members]
            found = intervals.Mean(None, None, None) if None in values else intervals.mean(values)
            line |= {key: found.mean, f"{key}_low": found.low, f"{key}_high": found.high}
        lines.append(line)
    return lines


def compare(rows: Rows, chosen: variants.Replacement) -> Rows:
    """Return paired differences between networks sampled in two ways, with 95% intervals.

    Each variant is compared with the unrepaired network. The chosen replacement inside the zone is
    also compared with itself above and below the zone, with gap training, with every earlier
    checkpoint of the unrepaired network ("stopped at" so many thousands of images), and with the
    one that copies least (aligned) at a Frechet distance no larger ("stopped early").

    Returns:
      Entries with first, second, and for each measure the second minus the first: mean, low, high,
      and each network's difference. Networks that lack a value, because no checkpoint is as good,
      are left out; None if all do.
    """
    last = max(row["kimg"] for row in rows)
    table: dict[str, dict[int, dict]] = {}
    for row in (row for row in rows if row["kimg"] == last):
        name = row["variant"] if row["arm"] == _BASELINE else f"{row['arm']} training"
        table.setdefault(name, {})[row["seed"]] = row
    repaired = f"zone: {chosen}"
    table["stopped early"] = _stopped_early(rows, table[repaired])
    pairs = [("none", name) for name in table if name not in ("none", "stopped early")]
    others = [f"above: {chosen}", f"below: {chosen}", f"{_GAP} training", "stopped early"]
    for row in rows:
        if (row["arm"], row["variant"]) == (_BASELINE, "none") and row["kimg"] < last:
            others.append(name := f"stopped at {row['kimg']:g}")
            table.setdefault(name, {})[row["seed"]] = row
    pairs += [(name, repaired) for name in dict.fromkeys(others) if name in table]
    return [
        {"first": first, "second": second}
        | {key: _difference(table[first], table[second], key) for key in measure.MEASURES}
        for first, second in pairs
    ]


def _stopped_early(rows, repaired):
    """The checkpoint of each unrepaired network that copies least at a quality no worse."""
    plain = [row for row in rows if (row["arm"], row["variant"]) == (_BASELINE, "none")]
    return {
        seed: gap_study.stop_early(
            [other for other in plain if other["seed"] == seed], row["frechet"], "aligned"
        )
        for seed, row in repaired.items()
    }


def _difference(first, second, key):
    pairs = [(first[seed], second[seed]) for seed in first if seed in second]
    pairs = [pair for pair in pairs if None not in pair and None not in (row[key] for row in pair)]
    if not pairs:
        return None
    each = [after[key] - before[key] for before, after in pairs]
    return intervals.mean(each)._asdict() | {"each": each}


def _draw_samples(output, task, dataset: data.Dataset):
    """Write a grid: rows of samples, the same seeds repaired, and their nearest training images."""
    plain, repaired = (measure.read_samples(task.config.out, n) for n in ("plain", "repaired"))
    columns, strips = 8, []
    for start in range(0, min(32, len(plain)) // columns * columns, columns):
        for images in (plain, repaired):
            part = images[start : start + columns]
            index = np.asarray(nearest(part, dataset.train, 1).index)[:, 0]
            strips += [part, dataset.train[index]]
    if strips:
        pixels = sampler.to_uint8(np.concatenate(strips))
        results.write_image_grid(output.folder / "samples.png", pixels, columns=columns)


def _print(comparisons):
    shown: list[tuple[str, Callable]] = [
        ("memorized", "{:+.1%}".format),
        ("aligned", "{:+.1%}".format),
        ("frechet", "{:+.2f}".format),
        ("coverage", "{:+.2f}".format),
    ]
    print(f"\nmean difference [95% interval over networks]\n{'':38}", end="")
    print("".join(f"{key:<26}" for key, _ in shown))
    for entry in comparisons:
        if entry["second"].startswith("window"):
            continue
        name = entry["second"] if entry["first"] == "none" else f"... minus {entry['first']}"
        cells = []
        for key, show in shown:
            found = entry[key]
            low, high = (found and found[edge] for edge in ("low", "high"))
            interval = "" if low is None else f" [{show(low)}, {show(high)}]"
            cells.append("-" if found is None else f"{show(found['mean'])}{interval}")
        print(f"{name:<38}" + "".join(f"{cell:<26}" for cell in cells))
