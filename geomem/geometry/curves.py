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
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Key, Shaped

from geomem.geometry import _curve_kernels, _noise_coordinates, posterior, shells
from geomem.geometry._bands import (
    Curves,
    Estimate,
    Refinement,
    bootstrap_fraction,
    bootstrap_mean,
    stratified_mean,
)
from geomem.geometry._curve_fields import coverage_fields, weight_fields
from geomem.geometry._refinement import pilot_coverage, pilot_max_weight, refined_grid
from geomem.geometry.posterior import check_sigma
from geomem.points.exact import as_rows, check_counts, check_image_shape, check_key, decode
from geomem.points.visit import PlacedPoints, as_points

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
    "stratified_mean",
]

Levels = Float[np.ndarray, " levels"]
Fields = Callable[[], dict[str, Any]]

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
    check_key(key)
    check_sigma(sigma)
    points = decode(as_rows(points, "points"))

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
    check_counts(0, seed=seed)
    return estimate(jax.random.key(seed), train, heldout, sigmas, **options)


def _default_sigmas(points):
    """The default grid, stretched if the data are not in [-1, 1], whose usual deviation is 0.5."""
    sigmas = np.geomspace(*_DEFAULT_GRID)
    if isinstance(points, PlacedPoints) or getattr(points, "dtype", None) == np.uint8:
        return sigmas
    points = np.asarray(_rows("train", points))
    deviation = np.std(points, dtype=np.float64) if np.abs(points).max() > 1 else 0.5
    if deviation == 0:
        raise ValueError(f"train must hold different values, got only {points.flat[0]:g}.")
    return sigmas * deviation / 0.5


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
    refine: int = 12,
    progress: bool = False,
) -> Curves:
    """Estimate C(sigma) and W(sigma) on a grid, with 95% bands and sampling-free bounds.

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
      bootstrap: number of replicates, which give the intervals of the zone's edges. Those of C vary
        the held-out images and their noise. Those of W vary the noise, and with num_base < N the
        choice of the noised points. All are conditional on the training set.
      refine: number of additional levels for each curve, placed where it changes fastest, so that
        the edges of the danger zone hardly depend on the grid; 0 for none.
      progress: show a tqdm bar.

    Returns:
      Curves.

    Raises:
      ValueError: an invalid noise level, shell_c, number of draws, or set of points.

    Source: paper, Def. 4.1 (W), Def. 4.6 (C).
    """
    check_key(key)
    sigmas = check_sigmas(sigmas)
    coverage_keys, weight_keys = (_keys(part, 3) for part in _keys(key, 2))
    points, queries = _both(train, heldout)
    num_base = _check_base(num_base, points)
    check_counts(draws_coverage=draws_coverage, draws_weight=draws_weight, bootstrap=bootstrap)
    check_counts(0, refine=refine)
    shells.check_shell_c(shell_c)
    frame = _noise_coordinates.frame(
        points, queries, len(queries) * draws_coverage + num_base * draws_weight
    )
    coverage = _coverage(
        coverage_keys, frame, sigmas, draws_coverage, shell_c, bootstrap, refine, progress
    )
    weight = _weight(
        weight_keys, frame, sigmas, num_base, draws_weight, bootstrap, refine, progress
    )
    # The device works on both while the host summarizes the first.
    return Curves(sigma=sigmas, **coverage(), **weight())


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
) -> tuple[Estimate, Levels, Levels]:
    """Estimate C(sigma), with its certified bounds; arguments as in `estimate`."""
    check_key(key)
    check_counts(draws=draws, bootstrap=bootstrap)
    shells.check_shell_c(shell_c)
    sigmas = check_sigmas(sigmas)
    keys = _keys(key, 3)
    points, queries = _both(train, heldout)
    frame = _noise_coordinates.frame(points, queries, len(queries) * draws)
    found = _coverage(keys, frame, sigmas, draws, shell_c, bootstrap, 0, progress)()
    return found["coverage"], found["coverage_lower_bound"], found["coverage_upper_bound"]


def estimate_weight(
    key: Key[Array, ""],
    train: Shaped[ArrayLike, "train ..."] | PlacedPoints,
    sigmas: Float[ArrayLike, " levels"],
    *,
    num_base: int | None = None,
    draws: int = 4,
    bootstrap: int = 500,
    progress: bool = False,
) -> tuple[Estimate, Levels, Levels, Levels]:
    """Estimate W(sigma), with the own weight and its bounds; arguments as in `estimate`."""
    check_key(key)
    sigmas = check_sigmas(sigmas)
    keys = _keys(key, 3)
    points = as_points(_rows("train", train))
    num_base = _check_base(num_base, points)
    check_counts(draws=draws, bootstrap=bootstrap)
    frame = _noise_coordinates.frame(points, None, num_base * draws)
    found = _weight(keys, frame, sigmas, num_base, draws, bootstrap, 0, progress)()
    own = (found[f"own_weight{name}"] for name in ("", "_lower_bound", "_upper_bound"))
    return found["max_weight"], *own


