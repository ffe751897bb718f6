"""Layers of the U-Net: convolutions, dropout and attention, in the precision of `COMPUTE`."""

import functools
import math

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from geomem.diffusion import winograd

__all__ = [
    "COMPUTE",
    "QueriesKeysValues",
    "attend",
    "conv",
    "convolve",
    "dense",
    "drop",
    "store_gradient",
]

# The dtype of activations, and the precision of matrix products and convolutions. Parameters,
# the softmax and the normalization statistics are always float32.
COMPUTE = {
    "float32": (jnp.float32, jax.lax.Precision.HIGHEST),
    "tf32": (jnp.float32, jax.lax.Precision.DEFAULT),
    "bfloat16": (jnp.bfloat16, jax.lax.Precision.DEFAULT),
}


def _initializer(gain):
    """Xavier-uniform times `gain`."""

    def init(key, shape, dtype=jnp.float32):
        receptive_field = math.prod(shape[:-2])
        limit = gain * math.sqrt(6 / (receptive_field * (shape[-2] + shape[-1])))
        # Drawn flat, because XLA's CPU compiler takes five times longer for a draw with four axes.
        return jax.random.uniform(key, (math.prod(shape),), dtype, -limit, limit).reshape(shape)

    return init


def conv(width: int, compute: str, *, name: str, kernel: int = 3, gain: float = 1.0) -> nn.Conv:
    """Return a convolution of [B, H, W, C] with Xavier's initial kernel times `gain`."""
    dtype, precision = COMPUTE[compute]
    return nn.Conv(
        width,
        (kernel, kernel),
        dtype=dtype,
        precision=precision,
        kernel_init=_initializer(gain),
        conv_general_dilated=convolve,
        name=name,
    )


def convolve(x, kernel, *arguments, precision, **options):
    """Convolve [B, H, W, C] with [K, K, C, D]; stride 1, zero padding that keeps the size.

    On a CPU, XLA's convolution is slow where the kernel covers the image (a 3x3 kernel on a 2x2
    image: ten times slower than a matrix product) and for 1x1 kernels. The former is a matrix
    product on every device, the latter on CPUs only. There, large 3x3 convolutions in float32 use
    Winograd's algorithm.
    """
    general = functools.partial(jax.lax.conv_general_dilated, precision=precision, **options)

    def on_cpus(function):
        def default(x, kernel):
            return general(x, kernel, *arguments)

        return jax.lax.platform_dependent(x, kernel, cpu=function, default=default)

    if kernel.shape[:2] == (1, 1):
        return on_cpus(lambda x, k: jnp.einsum("bhwc,cd->bhwd", x, k[0, 0], precision=precision))
    if winograd.is_faster(x, kernel):
        return on_cpus(functools.partial(winograd.convolve, precision=precision))
    _, height, width, _ = x.shape
    reach = (kernel.shape[0] + 1) // 2  # the largest side for which each output sees all pixels
    if max(height, width) > reach:
        return general(x, kernel, *arguments)
    # The output at (i, j) multiplies the whole image by these taps of the kernel.
    taps = jnp.stack(
        [
            kernel[reach - 1 - i :][:height, reach - 1 - j :][:, :width]
            for i in range(height)
            for j in range(width)
        ]
    )
    products = jnp.einsum("bhwc,phwcd->bpd", x, taps, precision=precision)
    return products.reshape(len(x), height, width, -1)


def store_gradient(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """Return x; on CPUs, its gradient is computed once and stored.

    The gradient of the residual path is a sum over all later blocks. XLA's CPU compiler would
    compute this sum again for each use. Optimization barriers do not prevent that; a function that
    must not be inlined does.
    """
    return jax.lax.platform_dependent(x, cpu=_identity, default=lambda x: x)


@winograd.outlined
def _identity(x):
    return x


def dense(width: int, compute: str, *, name: str, use_bias: bool = True) -> nn.Dense:
    """Return a linear layer with Xavier's initial kernel."""
    dtype, precision = COMPUTE[compute]
    return nn.Dense(
        width, use_bias, dtype=dtype, precision=precision, kernel_init=_initializer(1.0), name=name
    )


def drop(
    x: Float[Array, "batch height width channels"], probability: float, keys: Key[Array, " batch"]
) -> Float[Array, "batch height width channels"]:
    """Set activations to 0 with this probability, and divide the others by its complement.

    There is one key per image, so that the mask does not depend on how the batch is sharded.
    """
    _, height, width, channels = x.shape
    # Drawn with these two axes: a TPU would copy a flat mask to the layout of x, and a CPU takes
    # longer to compile a draw with three.
    draw = functools.partial(
        jax.random.bernoulli, p=1 - probability, shape=(height * width, channels)
    )
    kept = jax.vmap(draw)(keys).reshape(x.shape)
    # In float32: bfloat16 would round the factor, too.
    return jnp.where(kept, x.astype(jnp.float32) / (1 - probability), 0).astype(x.dtype)


class QueriesKeysValues(nn.Module):
    """The 1x1 convolutions from [B, N, C] to queries, keys and values, each [B, N, C].

    Attributes:
      compute: a key of `COMPUTE`.
    """

    compute: str

    @nn.compact
    def __call__(self, x):
        """Return the list [queries, keys, values]."""
        dtype, precision = COMPUTE[self.compute]
        channels = x.shape[-1]
        kernel = self.param("kernel", _initializer(math.sqrt(0.2)), (1, 1, channels, 3 * channels))
        bias = self.param("bias", nn.initializers.zeros, (3 * channels,))
        # The published weights interleave the outputs q, k and v channel by channel.
        kernels = jnp.moveaxis(kernel.reshape(channels, channels, 3).astype(dtype), -1, 0)
        biases = bias.reshape(channels, 3).T.astype(dtype)
        product = functools.partial(jnp.einsum, "bnc,cd->bnd", precision=precision)
        return [product(x, kernel) + bias for kernel, bias in zip(kernels, biases, strict=True)]


def attend(
    q: Float[Array, "batch queries channels"],
    k: Float[Array, "batch keys channels"],
    v: Float[Array, "batch keys channels"],
    precision: jax.lax.Precision,
) -> Float[Array, "batch queries channels"]:
    """Return softmax(q k^T / sqrt(channels)) v, with a softmax in float32."""
    weights = nn.softmax(_inner_products(q, k / math.sqrt(k.shape[-1]), precision))
    return jnp.einsum("bqk,bkc->bqc", weights.astype(v.dtype), v, precision=precision)


@functools.partial(jax.custom_jvp, nondiff_argnums=(2,))
def _inner_products(q, k, precision):
    """Return float32 <q_i, k_j>, [B, Q, C] and [B, K, C] -> [B, Q, K]."""
    return jnp.einsum("bqc,bkc->bqk", q, k, precision=precision, preferred_element_type=jnp.float32)


@_inner_products.defjvp
def _inner_products_derivative(precision, primals, tangents):
    (q, k), (dq, dk) = primals, tangents
    product = functools.partial(jnp.einsum, "bqc,bkc->bqk", precision=precision)
    # In the type of q and k, so that the backward pass multiplies in it, too.
    return _inner_products(q, k, precision), (product(dq, k) + product(q, dk)).astype(jnp.float32)
