"""Bounds on the own weight, the posterior weight of the point that was noised.

For y = x_1 + sigma Z, d_j = ||x_1 - x_j|| and xi_j = <Z, (x_1 - x_j) / d_j> ~ N(0, 1),
log(w_j / w_1) = -d_j^2 / (2 sigma^2) - d_j xi_j / sigma exactly. The bounds on w_1 follow from
this. They have the form of the paper's Theorem 4.2; the constants are geomem's.
"""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
from jax.scipy.special import ndtri
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Shaped

__all__ = [
    "own_weight_lower_bound",
    "own_weight_upper_bound",
    "union_bound_terms",
]


def union_bound_terms(
    distances: Float[ArrayLike, "*#shape"],
    sigma: Float[ArrayLike, "*#shape"],
    delta: Float[ArrayLike, "*#shape"],
    others: int,
) -> Float[Array, "*shape"]:
    """Return exp(-d_j^2 / (2 sigma^2) + (d_j / sigma) F^-1(1 - delta / others)), elementwise.

    F is the standard normal CDF. With probability >= 1 - delta, every w_j / w_1 with j > 1 is at
    most its term, because each xi_j is below -F^-1(1 - delta / others) with probability
    delta / others.

    Args:
      distances: d_j.
      sigma: noise level > 0.
      delta: in (0, 1).
      others: number of other points, N - 1.
    """
    ratio = jnp.asarray(distances) / sigma
    return jnp.exp(ratio * (-ndtri(delta / others) - ratio / 2))


def own_weight_lower_bound(
    distances: Float[ArrayLike, "*shape others"],
    sigma: float | Float[ArrayLike, ...],
    delta: float = 0.05,
) -> Float[Array, "*shape"]:
    """Return 1 / (1 + sum_j exp(-d_j^2/(2 s^2) + (d_j/s) F^-1(1 - delta/(N-1)))), s = sigma.

    w_1 is at least this with probability >= 1 - delta over the noise. For N = 2 it is the
    delta-quantile of w_1.

    Args:
      distances: to all other points.
      sigma: noise level, > 0, broadcast against `distances`.
      delta: allowed probability of failure, in (0, 1).

    Returns:
      The bound, in (0, 1].
    """
    distances = jnp.asarray(distances)
    terms = union_bound_terms(distances, sigma, delta, distances.shape[-1])
    return 1 / (1 + terms.sum(axis=-1))


def own_weight_upper_bound(
    radii: Float[ArrayLike, "*#shape radii"],
    counts: Shaped[ArrayLike, "*#shape radii"],
    sigma: float | Float[ArrayLike, ...],
    delta: float | Float[np.ndarray, ...] = 0.05,
    q: float | Float[np.ndarray, ...] = 0.975,
) -> Float[Array, "*shape"]:
    """Return 1 / (1 + a exp(-r^2/(2 s^2) - b r/s)), a = ceil(K (1 - (1-q)/delta)), b = F^-1(q).

    If K points lie within r of x_1, then w_1 is at most this with probability >= 1 - delta. Each
    xi_j exceeds b with probability 1 - q, so by Markov's inequality at least a of the K stay below
    b with probability >= 1 - delta, and each of those has at least the weight w_1 times the
    exponential. The radii must not depend on the noise; the smallest bound is returned.

    Args:
      radii: for instance the sorted distances to the other points.
      counts: number of other points within each radius (then 1, 2, ..., N - 1).
      sigma: noise level, > 0, broadcast against `radii`.
      delta: allowed probability of failure, > 1 - q, broadcast against `radii`.
      q: in (1/2, 1), broadcast against `radii`.

    Returns:
      The bound, in (0, 1].

    Raises:
      ValueError: not 1/2 < q < 1 or not 1 - q < delta < 1.
    """
    valid = (np.asarray(q) > 0.5) & (np.asarray(q) < 1) & (1 - np.asarray(q) < delta)
    if not np.all(valid & (np.asarray(delta) < 1)):
        raise ValueError(
            f"delta and q must satisfy 1/2 < q < 1 and 1 - q < delta < 1, got {delta} and {q}."
        )
    # Rounding must not lift an exact integer to the next one.
    good = jnp.ceil(counts * (1 - (1 - q) / delta - 1e-6))
    ratio = jnp.asarray(radii) / sigma
    return 1 / (1 + jnp.max(good * jnp.exp(-ratio * (ratio / 2 + ndtri(q))), axis=-1))
