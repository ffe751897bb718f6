"""Coverage C(sigma) and max posterior weight W(sigma) over a grid of noise levels.

`plain_max_weight` (Def. 4.1) and `shells.coverage` (Def. 4.6) are the definitions, one noise level
at a time. `estimate` computes both curves on a whole grid from one matrix product per noise draw
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
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Key, Shaped

from geomem.geometry import _curve_kernels, _noise_coordinates, posterior, shells
from geomem.geometry._bands import (
    Curves,
    Estimate,
    Refinement,
    bootstrap_fraction,
    bootstrap_mean,
)
from geomem.geometry._refinement import pilot_coverage, pilot_max_weight, refined_sigmas
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

_QUERIES = 1024  # most queries noised at once
_NOISE = 2**26  # most random numbers drawn at once (256 MB)
_DEFAULT_GRID = 0.02, 80.0, 32  # smallest level, largest level, number of levels


def plain_max_weight(
    key: Key[Array, ""], points: Float[ArrayLike, "points dim"], sigma: float, *, draws: int = 4
) -> Float[Array, " points"]:
    """Return max_i w_i(x + sigma Z, sigma) of each training point x, averaged over noise draws.

    The mean over the points estimates W(sigma).

    Args:
      key: PRNG key.
      points: the training points.
      sigma: noise level, > 0.
      draws: noise draws for each point.

    Returns:
      The mean weight of each point, in (0, 1].

    Source: paper, Def. 4.1.
    """
    points = jnp.asarray(points)

    def draw(key):
        y = points + sigma * jax.random.normal(key, points.shape)
        return posterior.plain_weights(y, points, sigma).max(axis=1)

    return jax.lax.map(draw, jax.random.split(key, draws)).mean(axis=0)


def estimate_curves(
    train: Shaped[ArrayLike, "train ..."] | PlacedPoints,
    heldout: Shaped[ArrayLike, "heldout ..."],
    sigmas: Float[ArrayLike, " levels"] | None = None,
    *,
    seed: int = 0,
    **options: Any,
) -> Curves:
    """Estimate C(sigma) and W(sigma) of a data set: `estimate` with a default grid and a seed.

    Args:
      train: [N, H, W, C] images or [N, d] vectors, NumPy or JAX, uint8 or float; or placed points.
      heldout: images or vectors of the same distribution as `train` but not in it.
      sigmas: noise levels, ascending; default: 32 from 0.02 to 80, evenly spaced in log sigma, for
        data in [-1, 1]; for other data, in proportion to their standard deviation.
      seed: of the noise and the bootstrap.
      **options: other arguments of `estimate`.

    Returns:
      Curves.

    Raises:
      ValueError: as in `estimate`.

    Source: paper, Def. 4.1 (W), Def. 4.6 (C).

    >>> images = np.random.default_rng(0).integers(0, 256, (30, 4, 4, 3), dtype=np.uint8)
    >>> estimate_curves(images[:20], images[20:])
    Curves(32 noise levels from 0.02 to 80, 500 bootstrap replicates)
    """
    sigmas = _default_sigmas(train) if sigmas is None else sigmas
    return estimate(jax.random.key(seed), train, heldout, sigmas, **options)


def _default_sigmas(points):
    """The default grid, stretched if the data are not in [-1, 1], whose usual deviation is 0.5."""
    sigmas = np.geomspace(*_DEFAULT_GRID)
    if isinstance(points, PlacedPoints) or np.asarray(points).dtype == np.uint8:
        return sigmas
    points = np.asarray(points)
    return sigmas if np.abs(points).max() <= 1 else sigmas * np.std(points, dtype=np.float64) / 0.5


def estimate(
    key: Key[Array, ""],
    train: Shaped[ArrayLike, "train ..."] | PlacedPoints,
    heldout: Shaped[ArrayLike, "heldout ..."],
    sigmas: Float[ArrayLike, " levels"],
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
      sigmas: noise levels, ascending, > 0.
      num_base: number of training points, drawn at random, that are noised for W; default: all.
      draws_coverage: noise draws for each held-out point.
      draws_weight: noise draws for each training point.
      shell_c: concentration c of the shells.
      bootstrap: number of replicates. Images are resampled together with their draws, so the
        replicates reflect the variation of both. They give the band of W and the intervals of the
        zone's edges; the band of C is from `bootstrap_fraction`. All are conditional on the
        training set.
      refine: number of additional levels for each curve, placed where it changes fastest, so that
        the edges of the danger zone hardly depend on the grid; 0 for none.
      progress: show a tqdm bar.

    Returns:
      Curves.

    Raises:
      ValueError: an invalid noise level, shell_c, number of draws, or set of points.

    Source: paper, Def. 4.1 (W), Def. 4.6 (C).
    """
    sigmas = check_sigmas(sigmas)
    coverage_key, weight_key = jax.random.split(key)
    points, queries = _both(train, heldout)
    num_base = len(points) if num_base is None else num_base
    frame = _frame(points, queries, len(queries) * draws_coverage + num_base * draws_weight)
    coverage, coverage_refinement, lower, upper = _coverage(
        coverage_key, frame, sigmas, draws_coverage, shell_c, bootstrap, refine, progress
    )
    weight, weight_refinement, own, own_lower, own_upper = _weight(
        weight_key, frame, sigmas, num_base, draws_weight, bootstrap, refine, progress
    )
    bounded = sigmas, coverage, lower, upper, weight, own, own_lower, own_upper
    return Curves(*bounded, coverage_refinement, weight_refinement)


