"""Are samples copies of training images? Exact neighbours, rates with intervals, and controls.

A sample g is memorized if d1 < d2 / 3, with d1 and d2 its distances to the nearest and the second
nearest training image (paper; Gu et al. 2023). The ratio has two blind spots, which `report` always
shows beside it: held-out images pass it too where the training set has outliers (false positives),
and noise left over in the samples adds to both distances and hides copies (`residual_noise`).
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from geomem.metrics.features import check_finite
from geomem.metrics.intervals import Comparison, Rate, compare, rate
from geomem.metrics.residual_noise import fit_spectrum, noise_removed_ratio, residual_noise
from geomem.points import placement
from geomem.points.neighbours import Nearest, nearest

__all__ = [
    "Comparison",
    "Memorization",
    "Rate",
    "Report",
    "adaptive_score",
    "compare",
    "measure",
    "noise_removed_ratio",
    "rate",
    "report",
    "residual_noise",
]

_CANDIDATES = 8  # nearest by float32, decided in float64 where they are close
_CLOSE = 1e-5  # relative; some ten times the error of a float32 distance
_REDONE = 2**22  # float64 values at once (32 MB)
_COPIED = 2**26  # bytes; more images than that are not copied as a whole
_ADAPTIVE = 50  # neighbours in the mean


class Memorization(NamedTuple):
    """The two nearest training images of each sample.

    Attributes:
      distance: float64 [Q, 2], Euclidean, ascending.
      index: int [Q, 2], positions in the training images; of equally distant ones the smaller.
      ratio: float64 [Q], d1 / d2, in [0, 1].
      memorized: bool [Q], d1 < threshold d2.
    """

    distance: np.ndarray
    index: np.ndarray
    ratio: np.ndarray
    memorized: np.ndarray


class Report(NamedTuple):
    """What `report` found; rates over the samples, and over held-out images as false positives.

    Attributes:
      memorized, memorized_heldout: Rate of d1 < threshold d2.
      noise_mean, noise_median: of the samples' residual noise, rms per pixel.
      without_noise, without_noise_heldout: Rate of the ratio after that noise is taken out.
      adaptive, adaptive_heldout: Rate of Carlini's adaptive score below its cutoff.
      copied: number of different training images among the memorized samples' nearest.
      found: Memorization of the samples.
      noise: [Q], residual noise.
      noise_removed_ratio: [Q].
      adaptive_score: [Q].
    """

    memorized: Rate
    memorized_heldout: Rate
    noise_mean: float
    noise_median: float
    without_noise: Rate
    without_noise_heldout: Rate
    adaptive: Rate
    adaptive_heldout: Rate
    copied: int
    found: Memorization
    noise: np.ndarray
    noise_removed_ratio: np.ndarray
    adaptive_score: np.ndarray

    def summary(self) -> dict[str, Any]:
        """The numbers without the arrays per sample, as plain JSON values."""
        fields = list(self._asdict().items())[:9]
        return {k: v._asdict() if isinstance(v, Rate) else v for k, v in fields}


def measure(
    samples: jax.Array,
    train: jax.Array,
    *,
    threshold: float = 1 / 3,
    embed: Callable[[jax.Array], jax.Array] | None = None,
    distinct: bool = True,
) -> Memorization:
    """Whether each sample is far nearer to one training image than to any other: d1 < threshold d2.

    Exact: candidates by matrix products, distances from float32 differences, and in float64 where
    the order or the verdict is close, so that both are those of a float64 loop.

    Copies: if a training image occurs twice, a perfect copy of it has d1 = d2 and would never
    count, though duplicates are what is memorized first. So the second neighbour is by default
    the nearest image *different* from the first. `distinct=False` is the definition to the letter:
    there d1 = d2 gives ratio 1, also where both are 0.

    Args:
      samples: float [Q, ...], unquantized.
      train: float [N, ...], images in the same range, N >= 2.
      threshold: in (0, 1].
      embed: images to features [., f] in which distances are measured, default the pixels. Called
        once on all samples and once on all training images.
      distinct: whether copies of the nearest training image are passed over.

    Returns:
      Memorization. Beyond the data the memory is that of chunks, as NumPy arrays are sent to the
      device piece by piece (and of the different training images, where copies are passed over).

    Raises:
      ValueError: shapes that differ, values that are not floats or not finite, too few images.

    Source: paper, "memorized sample"; Gu et al. 2023.
    """
    samples, train = _checked(samples, train, embed, threshold)
    found = _search(samples, train, _CANDIDATES)
    return _judged(samples, train, found, threshold, distinct)


def adaptive_score(
    samples: jax.Array, train: jax.Array, *, alpha: float = 0.5, count: int = _ADAPTIVE
) -> np.ndarray:
    """Carlini et al.'s adaptive l2 distance, d1 / (alpha mean(d1..dn)), n = min(count, N).

    Unlike d1 / d2 it counts a sample near a small cluster of training images as a copy.

    Args:
      samples: float [Q, ...].
      train: float [N, ...], N >= 2.
      alpha: scale; a score below 1 says "nearer than alpha times the mean neighbour".
      count: n, neighbours in the mean, the nearest one included.

    Returns:
      float64 [Q], in [0, 1 / alpha]; 1 / alpha where all n neighbours are at distance 0.

    Source: Carlini et al. 2023 (arXiv 2301.13188), CIFAR-10 with alpha 0.5, n 50.
    """
    samples, train = _checked(samples, train)
    return _adaptive(_search(samples, train, count), alpha)


def report(
    samples: jax.Array,
    train: jax.Array,
    heldout: jax.Array,
    *,
    threshold: float = 1 / 3,
    adaptive_cutoff: float = 1.0,
    confidence: float = 0.95,
    distinct: bool = True,
) -> Report:
    """Memorization with what belongs beside it: false positives, left-over noise, a second test.

    Args:
      samples: float [Q, ...], unquantized, in the range of the data.
      train: float [N, ...].
      heldout: float [M, ...], M >= 4, images of the same distribution that were not trained on.
      threshold: of d1 / d2.
      adaptive_cutoff: below it `adaptive_score` counts as a copy; geomem's choice.
      confidence: of the intervals.
      distinct: as in `measure`.

    Returns:
      Report.

    Raises:
      ValueError: as in `measure` and `residual_noise`.
    """
    dim = int(np.prod(np.shape(train)[1:]))
    spectrum = fit_spectrum(heldout)
    noise = residual_noise(samples, spectrum), residual_noise(heldout, spectrum)
    found, scores = [], []
    for images in (samples, heldout):
        images, train = _checked(images, train, threshold=threshold)
        closest = _search(images, train, _ADAPTIVE)
        found.append(_judged(images, train, closest, threshold, distinct))
        scores.append(_adaptive(closest))
    ratios = [noise_removed_ratio(f, n, dim) for f, n in zip(found, noise, strict=True)]
    pairs = (
        (f.memorized, r < threshold, s < adaptive_cutoff)
        for f, r, s in zip(found, ratios, scores, strict=True)
    )
    (plain, clean, adaptive), controls = ([rate(x, confidence) for x in arm] for arm in pairs)
    return Report(
        memorized=plain,
        memorized_heldout=controls[0],
        noise_mean=float(noise[0].mean()),
        noise_median=float(np.median(noise[0])),
        without_noise=clean,
        without_noise_heldout=controls[1],
        adaptive=adaptive,
        adaptive_heldout=controls[2],
        copied=len(np.unique(found[0].index[found[0].memorized, 0])),
        found=found[0],
        noise=noise[0],
        noise_removed_ratio=ratios[0],
        adaptive_score=scores[0],
    )


def _checked(samples, train, embed=None, threshold=1.0):
    if not 0 < threshold <= 1:
        raise ValueError(f"threshold: {threshold:g}, wanted in (0, 1]")
    for name, images in (("samples", samples), ("train", train)):
        if not np.issubdtype(images.dtype, np.floating):
            raise ValueError(f"{name}: {images.dtype} values, wanted floats in [-1, 1]")
    if samples.shape[1:] != train.shape[1:]:
        raise ValueError(f"samples: shape {samples.shape}, wanted [Q, *{train.shape[1:]}] as train")
    if len(samples) < 1 or len(train) < 2:
        raise ValueError(
            f"samples, train: {len(samples)} and {len(train)} images, wanted at least 1 and 2"
        )
    if embed is not None:
        samples, train = embed(samples), embed(train)
    check_finite(samples=samples, train=train)
    return samples, train


def _search(samples, train, count) -> Nearest:
    """The `count` nearest training images, or all."""
    count = min(count, len(train))
    if isinstance(train, np.ndarray) and samples.nbytes + train.nbytes > _COPIED:
        # Of this process's devices one: the others may belong to other work.
        train = placement.stream(train, Mesh(jax.local_devices()[:1], ("points",)))
        samples = samples.reshape(len(samples), -1).astype(np.float32, copy=False)
        return nearest(samples, train, count)
    return _search_resident(samples, train, count)


@functools.partial(jax.jit, static_argnames="count")
def _search_resident(samples, train, count):
    # Flattened in here, where that copies nothing.
    samples, train = (a.reshape(len(a), -1).astype(np.float32) for a in (samples, train))
    return nearest(samples, train, count)


def _judged(samples, train, found, threshold, distinct):
    """Memorization, from the nearest `found`, three or more."""
    distance, index = _two_nearest(samples, train, found, threshold)
    first, second = distance.T
    if distinct and (first == second).any():
        kept = _first_of_each(train)
        if len(kept) < 2:
            raise ValueError(f"train: {len(train)} copies of one image, wanted 2 different ones")
        if len(kept) < len(train):
            train = train[kept]
            found = _search(samples, train, _CANDIDATES)
            different = _judged(samples, train, found, threshold, distinct=False)
            return different._replace(index=kept[different.index])
    ratio = np.divide(first, second, out=np.ones_like(first), where=second > 0)
    return Memorization(distance, index, ratio, first < threshold * second)


def _adaptive(found, alpha=0.5):
    distance = np.float64(found.distance)
    mean = distance.mean(axis=1)
    relative = np.divide(distance[:, 0], mean, out=np.ones_like(mean), where=mean > 0)
    return relative / alpha


def _two_nearest(samples, train, found, threshold):
    """Distances [Q, 2] and indices, as if by float64."""
    distance, index = (np.array(a[:, :_CANDIDATES]) for a in found)
    distance = np.float64(distance)
    first, second = distance[:, :2].T
    close = np.abs(first - threshold * second) <= 2 * _CLOSE * first
    gaps = np.diff(distance[:, :3], axis=1)
    close |= (gaps <= 2 * _CLOSE * distance[:, 1 : gaps.shape[1] + 1]).any(axis=1)
    rows, dim = np.flatnonzero(close), int(np.prod(train.shape[1:]))
    block = max(1, _REDONE // (index.shape[1] * dim))
    for at in (rows[i : i + block] for i in range(0, len(rows), block)):
        near = np.asarray(train[index[at]], np.float64)
        squares = (near - np.asarray(samples[at], np.float64)[:, None]) ** 2
        squares = squares.reshape(*index[at].shape, -1).sum(axis=2)
        order = np.lexsort((index[at], squares))
        distance[at] = np.sqrt(np.take_along_axis(squares, order, 1))
        index[at] = np.take_along_axis(index[at], order, 1)
    return distance[:, :2], index[:, :2]


def _first_of_each(train):
    """Positions of the images [N, ...] that repeat no earlier one."""
    rows = np.asarray(train).reshape(len(train), -1)
    seen = {}
    for i, row in enumerate(rows):
        seen.setdefault((row + 0.0).tobytes(), i)  # + 0.0: -0 and 0 are the same number
    return np.fromiter(seen.values(), int)
