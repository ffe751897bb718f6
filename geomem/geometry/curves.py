"""Coverage C(sigma) and concentration W(sigma) over a whole sigma grid, with bands and bounds."""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import tqdm

from geomem.geometry import _curve_kernels, _reduced_noise, shells
from geomem.geometry.posterior import check_sigma
from geomem.points.exact import decode, inner_products
from geomem.points.visit import PlacedPoints, Points, as_points

__all__ = [
    "Curves",
    "Estimate",
    "bootstrap_mean",
    "check_sigmas",
    "estimate",
    "estimate_coverage",
    "estimate_weight",
]

_QUERIES = 1024  # noised at once
_NOISE = 2**26  # random numbers at once (256 MB)
_CONFIDENCE = 0.95


class Estimate(NamedTuple):
    """A curve over the sigma grid with its bootstrap.

    Attributes:
      mean: [S].
      low, high: [S], 95% bootstrap interval.
      replicates: [B, S], the bootstrap replicates of the mean.
    """

    mean: jax.Array
    low: jax.Array
    high: jax.Array
    replicates: jax.Array


class Curves(NamedTuple):
    """C(sigma) and W(sigma) with what brackets them; every field is float32 [S] unless said.

    Attributes:
      sigma: the noise levels, ascending.
      coverage: Estimate of C, over held-out points and noise.
      coverage_lower_bound, coverage_upper_bound: its sampling-free certificate, the mean over
        held-out points of max_i P_i and min(1, sum_i P_i).
      max_weight: Estimate of W, over training points and noise.
      own_weight: estimate of E w_1, the weight of the point that was noised; at most W.
      own_weight_lower_bound, own_weight_upper_bound: bounds on E w_1 from distances alone.
    """

    sigma: jax.Array
    coverage: Estimate
    coverage_lower_bound: jax.Array
    coverage_upper_bound: jax.Array
    max_weight: Estimate
    own_weight: jax.Array
    own_weight_lower_bound: jax.Array
    own_weight_upper_bound: jax.Array


def estimate(
    key: jax.Array,
    train: jax.Array | PlacedPoints,
    heldout: jax.Array,
    sigmas: jax.Array,
    *,
    num_base: int | None = None,
    draws_coverage: int = 8,
    draws_weight: int = 4,
    shell_c: float = 5.0,
    bootstrap: int = 500,
    progress: bool = False,
) -> Curves:
    """Estimate C(sigma) and W(sigma) on a grid, with bootstrap bands and sampling-free bounds.

    Args:
      key: PRNG key.
      train: float32 [N, d], N >= 2; or what `placement.shard` or `placement.stream` returns.
      heldout: float32 [M, d].
      sigmas: [S], ascending, > 0.
      num_base: how many training points, the first ones, are noised for W; default all.
      draws_coverage: noise draws for each held-out point.
      draws_weight: noise draws for each training point.
      shell_c: concentration c of the shells.
      bootstrap: replicates. Images are resampled with all their draws: draws are nested in images,
        so this is the bootstrap over both. The bands are conditional on the training set.
      progress: show a tqdm bar.

    Returns:
      Curves.

    Raises:
      ValueError: an unusable sigma grid, shell_c, number of draws, or set of points.

    Source: paper, Def. 4.1 (W), Def. 4.6 (C).
    """
    sigmas = check_sigmas(sigmas)
    coverage_key, weight_key = jax.random.split(key)
    num_base = len(train) if num_base is None else num_base
    frame = _frame(train, heldout, len(heldout) * draws_coverage + num_base * draws_weight)
    coverage, lower, upper = _coverage(
        coverage_key, frame, sigmas, draws_coverage, shell_c, bootstrap, progress
    )
    weight = _weight(weight_key, frame, sigmas, num_base, draws_weight, bootstrap, progress)
    return Curves(sigmas, coverage, lower, upper, *weight)


def estimate_coverage(
    key: jax.Array,
    train: jax.Array | PlacedPoints,
    heldout: jax.Array,
    sigmas: jax.Array,
    *,
    draws: int = 8,
    shell_c: float = 5.0,
    bootstrap: int = 500,
    progress: bool = False,
) -> tuple[Estimate, jax.Array, jax.Array]:
    """C(sigma) and the means of its lower and upper bounds [S]; arguments as in `estimate`."""
    frame = _frame(train, heldout, len(heldout) * draws)
    return _coverage(key, frame, check_sigmas(sigmas), draws, shell_c, bootstrap, progress)


def estimate_weight(
    key: jax.Array,
    train: jax.Array | PlacedPoints,
    sigmas: jax.Array,
    *,
    num_base: int | None = None,
    draws: int = 4,
    bootstrap: int = 500,
    progress: bool = False,
) -> tuple[Estimate, jax.Array, jax.Array, jax.Array]:
    """W(sigma), and the own weight with its lower and upper bounds [S].

    Args:
      key: PRNG key.
      train: as in `estimate`.
      sigmas: [S].
      num_base: how many training points, the first ones, are noised; default all.
      draws: noise draws for each of them.
      bootstrap: replicates.
      progress: show a tqdm bar.
    """
    num_base = len(train) if num_base is None else num_base
    frame = _frame(train, None, num_base * draws)
    return _weight(key, frame, check_sigmas(sigmas), num_base, draws, bootstrap, progress)


