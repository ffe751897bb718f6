"""Frechet distance between two sets of images in a feature space; with Inception features, FID.

Both sets are summed up by mean and covariance, and the distance is that of the two Gaussians
(Dowson and Landau 1982; Heusel et al. 2017). Statistics are float64, streamed and mergeable; a
result never goes without what it was computed from.
"""

from __future__ import annotations

import functools
import hashlib
import os
import pathlib
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np

from geomem.metrics.features import PIXELS, Features

__all__ = [
    "Gaussian",
    "Reference",
    "Score",
    "compare",
    "describe",
    "distance",
    "load_reference",
    "merge",
    "save_reference",
    "statistics",
]

_CHUNK = 2**22  # float64 values converted at once (32 MB)


class Gaussian(NamedTuple):
    """Mean and covariance of features, and of how many.

    Attributes:
      mean: float64 [d].
      covariance: float64 [d, d], normalized by count - 1.
      count: number of samples.
    """

    mean: np.ndarray
    covariance: np.ndarray
    count: int


class Reference(NamedTuple):
    """The statistics of a set of images, as `describe` makes them.

    Attributes:
      gaussian: mean and covariance of its features.
      name: what the images are.
      features: name of the features.
      sha256: of the images' shape, dtype and bytes.
    """

    gaussian: Gaussian
    name: str
    features: str
    sha256: str


class Score(NamedTuple):
    """A Frechet distance and what it was computed from.

    >>> print(Score(3.214, 50_000, "cifar10 train", 50_000, "inception-2015"))
    FID 3.21 (50,000 samples, reference cifar10 train of 50,000, features inception-2015)

    Attributes:
      value: the distance, >= 0.
      count: number of samples.
      reference: name of the reference set.
      reference_count: its number of images.
      features: name of the features.
    """

    value: float
    count: int
    reference: str
    reference_count: int
    features: str

    def __str__(self) -> str:
        # Only this network's features make it FID.
        kind = "FID" if self.features == "inception-2015" else "Frechet distance"
        return (
            f"{kind} {self.value:.3g} ({self.count:,} samples, reference {self.reference} of "
            f"{self.reference_count:,}, features {self.features})"
        )


def statistics(features: np.ndarray | Iterable[np.ndarray]) -> Gaussian:
    """Mean and covariance (n - 1) in float64, one pass, in the memory of a chunk and [d, d].

    Args:
      features: [M, d], or an iterable of arrays [B, d].

    Returns:
      Gaussian.

    Raises:
      ValueError: fewer than two samples, or values that are not finite.
    """
    whole = [features] if hasattr(features, "shape") else features
    parts = (_moments(chunk) for batch in whole for chunk in _chunks(batch))
    gaussian = functools.reduce(merge, parts, None)
    if gaussian is None or gaussian.count < 2:
        raise ValueError(
            f"features: {gaussian.count if gaussian else 0} sample(s), wanted 2 or more"
        )
    if not np.isfinite(gaussian.covariance).all():
        raise ValueError("features: NaN or infinite values, wanted finite ones")
    return gaussian


def merge(a: Gaussian | None, b: Gaussian) -> Gaussian:
    """The statistics of both sets together (Chan et al. 1979); `a` None is the empty set."""
    if a is None:
        return b
    count = a.count + b.count
    shift = b.mean - a.mean
    scatter = (a.count - 1) * a.covariance + (b.count - 1) * b.covariance
    scatter += np.outer(shift * (a.count * b.count / count), shift)
    return Gaussian(a.mean + shift * (b.count / count), scatter / (count - 1), count)


def distance(a: Gaussian, b: Gaussian) -> float:
    """||m_a - m_b||^2 + tr(A + B - 2 (A B)^(1/2)), the squared 2-Wasserstein distance.

    The trace of the root is the sum of the singular values of A^(1/2) B^(1/2), so no root of a
    non-symmetric matrix is taken, and singular covariances (fewer samples than features) are fine.

    Args:
      a, b: Gaussians of the same d.

    Returns:
      The distance, >= 0; 0 to rounding (about 1e-13 of the trace) between equal statistics.

    Raises:
      ValueError: different dimensions.

    >>> a, b = (Gaussian(np.full(2, m), s * np.eye(2), 9) for m, s in ((0.0, 4.0), (1.0, 9.0)))
    >>> round(distance(a, b), 12)  # 2 (1 - 0)^2 + 2 (3 - 2)^2
    4.0
    """
    if a.mean.shape != b.mean.shape:
        raise ValueError(f"features: {len(a.mean)} and {len(b.mean)} dimensions, wanted the same")
    fidelity = np.linalg.svd(_root(a.covariance).T @ _root(b.covariance), compute_uv=False).sum()
    spread = np.trace(a.covariance) + np.trace(b.covariance) - 2 * fidelity
    return max(0.0, float(np.sum((a.mean - b.mean) ** 2) + spread))


def describe(images: np.ndarray, name: str, features: Features = PIXELS) -> Reference:
    """The statistics of `images` [N, H, W, C] in a feature space, to compare samples with.

    Args:
      images: uint8, or float32 in [-1, 1].
      name: what they are; printed with every score.
      features: the feature space.

    Raises:
      ValueError: fewer than two images.
    """
    digest = hashlib.sha256(f"{images.shape}{images.dtype.name}".encode())
    digest.update(np.ascontiguousarray(images))
    gaussian = statistics(features.batches(images))
    return Reference(gaussian, name, features.name, digest.hexdigest())


def compare(images: np.ndarray, reference: Reference, features: Features = PIXELS) -> Score:
    """The Frechet distance of `images` [M, H, W, C] to a reference.

    Raises:
      ValueError: fewer than two images, or a reference in other features.
    """
    if features.name != reference.features:
        raise ValueError(f"reference: features {reference.features}, wanted {features.name}")
    gaussian = statistics(features.batches(images))
    return Score(
        distance(gaussian, reference.gaussian),
        gaussian.count,
        reference.name,
        reference.gaussian.count,
        features.name,
    )


def save_reference(path: str | os.PathLike, reference: Reference) -> pathlib.Path:
    """Write a reference as `.npz`; returns the path."""
    path = pathlib.Path(path).with_suffix(".npz")
    gaussian, *texts = reference
    np.savez(path, **gaussian._asdict(), **dict(zip(Reference._fields[1:], texts, strict=True)))
    return path


def load_reference(path: str | os.PathLike) -> Reference:
    """Read what `save_reference` wrote.

    Raises:
      ValueError: the file is missing or is no such archive.
    """
    try:
        with np.load(path, allow_pickle=False) as archive:
            gaussian = Gaussian(archive["mean"], archive["covariance"], int(archive["count"]))
            return Reference(gaussian, *(str(archive[name]) for name in Reference._fields[1:]))
    except (OSError, KeyError, ValueError, TypeError) as error:
        raise ValueError(f"reference: {path} holds no saved reference ({error})") from None


def _chunks(batch):
    batch = np.asarray(batch)
    if batch.ndim != 2:
        raise ValueError(f"features: shape {batch.shape}, wanted [samples, dimensions]")
    rows = max(1, _CHUNK // max(1, batch.shape[1]))
    return (batch[start : start + rows] for start in range(0, len(batch), rows))


def _moments(chunk):
    chunk = np.float64(chunk)
    mean = chunk.mean(axis=0)
    centred = chunk - mean
    return Gaussian(mean, centred.T @ centred / max(1, len(chunk) - 1), len(chunk))


def _root(covariance):
    """F with F F^T = covariance."""
    variance, basis = np.linalg.eigh(covariance)
    return basis * np.sqrt(np.maximum(variance, 0))
