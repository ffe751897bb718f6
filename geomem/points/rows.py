"""Rows of numbers by position, from an array, a file or a data set."""

from __future__ import annotations

import math
import os
import pathlib
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from geomem.data.datasets import Split

__all__ = ["Rows", "open_rows"]


class Rows(NamedTuple):
    """N rows of d numbers by position."""

    read: Callable[[slice | np.ndarray], np.ndarray]  # -> [n, d], uint8 or float32
    count: int
    dim: int
    dtype: np.dtype


def open_rows(points):
    """The Rows of an array [N, ...], the path of an .npy file, or a Split."""
    if isinstance(points, str | os.PathLike):
        points = np.load(pathlib.Path(points).expanduser(), mmap_mode="r", allow_pickle=False)
    if isinstance(points, Split):
        select, example = points.at, points.at(slice(0, 1))
    else:
        select, example = points.__getitem__, points[:1]
    if example.ndim < 2 or np.dtype(example.dtype).kind not in "uf":
        raise ValueError(
            f"points: {example.dtype} of shape {(len(points), *example.shape[1:])}, wanted uint8 "
            "or float [N, ...]"
        )
    dim = math.prod(example.shape[1:])
    dtype = np.dtype(np.uint8 if example.dtype == np.uint8 else np.float32)

    def read(where):
        rows = np.asarray(select(where))
        return rows.reshape(len(rows), dim).astype(dtype, copy=False)

    return Rows(read, len(points), dim, dtype)
