"""Table 1 and Figure 10: which part of the trajectory decides whether a sample is memorized?

    python -m geomem.experiments.denoiser_swap --preset digits

Samples from a network that memorizes and from one that generalizes, and from each of them with the
other one in its place on a window of sampling steps. All from the same latents.
"""

from __future__ import annotations

import dataclasses
import pathlib
from typing import Any, Literal, NamedTuple

import numpy as np

from geomem.diffusion import grids, sampler
from geomem.experiments.common import cli, denoisers, gap_study, results
from geomem.experiments.train import run_folder
from geomem.metrics import intervals, memorization
from geomem.plots import style
from geomem.plots import swap as swap_plot

__all__ = ["Config", "Result", "Window", "make_windows", "run"]

_THRESHOLD = {"digits": 0.5, "cifar10": 0.8}
_MEDIUM = {"digits": (8, 12), "cifar10": (6, 13)}  # cifar10: the paper's

# For digits shorter ones, in EDM's training noise: samples need no exact error at large noise.
_RUNS = denoisers.PRESET_RUNS | {
    "digits": {
        "digits_128": run_folder.PRESETS["digits"],
        "digits_900": dataclasses.replace(run_folder.PRESETS["digits"], num_train=None),
    }
}


@dataclasses.dataclass(frozen=True)
class Config:
    """Swap the denoisers of two training runs on windows of sampling steps.

    The windows: the medium steps, and as many steps at either end or what medium leaves there; the
    steps inside the danger zone of the memorizing run's images, and as many directly above and
    below it.
    """

    preset: Literal["digits", "cifar10"] = "digits"
    """The medium steps, the zone's threshold, and the two runs that are trained by default."""
    runs: str = "runs"
    """Where the preset's two runs are; what is missing there is trained first."""
    memorizing: str | None = None
    """Run folder of a network that memorizes, default the preset's."""
    generalizing: str | None = None
    """Run folder of one that does not, default the preset's."""
    medium: tuple[int, int] | None = None
    """First and last medium step, counted from 0 at the largest noise; default the preset's."""
    threshold: float | None = None
    """Level of both curves that bounds the danger zone; default the preset's."""
    samples: int = 512
    """Number of latents."""
    steps: int = 18
    """Sampling steps, on EDM's grid from 80 to 0.002."""
    method: Literal["euler", "heun"] = "euler"
    """The sampler; the paper's is Euler."""
    out: str = "runs/denoiser_swap"
    """Folder for table.csv, run.json, figure.png and figure.pdf."""


class Window(NamedTuple):
    """Sampling steps `first` to `last`, both included, counted from 0 at the largest noise."""

    name: str
    first: int
    last: int


class Result(NamedTuple):
    """What a run found.

    Attributes:
      rows: one for each direction and window.
      folder: where the files are.
    """

    rows: list[dict[str, Any]]
    folder: pathlib.Path


def run(config: Config) -> Result:
    """Sample with and without swaps, write the table and the figure.

    Raises:
      ValueError: an unusable configuration, or runs of different images.
    """
    grid = grids.edm_grid(config.steps)
    medium = config.medium or _MEDIUM[config.preset]
    if not 0 <= medium[0] <= medium[1] < config.steps:
        raise ValueError(f"medium: {medium}, wanted steps from 0 to {config.steps - 1}")
    threshold = _THRESHOLD[config.preset] if config.threshold is None else config.threshold
    if not 0 < threshold < 1:
        raise ValueError(f"threshold: {threshold:g}, wanted between 0 and 1")
    if config.samples < 1:
        raise ValueError(f"samples: {config.samples}, wanted 1 or more")
    folder, phases = results.make_folder(config.out), results.Phases()
    with phases("runs"):
        memorizing, generalizing = pair = _load(config)
    if memorizing.train.shape[1:] != generalizing.train.shape[1:]:
        raise ValueError(
            f"generalizing: images of {generalizing.train.shape[1:]}, wanted "
            f"{memorizing.train.shape[1:]} as the memorizing run's"
        )
    with phases("zone"):
        _, zones = gap_study.measure_zones(memorizing.train, memorizing.heldout, [threshold])
    windows = make_windows(grid, medium, (zones[threshold].low, zones[threshold].high))
    rows = []
    with phases("samples"):
        for direction, (base, other) in {
            "memorizing": (memorizing, generalizing),
            "generalizing": (generalizing, memorizing),
        }.items():
            unswapped = None
            for window in (Window("none", 0, -1), *windows):
                steps = range(window.first, window.last + 1)
                flow = sampler.swap(base.denoisers["network"], other.denoisers["network"], steps)
                images = sampler.generate(
                    flow,
                    range(config.samples),
                    memorizing.train.shape[1:],
                    grid,
                    method=config.method,
                )
                report = memorization.report(images, memorizing.train, memorizing.heldout)
                flags = report.samples.memorized
                unswapped = flags if unswapped is None else unswapped
                rows.append(_row(direction, window, grid, report, unswapped))
                print(_line(rows[-1]))
    with phases("files"):
        results.write_rows(folder / "table.csv", rows)
        for path in style.save(swap_plot.swap(rows, config.steps), folder):
            print(f"wrote {path}")
    runs, zone = [one.facts for one in pair], zones[threshold]._asdict()
    results.write_run(folder, config, phases, runs=runs, zone=zone)
    return Result(rows, folder)


