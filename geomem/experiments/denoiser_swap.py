"""Table 1 and Figure 10: swap two denoisers on a window of sampling steps.

    geomem denoiser-swap --preset digits

Samples from a network that memorizes and from one that generalizes, and then from each of them with
the other in its place on a window of sampling steps, always from the same latents. The change in
memorization shows which part of the sampling trajectory decides it.
"""

import dataclasses
import pathlib
import re
from typing import Any, Literal, NamedTuple

import numpy as np

from geomem.diffusion import grids, sampler
from geomem.experiments.common import command_line, denoisers, gap_study, results
from geomem.experiments.common.dataclass_flags import flag
from geomem.experiments.train import presets
from geomem.metrics import intervals, memorization
from geomem.plots import swap

__all__ = ["Config", "Result", "Window", "make_windows", "run"]

_THRESHOLD = {"digits": 0.5, "cifar16": 0.5, "cifar10": 0.8}
_MEDIUM = {"digits": (8, 12), "cifar16": (8, 12), "cifar10": (6, 13)}  # the last as in the paper

# Shorter runs for digits, with EDM's training noise: sampling does not need a precise denoiser at
# large noise.
_RUNS = denoisers.PRESET_RUNS | {
    "digits": {
        "digits_128": presets.PRESETS["digits"],
        "digits_900": dataclasses.replace(presets.PRESETS["digits"], num_train=None),
    }
}


@dataclasses.dataclass(frozen=True)
class Config:
    """Swap the denoisers of two training runs on windows of sampling steps.

    The windows are the medium steps, and equally long windows at both ends of the grid (shorter
    where fewer steps remain); and the steps in the danger zone of the memorizing run's images, and
    as many directly above and below the zone.
    """

    preset: Literal["digits", "cifar16", "cifar10"] = "digits"
    """Sets the medium steps, the zone's threshold, and the two runs that are trained by default."""
    memorizing: str | None = None
    """Folder of a training run that memorizes; default: the preset's."""
    generalizing: str | None = None
    """Folder of a training run that generalizes; default: the preset's."""
    medium: tuple[int, int] | None = flag(None, "noise", least=0)
    """First and last medium step, counted from 0 at the largest noise; default: the preset's."""
    threshold: float | None = flag(None, "noise")
    """Value that both curves reach inside the danger zone; default: the preset's."""
    runs: str = flag("runs", "training")
    """Folder of the preset's runs. Missing runs are trained first."""
    samples: int = flag(512, "sampling", most=2**16)
    """Number of latents."""
    steps: int = flag(18, "sampling", least=2, most=10_000)
    """Number of sampling steps, on EDM's grid from 80 to 0.002."""
    method: Literal["euler", "heun"] = flag("euler", "sampling")
    """The sampler; the paper uses Euler."""
    out: str = flag("runs/denoiser_swap", "output")
    """Folder for table.csv, run.json, figure.png and figure.pdf."""


class Window(NamedTuple):
    """Sampling steps `first` to `last`, inclusive, counted from 0 at the largest noise."""

    name: str
    first: int
    last: int


class Result(NamedTuple):
    """The rows, one for each network and window, and the output folder."""

    rows: list[dict[str, Any]]
    folder: pathlib.Path


