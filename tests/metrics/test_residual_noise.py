"""Planted noise is estimated, copies below it are found, and clean images have none."""

import numpy as np
import pytest

from geomem import data
from geomem.metrics import memorization, residual_noise


@pytest.fixture(scope="module", params=["digits", "cifar10_sample"])
def images(request):
    """(training images, held-out images, spectrum of other held-out images)."""
    dataset = data.load(request.param)
    heldout = dataset.test
    return dataset.train[:200], heldout[-200:], residual_noise.fit_spectrum(heldout[:-200])


def test_chooses_the_better_basis(images):
    train, _, spectrum = images
    assert (spectrum.basis is None) == (train.shape[1] == 32)  # 897 digits fill 64 dimensions
    assert spectrum.count.sum() == train[0].size


@pytest.mark.parametrize("tau", [0, 0.03, 0.1, 0.3])
def test_estimates_planted_noise_in_copies_and_new_images(images, rng, tau):
    train, heldout, spectrum = images
    for clean in (train, heldout):
        noised = clean + np.float32(tau) * rng.standard_normal(clean.shape, np.float32)
        noise = residual_noise.residual_noise(noised, spectrum)
        assert np.median(noise) == pytest.approx(tau, rel=0.15, abs=1e-3)
        low, high = np.quantile(noise, [0.1, 0.9])
        assert (low, high) == pytest.approx((tau, tau), rel=0.45, abs=0.01)


def test_detects_copies_below_the_noise_without_false_positives(images, rng):
    train, heldout, spectrum = images
    rates = []
    for tau in (0.1, 0.2, 1.0):
        for clean in (train, heldout):
            noised = clean + np.float32(tau) * rng.standard_normal(clean.shape, np.float32)
            result = memorization.measure(noised, train)
            noise = residual_noise.residual_noise(noised, spectrum)
            ratio = residual_noise.noise_removed_ratio(result.distance, noise, clean[0].size)
            rates.append((result.memorized.mean(), (ratio < 1 / 3).mean()))
    (_, low_noise), low_control, (raw, removed), control, _, drowned = rates
    assert low_noise > 0.97
    assert raw < 0.05
    assert removed > 0.65  # all on CIFAR-10; 64 dimensions do not average the noise out
    assert max(low_control + control + drowned) < 0.01


def test_noise_adds_to_squared_distances():
    distance = np.float64([[3, 5], [1, 5], [3, 4], [0, 0]])
    ratio = residual_noise.noise_removed_ratio(distance, np.float64([0.2, 0.2, 0.39, 0]), 100)
    assert ratio[0] == pytest.approx(np.sqrt((9 - 4) / (25 - 4)))
    assert ratio[1] == 0  # the noise explains all of d1
    assert ratio[2] == 3 / 4  # d2 is barely above the noise, too: the plain ratio
    assert ratio[3] == 1


def test_rejects_too_few_images_and_bad_shapes():
    with pytest.raises(ValueError, match="heldout must hold 4 or more images, got 3"):
        residual_noise.fit_spectrum(np.zeros((3, 8, 8, 1), "f"))
    spectrum = residual_noise.fit_spectrum(np.ones((4, 8, 8, 1), "f"))
    with pytest.raises(
        ValueError,
        match=r"samples must be .*\(8, 8, 1\) like heldout, got \(8, 8, 3\)",
    ):
        residual_noise.residual_noise(np.ones((4, 8, 8, 3), "f"), spectrum)


def test_rejects_nonfinite_values():
    images = np.ones((4, 8, 8, 1), "f")
    spectrum = residual_noise.fit_spectrum(images)
    images[1, 2, 3] = np.nan
    with pytest.raises(ValueError, match="heldout must be finite, got NaN or inf in 1 of 4"):
        residual_noise.fit_spectrum(images)
    with pytest.raises(ValueError, match="samples must be finite, got NaN or inf in 1 of 4"):
        residual_noise.residual_noise(images, spectrum)


def test_one_coordinate_tells_no_noise(rng):
    """Noise and contrast change its variance alike."""
    vectors = rng.normal(size=(40, 1)).astype(np.float32)
    np.testing.assert_allclose(residual_noise.residual_noise(vectors, vectors), 0, atol=1e-6)
