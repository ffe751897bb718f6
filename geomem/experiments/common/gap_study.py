"""The presets, flags and steps that the experiments of Figures 4 and 5 share."""

import dataclasses
import pathlib
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import jax
import numpy as np

from geomem import data
from geomem.experiments.common import command_line, image_flags, parallel, results
from geomem.experiments.common.arms import Arm, EvaluationSettings, Task, quality
from geomem.experiments.common.dataclass_flags import flag
from geomem.experiments.train import configuration, presets
from geomem.geometry import curves, danger_zone
from geomem.metrics.inception import weights

_OF_TRAINING = "num_train", "channels", "blocks", "embedding"  # flags that change the preset's
_CHECKPOINTS = 8  # approximate number of checkpoints if --kimg is given

PresetName = Literal["digits", "cifar16", "cifar10"]


@dataclasses.dataclass(frozen=True)
class StudyFlags:
    """The flags of experiments that train arms."""

    preset: PresetName = "digits"
    """The scale. digits trains on 128 digits in minutes on two CPU cores; cifar16 trains on 100 of
    CIFAR-10's images at 16x16 and takes longer; cifar10 trains on the paper's
    2,000 car images and needs a GPU or a TPU slice."""
    seeds: int | None = flag(None, "training", most=10_000)
    """Number of training runs of each arm; default: the preset's."""
    kimg: float | None = flag(None, "training")
    """Length of each training run in thousands of images; default: the preset's."""
    own_subsets: bool = flag(False, "training")
    """Train each seed on its own random subset of the images, so that intervals over the seeds also
    cover the choice of the training images. All have the gaps of the first subset."""
    num_train: int | None = flag(None, "training", least=2)
    """Number of training images; default: the preset's."""
    channels: int | None = flag(None, "training", most=2**14)
    """Base number of the network's channels; default: the preset's."""
    blocks: int | None = flag(None, "training", most=64)
    """Residual blocks per level of the network; default: the preset's."""
    embedding: Literal["positional", "fourier"] | None = flag(None, "training")
    """Embedding of the noise level; default: the preset's."""
    samples: int | None = flag(None, "evaluation", least=2)
    """Number of images sampled from each checkpoint; default: the preset's."""
    inception: str | None = flag(None, "evaluation")
    """File with the Inception weights, to report FID instead of the Frechet distance of pixels. By
    default, cifar10 uses GEOMEM_INCEPTION or the cached weights if there are any."""
    out: str = flag("runs/gap_study", "output")
    """Folder for the runs, the tables and the figures. Finished runs in it are not repeated."""
    jobs: int | None = flag(None, "advanced", most=1024)
    """Number of runs at the same time; default: one per core on a CPU, else one."""


class Preset(NamedTuple):
    """The scale of a study."""

    train: configuration.Config  # of every arm, apart from its gap and seed
    evaluation: EvaluationSettings
    seeds: int  # training runs of each arm
    thresholds: tuple[float, ...]  # of the danger zones; the controls are for the last, widest one


PRESETS = {
    "digits": Preset(presets.PRESETS["digits_fourier"], EvaluationSettings(512), 3, (0.8, 0.5)),
    "cifar16": Preset(presets.PRESETS["cifar16"], EvaluationSettings(512), 3, (0.8, 0.5)),
    "cifar10": Preset(
        dataclasses.replace(
            presets.PRESETS["edm_small"],
            classes=("automobile",),
            num_train=2000,
            kimg=20_000,
            checkpoint_every=62_500,
        ),
        EvaluationSettings(10_000),
        1,
        (0.8,),
    ),
}


