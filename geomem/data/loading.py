"""Load a data set by name or from a path."""

from __future__ import annotations

import dataclasses
import numbers
import os

import numpy as np

from geomem.data import sources
from geomem.data.datasets import Dataset

__all__ = ["load"]

_HELDOUT_FRACTION = 0.2


def load(
    name: str = "cifar10_sample",
    *,
    heldout: str | float | None = None,
    resize: int | None = None,
    seed: int = 0,
    layout: str | None = None,
    value_range: tuple[float, float] | None = None,
    scale: float | None = None,
) -> Dataset:
    """Load a data set by name or from a path.

    Args:
      name: the path of a folder of PNG or JPEG images (subfolders are classes), or of an `.npy` or
        `.npz` file with images or latents [N, H, W] or [N, H, W, C] or vectors [N, d], in an `.npz`
        alone, as `images`, or as `train` and `test`; or one of these names:
        "cifar10_sample" (bundled: the first 1,000 training and test images of CIFAR-10),
        "digits" (bundled: scikit-learn's, 8x8), "cifar10" and "tfds:NAME" (TFDS, in TFDS_DATA_DIR),
        "celeba_gray" (TFDS celeb_a: center crop, gray, 32x32), "hf:PATH" (a Parquet file, a folder
        of them, or a folder written by the `datasets` package).
        uint8 values x become x / 127.5 - 1. Floats stay as they are: images if they are in
        [-1, 1], else latents or vectors.
      heldout: a fraction in (0, 1) of the images to hold out, or the name or path of other images.
        Default: the source's test images, or a fifth of its images if it has none. 0 holds out no
        training image: the held-out images are the source's test images, or none.
      resize: crop 8-bit images to their center square and resize them to this side.
      seed: selects the held-out fraction.
      layout: "NHWC" or "NCHW", the order of an array's axes; needed where it could be either.
      value_range: the values of an array that stand for black and white, such as (0, 1).
      scale: factor of an array's values, which makes them latents; 1 takes them as they are.

    Returns:
      The Dataset, in the source's canonical order, not yet decoded.

    Raises:
      ValueError: an unknown data set, no images, images of several sizes, invalid arrays, or
        options that do not apply.
    """
    if resize is not None and (not isinstance(resize, int | np.integer) or resize < 1):
        raise ValueError(f"resize must be 1 or more, an integer, got {resize!r}.")
    if not isinstance(name, str | os.PathLike):
        kind = type(name).__name__
        raise ValueError(f"dataset must be a name or a path, got {kind}; arrays need no loading.")
    if heldout is not None and not isinstance(heldout, str | os.PathLike | numbers.Real):
        raise ValueError(f"heldout must be a name, a path or a fraction, got {heldout!r}.")
    name = str(name)
    options = sources.ArrayOptions(layout, value_range, scale)
    train, test, class_names = sources.open_source(name, resize, options=options)
    names = [str(path) for path in (name, heldout) if isinstance(path, str | os.PathLike)]
    if any(options) and not any(map(sources.is_array, names)):
        raise ValueError(
            f"layout, range and scale must be left out unless arrays are read, got {name}."
        )
    total = len(train)
    if isinstance(heldout, str | os.PathLike):
        test, _, names = sources.open_source(str(heldout), resize, "heldout", options)
        test = _renamed(test, names, class_names)
    elif heldout == 0:
        test = train.take(slice(0, 0)) if test is None else test
    elif heldout is not None or test is None:
        train, test = _split(train, _HELDOUT_FRACTION if heldout is None else heldout, seed)
    if len(train) < 2:
        raise ValueError(
            f"dataset must leave at least 2 images for training, got {len(train)} of the {total} "
            f"in {name}."
        )
    return Dataset(name, train, test, class_names)


def _renamed(split, names, class_names):
    """The images with labels that are positions in `class_names`, -1 for all other classes."""
    if split.labels is None or names == class_names:
        return split
    places = [class_names.index(name) if name in class_names else -1 for name in names]
    return dataclasses.replace(split, labels=np.array(places)[split.labels])


def _split(split, fraction, seed):
    if seed < 0:
        raise ValueError(f"seed must be 0 or more, got {seed}.")
    if not 0 < fraction < 1:
        raise ValueError(f"heldout must be a fraction between 0 and 1 or a path, got {fraction}.")
    heldout = max(1, round(fraction * len(split)))
    order = np.random.default_rng(seed).permutation(len(split))
    return split.take(np.sort(order[heldout:])), split.take(np.sort(order[:heldout]))
