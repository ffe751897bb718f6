"""Shells: radii, membership, coverage, and certified bounds against the Poisson mixture."""

import jax
import numpy as np
import oracles
import pytest
from scipy import special

from geomem.geometry import shells


def poisson_mixture(noncentrality, dim, c):
    """P of the shell as sum_k Poisson(k; lambda/2) P(r_in^2 <= chi^2_{d+2k} <= r_out^2)."""
    r_in, r_out = shells.radii(dim, c)
    half = noncentrality / 2
    width = int(40 * np.sqrt(half) + 60)
    k = np.arange(max(0, int(half) - width), int(half) + width + 1)
    poisson = np.exp(special.xlogy(k, half) - half - special.gammaln(k + 1))
    a = dim / 2 + k
    below = special.gammainc(a, r_out**2 / 2) - special.gammainc(a, r_in**2 / 2)
    above = special.gammaincc(a, r_in**2 / 2) - special.gammaincc(a, r_out**2 / 2)
    # The smaller tail keeps its precision.
    return np.sum(poisson * np.where(special.gammainc(a, r_out**2 / 2) < 0.5, below, above))


@pytest.mark.parametrize("dim", [1, 2, 64, 3072, 12288, 196608])
@pytest.mark.parametrize("c", [0.5, 5.0])
def test_shell_probability_is_exact_into_the_tails(dim, c):
    r_out = shells.radii(dim, c)[1]
    noncentrality = (r_out**2 - dim) * np.array([0, 1e-6, 0.1, 0.5, 1, 1.5, 2, 3, 5])
    wanted = np.array([poisson_mixture(value, dim, c) for value in noncentrality])
    found = shells.shell_probability(noncentrality, dim, c)
    np.testing.assert_allclose(found, wanted, atol=1e-12, rtol=0)
    np.testing.assert_allclose(found, wanted, atol=0, rtol=1e-9)
    assert (shells.shell_probability(np.array([1e6, 1e8]) * dim, dim, c) == 0).all()


@pytest.mark.parametrize("dim", [1, 2, 19, 64, 3072, 196608])
def test_table_matches_exact_probability(dim, rng):
    table = shells.probability_table(dim)
    end = float(table.step) * len(table.values)
    noncentrality = np.float32(rng.uniform(0, 1.2 * end, 4000) ** 2)
    wanted = shells.shell_probability(noncentrality, dim)
    assert np.abs(table(noncentrality) - wanted).max() <= 1e-6
    assert table(np.float32(1e30)) == pytest.approx(0, abs=1e-19)


def test_radii_follow_the_lemma_and_clamp():
    """The shell holds its own noise with probability >= 1 - 2 exp(-c); d < 4c makes it a ball."""
    for dim in (1, 5, 19, 20, 64, 3072):
        for c in (0.3, 1.0, 5.0):
            assert shells.shell_probability(0.0, dim, c) >= 1 - 2 * np.exp(-c)
    assert shells.radii(19, 5.0)[0] == 0
    assert shells.radii(21, 5.0)[0] > 0
    assert shells.radii(3072) == pytest.approx(
        (np.sqrt(3072 - 2 * np.sqrt(5 * 3072)), np.sqrt(3072 + 2 * np.sqrt(5 * 3072) + 10))
    )


@pytest.mark.parametrize("c", [0.0, -1.0, float("nan"), float("inf")])
def test_rejects_bad_c(c):
    with pytest.raises(ValueError, match=r"shell_c must be positive and finite, got .*\."):
        shells.radii(10, c)


def test_membership_matches_definition(cifar, rng):
    train, heldout = cifar[0][:200], cifar[1][:200]
    for sigma in (0.5, 1.5, 5.0):
        y = (heldout + sigma * rng.standard_normal(heldout.shape)).astype(np.float32)
        inside = shells.contains(y, train, sigma)
        assert inside.shape == (200, 200)
        wanted = oracles.covered(y, train, sigma, *shells.radii(3072))
        np.testing.assert_array_equal(inside.any(axis=1), wanted)


def test_images_have_the_shells_of_their_vectors(cifar):
    key = jax.random.key(0)
    vectors = [np.float32(points[:20]) for points in cifar]
    images = [points.reshape(-1, 32, 32, 3) for points in vectors]
    for function in (
        lambda train, heldout: shells.contains(heldout, train, 5.0),
        lambda train, heldout: shells.coverage(key, heldout, train, 5.0),
        lambda train, heldout: shells.coverage_bounds(heldout, train, 5.0)[0],
    ):
        np.testing.assert_array_equal(function(*images), function(*vectors))
        with pytest.raises(ValueError, match=r"must be images of shape \(32, 32, 3\) like the"):
            function(images[0], images[1].transpose(0, 3, 1, 2))


@pytest.mark.parametrize("sigma", [0.8, 1.5, 3.0])
def test_bounds_bracket_coverage(cifar, sigma):
    """2,000 draws for 20 held-out points: coverage lies between the bounds, within 5 sigma."""
    train, heldout = cifar[0][:100], cifar[1][:20]
    lower, upper = shells.coverage_bounds(heldout, train, sigma)
    key = jax.random.key(0, impl="rbg")  # fast in programs that are not optimized
    estimate = shells.coverage(key, heldout, train, sigma, draws=2000)
    error = 5 * np.sqrt(np.maximum(estimate * (1 - estimate), 1 / 2000) / 2000)
    assert (lower <= estimate + error).all()
    assert (estimate <= upper + error).all()


def test_bounds_are_tight_for_one_point(cifar):
    """With a single training point, coverage equals its shell's probability."""
    train, heldout = cifar[0][:1], cifar[1][:50]
    lower, upper = shells.coverage_bounds(heldout, train, 1.5)
    np.testing.assert_allclose(lower, upper, rtol=1e-6)
    squares = oracles.squared_distances(heldout, train)[:, 0]
    wanted = shells.shell_probability(squares / 1.5**2, 3072)
    np.testing.assert_allclose(lower, wanted, atol=2e-6)
    estimate = shells.coverage(jax.random.key(0), heldout, train, 1.5, draws=400)
    assert abs(estimate.mean() - wanted.mean()) <= 5 * 0.5 / np.sqrt(50 * 400)
