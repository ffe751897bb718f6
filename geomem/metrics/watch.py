"""Watch a training for copies: a few numbers about a denoiser, to be compared between checkpoints.

Two baselines need no threshold of their own, because held-out images are new images:

- memorized fraction: how many samples, and how many held-out images, have d1 < d2 / 3. Copying has
  started once the two exact intervals no longer overlap.
- ratios of training to held-out images: of the distance to the nearest training image (a new image
  keeps as far from the training images as held-out images do), and of the denoising error.

Source of the distance ratio: the two samples that Meehan et al. 2020 (arXiv 2004.05675) compare.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import jax
import numpy as np
from jaxtyping import Array, Float

from geomem.diffusion import grids, sampler
from geomem.diffusion.sampler import Denoiser
from geomem.metrics import denoising, kernel_distance, memorization
from geomem.metrics.features import PIXELS, Features
from geomem.metrics.intervals import Rate, rate

__all__ = ["Observation", "Ratio", "observe", "ratio"]

_SHELL_C = 5.0  # the paper's c
_QUANTILE = 1.96  # of the normal distribution, for 95%

Images = Float[Array | np.ndarray, "images height width channels"]


class Ratio(NamedTuple):
    """A ratio of two means and its 95% interval over the images of both."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.2f} [{self.low:.2f}, {self.high:.2f}]"


class Observation(NamedTuple):
    """What a denoiser does with training images and with held-out images.

    Attributes:
      memorized, memorized_heldout: Rate of d1 < d2 / 3 of samples, and of held-out images.
      heldout_ratio: mean distance of samples to the nearest training image, divided by that of
        held-out images. It is near 1 before copying starts, and falls toward 0. Blur lowers it too.
      levels: noise levels of `denoising_gap`.
      denoising_gap: 1 - (error on training images / error on held-out images) at each level; 0 if
        the denoiser treats both alike.
      quality: kernel distance of the samples from held-out images; lower is better.
      features: the features of `quality`.
    """

    memorized: Rate
    memorized_heldout: Rate
    heldout_ratio: Ratio
    levels: tuple[float, ...]
    denoising_gap: tuple[Ratio, ...]
    quality: kernel_distance.KernelDistance
    features: str

    @property
    def copying(self) -> bool:
        """Whether more samples than held-out images are memorized: the intervals do not overlap."""
        return self.memorized.low > self.memorized_heldout.high

    def metrics(self) -> dict[str, float]:
        """Return the numbers by name, for a log or TensorBoard."""
        gaps = zip(self.levels, self.denoising_gap, strict=True)
        return {
            "watch/memorized": self.memorized.rate,
            "watch/memorized_low": self.memorized.low,
            "watch/memorized_heldout": self.memorized_heldout.rate,
            "watch/memorized_heldout_high": self.memorized_heldout.high,
            "watch/heldout_ratio": self.heldout_ratio.value,
            **{f"watch/denoising_gap_{level:.3g}": gap.value for level, gap in gaps},
            f"watch/kernel_distance_{self.features}": self.quality.value,
        }

    def __str__(self) -> str:
        gaps = ", ".join(f"{gap.value:.0%}" for gap in self.denoising_gap)
        levels = ", ".join(f"{level:.2g}" for level in self.levels)
        return (
            f"memorized {self.memorized.rate:.1%} (held-out {self.memorized_heldout.rate:.1%}), "
            f"held-out ratio {self.heldout_ratio.value:.2f}, denoising gap {gaps} at {levels}, "
            f"kernel distance {self.quality.value:.3g}"
        )


