"""Precision, recall, density and coverage against a float64 loop, with ties and duplicates."""

import numpy as np
import oracles
import pytest

from geomem.metrics.precision_recall import precision_recall


def loop(samples, reference, k):
    def radii(points):
        return np.sort(np.sqrt(oracles.squared_distances(points, points)), axis=1)[:, k]

    apart = np.sqrt(oracles.squared_distances(samples, reference))
    within_reference = apart <= radii(reference)
    within_samples = (apart <= radii(samples)[:, None]).T
    return (
        within_reference.any(axis=1).mean(),
        within_samples.any(axis=1).mean(),
        within_reference.sum(axis=1).mean() / k,
        within_reference.any(axis=0).mean(),
    )


@pytest.mark.parametrize("k", [1, 5])
def test_matches_loop(rng, k):
    reference = np.float32(rng.standard_normal((333, 8)))
    samples = np.float32(0.3 + 0.8 * rng.standard_normal((150, 8)))
    result = precision_recall(samples, reference, k, chunk=64)
    np.testing.assert_allclose(result[:4], loop(samples, reference, k), atol=1e-7)
    assert result[4:] == (k, 150, 333)
    assert 0 < result.recall < 1


def test_matches_loop_with_ties_and_duplicates(rng):
    """On a lattice, distances tie exactly and points repeat. Balls are closed."""
    reference = np.float32(rng.integers(0, 4, (333, 8)))
    samples = np.float32(rng.integers(1, 5, (150, 8)))
    result = precision_recall(samples, reference, 5, chunk=64)
    np.testing.assert_allclose(result[:4], loop(samples, reference, 5), atol=1e-7)


def test_identical_and_distant_sets(rng):
    points = np.float32(100 + rng.standard_normal((120, 5)))
    same = precision_recall(points, points, 4)
    # A ball contains k + 1 samples, including its center.
    np.testing.assert_allclose(same[:4], [1, 1, 5 / 4, 1])
    np.testing.assert_allclose(precision_recall(points + 50, points, 4)[:4], 0)


def test_rejects_bad_input(rng):
    points = rng.standard_normal((5, 2))
    with pytest.raises(ValueError, match="k must be from 1 to 4 for sets of 5, got 5"):
        precision_recall(points, points, 5)
    with pytest.raises(
        ValueError, match=r"reference must have 2 features like samples, got shape \(6, 3\)"
    ):
        precision_recall(points, np.ones((6, 3)))
    broken = np.where(points == points[1, 1], np.nan, points)
    with pytest.raises(ValueError, match="reference must be finite, got NaN or inf in 1 of 5"):
        precision_recall(points, broken)
    with pytest.raises(ValueError, match="samples must be finite, got NaN or inf in 1 of 5"):
        precision_recall(broken, points)
