"""Figure 5: gaps of several positions and widths, over the curves C and W.

    geomem gap-sweep --preset digits

The figure also shows a prediction that needs no training: the fraction of samples that are decided
above each noise level (`geomem.metrics.gap_prediction`).
"""

import dataclasses
import pathlib
from typing import Any, Literal, NamedTuple

import numpy as np

from geomem.diffusion import grids, schedules
from geomem.experiments.common import (
    arm_tables,
    arms,
    command_line,
    gap_study,
    image_flags,
    results,
)
from geomem.experiments.common.arms import Arm
from geomem.experiments.common.dataclass_flags import flag
from geomem.experiments.train import configuration
from geomem.geometry import danger_zone
from geomem.metrics import gap_prediction, intervals
from geomem.plots import sweep, training_curves

__all__ = ["Config", "Result", "make_positions", "make_shorter", "make_variants", "run"]

_PREDICTION_STEPS = 48


@dataclasses.dataclass(frozen=True)
class Config(gap_study.StudyFlags):
    """Train with gaps of several positions and widths, and with variants of the zone's gap.

    Trains one arm for each position and width, and for each width a baseline with as many steps as
    such a gap leaves; draws them over C and W. `--arms prediction` trains nothing. Finished runs
    and evaluations in the output folder are not repeated.
    """

    arms: Literal["all", "positions", "variants", "prediction"] = "all"
    """The arms to train."""
    positions: int = flag(5, "noise", most=1000)
    """Number of gaps along the noise levels for each width."""
    masses: tuple[float, ...] = flag((0.15, 0.3), "noise")
    """Widths of the gaps, as fractions of the training noise that they remove."""
    seeds: int = flag(1, "training", most=10_000)
    """Number of training runs of each arm."""
    samples: int | None = flag(None, "evaluation", least=2)
    """Number of images sampled from each checkpoint and for the prediction; default: the
    preset's."""
    out: str = flag("runs/gap_sweep", "output")
    """Folder for the runs, the tables and the figures."""


class Result(NamedTuple):
    """The rows, one for each arm, seed and checkpoint; the prediction; and the output folder."""

    rows: list[dict[str, Any]]
    prediction: gap_prediction.Prediction
    folder: pathlib.Path


def run(config: Config) -> Result:
    """Estimate the curves, predict, train and evaluate the arms, write tables and figures.

    Raises:
      ValueError: an invalid configuration, or images without a danger zone.
    """
    if config.positions < 1:
        raise ValueError(f"positions must be at least 1, got {config.positions}.")
    if not config.masses or not all(0 < mass < 0.9 for mass in config.masses):
        raise ValueError(f"masses must be fractions between 0 and 0.9, got {config.masses}.")
    preset = gap_study.resolve(config)
    output = results.Run(config)
    dataset = image_flags.load(preset.train)
    with output.phase("curves"):
        curves, zones = gap_study.find_zones(dataset.train, dataset.test, preset.thresholds)
    with output.phase("prediction"):
        prediction = _predict(preset, dataset)
    zone = zones[preset.thresholds[-1]]
    base = configuration.base_schedule(preset.train)
    positions = make_positions(base, config.positions, config.masses)
    shorter = make_shorter(config.masses, preset.train.kimg)
    variants = make_variants(zone)
    chosen = {
        "all": [Arm("baseline"), *shorter, *positions, *variants],
        "positions": [Arm("baseline"), *shorter, *positions],
        "variants": [Arm("baseline"), *variants],
        "prediction": [],
    }[config.arms]
    with output.phase("arms"):
        rows = gap_study.train_arms(config, preset, chosen, output.out)
    ends = list({(row["arm"], row["seed"]): row for row in rows}.values())  # last checkpoints
    with output.phase("files"):
        output.write_json("zones.json", {str(k): v._asdict() for k, v in zones.items()})
        rates = dict(zip(intervals.Rate._fields, zip(*prediction.rate, strict=True), strict=True))
        chance = [prediction.chance.rate] * len(prediction.high)
        columns = {"sigma": prediction.high, "decided": prediction.decided, "chance": chance}
        output.write_columns("prediction.csv", columns | rates)
        if rows:
            output.write_rows("results.csv", rows)
            output.write_rows("summary.csv", arm_tables.summarize(ends, *arms.MEASURES))
            if pairs := arm_tables.compare_pairs(rows):
                output.write_rows("pairs.csv", pairs)
            output.write_json("floors.json", gap_study.quality_floors(preset, dataset))
        placed = _rows_of(ends, [*positions, *shorter])
        output.write_figure("sweep", sweep.sweep(curves, zone, prediction, placed))
        if config.arms in ("all", "variants"):
            varied = _rows_of(rows, variants)
            output.write_figure("variants", training_curves.frontier(varied))
    output.finish(**gap_study.study_facts(preset, chosen, dataset))
    for row in ends:
        gap = f"{row['gap_low']:.3g} to {row['gap_high']:.3g}" if row["gap_low"] else "no gap"
        print(
            f"{row['arm']:<22} {gap:<16} memorized {row['memorized']:.2f}, noise removed "
            f"{row['without_noise']:.2f}, Frechet {row['frechet']:.2f}"
        )
    return Result(rows, prediction, output.folder)


