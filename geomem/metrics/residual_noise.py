"""Estimate the noise that a sampler left in its images, and correct distances for it.

A sampler that stops early, or a network that denoises badly at some noise levels, returns
g = g0 + tau z with z standard normal. For every image x, E||g - x||^2 = ||g0 - x||^2 + tau^2 d: the
noise adds the same amount to all squared distances, which can hide that g0 is a copy.

In an orthonormal basis, the coordinates c_j of clean images have variances lambda_j that span many
orders of magnitude, whereas the noise has variance tau^2 in all of them. So tau^2 and the image's
contrast a are fitted to each image by maximum likelihood, in the model E c_j^2 = a lambda_j +
tau^2. The lambda_j are estimated from held-out images. From training images they would be too small
for a new image, or zero if there are fewer images than dimensions. `fit_spectrum` chooses the basis
with more information about tau: the eigenvectors of half the held-out images, with lambda from the
other half (if that half has at least d images), or the cosine basis over rows, columns and
channels.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from geomem.metrics.features import check_finite
from geomem.points.exact import QUERIES, inner_products, map_rows

__all__ = ["Spectrum", "fit_spectrum", "noise_removed_ratio", "residual_noise"]

_BANDS = 16
_STEPS = 60
_FLOOR = 1e-10  # variance; keeps the weights of constant pixels finite
_SINGULAR = 1e-12
_MARGIN = 4.0  # standard deviations


class Spectrum(NamedTuple):
    """Variances of clean images along the directions of a basis, in bands of similar variance.

    Attributes:
      mean: the mean image.
      basis: one direction per column; None means the cosine basis.
      bands: averages squared coordinates into bands.
      variance: variance of clean images per direction, in each band.
      count: number of directions in each band.
    """

    mean: Float[Array, "*shape"]
    basis: Float[Array, "dim dim"] | None
    bands: Float[Array, "dim bands"]
    variance: Float[np.ndarray, " bands"]
    count: Int[np.ndarray, " bands"]


def fit_spectrum(heldout: Float[Array | np.ndarray, "images ..."]) -> Spectrum:
    """Return the spectrum of clean images, which must be held-out images, not training images.

    Raises:
      ValueError: if there are fewer than four images or a value is not finite.
    """
    if len(heldout) < 4:
        raise ValueError(f"heldout must hold 4 or more images, got {len(heldout)}.")
    check_finite(heldout=heldout)
    first, second = heldout[::2], heldout[1::2]
    mean, dim = jnp.mean(first, axis=0), int(np.prod(heldout.shape[1:]))
    bases = [None] if heldout.ndim == 4 else []
    if not bases or len(first) >= dim:
        bases.append(_eigenvectors(first.reshape(len(first), -1), mean.reshape(-1)))
    candidates = []
    for basis in bases:
        variance = np.float64(_band_energies(second, mean, basis, None)).mean(axis=0)
        parts = np.array_split(np.argsort(variance), min(_BANDS, dim))
        bands = np.zeros((dim, len(parts)), np.float32)
        for band, part in enumerate(parts):
            bands[part, band] = 1 / len(part)
        count = np.array([len(part) for part in parts])
        candidates.append(Spectrum(mean, basis, jnp.asarray(bands), variance @ bands, count))
    # Fisher information about tau^2 at tau = 0.
    return max(candidates, key=lambda s: np.sum(s.count / (s.variance + _FLOOR) ** 2))


def residual_noise(
    samples: Float[Array | np.ndarray, "samples ..."],
    heldout: Float[Array | np.ndarray, "images ..."] | Spectrum,
) -> Float[np.ndarray, " samples"]:
    """Estimate the standard deviation tau of white noise in each sample, per pixel and channel.

    Args:
      samples: images.
      heldout: four or more clean images that were not trained on, or their `fit_spectrum`. The
        cosine basis needs images of shape [H, W, C].

    Returns:
      tau >= 0; about 0 for clean images. It measures white noise only, not other defects.

    Raises:
      ValueError: if shapes differ, there are fewer than four held-out images, or a value is not
        finite.
    """
    spectrum = heldout if isinstance(heldout, Spectrum) else fit_spectrum(heldout)
    if samples.shape[1:] != spectrum.mean.shape:
        raise ValueError(
            f"samples must be images of shape {spectrum.mean.shape} like heldout, "
            f"got {samples.shape[1:]}."
        )
    check_finite(samples=samples)
    energies = _band_energies(samples, spectrum.mean, spectrum.basis, spectrum.bands)
    squares = np.asarray(energies, np.float64)
    variance, count = spectrum.variance, spectrum.count
    contrast, noise = np.ones(len(squares)), squares.min(axis=1)
    for _ in range(_STEPS):
        # Fisher scoring with half steps: least squares weighted by the inverse variance of each
        # band's energy, both parameters >= 0.
        weight = count / (np.outer(contrast, variance) + noise[:, None] + _FLOOR) ** 2
        aa, ab, bb = weight @ variance**2, weight @ variance, weight.sum(axis=1)
        a, b = (weight * squares) @ variance, (weight * squares).sum(axis=1)
        determinant = aa * bb - ab**2
        same = determinant <= _SINGULAR * aa * bb  # bands that are all alike: no noise can be told
        determinant = np.where(same, 1, determinant)
        new_contrast = np.where(same, a / aa, (bb * a - ab * b) / determinant)
        new_noise = np.where(same, 0, (aa * b - ab * a) / determinant)
        new_contrast = np.where(new_noise < 0, a / aa, new_contrast)
        new_noise = np.where(new_contrast < 0, b / bb, np.maximum(new_noise, 0))
        contrast = (contrast + np.maximum(new_contrast, 0)) / 2
        noise = (noise + new_noise) / 2
    return np.sqrt(noise)


def noise_removed_ratio(
    distance: Float[np.ndarray, "samples 2"], noise: Float[np.ndarray, " samples"], dim: int
) -> Float[np.ndarray, " samples"]:
    """Return d1 / d2 without the noise: sqrt((d1^2 - tau^2 d) / (d2^2 - tau^2 d)).

    Args:
      distance: d1 and d2 of each sample; d2 outside the group of the first if near-duplicates
        count as one image (`memorization.measure`).
      noise: tau of each sample.
      dim: d, pixels times channels.

    Returns:
      The ratio; 0 if the noise explains all of d1. If d2^2 - tau^2 d is below four times
      tau^2 sqrt(d), its standard deviation, the noise hides the image and the ratio is d1 / d2.
    """
    squares = np.asarray(distance, np.float64) ** 2
    added = np.asarray(noise, np.float64) ** 2 * dim
    known = squares[:, 1] - added > _MARGIN * added / np.sqrt(dim)
    first, second = (squares - np.where(known, added, 0)[:, None]).clip(0).T
    return np.sqrt(np.divide(first, second, out=np.ones_like(first), where=second > 0))


@jax.jit
def _eigenvectors(rows, mean):
    centered = (rows - mean).T
    return jnp.linalg.eigh(inner_products(centered, centered) / len(rows))[1]


@jax.jit
def _band_energies(images, mean, basis, bands):
    """Squared coordinates of images minus the mean, [Q, d], or their band averages, [Q, G]."""

    def block(images):
        centered = images - mean
        if basis is None:
            centered = jax.scipy.fft.dctn(centered, axes=(1, 2, 3), norm="ortho")
        coordinates = centered.reshape(len(centered), -1)
        if basis is not None:
            coordinates = inner_products(coordinates, basis.T)
        squares = coordinates**2
        return squares if bands is None else inner_products(squares, bands.T)

    return map_rows(block, (images,), QUERIES)
