"""Train an EDM denoiser, with or without a gap in its noise levels; nothing interrupts it for good.

    python -m geomem.experiments.train digits --out runs/digits
    python -m geomem.experiments.train edm_small --gap-from runs/zone/zone.json --out runs/gap

The run folder holds config.json, run.json, metrics.jsonl, samples_STEP.png, TensorBoard events and
checkpoints. The same command on the same folder goes on where it stopped.
"""

from __future__ import annotations

import math
import pathlib
import statistics
import time
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.experimental import multihost_utils
from tqdm.auto import tqdm

from geomem import paths
from geomem.diffusion import checkpoints, grids, preconditioning, sampler, training_step
from geomem.experiments.common import results
from geomem.experiments.train import configuration
from geomem.experiments.train.configuration import PRESETS, Config
from geomem.experiments.train.metrics_log import Journal

__all__ = ["PRESETS", "Config", "Result", "load", "run"]


class Result(NamedTuple):
    """What a run did.

    Attributes:
      folder: the run folder.
      step: steps done, over all sessions.
      finished: whether that is all of them; False after SIGTERM.
      images_per_second: the median over this session's windows of log_every steps, without the
        first, which compiles; None if there are none.
    """

    folder: pathlib.Path
    step: int
    finished: bool
    images_per_second: float | None


class _Run(NamedTuple):
    config: Config
    denoiser: preconditioning.EDMDenoiser
    recipe: training_step.Recipe
    image_shape: tuple[int, int, int]
    folder: pathlib.Path
    saved: checkpoints.Checkpoints


def run(config: Config) -> Result:
    """Train, or go on training, until `config.kimg` or SIGTERM.

    Raises:
      ValueError: unusable configuration or data, another run's folder, or a loss that is not finite
        (the checkpoint before it is kept).
      OSError: the folder cannot be written.
    """
    if config.distributed and not jax.distributed.is_initialized():
        jax.distributed.initialize()
    config, phases = configuration.resolve(config), results.Phases()
    with phases("load"):
        dataset = configuration.load_data(config)
        facts = configuration.facts(config, dataset.train_split)
    denoiser, recipe = configuration.build(facts)
    update = training_step.make_update(denoiser, recipe)
    shape = tuple(facts["data"]["image_shape"])
    template = _template(denoiser, recipe, shape)  # refuses a network that does not fit the images
    folder = _claim(config, facts)
    about = {"environment": results.environment(), "data": results.dataset_facts(dataset)}
    with checkpoints.Checkpoints(folder, config.keep_checkpoints) as saved:
        this = _Run(config, denoiser, recipe, shape, folder, saved)
        with phases("start"):
            found = saved.restore(template)
            first, state = found or (0, training_step.init(denoiser, recipe, shape))
        if first >= config.steps:
            _say(f"{folder} has its {first} steps already; a larger --kimg extends it")
            return Result(folder, first, True, None)
        _write(folder, about)
        images_of = f"{len(dataset.train_split):,} images of {about['data']['name']}"
        _say(f"{images_of}, steps {first:,} to {config.steps:,}, {config.batch} images each")
        images = training_step.load_images(dataset.train_split.pixels)
        with phases("train"):
            last, speed = _train(this, update, state, images, first)
    result = Result(folder, last, last == config.steps, speed)
    outcome = {"step": last, "finished": result.finished, "images_per_second": speed}
    _write(folder, {**about, "seconds": phases.seconds, "result": outcome})
    _say(f"{'finished' if result.finished else 'stopped'} at step {last}; wrote {folder}")
    return result


def load(
    folder: paths.AnyPath, step: int | None = None, *, average: bool = True
) -> tuple[preconditioning.EDMDenoiser, preconditioning.Params, tuple[int, int, int]]:
    """A trained denoiser from its run folder alone; the data set is not needed.

    Args:
      folder: the run folder.
      step: of the checkpoint; default the newest.
      average: the moving average of the parameters, or else the parameters themselves.

    Returns:
      (denoiser, params, image shape (H, W, C)); `denoiser.bind(params)` is a function of
      (x, sigma).

    Raises:
      ValueError: not a run folder, or no such checkpoint.
    """
    facts = checkpoints.read_facts(folder)
    denoiser, recipe = configuration.build(facts)
    shape = tuple(facts["data"]["image_shape"])
    with checkpoints.Checkpoints(folder, read_only=True) as saved:
        found = saved.restore(_template(denoiser, recipe, shape), step)
    if found is None:
        raise ValueError(f"run: {folder} has no checkpoint yet")
    return denoiser, found[1].ema if average else found[1].params, shape


