"""Winograd's convolution against XLA's, and where the network uses it."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from geomem.diffusion import layers, winograd
from geomem.experiments.benchmarks import training_speed

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
    draw = np.random.default_rng(0).normal
    x = draw(size=(batch, height, width, channels))
    return x, draw(size=(3, 3, channels, outputs)), draw(size=(batch, height, width, outputs))


@pytest.mark.parametrize("taps", [2, 3])
@pytest.mark.parametrize("points", [(0, 1, -1), (0, 0.75, -0.75, 1.5, -1.5), (0, 1, -1, 2)])
def test_the_matrices_compute_a_filter(points, taps):
    a, g, b = winograd.toom_cook(points, taps)
    kernel, inputs = np.split(np.random.default_rng(0).normal(size=taps + len(points) + 1), [taps])
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


def test_its_rounding_error_is_at_most_three_times_that_of_a_plain_convolution():
    given = arrays(8, 8, 8, 64, 64)
    with jax.enable_x64(True):
        exact = [np.asarray(a) for a in jax.jit(functools.partial(outcome, plain))(*given)]
    rounded = [jnp.asarray(a, jnp.float32) for a in given]
    both = jax.jit(lambda *a: (outcome(ours, *a), outcome(plain, *a)))(*rounded)
    for expected, *results in zip(exact, *both, strict=True):
        errors = [np.sqrt(((np.asarray(a, float) - expected) ** 2).mean()) for a in results]
        assert errors[1] < errors[0] < 3 * errors[1]


@pytest.mark.parametrize(
    ("batch", "side", "channels", "dtype", "used"),
    [
        (16, 8, (64, 64), "float32", True),
        (64, 4, (128, 64), "float32", True),
        (16, 12, (32, 64), "float32", True),
        (15, 8, (64, 64), "float32", False),  # too few tiles, channels, or both
        (64, 16, (31, 64), "float32", False),
        (64, 4, (64, 63), "float32", False),
        (64, 6, (64, 64), "float32", False),
        (64, 8, (64, 64), "bfloat16", False),
    ],
)
def test_the_network_uses_it_on_cpus_for_large_convolutions(batch, side, channels, dtype, used):
    def convolve(x, kernel):
        return layers.convolve(
            x, kernel, (1, 1), "SAME", dimension_numbers=AXES, precision=jax.lax.Precision.HIGHEST
        )

    x = jax.ShapeDtypeStruct((batch, side, side, channels[0]), dtype)
    kernel = jax.ShapeDtypeStruct((3, 3, *channels), dtype)
    assert winograd.is_faster(x, kernel) == used
    with winograd.disabled():
        assert not winograd.is_faster(x, kernel)
    for platform in "cpu", "tpu", "cuda":
        lowered = jax.export.export(jax.jit(convolve), platforms=[platform])(x, kernel)
        plain = "stablehlo.convolution" in lowered.mlir_module()
        assert plain == (platform != "cpu" or not used)


def test_the_benchmark_counts_the_operations_of_plain_convolutions():
    class Convolution:
        def init(self, key, shape):
            return jnp.zeros((3, 3, shape[-1], 32))

        def __call__(self, kernel, x, sigma):
            options = {"dimension_numbers": AXES, "precision": jax.lax.Precision.HIGHEST}
            return layers.convolve(x, kernel, (1, 1), "SAME", **options)

    flops = training_speed._forward_flops(Convolution(), (64, 64, 32))
    # 9 taps of each pixel, less those beyond the border.
    assert flops == 2 * (3 * 64 - 2) ** 2 * 32 * 32
