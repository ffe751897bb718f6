"""EDM's training step: loss, Adam, moving average, data parallelism (Karras et al. 2022).

    loss = E lambda(sigma) |D(x + sigma z; sigma) - x|^2                    (their eq. 2 and 8)
    lambda(sigma) = (sigma^2 + s^2) / (sigma s)^2, s = sigma_data           (table 1)

x is a training image, z standard normal noise, and sigma is drawn from the recipe's `Schedule`.
The optimizer and the moving average are those of EDM (appendix F).

All randomness for image j of step t comes from fold_in(fold_in(key(seed), t), j). So no random
state is carried along, and the draws do not depend on how a batch is split over devices. Images are
drawn with replacement, whereas EDM's code goes through shuffled epochs.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.typing import ArrayLike
from jaxtyping import Array, Float32, Int32, Key, Shaped

from geomem import data, memory
from geomem.diffusion import augment, data_parallel, preconditioning, schedules

__all__ = [
    "Images",
    "Recipe",
    "TrainState",
    "init",
    "load_images",
    "loss",
    "make_update",
    "program",
]

_BLOCK = 4096  # images that are floats at the same time


@dataclasses.dataclass(frozen=True)
class Recipe:
    """Everything that defines a step except the network; hashable, static under jit.

    Attributes:
      schedule: distribution of training noise.
      batch: images per step, in total over all devices.
      lr: Adam's learning rate (betas 0.9 and 0.999, epsilon 1e-8), after the ramp.
      lr_ramp: number of images over which the rate rises linearly from 0.
      ema_halflife: half-life of the parameters' moving average, in images.
      ema_ramp: upper limit of the half-life, as a fraction of the images seen so far.
      augment: probability of each augmentation; 0 turns all of them off, including the x-flip.
      seed: seed of the initial parameters and of all steps.
      window: number of steps over which the reported metrics are averaged.
      microbatch: images per device whose gradient is computed at once; None for all. Fewer take
        less memory, and the sum of the gradients is the same up to rounding.
    """

    schedule: schedules.Schedule
    batch: int = 512
    lr: float = 1e-3
    lr_ramp: float = 10e6
    ema_halflife: float = 0.5e6
    ema_ramp: float = 0.05
    augment: float = 0.12
    seed: int = 0
    window: int = 100
    microbatch: int | None = None

    def optimizer(self) -> optax.GradientTransformation:
        """Return Adam with the ramped learning rate."""
        return optax.adam(self.learning_rate)

    def learning_rate(self, step: Int32[ArrayLike, ""]) -> Float32[Array, ""]:
        """Return lr min(step batch / lr_ramp, 1): 0 at the first step, unless lr_ramp is 0."""
        ramp = step * (self.batch / self.lr_ramp) if self.lr_ramp else jnp.ones_like(step)
        return self.lr * jnp.minimum(ramp, 1.0)

    def ema_decay(self, step: Int32[ArrayLike, ""]) -> Float32[Array, ""]:
        """Return 0.5^(batch / min(ema_halflife, ema_ramp images_seen)); 0 at the first step."""
        halflife = jnp.minimum(self.ema_halflife, self.ema_ramp * self.batch * step)
        return 0.5 ** (self.batch / jnp.maximum(halflife, 1e-8))


class Images(NamedTuple):
    """The training set on a device.

    Attributes:
      pixels: one image per row, uint8, or float32 in [-1, 1]; a TPU fetches rows much faster.
      mean, std: per-pixel mean and standard deviation over the training set, for dummy images.
    """

    pixels: Shaped[Array | np.ndarray, "images height*width*channels"]
    mean: Float32[Array | np.ndarray, "height width channels"]
    std: Float32[Array | np.ndarray, "height width channels"]


@flax.struct.dataclass
class TrainState:
    """The arrays that a step updates and a checkpoint holds.

    Attributes:
      step: number of completed steps.
      params, ema: the network's parameters and their moving average.
      opt_state: Adam's state.
      metrics: sums of loss and grad_norm over the current window's steps.
    """

    step: Int32[Array, ""]
    params: preconditioning.Params
    ema: preconditioning.Params
    opt_state: Any
    metrics: dict[str, Float32[Array, ""]]


def load_images(pixels: Shaped[np.ndarray, "images height width channels"]) -> Images:
    """Return the training set, uint8 or float32 in [-1, 1], with its mean and std, on the host."""
    starts = range(0, len(pixels), _BLOCK)  # as floats, all images may not fit in memory

    def mean(function):
        blocks = (function(data.to_float(pixels[i : i + _BLOCK])) for i in starts)
        return sum(block.sum(0, dtype=np.float64) for block in blocks) / len(pixels)

    center = mean(lambda images: images)
    deviation = np.sqrt(mean(lambda images: (images - center) ** 2))
    rows = pixels.reshape(len(pixels), -1)
    return Images(rows, np.asarray(center, np.float32), np.asarray(deviation, np.float32))


def init(
    denoiser: preconditioning.EDMDenoiser, recipe: Recipe, image_shape: Sequence[int]
) -> TrainState:
    """Return the state before the first step, for images of shape (height, width, channels)."""
    height, width, channels = image_shape
    params = denoiser.init(jax.random.key(recipe.seed), (height, width, channels))
    return TrainState(
        step=jnp.int32(0),
        params=params,
        ema=jax.tree.map(jnp.copy, params),
        opt_state=recipe.optimizer().init(params),
        metrics={"loss": jnp.float32(0), "grad_norm": jnp.float32(0)},
    )


def loss(
    denoiser: preconditioning.EDMDenoiser,
    params: preconditioning.Params,
    keys: Key[Array, " batch"],
    images: Images,
    recipe: Recipe,
    levels: schedules.Levels | None = None,
) -> Float32[Array, ""]:
    """Return EDM's loss on one batch: the sum over pixels, the mean over images.

    Args:
      denoiser, params: the preconditioned network and its parameters.
      keys: typed PRNG keys, one per image.
      images: the training set; x is drawn from it with replacement.
      recipe: distribution of sigma, and augmentation.
      levels: `recipe.schedule.levels()`, if passed as an argument of a compiled program.
    """
    levels = recipe.schedule.levels() if levels is None else levels
    draw = functools.partial(_draw, images=images, recipe=recipe, levels=levels)
    clean, noise, sigma, labels, dropout_keys = jax.vmap(draw)(keys)
    noisy = clean + sigma[:, None, None, None] * noise
    denoised = denoiser(params, noisy, sigma, labels, dropout_keys)
    weight = (sigma**2 + denoiser.sigma_data**2) / (sigma * denoiser.sigma_data) ** 2
    return jnp.mean(weight * jnp.sum((denoised - clean) ** 2, axis=(1, 2, 3)))


def make_update(
    denoiser: preconditioning.EDMDenoiser,
    recipe: Recipe,
    devices: Sequence[Any] | None = None,
    parallel: Literal["pmap", "shard_map"] | None = None,
) -> Callable[[TrainState, Images, int], TrainState]:
    """Make a data-parallel update over devices.

    On a CPU, calls `memory.keep_freed`, and `memory.reserve_gaps` after the first call with each
    count; both hold for the whole process.

    Args:
      denoiser, recipe: the preconditioned network, and the step.
      devices: default: all devices of all processes.
      parallel: as in `program`.

    Returns:
      A function update(state, images, count) -> state that runs `count` steps in one call: a scan
      if count > 1, which is an order of magnitude slower on a CPU. State and images come from
      `data_parallel.replicate`, and the state is donated. Each count is compiled once.

    Raises:
      ValueError: as in `program`.
    """
    on_cpu = (devices or jax.devices())[0].platform == "cpu"
    if on_cpu:
        memory.keep_freed()
    mapped, constants = program(denoiser, recipe, devices, parallel)
    compiled = set()

    def update(state, images, count):
        state = mapped(state, images, *constants, count)
        if on_cpu:
            # A CPU's virtual devices share few threads. With further steps in the queue, an
            # all-reduce can wait so long that XLA ends the process.
            state = jax.block_until_ready(state)
            if count not in compiled:
                memory.reserve_gaps()
        compiled.add(count)
        return state

    return update


def program(
    denoiser: preconditioning.EDMDenoiser,
    recipe: Recipe,
    devices: Sequence[Any] | None = None,
    parallel: Literal["pmap", "shard_map"] | None = None,
) -> tuple[Callable[..., TrainState], tuple[Any, ...]]:
    """Return the function that `make_update` runs, not yet compiled, and its constant arguments.

    Args:
      denoiser, recipe, devices: as in `make_update`.
      parallel: what maps the step over the devices: "pmap", or "shard_map" under `jit`, which
        gives the same result but needs a single process. Default: "shard_map" on the CPUs of one
        process, where its convolutions can use all cores, and "pmap" elsewhere.

    Returns:
      A function (state, images, *constants, count) -> state, and the constants. They are arguments
      of the program, so that runs with other seeds or schedules can reuse it.

    Raises:
      ValueError: the batch is not a multiple of the number of devices, or a device's part of it
        not a multiple of `recipe.microbatch`, or `parallel` is "shard_map" in one of several
        processes.
    """
    devices = list(devices or jax.devices())
    device_batch, rest = divmod(recipe.batch, len(devices))
    if rest:
        raise ValueError(
            f"batch must be a multiple of the {len(devices)} devices, got {recipe.batch}."
        )
    if device_batch % (recipe.microbatch or 1):
        raise ValueError(
            f"microbatch must divide the {device_batch} images of a device, got "
            f"{recipe.microbatch}."
        )
    alone = jax.process_count() == 1
    if parallel == "shard_map" and not alone:
        raise ValueError("parallel must be pmap in a run of several processes, got shard_map.")
    parallel = parallel or ("shard_map" if devices[0].platform == "cpu" and alone else "pmap")
    # What the constants hold is no part of the program.
    schedule = schedules.Schedule(dummy=recipe.schedule.dummy)
    same = dataclasses.replace(recipe, seed=0, schedule=schedule)
    seed = np.asarray(jax.random.key_data(jax.random.key(recipe.seed)))
    return _compiled(denoiser, same, tuple(devices), parallel), (seed, recipe.schedule.levels())


@functools.lru_cache(maxsize=8)  # tracing and loading it again would take seconds
def _compiled(denoiser, recipe, devices, parallel):
    step = functools.partial(_step, denoiser, recipe, recipe.batch // len(devices))

    def steps(state, images, seed, levels, count):
        def one(state, _=None):
            return step(state, images, seed, levels), None

        return one(state)[0] if count == 1 else jax.lax.scan(one, state, length=count)[0]

    return data_parallel.PROGRAMS[parallel](steps, devices)


def _step(denoiser, recipe, device_batch, state, images, seed, levels):
    """One step on one device of the axis "data"; `seed` holds the key data of the recipe's seed."""
    key = jax.random.wrap_key_data(seed)
    step_key = jax.random.fold_in(key, state.step + 1)  # steps count from 1
    index = jax.lax.axis_index("data") * device_batch + jnp.arange(device_batch)
    keys = jax.vmap(jax.random.fold_in, (None, 0))(step_key, index)
    value, grads = _gradients(denoiser, state.params, keys, images, recipe, levels)
    value, grads = jax.lax.pmean((value, grads), "data")
    # As in EDM, a gradient that is not finite does not end the run. `train.loop` checks the loss.
    grads = jax.tree.map(lambda g: jnp.nan_to_num(g, nan=0.0, posinf=1e5, neginf=-1e5), grads)
    updates, opt_state = recipe.optimizer().update(grads, state.opt_state)
    params = optax.apply_updates(state.params, updates)
    decay = recipe.ema_decay(state.step)
    first = state.step % recipe.window == 0
    new = {"loss": value, "grad_norm": optax.tree.norm(grads)}
    return TrainState(
        step=state.step + 1,
        params=params,
        ema=jax.tree.map(lambda ema, now: now + decay * (ema - now), state.ema, params),
        opt_state=opt_state,
        metrics={name: jnp.where(first, 0, state.metrics[name]) + new[name] for name in new},
    )


