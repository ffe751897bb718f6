"""MMD^2 against a double loop; unbiased, with an error that means what it says."""

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


def test_is_the_double_loop(rng):
    x, y = rng.standard_normal((9, 4)), 0.5 + rng.standard_normal((13, 4))
    assert squared_mmd(x, y) == pytest.approx(loop(x.tolist(), y.tolist()), rel=1e-12)
    whole = kernel_distance(x, y[:9], size=1000)
    assert whole.value == pytest.approx(squared_mmd(x, y[:9]), rel=1e-12)
    assert (whole.blocks, whole.size, np.isnan(whole.error)) == (1, 9, True)


def test_is_unbiased_with_an_honest_error(rng):
    """Two draws of one distribution: 0 within the error, whose size is that of the estimates."""
    found = [
        kernel_distance(*rng.standard_normal((2, 400, 6)), size=40, seed=seed) for seed in range(60)
    ]
    z = np.array([f.value / f.error for f in found])
    assert all(f.blocks == 10 for f in found)
    assert abs(z.mean()) < 4 * z.std() / np.sqrt(60)
    assert 0.7 < z.std() < 1.6  # Student's t with 9 degrees: 1.13


def test_known_value(rng):
    """For mean-shifted normals in d = 1: k = (ab + 1)^3, all moments by hand."""
    x, y = rng.standard_normal((2, 100_000, 1))
    y = y + 1
    # E k(x, x') = sum_n binom(3, n) E[x^n]^2: 1 + 3 * 0 + 3 * 1 + 0; E[y^n] = 1, 2, 4.
    wanted = 4 + (1 + 3 * 1 + 3 * 4 + 16) - 2 * (1 + 0 + 3 * 2 + 0)
    found = kernel_distance(x, y, size=100)
    assert abs(found.value - wanted) < 4 * found.error < 0.2 * wanted


def test_bad_input_is_named(rng):
    with pytest.raises(ValueError, match=r"size: 1 feature\(s\) in a block, wanted 2 or more"):
        kernel_distance(np.ones((1, 2)), np.ones((4, 2)))
    with pytest.raises(ValueError, match=r"reference: features \(3,\), wanted \(2,\)"):
        kernel_distance(np.ones((4, 2)), np.ones((4, 3)))
