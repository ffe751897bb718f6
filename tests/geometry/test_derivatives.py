"""Derivatives of the posterior against central differences of float64 loops."""

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest

from geomem.geometry import posterior
from geomem.points import placement

STEP = 1e-6


@pytest.fixture(scope="module", params=["distinct", "twenty copies and near copies"])
def case(request):
    """(points [64, 24], noised queries [6, 24], sigma [6], directions [6, 24])."""
    rng = np.random.default_rng(1)
    points = rng.standard_normal((64, 24)).astype(np.float32) / 2
    if request.param != "distinct":
        points[1:20] = points[0]
        points[20:23] = points[0] + np.float32(0.02 * rng.standard_normal((3, 24)))
    sigma = np.float32([0.05, 0.2, 0.5, 0.8, 1.5, 4])
    y = points[[0, 20, 1, 21, 40, 50]] + sigma[:, None] * rng.standard_normal((6, 24))
    return points, np.float32(y), sigma, np.float32(rng.standard_normal((6, 24)))


def central_difference(f, x, direction):
    """The derivative of float64 f at x along the direction."""
    x, direction = np.float64(x), np.float64(direction)
    return (f(x + STEP * direction) - f(x - STEP * direction)) / (2 * STEP)


def assert_close(found, expected):
    """Within 1e-4 of the size of the whole derivative."""
    assert np.linalg.norm(np.float64(found) - expected) <= 1e-4 * np.linalg.norm(expected)


def test_denoiser_derivatives_match_central_differences(case):
    """Forward and reverse mode, with respect to the query and the noise level, under jit."""
    points, y, sigma, v = case
    along_y = central_difference(lambda y: oracles.denoise(y, points, sigma), y, v)
    along_sigma = central_difference(lambda s: oracles.denoise(y, points, s), sigma, np.ones(6))
    pushed_y, pushed_sigma, (pulled_y, pulled_sigma) = both_modes(y, sigma, points, v)
    assert_close(pushed_y, along_y)
    assert_close(pushed_sigma, along_sigma)
    assert_close(pulled_y, along_y)  # the Jacobian is symmetric
    assert_close(pulled_sigma, (along_sigma * v).sum(axis=1))


def test_gradient_of_a_function_of_the_denoiser(case):
    points, y, sigma, v = case

    def loss(y, points, sigma):
        return 0.5 * jnp.sum(posterior.denoise(jnp.tanh(y), points, sigma) ** 2)

    def loss_in_float64(y):
        return 0.5 * (oracles.denoise(np.tanh(y), points, sigma) ** 2).sum()

    gradient = jax.grad(loss)(y, points, sigma)
    expected = central_difference(loss_in_float64, y, v)
    assert float((gradient * v).sum()) == pytest.approx(expected, rel=1e-4)


@jax.jit
def both_modes(y, sigma, points, v):
    def denoise(y, sigma):
        return posterior.denoise(y, points, sigma)

    _, pushed_y = jax.jvp(lambda y: denoise(y, sigma), (y,), (v,))
    _, pushed_sigma = jax.jvp(lambda s: denoise(y, s), (sigma,), (jnp.ones_like(sigma),))
    return pushed_y, pushed_sigma, jax.vjp(denoise, y, sigma)[1](v)


def test_derivatives_under_vmap(case):
    points, y, sigma, v = case

    def loss(y, sigma, v):
        return jnp.sum(v * posterior.denoise(y[None], points, sigma)[0])

    gradients = jax.vmap(jax.grad(loss, (0, 1)))(y, sigma, v)
    along_y = central_difference(lambda y: oracles.denoise(y, points, sigma), y, v)
    along_sigma = central_difference(lambda s: oracles.denoise(y, points, s), sigma, np.ones(6))
    assert_close(gradients[0], along_y)
    assert_close(gradients[1], (along_sigma * v).sum(axis=1))


