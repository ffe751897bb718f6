"""The content of audit.json: the results of an audit as plain values."""

from __future__ import annotations

import math
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from geomem.data import Dataset
from geomem.diffusion import conventions
from geomem.diffusion.conventions import TrainingNoise
from geomem.experiments.audit.evidence import THRESHOLD, evidence
from geomem.experiments.common import image_flags
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
    "exposed",
    "gap",
    "growth",
    "scale",
    "training_noise",
]


def base_name(path: str) -> str:
    """Return a path's last part, because the folders describe the machine, not the data."""
    return pathlib.Path(path).name


def edges(zone: Zone) -> tuple[float, float] | None:
    """Return (low, high), or None if there is no zone."""
    return None if zone.low is None else (zone.low, zone.high)


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
        "images": images.is_images,
        "classes": 0 if split.labels is None else len(np.unique(split.labels)),
        "mean": float(mean),
        "standard_deviation": math.sqrt(square - mean**2),
    }


@jax.jit
def _moments(points):
    """The mean of each image's values and of their squares, without a float copy of all images."""
    values = decode(points)
    return values.mean(axis=1), (values**2).mean(axis=1)


def copies(config: Any, images: Dataset, duplicates: Duplicates) -> dict[str, Any]:
    """Return the groups of duplicates, with the names of their images."""
    every, count = image_flags.all_file_names(config, images), len(images.train_split)
    exact, distance = duplicates.exact, np.zeros(len(duplicates.exact))
    for pair in duplicates.pairs:  # of each image, to the image that represents its group
        for a, b in ((pair.image, pair.copy), (pair.copy, pair.image)):
            if duplicates.group[a] == b:
                distance[a] = pair.distance
    groups = [
        {
            "images": [every[i] for i in group],
            "held_out": [bool(i >= count) for i in group],
            "exact": bool((exact[group] == exact[group[0]]).all()),
            "distance": float(distance[group].max()),
        }
        for group in duplicates.leaking_first()
    ]
    return {
        "typical_distance": duplicates.typical,
        "cutoff": duplicates.cutoff,
        "removed": int((duplicates.group[:count] != np.arange(count)).sum()),
        "leaked": len(duplicates.leaked()),
        "exact_copies": int((exact != np.arange(len(exact))).sum()),
        "near_pairs": sum(pair.kind != "exact" for pair in duplicates.pairs),
        "images_in_groups": sum(len(group["images"]) for group in groups),
        "groups_in_training": sum(not all(group["held_out"]) for group in groups),
        "groups_over_both": sum(len(set(group["held_out"])) > 1 for group in groups),
        "groups": groups,
    }


def exposed(columns: Mapping[str, Sequence[Any]], count: int = 10) -> list[dict[str, Any]]:
    """Return the first rows of images.csv, those of the most exposed images."""
    first = {name: np.asarray(column)[:count].tolist() for name, column in columns.items()}
    return [dict(zip(first, row, strict=True)) for row in zip(*first.values(), strict=True)]


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


def scale(
    name: str, different: int, zone: Zone, subsamples: Growth | None, noise: TrainingNoise
) -> list[dict[str, Any]]:
    """Return the zones of this set, of its subsamples and of the reference sets, by size.

    Args:
      name: of this set.
      different: its number of training images without duplicates.
      zone: its zone at the threshold of the references.
      subsamples: as in `growth`; used if they have that threshold.
      noise: the recipe of which to give the share inside each zone.
    """
    rows = [(row["name"], row["count"], row["zone"], False) for row in evidence()["references"]]
    if subsamples is not None and subsamples.threshold == THRESHOLD:
        for size in np.unique(subsamples.count)[:-1]:
            part = subsamples.count == size
            ends = [float(edge[part].mean()) for edge in (subsamples.reached, subsamples.left)]
            rows.append(
                (f"{name}, a part", int(size), None if np.isnan(ends).any() else ends, True)
            )
    rows.append((name, different, edges(zone), True))
    return [
        {
            "name": name,
            "count": count,
            "zone": ends and list(ends),
            "share": ends and noise.share(*ends),
            "this_set": this,
        }
        for name, count, ends, this in sorted(rows, key=lambda row: (row[1], row[0]))
    ]


def gap(wide: Zone) -> dict[str, Any] | None:
    """Return the zone at the lower threshold in each recipe's own units, or None if it is empty."""
    if wide.low is None:
        return None
    low, high = (float(f"{edge:.3g}") for edge in (wide.low, wide.high))
    betas = {"linear": conventions.linear_betas(), "cosine": conventions.cosine_betas()}
    steps = {name: conventions.timesteps_between(low, high, b) for name, b in betas.items()}
    times = [round(float(conventions.sigma_to_flow_time(edge)), 4) for edge in (low, high)]
    return {
        "sigma": [low, high],
        "ddpm_timesteps": {n: [s.start, s.stop - 1] if s else None for n, s in steps.items()},
        "flow_time": times,
    }
