"""Samplers of the probability-flow ODE for any denoiser (Karras et al. 2022).

    dx/dsigma = (x - D(x; sigma)) / sigma                                        (eq. 1 and 3)

`method="heun"` is algorithm 1, and "euler" is the same without the second evaluation; `churn` adds
the noise of algorithm 2. A denoiser is a function of (x, sigma): a network, the exact empirical
posterior mean, or a Wiener filter.

A Python loop calls compiled functions for every step: on a CPU a convolution inside `lax.scan` is
an order of magnitude slower, and on an accelerator the calls are asynchronous anyway. The denoiser
is a program of its own: within an Euler step, and twice within a Heun step, it would be compiled
three times.
"""

import functools
import itertools
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Literal, NamedTuple

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import Array, Float, Float32, Int, Key, UInt8
from tqdm import tqdm

__all__ = ["Churn", "Denoiser", "Swap", "as_pytree", "generate", "solve", "swap", "to_uint8"]

Denoiser = Callable[[jax.Array, jax.Array], jax.Array]  # ([B, H, W, C], sigma [B]) -> [B, H, W, C]


class Churn(NamedTuple):
    """How much noise is added before each step (algorithm 2's S_churn, S_tmin, S_tmax, S_noise).

    Attributes:
      amount: total churn, spread over the steps; 0 is the deterministic sampler.
      sigma_min, sigma_max: range of noise levels in which noise is added.
      noise: standard deviation of the added noise relative to the exact amount.
    """

    amount: float = 0.0
    sigma_min: float = 0.0
    sigma_max: float = math.inf
    noise: float = 1.0


_NO_CHURN = Churn()


@flax.struct.dataclass
class Swap:
    """Two denoisers that share one trajectory; made by `swap`."""

    outside: Denoiser
    inside: Denoiser
    steps: frozenset[int] = flax.struct.field(pytree_node=False)

    def at(self, step: int) -> Denoiser:
        """Return the denoiser of a step."""
        return self.inside if step in self.steps else self.outside


def swap(denoiser_a: Denoiser, denoiser_b: Denoiser, steps: Iterable[int]) -> Swap:
    """Return a denoiser that is `denoiser_b` on the given steps and `denoiser_a` on all others.

    `solve` and `generate` accept it in place of a denoiser. Steps count from 0 at the largest noise
    level. Both evaluations of a Heun step use the same denoiser.
    """
    return Swap(as_pytree(denoiser_a), as_pytree(denoiser_b), frozenset(map(int, steps)))


def solve(
    denoiser: Denoiser | Swap,
    x: Float[Array, "batch height width channels"],
    sigmas: Float[np.ndarray, " levels"] | Sequence[float],
    *,
    method: Literal["euler", "heun"] = "heun",
    churn: Churn = _NO_CHURN,
    keys: Key[Array, " batch"] | None = None,
) -> Float[Array, "batch height width channels"]:
    """Integrate the ODE along a grid of noise levels and return the images at its end.

    The order of convergence is 1 for Euler and 2 for Heun, which evaluates the denoiser twice per
    step. A step to sigma = 0 is always an Euler step: it returns the denoiser's output.

    Args:
      denoiser: a function of (x, sigma), or a `Swap`. Preferably a `jax.tree_util.Partial`, whose
        arrays become arguments of the compiled step instead of constants.
      x: noisy images at sigmas[0].
      sigmas: descending noise levels, as from `grids.edm_grid`; the last may be 0.
      method: "euler" or "heun".
      churn: added noise; needs `keys`.
      keys: typed PRNG keys, one per image; step i draws from fold_in(key, i + 1).

    Returns:
      Images at sigmas[-1]; float64 if x64 is enabled, else float32.

    Raises:
      ValueError: levels that do not descend, an unknown method, churn without keys, a swap on
        steps that do not exist, or a denoiser that returns another shape.
    """
    sigmas = _check_levels(sigmas)
    steps = len(sigmas) - 1
    if not 0 <= churn.amount < math.inf:
        raise ValueError(f"churn must have an amount >= 0, got {churn.amount}.")
    if method not in ("euler", "heun"):
        raise ValueError(f"method must be 'euler' or 'heun', got {method!r}.")
    if churn.amount and keys is None:
        raise ValueError("keys must hold one key per image when churn is used, got None.")
    denoiser = denoiser if isinstance(denoiser, Swap) else swap(denoiser, denoiser, ())
    if unknown := [step for step in denoiser.steps if not 0 <= step < steps]:
        raise ValueError(f"steps of a swap must be between 0 and {steps - 1}, got {min(unknown)}.")

    x = jnp.asarray(x, jnp.result_type(float))
    for i, (sigma, next_sigma) in enumerate(itertools.pairwise(sigmas)):
        if churn.amount and churn.sigma_min <= sigma <= churn.sigma_max:
            raised = sigma * (1 + min(churn.amount / steps, math.sqrt(2) - 1))
            x = _add_noise(x, keys, i + 1, math.sqrt(raised**2 - sigma**2) * churn.noise)
            sigma = raised
        current = denoiser.at(i)
        denoised = _denoised(current, x, sigma)
        end = _euler_step(x, denoised, sigma, next_sigma)
        if method == "heun" and next_sigma > 0:
            corrected = _denoised(current, end, next_sigma)
            end = _heun_step(x, denoised, end, corrected, sigma, next_sigma)
        x = end
    return x