def _coverage(keys, frame, sigmas, draws, shell_c, bootstrap, refine, progress) -> Fields:
    """Start the work on the fields of Curves that are about coverage; return what gives them."""
    noise_key, bootstrap_key, _ = keys
    dim = frame.points.shape[1]
    limits = np.array(shells.radii(dim, shell_c), np.float32) ** 2
    pilot = functools.partial(
        pilot_coverage, _rng(noise_key), frame.points, frame.queries, sigmas, limits
    )
    levels = refined_grid(sigmas, refine, pilot)
    kernel = functools.partial(
        _curve_kernels.coverage_sweep,
        noise_key,
        sigmas=levels,
        limits=limits,
        table=shells.probability_table(dim, float(shell_c)),
        draws=draws,
    )
    index, label = np.arange(len(frame.queries)), "coverage" if progress else None
    blocks = _noise_coordinates.in_blocks(index, frame, draws, kernel, label)

    def fields():
        covered, *bounds = _noise_coordinates.join(blocks, len(index))
        bands = draws, levels, len(sigmas), bootstrap
        return coverage_fields(bootstrap_key, covered, bounds, *bands)

    return fields


def _weight(keys, frame, sigmas, num_base, draws, bootstrap, refine, progress) -> Fields:
    """Start the work on the fields of Curves that are about the posterior, as `_coverage` does."""
    total = len(frame.points)
    noise_key, bootstrap_key, sample_key = keys
    index = np.arange(total)
    if num_base < total:
        index = np.sort(_rng(sample_key).permutation(index)[:num_base])
    pilot = functools.partial(pilot_max_weight, _rng(noise_key), frame.points, sigmas)
    levels = refined_grid(sigmas, refine, pilot)
    kernel = functools.partial(_curve_kernels.weight_sweep, noise_key, sigmas=levels, draws=draws)
    label = "max weight" if progress else None
    blocks = _noise_coordinates.in_blocks(index, frame.of_points(), draws, kernel, label)

    def fields():
        sweep = _curve_kernels.WeightSweep(*_noise_coordinates.join(blocks, len(index)))
        return weight_fields(bootstrap_key, sweep, index, total, levels, len(sigmas), bootstrap)

    return fields


def _check_base(num_base, points):
    """Return how many training points are noised, by default all."""
    check_counts(num_base=len(points) if num_base is None else num_base)
    if num_base is not None and num_base > len(points):
        raise ValueError(f"num_base must be between 1 and {len(points)}, got {num_base}.")
    return num_base or len(points)


def _keys(key, count):
    """Independent keys. `jax.random.split` would be one more program to compile."""
    words = np.asarray(jax.random.key_data(key))
    seeds = [np.random.SeedSequence([*words, i]).generate_state(len(words)) for i in range(count)]
    impl = jax.random.key_impl(key)
    return [jax.random.wrap_key_data(jnp.asarray(seed), impl=impl) for seed in seeds]


def _rng(key):
    return np.random.default_rng(np.asarray(jax.random.key_data(key)))


def check_sigmas(sigmas: Float[ArrayLike, " levels"]) -> Levels:
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
    return values


def _rows(name, points):
    """Images [N, ...] as rows [N, d], uint8 or float32; placed points as they are."""
    if isinstance(points, PlacedPoints):
        return points
    rows = as_rows(points, name)
    if rows.dtype != jnp.uint8:
        low, high = (float(value) for value in _range(rows))
        if not np.isfinite([low, high]).all():
            raise ValueError(f"{name} must be finite, got NaN or inf.")
        if np.ndim(points) > 2 and low >= 0 and 2 < high <= 255:
            raise ValueError(
                f"{name} must be uint8 or floats in [-1, 1], got floats from {low:g} to {high:g}; "
                "scale 8-bit images by x / 127.5 - 1."
            )
    return rows


_range = jax.jit(lambda rows: (rows.min(), rows.max()))


def _both(train, heldout):
    """(placed training points, rows of held-out points) of images in the same layout."""
    check_image_shape(heldout, np.shape(train), "heldout", "train")
    return as_points(_rows("train", train)), _rows("heldout", heldout)
