"""`load`: a data set by name or from a path."""

from __future__ import annotations

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
) -> Dataset:
    """Load a data set by name or from a path.

    Args:
      name: "cifar10_sample" (bundled: the first 1,000 training and test images of CIFAR-10),
        "cifar10" and "tfds:NAME" (through TFDS, which honours TFDS_DATA_DIR), "celeba_gray" (TFDS
        celeb_a, centre crop, gray, 32x32), "digits" (scikit-learn's 8x8 digits), or a path: a
        folder of PNG/JPEG images (subfolders are classes), an `.npy` or an `.npz` file that holds
        uint8 or float images [N, H, W] or [N, H, W, C]. 8-bit values become x / 127.5 - 1; floats
        must lie in [-1, 1] and are taken as they are.
      heldout: None: the source's own test images, or a fifth of it where there are none; a
        fraction in (0, 1) of the images, by `seed`; or the name or path of other images.
      resize: side length to which a folder's images are cropped (centre square) and resized; None
        where neither the images nor the held-out ones are a folder.
      seed: which images a held-out fraction takes.

    Returns:
      The Dataset, in the source's canonical order, not yet decoded.

    Raises:
      ValueError: no such data set, nothing to read, images of several sizes, unusable arrays, a
        resize of what is no folder.
    """
    if resize is not None and resize < 1:
        raise ValueError(f"resize: {resize}, wanted 1 or more")
    name = str(name)
    train, test, class_names = sources.open_source(name, resize)
    folder = any(sources.is_folder(path) for path in (name, heldout) if isinstance(path, str))
    if resize is not None and not folder:
        raise ValueError(f"resize: {resize}, wanted only for a folder of images")
    total = len(train)
    if isinstance(heldout, str):
        test = sources.open_source(heldout, resize)[0]
    elif heldout is not None or test is None:
        train, test = _split(train, _HELDOUT_FRACTION if heldout is None else heldout, seed)
    if len(train) < 2:
        raise ValueError(
            f"dataset: {name} leaves {len(train)} of {total} image(s) for training, "
            "wanted 2 or more"
        )
    return Dataset(name, train, test, class_names)


def _split(split, fraction, seed):
    if not 0 < fraction < 1:
        raise ValueError(f"heldout: {fraction}, wanted a fraction between 0 and 1, or a path")
    heldout = max(1, round(fraction * len(split)))
    order = np.random.default_rng(seed).permutation(len(split))
    return split.take(np.sort(order[heldout:])), split.take(np.sort(order[:heldout]))
