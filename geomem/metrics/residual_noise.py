"""Noise that a sampler left in its images, and what distances would be without it.

A sampler that ends early, or a network that denoises badly at some noise levels, returns
g = g0 + tau z, z standard normal. E||g - x||^2 = ||g0 - x||^2 + tau^2 d for every x: the noise adds
the same to all squared distances, and hides that g0 is a copy.

In an orthonormal basis the clean images' coordinates c_j have variances lambda_j that span many
orders of magnitude, the noise's are all tau^2. So each image's tau^2 is fitted in
E c_j^2 = a lambda_j + tau^2, together with its own contrast a, by maximum likelihood. The lambda_j
come from held-out images; from training images they would be too small for a new image and, where
there are fewer images than dimensions, zero. Of two bases the one that tells more about tau is
taken: the eigenvectors of half the held-out images (lambda from the other half), where that half
has d images or more, and the cosine basis over rows, columns and channels, which needs none.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from geomem.metrics.features import check_finite
from geomem.points.exact import inner_products
from geomem.points.visit import QUERIES, map_rows

if TYPE_CHECKING:
    from geomem.metrics.memorization import Memorization

__all__ = ["Spectrum", "fit_spectrum", "noise_removed_ratio", "residual_noise"]

_BANDS = 16
_STEPS = 60
_FLOOR = 1e-10  # variance; keeps the weights of pixels that never vary finite
_MARGIN = 4.0


class Spectrum(NamedTuple):
    """How clean images spread over the directions of a basis, in bands of like variance.

    Attributes:
      mean: float32 [H, W, C] or [d].
      basis: float32 [d, d], columns; None is the cosine basis.
      bands: float32 [d, G], averages squared coordinates into bands.
      variance: float64 [G], of clean images, per direction.
      count: int [G], directions in each band.
    """

    mean: jax.Array
    basis: jax.Array | None
    bands: jax.Array
    variance: np.ndarray
    count: np.ndarray


def fit_spectrum(heldout: jax.Array) -> Spectrum:
    """The spectrum of clean images [M, ...], M >= 4, which were not trained on.

    Raises:
      ValueError: fewer than four images, or values that are not finite.
    """
    if len(heldout) < 4:
        raise ValueError(f"heldout: {len(heldout)} images, wanted 4 or more")
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


def residual_noise(samples: jax.Array, heldout: jax.Array | Spectrum) -> np.ndarray:
    """The standard deviation tau of white noise in each sample, per pixel and channel.

    Args:
      samples: float [Q, ...], images.
      heldout: float [M, ...], clean images that were not trained on, or their `fit_spectrum`.
        Images in the shape [M, H, W, C] are needed for the cosine basis.

    Returns:
      float64 [Q], >= 0. Clean images get about 0; what is taken for noise is white noise, not
      whatever else is wrong with an image.

    Raises:
      ValueError: shapes that differ, fewer than four held-out images, or values that are not
        finite.
    """
    spectrum = heldout if isinstance(heldout, Spectrum) else fit_spectrum(heldout)
    if samples.shape[1:] != spectrum.mean.shape:
        raise ValueError(f"samples: shape {samples.shape}, wanted [Q, *{spectrum.mean.shape}]")
    check_finite(samples=samples)
    squares = np.float64(_band_energies(samples, spectrum.mean, spectrum.basis, spectrum.bands))
    variance, count = spectrum.variance, spectrum.count
    contrast, noise = np.ones(len(squares)), squares.min(axis=1)
    for _ in range(_STEPS):
        # Fisher scoring: least squares weighted by the inverse variance of each band's energy,
        # with both parts >= 0; half steps.
        weight = count / (np.outer(contrast, variance) + noise[:, None] + _FLOOR) ** 2
        aa, ab, bb = weight @ variance**2, weight @ variance, weight.sum(axis=1)
        a, b = (weight * squares) @ variance, (weight * squares).sum(axis=1)
        determinant = np.maximum(aa * bb - ab**2, np.finfo(float).tiny)
        new_contrast, new_noise = (bb * a - ab * b) / determinant, (aa * b - ab * a) / determinant
        new_contrast = np.where(new_noise < 0, a / aa, new_contrast)
        new_noise = np.where(new_contrast < 0, b / bb, np.maximum(new_noise, 0))
        contrast = (contrast + np.maximum(new_contrast, 0)) / 2
        noise = (noise + new_noise) / 2
    return np.sqrt(noise)


def noise_removed_ratio(found: Memorization, noise: np.ndarray, dim: int) -> np.ndarray:
    """d1 / d2 after the noise is taken out: sqrt((d1^2 - tau^2 d) / (d2^2 - tau^2 d)).

    Args:
      found: Memorization of the samples, of which `distance` [Q, 2] is used.
      noise: [Q], tau.
      dim: d, the number of pixels times channels.

    Returns:
      float64 [Q]: 0 where the noise explains all of d1. Where d2^2 - tau^2 d is not above four of
      its standard deviations, tau^2 sqrt(d) each, nothing is known of the image below the noise,
      and the plain ratio stays.
    """
    first, second = np.float64(found.distance).T ** 2
    added = np.float64(noise) ** 2 * dim
    rest = second - added
    known = rest > _MARGIN * added / np.sqrt(dim)
    removed = np.sqrt(np.maximum(first - added, 0) / np.where(known, rest, 1))
    return np.where(known, removed, found.ratio)


@jax.jit
def _eigenvectors(rows, mean):
    centred = (rows - mean).T
    return jnp.linalg.eigh(inner_products(centred, centred) / len(rows))[1]


@jax.jit
def _band_energies(images, mean, basis, bands):
    """Squared coordinates of the images less the mean, [Q, d], or averaged into bands, [Q, G]."""

    def block(images):
        centred = images - mean
        if basis is None:
            centred = jax.scipy.fft.dctn(centred, axes=(1, 2, 3), norm="ortho")
        coordinates = centred.reshape(len(centred), -1)
        if basis is not None:
            coordinates = inner_products(coordinates, basis.T)
        squares = coordinates**2
        return squares if bands is None else inner_products(squares, bands.T)

    return map_rows(block, (images,), QUERIES)
