"""What `geomem danger-zone` adds on request: exposed images, classes, and other training sets."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import tqdm
from scipy import special

from geomem import data
from geomem.experiments.common import image_flags
from geomem.geometry import danger_zone
from geomem.geometry.curves import Curves
from geomem.geometry.danger_zone import Zone
from geomem.geometry.exposure import Exposure
from geomem.points import neighbors, placement

_LEAST_SUBSETS = 3
_BLOCK = 4096  # images whose neighbors are searched at once


def exposed_images(
    dataset: data.Dataset, name: str, exposure: Exposure, zone: Zone, title: str
) -> tuple[dict[str, Any], Any]:
    """Return the columns of images.csv, the most exposed image first, and its figure.

    Args:
      dataset: its training images are those of the exposure.
      name: the data set's name or path.
      exposure: of all or some training images.
      zone: shaded in the figure.
      title: describes the data.
    """
    split = dataset.train_split
    order = np.argsort(-exposure.sigma, kind="stable")
    index = exposure.index[order]
    points, blocks = placement.place(split), range(0, len(index), _BLOCK)
    found = [neighbors.nearest(split.at(index[i : i + _BLOCK]), points, 2) for i in blocks]
    distance, other = (np.concatenate(parts) for parts in zip(*found, strict=True))
    # The nearest point is the image itself, or an exact copy with a smaller index.
    other = np.where(other == index[:, None], -1, other)
    column = np.where(other[:, 0] >= 0, 0, 1)[:, None]
    other, distance = (
        np.take_along_axis(values, column, axis=1)[:, 0] for values in (other, distance)
    )
    columns = {
        "image": split.index[index],
        "exposed_up_to": exposure.sigma[order],
        # One draw has no spread.
        **({"log_error": exposure.error[order]} if np.isfinite(exposure.error).all() else {}),
        "copies": exposure.copies[order],
        "nearest": split.index[other],
        "distance": distance,
    }
    if split.labels is not None:
        columns["class"] = np.array(dataset.class_names)[split.labels[index]]
    for column, places in (("file", index), ("nearest_file", other)):
        columns[column] = image_flags.file_names(name, split.take(places))
    edges = None if zone.low is None or zone.high is None else (zone.low, zone.high)
    from geomem.plots import exposed  # imports Flax

    count = min(exposed.SHOWN, len(index) // 2)
    ends = np.concatenate([np.arange(count), np.arange(len(index) - count, len(index))])
    pictures = None, None
    if split.is_images:
        pictures = split.at(index[ends]), split.at(other[ends])
    return columns, exposed.exposed(exposure.sigma[order], *pictures, edges, title)


def most_and_least(columns: dict[str, Any]) -> str:
    """Return a sentence about the most and the least exposed image."""
    (first, high), (last, low) = (
        (columns["image"][at], columns["exposed_up_to"][at]) for at in (0, -1)
    )
    return (
        f"Image {first} is exposed up to the most noise, {high:.3g}, image {last} up to the least, "
        f"{low:.3g}."
    )


class Sets(NamedTuple):
    """The curves of several sets of images: a row for each set, and one for each set and level."""

    zones: list[dict[str, Any]]
    curves: list[dict[str, Any]]


def requested(config: Any, dataset: data.Dataset) -> dict[str, dict[str, data.Dataset]]:
    """Return the sets that --by-class and --subsets ask for: {kind: {name: Dataset}}."""
    sets = {}
    if config.by_class:
        sets["class"] = classes(dataset)
    if config.subsets is not None:
        whole = image_flags.load(dataclasses.replace(config, num_train=None, subset_seed=None))
        seed = config.subset_seed or 0
        sets["subset"] = random_subsets(whole, config.subsets, config.num_train, seed)
    return sets


def classes(dataset: data.Dataset) -> dict[str, data.Dataset]:
    """Return the images of each class.

    Raises:
      ValueError: images without classes.
    """
    labels = dataset.train_split.labels
    if labels is None or dataset.test_split.labels is None or not dataset.class_names:
        raise ValueError(f"by_class must have images with classes, got {dataset.name}.")
    names = [dataset.class_names[label] for label in np.unique(labels)]
    return {name: dataset.subset(classes=(name,)) for name in names}


def random_subsets(
    dataset: data.Dataset, count: int, size: int | None, seed: int
) -> dict[str, data.Dataset]:
    """Return `count` disjoint random subsets of the training images, with all held-out images.

    Raises:
      ValueError: too few images or subsets.
    """
    split = dataset.train_split
    size = len(split) // max(count, 1) if size is None else size
    if count < _LEAST_SUBSETS or count * size > len(split) or size < 2:
        raise ValueError(
            f"subsets must be at least {_LEAST_SUBSETS}, and that many disjoint subsets of at "
            f"least 2 images must fit in {len(split)}, got {count} of {size}."
        )
    order = np.random.default_rng(seed).permutation(len(split))
    parts = (split.take(order[i * size : (i + 1) * size]) for i in range(count))
    return {str(i): dataclasses.replace(dataset, train_split=part) for i, part in enumerate(parts)}


def estimate(
    parts: dict[str, data.Dataset],
    kind: str,
    estimate_curves: Callable[[data.Dataset], Curves],
    threshold: float,
) -> Sets:
    """Return the curves and the zone of each part; `kind` names the column of the parts' names."""
    zones, rows = [], []
    for name, part in tqdm.tqdm(parts.items(), kind):
        curves = estimate_curves(part)
        zone = danger_zone.find(curves, threshold)
        sizes = {"train": len(part.train_split), "heldout": len(part.test_split)}
        edges = {key: zone._asdict()[key] for key in ("low", "high", "peak", "peak_level")}
        zones.append({kind: name, **sizes, **edges})
        columns = curves.columns()
        levels = zip(*(column.tolist() for column in columns.values()), strict=True)
        rows += [{kind: name, **dict(zip(columns, level, strict=True))} for level in levels]
    return Sets(zones, rows)