def make_positions(base: schedules.Schedule, count: int, masses: tuple[float, ...]) -> list[Arm]:
    """Return `count` arms for each mass, with evenly spread gaps of that mass."""
    edges = [
        (base.quantile(start), base.quantile(start + mass))
        for mass in masses
        for start in np.linspace(0.01, 0.99 - mass, count)
    ]
    return [Arm(f"gap-{low:.3g}-{high:.3g}", (low, high)) for low, high in edges]


def make_shorter(masses: tuple[float, ...], kimg: float) -> list[Arm]:
    """Return a baseline for each mass that trains for as many steps as a gap leaves of `kimg`."""
    return [Arm(f"shorter-{m:g}", changes=(("kimg", (1 - m) * kimg),)) for m in masses]


def make_variants(zone: danger_zone.Zone) -> list[Arm]:
    """Return arms with the zone's gap, thinned or widened, and other settings with and without it.

    The other settings are: unscaled, as if the data had the standard deviation that EDM assumes;
    smooth, with a noise embedding that the network can interpolate; and deep, with two blocks per
    level.
    """
    edges = zone.low, zone.high
    trainings = {
        "unscaled": (("sigma_data", 0.5), ("noise_mean", -1.2)),
        "smooth": (("embedding", "positional"),),
        "deep": (("blocks", 2),),
    }
    return [
        Arm("zone", edges),
        Arm("zone-keep-0.1", edges, keep=0.1),
        Arm("zone-keep-0.3", edges, keep=0.3),
        Arm("zone-to-half", (zone.low / 2, zone.high)),
        *(
            Arm(f"{name}-{training}", gap, changes=changes)
            for training, changes in trainings.items()
            for name, gap in (("baseline", None), ("zone", edges))
        ),
    ]


def _predict(preset, dataset):
    """The prediction for upper edges from 0.1 to 10; the pool is all images of the data set."""
    source = image_flags.load(dataclasses.replace(preset.train, num_train=None))
    pool = np.concatenate([source.train, source.test])
    grid = grids.edm_grid(_PREDICTION_STEPS)
    edges = grid[:-1][(grid[:-1] > 0.1) & (grid[:-1] < 10)][::-1]
    seeds = range(preset.evaluation.samples)
    return gap_prediction.predict(dataset.train, pool, edges, grid, seeds=seeds)


def _rows_of(rows, arms):
    """The rows of these arms and of the baseline."""
    names = {"baseline", *(arm.name for arm in arms)}
    return [row for row in rows if row["arm"] in names]


if __name__ == "__main__":
    command_line.main(Config, run, resumes=True)
