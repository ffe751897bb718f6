"""Figure 4: does leaving the danger zone out of the training noise remove memorization?

    python -m geomem.experiments.gap_training --preset digits

Measures the zone of the training images, trains arms that differ in their training noise only, and
judges each along its training: memorization, the same after left-over noise is removed, quality.
"""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from geomem.diffusion import sampler, schedules
from geomem.experiments.common import arm_summary, arms, cli, gap_study, results
from geomem.experiments.common.arms import Arm, Judging
from geomem.experiments.common.gap_study import Preset
from geomem.experiments.train import configuration
from geomem.metrics import intervals
from geomem.plots import style
from geomem.plots import training_curves as training_plot

__all__ = ["PRESETS", "Config", "Result", "make_arms", "run"]

_WHOLE = tuple(f"whole_grid_{key}" for key in arms.COMPARED)
_SMALLEST = 0.02  # where the far control starts: levels below give samples their last polish


PRESETS = {
    "digits": Preset(configuration.PRESETS["digits_gap"], Judging(512), 3, (0.8, 0.5)),
    "cifar10": Preset(
        dataclasses.replace(
            configuration.PRESETS["edm_small"],
            classes=("automobile",),
            num_train=2000,
            kimg=20_000,
            checkpoint_every=62_500,
        ),
        Judging(10_000),
        1,
        (0.8,),
    ),
}


@dataclasses.dataclass(frozen=True)
class Config(gap_study.Config):
    """Train with and without gaps in the noise levels, and compare what is memorized.

    digits: 128 training digits, 3 seeds, 7 arms, minutes on 2 CPU cores. cifar10: the paper's 2,000
    car images, for a GPU or a TPU slice. What the folder holds already is not computed again.
    """

    out: str = "runs/gap_training"
    """Folder for the runs, the tables and the figures."""
    arms: tuple[str, ...] = ()
    """Names of the arms to run, default all of them."""


class Result(NamedTuple):
    """What a run found.

    Attributes:
      rows: one for each arm, seed and checkpoint.
      summary: means over the seeds.
      folder: where the files are.
    """

    rows: list[dict[str, Any]]
    summary: list[dict[str, Any]]
    folder: pathlib.Path


def run(config: Config) -> Result:
    """Measure the zones, train and judge the arms, write tables and figures.

    Raises:
      ValueError: an unusable configuration, an unknown arm, or no zone in these data.
    """
    preset = gap_study.resolve(config, PRESETS[config.preset])
    folder, phases = results.make_folder(config.out), results.Phases()
    with phases("zone"):
        dataset = configuration.load_data(preset.train)
        _, zones = gap_study.measure_zones(dataset.train, dataset.test, preset.thresholds)
        results.write_json(folder / "zones.json", {str(k): v._asdict() for k, v in zones.items()})
    base = configuration.base_schedule(preset.train)
    every = make_arms(base, [(zone.low, zone.high) for zone in zones.values()], list(zones))
    chosen = _choose(every, config.arms)
    with phases("arms"):
        rows = gap_study.measure_arms(config, preset, chosen, folder)
    with phases("files"):
        summary = arm_summary.summarize(rows, *arms.COMPARED, *_WHOLE)
        results.write_rows(folder / "results.csv", rows)
        results.write_rows(folder / "summary.csv", summary)
        compared = _compare(folder, chosen, preset, rows)
        results.write_json(folder / "comparisons.json", compared)
        for path in _draw(folder, rows, chosen, dataset):
            print(f"wrote {path}")
    about = gap_study.facts(preset, chosen, dataset)
    results.write_run(folder, config, phases, **about, seeds=preset.seeds)
    _print(summary)
    return Result(rows, summary, folder)