def _gradients(denoiser, params, keys, images, recipe, levels):
    """The loss and its gradients, averaged over the batch, `recipe.microbatch` images at a time."""
    gradients = jax.value_and_grad(loss, 1)
    size = recipe.microbatch or len(keys)
    if size == len(keys):
        return gradients(denoiser, params, keys, images, recipe, levels)

    def add(sums, keys):
        new = gradients(denoiser, params, keys, images, recipe, levels)
        return jax.tree.map(jnp.add, sums, new), None

    zeros = jax.tree.map(jnp.zeros_like, (jnp.float32(0), params))
    sums, _ = jax.lax.scan(add, zeros, keys.reshape(-1, size))
    return jax.tree.map(lambda leaf: leaf * (size / len(keys)), sums)


def _draw(key, images, recipe, levels):
    """Draw one training example: clean image, unit noise, sigma, labels and a dropout key."""
    keys = iter(jax.random.split(key, 6))
    shape = images.mean.shape
    sigma = levels.sample(next(keys))
    index = jax.random.randint(next(keys), (), 0, len(images.pixels))
    clean = data.to_float(jnp.asarray(images.pixels)[index]).reshape(shape)
    noise_key, dummy_key, augment_key, dropout_key = keys
    if recipe.schedule.dummy:
        dummy = images.mean + images.std * _normal(dummy_key, shape)
        clean = jnp.where(recipe.schedule.is_dummy(sigma), dummy, clean)
    labels = None
    if recipe.augment:
        clean, labels = augment.augment(augment_key, clean, recipe.augment)
    return clean, _normal(noise_key, shape), sigma, labels, dropout_key


def _normal(key, shape):
    return jax.random.normal(key, (math.prod(shape),)).reshape(shape)  # flat: quicker to compile
