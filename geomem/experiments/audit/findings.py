"""The content of audit.json: the results of an audit as plain values."""

from __future__ import annotations

import math
import pathlib
import shlex
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from geomem.data import Dataset, folders, sources
from geomem.diffusion import conventions
from geomem.experiments.train.presets import PRESETS
from geomem.geometry import growth as growth_lib
from geomem.geometry.danger_zone import Zone
from geomem.geometry.growth import Growth
from geomem.metrics.duplicates import Duplicates
from geomem.points.exact import decode

__all__ = [
    "base_name",
    "checkpoints",
    "copies",
    "dataset",
    "edges",
    "growth",
    "recommendation",
    "training_noise",
    "verdict",
]

_FEW = 200  # with fewer training images, the page warns that its numbers are rough
_SMALL = 10_000  # most training images for which the preset edm_small is long enough
_KEPT = 40  # all checkpoints of an edm_small run, from which to choose when to stop


def base_name(path: str) -> str:
    """Return a path's last part, because the folders describe the machine, not the data."""
    return pathlib.Path(path).name


def edges(zone: Zone) -> tuple[float, float] | None:
    """Return (low, high), or None if there is no zone."""
    return None if zone.low is None else (zone.low, zone.high)


def verdict(zone: Zone) -> str:
    """Return "risky", "borderline" or "none", depending on how many replicates have a zone."""
    if zone.low is not None and zone.confidence >= 0.95:
        return "risky"
    return "borderline" if zone.confidence > 0.05 else "none"


def dataset(
    config: Any, images: Dataset, train: jax.Array, heldout: jax.Array, noised: int
) -> dict[str, Any]:
    """Return the facts about the data.

    Args:
      config: configuration of the audit.
      images: the data set.
      train, heldout: the points without duplicates, as stored: [N, d], [M, d].
      noised: maximum number of training images that were noised.
    """
    split = images.train_split
    mean, square = (np.asarray(part, np.float64).mean() for part in _moments(train))
    return {
        "name": " ".join([base_name(config.dataset), *config.classes]),
        "train": len(split),
        "heldout": len(images.test_split),
        "different_train": len(train),
        "noised_train": min(len(train), noised),
        "noised_heldout": len(heldout),
        "shape": list(split.shape[1:]),
        "dimensions": train.shape[1],
        "stored_as": split.pixels.dtype.name,
        "classes": 0 if split.labels is None else len(np.unique(split.labels)),
        "mean": float(mean),
        "standard_deviation": math.sqrt(square - mean**2),
        "few": len(train) < _FEW,
    }


@jax.jit
def _moments(points):
    """The mean of each image's values and of their squares, without a float copy of all images."""
    values = decode(points)
    return values.mean(axis=1), (values**2).mean(axis=1)


def copies(config: Any, images: Dataset, duplicates: Duplicates) -> dict[str, Any]:
    """Return the groups of duplicates, with the names of their images."""
    names, count = _names(config, images), len(images.train_split)
    exact, distance = duplicates.exact, np.zeros(len(duplicates.exact))
    for pair in duplicates.pairs:  # of each image, to the image that represents its group
        for a, b in ((pair.image, pair.copy), (pair.copy, pair.image)):
            if duplicates.group[a] == b:
                distance[a] = pair.distance
    groups = [
        {
            "images": [names[i] for i in group],
            "held_out": [bool(i >= count) for i in group],
            "exact": bool((exact[group] == exact[group[0]]).all()),
            "distance": float(distance[group].max()),
        }
        for group in duplicates.groups()
    ]
    return {
        "typical_distance": duplicates.typical,
        "cutoff": duplicates.cutoff,
        "exact_copies": int((exact != np.arange(len(exact))).sum()),
        "near_pairs": sum(pair.kind != "exact" for pair in duplicates.pairs),
        "images_in_groups": sum(len(group["images"]) for group in groups),
        "groups_in_training": sum(not all(group["held_out"]) for group in groups),
        "groups_over_both": sum(len(set(group["held_out"])) > 1 for group in groups),
        "groups": groups,
    }


