"""Group normalization and SiLU in one function, which keeps little for the backward pass.

    y = silu(gain (x - mean) / sqrt(variance + 1e-6) + bias)

Mean and variance are those of a group of neighboring channels over all pixels of one image. They
and all sums are float32. Automatic differentiation would store several arrays of the size of x,
some of them in float32; the derivative below stores only x itself, and four numbers for each image
and channel.
"""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Float32

__all__ = ["GroupNorm", "normalize"]

_EPSILON = 1e-6


class GroupNorm(nn.Module):
    """`normalize` with learned gain and bias, in groups of at least 4 channels, at most 32 groups.

    Attributes:
      activate: whether a SiLU follows.
    """

    activate: bool = True

    @nn.compact
    def __call__(self, x, scale=None, shift=None):
        """Normalize x [B, H, W, C]; then multiply by 1 + scale and add shift, both [B, C]."""
        batch, *_, width = x.shape
        groups = min(32, width // 4)
        if width % groups:
            raise ValueError(
                "channels and multipliers must make layers of at most 128 channels or a multiple "
                f"of 32 (group normalization), got a layer of {width}."
            )
        gain = self.param("scale", nn.initializers.ones, (width,))
        bias = self.param("bias", nn.initializers.zeros, (width,))
        if scale is not None:
            gain, bias = gain * (1 + scale), bias * (1 + scale) + shift
        gain, bias = (jnp.broadcast_to(a, (batch, width)) for a in (gain, bias))
        return normalize(x, gain, bias, groups, self.activate)


@functools.partial(jax.custom_jvp, nondiff_argnums=(3, 4))
def normalize(
    x: Float[Array, "batch height width channels"],
    gain: Float32[Array, "batch channels"],
    bias: Float32[Array, "batch channels"],
    groups: int,
    activate: bool = True,
) -> Float[Array, "batch height width channels"]:
    """Return the normalized x, times gain, plus bias, and its SiLU if `activate`; dtype as x.

    >>> x = jnp.arange(8.0).reshape(1, 2, 2, 2)
    >>> y = normalize(x, jnp.ones((1, 2)), jnp.zeros((1, 2)), 1, False)
    >>> round(float(y.var()), 4)
    1.0
    """
    mean, inverse_std = _statistics(x, groups)
    return _apply(x, gain, bias, mean, inverse_std, activate)


@normalize.defjvp
def _derivative(groups, activate, primals, tangents):
    x, gain, bias = primals
    mean, inverse_std = _statistics(x, groups)
    tangent = functools.partial(_tangent, groups, activate)
    # The backward pass starts from these arguments; no intermediate result is kept for it.
    tangent = jax.checkpoint(tangent, prevent_cse=False)
    y = _apply(x, gain, bias, mean, inverse_std, activate)
    return y, tangent(x, gain, bias, mean, inverse_std, *tangents)


def _apply(x, gain, bias, mean, inverse_std, activate):
    z = (x - mean[:, None, None]) * (inverse_std * gain)[:, None, None] + bias[:, None, None]
    return (nn.silu(z) if activate else z).astype(x.dtype)


def _tangent(groups, activate, x, gain, bias, mean, inverse_std, dx, dgain, dbias):
    centered = (x - mean[:, None, None]) * inverse_std[:, None, None]
    dx = dx.astype(jnp.float32)
    # A change of x along 1 or along the normalized x has no effect.
    along_one = _over_groups(dx.sum((1, 2)), groups, x)[:, None, None]
    along_x = _over_groups((dx * centered).sum((1, 2)), groups, x)[:, None, None]
    scale = (inverse_std * gain)[:, None, None]
    # Added for each image and channel first, so that the backward pass sums over pixels only twice.
    slope = dgain[:, None, None] - along_x * scale
    offset = dbias[:, None, None] - along_one * scale
    dz = _stored(dx * scale, x.dtype) + centered * slope + offset
    if activate:
        z = centered * gain[:, None, None] + bias[:, None, None]
        gate = jax.nn.sigmoid(z)
        dz *= gate * (1 + z * (1 - gate))
    return dz.astype(x.dtype)


def _stored(values, dtype):
    """On a TPU, round to `dtype`: its compiler would otherwise store the gradient in float32.

    Elsewhere, return it as it is: a GPU's compiler computes it again in each use.
    """
    if dtype == jnp.float32:
        return values

    def rounded(values):
        return jax.lax.optimization_barrier(values.astype(dtype)).astype(jnp.float32)

    return jax.lax.platform_dependent(values, tpu=rounded, default=lambda values: values)


def _statistics(x, groups):
    """The mean and 1 / sqrt(variance + epsilon) of each channel's group: float32 [B, C] each."""
    values = x.astype(jnp.float32)
    mean = _over_groups(values.sum((1, 2)), groups, x)
    if x.dtype == jnp.float32:
        variance = _over_groups(((values - mean[:, None, None]) ** 2).sum((1, 2)), groups, x)
    else:  # in one pass over x: its rounding exceeds the error of the difference
        variance = _over_groups((values**2).sum((1, 2)), groups, x) - mean**2
    return mean, jax.lax.rsqrt(jnp.maximum(variance, 0) + _EPSILON)


def _over_groups(sums, groups, x):
    """Each channel's mean over its group, from sums over the pixels: [B, C] -> [B, C]."""
    batch, height, width, channels = x.shape
    size = channels // groups
    means = sums.reshape(batch, groups, size).sum(-1) / (size * height * width)
    return jnp.repeat(means, size, axis=1)
