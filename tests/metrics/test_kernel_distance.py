"""MMD^2 against a double loop; it is unbiased and its standard error is right."""

import numpy as np
import pytest

from geomem.metrics.kernel_distance import kernel_distance, squared_mmd


def loop(x, y):
    def kernel(a, b):
        return (sum(p * q for p, q in zip(a, b, strict=True)) / len(a) + 1) ** 3

    def mean(pairs):
        values = [kernel(a, b) for a, b in pairs]
        return sum(values) / len(values)

    def others(x):
        return [(a, b) for i, a in enumerate(x) for j, b in enumerate(x) if i != j]

    return mean(others(x)) + mean(others(y)) - 2 * mean([(a, b) for a in x for b in y])


def test_matches_double_loop(rng):
    x, y = rng.standard_normal((9, 4)), 0.5 + rng.standard_normal((13, 4))
    assert squared_mmd(x, y) == pytest.approx(loop(x.tolist(), y.tolist()), rel=1e-12)
    whole = kernel_distance(x, y[:9], size=1000)
    assert whole.value == pytest.approx(squared_mmd(x, y[:9]), rel=1e-12)
    assert (whole.blocks, whole.size, np.isnan(whole.error)) == (1, 9, True)


def test_is_unbiased_with_the_right_standard_error(rng):
    """Two samples of one distribution: 0 within the error, which has the size of the spread."""
    results = [
        kernel_distance(*rng.standard_normal((2, 400, 6)), size=40, seed=seed) for seed in range(60)
    ]
    z = np.array([result.value / result.error for result in results])
    assert all(result.blocks == 10 for result in results)
    assert abs(z.mean()) < 4 * z.std() / np.sqrt(60)
    assert 0.7 < z.std() < 1.6  # Student's t with 9 degrees: 1.13


def test_matches_closed_form_for_shifted_normals(rng):
    """The expectation of k = (ab + 1)^3 for shifted normals in d = 1, from their moments."""
    x, y = rng.standard_normal((2, 100_000, 1))
    y = y + 1
    # E k(x, x') = sum_n binom(3, n) E[x^n]^2: 1 + 3 * 0 + 3 * 1 + 0; E[y^n] = 1, 2, 4.
    expected = 4 + (1 + 3 * 1 + 3 * 4 + 16) - 2 * (1 + 0 + 3 * 2 + 0)
    result = kernel_distance(x, y, size=100)
    assert abs(result.value - expected) < 4 * result.error < 0.2 * expected


def test_rejects_bad_input():
    with pytest.raises(ValueError, match="samples must hold 2 or more features, got 1"):
        kernel_distance(np.ones((1, 2)), np.ones((4, 2)))
    with pytest.raises(
        ValueError, match=r"reference must have 2 features like samples, got shape \(4, 3\)"
    ):
        kernel_distance(np.ones((4, 2)), np.ones((4, 3)))
    with pytest.raises(ValueError, match="reference must be finite, got NaN or inf in 4 of 4"):
        kernel_distance(np.ones((4, 2)), np.full((4, 2), np.nan))
    with pytest.raises(ValueError, match="size must be 2 or more, got 1"):
        kernel_distance(np.ones((4, 2)), np.ones((4, 2)), size=1)
