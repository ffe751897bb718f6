"""Nearest training images of flipped, shifted, cropped and brightened copies.

The distance is that of `metrics.alignment`. Bounds from a few low frequencies rule out almost all
images (`metrics._low_pass`), float32 products rank the others, and float64 differences decide.
"""

from __future__ import annotations

import itertools
from typing import NamedTuple

import numpy as np
from jaxtyping import Array, Bool, Float, Int

from geomem.metrics import _low_pass
from geomem.metrics.alignment import Alignment, overlap, shrink, squared_distances
from geomem.metrics.features import check_finite
from geomem.points.exact import Candidates

__all__ = ["Aligned", "nearest"]

Images = Float[Array | np.ndarray, "images height width channels"]

_ROUNDS = ((64, 16), (64, 256), (256, 64), (1024, 256))  # frequencies and candidates
_FEW = 64  # open samples that are faster compared with all images than screened again
_TOGETHER = 512  # images that one of them is compared with at once
_SAMPLES, _IMAGES = 1024, 1024  # screened at once
_FEATURES = 2**25  # values of training features at once
_GATHERED = 2**24  # pixels of candidates at once
_FLOAT64_VALUES = 2**21  # values at once where float64 decides


class Aligned(NamedTuple):
    """The nearest training image of each sample, and the nearest one outside its group.

    Attributes:
      distance: aligned distances, ascending.
      index: positions in the training set; equally distant images are ordered by position.
      transform: positions in `Alignment.transforms()`.
      ratio: d1 / d2, in [0, 1].
      exact: whether the row is proved. If not, its ratio is not below `exact_below`, and its images
        are the best candidates.
    """

    distance: Float[np.ndarray, "samples 2"]
    index: Int[np.ndarray, "samples 2"]
    transform: Int[np.ndarray, "samples 2"]
    ratio: Float[np.ndarray, " samples"]
    exact: Bool[np.ndarray, " samples"]


def nearest(
    samples: Images,
    train: Images,
    alignment: Alignment | None = None,
    *,
    group: Int[np.ndarray, " images"] | None = None,
    exact_below: float = 0.75,
) -> Aligned:
    """Return the nearest training image of each sample, and the nearest one outside its group.

    Every ratio d1 / d2 below `exact_below` is that of a float64 loop, and none is missed. Samples
    for which the first candidates do not prove this are searched again with more candidates and
    more frequencies, and the last few are compared with all images. So photographs are fast, and
    images of noise are slow.

    Args:
      samples: images in the range of `train`.
      train: images of two or more groups.
      alignment: the transforms; default: flips, and shifts of up to 2 pixels.
      group: training images with the same number count as one image (near-duplicates).
        Default: each image is its own group.
      exact_below: up to which ratio the result is proved, in (0, 1]; 1 for all ratios.

    Returns:
      Aligned. Memory holds the images and blocks of bounded size, never all pairs.

    Raises:
      ValueError: images that are not floats [N, H, W, C] of one shape, not finite, or too small
        for the transforms; a training set of one group; or `exact_below` out of range.
    """
    alignment = alignment or Alignment()
    if not 0 < exact_below <= 1:
        raise ValueError(f"exact_below must be in (0, 1], got {exact_below:g}.")
    search = _Search(*_checked(samples, train, group, alignment), alignment)
    for frequencies, count in itertools.chain(_ROUNDS, ((2**30, 4**k) for k in range(5, 32))):
        search.advance(frequencies, min(count, len(train)), exact_below)
        if np.count_nonzero(~search.done) <= _FEW:
            search.compare_with_all()
            break
    return search.result()


def _checked(samples, train, group, alignment):
    samples, train = np.asarray(samples), np.asarray(train)
    for name, images in (("samples", samples), ("train", train)):
        if images.ndim != 4 or len(images) == 0 or not np.issubdtype(images.dtype, np.floating):
            raise ValueError(
                f"{name} must be floats [N, H, W, C], got {images.dtype} {images.shape}."
            )
    if samples.shape[1:] != train.shape[1:]:
        raise ValueError(
            f"samples must be images of shape {train.shape[1:]} like train, "
            f"got {samples.shape[1:]}."
        )
    check_finite(samples=samples, train=train)
    least = 2 * max(alignment.shift, alignment.crop) + 2
    if min(train.shape[1:3]) < least:
        raise ValueError(f"train must have sides of {least} or more, got {train.shape[1:3]}.")
    group = np.arange(len(train)) if group is None else np.asarray(group)
    if group.shape != (len(train),):
        raise ValueError(f"group must have shape ({len(train)},) like train, got {group.shape}.")
    _, group = np.unique(group, return_inverse=True)
    if group.max() == 0:
        raise ValueError("train must hold images of 2 or more groups, got 1.")
    return samples, train, group.astype(np.int32)


