"""Group normalization and its derivative against a plain float64 definition."""

import functools
import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from geomem.diffusion.normalization import GroupNorm, normalize

RNG = np.random.default_rng(0)
X = (RNG.normal(size=(3, 4, 2, 12)) * 2 + 1).astype(np.float32)
GAIN, BIAS = (RNG.normal(size=(3, 12)).astype(np.float32) for _ in range(2))
WEIGHTS = RNG.normal(size=X.shape).astype(np.float32)


def _plain(x, gain, bias, activate):
    grouped = x.reshape(3, 4, 2, 3, 4)
    mean, variance = (f(grouped, (1, 2, 4), keepdims=True) for f in (jnp.mean, jnp.var))
    z = ((grouped - mean) / jnp.sqrt(variance + 1e-6)).reshape(x.shape)
    z = z * gain[:, None, None] + bias[:, None, None]
    return z / (1 + jnp.exp(-z)) if activate else z


@pytest.mark.parametrize("activate", [True, False])
def test_values_and_derivatives_match_the_definition(activate):
    def outcome(f, *arguments):
        value = f(*arguments)
        return value, jax.grad(lambda *a: (f(*a) * WEIGHTS).sum(), (0, 1, 2))(*arguments)

    actual = jax.jit(lambda *a: outcome(lambda *b: normalize(*b, 3, activate), *a))(X, GAIN, BIAS)
    with jax.enable_x64(True):
        exact = (jnp.asarray(a, jnp.float64) for a in (X, GAIN, BIAS))
        expected = jax.jit(lambda *a: outcome(lambda *b: _plain(*b, activate), *a))(*exact)
        expected = jax.tree.map(np.asarray, expected)
        tangents = X, BIAS, GAIN
        _, expected_tangent = jax.jit(
            lambda *a: jax.jvp(lambda *b: _plain(*b, activate), a[:3], a[3:])
        )(*(jnp.asarray(a, jnp.float64) for a in (X, GAIN, BIAS, *tangents)))
    _, tangent = jax.jit(lambda *a: jax.jvp(lambda *b: normalize(*b, 3, activate), a[:3], a[3:]))(
        X, GAIN, BIAS, *tangents
    )
    np.testing.assert_allclose(tangent, expected_tangent, atol=2e-5)
    for a, b in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        assert np.abs(a - b).max() <= 1e-6 * np.abs(b).max()


def test_keeps_only_its_input_of_the_size_of_x():
    x = jnp.zeros((2, 8, 8, 16), jnp.bfloat16)
    layer = GroupNorm()
    params = layer.init(jax.random.key(0), x)
    _, derivative = jax.eval_shape(lambda x: jax.vjp(layer.apply, params, x), x)
    kept = jax.tree.leaves(derivative)
    assert [leaf.dtype for leaf in kept if leaf.size >= x.size] == [jnp.bfloat16]


def test_the_backward_pass_sums_over_the_pixels_twice():
    values, backward = jax.vjp(lambda *a: normalize(*a, 3), X, GAIN, BIAS)
    (remat,) = jax.make_jaxpr(backward)(values).eqns
    sums = [eqn for eqn in remat.params["jaxpr"].eqns if eqn.primitive.name == "reduce_sum"]
    assert [eqn.invars[0].aval.shape for eqn in sums].count(X.shape) == 2


def test_bfloat16_is_as_accurate_as_its_rounding_and_matches_flax():
    x = jnp.asarray(X * 3 + 20, jnp.bfloat16)  # a mean far above the standard deviation
    layer, reference = GroupNorm(activate=False), nn.GroupNorm(3, epsilon=1e-6)
    params = layer.init(jax.random.key(0), x)
    expected = reference.apply(params, x.astype(jnp.float32))
    assert np.abs(layer.apply(params, x) - expected).max() < 0.02


def test_bfloat16_gradients_on_a_tpu_are_as_accurate_as_their_rounding(monkeypatch):
    monkeypatch.setattr(jax.lax, "platform_dependent", lambda x, tpu, default: tpu(x))
    x = jnp.asarray(X, jnp.bfloat16)

    def gradients(f, x, dtype):
        def loss(*arguments):
            return (f(*arguments) * WEIGHTS.astype(dtype)).sum()

        return jax.grad(loss, (0, 1, 2))(x, *(a.astype(jnp.float32) for a in (GAIN, BIAS)))

    ours = functools.partial(gradients, lambda *a: normalize(*a, 3), dtype=jnp.bfloat16)
    expected = gradients(lambda *a: _plain(*a, True), x.astype(jnp.float32), jnp.float32)
    for a, b in zip(jax.jit(ours)(x), expected, strict=True):
        assert jnp.abs(a.astype(jnp.float32) - b).max() <= 0.02 * jnp.abs(b).max()
    # Without the barrier, a TPU's compiler keeps the gradient in float32 between two operations.
    assert re.findall(r"bf16\[3,4,2,12\] = optimization_barrier", str(jax.make_jaxpr(ours)(x)))