def observe(
    denoiser: Denoiser | None,
    train: Images,
    heldout: Images,
    *,
    samples: Images | None = None,
    count: int = 256,
    sigmas: Float[np.ndarray, " levels"] | None = None,
    levels: tuple[float, ...] | None = None,
    features: Features = PIXELS,
    seed: int = 0,
) -> Observation:
    """Sample a denoiser, and compare what it does with training images and with held-out images.

    The same arguments give the same noise, so checkpoints are compared on equal terms.

    Args:
      denoiser: a function of (x, sigma), e.g. from `adapters.adapt`; with None, only the given
        samples are compared and there is no denoising gap.
      train: two or more training images, all of them: copies of images that are missing here are
        not seen.
      heldout: two or more images of the same distribution that are not trained on.
      samples: images from the denoiser; default: `count` images from Heun's sampler.
      count: number of samples, and of training and held-out images to denoise.
      sigmas: the sampling grid; default: EDM's 18 steps, in units of the data's scale.
      levels: ascending noise levels of the denoising gap; default: an estimate of the danger zone
        (its edges and its middle) from the distance of held-out images to the training images.
      features: of the quality measure.
      seed: of the samples and of the noise.

    Raises:
      ValueError: neither a denoiser nor samples, held-out images that are all training images, or
        as in `memorization.measure`.
    """
    train, heldout = (np.asarray(images, np.float32) for images in (train, heldout))
    new = memorization.measure(heldout, train)
    if not new.distance[:, 0].any():
        raise ValueError("heldout must hold images that are not in train, got only such images.")
    if samples is None:
        if denoiser is None:
            raise ValueError("samples must be given without a denoiser, got None.")
        scale = 2 * float(train.std())  # 1 for images in [-1, 1] of a usual contrast
        grid = grids.edm_grid(18, 0.002 * scale, 80 * scale) if sigmas is None else sigmas
        samples = sampler.generate(denoiser, range(seed, seed + count), train.shape[1:], grid)
    samples = np.asarray(samples, np.float32)
    ours = memorization.measure(samples, train)
    if denoiser is None:
        levels, gaps = (), ()
    else:
        levels = tuple(levels or _levels(new.distance[:, 0], train))
        gaps = _denoising_gaps(denoiser, train[:count], heldout[:count], levels, seed)
    return Observation(
        memorized=rate(ours.memorized),
        memorized_heldout=rate(new.memorized),
        heldout_ratio=ratio(ours.distance[:, 0], new.distance[:, 0]),
        levels=levels,
        denoising_gap=gaps,
        quality=kernel_distance.kernel_distance(features(samples), features(heldout), seed=seed),
        features=features.name,
    )


def ratio(first: Float[np.ndarray, " _"], second: Float[np.ndarray, " _"]) -> Ratio:
    """Return mean(first) / mean(second) and its 95% interval, for independent positive values.

    The logarithm of the ratio is taken as normal; its variance is the sum of the squared relative
    standard errors of the means (delta method).
    """
    first, second = (np.asarray(values, np.float64) for values in (first, second))
    value = float(first.mean() / second.mean())
    if value == 0:
        return Ratio(0.0, 0.0, 0.0)
    variance = sum(v.var(ddof=1) / len(v) / v.mean() ** 2 for v in (first, second))
    factor = math.exp(_QUANTILE * math.sqrt(variance))
    return Ratio(value, value / factor, value * factor)


def _levels(distance, train):
    """An estimate of the danger zone's edges, and their geometric mean.

    With r the typical distance to the nearest training image, noise of r / sqrt(2 sqrt(c d)) moves
    a new image onto a training image's shell (coverage rises), and noise of r / sqrt(2 ln N) lets
    the posterior spread (max weight falls).
    """
    typical, dim = float(np.median(distance)), int(np.prod(train.shape[1:]))
    spreads = math.sqrt(_SHELL_C * dim), math.log(len(train))
    low, high = sorted(typical / math.sqrt(2 * spread) for spread in spreads)
    return low, math.sqrt(low * high), high


def _denoising_gaps(denoiser, train, heldout, levels, seed):
    errors = [
        denoising.denoising_error(
            jax.random.fold_in(jax.random.key(seed), split), denoiser, images, levels, draws=1
        ).per_image
        for split, images in enumerate((train, heldout))
    ]
    gaps = [ratio(*pair) for pair in zip(*errors, strict=True)]
    return tuple(Ratio(1 - gap.value, 1 - gap.high, 1 - gap.low) for gap in gaps)
