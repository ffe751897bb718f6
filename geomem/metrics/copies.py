"""The verdict on each sample: is it a copy, and of which training image?

Detectors measure d1 / d2 in different ways: between pixels, between aligned pixels, or between
features. A sample is a copy if any of these ratios is below the threshold.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple, cast

import numpy as np
from jaxtyping import Array, Bool, Float, Int

from geomem.metrics import aligned, saturated
from geomem.metrics.aligned import Aligned
from geomem.metrics.alignment import Alignment
from geomem.metrics.memorization import Memorization

__all__ = ["PROVED", "Copies", "align", "judge"]

PROVED = 0.6  # ratios of aligned distances below it are exact
_SIDE = 32  # images of at least twice this side are reduced before they are aligned

Images = Float[Array | np.ndarray, "images height width channels"]


class Copies(NamedTuple):
    """The training image that each sample most likely copies.

    Attributes:
      copy: whether a ratio is below its threshold.
      strength: the least ratio / threshold of all detectors; below 1 for copies.
      nearest: position in the training set, by the detector of this least value.
      distance: d1 of that detector.
      transform: what was done to the copy, such as "flip, shift +1 -2", or "none".
    """

    copy: Bool[np.ndarray, " samples"]
    strength: Float[np.ndarray, " samples"]
    nearest: Int[np.ndarray, " samples"]
    distance: Float[np.ndarray, " samples"]
    transform: list[str]


def align(
    samples: Images,
    train: Images,
    group: Int[np.ndarray, " images"] | None = None,
    threshold: float = 0.5,
) -> tuple[Aligned, Alignment] | tuple[None, None]:
    """Return the aligned neighbors of samples and the transforms, or Nones for tiny images.

    The transforms are `Alignment.wide`; `saturated.refine` looks at bright copies again. Larger
    images are first averaged to a side of 32 to 63 pixels, so a pixel of the shifts and crops is a
    fixed part of the image; distances are scaled back to full resolution.

    Args:
      samples, train, group: as in `aligned.nearest`.
      threshold: ratios below it, and below PROVED, are exact.
    """
    factor = max(1, min(train.shape[1:3]) // _SIDE)
    samples, train = (_reduced(np.asarray(images), factor) for images in (samples, train))
    alignment = Alignment.wide(min(train.shape[1:3]))
    if alignment is None:
        return None, None
    exact = max(PROVED, threshold)
    found = aligned.nearest(samples, train, alignment, group=group, exact_below=exact)
    own = np.arange(len(train)) if group is None else group
    found = saturated.refine(found, samples, train, alignment, own, threshold)
    return found._replace(distance=found.distance * factor), alignment


def judge(
    detectors: Mapping[str, Memorization | Aligned],
    thresholds: Mapping[str, float],
    alignment: Alignment | None = None,
) -> Copies:
    """Combine detectors, in the order of preference between equal ones.

    Args:
      detectors: neighbors by the name of the detector: "pixels", "aligned" and others.
      thresholds: of the ratio d1 / d2 of each detector.
      alignment: the transforms of "aligned".
    """
    strengths = np.stack([found.ratio / thresholds[name] for name, found in detectors.items()])
    best, rows = strengths.argmin(axis=0), np.arange(strengths.shape[1])
    nearest, distance = (
        np.stack([getattr(found, field)[:, 0] for found in detectors.values()])[best, rows]
        for field in ("index", "distance")
    )
    strength = strengths.min(axis=0)
    copies = np.asarray(strength < 1)
    transform = ["none"] * len(rows)
    if alignment is not None:
        place, found = list(detectors).index("aligned"), cast(Aligned, detectors["aligned"])
        names = [str(t) for t in alignment.transforms()]
        for i in np.flatnonzero(best == place):
            # Only a change of brightness hides an unmoved copy from the pixels.
            unmoved = "brightness" if copies[i] and strengths[0, i] >= 1 else "none"
            transform[i] = names[found.transform[i, 0]].replace("none", unmoved)
    return Copies(copies, strength, nearest, distance, transform)


def _reduced(images, factor):
    """Means of factor x factor pixels; rows and columns beyond a multiple are cut off."""
    if factor == 1:
        return images
    count, height, width, channels = images.shape
    height, width = height // factor, width // factor
    images = images[:, : height * factor, : width * factor]
    split = images.reshape(count, height, factor, width, factor, channels)
    return split.mean(axis=(2, 4), dtype=np.float32)
