"""Frechet distance between two sets of images in a feature space; with Inception features, FID.

It is the distance between the normal distributions that have the mean and covariance of each set
(Dowson and Landau 1982; Heusel et al. 2017). Statistics are float64 and are computed batch by
batch. Every score states its number of samples, its reference and its features.
"""

import functools
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from geomem.metrics.features import PIXELS, FeatureArray, Features, Images

__all__ = [
    "Moments",
    "Reference",
    "Score",
    "compare",
    "describe",
    "distance",
    "merge",
    "statistics",
]

_CHUNK = 2**22  # float64 values converted at once (32 MB)


class Moments(NamedTuple):
    """Mean and covariance (normalized by count - 1) of a set of features, and its size."""

    mean: Float[np.ndarray, " features"]
    covariance: Float[np.ndarray, "features features"]
    count: int


class Reference(NamedTuple):
    """A named set of images to compare samples with, and the name of its features."""

    moments: Moments
    name: str
    features: str


class Score(NamedTuple):
    """A Frechet distance and what it was computed from.

    >>> print(Score(3.214, 50_000, "cifar10 train", 50_000, "inception-2015"))
    FID 3.21 (50,000 samples, reference cifar10 train of 50,000, features inception-2015)
    """

    value: float
    count: int
    reference: str
    reference_count: int
    features: str

    def __str__(self) -> str:
        # The distance is called FID only with this network.
        kind = "FID" if self.features == "inception-2015" else "Frechet distance"
        return (
            f"{kind} {self.value:.3g} ({self.count:,} samples, reference {self.reference} of "
            f"{self.reference_count:,}, features {self.features})"
        )


def statistics(features: FeatureArray | Iterable[FeatureArray]) -> Moments:
    """Return the float64 mean and covariance (n - 1) of features.

    Args:
      features: one array, or an iterable of batches, of which memory holds one at a time.

    Raises:
      ValueError: if there are fewer than two samples, or a value is not finite.
    """
    batches = [features] if hasattr(features, "shape") else features
    parts = (_moments(chunk) for batch in batches for chunk in _chunks(batch))
    moments = functools.reduce(merge, parts, None)
    if moments is None or moments.count < 2:
        count = moments.count if moments else 0
        raise ValueError(f"features must hold 2 or more samples, got {count}.")
    if not np.isfinite(moments.covariance).all():
        raise ValueError("features must be finite, got NaN or inf.")
    return moments


def merge(a: Moments | None, b: Moments) -> Moments:
    """Return the moments of the union of two sets (Chan et al. 1979); None is the empty set."""
    if a is None:
        return b
    count = a.count + b.count
    shift = b.mean - a.mean
    scatter = (a.count - 1) * a.covariance + (b.count - 1) * b.covariance
    scatter += np.outer(shift * (a.count * b.count / count), shift)
    return Moments(a.mean + shift * (b.count / count), scatter / (count - 1), count)


def distance(a: Moments, b: Moments) -> float:
    """Return ||m_a - m_b||^2 + tr(A + B - 2 (A B)^(1/2)), the squared 2-Wasserstein distance.

    The trace of the square root is computed as the sum of the singular values of A^(1/2) B^(1/2).
    This avoids the square root of a non-symmetric matrix and allows singular covariances (fewer
    samples than features).
    It is >= 0, and for equal moments 0 up to rounding (about 1e-13 of the trace).

    Raises:
      ValueError: if the numbers of features differ.

    >>> a, b = (Moments(np.full(2, m), s * np.eye(2), 9) for m, s in ((0.0, 4.0), (1.0, 9.0)))
    >>> round(distance(a, b), 12)  # 2 (1 - 0)^2 + 2 (3 - 2)^2
    4.0
    """
    if a.mean.shape != b.mean.shape:
        raise ValueError(f"b must have {len(a.mean)} features like a, got {len(b.mean)}.")
    fidelity = np.linalg.svd(_root(a.covariance).T @ _root(b.covariance), compute_uv=False).sum()
    spread = np.trace(a.covariance) + np.trace(b.covariance) - 2 * fidelity
    return max(0.0, float(np.sum((a.mean - b.mean) ** 2) + spread))


def describe(images: Images, name: str, features: Features = PIXELS) -> Reference:
    """Summarize images (uint8, or float32 in [-1, 1]) in a feature space, as a reference.

    Raises:
      ValueError: if there are fewer than two images.
    """
    return Reference(statistics(features.batches(images)), name, features.name)


def compare(images: Images, reference: Reference, features: Features = PIXELS) -> Score:
    """Return the Frechet distance of images from a reference.

    Raises:
      ValueError: if there are fewer than two images, or the reference has other features.
    """
    if features.name != reference.features:
        raise ValueError(
            f"reference must have {features.name} features, got {reference.features} features."
        )
    moments, other = statistics(features.batches(images)), reference.moments
    value = distance(moments, other)
    return Score(value, moments.count, reference.name, other.count, features.name)


def _moments(chunk):
    chunk = np.asarray(chunk, np.float64)
    mean = chunk.mean(axis=0)
    centered = chunk - mean
    return Moments(mean, centered.T @ centered / max(1, len(chunk) - 1), len(chunk))


def _chunks(batch):
    batch = np.asarray(batch)
    if batch.ndim != 2:
        raise ValueError(f"features must be 2-d, got shape {batch.shape}.")
    rows = max(1, _CHUNK // max(1, batch.shape[1]))
    return (batch[start : start + rows] for start in range(0, len(batch), rows))


def _root(covariance):
    """F with F F^T = covariance."""
    variance, basis = np.linalg.eigh(covariance)
    return basis * np.sqrt(np.maximum(variance, 0))
