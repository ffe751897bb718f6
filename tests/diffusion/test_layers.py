"""Attention, dropout and convolutions of the U-Net against plain definitions."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from geomem.diffusion import layers, unet

RNG = np.random.default_rng(0)


@pytest.mark.parametrize(("dtype", "error"), [(jnp.float32, 1e-6), (jnp.bfloat16, 0.03)])
def test_attention_and_its_gradients_match_the_definition(dtype, error):
    q, k, v, weights = (jnp.asarray(RNG.normal(size=(2, n, 8)), dtype) for n in (5, 6, 6, 5))

    def plain(q, k, v):
        return jax.nn.softmax(jnp.einsum("bqc,bkc->bqk", q, k) / jnp.sqrt(8.0)) @ v

    def outcome(f, *arguments):
        return f(*arguments), *jax.grad(lambda *a: (f(*a) * weights).sum(), (0, 1, 2))(*arguments)

    highest = jax.lax.Precision.HIGHEST
    ours = jax.jit(lambda *a: outcome(lambda *b: layers.attend(*b, highest), *a))(q, k, v)
    with jax.enable_x64(True):
        expected = outcome(plain, *(jnp.asarray(a, jnp.float64) for a in (q, k, v)))
    for a, b in zip(ours, expected, strict=True):
        assert a.dtype == dtype
        assert np.abs(np.asarray(a, np.float64) - b).max() <= error * np.abs(b).max()


def test_the_backward_pass_of_a_block_computes_attention_again():
    x, embedding = jnp.zeros((2, 16, 16, 8), jnp.bfloat16), jnp.zeros((2, 4), jnp.bfloat16)
    block = unet.Block(8, 0.0, "bfloat16", attention=True, remat_attention=True)
    params = jax.eval_shape(lambda: block.init(jax.random.key(0), x, embedding, None))
    kept = jax.eval_shape(
        lambda p, x: jax.vjp(lambda p, x: block.apply(p, x, embedding, None), p, x)[1], params, x
    )
    # The inputs of the block, of both convolutions, of the second normalization and of attention.
    large = [leaf for leaf in jax.tree.leaves(kept) if leaf.size >= x.size]
    assert [(leaf.shape, leaf.dtype) for leaf in large] == 5 * [(x.shape, jnp.bfloat16)]


def test_a_stored_gradient_is_computed_once_and_is_the_same():
    def gradients(keep, a, b):
        def loss(a, b):
            product = keep(a * b)
            return (jnp.sin(product) + jnp.sin(2 * product)).sum()

        return jax.grad(loss, (0, 1))(a, b)

    a, b = jnp.asarray(RNG.normal(size=(2, 8, 8)), jnp.float32)
    compiled = [
        jax.jit(functools.partial(gradients, keep)).lower(a, b).compile()
        for keep in (lambda x: x, layers.store_gradient)
    ]
    for ours, plain in zip(compiled[1](a, b), compiled[0](a, b), strict=True):
        np.testing.assert_allclose(ours, plain, rtol=1e-6)
    # Without it, the gradient of the product is computed for a and again for b.
    assert [program.as_text().count(" cosine(") for program in compiled] == [4, 2]


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("probability", [0.13, 0.5])
def test_dropout_drops_that_share_and_keeps_the_mean(probability, dtype):
    x = jnp.full((40, 8, 6, 32), 1 - probability, dtype)
    keys = jax.random.split(jax.random.key(0), len(x))
    dropped = np.asarray(jax.jit(layers.drop, static_argnums=1)(x, probability, keys))
    error = 4 * np.sqrt(probability * (1 - probability) / x.size)
    assert abs((dropped == 0).mean() - probability) < error
    exact = np.asarray(x, np.float32).flat[0] / (1 - probability)
    kept = dropped[dropped > 0].astype(np.float32)
    assert dropped.dtype == dtype
    np.testing.assert_allclose(kept, exact, rtol=1e-6 if dtype == jnp.float32 else 2**-9)
    # An image's mask depends on its key only.
    alone = layers.drop(x[3:4], probability, keys[3:4])
    np.testing.assert_array_equal(alone[0], dropped[3])
    assert (dropped[0] != dropped[1]).any()


def test_1x1_convolution_and_its_gradients_match_xlas():
    x, weights = (jnp.asarray(RNG.normal(size=(3, 5, 4, n)), jnp.float32) for n in (6, 7))
    kernel = jnp.asarray(RNG.normal(size=(1, 1, 6, 7)), jnp.float32)

    def outcome(convolve, x, kernel):
        def loss(*a):
            return (convolve(*a) * weights).sum()

        return convolve(x, kernel), *jax.grad(loss, (0, 1))(x, kernel)

    def ours(x, kernel):
        return layers.convolve(x, kernel, (1, 1), "SAME", **options)

    def xlas(x, kernel):
        return jax.lax.conv_general_dilated(x, kernel, (1, 1), "SAME", **options)

    axes = ("NHWC", "HWIO", "NHWC")
    options = {"dimension_numbers": axes, "precision": jax.lax.Precision.HIGHEST}
    both = jax.jit(lambda *a: (outcome(ours, *a), outcome(xlas, *a)))(x, kernel)
    for a, b in zip(*both, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)
