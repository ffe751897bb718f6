"""The content of audit.json: what an audit measured, as plain values."""

from __future__ import annotations

import math
import pathlib
import shlex
from typing import Any

import jax
import numpy as np

from geomem.data import Dataset, sources
from geomem.diffusion import conventions
from geomem.experiments.train.configuration import PRESETS
from geomem.geometry import growth as growth_lib
from geomem.geometry.danger_zone import Zone
from geomem.geometry.growth import Growth
from geomem.metrics.duplicates import Duplicates
from geomem.points.exact import decode

__all__ = [
    "base_name",
    "copies",
    "dataset",
    "edges",
    "growth",
    "recommendation",
    "training_noise",
    "verdict",
]

_FEW = 200  # images, below which the report warns of its own numbers
_SMALL = 10_000  # images, up to which EDM's own recipe, for 50,000, is far too long


def base_name(path: str) -> str:
    """A path without the folders above it, which say more about a machine than about the data."""
    return pathlib.Path(path).name


def edges(zone: Zone) -> tuple[float, float] | None:
    """(low, high), or None where there is no zone."""
    return None if zone.low is None else (zone.low, zone.high)


def verdict(zone: Zone) -> str:
    """risky, borderline or none: how sure it is that there is a zone."""
    if zone.low is not None and zone.confidence >= 0.95:
        return "risky"
    return "borderline" if zone.confidence > 0.05 else "none"


def dataset(
    config: Any, images: Dataset, train: jax.Array, heldout: jax.Array, noised: int
) -> dict[str, Any]:
    """What the data is.

    Args:
      config: of the audit.
      images: the data set.
      train, heldout: the points that were measured, as stored: [N, d], [M, d].
      noised: at most so many of the training images were noised.
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
    """Means of each image's values and of their squares, without a float copy of all images."""
    values = decode(points)
    return values.mean(axis=1), (values**2).mean(axis=1)


def copies(config: Any, images: Dataset, found: Duplicates) -> dict[str, Any]:
    """The groups of copies, by the names of their images."""
    names, count = _names(config, images), len(images.train_split)
    groups = [
        {
            "images": [names[i] for i in group],
            "held_out": [bool(i >= count) for i in group],
            "exact": bool((found.exact[group] == found.exact[group[0]]).all()),
            "distance": float(found.distance[group].max()),
        }
        for group in found.groups()
    ]
    return {
        "typical_distance": found.typical,
        "cutoff": found.cutoff,
        "exact_copies": int((found.exact != np.arange(len(found.exact))).sum()),
        "near_pairs": found.pairs,
        "images_in_groups": sum(len(group["images"]) for group in groups),
        "groups_in_training": sum(not all(group["held_out"]) for group in groups),
        "groups_over_both": sum(len(set(group["held_out"])) > 1 for group in groups),
        "groups": groups,
    }


def _names(config, images):
    """What to call the images, training then held-out: files by name, others by index."""
    path = pathlib.Path(config.dataset).expanduser()
    files = sources.image_paths(path) if sources.is_folder(config.dataset) else None

    def name(split, listed):
        return [str(files[i].relative_to(path)) if listed else f"image {i}" for i in split.index]

    same_source = not isinstance(config.heldout, str)
    return name(images.train_split, files) + name(images.test_split, files and same_source)


def growth(grown: Growth | None, noised: int) -> dict[str, Any] | None:
    """The zone on subsamples, in each of which `noised` images were noised, and its line."""
    if grown is None:
        return None
    closing = growth_lib.extrapolate(grown)
    columns = {name: value for name, value in grown._asdict().items() if name != "threshold"}
    return {name: value.tolist() for name, value in columns.items()} | {
        "noised": noised,
        "closing": closing and closing._asdict(),
    }


def training_noise(zone: Zone, wide: Zone) -> list[dict[str, Any]]:
    """The share of each usual recipe's training steps in both zones."""
    return [
        {
            "name": noise.name,
            "share": edges(zone) and noise.share(*edges(zone)),
            "wider_share": edges(wide) and noise.share(*edges(wide)),
        }
        for noise in conventions.usual_training_noise()
    ]


def recommendation(config: Any, zone: Zone, count: int) -> dict[str, Any] | None:
    """The gap in each recipe's own terms, `count` training images; None where there is no zone."""
    if zone.low is None:
        return None
    low, high = (float(f"{edge:.3g}") for edge in (zone.low, zone.high))
    betas = {"linear": conventions.linear_betas(), "cosine": conventions.cosine_betas()}
    steps = {name: conventions.timesteps_between(low, high, b) for name, b in betas.items()}
    times = [float(conventions.sigma_to_flow_time(edge)) for edge in (low, high)]
    return {
        "gap": [low, high],
        "keep": 0.0,
        "edm_sigma": [low, high],
        "ddpm_timesteps": {n: [s.start, s.stop - 1] if s else None for n, s in steps.items()},
        "flow_time": [round(time, 4) for time in times],
        "command": _command(config, low, high, count),
    }


def _command(config, low, high, count):
    """Training on the same images with the gap."""
    small = "digits_gap" if config.dataset == "digits" else "edm_small"
    preset = small if count <= _SMALL else "edm_cifar10"
    words = ["python -m geomem.experiments.train", preset, "--dataset", shlex.quote(config.dataset)]
    for name in ("heldout", "heldout_seed", "resize", "subset_seed"):
        if (value := getattr(config, name)) != getattr(PRESETS[preset], name):
            words += [f"--{name.replace('_', '-')}", shlex.quote(str(value))]
    if config.classes:
        words += ["--classes", *(shlex.quote(name) for name in config.classes)]
    return " ".join([*words, f"--num-train {count} --gap {low:g} {high:g} --out runs/gap"])
