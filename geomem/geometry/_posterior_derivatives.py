"""How the posterior's mean and log-weights change: the Jacobian of the mean is Cov_w / sigma^2."""

import functools

import jax
import jax.numpy as jnp
from jax import lax
from jax.custom_derivatives import SymbolicZero

from geomem.points.exact import decode
from geomem.points.softmax_search import softmax_search

__all__ = ["log_weights_derivative", "mean_derivative", "moment"]


def moment(name, chunk, placed, *queries):
    """Return a moment of the posterior of `queries`, by its name in `geomem.points.moments`."""
    return placed.run(softmax_search(len(placed), moment=name, top=0), queries, chunk=chunk).moment


def mean_derivative(chunk, primals, tangents):
    """dm = Cov_w(x) dy / sigma^2 - 2 Cov_w(b, x) dsigma / sigma^3, with logits b_j / sigma^2."""
    placed, y, sigma = primals
    d_placed, dy, d_sigma = tangents
    mean = moment("mean", chunk, *primals)
    tangent = jnp.zeros_like(mean)
    placed, y, sigma, center = _differentiated_once((placed, y, sigma, mean))
    variance = (sigma**2)[:, None]
    if not isinstance(dy, SymbolicZero):
        tangent += _along(chunk, placed, y, sigma, center, dy) / variance
    if not isinstance(d_sigma, SymbolicZero):
        sums = moment("with_log_weight", chunk, placed, y, sigma, center)
        product, offset, b = jnp.split(sums, [y.shape[1], 2 * y.shape[1]], axis=1)
        covariance = product - b * offset  # of b and x
        tangent -= 2 * covariance / (variance * sigma[:, None]) * d_sigma[:, None]
    if not isinstance(d_placed.rows, SymbolicZero):  # forward mode only
        tangent += jax.jvp(
            lambda placed: moment("mean", chunk, placed, y, sigma), (placed,), (d_placed,)
        )[1]
    return mean, tangent


@jax.custom_jvp
def _differentiated_once(values):
    return values


@_differentiated_once.defjvp
def _refuse(primals, tangents):
    raise ValueError("denoise must be differentiated only once, got a second derivative.")


@functools.partial(jax.jit, static_argnums=0)
def _along(chunk, placed, y, sigma, mean, v):
    """Cov_w v. The search cannot be transposed; as the solution of a symmetric system it can."""

    def solve(_, v):
        return moment("along", chunk, placed, y, sigma, mean, v)

    return lax.custom_linear_solve(lambda v: v, v, solve, symmetric=True)


def log_weights_derivative(log_weights, primals, tangents):
    """d log w_j = a_j - sum_k w_k a_k, with a_j the derivative of the logit of x_j."""
    y, sigma, points = primals
    log_weight, rows = log_weights(*primals), decode(points)
    dy, d_sigma, d_rows = (None if isinstance(d, SymbolicZero) else d for d in tangents)

    @jax.checkpoint  # keep no [N, d] array of a query for reverse mode
    def one_query(query):
        y, sigma, log_weight, dy, d_sigma = query
        change = jnp.zeros_like(log_weight)
        if dy is not None:
            best = rows[log_weight.argmax()]  # differences of near copies are exact
            change += jnp.sum((rows - best) * dy, axis=1) / sigma**2
        if d_sigma is not None:
            change -= 2 * log_weight * d_sigma / sigma
        if d_rows is not None:
            change += jnp.sum((y - rows) * d_rows, axis=1) / sigma**2
        return change - jnp.sum(jnp.exp(log_weight) * change)

    return log_weight, lax.map(one_query, (y, sigma, log_weight, dy, d_sigma))