class _Search:
    """The two nearest images of each sample so far, and for which samples they are proved."""

    def __init__(self, samples, train, group, alignment):
        self.samples, self.train, self.group, self.alignment = samples, train, group, alignment
        self.squares = np.full((len(samples), 2), np.inf)
        self.index = np.zeros((len(samples), 2), int)
        self.transform = np.zeros((len(samples), 2), int)
        self.first_known, self.known, self.done = np.zeros((3, len(samples)), bool)
        self.margin = max(alignment.shift, alignment.crop)
        # One number if the brightness is free, because a gain would magnify a channel's own center.
        axes = (0, 1, 2) if alignment.gain == 1 else None
        self.center = np.float32(np.asarray(train[:_IMAGES], np.float64).mean(axis=axes))
        self.transforms = alignment.transforms()
        crops, steps = alignment.crop + 1, 2 * alignment.shift + 1
        # Positions of the transforms in the order (flip, crop, down, right).
        self.order = [
            ((t.flip * crops + t.crop) * steps + t.down + alignment.shift) * steps
            + (t.right + alignment.shift)
            for t in self.transforms
        ]

    def advance(self, frequencies, count, exact_below):
        """Search for the open samples among `count` candidates each."""
        rows = np.flatnonzero(~self.done)
        candidates, bound = self._candidates(rows, frequencies, count)
        candidates = np.concatenate([candidates, self.index[rows]], axis=1)
        pixels = candidates.shape[1] * int(np.prod(self.train.shape[1:]))
        values = candidates.shape[1] * len(self.order)
        block = max(1, min(_GATHERED // pixels, _FLOAT64_VALUES // values))
        block = min(_power_of_two(len(rows)), _power_of_two(block + 1) // 2)
        for start in range(0, len(rows), block):
            self._decide(rows[start : start + block], candidates[start : start + block], block)
        first, second = self.squares[rows].T
        self.first_known[rows] |= first < bound
        self.known[rows] = self.first_known[rows] & (second < bound)
        least = np.where(self.first_known[rows], first, np.minimum(first, bound))
        self.done[rows] = self.known[rows] | (least >= exact_below**2 * second)

    def compare_with_all(self):
        """Decide the open samples without bounds."""
        size = min(_TOGETHER, _power_of_two(len(self.train)))
        for row in np.flatnonzero(~self.done)[:, None]:
            for start in range(0, len(self.train), size):
                images = np.arange(start, start + size) % len(self.train)
                # The nearest so far, and the nearest one of another group, stay in the running.
                self._decide(row, np.concatenate([images, self.index[row[0]]])[None], 1)
            self.first_known[row] = self.known[row] = self.done[row] = True

    def result(self):
        first, second = distance = np.sqrt(self.squares.T)
        ratio = np.divide(first, second, out=np.ones_like(first), where=second > 0)
        return Aligned(distance.T, self.index, self.transform, ratio, self.known)

    def _candidates(self, rows, frequencies, count):
        """The images of the least bounds [R, count], and a bound for all others [R]."""
        shift, gain = self.alignment.shift, self.alignment.gain
        margin, constant = self.margin, self.alignment.gain == 1
        vectors = _low_pass.cosines(self.train, margin, frequencies, constant=constant)
        settings = {"margin": margin, "constant": constant}
        size, block = vectors.shape[1] + 1, min(_SAMPLES, _power_of_two(len(rows)))
        parts, norm = [], np.zeros(len(rows))
        excluded = np.where(self.first_known[rows], self.group[self.index[rows, 0]], -2)
        excluded = excluded.astype(np.int32)
        for start in range(0, len(rows), block):
            at = slice(start, start + block)
            views = _views(self.samples[rows[at]], self.alignment)
            images = _padded(views.reshape(-1, *views.shape[2:]), block * views.shape[1])
            found = _low_pass.window_features(images, self.center, vectors, shift=0, **settings)[0]
            found = found.reshape(block, -1, size)
            norm[at] = np.asarray((found**2).sum(axis=2).max(axis=1))[: len(views)]
            none = Candidates.none(block, count)
            parts.append([none, found, _padded(excluded[at], block)])
        scale = self._scale()
        chunk = _power_of_two(max(64, min(_IMAGES, _FEATURES // (size * scale.shape[1]))))
        chunk = min(chunk, _power_of_two(len(self.train)))
        largest = 0.0
        for first in range(0, len(self.train), chunk):
            images = _padded(self.train[first : first + chunk], chunk)
            own = _padded(self.group[first : first + chunk], chunk, -1)
            windows = _low_pass.window_features(
                images, self.center, vectors, shift=shift, **settings
            )
            largest = max(largest, float((windows**2).sum(axis=2).max()))
            for part in parts:
                part[0] = _low_pass.screen(
                    *part[:2], windows, scale, first, own, part[2], gain=gain
                )
        score, index = (
            np.concatenate([np.asarray(part[0][i]) for part in parts])[: len(rows)] for i in (0, 1)
        )
        if count == len(self.train):
            return index, np.full(len(rows), np.inf)
        squares = np.maximum(-np.float64(score[:, -1]), 0)
        rounding = _low_pass.ROUNDING * scale.max()
        squares = np.maximum(squares - rounding * (gain**2 * norm + largest), 0)
        bound = np.sqrt(squares) - rounding * (gain * np.sqrt(norm) + np.sqrt(largest))
        return index, np.maximum(bound, 0) ** 2

    def _scale(self):
        """From sums over the overlap to squared distances: [V, S]."""
        scale = np.ones(len(self.order), np.float32)
        for place, transform in zip(self.order, self.transforms, strict=True):
            sides = zip(self.train.shape[1:3], transform[2:], strict=True)
            for side, shift in sides:
                start, stop = overlap(side, transform.crop, shift)
                scale[place] *= side / (stop - start)
        return scale.reshape(-1, (2 * self.alignment.shift + 1) ** 2)

    def _decide(self, rows, candidates, block):
        """Find the two nearest among the candidates [R, M] of each sample."""
        padded, chosen = _padded(rows, block, rows[0]), _padded(candidates, block)
        values, margin = _low_pass.compare(
            _views(self.samples[padded], self.alignment),
            self.train[chosen].astype(np.float32),
            self.center,
            crop=self.alignment.crop,
            shift=self.alignment.shift,
            gain=self.alignment.gain,
        )
        shape = len(rows), candidates.shape[1], -1
        values = np.asarray(values, np.float64)[: len(rows)].reshape(shape)[..., self.order]
        margin = np.asarray(margin, np.float64)[: len(rows), None, None]
        group = self.group[candidates]
        for place in (0, 1):
            if place:  # outside of the group of the nearest
                values[group == self.group[self.index[rows, :1]]] = np.inf
            least = values.min(axis=(1, 2), keepdims=True)
            row, image, transform = np.nonzero((values <= least + 2 * margin) & np.isfinite(values))
            exact = self._squares(rows[row], candidates[row, image], transform)
            values[row, image, transform] = exact
            order = np.lexsort((transform, candidates[row, image], exact, row))
            best, at = np.unique(row[order], return_index=True)
            order = order[at]
            self.squares[rows[best], place] = exact[order]
            self.index[rows[best], place] = candidates[best, image[order]]
            self.transform[rows[best], place] = transform[order]

    def _squares(self, sample, image, transform):
        """Float64 squared distances of pairs, each under its own transform."""
        squares = np.zeros(len(sample))
        size = max(1, _FLOAT64_VALUES // int(np.prod(self.train.shape[1:])))
        for i in np.unique(transform):
            every = np.flatnonzero(transform == i)
            for at in np.split(every, range(size, len(every), size)):
                pairs = self.samples[sample[at]], self.train[image[at]]
                squares[at] = squared_distances(*pairs, self.transforms[i], self.alignment.gain)
        return squares


def _views(samples, alignment):
    """The flipped and shrunk samples, with zeros around them: float32 [Q, V, H, W, C]."""
    _, height, width, _ = samples.shape
    views = [samples]
    for crop in range(1, alignment.crop + 1):
        rows, columns = shrink(height, crop), shrink(width, crop)
        small = np.einsum("ah,nhwc,bw->nabc", rows, samples, columns, optimize=True)
        views.append(np.pad(small, ((0, 0), (crop, crop), (crop, crop), (0, 0))))
    flipped = [np.flip(view, 2) for view in views] if alignment.flip else []
    return np.stack(views + flipped, axis=1).astype(np.float32)


def _padded(rows, count, value=0):
    padding = [(0, count - len(rows))] + [(0, 0)] * (rows.ndim - 1)
    return np.pad(rows, padding, constant_values=value)


def _power_of_two(count):
    """The least power of two that is not below `count`."""
    return 1 << (int(count) - 1).bit_length()
