"""Fourier bands: ranks, orthonormality and the spectra that they preserve."""

import numpy as np
import pytest

from geomem.geometry import frequency_bands


@pytest.mark.parametrize(("band", "rank"), [("low", 147), ("high", 2925)])
def test_bands_are_orthonormal_and_of_the_exact_rank(cifar, band, rank):
    subspace = frequency_bands.fourier_band(32, 32, 4, band)
    gram = np.float64(subspace.basis).T @ np.float64(subspace.basis)
    np.testing.assert_allclose(gram, np.eye(len(gram)), atol=1e-6)
    images = cifar[0][:8].reshape(-1, 32, 32, 3)
    coordinates = subspace.coordinates(images)
    assert coordinates.shape == (8, rank)

    spectrum = np.fft.fftshift(np.fft.fft2(images, axes=(1, 2)), axes=(1, 2))
    v, u = np.meshgrid(np.arange(-16, 16), np.arange(-16, 16))
    keep = (u**2 + v**2 <= 16) == (band == "low")
    kept = np.fft.ifft2(np.fft.ifftshift(spectrum * keep[..., None], axes=(1, 2)), axes=(1, 2))
    np.testing.assert_allclose(subspace.images(coordinates, (32, 32, 3)), kept.real, atol=1e-5)
    np.testing.assert_allclose(
        (np.float64(coordinates) ** 2).sum(axis=1), (kept.real**2).sum(axis=(1, 2, 3)), rtol=1e-4
    )


@pytest.mark.parametrize(("height", "width", "radius"), [(8, 8, 2.5), (7, 9, 3), (6, 5, 0)])
def test_two_bands_sum_to_the_image(rng, height, width, radius):
    images = rng.standard_normal((5, height, width, 2)).astype(np.float32)
    parts = []
    for band in ("low", "high"):
        subspace = frequency_bands.fourier_band(height, width, radius, band)
        parts.append(subspace.images(subspace.coordinates(images), images.shape[1:]))
    np.testing.assert_allclose(sum(parts), images, atol=1e-5)


def test_rejects_bad_bands():
    with pytest.raises(ValueError, match=r"band must be 'low' or 'high', got 'middle'\."):
        frequency_bands.fourier_band(8, 8, 2, "middle")
    with pytest.raises(
        ValueError, match=r"radius must leave a frequency in the high band, got 100\."
    ):
        frequency_bands.fourier_band(8, 8, 100, "high")
