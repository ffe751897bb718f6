"""Winograd's convolution against XLA's, and where the network uses it."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from geomem.diffusion import layers, winograd

RNG = np.random.default_rng(0)
AXES = ("NHWC", "HWIO", "NHWC")


def plain(x, kernel):
    highest = jax.lax.Precision.HIGHEST
    return jax.lax.conv_general_dilated(
        x, kernel, (1, 1), "SAME", dimension_numbers=AXES, precision=highest
    )


def ours(x, kernel):
    return winograd.convolve(x, kernel, jax.lax.Precision.HIGHEST)


def outcome(convolve, x, kernel, weights):
    """The convolution, both gradients of its weighted sum, and a directional derivative."""

    def loss(*a):
        return (convolve(*a) * weights).sum()

    _, along = jax.jvp(convolve, (x, kernel), (x[::-1], kernel[::-1]))
    return convolve(x, kernel), *jax.grad(loss, (0, 1))(x, kernel), along


def arrays(batch, height, width, channels, outputs):
    x = RNG.normal(size=(batch, height, width, channels))
    kernel = RNG.normal(size=(3, 3, channels, outputs))
    return x, kernel, RNG.normal(size=(batch, height, width, outputs))


@pytest.mark.parametrize("taps", [2, 3])
@pytest.mark.parametrize("points", [(0, 1, -1), (0, 0.75, -0.75, 1.5, -1.5), (0, 1, -1, 2)])
def test_the_matrices_compute_a_filter(points, taps):
    a, g, b = winograd.toom_cook(points, taps)
    kernel, inputs = RNG.normal(size=taps), RNG.normal(size=len(points) + 1)
    np.testing.assert_allclose(
        a @ ((g @ kernel) * (b @ inputs)), np.correlate(inputs, kernel, "valid"), rtol=1e-10
    )


@pytest.mark.parametrize("shape", [(3, 4, 4, 5, 6), (2, 8, 12, 3, 2), (1, 16, 4, 2, 3)])
def test_the_algorithm_is_exact_in_float64(shape):
    with jax.enable_x64(True):
        given = [jnp.asarray(a) for a in arrays(*shape)]
        both = jax.jit(lambda *a: (outcome(ours, *a), outcome(plain, *a)))(*given)
    for result, expected in zip(*both, strict=True):
        assert result.dtype == jnp.float64
        np.testing.assert_allclose(result, expected, atol=1e-12 * np.abs(expected).max())


def test_its_rounding_error_is_a_few_times_that_of_a_plain_convolution():
    given = arrays(8, 8, 8, 64, 64)
    with jax.enable_x64(True):
        exact = [np.asarray(a) for a in jax.jit(functools.partial(outcome, plain))(*given)]
    rounded = [jnp.asarray(a, jnp.float32) for a in given]
    # The inputs themselves are rounded by 6e-8 of their size.
    results = jax.jit(functools.partial(outcome, ours))(*rounded)
    for result, expected in zip(results, exact, strict=True):
        error = np.asarray(result, np.float64) - expected
        assert np.sqrt((error**2).mean() / (expected**2).mean()) < 1.5e-6
        assert np.abs(error).max() < 4e-6 * np.abs(expected).max()


@pytest.mark.parametrize(
    ("side", "channels", "dtype", "used"),
    [
        (8, (64, 64), "float32", True),
        (4, (128, 64), "float32", True),
        (12, (32, 64), "float32", True),
        (16, (31, 64), "float32", False),
        (4, (64, 63), "float32", False),
        (6, (64, 64), "float32", False),
        (8, (64, 64), "bfloat16", False),
    ],
)
def test_the_network_uses_it_on_cpus_for_many_channels(side, channels, dtype, used):
    def convolve(x, kernel):
        return layers.convolve(
            x, kernel, (1, 1), "SAME", dimension_numbers=AXES, precision=jax.lax.Precision.HIGHEST
        )

    x = jax.ShapeDtypeStruct((2, side, side, channels[0]), dtype)
    kernel = jax.ShapeDtypeStruct((3, 3, *channels), dtype)
    for platform in "cpu", "tpu", "cuda":
        lowered = jax.export.export(jax.jit(convolve), platforms=[platform])(x, kernel)
        plain = "stablehlo.convolution" in lowered.mlir_module()
        assert plain == (platform != "cpu" or not used)
