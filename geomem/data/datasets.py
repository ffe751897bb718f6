"""Images by index, decoded on demand; every source returns its images in this form."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np

__all__ = ["Dataset", "Split", "count_duplicates", "count_shared", "to_float"]

_KEPT = 2**31  # bytes; a split of at most this size stays in memory
_BLOCK = 4096  # images of a larger split in memory at once


@dataclasses.dataclass(frozen=True)
class Split:
    """Images by index, decoded on demand.

    Attributes:
      read: maps source indices, int64 [n], to pixels [n, H, W, C], uint8 or float32 in [-1, 1].
      index: int64 [N], positions of the selected images in the source's canonical order.
      labels: int64 [N] class labels, or None if the source has none.
    """

    read: Callable[[np.ndarray], np.ndarray]
    index: np.ndarray
    labels: np.ndarray | None = None

    def __len__(self) -> int:
        """Return the number of selected images."""
        return len(self.index)

    @functools.cached_property
    def pixels(self) -> np.ndarray:
        """The images as stored, [N, H, W, C]: uint8, or float32 in [-1, 1].

        Raises:
          ValueError: a float image has values that are not finite or not in [-1, 1].
        """
        pixels = np.ascontiguousarray(self.read(self.index))
        return pixels if pixels.dtype == np.uint8 else _checked_floats(pixels)

    @functools.cached_property
    def images(self) -> np.ndarray:
        """The images, float32 [N, H, W, C] in [-1, 1]."""
        return to_float(self.pixels)

    @functools.cached_property
    def shape(self) -> tuple[int, ...]:
        """(N, H, W, C); reads only one image."""
        return len(self), *self.at(slice(0, 1)).shape[1:]

    def blocks(self) -> Iterator[np.ndarray]:
        """Yield the images as stored, in blocks; memory holds only one block of a large split."""
        if len(self) * self.at(slice(0, 1)).nbytes <= _KEPT:
            yield self.pixels
            return
        for start in range(0, len(self), _BLOCK):
            yield self.take(slice(start, start + _BLOCK)).pixels

    def at(self, positions: slice | np.ndarray) -> np.ndarray:
        """Return the images at `positions`, as stored; they are read unless already in memory."""
        kept = "pixels" in vars(self)
        return self.pixels[positions] if kept else self.read(self.index[positions])

    def take(self, positions: np.ndarray) -> Split:
        """Return the split with the images at `positions` (int [n], into this split)."""
        labels = None if self.labels is None else self.labels[positions]
        return Split(self.read, self.index[positions], labels)

    def sha256(self) -> str:
        """Return the SHA-256 of the indices and of the images' shape, dtype and bytes."""
        digest = hashlib.sha256()
        for number, block in enumerate(self.blocks()):
            if number == 0:
                digest.update(f"{self.shape}{block.dtype.name}".encode())
                digest.update(self.index.astype("<i8").tobytes())
            digest.update(np.ascontiguousarray(block))
        return digest.hexdigest()


