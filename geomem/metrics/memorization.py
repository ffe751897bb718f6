"""Find samples that copy training images: exact neighbors, rates with intervals, and controls.

A sample is memorized if d1 < d2 / 3, where d1 and d2 are its distances to the nearest and the
second nearest training image (paper; Gu et al. 2023). `plain_memorized` is this definition as code;
`measure` gives the same answers faster. The test can err in two ways, so `report` adds controls: if
the training set has outliers, even held-out images count as memorized (false positives); and noise
left in a sample adds to both distances, which hides a copy (`residual_noise`).
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float, Int

from geomem.metrics.features import check_finite
from geomem.metrics.intervals import Rate, rate
from geomem.metrics.residual_noise import fit_spectrum, noise_removed_ratio, residual_noise
from geomem.points import placement
from geomem.points.neighbors import Nearest, nearest

__all__ = ["Memorization", "Report", "adaptive_score", "measure", "plain_memorized", "report"]

_CANDIDATES = 8  # nearest in float32; float64 decides between those that are close
_CLOSE = 1e-5  # relative; about ten times the error of a float32 distance
_FLOAT64_VALUES = 2**22  # float64 values computed at once (32 MB)
_RESIDENT_BYTES = 2**26  # NumPy arrays larger than this are sent to the device in pieces
_ADAPTIVE_COUNT, _ADAPTIVE_SCALE = 50, 0.5  # neighbors in the mean of the adaptive score; alpha
_ADAPTIVE_CUTOFF = 1.0  # a score below it counts as a copy; geomem's choice

Images = Float[Array | np.ndarray, "images ..."]


def plain_memorized(
    samples: Images, train: Images, threshold: float = 1 / 3
) -> Bool[np.ndarray, " samples"]:
    """Return whether d1 < threshold d2 for each sample: the definition, in float64.

    It stores all differences of a sample; use `measure` for large sets.
    """
    samples, train = (np.float64(images).reshape(len(images), -1) for images in (samples, train))
    distances = [np.sort(np.linalg.norm(train - sample, axis=1)) for sample in samples]
    return np.array([first < threshold * second for first, second, *_ in distances])


class Memorization(NamedTuple):
    """The two nearest training images of each sample.

    Attributes:
      distance: Euclidean distances, ascending.
      index: positions in the training set; equally distant images are ordered by position.
      ratio: d1 / d2, in [0, 1].
      memorized: whether d1 < threshold d2.
    """

    distance: Float[np.ndarray, "samples 2"]
    index: Int[np.ndarray, "samples 2"]
    ratio: Float[np.ndarray, " samples"]
    memorized: Bool[np.ndarray, " samples"]


class Report(NamedTuple):
    """Memorization rates of the samples, and of held-out images as false-positive rates.

    Without held-out images, the rates of held-out images are None.

    Attributes:
      memorized, memorized_heldout: Rate of d1 < threshold d2, with d2 outside the first's group.
      strict: Rate of the paper's definition, in which duplicates are images of their own.
      noise_mean, noise_median: mean and median of the samples' residual noise (RMS per pixel).
      without_noise, without_noise_heldout: Rate of `memorized` after that noise is subtracted.
      without_noise_strict: Rate of `strict` after that noise is subtracted.
      adaptive, adaptive_heldout: Rate of adaptive scores below the cutoff (Carlini et al. 2023).
      copied: number of different training images that memorized samples copy.
      samples, heldout: Memorization of each sample and of each held-out image.
      strict_memorized: whether each sample is memorized by the paper's definition.
      noise: residual noise of each sample.
      noise_removed_ratio: d1 / d2 of each sample after its residual noise is subtracted.
      adaptive_score: adaptive score of each sample.
    """

    memorized: Rate
    memorized_heldout: Rate | None
    strict: Rate
    noise_mean: float
    noise_median: float
    without_noise: Rate
    without_noise_heldout: Rate | None
    without_noise_strict: Rate
    adaptive: Rate
    adaptive_heldout: Rate | None
    copied: int
    samples: Memorization
    heldout: Memorization | None
    strict_memorized: Bool[np.ndarray, " samples"]
    noise: Float[np.ndarray, " samples"]
    noise_removed_ratio: Float[np.ndarray, " samples"]
    adaptive_score: Float[np.ndarray, " samples"]

    def summary(self) -> dict[str, Any]:
        """Return the numbers without the per-sample arrays, as plain JSON values."""
        fields = list(self._asdict().items())[:11]
        return {k: v._asdict() if isinstance(v, Rate) else v for k, v in fields}


def measure(
    samples: Images,
    train: Images,
    *,
    threshold: float = 1 / 3,
    distinct: bool = True,
    group: Int[np.ndarray, " images"] | None = None,
) -> Memorization:
    """Test whether each sample is much nearer to one training image than to any other.

    The result is exact: matrix products propose candidates, float32 differences give their
    distances, and float64 differences decide close cases. Indices and flags equal those of a
    float64 loop.

    If a training image occurs twice, a perfect copy of it has d1 = d2, so `plain_memorized` does
    not count it, although duplicates are memorized first. So by default d2 is the distance to the
    nearest image that *differs* from the first. With `distinct=False`, d1 = d2 gives a ratio of 1
    (even if both are 0), as in `plain_memorized`. Near-duplicates hide a copy in the same way: with
    `group`, d2 is the distance to the nearest image of another group.

    Args:
      samples: unquantized images in the range of `train`.
      train: two or more training images.
      threshold: in (0, 1].
      distinct: whether to skip copies of the nearest training image.
      group: training images with the same number count as one, e.g. `Duplicates.group`.

    Returns:
      Memorization. Large NumPy arrays are sent to the device in chunks, so it needs little memory
      beyond the data (and a copy of the different training images if copies are skipped).

    Raises:
      ValueError: if shapes differ, values are not finite floats, or there are too few images or
        groups.

    Source: paper, "memorized sample"; Gu et al. 2023.
    """
    samples, train = _checked(samples, train, threshold)
    neighbors = _search(samples, train, _CANDIDATES)
    return _decide(samples, train, neighbors, threshold, distinct, group)


def adaptive_score(samples: Images, train: Images) -> Float[np.ndarray, " samples"]:
    """Return the adaptive l2 distance d1 / (0.5 mean(d1, ..., dn)) with n = min(50, N).

    Unlike d1 / d2, it also detects a copy of an image that has several near-duplicates.

    Args:
      samples: images.
      train: two or more training images.

    Returns:
      Scores in [0, 2]; 2 if all n neighbors are at distance 0.

    Source: Carlini et al. 2023 (arXiv 2301.13188), with their constants for CIFAR-10.
    """
    samples, train = _checked(samples, train)
    return _adaptive(_search(samples, train, _ADAPTIVE_COUNT))


def report(
    samples: Images,
    train: Images,
    heldout: Images | None = None,
    *,
    threshold: float = 1 / 3,
    group: Int[np.ndarray, " images"] | None = None,
) -> Report:
    """Measure memorization together with false positives, residual noise and a second test.

    Args:
      samples: unquantized images in the range of the data.
      train: training images.
      heldout: four or more images of the same distribution that were not trained on. Without them
        there are no false-positive rates, and the spectrum of clean images is that of `train`.
      threshold: threshold of d1 / d2.
      group: as in `measure`.

    Raises:
      ValueError: as in `measure` and `residual_noise`.
    """
    samples, train = map(_as_array, (samples, train))
    spectrum = fit_spectrum(train if heldout is None else _as_array(heldout))
    dim = int(np.prod(np.shape(train)[1:]))

    def evaluate(images):
        noise = residual_noise(images, spectrum)
        neighbors = _search(*_checked(images, train, threshold), _ADAPTIVE_COUNT)
        score = _adaptive(neighbors)
        neighbors = Nearest(*(field[:, :_CANDIDATES] for field in neighbors))
        memorization = _decide(images, train, neighbors, threshold, True, group)
        ratio = noise_removed_ratio(memorization.distance, noise, dim)
        strict = _decide(images, train, neighbors, threshold, False)
        flags = [memorization.memorized, ratio < threshold, score < _ADAPTIVE_CUTOFF]
        flags += [strict.memorized, noise_removed_ratio(strict.distance, noise, dim) < threshold]
        rates = [rate(x) for x in flags]
        return rates, memorization, strict.memorized, noise, ratio, score

    rates, memorization, strict, noise, ratio, score = evaluate(samples)
    false, false_memorization = 3 * [None], None
    if heldout is not None:
        false, false_memorization = evaluate(_as_array(heldout))[:2]
    return Report(
        memorized=rates[0],
        memorized_heldout=false[0],
        strict=rates[3],
        noise_mean=float(noise.mean()),
        noise_median=float(np.median(noise)),
        without_noise=rates[1],
        without_noise_heldout=false[1],
        without_noise_strict=rates[4],
        adaptive=rates[2],
        adaptive_heldout=false[2],
        copied=len(np.unique(memorization.index[memorization.memorized, 0])),
        samples=memorization,
        heldout=false_memorization,
        strict_memorized=strict,
        noise=noise,
        noise_removed_ratio=ratio,
        adaptive_score=score,
    )


def _checked(samples, train, threshold=1.0):
    if not 0 < threshold <= 1:
        raise ValueError(f"threshold must be in (0, 1], got {threshold:g}.")
    samples, train = _as_array(samples), _as_array(train)
    for name, images, fewest in (("samples", samples, 1), ("train", train, 2)):
        if not np.issubdtype(images.dtype, np.floating):
            raise ValueError(f"{name} must be floats in [-1, 1], got {images.dtype}.")
        if len(images) < fewest:
            raise ValueError(f"{name} must hold {fewest} or more images, got {len(images)}.")
    if samples.shape[1:] != train.shape[1:]:
        raise ValueError(
            f"samples must be images of shape {train.shape[1:]} like train, "
            f"got {samples.shape[1:]}."
        )
    check_finite(samples=samples, train=train)
    return samples, train


def _as_array(images):
    return images if isinstance(images, jax.Array | np.ndarray) else np.asarray(images)


def _search(samples, train, count) -> Nearest:
    """The `count` nearest training images, or all if there are fewer."""
    count = min(count, len(train))
    if isinstance(train, np.ndarray) and samples.nbytes + train.nbytes > _RESIDENT_BYTES:
        # Use one local device; others may be busy.
        train = placement.stream(train, Mesh(jax.local_devices()[:1], ("points",)))
        samples = samples.reshape(len(samples), -1).astype(np.float32, copy=False)
        return nearest(samples, train, count)
    return _search_resident(samples, train, count)


@functools.partial(jax.jit, static_argnames="count")
def _search_resident(samples, train, count):
    # Flattening under jit does not copy.
    samples, train = (a.reshape(len(a), -1).astype(np.float32) for a in (samples, train))
    return nearest(samples, train, count)


def _decide(samples, train, neighbors, threshold, distinct, group=None):
    """Memorization from three or more nearest neighbors (or all)."""
    distance, index = _in_float64(samples, train, neighbors, threshold)
    if group is None:
        group = np.arange(len(train))
        if distinct and (distance[:, 0] == distance[:, 1]).any():
            group = _first_of_each(train)
    group = np.asarray(group)
    if group.shape != (len(train),):
        raise ValueError(f"group must have shape ({len(train)},) like train, got {group.shape}.")
    if (group == group[0]).all():
        raise ValueError(
            f"train must hold 2 or more different images, got {len(train)} copies of one."
        )
    other = group[index] != group[index[:, :1]]
    if index.shape[1] < len(train):  # an image just behind the last one may be nearer than it
        other[:, -1] = False
    second = other.argmax(axis=1)
    rows = np.arange(len(index))
    distance = np.stack([distance[:, 0], distance[rows, second]], axis=1)
    places = np.stack([index[:, 0], index[rows, second]], axis=1)
    if (hidden := ~other.any(axis=1)).any():  # all candidates are of one group
        more = _search(samples[hidden], train, 8 * index.shape[1])
        rest = _decide(samples[hidden], train, more, threshold, distinct, group)
        distance[hidden], places[hidden] = rest.distance, rest.index
    first, second = distance.T
    ratio = np.divide(first, second, out=np.ones_like(first), where=second > 0)
    return Memorization(distance, places, ratio, first < threshold * second)


def _adaptive(neighbors):
    distance = np.asarray(neighbors.distance, np.float64)
    mean = distance.mean(axis=1)
    relative = np.divide(distance[:, 0], mean, out=np.ones_like(mean), where=mean > 0)
    return relative / _ADAPTIVE_SCALE


def _in_float64(samples, train, neighbors, threshold):
    """Distances and indices [Q, K] of the nearest, in the order of a float64 loop."""
    distance = np.array(neighbors.distance, np.float64)
    index = np.array(neighbors.index)
    gaps = np.diff(distance, axis=1)
    # Any of the candidates may be the second.
    close = np.abs(distance[:, :1] - threshold * distance[:, 1:]) <= 2 * _CLOSE * distance[:, :1]
    close = (close | (gaps <= 2 * _CLOSE * distance[:, 1:])).any(axis=1)
    rows, dim = np.flatnonzero(close), int(np.prod(train.shape[1:]))
    block = max(1, _FLOAT64_VALUES // (index.shape[1] * dim))
    for at in (rows[i : i + block] for i in range(0, len(rows), block)):
        near = np.asarray(train[index[at]], np.float64)
        squares = (near - np.asarray(samples[at], np.float64)[:, None]) ** 2
        squares = squares.reshape(*index[at].shape, -1).sum(axis=2)
        order = np.lexsort((index[at], squares))
        distance[at] = np.sqrt(np.take_along_axis(squares, order, 1))
        index[at] = np.take_along_axis(index[at], order, 1)
    return distance, index


def _first_of_each(train):
    """For each image [N, ...] the position of the first one that equals it."""
    rows = np.asarray(train).reshape(len(train), -1)
    seen = {}
    # + 0.0 turns -0 into 0
    return np.array([seen.setdefault((row + 0.0).tobytes(), i) for i, row in enumerate(rows)])
