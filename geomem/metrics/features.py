"""Feature spaces for quality metrics; their names are reported with the results."""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
from jaxtyping import Array, Shaped

from geomem.data import to_float
from geomem.data.datasets import LARGEST

__all__ = ["PIXELS", "FeatureArray", "Features", "Images", "check_features", "check_finite"]

FeatureArray = Shaped[Array | np.ndarray, "_ features"]
Images = Shaped[np.ndarray, "images height width channels"]


class Features(NamedTuple):
    """A named function from images to features.

    Attributes:
      name: is printed and saved with every number computed from these features.
      extract: maps images (uint8, or float32 in [-1, 1]) to features.
      batch: maximum number of images per call.
    """

    name: str
    extract: Callable[[Images], Shaped[np.ndarray, "images features"]]
    batch: int = 256

    def batches(self, images: Images) -> Iterator[Shaped[np.ndarray, "batch features"]]:
        """Yield the features of `images` in batches of at most `batch` rows."""
        for start in range(0, len(images), self.batch):
            yield np.asarray(self.extract(images[start : start + self.batch]))

    def __call__(self, images: Images) -> Shaped[np.ndarray, "images features"]:
        """Return the features of `images`."""
        return np.concatenate(list(self.batches(images)))


def check_finite(**arrays: Shaped[Array | np.ndarray, "rows ..."]) -> None:
    """Raise a ValueError that names an array with NaN, infinite values or values beyond 1e12.

    Float32 cannot hold the sum of many larger squares.
    """
    for name, rows in arrays.items():
        if rows.dtype.kind in "biu" or not rows.size:
            continue
        axes = tuple(range(1, rows.ndim))
        low, high = (np.asarray(f(axes), np.float64) for f in (rows.min, rows.max))  # NaN stays
        size = np.maximum(-low, high)
        if bad := int((~np.isfinite(size)).sum()):
            raise ValueError(f"{name} must be finite, got NaN or inf in {bad} of {len(rows)} rows.")
        if size.max() > LARGEST:
            raise ValueError(f"{name} must be at most {LARGEST:g} in size, got {size.max():.3g}.")


def check_features(samples: FeatureArray, reference: FeatureArray) -> None:
    """Raise a ValueError if features differ in dimension or are not finite."""
    if samples.shape[1:] != reference.shape[1:]:
        raise ValueError(
            f"reference must have {samples.shape[1]} features like samples, "
            f"got shape {reference.shape}."
        )
    check_finite(samples=samples, reference=reference)


def _flattened(images):
    images = np.asarray(images)
    return to_float(images).reshape(len(images), -1)


PIXELS = Features("pixels", _flattened, batch=4096)
"""The pixels in [-1, 1], for images that no pretrained network suits."""
