"""What a denoiser does at each noise level: its error, its copies, what it tells of membership.

A denoiser is any function of (x [B, H, W, C], sigma [B]). With the same key every denoiser sees the
same noise, which depends on the image's place, the level's and the draw alone, not on the batch
size: differences between denoisers are paired. A `jax.tree_util.Partial`, as `EDMDenoiser.bind`
makes it, has its arrays passed as arguments; one compilation serves all noise levels and all
parameters.
"""

from __future__ import annotations

import itertools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial
from tqdm.auto import tqdm

from geomem.diffusion.sampler import Denoiser, as_pytree
from geomem.geometry.curves import bootstrap_mean, check_sigmas
from geomem.metrics import memorization

__all__ = [
    "AUC",
    "Errors",
    "Gap",
    "NoiseLevelMemorization",
    "denoising_error",
    "membership_auc",
    "noise_level_memorization",
    "relative_gap",
]

_CONFIDENCE = 0.95


class Errors(NamedTuple):
    """E||m(x + sigma z) - x||^2, summed over dimensions, over a grid of noise levels.

    Attributes:
      sigma: [S].
      mean: [S], over images and draws.
      low, high: [S], 95% bootstrap interval over images, each with all its draws.
      per_image: [S, M], mean over the draws.
    """

    sigma: np.ndarray
    mean: np.ndarray
    low: np.ndarray
    high: np.ndarray
    per_image: np.ndarray


class NoiseLevelMemorization(NamedTuple):
    """Which denoised images are copies of training images, over a grid of noise levels.

    Attributes:
      sigma: [S].
      rate: [S], memorized fraction.
      low, high: [S], exact (Clopper-Pearson) interval.
      memorized: bool [S, M].
      index: int [S, M], the nearest training image.
    """

    sigma: np.ndarray
    rate: np.ndarray
    low: np.ndarray
    high: np.ndarray
    memorized: np.ndarray
    index: np.ndarray


class AUC(NamedTuple):
    """Probability that a training image has the smaller error than a held-out one, ties half.

    Attributes:
      sigma: [S].
      auc: [S]; 1/2 says that the errors tell nothing of membership.
      low, high: [S], 95% interval.
    """

    sigma: np.ndarray
    auc: np.ndarray
    low: np.ndarray
    high: np.ndarray


class Gap(NamedTuple):
    """How far a denoiser a is from a denoiser b, over a grid of noise levels.

    Attributes:
      sigma: [S].
      relative: [S], sqrt(E||a - b||^2 / E||b - c||^2), c the images' mean: of what b says beyond c.
      low, high: [S], its 95% bootstrap interval over images.
      excess: [S], E||a - b||^2 / E||b - x||^2; where b is the optimal denoiser of `images`, the
        fraction by which a's error exceeds b's.
      distance: [S], E||a - b||^2, summed over dimensions.
    """

    sigma: np.ndarray
    relative: np.ndarray
    low: np.ndarray
    high: np.ndarray
    excess: np.ndarray
    distance: np.ndarray


def denoising_error(
    key: jax.Array,
    denoiser: Denoiser,
    images: jax.Array,
    sigmas: jax.Array,
    *,
    draws: int = 4,
    batch: int = 256,
    bootstrap: int = 1000,
    progress: bool = False,
) -> Errors:
    """E||m(x + sigma z) - x||^2 of a denoiser m on images x, at each noise level.

    Args:
      key: PRNG key; the same key is the same noise.
      denoiser: a function of (x, sigma).
      images: float32 [M, H, W, C].
      sigmas: [S], ascending, > 0.
      draws: noise draws for each image and level.
      batch: images denoised at once.
      bootstrap: resamplings of the images.
      progress: show a tqdm bar.

    Returns:
      Errors.

    Raises:
      ValueError: images that are not [M, H, W, C], an unusable sigma grid, draws or batch.

    Source: paper, eq. 5 and Fig. 1.
    """
    noise_key, bootstrap_key = jax.random.split(key)
    sigmas = check_sigmas(sigmas)
    measure = Partial(_error, as_pytree(denoiser))
    values = _sweep(noise_key, measure, images, sigmas, draws, batch, progress)
    per_image = values.mean(axis=1)
    found = bootstrap_mean(bootstrap_key, jnp.asarray(per_image.T), bootstrap)
    return Errors(*map(np.asarray, (sigmas, found.mean, found.low, found.high)), per_image)


