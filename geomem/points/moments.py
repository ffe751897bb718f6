"""Weighted sums over the points that a posterior search carries along.

Each function maps (weight [B, P], rows, y [B, d], mean [B, d], v [B, d]) to [B, D], for rows [P, d]
that all queries share or rows [B, P, d] of their own. Rows, y and mean have one origin. `mean` is
the posterior mean m; with it as the origin, differences of near copies are exact.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from geomem.points.exact import inner_products

__all__ = ["MOMENTS", "along", "squared_spread", "total", "with_log_weight"]

_RESOLUTION = 2e-6  # of a squared distance from products, relative to the squared norms


def total(weight: jax.Array, rows: jax.Array, y=None, mean=None, v=None) -> jax.Array:
    """Return sum_j w_j x_j."""
    if rows.ndim == 2:
        return inner_products(weight, rows.T)
    return jnp.sum(weight[:, :, None] * rows, axis=1)


def along(weight: jax.Array, rows: jax.Array, y, mean, v) -> jax.Array:
    """Return sum_j w_j <x_j - m, v> (x_j - m), the covariance times v."""
    return _centered(weight * (_inner(v, rows) - _dot(v, mean)), rows, mean)


def with_log_weight(weight: jax.Array, rows: jax.Array, y, mean, v) -> jax.Array:
    """Return the sums of w_j b_j (x_j - m), w_j (x_j - m) and w_j b_j, [B, 2 d + 1].

    Here b_j = (||y - m||^2 - ||y - x_j||^2) / 2. The last two sums undo the rounding of m.
    """
    b = _inner(y, rows) - jnp.sum(rows**2, axis=-1) / 2 - _dot(y, mean) + _dot(mean, mean) / 2
    weighted = weight * b
    sums = _centered(weighted, rows, mean), _centered(weight, rows, mean)
    return jnp.concatenate([*sums, jnp.sum(weighted, axis=1, keepdims=True)], axis=1)


def squared_spread(weight: jax.Array, rows: jax.Array, y, mean, v) -> jax.Array:
    """Return sum_j w_j ||x_j - m||^2, [B, 1]."""
    norms = jnp.sum(rows**2, axis=-1) + _dot(mean, mean)
    squares = norms - 2 * _inner(mean, rows)
    squares = jnp.where(squares < _RESOLUTION * norms, 0, squares)  # copies, up to rounding
    return jnp.sum(weight * squares, axis=1, keepdims=True)


def _inner(v, rows):
    """<v, x_j> for each query: [B, P]."""
    return inner_products(v, rows) if rows.ndim == 2 else jnp.sum(v[:, None] * rows, axis=2)


def _dot(a, b):
    return jnp.sum(a * b, axis=1, keepdims=True)


def _centered(weight, rows, mean):
    return total(weight, rows) - jnp.sum(weight, axis=1, keepdims=True) * mean


MOMENTS = {
    "mean": total,
    "along": along,
    "with_log_weight": with_log_weight,
    "squared_spread": squared_spread,
}
