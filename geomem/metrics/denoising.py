"""Evaluate denoisers at each noise level: their error, their copies, and membership inference.

A denoiser is any function of (x [B, H, W, C], sigma [B]). With the same key, every denoiser sees
the same noise, which depends only on the image's index, the level's index and the draw, not on the
batch size. So comparisons of denoisers are paired. The arrays of a `jax.tree_util.Partial`, for
example from `EDMDenoiser.bind`, are passed as arguments, so one compiled program works for all
noise levels and all parameters.
"""

import itertools
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float, Int, Key
from tqdm import tqdm

from geomem.diffusion.sampler import Denoiser, as_pytree
from geomem.geometry.curves import bootstrap_mean, check_sigmas
from geomem.metrics import intervals, memorization

__all__ = [
    "Agreement",
    "Errors",
    "NoiseLevelMemorization",
    "RelativeGap",
    "agreement",
    "denoise",
    "denoising_error",
    "noise_level_memorization",
    "relative_gap",
]

_CONFIDENCE = 0.95

Images = Float[Array | np.ndarray, "images height width channels"]
Levels = Float[ArrayLike, " levels"]  # ascending, positive
PerLevel = Float[np.ndarray, " levels"]


class Errors(NamedTuple):
    """The denoising error E||m(x + sigma z) - x||^2, summed over dimensions, at each noise level.

    Attributes:
      mean: mean over images and draws.
      low, high: 95% bootstrap interval over images (each with all its draws).
      per_image: mean over the draws of each image.
    """

    sigma: PerLevel
    mean: PerLevel
    low: PerLevel
    high: PerLevel
    per_image: Float[np.ndarray, "levels images"]


class NoiseLevelMemorization(NamedTuple):
    """Which denoised images are copies of training images at each noise level.

    Attributes:
      rate: memorized fraction, with d2 outside the group of the nearest training image.
      low, high: exact 95% (Clopper-Pearson) interval.
      strict, strict_low, strict_high: the same by the paper's definition, in which duplicates are
        images of their own.
      memorized, strict_memorized: whether each image is memorized, by either definition.
      index: the training image nearest to each image.
    """

    sigma: PerLevel
    rate: PerLevel
    low: PerLevel
    high: PerLevel
    strict: PerLevel
    strict_low: PerLevel
    strict_high: PerLevel
    memorized: Bool[np.ndarray, "levels images"]
    strict_memorized: Bool[np.ndarray, "levels images"]
    index: Int[np.ndarray, "levels images"]


class RelativeGap(NamedTuple):
    """The distance between two denoisers a and b at each noise level.

    Attributes:
      relative: sqrt(E||a - b||^2 / E||b - c||^2), where c is the mean image.
      low, high: 95% bootstrap interval of `relative` over images.
      excess: E||a - b||^2 / E||b - x||^2; if b is the optimal denoiser of `images`, this is the
        fraction by which the error of a exceeds that of b.
      distance: E||a - b||^2, summed over dimensions.
    """

    sigma: PerLevel
    relative: PerLevel
    low: PerLevel
    high: PerLevel
    excess: PerLevel
    distance: PerLevel


class Agreement(NamedTuple):
    """How well one denoiser's output predicts another's at each noise level.

    Attributes:
      r2: 1 - sum ||a - b||^2 / sum ||b - mean(b)||^2 over images; 1 if a equals b, 0 if it predicts
        no better than the mean output, and negative if it predicts worse.
      low, high: 95% bootstrap interval over images; too short for few: in a simulation it covered
        94% with 128 images and 87% with 32.
    """

    r2: PerLevel
    low: PerLevel
    high: PerLevel


def denoise(
    key: Key[Array, ""],
    denoiser: Denoiser,
    images: Images,
    sigmas: Levels,
    *,
    levels: Sequence[int] | None = None,
    batch: int = 256,
    progress: bool = False,
) -> Float[np.ndarray, "levels images height width channels"]:
    """Return the images, noised once at each level and denoised.

    Args:
      key, denoiser, images, sigmas, batch, progress: as in `denoising_error`.
      levels: positions in `sigmas` to return, each with the noise that it has among all of them;
        default: all.

    Raises:
      ValueError: as in `denoising_error`.
    """
    measure = Partial(_denoised, as_pytree(denoiser))
    return _sweep(key, measure, images, check_sigmas(sigmas), 1, batch, progress, levels)[:, 0]