def sampling_grid(run: paths.AnyPath, sigmas: np.ndarray) -> np.ndarray:
    """A grid of noise levels [S + 1] that steps over the gap the run was trained with, if any.

    Raises:
      ValueError: not a run folder.
    """
    _, recipe = configuration.build(checkpoints.read_facts(run))
    return grids.skip_gaps(sigmas, recipe.schedule)


def _train(this, update, state, images, step):
    """The loop: dispatch, log, save, until the end or a signal. Returns (last step, images/s)."""
    config, chief = this.config, jax.process_index() == 0
    journal = Journal(this.folder, step) if chief else None
    state, images = training_step.replicate(state), training_step.replicate(images)
    size = {"total": config.steps * config.batch, "initial": step * config.batch}
    bar = tqdm(**size, unit="image", unit_scale=True, mininterval=1, disable=not chief)
    with checkpoints.StopSignal() as stopping, bar:
        stop, speeds, clock = False, [], (step, time.perf_counter())
        while step < config.steps and not stop:
            count = _dispatch(config, step)
            state = update(state, images, count)
            step += count
            stop = stopping(step)
            bar.update(count * config.batch)
            if step % config.log_every == 0:
                metrics, now = _metrics(this, state, step), time.perf_counter()
                speeds.append((step - clock[0]) * config.batch / (now - clock[1]))
                clock = step, now
                bar.set_postfix(loss=f"{metrics['loss']:.4g}")
                if chief:
                    journal.write(step, metrics, {"images_per_second": speeds[-1]})
            if step % config.checkpoint_every == 0 or step == config.steps or stop:
                _save(this, state, step, chief and not stop)
    if chief:
        journal.close()
    return step, statistics.median(speeds[1:]) if speeds[1:] else None


def _dispatch(config, step):
    """How many steps to launch at once: the usual number, or 1 where it would cross a boundary."""
    usual = config.steps_per_dispatch or (1 if jax.default_backend() == "cpu" else 10)
    usual = math.gcd(usual, config.log_every)
    return usual if step % usual == 0 and step + usual <= config.steps else 1


def _metrics(this, state, step):
    """The means over the window so far; reading them waits for the device."""
    count = (step - 1) % this.config.log_every + 1
    sums = jax.tree.map(lambda leaf: float(leaf.addressable_data(0)[0]), state.metrics)
    if not math.isfinite(sums["loss"]):
        raise ValueError(
            f"loss: {sums['loss']} by step {step}, wanted a finite one (a smaller --lr?); "
            f"{this.folder} keeps the last good checkpoint"
        )
    return {
        "kimg": step * this.config.batch / 1000,
        "loss": sums["loss"] / count,
        "grad_norm": sums["grad_norm"] / count,
        "lr": float(this.recipe.learning_rate(step - 1)),
    }


def _save(this, state, step, draw):
    """A checkpoint, unless the loss is not finite, and a grid of samples."""
    _metrics(this, state, step)
    host = training_step.unreplicate(state)
    this.saved.save(step, host)
    if draw and this.config.samples:
        seeds = range(this.config.samples)
        grid = grids.skip_gaps(grids.edm_grid(18), this.recipe.schedule)
        images = sampler.generate(this.denoiser.bind(host.ema), seeds, this.image_shape, grid)
        results.write_image_grid(this.folder / f"samples_{step:07d}.png", sampler.to_uint8(images))


def _claim(config, facts):
    """The run folder, made or checked by the first process while the others wait."""
    if jax.process_index() == 0:
        folder = results.make_folder(config.out)
        if checkpoints.claim_folder(folder, facts, configuration.MAY_CHANGE) and not config.resume:
            raise ValueError(f"out: {folder} holds a run, wanted --resume True or another folder")
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices("geomem run folder")
    return paths.as_path(config.out)


def _template(denoiser, recipe, shape) -> Any:
    return jax.eval_shape(lambda: training_step.init(denoiser, recipe, shape))


def _say(text):
    if jax.process_index() == 0:
        print(text)


def _write(folder, value):
    if jax.process_index() == 0:
        results.write_json(folder / "run.json", value)
