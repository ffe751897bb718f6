"""The posterior of each training point along the noise levels, against float64 loops."""

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest

from geomem.geometry import _curve_kernels, _noise_coordinates, curves, danger_zone
from geomem.geometry.exposure import exposure

SIGMAS = np.float32([0.3, 1.0, 3.0])  # as in test_curves: one compilation for both


@pytest.fixture(scope="module")
def small():
    """Return 30 points in 50 dimensions, two of them equal, one far from all others."""
    rng = np.random.default_rng(0)
    train = rng.standard_normal((30, 50)).astype(np.float32) + 5
    train[7] = train[3]
    train[11] += 10
    return train, rng.standard_normal((12, 50)).astype(np.float32) + 5


def test_posterior_statistics_match_the_definitions(small):
    """Entropy and effective size of the same noise, from float64 weights."""
    train, _ = small
    frame = _noise_coordinates.direct_frame(train, train).of_points()
    key = jax.random.key(5)
    sweep = _curve_kernels.weight_sweep(key, jnp.arange(30), frame, sigmas=SIGMAS, draws=2)
    noise = np.asarray(_curve_kernels._noise(key, jnp.arange(30), 2, 50))
    for draw in range(2):
        for s, sigma in enumerate(SIGMAS):
            log_w = oracles.log_weights(train + sigma * np.float64(noise[draw]), train, sigma)
            w = np.exp(log_w)
            wanted = {
                "largest": w.max(axis=1),
                "own": np.diag(w),
                "entropy": -(w * np.maximum(log_w, -700)).sum(axis=1),
                "effective_size": 1 / (w**2).sum(axis=1),
            }
            for name, values in wanted.items():
                ours = getattr(sweep, name)[:, draw, s]
                np.testing.assert_allclose(ours, values, rtol=2e-4, atol=2e-5, err_msg=name)
    copies = np.ones(30)
    copies[[3, 7]] = 2
    np.testing.assert_array_equal(sweep.copies, copies)


def test_curves_hold_entropy_size_and_exposure(small):
    train, heldout = small
    result = curves.estimate(jax.random.key(0), train, heldout, SIGMAS)
    assert (np.diff(result.entropy.mean) > 0).all()
    for curve, top in ((result.entropy, np.log(30)), (result.effective_size, 30)):
        assert (curve.low <= curve.mean).all()
        assert (curve.mean <= curve.high).all()
        assert curve.high.max() <= top * (1 + 1e-5)
    exposed = result.exposure
    assert exposed.sigma.argmax() == 11
    assert exposed.copies.tolist() == [int(i in (3, 7)) for i in range(30)]
    assert exposed.sigma[[3, 7]].min() > 0.3  # each copy has weight 1/2 at most, both have all


def test_copies_count_as_one(small):
    """Two copies of each point: W halves; the weight of the pairs is W of the points themselves."""
    train, heldout = small
    train = np.delete(train, [7, 11], axis=0)  # its points are all different
    once = curves.estimate(jax.random.key(0), train, heldout, SIGMAS)
    twice = curves.estimate(jax.random.key(1), np.concatenate([train, train]), heldout, SIGMAS)
    assert once.group_weight is None
    for s in (0, 1):
        whole = float(once.max_weight.mean[s])
        error = 4 * float(once.max_weight.replicates[:, s].std()) + 2e-3
        assert twice.max_weight.mean[s] == pytest.approx(whole / 2, abs=error)
        assert twice.group_weight.mean[s] == pytest.approx(whole, abs=error)
    assert twice.columns()["group_weight"].shape == (3,)
    zone = danger_zone.find(twice, 0.6)
    assert zone.low is None
    grouped, single = (danger_zone.find(each, 0.6, group_copies=True) for each in (twice, once))
    assert grouped.high == pytest.approx(single.high, rel=0.2)


def test_exposure_is_where_the_weight_halves():
    """With two points at distance d, w = 1/2 exactly where d / (2 sigma) = -xi."""
    sigmas = np.geomspace(0.5, 8, 40)
    for d, xi in ((2.0, -0.5), (4.0, -1.0)):
        weight = 1 / (1 + np.exp(-(d**2) / (2 * sigmas**2) - d * xi / sigmas))
        own = np.stack([weight, weight])[None]
        found = exposure(np.arange(1), sigmas, own, np.zeros(1, int))
        assert found.sigma[0] == pytest.approx(-d / (2 * xi), rel=3e-3)
        assert found.error[0] == pytest.approx(0, abs=1e-6)


def test_exposure_stops_at_the_ends_of_the_grid():
    own = np.array([[[0.1, 0.1]], [[0.9, 0.9]], [[0.4, 0.4]]])
    found = exposure(np.arange(3), np.array([1.0, 2.0]), own, np.array([0, 0, 1]))
    assert found.sigma.tolist() == pytest.approx([1, 2, 2])
    assert np.isnan(found.error).all()
    assert repr(found) == "Exposure(3 points)"
