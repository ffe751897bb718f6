"""Images by index: what every source gives, and what every run selects from."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np

__all__ = ["Dataset", "Split", "count_duplicates", "count_shared", "to_float"]

_KEPT = 2**31  # bytes of pixels that a split keeps in memory
_BLOCK = 4096  # images of a larger split in memory at once


@dataclasses.dataclass(frozen=True)
class Split:
    """Images by index, decoded on demand.

    Attributes:
      read: maps an int64 array of source indices [n] to pixels [n, H, W, C], uint8, or float32 in
        [-1, 1].
      index: int64 [N], the selected images' positions in the source's canonical order.
      labels: int64 [N] class labels, or None where the source has none.
    """

    read: Callable[[np.ndarray], np.ndarray]
    index: np.ndarray
    labels: np.ndarray | None = None

    def __len__(self) -> int:
        """The number of selected images."""
        return len(self.index)

    @functools.cached_property
    def pixels(self) -> np.ndarray:
        """The images as stored, [N, H, W, C]: uint8, or float32 in [-1, 1].

        Raises:
          ValueError: a float image has a value that is not finite or not in [-1, 1].
        """
        pixels = np.ascontiguousarray(self.read(self.index))
        return pixels if pixels.dtype == np.uint8 else _checked_floats(pixels)

    @functools.cached_property
    def images(self) -> np.ndarray:
        """The images, float32 [N, H, W, C] in [-1, 1]."""
        return to_float(self.pixels)

    @functools.cached_property
    def shape(self) -> tuple[int, ...]:
        """(N, H, W, C), of which one image is read."""
        return len(self), *self.at(slice(0, 1)).shape[1:]

    def blocks(self) -> Iterator[np.ndarray]:
        """The images as stored, a block at a time; of a large split only that is in memory."""
        if len(self) * self.at(slice(0, 1)).nbytes <= _KEPT:
            yield self.pixels
            return
        for start in range(0, len(self), _BLOCK):
            yield self.take(slice(start, start + _BLOCK)).pixels

    def at(self, positions: slice | np.ndarray) -> np.ndarray:
        """The images at `positions`, as stored; read anew unless all of them are in memory."""
        kept = "pixels" in vars(self)
        return self.pixels[positions] if kept else self.read(self.index[positions])

    def take(self, positions: np.ndarray) -> Split:
        """The split that holds only the images at `positions` (int [n], into this split)."""
        labels = None if self.labels is None else self.labels[positions]
        return Split(self.read, self.index[positions], labels)

    def sha256(self) -> str:
        """SHA-256 of the selected indices and of the images' shape, dtype and bytes."""
        digest = hashlib.sha256()
        for number, block in enumerate(self.blocks()):
            if number == 0:
                digest.update(f"{self.shape}{block.dtype.name}".encode())
                digest.update(self.index.astype("<i8").tobytes())
            digest.update(np.ascontiguousarray(block))
        return digest.hexdigest()


@dataclasses.dataclass(frozen=True)
class Dataset:
    """Training images, and held-out images of the same distribution.

    Attributes:
      name: what it was loaded from.
      train_split, test_split: the selections, with indices and labels.
      class_names: the names of the labels, empty where there are none.
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
        """Select images; for one `seed` and `classes`, a smaller count is a prefix of a larger.

        Where the first `count` training images have none of some class, as those of a folder with
        subfolders, one line on stderr says so.

        Args:
          classes: keep only these class names (training and held-out).
          count: number of training images, default all.
          heldout_count: number of held-out images, default all.
          seed: None keeps the source's canonical order; an int >= 0 shuffles by that seed first.

        Returns:
          The smaller Dataset.

        Raises:
          ValueError: an unknown class, a negative seed, a count that is not in 1..available.
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
            there, taken = len(np.unique(labels)), len(np.unique(train.labels))
            if taken < there <= count:
                _warn(
                    f"the first {count:,} training images of {self.name} are of {taken} of {there} "
                    "classes; a seed (--subset-seed) takes them at random"
                )
        return dataclasses.replace(self, train_split=train, test_split=test)

    def _class_ids(self, classes: Sequence[str] | None) -> list[int] | None:
        if not classes:
            return None
        if unknown := [name for name in classes if name not in self.class_names]:
            known = ", ".join(self.class_names) or "none"
            raise ValueError(
                f"classes: {unknown[0]!r} is not a class of {self.name} (has: {known})"
            )
        return [self.class_names.index(name) for name in classes]


def to_float(pixels: np.ndarray) -> np.ndarray:
    """uint8 pixels as float32 x / 127.5 - 1; float32 pixels, already in [-1, 1], unchanged."""
    if pixels.dtype != np.uint8:
        return pixels
    return pixels.astype(np.float32) / np.float32(127.5) - np.float32(1)


def count_duplicates(images: np.ndarray | Iterable[np.ndarray]) -> int:
    """The number of images [N, ...], or of all those in blocks, that repeat an earlier one."""
    digests = list(_digests(images))
    return len(digests) - len(set(digests))


def count_shared(
    images: np.ndarray | Iterable[np.ndarray], others: np.ndarray | Iterable[np.ndarray]
) -> int:
    """The number of images [N, ...] that also occur among `others` [M, ...], exactly."""
    known = set(_digests(others))
    return sum(digest in known for digest in _digests(images))


def _select(split, class_ids, count, seed, argument):
    positions = _of_classes(split, class_ids)
    if seed is not None and seed < 0:
        raise ValueError(f"seed: {seed}, wanted 0 or more")
    if seed is not None:
        positions = np.random.default_rng(seed).permutation(positions)
    if count is not None and not 1 <= count <= len(positions):
        raise ValueError(
            f"{argument}: {count}, wanted 1 to {len(positions)} (the images there are)"
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
        raise ValueError(f"dataset: {(~np.isfinite(pixels)).sum()} pixel(s) are NaN or infinite")
    low, high = pixels.min(), pixels.max()
    if low < -1 or high > 1:
        raise ValueError(
            f"dataset: float pixels span [{low:g}, {high:g}], wanted [-1, 1] (or uint8)"
        )
    if low >= 0:
        _warn(
            "float pixels span [0, 1]? geomem's range is [-1, 1], and nothing was rescaled: if so, "
            "pass 2 x - 1"
        )
    return pixels.astype(np.float32)


@functools.cache
def _warn(text):
    """One line on stderr, once: splits of the same images are read again and again."""
    print(f"warning: {text}", file=sys.stderr)