def _names(config, images):
    """Names of the training images, then of the held-out ones: file names, or array indices."""
    path = pathlib.Path(config.dataset).expanduser()
    files = folders.image_paths(path) if sources.is_folder(config.dataset) else None

    def name(split, listed):
        return [str(files[i].relative_to(path)) if listed else f"image {i}" for i in split.index]

    same_source = not isinstance(config.heldout, str)
    return name(images.train_split, files) + name(images.test_split, files and same_source)


def growth(subsamples: Growth | None, noised: int) -> dict[str, Any] | None:
    """Return the zone on subsamples and the slope of its width, or None if it was not measured.

    Args:
      subsamples: the zone on each subsample.
      noised: maximum number of images of each kind that were noised in a subsample.
    """
    if subsamples is None:
        return None
    columns = {name: value for name, value in subsamples._asdict().items() if name != "threshold"}
    line = growth_lib.extrapolate(subsamples)
    return {
        # JSON has no NaN, so an edge outside the measured noise levels is null.
        **{
            name: [None if math.isnan(value) else value for value in column.tolist()]
            for name, column in columns.items()
        },
        "noised": noised,
        "closing": line and {"slope": line.slope, "slope_interval": list(line.slope_interval)},
    }


def training_noise(zone: Zone, wide: Zone) -> list[dict[str, Any]]:
    """Return the share of each usual recipe's training steps in both zones."""
    return [
        {
            "name": noise.name,
            "share": edges(zone) and noise.share(*edges(zone)),
            "wider_share": edges(wide) and noise.share(*edges(wide)),
        }
        for noise in conventions.usual_training_noise()
    ]


def checkpoints(config: Any, count: int) -> list[str]:
    """Return commands that train without a gap, sample from a checkpoint and look for copies."""
    first = PRESETS[_preset(config, count)].checkpoint_every
    return [
        f"{_train(config, count)} --keep-checkpoints {_KEPT} --out runs/base",
        f"geomem sample --run runs/base --step {first} --count 512 --out samples.npz",
        "geomem evaluate --run runs/base --samples samples.npz",
    ]


def recommendation(config: Any, zone: Zone, facts: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return the gap in each recipe's own units, or None if there is no zone.

    Args:
      config: configuration of the audit.
      zone: the danger zone.
      facts: the result of `dataset`.
    """
    if zone.low is None:
        return None
    low, high = (float(f"{edge:.3g}") for edge in (zone.low, zone.high))
    betas = {"linear": conventions.linear_betas(), "cosine": conventions.cosine_betas()}
    steps = {name: conventions.timesteps_between(low, high, b) for name, b in betas.items()}
    times = [float(conventions.sigma_to_flow_time(edge)) for edge in (low, high)]
    network = _gap_network(config, facts)
    return {
        "gap": [low, high],
        "keep": 0.0,
        "edm_sigma": [low, high],
        "ddpm_timesteps": {n: [s.start, s.stop - 1] if s else None for n, s in steps.items()},
        "flow_time": [round(time, 4) for time in times],
        "command": f"{_train(config, facts['train'])}{network} --gap {low:g} {high:g} "
        "--out runs/gap",
    }


def _train(config, count):
    """The command that trains on the audited images."""
    preset = _preset(config, count)
    words = ["geomem train", preset, "--dataset", shlex.quote(config.dataset)]
    for name in ("heldout", "heldout_seed", "resize", "subset_seed"):
        if (value := getattr(config, name)) != getattr(PRESETS[preset], name):
            words += [f"--{name.replace('_', '-')}", shlex.quote(str(value))]
    if config.classes:
        words += ["--classes", *(shlex.quote(name) for name in config.classes)]
    return " ".join([*words, f"--num-train {count}"])


def _preset(config, count):
    small = "digits_fourier" if config.dataset == "digits" else "edm_small"
    return small if count <= _SMALL else "edm_cifar10"


def _gap_network(config, facts):
    """Flags that give other presets the settings with which a gap helped in experiments/gap_sweep.

    These are the settings of digits_fourier: a Fourier embedding of the noise level that also
    scales channels, and EDM's training noise scaled to the standard deviation of the data.
    """
    if _preset(config, facts["train"]) == "digits_fourier":
        return ""
    mean = PRESETS["edm_small"].noise_mean + math.log(facts["standard_deviation"] / 0.5)
    return f" --embedding fourier --adaptive-scale True --sigma-data 0 --noise-mean {mean:.3g}"
