"""Figure 4: train with and without gaps in the noise levels, and compare memorization and quality.

    geomem gap-training --preset digits

Finds the danger zones of the training images, trains arms that differ only in their training noise,
and evaluates each at several checkpoints: memorization before and after leftover noise is removed,
and the Frechet distance to held-out images.
"""

import dataclasses
import pathlib
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from geomem.diffusion import sampler
from geomem.experiments.common import (
    arm_tables,
    arms,
    command_line,
    gap_study,
    image_flags,
    results,
)
from geomem.experiments.common.arm_tables import Rows
from geomem.experiments.common.arms import Arm
from geomem.experiments.common.dataclass_flags import flag
from geomem.experiments.train import configuration
from geomem.metrics import intervals
from geomem.plots import training_curves

__all__ = [
    "Config",
    "Result",
    "compare_early_stopping",
    "make_arms",
    "run",
]

_ON_WHOLE_GRID = tuple(f"whole_grid_{key}" for key in arms.MEASURES)
_FAR_LOW = 0.02  # lower edge of the far control; sampling needs the levels below it for details


@dataclasses.dataclass(frozen=True)
class Config(gap_study.StudyFlags):
    """Train with and without gaps in the noise levels, and compare memorization and quality.

    Finished runs and evaluations in the output folder are not repeated.
    """

    arms: tuple[str, ...] = ()
    """Names of the arms to train; default: all."""
    out: str = flag("runs/gap_training", "output")
    """Folder for the runs, the tables and the figures."""


class Result(NamedTuple):
    """The rows (one for each arm, seed and checkpoint), their means over the seeds, the folder."""

    rows: Rows
    summary: Rows
    folder: pathlib.Path


def run(config: Config) -> Result:
    """Find the danger zones, train and evaluate the arms, write tables and figures.

    Raises:
      ValueError: an invalid configuration, an unknown arm, or images without a danger zone.
    """
    preset = gap_study.resolve(config)
    # Unknown names end the run before the zones are measured.
    any_zones = [(1.0, 2.0)] * len(preset.thresholds)
    _select_arms(make_arms(preset.train, any_zones, preset.thresholds), config.arms)
    output = results.Run(config)
    with output.phase("zone"):
        dataset = image_flags.load(preset.train)
        _, zones = gap_study.find_zones(dataset.train, dataset.test, preset.thresholds)
    output.write_json("zones.json", {str(k): v._asdict() for k, v in zones.items()})
    edges = [(zone.low, zone.high) for zone in zones.values()]
    chosen = _select_arms(make_arms(preset.train, edges, list(zones)), config.arms)
    with output.phase("arms"):
        rows = gap_study.train_arms(config, preset, chosen, output.out)
    with output.phase("files"):
        summary = arm_tables.summarize(rows, *arms.MEASURES, *_ON_WHOLE_GRID)
        output.write_rows("results.csv", rows)
        output.write_rows("summary.csv", summary)
        output.write_json("comparisons.json", _compare(output.out, chosen, preset.seeds, rows))
        if pairs := arm_tables.compare_pairs(rows):
            output.write_rows("pairs.csv", pairs)
        output.write_json("floors.json", gap_study.quality_floors(preset, dataset))
        output.write_figure("training", training_curves.along_training(rows))
        output.write_figure("frontier", training_curves.frontier(rows))
        for arm in chosen:
            _draw_samples(output, arm.name, dataset.train)
    output.finish(**gap_study.study_facts(preset, chosen, dataset), seeds=preset.seeds)
    _print_table(summary)
    return Result(rows, summary, output.folder)


def make_arms(
    train: configuration.Config, zones: Sequence[tuple[float, float]], names: Sequence[object]
) -> list[Arm]:
    """Return the arms of Figure 4, with controls for the last (widest) zone.

    Args:
      train: the configuration of the baseline.
      zones: edges of one or more danger zones.
      names: a name for each zone.

    Returns:
      The baseline, dummy images in the last zone, and a gap on each zone. The controls are gaps of
      the same mass as the last zone, directly below it and far below it, and a gap on all noise
      above it; the baseline with (1 - mass) of the steps, because a gap of this mass leaves out as
      much training; and the baseline's training noise moved down or up by half its width.
    """
    base = configuration.base_schedule(train)
    shift = train.noise_std / 2
    low, high = zones[-1]
    mass = base.mass(low, high)
    below = base.quantile(max(base.mass(0, low) - mass, 1e-9))
    far_high = base.quantile(min(base.mass(0, _FAR_LOW) + mass, 1 - 1e-9))
    return [
        Arm("baseline"),
        Arm("dummy", (low, high), dummy=True),
        *(Arm(f"zone-{name}", zone) for name, zone in zip(names, zones, strict=True)),
        Arm("small-noise", (below, low)),
        Arm("far-small-noise", (_FAR_LOW, far_high)),
        Arm("large-noise", (high, base.quantile(1 - 1e-9))),
        Arm("shorter", changes=(("kimg", (1 - mass) * train.kimg),)),
        Arm("less-noise", changes=(("noise_mean", train.noise_mean - shift),)),
        Arm("more-noise", changes=(("noise_mean", train.noise_mean + shift),)),
    ]


