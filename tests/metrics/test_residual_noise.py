"""Noise planted in clean images is found, and copies below it, and nothing where there is none."""

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


def test_the_better_basis_is_chosen(images):
    train, _, spectrum = images
    assert (spectrum.basis is None) == (train.shape[1] == 32)  # 897 digits fill 64 dimensions
    assert spectrum.count.sum() == train[0].size


@pytest.mark.parametrize("tau", [0, 0.03, 0.1, 0.3])
def test_planted_noise_is_found_in_copies_and_in_new_images(images, rng, tau):
    train, heldout, spectrum = images
    for clean in (train, heldout):
        noised = clean + np.float32(tau) * rng.standard_normal(clean.shape, np.float32)
        found = residual_noise.residual_noise(noised, spectrum)
        assert np.median(found) == pytest.approx(tau, rel=0.15, abs=1e-3)
        low, high = np.quantile(found, [0.1, 0.9])
        assert (low, high) == pytest.approx((tau, tau), rel=0.45, abs=0.01)


def test_copies_are_found_below_the_noise_and_false_positives_stay_away(images, rng):
    train, heldout, spectrum = images
    rates = []
    for tau in (0.1, 0.2, 1.0):
        for clean in (train, heldout):
            noised = clean + np.float32(tau) * rng.standard_normal(clean.shape, np.float32)
            found = memorization.measure(noised, train)
            noise = residual_noise.residual_noise(noised, spectrum)
            ratio = residual_noise.noise_removed_ratio(found, noise, clean[0].size)
            rates.append((found.memorized.mean(), (ratio < 1 / 3).mean()))
    (_, low_noise), low_control, (raw, removed), control, _, drowned = rates
    assert low_noise > 0.97
    assert raw < 0.05
    assert removed > 0.65  # all of them on CIFAR-10; in 64 dimensions the noise is not averaged out
    assert max(low_control + control + drowned) < 0.01


def test_the_noise_adds_to_the_squared_distances():
    found = memorization.Memorization(np.float64([[3, 5], [1, 5], [3, 4]]), None, np.ones(3), None)
    ratio = residual_noise.noise_removed_ratio(found, np.float64([0.2, 0.2, 0.39]), 100)
    assert ratio[0] == pytest.approx(np.sqrt((9 - 4) / (25 - 4)))
    assert ratio[1] == 0  # all of d1
    assert ratio[2] == 1  # d2 too is hardly above the noise: the plain ratio stays


def test_a_spectrum_wants_four_images_and_samples_of_its_shape():
    with pytest.raises(ValueError, match="heldout: 3 images, wanted 4 or more"):
        residual_noise.fit_spectrum(np.zeros((3, 8, 8, 1), "f"))
    spectrum = residual_noise.fit_spectrum(np.ones((4, 8, 8, 1), "f"))
    with pytest.raises(ValueError, match="samples: shape"):
        residual_noise.residual_noise(np.ones((4, 8, 8, 3), "f"), spectrum)


def test_values_that_are_not_finite_are_named():
    images = np.ones((4, 8, 8, 1), "f")
    spectrum = residual_noise.fit_spectrum(images)
    images[1, 2, 3] = np.nan
    with pytest.raises(ValueError, match="heldout: 1 of 4 are not finite, wanted finite values"):
        residual_noise.fit_spectrum(images)
    with pytest.raises(ValueError, match="samples: 1 of 4 are not finite"):
        residual_noise.residual_noise(images, spectrum)
