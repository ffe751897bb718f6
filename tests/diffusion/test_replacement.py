"""Replacements against their formulas, and their place on the sampling trajectory."""

import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import Partial

from geomem.diffusion import grids, replacement, sampler

GRID = grids.edm_grid(8)
SHAPE = (4, 4, 1)


def _shrink(factor, x, sigma):
    return factor * x / (1 + sigma[:, None, None, None])


NETWORK, LOCAL, EMPIRICAL = (Partial(_shrink, factor) for factor in (0.9, 0.5, 0.8))


@pytest.fixture
def noised(rng):
    return rng.standard_normal((6, *SHAPE)).astype(np.float32), np.full(6, 0.5, np.float32)


def test_steps_inside_start_in_the_zone():
    for low, high in ((0.1, 2.0), (0.002, 80.0), (GRID[3], GRID[3] * 1.01), (1e-9, 0.01)):
        steps = replacement.steps_inside(GRID, (low, high))
        inside = [i for i in range(8) if low <= GRID[i] <= high]
        assert list(steps) == inside


@pytest.mark.parametrize(
    ("zone", "message"),
    [
        ((2.0, 1.0), r"^zone must satisfy 0 < low < high, got 2\.0 to 1\.0\.$"),
        ((100.0, 200.0), r"^zone must hold a noise level .*, got 100 to 200; more steps"),
    ],
)
def test_rejects_a_zone_without_steps(zone, message):
    with pytest.raises(ValueError, match=message):
        replacement.repair(NETWORK, LOCAL, GRID, zone)


def test_repair_replaces_these_steps_and_no_others(noised):
    x = noised[0] * GRID[0]
    low, high = GRID[5] * 0.99, GRID[4] * 1.01
    found = sampler.solve(replacement.repair(NETWORK, LOCAL, GRID, (low, high)), x, GRID)
    for start, stop, denoiser in ((0, 4, NETWORK), (4, 6, LOCAL), (6, 8, NETWORK)):
        x = sampler.solve(denoiser, x, GRID[start : stop + 1])
    np.testing.assert_allclose(found, x, rtol=1e-6)
    # The last step returns the output of its denoiser.
    last = replacement.repair(NETWORK, LOCAL, GRID, (0.001, 0.003))
    before = sampler.solve(NETWORK, noised[0] * GRID[0], GRID[:-1])
    expected = LOCAL(before, jnp.full(6, GRID[-2], jnp.float32))
    found = sampler.solve(last, noised[0] * GRID[0], GRID)
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_repair_by_the_same_denoiser_changes_nothing():
    repaired = replacement.repair(NETWORK, NETWORK, GRID, (0.1, 3.0))
    images = [sampler.generate(d, range(3), SHAPE, GRID) for d in (NETWORK, repaired)]
    np.testing.assert_array_equal(*images)


def test_mixtures_follow_their_formulas(noised):
    network, local, empirical = (
        np.asarray(d(*noised), np.float64) for d in (NETWORK, LOCAL, EMPIRICAL)
    )
    blended = replacement.blend(NETWORK, LOCAL, 0.75)(*noised)
    np.testing.assert_allclose(blended, 0.25 * network + 0.75 * local, rtol=1e-6)
    guided = replacement.guide(NETWORK, LOCAL, EMPIRICAL, 0.5)(*noised)
    np.testing.assert_allclose(guided, network + 0.5 * (local - empirical), rtol=1e-5)


def test_gate_replaces_images_on_which_the_network_copies(noised):
    x, sigma = noised
    copies = np.arange(6) % 2 == 0

    def network(x, sigma):  # copies the first image of each pair
        return jnp.where(copies[:, None, None, None], EMPIRICAL(x, sigma), 2 * x)

    found = replacement.gate(network, LOCAL, EMPIRICAL, 0.5)(x, sigma)
    expected = np.where(copies[:, None, None, None], LOCAL(x, sigma), 2 * x)
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    # |network - empirical| / |local - empirical| is 1/3 for NETWORK: the threshold decides.
    for ratio, denoiser in ((0.3, NETWORK), (0.4, LOCAL)):
        found = replacement.gate(NETWORK, LOCAL, EMPIRICAL, ratio)(x, sigma)
        np.testing.assert_allclose(found, denoiser(x, sigma), rtol=1e-6)