def make_arms(
    base: schedules.Schedule, zones: Sequence[tuple[float, float]], names: Sequence[object]
) -> list[Arm]:
    """The arms of Figure 4, with controls for the last (widest) zone.

    Args:
      base: the training noise without a gap.
      zones: the edges of one or more danger zones.
      names: what to call each.

    Returns:
      baseline; dummy images in the last zone; a gap on each zone; gaps of the same mass just below
      the last zone and far below it; a gap over all noise above it.
    """
    low, high = zones[-1]
    mass = base.mass(low, high)
    far = _upper_edge(base, _SMALLEST, mass)
    return [
        Arm("baseline"),
        Arm("dummy", (low, high), dummy=True),
        *(Arm(f"zone-{name}", zone) for name, zone in zip(names, zones, strict=True)),
        Arm("small-noise", (_lower_edge(base, low, mass), low)),
        Arm("far-small-noise", (_SMALLEST, far)),
        Arm("large-noise", (high, base.quantile(1 - 1e-9))),
    ]


def _lower_edge(base, high, mass):
    """The edge below `high` such that the interval between them holds `mass`."""
    return base.quantile(max(base.mass(0, high) - mass, 1e-9))


def _upper_edge(base, low, mass):
    return base.quantile(min(base.mass(0, low) + mass, 1 - 1e-9))


def _choose(every, names):
    known = {arm.name: arm for arm in every}
    if unknown := [name for name in names if name not in known]:
        raise ValueError(f"arms: {unknown[0]!r}, wanted some of {', '.join(known)}")
    return [known[name] for name in names] or every


def _compare(folder, chosen, preset, rows):
    """Each arm against the baseline on the same seeds, at the end and at equal quality.

    `memorized` and `without_noise` compare the samples of these networks; `trainings` are the same
    differences over repeated trainings, and differ more.
    """
    if "baseline" not in [arm.name for arm in chosen]:
        return []
    seeds, kinds = range(preset.seeds), ("memorized", "memorized_without_noise")

    def read(arm):
        samples = [arms.read_samples(folder / "runs", arm, seed) for seed in seeds]
        return {kind: np.stack([one[kind] for one in samples]) for kind in kinds}

    baseline, comparisons = read("baseline"), []
    for arm in chosen:
        if arm.name == "baseline":
            continue
        mine = read(arm.name)
        line = {"arm": arm.name}
        for name, kind in zip(("memorized", "without_noise"), kinds, strict=True):
            line[name] = intervals.compare(baseline[kind].ravel(), mine[kind].ravel())._asdict()
            differences = (mine[kind].mean(axis=1) - baseline[kind].mean(axis=1)).tolist()
            line[name]["trainings"] = intervals.mean(differences)._asdict() | {"each": differences}
        line["early_stopping"] = arm_summary.early_stopping(rows, arm.name, "baseline")
        comparisons.append(line)
    return comparisons


def _draw(folder, rows, chosen, dataset):
    paths = style.save(training_plot.along_training(rows), folder, "training")
    paths += style.save(training_plot.frontier(rows), folder, "frontier")
    for arm in chosen:
        found = arms.read_samples(folder / "runs", arm.name, 0)
        columns = min(8, len(found["images"]))
        shown = min(32, len(found["images"]) // columns * columns)
        images, index = found["images"][:shown], found["index"][:shown, 0]
        path = folder / f"samples_{arm.name}.png"
        # Beneath each row of samples their nearest training images.
        pairs = [
            strip[i : i + columns]
            for i in range(0, shown, columns)
            for strip in (images, dataset.train[index])
        ]
        results.write_image_grid(path, sampler.to_uint8(np.concatenate(pairs)), columns=columns)
        paths.append(path)
    return paths


def _print(summary):
    last = {line["arm"]: line for line in summary}.values()
    head = (
        f"{'arm':<18}{'memorized':<15}{'noise removed':<15}{'left-over noise':<17}Frechet distance"
    )
    for title, keys in (("", arms.COMPARED), ("with the levels inside the gap", _WHOLE)):
        print(f"\n{title}\n{head}" if title else f"\n{head}")
        for line in last:
            cells = [f"{line[key]:.2f}{_error(line[f'{key}_error'])}" for key in keys]
            print(f"{line['arm']:<18}{cells[0]:<15}{cells[1]:<15}{cells[2]:<17}{cells[3]}")


def _error(value):
    return "" if value is None else f" +- {value:.2f}"


if __name__ == "__main__":
    cli.main(Config, run, resumes=True)
