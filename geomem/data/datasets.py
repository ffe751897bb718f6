"""Images by index, decoded on demand; every source returns its images in this form."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, TypeVar

import numpy as np
from jaxtyping import Float, Float32, Int, Shaped

from geomem import memory

if TYPE_CHECKING:
    from jax import Array

__all__ = [
    "Dataset",
    "Split",
    "count_duplicates",
    "count_shared",
    "finite_range",
    "to_float",
    "warn",
]

_KEPT = min(2**31, memory.limit() // 8)  # bytes; a smaller split stays in memory
LARGEST = 1e12  # of an array: float32 holds its square, summed over all coordinates
_DEVIATIONS = 1e-6, 1e9  # of latents and vectors
_BLOCK = 4096  # images of a larger split in memory at once

Pixels = TypeVar("Pixels", np.ndarray, "Array")
Blocks = Shaped[np.ndarray, "images ..."] | Iterable[Shaped[np.ndarray, "images ..."]]


@dataclasses.dataclass(frozen=True)
class Split:
    """Images by index, decoded on demand.

    Attributes:
      read: maps source indices to pixels, uint8 or float32 in [-1, 1].
      index: positions of the selected images in the source's canonical order.
      labels: class labels, or None if the source has none.
      argument: what errors call these images.
      is_images: whether these are images in [-1, 1], not latents or vectors of any scale.
    """

    read: Callable[[Int[np.ndarray, " read"]], Shaped[np.ndarray, "read height width channels"]]
    index: Int[np.ndarray, " images"]
    labels: Int[np.ndarray, " images"] | None = None
    argument: str = "dataset"
    is_images: bool = True

    def __len__(self) -> int:
        """Return the number of selected images."""
        return len(self.index)

    @functools.cached_property
    def pixels(self) -> Shaped[np.ndarray, "images height width channels"]:
        """The images as stored: uint8, or float32 in [-1, 1].

        Raises:
          ValueError: the images do not fit in memory, or a float image has values that are not
            finite or not in [-1, 1].
        """
        self._check_memory(self.at(slice(0, 1)).nbytes)
        pixels = np.ascontiguousarray(self.read(self.index))
        if pixels.dtype == np.uint8:
            return pixels
        low, high = finite_range(pixels, self.argument)
        if self.is_images and not -1 <= low <= high <= 1:
            raise ValueError(
                f"{self.argument} must hold uint8 or floats in [-1, 1], got floats in "
                f"[{low:g}, {high:g}]."
            )
        return pixels.astype(np.float32, copy=False)

    @functools.cached_property
    def images(self) -> Float32[np.ndarray, "images height width channels"]:
        """The images in [-1, 1].

        Raises:
          ValueError: as for `pixels`.
        """
        if self.pixels.dtype == np.uint8:
            self._check_memory(2 * self.pixels[:1].size * 4)  # NumPy scales a copy
        return to_float(self.pixels)

    @functools.cached_property
    def shape(self) -> tuple[int, ...]:
        """(N, H, W, C); reads only one image."""
        return len(self), *self.at(slice(0, 1)).shape[1:]

    def blocks(self) -> Iterator[Shaped[np.ndarray, "block height width channels"]]:
        """Yield the images as stored, in blocks; only one block of a large split is in memory."""
        if len(self) * self.at(slice(0, 1)).nbytes <= _KEPT:
            yield self.pixels
            return
        for start in range(0, len(self), _BLOCK):
            yield self.take(slice(start, start + _BLOCK)).pixels

    def at(
        self, positions: slice | Int[np.ndarray, " selected"]
    ) -> Shaped[np.ndarray, "selected height width channels"]:
        """Return the images at `positions`, as stored; they are read unless already in memory."""
        kept = "pixels" in vars(self)
        return self.pixels[positions] if kept else self.read(self.index[positions])

    def take(self, positions: slice | Int[np.ndarray, " selected"]) -> Split:
        """Return the split with the images at these positions in this split."""
        labels = None if self.labels is None else self.labels[positions]
        return dataclasses.replace(self, index=self.index[positions], labels=labels)

    def _check_memory(self, bytes_per_image):
        shape = "x".join(map(str, self.shape[1:]))
        memory.check(self.argument, len(self) * bytes_per_image, f"{len(self)} images of {shape}")

    def sha256(self) -> str:
        """Return the SHA-256 of the indices and of the images' shape, dtype and bytes."""
        digest = hashlib.sha256()
        for number, block in enumerate(self.blocks()):
            if number == 0:
                digest.update(f"{self.shape}{block.dtype.name}".encode())
                digest.update(self.index.astype("<i8").tobytes())
            digest.update(np.ascontiguousarray(block).data)
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
    def train(self) -> Float32[np.ndarray, "train height width channels"]:
        """Training images in [-1, 1]."""
        return self.train_split.images

    @property
    def is_images(self) -> bool:
        """Whether these are images in [-1, 1], not latents or vectors of any scale."""
        return self.train_split.is_images

    @functools.cached_property
    def noise_scale(self) -> float:
        """1 for images, otherwise the values' standard deviation relative to images' usual 0.5.

        Noise levels for images, times this, suit this data set.

        Raises:
          ValueError: float32 cannot tell the values apart, or hold their squared distances.
        """
        if self.is_images:
            return 1.0
        values = self.train_split.at(slice(0, _BLOCK))
        deviation, largest = float(np.std(values, dtype=np.float64)), float(np.abs(values).max())
        if not max(_DEVIATIONS[0], 1e-5 * largest) <= deviation <= _DEVIATIONS[1]:
            raise ValueError(
                f"{self.train_split.argument} must have a standard deviation from "
                f"{_DEVIATIONS[0]:g} to {_DEVIATIONS[1]:g}, and of at least 1e-05 of its largest "
                f"value, got {deviation:.3g} and {largest:.3g}; --scale multiplies all values."
            )
        return deviation / 0.5

    @property
    def test(self) -> Float32[np.ndarray, "heldout height width channels"]:
        """Held-out images in [-1, 1]."""
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
        for argument, value in (("count", count), ("heldout_count", heldout_count), ("seed", seed)):
            if value is not None and not isinstance(value, int | np.integer):
                raise ValueError(f"{argument} must be an integer, got {value!r}.")
        train = _select(self.train_split, class_ids, count, seed, "count (--num-train)")
        test = self.test_split
        name = "heldout_count (--num-heldout)"
        if len(test):
            test = _select(test, class_ids, heldout_count, seed, name)
        elif heldout_count is not None:
            raise ValueError(f"{name} must be left out without held-out images.")
        if count is not None and seed is None and train.labels is not None:
            available = len(_labels(self.train_split, class_ids))
            selected = len(np.unique(train.labels))
            if selected < available <= count:
                warn(
                    f"the first {count:,} training images of {self.name} are from {selected} of "
                    f"{available} classes; a seed (--subset-seed) selects them at random"
                )
        return dataclasses.replace(self, train_split=train, test_split=test)

    def _class_ids(self, classes: Sequence[str] | None) -> list[int] | None:
        if not classes:
            return None
        if isinstance(classes, str):
            raise ValueError(f"classes must be a list of names, got {classes!r}.")
        if unknown := [name for name in classes if name not in self.class_names]:
            known = ", ".join(self.class_names) or "none"
            raise ValueError(
                f"classes must be among those of {self.name} ({known}), got {unknown[0]!r}."
            )
        return [self.class_names.index(name) for name in classes]