def another_set(subsets: Sets) -> dict[str, Any]:
    """Return 95% prediction intervals for one more training set of the size of the subsets.

    They are Student's t intervals of log sigma for the edges and of the logit for the curves. All
    subsets share the held-out images. An edge is None if a subset has no zone.
    """
    result: dict[str, Any] = {
        name: None
        if any(row[name] is None for row in subsets.zones)
        else np.exp(_next([[np.log(row[name])] for row in subsets.zones]))[:, 0].tolist()
        for name in ("low", "high", "peak")
    }
    for name in ("coverage", "max_weight"):
        values = np.reshape([row[name] for row in subsets.curves], (len(subsets.zones), -1))
        bounds = special.expit(_next(special.logit(np.clip(values, 1e-4, 1 - 1e-4))))
        result[name] = [list(pair) for pair in bounds.T.tolist()]
    levels = len(subsets.curves) // len(subsets.zones)
    return {"sigma": [row["sigma"] for row in subsets.curves[:levels]], **result}


def _next(values):
    """(low, high) of one more value, from values [K, ...]."""
    values = np.asarray(values)
    count = len(values)
    half = special.stdtrit(count - 1, 0.975) * np.sqrt(1 + 1 / count) * values.std(axis=0, ddof=1)
    return np.array([values.mean(axis=0) - half, values.mean(axis=0) + half])


def sentences(sets: Sets, kind: str, another: dict[str, Any] | None = None) -> list[str]:
    """Return a line for each zone, and one about another training set."""
    lines = []
    for row in sets.zones:
        zone = "no zone" if row["low"] is None else f"zone {row['low']:.3g} to {row['high']:.3g}"
        lines.append(f"{kind} {row[kind]}: {row['train']:,} training images, {zone}")
    if another is not None:
        edges = [another[name] for name in ("low", "high")]
        if None in edges:
            lines.append("Not every subset has a zone, so that no other set's is predicted.")
        else:
            low, high = (f"{left:.3g} to {right:.3g}" for left, right in edges)
            lines.append(
                f"Another training set of {sets.zones[0]['train']:,} images (95% prediction "
                f"intervals from {len(sets.zones)} subsets): lower edge {low}, upper edge {high}."
            )
    return lines