def generate(
    denoiser: Denoiser | Swap,
    seeds: Sequence[int] | Int[np.ndarray, " seeds"],
    image_shape: tuple[int, int, int],
    sigmas: Float[np.ndarray, " levels"] | Sequence[float],
    *,
    method: Literal["euler", "heun"] = "heun",
    churn: Churn = _NO_CHURN,
    batch_size: int = 256,
    progress: bool = False,
) -> Float32[np.ndarray, "seeds height width channels"]:
    """Sample one image per seed, in batches spread over this process's devices.

    An image depends only on its seed, not on the other seeds, the batch size or the devices.

    Args:
      denoiser, sigmas, method, churn: as in `solve`.
      seeds: one integer per image.
      image_shape: (height, width, channels).
      batch_size: images sampled at once, rounded up to a multiple of the number of devices.
      progress: whether to show a progress bar.

    Returns:
      Images, neither clipped nor quantized.

    Raises:
      ValueError: no seeds, or some that are not integers in [0, 2^32) in a sequence, an invalid
        image_shape or batch_size, or as in `solve`.
    """
    if np.ndim(seeds) != 1:
        raise ValueError(f"seeds must be a sequence of integers, one per image, got {seeds!r}.")
    if len(seeds) == 0:
        raise ValueError("seeds must hold at least one seed, got none.")
    seeds = np.asarray(seeds)
    if seeds.dtype.kind not in "iu" or not 0 <= seeds.min() <= seeds.max() < 2**32:
        given = f"{seeds.min()} to {seeds.max()}"
        raise ValueError(f"seeds must be integers from 0 to 2^32 - 1, got {given}.")
    if not all(isinstance(side, int | np.integer) and side > 0 for side in image_shape):
        raise ValueError(f"image_shape must be positive integers, got {image_shape}.")
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {batch_size}.")
    sigmas = _check_levels(sigmas)
    devices = jax.local_devices()
    mesh = jax.sharding.Mesh(np.array(devices), ("data",))
    everywhere, split = (NamedSharding(mesh, PartitionSpec(*axes)) for axes in ((), ("data",)))
    batch_size = math.ceil(min(batch_size, len(seeds)) / len(devices)) * len(devices)
    denoiser = denoiser if isinstance(denoiser, Swap) else as_pytree(denoiser)
    denoiser = jax.device_put(denoiser, everywhere)
    batches = []
    with tqdm(total=len(seeds), unit="image", disable=not progress, desc="sample") as bar:
        for start in range(0, len(seeds), batch_size):
            batch = np.asarray(seeds[start : start + batch_size])
            padded = np.resize(batch, batch_size)  # the same shape compiles only once
            keys = jax.device_put(jax.vmap(jax.random.key)(padded), split)
            x = _unit_noise(keys, tuple(image_shape)) * sigmas[0]
            x = solve(denoiser, x, sigmas, method=method, churn=churn, keys=keys)
            batches.append(np.asarray(x, np.float32)[: len(batch)])
            bar.update(len(batch))
    return np.concatenate(batches)


def as_pytree(denoiser: Denoiser) -> jax.tree_util.Partial:
    """Return the denoiser as a `Partial`, which jit takes as an argument."""
    partial = isinstance(denoiser, jax.tree_util.Partial)
    return denoiser if partial else jax.tree_util.Partial(denoiser)


def to_uint8(images: Float[np.ndarray, "*shape"]) -> UInt8[np.ndarray, "*shape"]:
    """Return EDM's 8-bit images: clip(127.5 x + 128, 0, 255), truncated."""
    return np.clip(np.asarray(images) * 127.5 + 128, 0, 255).astype(np.uint8)


def _check_levels(sigmas):
    values = np.asarray(sigmas, np.float64)
    descend = values.ndim == 1 and len(values) > 1 and (np.diff(values) < 0).all()
    if not descend or not 0 <= values[-1] < values[0] < math.inf:
        shown = np.array2string(values, threshold=6, edgeitems=2, separator=", ")
        raise ValueError(
            f"sigmas must be two or more descending noise levels, the last >= 0, got {shown}."
        )
    return values.tolist()


def _denoised(denoiser, x, sigma):
    denoised = _call(denoiser, x, sigma)
    if jax.default_backend() == "cpu" and not isinstance(denoised, Tracer):
        # A CPU's virtual devices share few threads: with calls queued ahead, an all-reduce inside a
        # denoiser can starve until XLA ends the process.
        jax.block_until_ready(denoised)
    return denoised


@jax.jit
def _call(denoiser, x, sigma):
    denoised = denoiser(x, jnp.full(len(x), sigma, x.dtype))
    if jnp.shape(denoised) != x.shape:
        raise ValueError(
            f"denoiser must return images of shape {x.shape}, got {jnp.shape(denoised)}."
        )
    return denoised.astype(x.dtype)


@jax.jit
def _euler_step(x, denoised, sigma, next_sigma):
    return denoised + next_sigma / sigma * (x - denoised)


@jax.jit
def _heun_step(x, denoised, end, denoised_end, sigma, next_sigma):
    slope, next_slope = (x - denoised) / sigma, (end - denoised_end) / next_sigma
    return x + (next_sigma - sigma) * (slope + next_slope) / 2


@jax.jit
def _add_noise(x, keys, step, scale):
    return x + scale * _normal(keys, step, x.shape[1:], x.dtype)


@functools.partial(jax.jit, static_argnums=1)
def _unit_noise(keys, image_shape):
    return _normal(keys, 0, image_shape, jnp.result_type(float))


def _normal(keys, step, image_shape, dtype):
    keys = jax.vmap(jax.random.fold_in, (0, None))(keys, step)
    size = math.prod(image_shape)  # drawn flat: the same numbers, quicker to compile
    flat = jax.vmap(lambda key: jax.random.normal(key, (size,), dtype))(keys)
    return flat.reshape(-1, *image_shape)