def agreement(
    key: Key[Array, ""],
    outputs: Float[np.ndarray, "levels images *rest"],
    target: Float[np.ndarray, "levels images *rest"],
    bootstrap: int = 1000,
) -> Agreement:
    """Return how well the outputs of one denoiser predict those of another, on the same noise.

    Args:
      key: PRNG key of the bootstrap.
      outputs, target: from `denoise` with the same key, images and noise levels.
      bootstrap: number of resamples of the images.
    """
    rows = (*np.shape(target)[:2], -1)
    a, b = (np.float64(values).reshape(rows) for values in (outputs, target))
    parts = ((a - b) ** 2).sum(2), ((b - b.mean(axis=1, keepdims=True)) ** 2).sum(2)
    table = np.concatenate(parts).T  # [M, 2 S]
    replicates = np.float64(bootstrap_mean(key, table, bootstrap).replicates)
    below, above = replicates.reshape(bootstrap, 2, -1).swapaxes(0, 1)
    tail = (1 - _CONFIDENCE) / 2
    low, high = np.quantile(1 - below / above, [tail, 1 - tail], axis=0)
    return Agreement(1 - parts[0].sum(1) / parts[1].sum(1), low, high)


def denoising_error(
    key: Key[Array, ""],
    denoiser: Denoiser,
    images: Images,
    sigmas: Levels,
    *,
    draws: int = 4,
    batch: int = 256,
    bootstrap: int = 1000,
    progress: bool = False,
) -> Errors:
    """Estimate E||m(x + sigma z) - x||^2 of a denoiser m on images x, at each noise level.

    Args:
      key: PRNG key; the same key gives the same noise.
      denoiser: a function of (x, sigma).
      images: the clean images x.
      sigmas: ascending, positive noise levels.
      draws: noise draws per image and level.
      batch: images denoised at once.
      bootstrap: number of resamples of the images.
      progress: whether to show a progress bar.

    Raises:
      ValueError: if `images`, `sigmas`, `draws` or `batch` is invalid.

    Source: paper, eq. 5 and Fig. 1.
    """
    noise_key, bootstrap_key = jax.random.split(key)
    sigmas = check_sigmas(sigmas)
    measure = Partial(_error, as_pytree(denoiser))
    per_image = _sweep(noise_key, measure, images, sigmas, draws, batch, progress).mean(axis=1)
    error = bootstrap_mean(bootstrap_key, per_image.T, bootstrap)
    return Errors(sigmas, error.mean, error.low, error.high, per_image)


def noise_level_memorization(
    key: Key[Array, ""],
    denoiser: Denoiser,
    images: Images,
    train: Images,
    sigmas: Levels,
    *,
    threshold: float = 1 / 3,
    group: Int[np.ndarray, " images"] | None = None,
    batch: int = 256,
    progress: bool = False,
) -> NoiseLevelMemorization:
    """Return the fraction of images that noising and denoising turn into copies of training images.

    Each image is noised once at each level.

    Args:
      key, denoiser, sigmas, batch, progress: as in `denoising_error`.
      images: held-out images.
      train: training images.
      threshold, group: as in `memorization.measure`.

    Raises:
      ValueError: as in `denoising_error` and `memorization.measure`.

    Source: paper, Fig. 2.
    """
    noise_key, _ = jax.random.split(key)
    sigmas = check_sigmas(sigmas)
    measure = Partial(_denoised, as_pytree(denoiser))
    images = jnp.asarray(images)  # sent to the device once
    flags, strict, nearest = [], [], []
    for level in range(len(sigmas)):
        denoised = _sweep(noise_key, measure, images, sigmas, 1, batch, progress, (level,))[0, 0]
        result = memorization.measure(denoised, train, threshold=threshold, group=group)
        literal = memorization.measure(denoised, train, threshold=threshold, distinct=False)
        flags.append(result.memorized)
        strict.append(literal.memorized)
        nearest.append(result.index[:, 0])
    grouped, paper = (
        np.transpose([intervals.rate(row, _CONFIDENCE)[2:] for row in rows])
        for rows in (flags, strict)
    )
    return NoiseLevelMemorization(
        sigma=sigmas,
        rate=grouped[0],
        low=grouped[1],
        high=grouped[2],
        strict=paper[0],
        strict_low=paper[1],
        strict_high=paper[2],
        memorized=np.stack(flags),
        strict_memorized=np.stack(strict),
        index=np.stack(nearest),
    )


