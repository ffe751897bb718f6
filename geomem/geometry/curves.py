"""Coverage C(sigma) and max posterior weight W(sigma) over a grid of noise levels.

`plain_max_weight` (Def. 4.1) and `shells.coverage` (Def. 4.6) noise the points anew at each level.
`estimate` computes both curves over a whole grid from one matrix product per noise draw
(`_curve_kernels`), with 95% bands, certified bounds, and extra levels where a curve changes fast.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tqdm

from geomem.geometry import _curve_kernels, _reduced_noise, posterior, shells
from geomem.geometry._estimates import (
    Curves,
    Estimate,
    Refinement,
    bootstrap_fraction,
    bootstrap_mean,
)
from geomem.geometry.posterior import check_sigma
from geomem.points.exact import as_rows, check_image_shape, decode
from geomem.points.visit import PlacedPoints, Points, as_points

__all__ = [
    "Curves",
    "Estimate",
    "Refinement",
    "bootstrap_fraction",
    "bootstrap_mean",
    "check_sigmas",
    "estimate",
    "estimate_coverage",
    "estimate_curves",
    "estimate_weight",
    "plain_max_weight",
]

_QUERIES = 1024  # noised at once
_NOISE = 2**26  # random numbers at once (256 MB)
_DEFAULT_GRID = 0.02, 80.0, 32  # smallest level, largest level, number of levels


def plain_max_weight(
    key: jax.Array, points: jax.Array, sigma: float, *, draws: int = 4
) -> jax.Array:
    """Return max_i w_i(x + sigma Z, sigma) of each training point x, averaged over noise draws.

    The mean over the points estimates W(sigma).

    Args:
      key: PRNG key.
      points: float32 [N, d], the training points.
      sigma: noise level, > 0.
      draws: noise draws for each point.

    Returns:
      float32 [N], in (0, 1].

    Source: paper, Def. 4.1.
    """

    def draw(key):
        y = points + sigma * jax.random.normal(key, points.shape)
        return posterior.plain_weights(y, points, sigma).max(axis=1)

    return jax.lax.map(draw, jax.random.split(key, draws)).mean(axis=0)


def estimate_curves(
    train: Any, heldout: Any, sigmas: Any = None, *, seed: int = 0, **options: Any
) -> Curves:
    """Estimate C(sigma) and W(sigma) of a data set: `estimate` with a default grid and a seed.

    Args:
      train: [N, H, W, C] images or [N, d] vectors, NumPy or JAX, uint8 or float; or placed points.
      heldout: [M, H, W, C] or [M, d], of the same distribution as `train` but not in it.
      sigmas: [S], noise levels, ascending; default: 32 from 0.02 to 80, evenly spaced in log sigma.
      seed: of the noise and the bootstrap.
      **options: other arguments of `estimate`.

    Returns:
      Curves.

    Raises:
      ValueError: an unusable argument.

    Source: paper, Def. 4.1 (W), Def. 4.6 (C).

    >>> images = np.random.default_rng(0).integers(0, 256, (30, 4, 4, 3), dtype=np.uint8)
    >>> estimate_curves(images[:20], images[20:])
    Curves(32 noise levels from 0.02 to 80, 500 bootstrap replicates)
    """
    sigmas = np.geomspace(*_DEFAULT_GRID) if sigmas is None else sigmas
    return estimate(jax.random.key(seed), train, heldout, sigmas, **options)


def estimate(
    key: jax.Array,
    train: Any,
    heldout: Any,
    sigmas: jax.Array,
    *,
    num_base: int | None = None,
    draws_coverage: int = 8,
    draws_weight: int = 4,
    shell_c: float = 5.0,
    bootstrap: int = 500,
    refine: int = 8,
    progress: bool = False,
) -> Curves:
    """Estimate C(sigma) and W(sigma) on a grid, with bootstrap bands and sampling-free bounds.

    Args:
      key: PRNG key.
      train: [N, d] or [N, H, W, C], N >= 2, uint8 as stored (x / 127.5 - 1) or float; or what
        `placement.shard` or `placement.stream` returns.
      heldout: [M, d] or [M, H, W, C].
      sigmas: [S], ascending, > 0.
      num_base: number of training points, drawn at random, that are noised for W; default: all.
      draws_coverage: noise draws for each held-out point.
      draws_weight: noise draws for each training point.
      shell_c: concentration c of the shells.
      bootstrap: number of replicates. Images are resampled with all their draws: draws are nested
        in images, so this is the bootstrap over both. It gives the band of W and the intervals of
        the zone's edges; C has the band of `bootstrap_fraction`. All are conditional on the
        training set.
      refine: number of further levels for each curve, placed where it changes fastest, so that the
        edges of the danger zone hardly depend on the grid; 0 for none.
      progress: show a tqdm bar.

    Returns:
      Curves.

    Raises:
      ValueError: an unusable noise level, shell_c, number of draws, or set of points.

    Source: paper, Def. 4.1 (W), Def. 4.6 (C).
    """
    sigmas = check_sigmas(sigmas)
    coverage_key, weight_key = jax.random.split(key)
    train, heldout = _both_rows(train, heldout)
    num_base = len(train) if num_base is None else num_base
    frame = _frame(train, heldout, len(heldout) * draws_coverage + num_base * draws_weight)
    coverage, coverage_refinement, *certificate = _coverage(
        coverage_key, frame, sigmas, draws_coverage, shell_c, bootstrap, refine, progress
    )
    weight, weight_refinement, *own = _weight(
        weight_key, frame, sigmas, num_base, draws_weight, bootstrap, refine, progress
    )
    return Curves(
        sigmas, coverage, *certificate, weight, *own, coverage_refinement, weight_refinement
    )


def estimate_coverage(
    key: jax.Array,
    train: Any,
    heldout: Any,
    sigmas: jax.Array,
    *,
    draws: int = 8,
    shell_c: float = 5.0,
    bootstrap: int = 500,
    progress: bool = False,
) -> tuple[Estimate, jax.Array, jax.Array]:
    """Estimate C(sigma), with its certified bounds [S] each; arguments as in `estimate`."""
    sigmas = check_sigmas(sigmas)
    train, heldout = _both_rows(train, heldout)
    frame = _frame(train, heldout, len(heldout) * draws)
    coverage, _, *certificate = _coverage(
        key, frame, sigmas, draws, shell_c, bootstrap, 0, progress
    )
    return coverage, *certificate


def estimate_weight(
    key: jax.Array,
    train: Any,
    sigmas: jax.Array,
    *,
    num_base: int | None = None,
    draws: int = 4,
    bootstrap: int = 500,
    progress: bool = False,
) -> tuple[Estimate, jax.Array, jax.Array, jax.Array]:
    """Estimate W(sigma), with the own weight and its bounds [S]; arguments as in `estimate`."""
    sigmas = check_sigmas(sigmas)
    train = _rows("train", train)
    num_base = len(train) if num_base is None else num_base
    frame = _frame(train, None, num_base * draws)
    weight, _, *own = _weight(key, frame, sigmas, num_base, draws, bootstrap, 0, progress)
    return weight, *own


def _coverage(key, frame, sigmas, draws, shell_c, bootstrap, refine, progress):
    """(Estimate, Refinement or None, lower bound, upper bound)."""
    _check_count("draws_coverage", draws)
    noise_key, bootstrap_key = jax.random.split(key)
    dim = frame.points.shape[1]
    shells.check_shell_c(shell_c)
    kernel = functools.partial(
        _curve_kernels.coverage_sweep,
        noise_key,
        limits=jnp.square(jnp.asarray(shells.radii(dim, shell_c))),
        table=shells.probability_table(dim, float(shell_c)),
        draws=draws,
    )
    in_blocks = functools.partial(_in_blocks, jnp.arange(len(frame.queries)), frame, draws)
    label = "coverage" if progress else None
    mean = functools.partial(bootstrap_fraction, bootstrap_key, draws=draws, count=bootstrap)
    estimate, refinement, lower, upper = _refined(kernel, in_blocks, sigmas, mean, refine, label)
    return estimate, refinement, lower.mean(axis=0), upper.mean(axis=0)


def _weight(key, frame, sigmas, num_base, draws, bootstrap, refine, progress):
    """(Estimate, Refinement or None, own weight, its lower bound, its upper bound)."""
    _check_count("draws_weight", draws)
    if not 1 <= num_base <= len(frame.points):
        raise ValueError(f"num_base must be between 1 and {len(frame.points)}, got {num_base}.")
    noise_key, bootstrap_key, sample_key = jax.random.split(key, 3)
    kernel = functools.partial(_curve_kernels.weight_sweep, noise_key, draws=draws)
    index = jnp.arange(len(frame.points))
    if num_base < len(index):
        index = jnp.sort(jax.random.permutation(sample_key, index)[:num_base])
    in_blocks = functools.partial(_in_blocks, index, frame.of_points(), draws)
    label = "max weight" if progress else None
    mean = functools.partial(bootstrap_mean, bootstrap_key, count=bootstrap)
    estimate, refinement, own, lower, upper = _refined(
        kernel, in_blocks, sigmas, mean, refine, label
    )
    # Each constant bounds the expectation; take the best.
    bounds = lower.mean(axis=0).max(axis=0), upper.mean(axis=0).min(axis=0)
    return estimate, refinement, own.mean(axis=0), *bounds


def _refined(kernel, in_blocks, sigmas, mean, refine, label):
    """(Estimate, Refinement or None, and the other results of the kernel [M, ...])."""
    if refine < 0:
        raise ValueError(f"refine must not be negative, got {refine}.")
    values, *others = in_blocks(functools.partial(kernel, sigmas=sigmas), label)
    if refine == 0 or len(sigmas) == 1:
        return mean(values=values), None, *others
    extra = refined_sigmas(sigmas, values.mean(axis=0), refine)
    # The same key draws the same noise, so both passes sample one curve.
    extra_values = in_blocks(functools.partial(kernel, sigmas=extra, bounds=False), None)[0]
    whole = mean(values=jnp.concatenate([values, extra_values], axis=1))
    count = len(sigmas)
    refinement = Refinement(extra, whole.mean[count:], whole.replicates[:, count:])
    return Estimate(*(field[..., :count] for field in whole)), refinement, *others


def refined_sigmas(sigmas: jax.Array, values: jax.Array, count: int) -> jax.Array:
    """Return `count` levels inside the cells of a grid, more of them where a curve changes more.

    One level after the other goes to the cell whose pieces, of equal width in log sigma, differ
    most in the curve's logit.

    Args:
      sigmas: [S], ascending, S >= 2.
      values: [S], the curve.
      count: number of levels.

    >>> refined_sigmas(np.array([1.0, 4.0, 8.0]), np.array([0.0, 0.9, 1.0]), 1)
    Array([2.], dtype=float32)
    """
    # Shrunk, so that noise near 0 and 1 does not attract levels.
    shrunk = 0.02 + 0.96 * np.asarray(values, np.float64)
    change = np.abs(np.diff(np.log(shrunk / (1 - shrunk))))
    grid = np.log(np.asarray(sigmas, np.float64))
    pieces = np.ones(len(change), int)
    for _ in range(count):
        pieces[np.argmax(change / pieces)] += 1
    cells = zip(grid[:-1], grid[1:], pieces, strict=True)
    inner = [np.linspace(low, high, number + 1)[1:-1] for low, high, number in cells]
    return jnp.asarray(np.exp(np.concatenate(inner)), jnp.float32)


def check_sigmas(sigmas: jax.Array) -> jax.Array:
    """Return a grid of noise levels as float32 [S].

    Raises:
      ValueError: empty, not one-dimensional, not ascending, not finite or not > 0.
    """
    values = np.asarray(sigmas, np.float32)
    if values.ndim != 1 or len(values) == 0:
        raise ValueError(f"sigmas must have shape [S] with S >= 1, got shape {values.shape}.")
    check_sigma(values, "sigmas")
    if (np.diff(values) <= 0).any():
        first = int(np.argmax(np.diff(values) <= 0))
        pair = f"{values[first]:g} before {values[first + 1]:g}"
        raise ValueError(f"sigmas must be ascending, got {pair}.")
    return jnp.asarray(values)


def _check_count(name, value):
    if value < 1:
        raise ValueError(f"{name} must be at least 1, got {value}.")


def _rows(name, points):
    """Images [N, ...] as rows [N, d], uint8 or float32; placed points as they are."""
    return points if isinstance(points, PlacedPoints) else as_rows(points, name)


def _both_rows(train, heldout):
    rows = _rows("train", train), _rows("heldout", heldout)
    check_image_shape(heldout, np.shape(train), "heldout", "train")
    return rows


def _frame(train, heldout, noised):
    """The cheaper frame for this many noised copies."""
    points = as_points(train)
    if len(points) < 2:
        raise ValueError(f"train must hold at least 2 points, got {len(points)}.")
    heldout = points.take(jnp.arange(1)) if heldout is None else decode(heldout)
    if heldout.shape[1] != points.shape[1]:
        columns = f"{points.shape[1]} columns like train"
        raise ValueError(f"heldout must have {columns}, got shape {heldout.shape}.")
    # The reduction's factorization costs about as much as the products of 2 N noised copies.
    in_one_place = isinstance(points, Points) and points.mesh is None
    if in_one_place and len(points) + 1 < points.shape[1] and noised > 2 * len(points):
        return _reduced_noise.reduced_frame(decode(points.rows), heldout)
    return _reduced_noise.direct_frame(points, heldout)


def _in_blocks(index: jax.Array, frame: Any, draws: int, kernel: Callable, label: str | None):
    """Return `kernel(index, frame)` over blocks of the queries `index` [M]: results [M, ...]."""
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
