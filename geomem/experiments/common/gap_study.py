"""What Figures 4 and 5 share: a scale, the danger zones of its images, and arms trained at it."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import jax
import numpy as np

from geomem import data
from geomem.experiments.common import flags, parallel, results
from geomem.experiments.common.arms import Arm, Judging, Task
from geomem.experiments.train import configuration
from geomem.geometry import curves, danger_zone
from geomem.metrics.inception import weights

__all__ = ["Config", "Preset", "facts", "measure_arms", "measure_zones", "resolve"]

_CHECKPOINTS = 8  # about, where --kimg says how long a training is


@dataclasses.dataclass(frozen=True)
class Config:
    """The flags that the experiments share."""

    preset: Literal["digits", "cifar10"] = "digits"
    """The scale."""
    out: str = "runs/gaps"
    """Folder for the runs, the tables and the figures."""
    seeds: int | None = None
    """Number of seeds, default the preset's."""
    kimg: float | None = None
    """Length of each training in thousands of images, default the preset's."""
    samples: int | None = None
    """Images sampled from each checkpoint, default the preset's."""
    inception: str | None = None
    """File with the Inception weights: FID instead of the Frechet distance of pixels. Default for
    cifar10: GEOMEM_INCEPTION or the cache, if they are there."""
    jobs: int | None = None
    """Runs at a time; default one to a core on a CPU, else one."""


class Preset(NamedTuple):
    """A scale at which the experiment runs.

    Attributes:
      train: every arm's run, but for its gap and seed.
      judging: how checkpoints are judged.
      seeds: how many.
      thresholds: of the zones, from narrow to wide; controls are those of the last.
    """

    train: configuration.Config
    judging: Judging
    seeds: int
    thresholds: tuple[float, ...]


def resolve(config: Config, preset: Preset) -> Preset:
    """The preset with the seeds, kimg, samples and inception that `config` has instead.

    Raises:
      ValueError: a number that is not positive, or unusable Inception weights.
    """
    for name in ("seeds", "kimg", "samples", "jobs"):
        value = getattr(config, name)
        if value is not None and not value > 0:
            raise ValueError(f"{name}: {value}, wanted a positive number")
    train, judging = preset.train, preset.judging
    if config.kimg is not None:
        train = dataclasses.replace(train, kimg=config.kimg)
        windows = max(1, round(train.steps / _CHECKPOINTS / train.log_every))
        train = dataclasses.replace(train, checkpoint_every=windows * train.log_every)
    path = config.inception
    if path is None and config.preset == "cifar10":
        path = weights.find()
        if path is None:
            flags.warn("no Inception weights (--inception): Frechet distances are of pixels")
    if path is not None:
        weights.load(path)  # a mistake is better known before the training
        path = str(path)
    judging = dataclasses.replace(
        judging, samples=config.samples or judging.samples, inception=path
    )
    return preset._replace(train=train, judging=judging, seeds=config.seeds or preset.seeds)


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


def measure_arms(
    config: Config, preset: Preset, chosen: Sequence[Arm], folder: pathlib.Path
) -> list[dict[str, Any]]:
    """Train and judge arms with each seed, in `folder`/runs; their rows, seed by seed.

    Raises:
      ValueError, and what else a training raises.
    """
    tasks = [
        Task(arm, arm.configure(preset.train, seed, folder / "runs"), preset.judging)
        for seed in range(preset.seeds)
        for arm in chosen
    ]
    return parallel.measure_all(tasks, config.jobs)


def facts(preset: Preset, chosen: Sequence[Arm], dataset: data.Dataset) -> dict[str, Any]:
    """What run.json says of the arms, beside the configuration."""
    return {
        "arms": [arm._asdict() for arm in chosen],
        "train": dataclasses.asdict(preset.train),
        "judging": dataclasses.asdict(preset.judging),
        "data": results.dataset_facts(dataset),
    }
