"""Figure 5: gaps at other places and of other widths, laid over the curves; and what else works.

    python -m geomem.experiments.gap_sweep --preset digits

Beside the trained arms stands what needs no training: the fraction of samples that is decided above
each noise level (`geomem.metrics.prediction`), in seconds.
"""

from __future__ import annotations

import dataclasses
import pathlib
from typing import Any, Literal, NamedTuple

import numpy as np

from geomem.diffusion import grids, schedules
from geomem.experiments import gap_training
from geomem.experiments.common import cli, gap_study, results
from geomem.experiments.common.arms import Arm
from geomem.experiments.train import configuration
from geomem.geometry import danger_zone
from geomem.metrics import gap_prediction
from geomem.plots import style
from geomem.plots import sweep as sweep_plot
from geomem.plots import training_curves as training_plot

__all__ = ["Config", "Result", "make_positions", "make_variants", "run"]

_PREDICTION_STEPS = 48


@dataclasses.dataclass(frozen=True)
class Config(gap_study.Config):
    """Where must a gap lie, how wide must it be, and what else removes memorization?

    Trains one arm for each position and width of a gap, and variants of the zone's gap, at the
    scale of gap_training's preset; draws them over C and W. --arms prediction trains nothing.
    """

    out: str = "runs/gap_sweep"
    """Folder for the runs, the tables and the figures."""
    seeds: int = 1
    """Number of seeds."""
    samples: int | None = None
    """Images sampled from each checkpoint and for the prediction, default the preset's."""
    arms: Literal["all", "positions", "variants", "prediction"] = "all"
    """What to train."""
    positions: int = 5
    """Number of gaps along the noise levels for each width."""
    masses: tuple[float, ...] = (0.15, 0.3)
    """Shares of the training noise that a gap removes."""


class Result(NamedTuple):
    """What a run found.

    Attributes:
      rows: one for each arm, seed and checkpoint.
      prediction: of the upper edges in gap_prediction.csv.
      folder: where the files are.
    """

    rows: list[dict[str, Any]]
    prediction: gap_prediction.Prediction
    folder: pathlib.Path


def run(config: Config) -> Result:
    """Estimate the curves, predict, train and judge the arms, write tables and figures.

    Raises:
      ValueError: an unusable configuration, or no zone in these data.
    """
    if config.positions < 1 or not config.masses or not all(0 < m < 0.9 for m in config.masses):
        raise ValueError(
            f"positions, masses: {config.positions}, {config.masses}, wanted 1 or more positions "
            "and shares in (0, 0.9)"
        )
    preset = gap_study.resolve(config, gap_training.PRESETS[config.preset])
    folder, phases = results.make_folder(config.out), results.Phases()
    dataset = configuration.load_data(preset.train)
    with phases("curves"):
        found, zones = gap_study.measure_zones(dataset.train, dataset.test, preset.thresholds)
    with phases("prediction"):
        predicted = _predict(preset, dataset)
    base = configuration.base_schedule(preset.train)
    zone = zones[preset.thresholds[-1]]
    positions = make_positions(base, config.positions, config.masses)
    variants = make_variants(zone)
    chosen = {
        "all": [Arm("baseline"), *positions, *variants],
        "positions": [Arm("baseline"), *positions],
        "variants": [Arm("baseline"), *variants],
        "prediction": [],
    }[config.arms]
    with phases("arms"):
        rows = gap_study.measure_arms(config, preset, chosen, folder)
    with phases("files"):
        results.write_json(folder / "zones.json", {str(k): v._asdict() for k, v in zones.items()})
        results.write_rows(folder / "prediction.csv", _table(predicted))
        if rows:
            results.write_rows(folder / "results.csv", rows)
        placed, varied = (
            [row for row in rows if row["arm"] in ("baseline", *(arm.name for arm in group))]
            for group in (positions, variants)
        )
        figures = {"sweep": sweep_plot.sweep(found, zone, predicted, _ends(placed))}
        if varied:
            figures["variants"] = training_plot.frontier(varied)
        for name, figure in figures.items():
            for path in style.save(figure, folder, name):
                print(f"wrote {path}")
    results.write_run(folder, config, phases, **gap_study.facts(preset, chosen, dataset))
    for row in _ends(rows):
        gap = f"{row['gap_low']:.3g} to {row['gap_high']:.3g}" if row["gap_low"] else "no gap"
        print(
            f"{row['arm']:<22} {gap:<16} memorized {row['memorized']:.2f}, noise removed "
            f"{row['without_noise']:.2f}, Frechet {row['frechet']:.2f}"
        )
    return Result(rows, predicted, folder)


def make_positions(base: schedules.Schedule, count: int, masses: tuple[float, ...]) -> list[Arm]:
    """Gaps that hold `masses` of the training noise, `count` of each, evenly spread over it."""
    edges = [
        (base.quantile(start), base.quantile(start + mass))
        for mass in masses
        for start in np.linspace(0.01, 0.99 - mass, count)
    ]
    return [Arm(f"gap-{low:.3g}-{high:.3g}", (low, high)) for low, high in edges]


def make_variants(zone: danger_zone.Zone) -> list[Arm]:
    """The zone's gap thinned and widened, and three other trainings with and without it.

    unscaled: as if the data had EDM's standard deviation; smooth: a noise embedding that the
    network can interpolate in; deep: a larger network, of two blocks at each level.
    """
    edges = zone.low, zone.high
    others = {
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
            Arm(f"{name}-{how}", gap, changes=changes)
            for how, changes in others.items()
            for name, gap in (("baseline", None), ("zone", edges))
        ),
    ]


def _predict(preset, dataset):
    """What each upper edge can remove; the pool is all images that there are."""
    source = configuration.load_data(dataclasses.replace(preset.train, num_train=None))
    pool = np.concatenate([source.train, source.test])
    grid = grids.edm_grid(_PREDICTION_STEPS)
    highs = grid[:-1][(grid[:-1] > 0.1) & (grid[:-1] < 10)][::-1]
    seeds = range(preset.judging.samples)
    return gap_prediction.predict(dataset.train, pool, highs, grid, seeds=seeds)


def _table(predicted):
    columns = zip(predicted.high, predicted.decided, predicted.rate, strict=True)
    return [
        {"sigma": high, "decided": decided, "chance": predicted.chance.rate, **rate._asdict()}
        for high, decided, rate in columns
    ]


def _ends(rows):
    """The last checkpoint of each run."""
    return list({(row["arm"], row["seed"]): row for row in rows}.values())


if __name__ == "__main__":
    cli.main(Config, run, resumes=True)
