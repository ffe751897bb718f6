"""Figure 4: does leaving the danger zone out of the training noise remove memorization?

    python -m geomem.experiments.gap_training --preset digits

Measures the zone of the training images, trains arms that differ in their training noise only, and
judges each along its training: memorization, the same after left-over noise is removed, quality.
"""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import jax
import numpy as np

from geomem import data
from geomem.diffusion import sample, schedules
from geomem.experiments import arms, cli, record, train_config
from geomem.experiments.arms import Arm, Judging, Task
from geomem.geometry import curves, danger_zone
from geomem.metrics import rates
from geomem.plots import style
from geomem.plots import training as training_plot

__all__ = [
    "PRESETS",
    "Config",
    "Preset",
    "Result",
    "load",
    "make_arms",
    "measure_zones",
    "resolve",
    "run",
]

_SHOWN = ("memorized", "without_noise", "residual_noise", "frechet")
_SMALLEST = 0.02  # where the far control starts: levels below give samples their last polish


class Preset(NamedTuple):
    """A scale at which the experiment runs.

    Attributes:
      train: every arm's run, but for its gap and seed.
      judging: how checkpoints are judged.
      seeds: how many.
      thresholds: of the zones, from narrow to wide; controls are those of the last.
    """

    train: train_config.Config
    judging: Judging
    seeds: int
    thresholds: tuple[float, ...]


PRESETS = {
    "digits": Preset(train_config.PRESETS["digits_gap"], Judging(512), 3, (0.8, 0.5)),
    "cifar10": Preset(
        dataclasses.replace(
            train_config.PRESETS["edm_small"], classes=("automobile",), num_train=2000, kimg=20_000
        ),
        Judging(10_000),
        1,
        (0.8,),
    ),
}


@dataclasses.dataclass(frozen=True)
class Config:
    """Train with and without gaps in the noise levels, and compare what is memorized.

    digits: 128 training digits, 3 seeds, 7 arms, minutes on 2 CPU cores. cifar10: the paper's 2,000
    car images, for a GPU or a TPU slice. What the folder holds already is not computed again.
    """

    preset: Literal["digits", "cifar10"] = "digits"
    """The scale."""
    out: str = "runs/gap_training"
    """Folder for the runs, the tables and the figures."""
    arms: tuple[str, ...] = ()
    """Names of the arms to run, default all of them."""
    seeds: int | None = None
    """Number of seeds, default the preset's."""
    kimg: float | None = None
    """Length of each training in thousands of images, default the preset's."""
    samples: int | None = None
    """Images sampled from each checkpoint, default the preset's."""
    inception: str | None = None
    """File with the Inception weights: FID instead of the Frechet distance of pixels."""
    jobs: int | None = None
    """Runs at a time; default one to a core on a CPU, else one."""