def relative_gap(
    key: Key[Array, ""],
    denoiser_a: Denoiser,
    denoiser_b: Denoiser,
    images: Images,
    sigmas: Levels,
    *,
    draws: int = 4,
    batch: int = 256,
    bootstrap: int = 1000,
    progress: bool = False,
) -> RelativeGap:
    """Return the distance between two denoisers a and b on the same noised images.

    At large sigma, every denoiser returns nearly the mean image c, with nearly the same error. So
    the distance between any two denoisers vanishes relative to the image or to the error.
    `relative` does not vanish, because it is relative to the distance between b and c.

    The other arguments and the errors are those of `denoising_error`.

    Source: paper, Theorems 4.9 and 4.10 (a is the learned or empirical denoiser, b the Gaussian).
    """
    noise_key, bootstrap_key = jax.random.split(key)
    sigmas = check_sigmas(sigmas)
    images = jnp.asarray(images)
    measure = Partial(_gap, as_pytree(denoiser_a), as_pytree(denoiser_b), images.mean(axis=0))
    values = _sweep(noise_key, measure, images, sigmas, draws, batch, progress).mean(axis=1)
    table = values.transpose(1, 2, 0).reshape(len(images), -1)  # [M, 3 S]
    means = bootstrap_mean(bootstrap_key, table, bootstrap)
    distance, signal, error = means.mean.astype(np.float64).reshape(3, -1)
    replicates = means.replicates.astype(np.float64).reshape(bootstrap, 3, -1)
    tail = (1 - _CONFIDENCE) / 2
    ratios = np.sqrt(replicates[:, 0] / replicates[:, 1])
    low, high = np.quantile(ratios, [tail, 1 - tail], axis=0)
    with np.errstate(divide="ignore"):  # the empirical denoiser's error is 0 at small sigma
        relative, excess = np.sqrt(distance / signal), distance / error
    return RelativeGap(sigmas, relative, low, high, excess, distance)


def _error(denoiser, noised, clean, sigma):
    return _squared(denoiser(noised, sigma) - clean)


def _denoised(denoiser, noised, clean, sigma):
    return denoiser(noised, sigma)


def _gap(denoiser_a, denoiser_b, mean, noised, clean, sigma):
    a, b = denoiser_a(noised, sigma), denoiser_b(noised, sigma)
    return jnp.stack([_squared(a - b), _squared(b - mean), _squared(b - clean)], axis=1)


def _squared(difference):
    return jnp.sum(difference**2, axis=(1, 2, 3))


def _sweep(key, measure, images, sigmas, draws, batch, progress, levels=None):
    """`measure(noised, clean, sigma)` for all levels, draws and images, [S, K, M, ...]."""
    images = jnp.asarray(images)
    if images.ndim != 4 or len(images) < 1:
        raise ValueError(f"images must have shape [M, H, W, C] with M >= 1, got {images.shape}.")
    for name, value in (("draws", draws), ("batch", batch)):
        if value < 1:
            raise ValueError(f"{name} must be 1 or more, got {value}.")
    size = min(batch, len(images))
    levels = range(len(sigmas)) if levels is None else levels
    starts = range(0, len(images), size)
    steps = list(itertools.product(levels, range(draws), starts))
    values = []
    for level, draw, start in tqdm(steps, "denoise", disable=not progress, unit="batch"):
        # Pad the last batch to the same shape, so that it compiles only once.
        index = np.minimum(np.arange(start, start + size), len(images) - 1)
        values.append(_measure(measure, key, images, index, sigmas[level], level, draw))
        if len(values) > 2:  # let the device run at most two batches ahead
            jax.block_until_ready(values[-3])
    values = np.stack([np.asarray(value) for value in values])
    values = values.reshape(len(levels), draws, len(starts) * size, *values.shape[2:])
    return values[:, :, : len(images)]


@jax.jit
def _measure(measure, key, images, index, sigma, level, draw):
    key = jax.random.fold_in(jax.random.fold_in(key, level), draw)
    keys = jax.vmap(jax.random.fold_in, (None, 0))(key, index)
    clean = images[index]
    # Drawn flat: the same numbers, quicker to compile.
    noise = jax.vmap(lambda k: jax.random.normal(k, (clean[0].size,), clean.dtype))(keys)
    noise = noise.reshape(clean.shape)
    return measure(clean + sigma * noise, clean, jnp.full(len(clean), sigma, clean.dtype))
