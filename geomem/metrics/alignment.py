"""The distance of a sample to a training image, whatever was done to the copy: the definition.

`squared_distances` flips the sample, undoes a crop that was enlarged again, shifts it, adapts its
brightness and contrast, and compares the pixels where it overlaps the training image:

    d^2(y, x) = min_t min_(a, b)  n / n_t  sum_(p in overlap)  (a y_t(p) + b - x(p))^2.

y_t is the transformed sample, n the number of values of an image and n_t that of the overlap, so
the distance compares with the plain one. Without `gain`, a = 1 and b = 0. With it, a is in
[1 / gain, gain] and b is free; the minimum over both has a closed form. `metrics.aligned` searches
a training set with this distance.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

__all__ = ["Alignment", "Transform", "overlap", "shrink", "squared_distances"]

Images = Float[Array | np.ndarray, "images height width channels"]


class Transform(NamedTuple):
    """What turns a training image into its copy.

    Attributes:
      flip: mirrored left to right.
      crop: pixels cut off at each border before the image was enlarged to its old size.
      down, right: position of the sample's content in the training image, relative to its own.
    """

    flip: bool
    crop: int
    down: int
    right: int

    def __str__(self) -> str:
        """Return for example "flip, shift +1 -2, crop 3"; "none" for the identity."""
        shift = f"shift {self.down:+d} {self.right:+d}" if self.down or self.right else ""
        parts = ["flip" * self.flip, shift, f"crop {self.crop}" if self.crop else ""]
        return ", ".join(filter(None, parts)) or "none"


@dataclasses.dataclass(frozen=True)
class Alignment:
    """Which transforms to search.

    Attributes:
      flip: whether to search mirror images.
      shift: largest shift in pixels, in each direction.
      crop: largest number of pixels cut off at each border of an image that was enlarged again.
      gain: largest factor of the contrast, and 1 / gain the smallest; 1: brightness as it is.
    """

    flip: bool = True
    shift: int = 2
    crop: int = 0
    gain: float = 1.0

    def __post_init__(self):
        """Check the values."""
        if min(self.shift, self.crop) < 0:
            name = "shift" if self.shift < 0 else "crop"
            raise ValueError(f"{name} must be 0 or more, got {getattr(self, name)}.")
        if not 1 <= self.gain < np.inf:
            raise ValueError(f"gain must be 1 or more, got {self.gain:g}.")

    @classmethod
    def wide(cls, side: int) -> Alignment | None:
        """Return the transforms that `geomem evaluate` searches for images of 8 to 63 pixels.

        These are flips, shifts of 2 pixels, crops of 3 / 32 of the side and changes of brightness
        and contrast; for sides below 16, shifts of a pixel, and no crops. None for smaller images.
        """
        if side < 8:
            return None
        crop = round(3 * side / 32) if side >= 16 else 0
        return cls(shift=2 if side >= 16 else 1, crop=crop, gain=2.0)

    def transforms(self) -> list[Transform]:
        """Return the transforms in the order of preference between equally distant ones."""
        steps = range(-self.shift, self.shift + 1)
        every = itertools.product(range(1 + self.flip), range(self.crop + 1), steps, steps)
        found = [Transform(bool(flip), *rest) for flip, *rest in every]
        return sorted(found, key=lambda t: (t.flip, t.crop, abs(t.down) + abs(t.right)))


def squared_distances(
    samples: Images, images: Images, transform: Transform, gain: float = 1.0
) -> Float[np.ndarray, " images"]:
    """Return the squared distances of pairs under one transform: the definition, in float64.

    Args:
      samples, images: pairs [P, H, W, C].
      transform: applied to the samples.
      gain: as in `Alignment`.
    """
    flip, crop, down, right = transform
    x, y = np.asarray(images, np.float64), np.asarray(samples, np.float64)
    count, height, width, channels = x.shape
    y = np.flip(y, 2) if flip else y
    if crop:
        y = np.einsum("ah,nhwc->nawc", shrink(height, crop), y)
        y = np.einsum("bw,nawc->nabc", shrink(width, crop), y)
    # Rows of x that y covers, if its first row lies on row crop + down of x.
    rows, columns = overlap(height, crop, down), overlap(width, crop, right)
    x = x[:, slice(*rows), slice(*columns)].reshape(count, -1)
    y = y[
        :,
        rows[0] - crop - down : rows[1] - crop - down,
        columns[0] - crop - right : columns[1] - crop - right,
    ].reshape(count, -1)
    if gain > 1:
        x, y = x - x.mean(axis=1, keepdims=True), y - y.mean(axis=1, keepdims=True)
        norm, product = (y**2).sum(axis=1), (x * y).sum(axis=1)
        a = np.divide(product, norm, out=np.ones(count), where=norm > 0).clip(1 / gain, gain)
        y = a[:, None] * y
    return ((y - x) ** 2).sum(axis=1) * (height * width * channels / x.shape[1])


@functools.cache
def shrink(side: int, crop: int) -> Float[np.ndarray, "small side"]:
    """Return the matrix that undoes the enlargement of side - 2 crop pixels to `side` pixels.

    It is the least-squares inverse of cubic interpolation.
    """
    enlarge = jax.image.resize(jnp.eye(side - 2 * crop), (side, side - 2 * crop), "cubic")
    return np.linalg.pinv(np.asarray(enlarge, np.float64))


def overlap(side: int, crop: int, shift: int) -> tuple[int, int]:
    """Return which rows or columns of the training image the transformed sample covers."""
    start = crop + shift
    return max(0, start), min(side, start + side - 2 * crop)