def resolve(config: StudyFlags) -> Preset:
    """Return the preset with what the flags of `config` change."""
    for name in ("seeds", "kimg", "channels", "blocks", "samples", "jobs"):
        value = getattr(config, name)
        if value is not None and not value > 0:
            raise ValueError(f"{name} must be positive, got {value}.")
    preset = PRESETS[config.preset]
    train, evaluation = preset.train, preset.evaluation
    given = {name: getattr(config, name) for name in _OF_TRAINING}
    train = dataclasses.replace(train, **{k: v for k, v in given.items() if v is not None})
    if config.kimg is not None:
        train = dataclasses.replace(train, kimg=config.kimg)
        windows = max(1, round(train.steps / _CHECKPOINTS / train.log_every))
        train = dataclasses.replace(train, checkpoint_every=windows * train.log_every)
    configuration.resolve(train)  # too long a training ends the run before any work
    if config.own_subsets:
        train = dataclasses.replace(train, subset_seed=0)
    inception = config.inception
    if inception is None and config.preset == "cifar10":
        inception = weights.find()
        if inception is None:
            command_line.warn(
                "no Inception weights (--inception), so Frechet distances compare pixels"
            )
    if inception is not None:
        weights.load(inception)  # fails before any training
        inception = str(inception)
    samples = config.samples or evaluation.samples
    evaluation = dataclasses.replace(evaluation, samples=samples, inception=inception)
    return preset._replace(train=train, evaluation=evaluation, seeds=config.seeds or preset.seeds)


def find_zones(
    train: np.ndarray, heldout: np.ndarray, thresholds: Sequence[float]
) -> tuple[curves.Curves, dict[float, danger_zone.Zone]]:
    """Return the curves of images [N, H, W, C] and their danger zone at each threshold."""
    train, heldout = (images.reshape(len(images), -1) for images in (train, heldout))
    estimate = curves.estimate(jax.random.key(0), train, heldout, np.geomspace(0.02, 80, 32))
    zones = {threshold: danger_zone.find(estimate, threshold) for threshold in thresholds}
    for threshold, zone in zones.items():
        if zone.low is None:
            raise ValueError(
                f"These images have no danger zone at threshold {threshold:g}, which this study "
                f"needs: both curves reach at most {zone.peak_level:.4g}."
            )
    return estimate, zones


def train_arms(
    config: StudyFlags, preset: Preset, arms: Sequence[Arm], folder: pathlib.Path
) -> list[dict[str, Any]]:
    """Train and evaluate each arm with each seed in `folder`/runs; return the rows."""
    tasks = [
        Task(
            arm,
            arm.configure(preset.train, seed, folder / "runs", config.own_subsets),
            preset.evaluation,
        )
        for seed in range(preset.seeds)
        for arm in arms
    ]
    return parallel.train_and_evaluate_all(tasks, config.jobs)


def quality_floors(preset: Preset, dataset: data.Dataset) -> dict[str, Any]:
    """Return the quality of real images: those that the first seed trained on, and other images.

    No arm can honestly score better than the other images do; a score near that of the training
    images may be due to copies.
    """
    features, reference = preset.evaluation.reference(dataset)
    source = image_flags.load(dataclasses.replace(preset.train, num_train=None))
    unused = np.setdiff1d(source.train_split.index, dataset.train_split.index)
    order = np.random.default_rng(0).permutation(unused)[: preset.evaluation.samples]
    fresh = source.train_split.at(np.flatnonzero(np.isin(source.train_split.index, order)))
    kinds = {"training_images": dataset.train, "fresh_images": data.to_float(fresh)}
    return {
        name: {"count": len(images), **quality(images, dataset.test, reference, features)}
        for name, images in kinds.items()
        if len(images) > 1
    }


def stop_early(
    checkpoints: Sequence[dict[str, Any]], frechet: float, key: str
) -> dict[str, Any] | None:
    """Return the row with the least `key` and a Frechet distance of at most `frechet`, or None."""
    as_good = [row for row in checkpoints if row["frechet"] <= frechet]
    return min(as_good, key=lambda row: row[key], default=None)


def study_facts(preset: Preset, arms: Sequence[Arm], dataset: data.Dataset) -> dict[str, Any]:
    """Return the arms, settings and data that run.json holds beside the configuration."""
    return {
        "arms": [arm._asdict() for arm in arms],
        "train": dataclasses.asdict(preset.train),
        "judging": dataclasses.asdict(preset.evaluation),
        "data": results.dataset_facts(dataset),
    }