def run(config: Config) -> Result:
    """Sample with and without swaps, write the table and the figure.

    Raises:
      ValueError: an invalid configuration, or runs on images of different shapes.
    """
    grid = grids.edm_grid(config.steps)
    medium = config.medium or _MEDIUM[config.preset]
    if not 0 <= medium[0] <= medium[1] < config.steps:
        raise ValueError(f"medium must be two steps from 0 to {config.steps - 1}, got {medium}.")
    threshold = _THRESHOLD[config.preset] if config.threshold is None else config.threshold
    if not 0 < threshold < 1:
        raise ValueError(f"threshold must be between 0 and 1, got {threshold:g}.")
    if config.samples < 1:
        raise ValueError(f"samples must be at least 1, got {config.samples}.")
    output = results.Run(config)
    with output.phase("runs"):
        runs = dict(zip(("memorizing", "generalizing"), _load_runs(config), strict=True))
    memorizing, generalizing = runs.values()
    shape = memorizing.train.shape[1:]
    if generalizing.train.shape[1:] != shape:
        raise ValueError(
            f"generalizing must have images of shape {shape} like memorizing, got "
            f"{generalizing.train.shape[1:]}."
        )
    with output.phase("zone"):
        _, zones = gap_study.find_zones(memorizing.train, memorizing.heldout, [threshold])
    zone = zones[threshold]
    windows = [Window("none", 0, -1), *make_windows(grid, medium, (zone.low, zone.high))]
    rows = []
    with output.phase("samples"):
        for name, other in (("memorizing", "generalizing"), ("generalizing", "memorizing")):
            network, replacement = (runs[key].denoisers["network"] for key in (name, other))
            unswapped = None
            for window in windows:
                steps = range(window.first, window.last + 1)
                denoiser = sampler.swap(network, replacement, steps)
                seeds = range(config.samples)
                images = sampler.generate(denoiser, seeds, shape, grid, method=config.method)
                report = memorization.report(images, memorizing.train, memorizing.heldout)
                unswapped = report.samples.memorized if unswapped is None else unswapped
                row = _make_row(name, window, grid, report, unswapped)
                steps = f"steps {window.first}..{window.last}" if steps else ""
                print(
                    f"{name:<13} {window.name:<11} {steps:<13} memorized "
                    f"{row['memorized']:6.1%} ({row['difference']:+.1%})"
                )
                rows.append(row)
    output.write_rows("table.csv", rows)
    output.write_figure("figure", swap.swap(rows, config.steps))
    output.finish(runs=[memorizing.facts, generalizing.facts], zone=zone._asdict())
    return Result(rows, output.folder)


def _load_runs(config):
    """The memorizing and the generalizing run; those of the preset are trained if necessary."""
    given = []  # loaded first, so that a wrong folder is reported before any training
    for name in ("memorizing", "generalizing"):
        folder = getattr(config, name)
        try:
            given.append(folder and denoisers.load_run(folder))
        except ValueError as error:
            raise ValueError(re.sub(r"\Arun\b", name, str(error))) from None
    recipes = _RUNS[config.preset].items()
    return [
        run or denoisers.train_and_load(config.runs, *recipe)
        for run, recipe in zip(given, recipes, strict=True)
    ]


def make_windows(
    grid: np.ndarray, medium: tuple[int, int], zone: tuple[float, float]
) -> list[Window]:
    """Return the windows of steps, with controls of the same width where there is room.

    Args:
      grid: [S + 1] sampling levels, descending; step i starts at level i.
      medium: first and last medium step.
      zone: edges of the danger zone.

    Returns:
      The windows medium and zone and their controls: large and small, at the ends of the grid, and
      above-zone and below-zone, next to the zone. Controls are as wide as their window, or narrower
      where there is no room, and are omitted if they have no steps. If no level is inside the zone,
      its window is the step nearest to its middle.
    """
    steps = len(grid) - 1
    levels = np.asarray(grid[:-1])
    inside = np.flatnonzero((levels >= zone[0]) & (levels <= zone[1]))
    if not len(inside):
        inside = [np.abs(np.log(levels) - np.log(zone).mean()).argmin()]
    first, last = int(inside[0]), int(inside[-1])
    width, zone_width = medium[1] - medium[0] + 1, last - first + 1
    windows = [
        Window("large", 0, min(width, medium[0]) - 1),
        Window("medium", *medium),
        Window("small", max(steps - width, medium[1] + 1), steps - 1),
        Window("above-zone", max(0, first - zone_width), first - 1),
        Window("zone", first, last),
        Window("below-zone", last + 1, min(steps - 1, last + zone_width)),
    ]
    return [window for window in windows if window.first <= window.last]


def _make_row(network, window, grid, report, unswapped):
    swapped = window.last >= window.first
    effect = intervals.compare(unswapped, report.samples.memorized)
    return {
        "denoiser": network,
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


if __name__ == "__main__":
    command_line.main(Config, run)
