"""Each bound holds at its stated probability, and is sharp where it is an equality."""

import numpy as np
import oracles
import pytest
from scipy import stats

from geomem.geometry import weight_bounds
from geomem.geometry.gaussian import fit_gaussian, gaussian_denoise


def own_weights(points, sigma, draws, rng):
    """w_1(x_1 + sigma Z, sigma) in float64, [draws]."""
    y = points[0] + sigma * rng.standard_normal((draws, points.shape[1]))
    return np.exp(oracles.log_weights(y, points, sigma))[:, 0]


def sorted_distances(points):
    return np.sort(np.sqrt(oracles.squared_distances(points[:1], points[1:])[0]))


def fails_too_often(failures, delta):
    """Return whether this many failures are implausible (p < 1e-6) at probability `delta`."""
    return stats.binom.sf(failures.sum() - 1, len(failures), delta) < 1e-6


@pytest.mark.parametrize("sigma", [0.5, 1.0, 2.0, 4.0])
@pytest.mark.parametrize("delta", [0.05, 0.3])
def test_bounds_hold_at_their_probability(rng, sigma, delta):
    points = rng.standard_normal((60, 8))
    distances = sorted_distances(points)
    weights = own_weights(points, sigma, 4000, rng)
    lower = float(weight_bounds.own_weight_lower_bound(distances, sigma, delta))
    assert not fails_too_often(weights < lower - 1e-6, delta)
    for q in (1 - delta / 2, 1 - delta / 4):
        upper = float(
            weight_bounds.own_weight_upper_bound(distances, np.arange(1, 60), sigma, delta, q)
        )
        assert not fails_too_often(weights > upper + 1e-6, delta)


def test_bounds_are_sharp_for_two_points(rng):
    """With one other point, both are quantiles of w_1: tightened by 5%, they fail too often."""
    points, sigma, delta = np.array([[0.0, 0.0], [1.0, 1.0]]), 1.0, 0.1
    distances = sorted_distances(points)
    weights = own_weights(points, sigma, 20_000, rng)
    lower = float(weight_bounds.own_weight_lower_bound(distances, sigma, delta))
    assert not fails_too_often(weights < lower, delta)
    assert fails_too_often(weights < 1.05 * lower, delta)
    upper = float(
        weight_bounds.own_weight_upper_bound(
            distances, np.array([1]), sigma, delta, 1 - delta + 1e-5
        )
    )
    assert not fails_too_often(weights > upper, delta)
    assert fails_too_often(weights > 0.95 * upper, delta)


def test_bounds_match_formulas():
    """Compare with the formulas, term by term."""
    distances, sigma, delta, q = np.array([1.0, 2.0, 4.0]), 1.5, 0.2, 0.9
    terms = [
        np.exp(-(d**2) / (2 * sigma**2) + d / sigma * stats.norm.ppf(1 - delta / 3))
        for d in distances
    ]
    found = weight_bounds.own_weight_lower_bound(distances, sigma, delta)
    assert float(found) == pytest.approx(1 / (1 + sum(terms)), rel=1e-5)
    best = max(
        np.ceil(k * (1 - (1 - q) / delta)) * np.exp(-(d**2) / (2 * sigma**2) - b * d / sigma)
        for k, d in enumerate(distances, 1)
        for b in [stats.norm.ppf(q)]
    )
    found = weight_bounds.own_weight_upper_bound(distances, np.arange(1, 4), sigma, delta, q)
    assert float(found) == pytest.approx(1 / (1 + best), rel=1e-5)


@pytest.mark.parametrize(("delta", "q"), [(0.1, 0.85), (0.2, 0.4), (1.0, 0.9), (0.1, 1.0)])
def test_rejects_bad_constants(delta, q):
    with pytest.raises(ValueError, match=r"delta and q must satisfy 1/2 < q < 1 and 1 - q < delta"):
        weight_bounds.own_weight_upper_bound(np.ones(3), np.arange(1, 4), 1.0, delta, q)


@pytest.mark.parametrize("count", [20, 200])  # fewer and more points than dimensions
def test_gaussian_denoiser_is_the_wiener_filter(rng, count):
    points = rng.standard_normal((count, 50)) @ rng.standard_normal((50, 50)) + 3
    y = points[:7] + rng.standard_normal((7, 50))
    mean, covariance = points.mean(axis=0), np.cov(points.T, bias=True)
    gaussian = fit_gaussian(np.float32(points))
    for sigma in (0.1, 1.0, 30.0):
        gain = covariance @ np.linalg.inv(covariance + sigma**2 * np.eye(50))
        wanted = mean + (y - mean) @ gain.T
        found = gaussian_denoise(np.float32(y), gaussian, sigma)
        np.testing.assert_allclose(found, wanted, atol=2e-4 * np.abs(wanted).max())
