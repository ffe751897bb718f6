"""Copies of known images, changed in known ways: what a detector finds and what it misses.

A detector that reports no copies may be blind. So `plant` makes copies of the user's own training
images, and `recall` counts how many of them a detector assigns to the right image.
"""

from __future__ import annotations

import io
from collections.abc import Callable

import numpy as np
import scipy.ndimage
from jaxtyping import Bool, Float, Int

from geomem.metrics.intervals import Rate, rate

__all__ = ["LEAST_SIDE", "kinds", "plant", "recall"]

LEAST_SIDE = 3  # pixels of an image that can be cropped

Images = Float[np.ndarray, "images height width channels"]


def kinds(shape: tuple[int, ...]) -> dict[str, Callable[[np.random.Generator, Images], Images]]:
    """Return the changes for images of shape [H, W, C], by name.

    All but the last two are mild; the last two are larger than `geomem evaluate` searches for.
    """
    side, channels = min(shape[:2]), shape[2]
    small, crop, large = max(1, side // 32), max(1, round(3 * side / 32)), max(1, side // 5)
    changes = {
        "exact": lambda rng, x: x,
        "noise 0.05": lambda rng, x: _noise(rng, x, 0.05),
        "blur": lambda rng, x: _blur(x, 0.5),
        "JPEG 75": lambda rng, x: _jpeg(x, 75),
        f"shift {small}": lambda rng, x: _shift(rng, x, small),
        f"shift {2 * small}": lambda rng, x: _shift(rng, x, 2 * small),
        "flip": lambda rng, x: _flip(x),
        f"flip, shift {small}": lambda rng, x: _shift(rng, _flip(x), small),
        "brightness x1.3": lambda rng, x: _brighten(x, 1.3),
        f"crop {crop}, enlarged": lambda rng, x: _zoom(x, crop),
        "all, mild": lambda rng, x: _all(rng, x, small, channels in (1, 3)),
        "rotation by 10 degrees": lambda rng, x: _rotate(x, 10),
        f"crop {large}, enlarged": lambda rng, x: _zoom(x, large),
    }
    if channels not in (1, 3):
        del changes["JPEG 75"]
    return changes


def plant(kind: str, images: Images, seed: int = 0) -> Images:
    """Return changed copies of images in [-1, 1].

    Args:
      kind: a key of `kinds`.
      images: training images.
      seed: of the noise and of the directions of the shifts.

    Raises:
      ValueError: an unknown kind.
    """
    changes = kinds(images.shape[1:])
    if kind not in changes:
        raise ValueError(f"kind must be one of {', '.join(changes)}, got {kind!r}.")
    return np.asarray(changes[kind](np.random.default_rng(seed), np.asarray(images)), np.float32)


def recall(
    found: Bool[np.ndarray, " copies"],
    index: Int[np.ndarray, " copies"],
    source: Int[np.ndarray, " copies"],
    group: Int[np.ndarray, " images"],
) -> Rate:
    """Return the rate of planted copies that were found, and as copies of the right image.

    Args:
      found: whether the detector reports each copy.
      index: the training image that it names.
      source: the image that was copied.
      group: the training images' groups; another image of the group is right too.
    """
    return rate(found & (group[index] == group[source]))


def _flip(x):
    return np.flip(x, 2)


def _noise(rng, x, sigma):
    return x + sigma * rng.standard_normal(x.shape)


def _blur(x, sigma):
    return scipy.ndimage.gaussian_filter(x, (0, sigma, sigma, 0), mode="nearest")


def _shift(rng, x, pixels):
    """Move images in one of four directions; the border is repeated."""
    moved = []
    for image in x:
        axis, sign = rng.integers(2), rng.choice([-1, 1])
        shift = [0, 0, 0]
        shift[axis] = int(sign) * pixels
        moved.append(scipy.ndimage.shift(image, shift, order=0, mode="nearest"))
    return np.stack(moved)


def _brighten(x, factor):
    """Multiply intensities in [0, 1] and clip, as image editors do."""
    return np.clip((x + 1) * factor - 1, -1, 1)


def _rotate(x, degrees):
    return scipy.ndimage.rotate(x, degrees, (1, 2), reshape=False, order=1, mode="nearest")


def _to_uint8(x):
    return np.clip(np.rint((x + 1) * 127.5), 0, 255).astype(np.uint8)


def _jpeg(x, quality):
    from PIL import Image

    decoded = []
    for image in _to_uint8(x):
        file = io.BytesIO()
        Image.fromarray(image.squeeze(2) if image.shape[2] == 1 else image).save(
            file, "JPEG", quality=quality
        )
        decoded.append(np.asarray(Image.open(file)).reshape(image.shape))
    return np.stack(decoded) / 127.5 - 1


def _zoom(x, crop):
    """Cut off `crop` pixels at each border and enlarge (bicubic)."""
    from PIL import Image

    height, width = x.shape[1:3]
    box = crop, crop, width - crop, height - crop
    planes = np.moveaxis(x, 3, 1).reshape(-1, height, width).astype(np.float32)
    zoomed = [
        np.asarray(
            Image.fromarray(plane).crop(box).resize((width, height), Image.Resampling.BICUBIC)
        )
        for plane in planes
    ]
    return np.moveaxis(np.stack(zoomed).reshape(len(x), -1, height, width), 1, 3)


def _all(rng, x, pixels, jpeg):
    flipped = np.where((rng.random(len(x)) < 0.5)[:, None, None, None], _flip(x), x)
    x = _brighten(_shift(rng, _zoom(flipped, pixels), pixels), 1.1)
    x = _noise(rng, _blur(x, 0.4), 0.02)
    return _jpeg(x, 90) if jpeg else x