def noise_level_memorization(
    key: jax.Array,
    denoiser: Denoiser,
    images: jax.Array,
    train: jax.Array,
    sigmas: jax.Array,
    *,
    threshold: float = 1 / 3,
    distinct: bool = True,
    batch: int = 256,
    progress: bool = False,
) -> NoiseLevelMemorization:
    """The fraction of noised and denoised images that are copies of training images, at each level.

    Args:
      key: PRNG key.
      denoiser: a function of (x, sigma).
      images: float32 [M, H, W, C], held-out images.
      train: float32 [N, H, W, C].
      sigmas: [S], ascending, > 0.
      threshold, distinct: as in `memorization.measure`.
      batch: images denoised at once.
      progress: show a tqdm bar.

    Returns:
      NoiseLevelMemorization, one noise draw for each image and level.

    Raises:
      ValueError: as in `denoising_error` and `memorization.measure`.

    Source: paper, Fig. 2.
    """
    noise_key, _ = jax.random.split(key)
    sigmas = check_sigmas(sigmas)
    measure = Partial(_denoised, as_pytree(denoiser))
    flags, index, rates = [], [], []
    for level in range(len(sigmas)):
        denoised = _sweep(noise_key, measure, images, sigmas, 1, batch, progress, (level,))[0, 0]
        found = memorization.measure(denoised, train, threshold=threshold, distinct=distinct)
        flags.append(found.memorized)
        index.append(found.index[:, 0])
        rates.append(memorization.rate(found.memorized, _CONFIDENCE)[2:])
    return NoiseLevelMemorization(
        np.asarray(sigmas), *np.transpose(rates), np.stack(flags), np.stack(index)
    )


def membership_auc(train_errors: Errors, heldout_errors: Errors) -> AUC:
    """How well one denoising error tells training from held-out images, at each noise level.

    The area under the ROC curve is the Mann-Whitney statistic, exact with ties counted half; its
    interval is Newcombe's score interval (2006, method 5), which does not collapse at 0 and 1.

    Args:
      train_errors, heldout_errors: `denoising_error` on both sets, from different keys.

    Returns:
      AUC.

    Raises:
      ValueError: different noise levels.
    """
    from scipy.stats import rankdata

    if not np.array_equal(train_errors.sigma, heldout_errors.sigma):
        raise ValueError("heldout_errors: other noise levels, wanted those of train_errors")
    members, others = np.float64(train_errors.per_image), np.float64(heldout_errors.per_image)
    m, n = members.shape[1], others.shape[1]
    ranks = rankdata(np.concatenate([members, others], axis=1), axis=1)
    auc = (ranks[:, m:].sum(axis=1) - n * (n + 1) / 2) / (m * n)
    low, high = np.transpose([_auc_interval(value, m, n) for value in auc])
    return AUC(train_errors.sigma, auc, low, high)


def relative_gap(
    key: jax.Array,
    denoiser_a: Denoiser,
    denoiser_b: Denoiser,
    images: jax.Array,
    sigmas: jax.Array,
    *,
    draws: int = 4,
    batch: int = 256,
    bootstrap: int = 1000,
    progress: bool = False,
) -> Gap:
    """The distance between two denoisers on the same noised images, relative to what b does.

    At large sigma every denoiser returns nearly the mean image c and has nearly the same error, so
    that a gap relative to the image or to the error vanishes whatever the denoisers are. `relative`
    does not: it compares their difference with b's own way from c.

    Args:
      key: PRNG key.
      denoiser_a, denoiser_b: functions of (x, sigma).
      images: float32 [M, H, W, C], the clean images.
      sigmas: [S], ascending, > 0.
      draws, batch, bootstrap, progress: as in `denoising_error`.

    Returns:
      Gap.

    Raises:
      ValueError: as in `denoising_error`.

    Source: paper, Theorems 4.9 and 4.10 (with a the learned or empirical, b the Gaussian denoiser).
    """
    noise_key, bootstrap_key = jax.random.split(key)
    sigmas = check_sigmas(sigmas)
    images = jnp.asarray(images)
    measure = Partial(_gap, as_pytree(denoiser_a), as_pytree(denoiser_b), images.mean(axis=0))
    values = _sweep(noise_key, measure, images, sigmas, draws, batch, progress).mean(axis=1)
    table = jnp.asarray(values.transpose(1, 2, 0).reshape(len(images), -1))  # [M, 3 S]
    found = bootstrap_mean(bootstrap_key, table, bootstrap)
    distance, signal, error = np.float64(found.mean).reshape(3, -1)
    apart, way, _ = np.float64(found.replicates).reshape(bootstrap, 3, -1).transpose(1, 0, 2)
    tail = (1 - _CONFIDENCE) / 2
    low, high = np.quantile(np.sqrt(apart / way), [tail, 1 - tail], axis=0)
    with np.errstate(divide="ignore"):  # the empirical denoiser's error is 0 at small sigma
        relative, excess = np.sqrt(distance / signal), distance / error
    return Gap(np.asarray(sigmas), relative, low, high, excess, distance)