def estimate_coverage(
    key: Key[Array, ""],
    train: Shaped[ArrayLike, "train ..."] | PlacedPoints,
    heldout: Shaped[ArrayLike, "heldout ..."],
    sigmas: Float[ArrayLike, " levels"],
    *,
    draws: int = 8,
    shell_c: float = 5.0,
    bootstrap: int = 500,
    progress: bool = False,
) -> tuple[Estimate, Float[Array, " levels"], Float[Array, " levels"]]:
    """Estimate C(sigma), with its certified bounds; arguments as in `estimate`."""
    sigmas = check_sigmas(sigmas)
    points, queries = _both(train, heldout)
    frame = _frame(points, queries, len(queries) * draws)
    coverage, _, lower, upper = _coverage(
        key, frame, sigmas, draws, shell_c, bootstrap, 0, progress
    )
    return coverage, lower, upper


def estimate_weight(
    key: Key[Array, ""],
    train: Shaped[ArrayLike, "train ..."] | PlacedPoints,
    sigmas: Float[ArrayLike, " levels"],
    *,
    num_base: int | None = None,
    draws: int = 4,
    bootstrap: int = 500,
    progress: bool = False,
) -> tuple[Estimate, Float[Array, " levels"], Float[Array, " levels"], Float[Array, " levels"]]:
    """Estimate W(sigma), with the own weight and its bounds; arguments as in `estimate`."""
    sigmas = check_sigmas(sigmas)
    points = as_points(_rows("train", train))
    num_base = len(points) if num_base is None else num_base
    frame = _frame(points, None, num_base * draws)
    weight, _, *own = _weight(key, frame, sigmas, num_base, draws, bootstrap, 0, progress)
    return weight, own[0], own[1], own[2]


def _coverage(key, frame, sigmas, draws, shell_c, bootstrap, refine, progress):
    """(Estimate, Refinement or None, lower bound, upper bound)."""
    _check_count("draws_coverage", draws)
    noise_key, bootstrap_key = jax.random.split(key)
    dim = frame.points.shape[1]
    shells.check_shell_c(shell_c)
    limits = np.array(shells.radii(dim, shell_c), np.float32) ** 2
    kernel = functools.partial(
        _curve_kernels.coverage_sweep,
        noise_key,
        limits=jnp.asarray(limits),
        table=shells.probability_table(dim, float(shell_c)),
        draws=draws,
    )
    in_blocks = functools.partial(_in_blocks, np.arange(len(frame.queries)), frame, draws)
    label = "coverage" if progress else None
    mean = functools.partial(bootstrap_fraction, bootstrap_key, draws=draws, count=bootstrap)
    pilot = functools.partial(
        pilot_coverage, _rng(noise_key), frame.points, frame.queries, sigmas, limits
    )
    estimate, refinement, lower, upper = _refined(
        kernel, in_blocks, sigmas, mean, refine, pilot, label
    )
    return estimate, refinement, jnp.asarray(lower.mean(axis=0)), jnp.asarray(upper.mean(axis=0))