def _load(config):
    """The two runs; what is not given is the preset's, trained as far as it is not."""
    chosen = config.memorizing, config.generalizing
    given = [run and denoisers.load_run(run) for run in chosen]  # a mistake before any training
    recipes = _RUNS[config.preset].items()
    return [
        mine or denoisers.train_and_load(config.runs, *recipe)
        for mine, recipe in zip(given, recipes, strict=True)
    ]


def make_windows(
    grid: np.ndarray, medium: tuple[int, int], zone: tuple[float, float]
) -> list[Window]:
    """The windows of steps, with controls of the same width as far as there is room.

    Args:
      grid: [S + 1] sampling levels, descending; step i is taken from level i.
      medium: first and last of the medium steps.
      zone: edges of the danger zone.

    Returns:
      large, medium and small: of the width of medium, or shorter, so that no control shares a step
      with medium; above-zone, zone and below-zone: of the zone's (at least the one step nearest to
      its middle). A control without a step is left out.
    """
    steps = len(grid) - 1
    levels = np.asarray(grid[:-1])
    inside = np.flatnonzero((levels >= zone[0]) & (levels <= zone[1]))
    if not len(inside):
        inside = [np.abs(np.log(levels) - np.log(zone).mean()).argmin()]
    first, last = int(inside[0]), int(inside[-1])
    width, beside = medium[1] - medium[0] + 1, last - first + 1
    windows = [
        Window("large", 0, min(width, medium[0]) - 1),
        Window("medium", *medium),
        Window("small", max(steps - width, medium[1] + 1), steps - 1),
        Window("above-zone", max(0, first - beside), first - 1),
        Window("zone", first, last),
        Window("below-zone", last + 1, min(steps - 1, last + beside)),
    ]
    return [window for window in windows if window.first <= window.last]


def _row(direction, window, grid, report, unswapped):
    swapped = window.last >= window.first
    effect = intervals.compare(unswapped, report.samples.memorized)
    return {
        "denoiser": direction,
        "window": window.name,
        "first_step": window.first if swapped else None,
        "last_step": window.last if swapped else None,
        "sigma_from": grid[window.first] if swapped else None,
        "sigma_to": grid[window.last] if swapped else None,
        "memorized": report.memorized.rate,
        "memorized_low": report.memorized.low,
        "memorized_high": report.memorized.high,
        "without_noise": report.without_noise.rate,
        "residual_noise": report.noise_mean,
        "difference": effect.difference,
        "difference_low": effect.low,
        "difference_high": effect.high,
        "p": effect.p,
    }


def _line(row):
    steps = "" if row["first_step"] is None else f"steps {row['first_step']}..{row['last_step']}"
    return (
        f"{row['denoiser']:<13} {row['window']:<11} {steps:<13} memorized {row['memorized']:6.1%} "
        f"({row['difference']:+.1%})"
    )


if __name__ == "__main__":
    cli.main(Config, run)