def _error(denoiser, noised, clean, sigma):
    return _squared(denoiser(noised, sigma) - clean)


def _denoised(denoiser, noised, clean, sigma):
    return denoiser(noised, sigma)


def _gap(denoiser_a, denoiser_b, centre, noised, clean, sigma):
    a, b = denoiser_a(noised, sigma), denoiser_b(noised, sigma)
    return jnp.stack([_squared(a - b), _squared(b - centre), _squared(b - clean)], axis=1)


def _squared(difference):
    return jnp.sum(difference**2, axis=(1, 2, 3))


def _sweep(key, measure, images, sigmas, draws, batch, progress, levels=None):
    """`measure(noised, clean, sigma)` for all levels, draws and images: [S, K, M, ...]."""
    images = jnp.asarray(images)
    if images.ndim != 4 or len(images) < 1:
        raise ValueError(f"images: shape {images.shape}, wanted [M, H, W, C] with M >= 1")
    for name, value in (("draws", draws), ("batch", batch)):
        if value < 1:
            raise ValueError(f"{name}: {value}, wanted 1 or more")
    size = min(batch, len(images))
    levels = range(len(sigmas)) if levels is None else levels
    starts = range(0, len(images), size)
    steps = list(itertools.product(levels, range(draws), starts))
    values = []
    for level, draw, start in tqdm(steps, "denoise", disable=not progress, unit="batch"):
        # The last batch is filled up with the last image: one shape, one compilation.
        index = np.minimum(np.arange(start, start + size), len(images) - 1)
        values.append(_measure(measure, key, images, index, sigmas[level], level, draw))
        if len(values) > 2:  # let the device run ahead, but not far
            jax.block_until_ready(values[-3])
    values = np.stack([np.asarray(value) for value in values])
    values = values.reshape(len(levels), draws, len(starts) * size, *values.shape[2:])
    return values[:, :, : len(images)]


@jax.jit
def _measure(measure, key, images, index, sigma, level, draw):
    key = jax.random.fold_in(jax.random.fold_in(key, level), draw)
    keys = jax.vmap(jax.random.fold_in, (None, 0))(key, index)
    clean = images[index]
    noise = jax.vmap(lambda k: jax.random.normal(k, clean.shape[1:], clean.dtype))(keys)
    return measure(clean + sigma * noise, clean, jnp.full(len(clean), sigma, clean.dtype))


def _auc_interval(auc, m, n):
    """The values whose Hanley-McNeil variance puts `auc` within the normal quantile of them."""
    from scipy.optimize import brentq
    from scipy.stats import norm

    def beyond(value):
        spread = (1 - value) / (2 - value) + value / (1 + value)
        variance = value * (1 - value) * (1 + ((m + n) / 2 - 1) * spread) / (m * n)
        return abs(auc - value) - norm.ppf((1 + _CONFIDENCE) / 2) * np.sqrt(variance)

    # `auc` itself is a root where it is 0 or 1.
    low = brentq(beyond, 0, auc - 1e-9) if auc > 0 else 0.0
    high = brentq(beyond, auc + 1e-9, 1) if auc < 1 else 1.0
    return low, high
