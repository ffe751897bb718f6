"""Features of images: what a quality metric sees, by a name that its results carry."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np

from geomem.data import to_float

__all__ = ["PIXELS", "Features", "check_finite"]


class Features(NamedTuple):
    """A named function of images.

    Attributes:
      name: printed and saved with every number made from these features.
      extract: images [B, H, W, C], uint8 or float32 in [-1, 1], -> features [B, d].
      batch: images at once.
    """

    name: str
    extract: Callable[[np.ndarray], np.ndarray]
    batch: int = 256

    def batches(self, images: np.ndarray) -> Iterator[np.ndarray]:
        """The features of `images` [N, H, W, C], as arrays [B, d] of at most `batch` rows."""
        for start in range(0, len(images), self.batch):
            yield np.asarray(self.extract(images[start : start + self.batch]))

    def __call__(self, images: np.ndarray) -> np.ndarray:
        """The features [N, d] of `images` [N, H, W, C]."""
        return np.concatenate(list(self.batches(images)))


def check_finite(**arrays: np.ndarray) -> None:
    """Refuse arrays [N, ...] of which a row has NaN or infinite values, by their argument's name.

    Raises:
      ValueError: how many rows of which array.
    """
    for name, rows in arrays.items():
        if rows.dtype.kind in "biu":
            continue
        with np.errstate(invalid="ignore", over="ignore"):
            sums = rows.sum(axis=tuple(range(1, rows.ndim)), dtype=np.float32)
        if bad := int((~np.isfinite(sums)).sum()):
            raise ValueError(f"{name}: {bad} of {len(rows)} are not finite, wanted finite values")


def _flattened(images):
    images = np.asarray(images)
    return to_float(images).reshape(len(images), -1)


PIXELS = Features("pixels", _flattened, batch=4096)
"""The pixels themselves, in [-1, 1]: for images that no pretrained network knows."""
