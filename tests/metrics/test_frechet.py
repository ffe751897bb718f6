"""Frechet distance against scipy's matrix root, closed forms, and identities."""

import numpy as np
import pytest
import scipy.linalg

from geomem.metrics import frechet
from geomem.metrics.features import PIXELS, Features


def random_moments(rng, dim, scale=1.0):
    root = scale * rng.standard_normal((dim, dim))
    return frechet.Moments(rng.standard_normal(dim), root @ root.T, 100)


def by_sqrtm(a, b):
    root = scipy.linalg.sqrtm(a.covariance @ b.covariance).real
    return np.sum((a.mean - b.mean) ** 2) + np.trace(a.covariance + b.covariance - 2 * root)


@pytest.mark.parametrize("dim", [1, 7, 40])
def test_distance_matches_sqrtm_formula(rng, dim):
    for scale in (0.1, 1.0, 10.0):
        a, b = random_moments(rng, dim), random_moments(rng, dim, scale)
        assert frechet.distance(a, b) == pytest.approx(by_sqrtm(a, b), rel=1e-9)
        assert frechet.distance(b, a) == pytest.approx(frechet.distance(a, b), rel=1e-12)


def test_distance_of_commuting_covariances(rng):
    """In a common basis: sum of (m_a - m_b)^2 + (s_a - s_b)^2, with some zero variances."""
    basis = np.linalg.qr(rng.standard_normal((12, 12)))[0]
    scales = rng.uniform(0, 3, (2, 12))
    scales[0, :5] = scales[1, 3:8] = 0
    means = rng.standard_normal((2, 12))
    a, b = (
        frechet.Moments(m, basis @ np.diag(s**2) @ basis.T, 9)
        for m, s in zip(means, scales, strict=True)
    )
    expected = np.sum((means[0] - means[1]) ** 2) + np.sum((scales[0] - scales[1]) ** 2)
    assert frechet.distance(a, b) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("count", [20, 500])  # fewer and more samples than dimensions
def test_distance_of_a_set_from_itself_is_zero(rng, count):
    features = 50 + rng.standard_normal((count, 64)) * np.geomspace(1e-6, 1e2, 64)
    a = frechet.statistics(features)
    for b in (a, frechet.statistics(features[::-1])):
        assert 0 <= frechet.distance(a, b) < 1e-11 * np.trace(a.covariance)


def test_distance_converges_to_that_of_the_distributions(rng):
    """Two normal distributions at a known distance, 200,000 draws from each."""
    scales, shift = np.array([1.0, 2.0, 0.5]), np.array([1.0, 0.0, -2.0])
    a = frechet.statistics(rng.standard_normal((200_000, 3)))
    b = frechet.statistics(shift + scales * rng.standard_normal((200_000, 3)))
    assert frechet.distance(a, b) == pytest.approx(5 + 1 + 0.25, rel=0.01)


def test_statistics_match_numpy(rng, monkeypatch):
    monkeypatch.setattr(frechet, "_CHUNK", 9 * 37)
    features = np.float32(1000 + rng.standard_normal((101, 9)))  # far from 0: float32 would fail
    mean, covariance = np.float64(features).mean(axis=0), np.cov(np.float64(features).T)
    cuts = [features[:1], features[1:2], features[2:60], features[60:]]
    merged = frechet.merge(frechet.statistics(features[:40]), frechet.statistics(features[40:]))
    for moments in (frechet.statistics(features), frechet.statistics(iter(cuts)), merged):
        assert moments.count == 101
        assert moments.mean.dtype == moments.covariance.dtype == np.float64
        np.testing.assert_allclose(moments.mean, mean, rtol=1e-13)
        np.testing.assert_allclose(moments.covariance, covariance, rtol=1e-9, atol=1e-11)


def test_score_records_its_inputs(rng):
    images = rng.uniform(-1, 1, (300, 4, 4, 1)).astype(np.float32)
    reference = frechet.describe(images[:200], "uniform noise")
    assert reference[1:] == ("uniform noise", "pixels")
    score = frechet.compare(images[200:], reference)
    flat = np.float64(images.reshape(300, -1))
    a, b = (frechet.Moments(x.mean(0), np.cov(x.T), len(x)) for x in (flat[:200], flat[200:]))
    assert score.value == pytest.approx(by_sqrtm(a, b), rel=1e-8)
    assert str(score) == (
        f"Frechet distance {score.value:.3g} (100 samples, reference uniform noise of 200, "
        "features pixels)"
    )


def test_pixel_features_of_uint8_and_float_images_agree(rng):
    pixels = rng.integers(0, 256, (5, 3, 3, 2), dtype=np.uint8)
    floats = pixels.astype(np.float32) / 127.5 - 1
    np.testing.assert_allclose(PIXELS(pixels), PIXELS(floats), atol=1e-6)
    halves = Features("mean", lambda images: images.mean(axis=(1, 2)), batch=2)
    np.testing.assert_allclose(halves(floats), floats.mean(axis=(1, 2)))


def test_rejects_bad_input(rng):
    features = rng.standard_normal((5, 3))
    with pytest.raises(ValueError, match=r"features must hold 2 or more samples, got 1\."):
        frechet.statistics(features[:1])
    with pytest.raises(ValueError, match=r"features must hold 2 or more samples, got 0\."):
        frechet.statistics(iter([]))
    with pytest.raises(ValueError, match=r"features must be 2-d, got shape \(5,\)"):
        frechet.statistics(features[:, 0])
    with pytest.raises(ValueError, match="features must be finite, got NaN or inf"):
        frechet.statistics(np.where(features == features[2, 1], np.nan, features))
    with pytest.raises(ValueError, match="b must have 3 features like a, got 2"):
        frechet.distance(frechet.statistics(features), frechet.statistics(features[:, :2]))
    images = rng.uniform(-1, 1, (5, 2, 2, 1))
    with pytest.raises(ValueError, match="reference must have other features, got pixels features"):
        frechet.compare(images, frechet.describe(images, "x"), Features("other", len))