def to_float(pixels: Shaped[Pixels, "*shape"]) -> Float[Pixels, "*shape"]:
    """Return uint8 pixels x as float32 x / 127.5 - 1, and float pixels unchanged."""
    if pixels.dtype != np.uint8:
        return pixels
    return pixels.astype(np.float32) / np.float32(127.5) - np.float32(1)


def count_duplicates(images: Blocks) -> int:
    """Return how many images repeat an earlier one exactly.

    Args:
      images: an array, or an iterable of such blocks.
    """
    digests = list(_digests(images))
    return len(digests) - len(set(digests))


def count_shared(images: Blocks, others: Blocks) -> int:
    """Return how many images occur among `others` too, exactly.

    Args:
      images, others: arrays, or iterables of such blocks.
    """
    known = set(_digests(others))
    return sum(digest in known for digest in _digests(images))


def _select(split, class_ids, count, seed, argument):
    positions = _of_classes(split, class_ids)
    if not len(positions):
        kind = "held-out" if argument.startswith("heldout") else "training"
        raise ValueError(f"classes must be among those of the {kind} images, got none of these.")
    if seed is not None and seed < 0:
        raise ValueError(f"seed must be 0 or more, got {seed}.")
    if seed is not None:
        positions = np.random.default_rng(seed).permutation(positions)
    if count is not None and not 1 <= count <= len(positions):
        raise ValueError(
            f"{argument} must be between 1 and {len(positions)}, the number of images, got {count}."
        )
    return split.take(positions[:count])


def _labels(split, class_ids):
    return np.unique(split.labels[_of_classes(split, class_ids)])


def _of_classes(split, class_ids):
    positions = np.arange(len(split))
    return positions if class_ids is None else positions[np.isin(split.labels, class_ids)]


def _digests(images):
    for block in [images] if isinstance(images, np.ndarray) else images:
        for image in block:
            yield hashlib.blake2b(np.ascontiguousarray(image).data, digest_size=16).digest()


def finite_range(values: Shaped[np.ndarray, "rows ..."], argument: str) -> tuple[float, float]:
    """Return the smallest and the largest value.

    Raises:
      ValueError: a value is NaN or larger than 1e12.
    """
    low, high = np.inf, -np.inf
    for start in range(0, len(values), _BLOCK):
        block = values[start : start + _BLOCK]
        least, most = float(block.min()), float(block.max())
        low, high = min(low, least), max(high, most)
        if not -LARGEST <= least <= most <= LARGEST:
            count = (~(np.abs(values.astype(np.float64)) <= LARGEST)).sum()
            raise ValueError(
                f"{argument} must be finite and at most {LARGEST:g}, got {count} values that are "
                "not."
            )
    return low, high


@functools.cache
def warn(text: str) -> None:
    """Print a warning to stderr, but only once, because splits read the same images repeatedly."""
    print(f"warning: {text}", file=sys.stderr)
