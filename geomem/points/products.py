"""Matrix products that distances can be made of: centred data, full float32."""

from __future__ import annotations

import jax
from jax import lax

__all__ = ["centre", "inner_products", "rounded_centre"]


def inner_products(x: jax.Array, y: jax.Array) -> jax.Array:
    """<x_i, y_j> in true float32 on every device: [Q, d], [N, d] -> [Q, N]."""
    # The enum, not a name: "default" would be TF32 on a GPU and bfloat16 on a TPU.
    return lax.dot_general(x, y, (((1,), (1,)), ((), ())), precision=lax.Precision.HIGHEST)


def centre(points: jax.Array) -> jax.Array:
    """The mean of `points` [N, d] to about five digits, [d]."""
    return rounded_centre(points.mean(axis=0))


def rounded_centre(mean: jax.Array) -> jax.Array:
    """`mean` to about five digits.

    With its last bits empty, x - centre is exact for x near it, and stays so when the compiler
    fuses the mean's own multiplication into the subtraction.
    """
    return lax.reduce_precision(mean, exponent_bits=8, mantissa_bits=16)