@dataclasses.dataclass(frozen=True)
class Dataset:
    """Training images, and held-out images from the same distribution.

    Attributes:
      name: the name or path that the data set was loaded from.
      train_split, test_split: the training and the held-out images, with indices and labels.
      class_names: the names of the labels; empty if there are none.
    """

    name: str
    train_split: Split
    test_split: Split
    class_names: tuple[str, ...] = ()

    @property
    def train(self) -> np.ndarray:
        """Training images, float32 [N, H, W, C] in [-1, 1]."""
        return self.train_split.images

    @property
    def test(self) -> np.ndarray:
        """Held-out images, float32 [M, H, W, C] in [-1, 1]."""
        return self.test_split.images

    def subset(
        self,
        *,
        classes: Sequence[str] | None = None,
        count: int | None = None,
        heldout_count: int | None = None,
        seed: int | None = None,
    ) -> Dataset:
        """Return a data set with some of the images.

        With the same `seed` and `classes`, a smaller selection is the start of a larger one. Warns
        on stderr if the first `count` training images miss a class, as in a folder that is sorted
        by class.

        Args:
          classes: names of the classes to keep, in training and held-out images.
          count: number of training images; default: all.
          heldout_count: number of held-out images; default: all.
          seed: shuffles the images first; None keeps the source's canonical order.

        Raises:
          ValueError: an unknown class, a negative seed, or a count below 1 or above the number of
            images.
        """
        class_ids = self._class_ids(classes)
        train, test = (
            _select(split, class_ids, number, seed, argument)
            for split, number, argument in (
                (self.train_split, count, "count (--num-train)"),
                (self.test_split, heldout_count, "heldout_count (--num-heldout)"),
            )
        )
        if count is not None and seed is None and train.labels is not None:
            labels = self.train_split.labels[_of_classes(self.train_split, class_ids)]
            available, selected = len(np.unique(labels)), len(np.unique(train.labels))
            if selected < available <= count:
                _warn(
                    f"the first {count:,} training images of {self.name} are from {selected} of "
                    f"{available} classes; a seed (--subset-seed) selects them at random"
                )
        return dataclasses.replace(self, train_split=train, test_split=test)

    def _class_ids(self, classes: Sequence[str] | None) -> list[int] | None:
        if not classes:
            return None
        if unknown := [name for name in classes if name not in self.class_names]:
            known = ", ".join(self.class_names) or "none"
            raise ValueError(
                f"classes must be among those of {self.name} ({known}), got {unknown[0]!r}."
            )
        return [self.class_names.index(name) for name in classes]


def to_float(pixels: np.ndarray) -> np.ndarray:
    """Return uint8 pixels x as float32 x / 127.5 - 1, and float pixels unchanged."""
    if pixels.dtype != np.uint8:
        return pixels
    return pixels.astype(np.float32) / np.float32(127.5) - np.float32(1)


def count_duplicates(images: np.ndarray | Iterable[np.ndarray]) -> int:
    """Return how many images repeat an earlier one exactly.

    Args:
      images: [N, ...], or an iterable of blocks [n, ...].
    """
    digests = list(_digests(images))
    return len(digests) - len(set(digests))


def count_shared(
    images: np.ndarray | Iterable[np.ndarray], others: np.ndarray | Iterable[np.ndarray]
) -> int:
    """Return how many images are exact copies of one of `others`.

    Args:
      images: [N, ...], or an iterable of blocks [n, ...].
      others: [M, ...], or an iterable of blocks [n, ...].
    """
    known = set(_digests(others))
    return sum(digest in known for digest in _digests(images))


def _select(split, class_ids, count, seed, argument):
    positions = _of_classes(split, class_ids)
    if seed is not None and seed < 0:
        raise ValueError(f"seed must be 0 or more, got {seed}.")
    if seed is not None:
        positions = np.random.default_rng(seed).permutation(positions)
    if count is not None and not 1 <= count <= len(positions):
        raise ValueError(
            f"{argument} must be between 1 and {len(positions)}, the number of images, got {count}."
        )
    return split.take(positions[:count])


def _of_classes(split, class_ids):
    positions = np.arange(len(split))
    return positions if class_ids is None else positions[np.isin(split.labels, class_ids)]


def _digests(images):
    for block in [images] if isinstance(images, np.ndarray) else images:
        for image in block:
            yield hashlib.blake2b(np.ascontiguousarray(image), digest_size=16).digest()


def _checked_floats(pixels):
    if not np.isfinite(pixels).all():
        count = (~np.isfinite(pixels)).sum()
        raise ValueError(f"dataset must be finite, got {count} pixels that are NaN or infinite.")
    low, high = pixels.min(), pixels.max()
    if low < -1 or high > 1:
        raise ValueError(
            f"dataset must hold uint8 or floats in [-1, 1], got floats in [{low:g}, {high:g}]."
        )
    if low >= 0:
        _warn(
            "float pixels have no negative values; geomem expects [-1, 1] and does not rescale: "
            "for pixels x in [0, 1] pass 2 x - 1"
        )
    return pixels.astype(np.float32)


@functools.cache
def _warn(text):
    """Print a line to stderr, but only once, because splits read the same images repeatedly."""
    print(f"warning: {text}", file=sys.stderr)