def test_weight_derivatives_match_central_differences(case):
    points, y, sigma, v = case
    rng = np.random.default_rng(2)
    u = np.float32(rng.standard_normal((6, 64)))

    def weights(y, sigma, points):
        return np.exp(oracles.log_weights(y, points, sigma))

    for function, exact in (
        (posterior.weights, weights),
        (posterior.log_weights, lambda y, s, p: oracles.log_weights(y, p, s)),
    ):
        along_y = central_difference(lambda y, f=exact: f(y, sigma, points), y, v)
        along_sigma = central_difference(lambda s, f=exact: f(y, s, points), sigma, np.ones(6))
        found, pull_back = jax.vjp(lambda y, s, f=function: f(y, points, s), y, sigma)
        np.testing.assert_allclose(found, exact(y, sigma, points), rtol=1e-5, atol=2e-3)
        gradient, slope = pull_back(u)
        assert_close((gradient * v).sum(axis=1), (along_y * u).sum(axis=1))
        assert_close(slope, (along_sigma * u).sum(axis=1))
        tangent = jax.jvp(lambda y, f=function: f(y, points, sigma), (y,), (v,))[1]
        assert_close(tangent, along_y)


def test_derivatives_with_respect_to_the_points(case):
    """Weights in both modes, the denoiser in forward mode."""
    points, y, _, _ = case
    direction = np.float32(np.random.default_rng(3).standard_normal(points.shape))
    for function, exact in (
        (posterior.weights, lambda p: np.exp(oracles.log_weights(y, p, 1.0))),
        (posterior.denoise, lambda p: oracles.denoise(y, p, 1.0)),
    ):
        expected = central_difference(exact, points, direction)
        found = jax.jvp(lambda p, f=function: f(y, p, 1.0), (points,), (direction,))[1]
        assert_close(found, expected)
    gradient = jax.grad(lambda p: posterior.weights(y, p, 1.0)[:, 0].sum())(points)
    expected = central_difference(
        lambda p: np.exp(oracles.log_weights(y, p, 1.0))[:, 0].sum(), points, direction
    )
    assert float((gradient * direction).sum()) == pytest.approx(expected, rel=1e-4)


def test_score_and_covariance_match_float64(case):
    points, y, sigma, v = case
    weights = np.exp(oracles.log_weights(y, points, sigma))
    mean = weights @ np.float64(points)
    offsets = points - mean[:, None]
    product = np.einsum("qn,qnd,qne,qe->qd", weights, offsets, offsets, v)
    trace = np.einsum("qn,qnd->q", weights, offsets**2)
    assert_close(posterior.covariance_product(y, points, sigma, v), product)
    assert_close(posterior.covariance_trace(y, points, sigma), trace)
    score = (mean - y) / np.float64(sigma)[:, None] ** 2
    assert_close(posterior.score(y, points, sigma), score)
    images = points.reshape(64, 2, 4, 3)
    found = posterior.score(y.reshape(6, 2, 4, 3), images, sigma)
    np.testing.assert_allclose(found.reshape(6, 24), score, rtol=1e-4, atol=1e-3)


def test_devices_find_the_same_derivatives(case):
    points, y, sigma, v = case
    sharded = placement.shard(points)

    def pull_back(points):
        return jax.vjp(lambda y: posterior.denoise(y, points, sigma), y)[1](v)[0]

    assert_close(pull_back(sharded), np.float64(pull_back(points)))
    stream = placement.stream(points)
    assert_close(
        posterior.covariance_trace(y, stream, sigma),
        np.float64(posterior.covariance_trace(y, points, sigma)),
    )


def test_rejects_what_has_no_derivative(case):
    points, y, sigma, v = case
    with pytest.raises(ValueError, match="denoise must be differentiated only once"):
        jax.hessian(lambda s: posterior.denoise(y, points, s).sum())(jnp.float32(1))
    with pytest.raises(ValueError, match=r"v must have the shape of y, \(6, 24\), got \(2, 24\)\."):
        posterior.covariance_product(y, points, sigma, v[:2])
    with pytest.raises(ValueError, match=r"k must be 1 to 64, the number of points, got 1\.5\."):
        posterior.top_weights(y, points, sigma, 1.5)