class Result(NamedTuple):
    """What a run found.

    Attributes:
      rows: one for each arm, seed, checkpoint and sampling grid.
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
    preset = resolve(config)
    folder, phases = record.make_folder(config.out), record.Phases()
    with phases("zone"):
        dataset = load(preset.train)
        _, zones = measure_zones(dataset.train, dataset.test, preset.thresholds)
        record.write_json(folder / "zones.json", {str(k): v._asdict() for k, v in zones.items()})
    base = train_config.base_schedule(preset.train)
    every = make_arms(base, [(zone.low, zone.high) for zone in zones.values()], list(zones))
    chosen = _choose(every, config.arms)
    with phases("arms"):
        rows = arms.measure_all(
            [
                Task(arm, arm.configure(preset.train, seed, folder / "runs"), preset.judging)
                for seed in range(preset.seeds)
                for arm in chosen
            ],
            config.jobs,
        )
    with phases("files"):
        summary = arms.summarize(rows, *_SHOWN)
        arms.write_rows(folder / "results.csv", rows)
        arms.write_rows(folder / "summary.csv", summary)
        compared = _compare(folder, chosen, preset, rows)
        record.write_json(folder / "comparisons.json", compared)
        for path in _draw(folder, rows, chosen, preset, dataset):
            print(f"wrote {path}")
    record.write_json(
        folder / "run.json",
        {
            "config": dataclasses.asdict(config),
            "arms": [arm._asdict() for arm in chosen],
            "train": dataclasses.asdict(preset.train),
            "judging": dataclasses.asdict(preset.judging),
            "seeds": preset.seeds,
            "data": record.dataset_facts(dataset),
            "environment": record.environment(),
            "seconds": phases.seconds,
        },
    )
    _print(summary, compared)
    return Result(rows, summary, folder)


def measure_zones(
    train: np.ndarray, heldout: np.ndarray, thresholds: Sequence[float]
) -> tuple[curves.Curves, dict[float, danger_zone.Zone]]:
    """The curves of images [N, H, W, C], and their danger zone at each threshold.

    Raises:
      ValueError: there is none at some threshold.
    """
    train, heldout = (images.reshape(len(images), -1) for images in (train, heldout))
    found = curves.estimate(jax.random.key(0), train, heldout, np.geomspace(0.02, 80, 32))
    zones = {threshold: danger_zone.find(found, threshold) for threshold in thresholds}
    for threshold, zone in zones.items():
        if zone.low is None:
            raise ValueError(
                f"threshold: {threshold}, wanted at most {zone.peak_level:.3g}, where "
                "the curves of these images peak"
            )
    return found, zones


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


def resolve(config: Any) -> Preset:
    """The preset that `config` names, with its seeds, kimg, samples and inception put in.

    Raises:
      ValueError: a number that is not positive.
    """
    preset = PRESETS[config.preset]
    for name in ("seeds", "kimg", "samples", "jobs"):
        value = getattr(config, name)
        if value is not None and not value > 0:
            raise ValueError(f"{name}: {value}, wanted a positive number")
    train, judging = preset.train, preset.judging
    if config.kimg is not None:
        steps = max(1, round(config.kimg * 1000 / train.batch))
        every = max(1, steps // 8)
        train = dataclasses.replace(
            train, kimg=config.kimg, checkpoint_every=every, log_every=every
        )
    judging = dataclasses.replace(
        judging, samples=config.samples or judging.samples, inception=config.inception
    )
    return preset._replace(train=train, judging=judging, seeds=config.seeds or preset.seeds)


def load(train: train_config.Config) -> data.Dataset:
    """The images of a training run, with the held-out ones."""
    return data.load(train.dataset, heldout=train.heldout, resize=train.resize).subset(
        classes=train.classes, count=train.num_train, seed=train.subset_seed
    )


def _choose(every, names):
    known = {arm.name: arm for arm in every}
    if unknown := [name for name in names if name not in known]:
        raise ValueError(f"arms: {unknown[0]!r}, wanted some of {', '.join(known)}")
    return [known[name] for name in names] or every


def _compare(folder, chosen, preset, rows):
    """Each arm against the baseline: on the same seeds at the end, and at equal quality."""
    if chosen[0].name != "baseline":
        return []
    comparisons = []
    for arm in chosen[1:]:
        flags = [
            np.concatenate(
                [
                    arms.read_samples(folder / "runs", name, seed, preset.judging.steps[0])[kind]
                    for seed in range(preset.seeds)
                ]
            )
            for kind in ("memorized", "memorized_without_noise")
            for name in ("baseline", arm.name)
        ]
        comparisons.append(
            {
                "arm": arm.name,
                "memorized": rates.compare(*flags[:2])._asdict(),
                "without_noise": rates.compare(*flags[2:])._asdict(),
                "early_stopping": arms.early_stopping(rows, arm.name, "baseline"),
            }
        )
    return comparisons


def _draw(folder, rows, chosen, preset, dataset):
    first = preset.judging.steps[0]
    along = [row for row in rows if row["sampling_steps"] == first]
    paths = style.save(training_plot.along_training(along), folder, "training")
    paths += style.save(training_plot.frontier(along), folder, "frontier")
    for arm in chosen:
        found = arms.read_samples(folder / "runs", arm.name, 0, first)
        images, index = found["images"][:32], found["index"][:32, 0]
        path = folder / f"samples_{arm.name}.png"
        # Eight to a row, and beneath each row of samples their nearest training images.
        pairs = [
            strip[i : i + 8]
            for i in range(0, len(images), 8)
            for strip in (images, dataset.train[index])
        ]
        record.write_image_grid(path, sample.to_uint8(np.concatenate(pairs)), columns=8)
        paths.append(path)
    return paths


def _print(summary, compared):
    print(f"\n{'arm':<18}{'kimg':>7}{'grid':>6}  memorized      noise removed  noise   Frechet")
    last = {line["arm"]: line["kimg"] for line in summary}
    for line in summary:
        if line["kimg"] == last[line["arm"]]:
            cells = "  ".join(
                f"{line[key]:.2f}{_error(line[f'{key}_error'])}"
                for key in ("memorized", "without_noise", "residual_noise", "frechet")
            )
            print(f"{line['arm']:<18}{line['kimg']:>7.0f}{line['sampling_steps']:>6}  {cells}")


def _error(value):
    return "" if value is None else f" +- {value:.2f}"


if __name__ == "__main__":
    cli.main(Config, run)