def compare_early_stopping(rows: Rows, arm: str, baseline: str) -> dict[str, float | None]:
    """Compare the end of an arm's training with a baseline stopped early at equal quality.

    For each seed, the baseline's checkpoint is the one that memorizes least among those with a
    Frechet distance no larger than the arm's final one.

    Returns:
      frechet, without_noise and kimg at the end of the arm's training, as means over the seeds, and
      baseline_KEY for the baseline's checkpoints, None if a seed has no checkpoint of that quality.
    """
    ends, stops = [], []
    for seed in dict.fromkeys(row["seed"] for row in rows):
        of_seed = [row for row in rows if row["seed"] == seed]
        end = max((r for r in of_seed if r["arm"] == arm), key=lambda row: row["kimg"])
        checkpoints = [row for row in of_seed if row["arm"] == baseline]
        ends.append(end)
        stops.append(gap_study.stop_early(checkpoints, end["frechet"], "without_noise"))
    return {
        prefix + key: None if None in chosen else float(np.mean([row[key] for row in chosen]))
        for prefix, chosen in (("", ends), ("baseline_", stops))
        for key in ("frechet", "without_noise", "kimg")
    }


def _select_arms(all_arms, names):
    by_name = {arm.name: arm for arm in all_arms}
    if unknown := [name for name in names if name not in by_name]:
        raise ValueError(f"arms must be among {', '.join(by_name)}, got {unknown[0]!r}.")
    if len(set(names)) < len(names):
        raise ValueError(f"arms must be different, got {' '.join(names)}.")
    return [by_name[name] for name in names] or all_arms


def _compare(folder, chosen, seeds, rows):
    """Comparisons of each arm with the baseline at the end of training and at equal quality.

    `memorized` and `without_noise` compare samples of the same seeds from these networks. Their
    entry `trainings` compares repeated training runs, which vary more. `endpoints` holds the paired
    differences between training runs of the endpoints that are fixed before the runs.
    """
    if "baseline" not in [arm.name for arm in chosen]:
        return []

    def read(arm):
        samples = [arms.read_samples(folder / "runs", arm, seed) for seed in range(seeds)]
        return {
            "memorized": np.stack([s["memorized"] for s in samples]),
            "without_noise": np.stack([s["memorized_without_noise"] for s in samples]),
        }

    baseline, comparisons = read("baseline"), []
    for name in [arm.name for arm in chosen if arm.name != "baseline"]:
        entry = {"arm": name}
        for kind, treated in read(name).items():
            differences = (treated.mean(axis=1) - baseline[kind].mean(axis=1)).tolist()
            entry[kind] = intervals.compare(baseline[kind].ravel(), treated.ravel())._asdict()
            entry[kind]["trainings"] = intervals.mean(differences)._asdict() | {"each": differences}
        entry["endpoints"] = arm_tables.differences(rows, name)
        entry["early_stopping"] = compare_early_stopping(rows, name, "baseline")
        comparisons.append(entry)
    return comparisons


def _draw_samples(output, arm, train):
    """Write a grid of the samples of run 0, with the nearest training images below each row."""
    samples = arms.read_samples(output.out / "runs", arm, 0)
    images, nearest = samples["images"], samples["index"][:, 0]
    columns = min(8, len(images))
    shown = min(32, len(images) // columns * columns)
    strips = [
        strip[i : i + columns]
        for i in range(0, shown, columns)
        for strip in (images, train[nearest])
    ]
    pixels = sampler.to_uint8(np.concatenate(strips))
    results.write_image_grid(output.folder / f"samples_{arm}.png", pixels, columns=columns)


def _print_table(summary):
    """Print the results at the last checkpoint of each arm."""
    ends = {line["arm"]: line for line in summary}.values()
    header = (
        f"{'arm':<18}{'memorized':<15}{'noise removed':<15}{'leftover noise':<17}Frechet distance"
    )
    for title, keys in (
        ("samplers skip the gap", arms.MEASURES),
        ("samplers use all noise levels", _ON_WHOLE_GRID),
    ):
        print(f"\n{title}; mean +- standard error over the seeds\n{header}")
        for line in ends:
            cells = [_with_error(line[key], line[f"{key}_error"]) for key in keys]
            print(f"{line['arm']:<18}{cells[0]:<15}{cells[1]:<15}{cells[2]:<17}{cells[3]}")


def _with_error(value, error):
    if value is None:  # too few samples for this measure
        return "-"
    return f"{value:.2f}" if error is None else f"{value:.2f} +- {error:.2f}"


if __name__ == "__main__":
    command_line.main(Config, run, resumes=True)
