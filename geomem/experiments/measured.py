"""What all commands that measure a data set do: select its images, write its curves."""

from __future__ import annotations

import csv
import io
import pathlib
import sys
from typing import Any

import numpy as np

from geomem import data
from geomem.geometry.curves import Curves

__all__ = ["columns", "load", "warn", "write_curves"]


def load(config: Any, **counts: int | None) -> data.Dataset:
    """The images that a configuration selects.

    Args:
      config: has the fields dataset, heldout, resize, heldout_seed, classes and subset_seed.
      **counts: count and heldout_count of `data.Dataset.subset`.

    Raises:
      ValueError: unusable data, or held-out images of another shape than the training images.
    """
    dataset = data.load(
        config.dataset, heldout=config.heldout, resize=config.resize, seed=config.heldout_seed
    )
    dataset = dataset.subset(classes=config.classes or None, seed=config.subset_seed, **counts)
    shape, other = (split.shape[1:] for split in (dataset.train_split, dataset.test_split))
    if shape != other:
        raise ValueError(f"heldout: images of {other}, wanted {shape}")
    return dataset


def warn(text: str) -> None:
    """One line on stderr."""
    print(f"warning: {text}", file=sys.stderr)


def columns(curves: Curves) -> dict[str, np.ndarray]:
    """The columns of curves.csv, [S] each."""
    fields = {
        "sigma": curves.sigma,
        "coverage": curves.coverage.mean,
        "coverage_low": curves.coverage.low,
        "coverage_high": curves.coverage.high,
        "coverage_lower_bound": curves.coverage_lower_bound,
        "coverage_upper_bound": curves.coverage_upper_bound,
        "max_weight": curves.max_weight.mean,
        "max_weight_low": curves.max_weight.low,
        "max_weight_high": curves.max_weight.high,
        "own_weight": curves.own_weight,
        "own_weight_lower_bound": curves.own_weight_lower_bound,
        "own_weight_upper_bound": curves.own_weight_upper_bound,
    }
    return {name: np.asarray(values) for name, values in fields.items()}


def write_curves(path: pathlib.Path, curves: Curves) -> None:
    """Write curves.csv: a row for each noise level."""
    fields = columns(curves)
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(fields)
    writer.writerows(np.stack(list(fields.values()), axis=1).tolist())
    path.write_text(text.getvalue())