def _weight(key, frame, sigmas, num_base, draws, bootstrap, refine, progress):
    """(Estimate, Refinement or None, own weight, its lower bound, its upper bound)."""
    _check_count("draws_weight", draws)
    if not 1 <= num_base <= len(frame.points):
        raise ValueError(f"num_base must be between 1 and {len(frame.points)}, got {num_base}.")
    noise_key, bootstrap_key, sample_key = jax.random.split(key, 3)
    kernel = functools.partial(_curve_kernels.weight_sweep, noise_key, draws=draws)
    index = np.arange(len(frame.points))
    if num_base < len(index):
        index = np.sort(_rng(sample_key).permutation(index)[:num_base])
    in_blocks = functools.partial(_in_blocks, index, frame.of_points(), draws)
    label = "max weight" if progress else None
    mean = functools.partial(bootstrap_mean, bootstrap_key, count=bootstrap)
    pilot = functools.partial(pilot_max_weight, _rng(noise_key), frame.points, sigmas)
    estimate, refinement, own, lower, upper = _refined(
        kernel, in_blocks, sigmas, mean, refine, pilot, label
    )
    # Each constant bounds the expectation; take the best.
    bounds = own.mean(axis=0), lower.mean(axis=0).max(axis=0), upper.mean(axis=0).min(axis=0)
    return estimate, refinement, *map(jnp.asarray, bounds)


def _refined(kernel, in_blocks, sigmas, mean, refine, pilot, label):
    """(Estimate, Refinement or None, and the other results of the kernel [M, ..., S])."""
    if refine < 0:
        raise ValueError(f"refine must not be negative, got {refine}.")
    count, levels = len(sigmas), sigmas
    if refine > 0 and count > 1:
        extra = refined_sigmas(np.asarray(sigmas), pilot(), refine)
        levels = jnp.asarray(np.concatenate([sigmas, extra]))
    values, *others = in_blocks(functools.partial(kernel, sigmas=levels), label)
    whole = mean(values=values)
    refinement = None
    if len(levels) > count:
        refinement = Refinement(levels[count:], whole.mean[count:], whole.replicates[:, count:])
    on_grid = [other[..., :count] for other in others]
    return Estimate(*(field[..., :count] for field in whole)), refinement, *on_grid


def _rng(key):
    return np.random.default_rng(np.asarray(jax.random.key_data(key)))


def check_sigmas(sigmas: Float[ArrayLike, " levels"]) -> Float[Array, " levels"]:
    """Return a grid of noise levels as float32.

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


def _both(train, heldout):
    """(placed training points, rows of held-out points) of images in the same layout."""
    check_image_shape(heldout, np.shape(train), "heldout", "train")
    return as_points(_rows("train", train)), as_rows(heldout, "heldout")


def _frame(points, heldout, noised):
    """The cheaper frame for this many noised copies."""
    if len(points) < 2:
        raise ValueError(f"train must hold at least 2 points, got {len(points)}.")
    heldout = points.take(jnp.arange(1)) if heldout is None else decode(heldout)
    if heldout.shape[1] != points.shape[1]:
        columns = f"{points.shape[1]} columns like train"
        raise ValueError(f"heldout must have {columns}, got shape {heldout.shape}.")
    # The reduction's factorization costs about as much as the products of 2 N noised copies.
    worth_it = len(points) + 1 < points.shape[1] and noised > 2 * len(points)
    if worth_it and isinstance(points, Points) and points.mesh is None:
        return _noise_coordinates.reduced_frame(decode(points.rows), heldout)
    return _noise_coordinates.direct_frame(points, heldout)


def _in_blocks(index: np.ndarray, frame: Any, draws: int, kernel: Callable, label: str | None):
    """Return `kernel(index, frame)` over blocks of the queries `index` [M]: results [M, ...]."""
    size = min(_QUERIES, len(index), max(1, _NOISE // (draws * frame.rank)))
    starts = range(0, len(index), size)
    blocks = []
    for start in tqdm.tqdm(starts, label, disable=label is None or len(starts) < 3, unit="block"):
        # The last block is filled up, so that there is one shape, one compilation.
        at = np.minimum(np.arange(start, start + size), len(index) - 1)
        blocks.append(kernel(jnp.asarray(index[at]), frame))
        if len(blocks) > 2:  # let the device run ahead of the bar, but not far
            jax.block_until_ready(blocks[-3])
    # NumPy from here on: each small operation of JAX would be one more program to compile.
    return [np.concatenate(parts)[: len(index)] for parts in zip(*blocks, strict=True)]