def _coverage(key, frame, sigmas, draws, shell_c, bootstrap, progress):
    _check_count("draws_coverage", draws)
    noise_key, bootstrap_key = jax.random.split(key)
    dim = frame.points.shape[1]
    shells.check_shell_c(shell_c)
    kernel = functools.partial(
        _curve_kernels.coverage_sweep,
        noise_key,
        sigmas=sigmas,
        limits=jnp.square(jnp.asarray(shells.radii(dim, shell_c))),
        table=shells.probability_table(dim, float(shell_c)),
        draws=draws,
    )
    index = jnp.arange(len(frame.queries))
    covered, lower, upper = _in_blocks(
        kernel, index, frame, draws, "coverage" if progress else None
    )
    return bootstrap_mean(bootstrap_key, covered, bootstrap), lower.mean(axis=0), upper.mean(axis=0)


def _weight(key, frame, sigmas, num_base, draws, bootstrap, progress):
    _check_count("draws_weight", draws)
    noise_key, bootstrap_key = jax.random.split(key)
    kernel = functools.partial(_curve_kernels.weight_sweep, noise_key, sigmas=sigmas, draws=draws)
    if not 1 <= num_base <= len(frame.points):
        raise ValueError(f"num_base: {num_base}, wanted 1 to {len(frame.points)}")
    index = jnp.arange(num_base)
    label = "max weight" if progress else None
    largest, own, lower, upper = _in_blocks(kernel, index, frame.of_points(), draws, label)
    return (
        bootstrap_mean(bootstrap_key, largest, bootstrap),
        own.mean(axis=0),
        # Each constant bounds the expectation; take the best.
        lower.mean(axis=0).max(axis=0),
        upper.mean(axis=0).min(axis=0),
    )


def check_sigmas(sigmas: jax.Array) -> jax.Array:
    """A sigma grid as float32 [S].

    Raises:
      ValueError: empty, not one-dimensional, not ascending, not finite or not > 0.
    """
    values = np.asarray(sigmas, np.float32)
    if values.ndim != 1 or len(values) == 0:
        raise ValueError(f"sigmas: shape {values.shape}, wanted [S] with S >= 1")
    check_sigma(values)
    if (np.diff(values) <= 0).any():
        at = int(np.argmax(np.diff(values) <= 0))
        raise ValueError(f"sigmas: {values[at]:g} before {values[at + 1]:g}, wanted ascending")
    return jnp.asarray(values)


def _check_count(name, value):
    if value < 1:
        raise ValueError(f"{name}: {value}, wanted 1 or more")


def _frame(train, heldout, noised):
    """The cheaper frame for this many noised copies, of points that were checked."""
    points = as_points(train)
    if len(points) < 2 or (heldout is not None and len(heldout) < 1):
        raise ValueError(
            f"train, heldout: {len(points)} and {len(heldout)} points, wanted at least 2 and 1"
        )
    heldout = points.take(jnp.arange(1)) if heldout is None else decode(jnp.asarray(heldout))
    if heldout.ndim != 2 or heldout.shape[1] != points.shape[1]:
        raise ValueError(f"heldout: shape {heldout.shape}, wanted [N, {points.shape[1]}]")
    # The reduction's factorisation costs about as much as the products of 2 N noised copies.
    in_one_place = isinstance(points, Points) and points.mesh is None
    if in_one_place and len(points) + 1 < points.shape[1] and noised > 2 * len(points):
        return _reduced_noise.reduced_frame(decode(points.rows), heldout)
    return _reduced_noise.direct_frame(points, heldout)


def _in_blocks(kernel, index, frame, draws, label):
    """`kernel(index, frame)` over blocks of the queries `index` [M]: results [M, ...]."""
    size = min(_QUERIES, len(index), max(1, _NOISE // (draws * frame.rank)))
    starts = range(0, len(index), size)
    blocks = []
    for start in tqdm.tqdm(starts, label, disable=label is None or len(starts) < 3, unit="block"):
        # The last block is filled up, so that there is one shape, one compilation.
        rows = jnp.take(index, jnp.arange(start, start + size), mode="clip")
        blocks.append(kernel(rows, frame))
        if len(blocks) > 2:  # let the device run ahead of the bar, but not far
            jax.block_until_ready(blocks[-3])
    return jax.tree.map(lambda *parts: jnp.concatenate(parts)[: len(index)], *blocks)


def bootstrap_mean(key: jax.Array, values: jax.Array, count: int) -> Estimate:
    """Estimate of the mean of `values` [M, S] with `count` resamplings of its rows."""
    _check_count("bootstrap", count)
    return _bootstrap_mean(key, values, count)


@functools.partial(jax.jit, static_argnames="count")
def _bootstrap_mean(key, values, count):
    rows = len(values)
    picks = jax.random.randint(key, (count, rows), 0, rows)
    weight = jax.vmap(lambda pick: jnp.zeros(rows).at[pick].add(1 / rows))(picks)
    replicates = inner_products(weight, values.T)
    tail = (1 - _CONFIDENCE) / 2
    low, high = jnp.quantile(replicates, jnp.array([tail, 1 - tail]), axis=0)
    return Estimate(values.mean(axis=0), low, high, replicates)
