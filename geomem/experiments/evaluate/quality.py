"""Quality of the samples: Frechet and kernel distance, precision and recall of features."""

from __future__ import annotations

import pathlib
from typing import Any

import numpy as np

from geomem.experiments.evaluate.representation import Representation
from geomem.metrics import frechet, kernel_distance, precision_recall

_MOST = 10_000  # images in the neighbor searches of precision and recall
_K = 3


def measure(features: Representation, dataset_name: str) -> dict[str, dict[str, Any]]:
    """Return the measures by comparison: "train", "heldout" and "floor".

    "train" and "heldout" compare the samples with these images. "floor" compares the training
    images with the held-out images: copies of the training set score about the same. Precision and
    recall are measured against the held-out images if there are any.
    """
    name = pathlib.Path(dataset_name).name
    pairs = {"train": (features.samples, features.train)}
    if features.heldout is not None:
        pairs["heldout"] = features.samples, features.heldout
        pairs["floor"] = features.train, features.heldout
    fewest = {key: min(map(len, pair)) for key, pair in pairs.items()}
    return {
        key: _compare(
            *pair,
            f"{name} {key.replace('floor', 'heldout')}",
            features.name,
            overlap=key != "train" or features.heldout is None,
        )
        for key, pair in pairs.items()
        if fewest[key] >= 2
    }


def _compare(samples, reference, name, features, overlap):
    moments = [frechet.statistics(rows) for rows in (samples, reference)]
    value = frechet.distance(*moments)
    measures = {
        "frechet": frechet.Score(value, len(samples), name, len(reference), features),
        "kernel": kernel_distance.kernel_distance(samples, reference),
        "overlap": None,
    }
    some = [_some(rows) for rows in (samples, reference)]
    if overlap and min(map(len, some)) > _K:
        measures["overlap"] = precision_recall.precision_recall(*some, k=_K)
    return measures


def _some(rows):
    """A random part of many rows."""
    if len(rows) <= _MOST:
        return rows
    return rows[np.random.default_rng(0).choice(len(rows), _MOST, replace=False)]
