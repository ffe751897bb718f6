"""||y - r||^2 - ||y - x||^2 in float32 without losing what is left of it.

The difference is <x - r, 2 y - r - x>, small where both distances are nearly equal, but in float32
the sum's rounding, about 1e-7 of its terms, is divided by 2 sigma^2 to make a log ratio of
posterior weights. Where that matters (a point far from two others at nearly the same distance, and
small sigma), the sum is computed again with every rounding error carried along, to about 1e-13 of
its terms.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import lax

__all__ = ["log_weight_ratios"]

_ROUNDING = 10 * 2.0**-24  # of a float32 sum, in units of the root of its squared terms
_WEIGHT_ERROR = 3e-6  # of a posterior weight, from here
_PRECISE = 4  # candidates summed again at once


def log_weight_ratios(
    y: jax.Array, sigma: jax.Array, reference: jax.Array, points: jax.Array
) -> jax.Array:
    """log(w_j / w_r) = (||y - r||^2 - ||y - x_j||^2) / (2 sigma^2) for candidates x_j.

    Args:
      y: float32 [B, d].
      sigma: float32 [B].
      reference: float32 [B, d], r.
      points: float32 [B, K, d], x_j.

    Returns:
      float32 [B, K], exact enough that no posterior weight is off by more than a few 1e-6.
    """
    y, reference = y[:, None, :], reference[:, None, :]
    apart, left, right = points - reference, y - reference, y - points
    scale = 2 * sigma[:, None] ** 2
    ratios = jnp.sum(apart * (left + right), axis=2) / scale
    size = jnp.sum((apart * (jnp.abs(left) + jnp.abs(right))) ** 2, axis=2)
    error = _ROUNDING * jnp.sqrt(size) / scale
    # An error e of a logit changes no weight by more than its own weight w times e.
    pending = jnp.exp(jnp.minimum(ratios + error, 0)) * error
    rows = jnp.arange(len(y))[:, None]
    count = min(_PRECISE, points.shape[1])

    def redo(state):
        ratios, pending = state
        _, place = lax.top_k(pending, count)
        precise = _precise_sum(y, reference, points[rows, place]) / scale
        return ratios.at[rows, place].set(precise), pending.at[rows, place].set(0)

    return lax.while_loop(lambda state: (state[1] > _WEIGHT_ERROR).any(), redo, (ratios, pending))[
        0
    ]


def _precise_sum(y, reference, points):
    """sum (x - r) ((y - r) + (y - x)) with the rounding errors of every step."""
    a, a_error = _two_difference(points, reference)
    left, left_error = _two_difference(y, reference)
    right, right_error = _two_difference(y, points)
    b, b_error = _two_sum(left, right)
    b_error = b_error + (left_error + right_error)
    # Halves of 12 bits have exact products in float32.
    a_high, b_high = (lax.reduce_precision(v, 8, 11) for v in (a, b))
    a_low, b_low = a - a_high, b - b_high
    small = a_high * b_low + (a_low * b + (a * b_error + a_error * b))
    # Numbers rounded to a common grid have an exact sum in any order; what the first grid leaves
    # over goes to a finer one, and what that leaves over is small.
    total, large = 0.0, a_high * b_high
    for _ in range(2):
        bound = jnp.max(jnp.abs(large), axis=2, keepdims=True) * large.shape[2]
        grid = jnp.exp2(jnp.ceil(jnp.log2(jnp.maximum(bound, 2.0**-100))) + 1)
        rounded = (grid + large) - grid
        total = total + jnp.sum(rounded, axis=2)
        large = large - rounded
    return total + jnp.sum(large + small, axis=2)


def _two_sum(a, b):
    """a + b rounded, and the rounding error exactly."""
    total = a + b
    shift = total - a
    return total, (a - (total - shift)) + (b - shift)


def _two_difference(a, b):
    return _two_sum(a, -b)
