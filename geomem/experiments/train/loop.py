"""Train from the start or the newest checkpoint until the end or a signal.

    geomem train digits --out runs/digits
    geomem train edm_small --gap-from runs/zone/zone.json --out runs/gap

The same command on the same folder resumes the run; on a CPU the result is the same bit for bit.
"""

import contextlib
import math
import pathlib
import signal
import statistics
import threading
import time
from typing import NamedTuple, Self

import jax
import numpy as np
from jax.experimental import multihost_utils
from tqdm import tqdm

from geomem import data, memory, paths
from geomem.data.datasets import warn
from geomem.diffusion import (
    checkpoints,
    data_parallel,
    grids,
    preconditioning,
    sampler,
    training_step,
)
from geomem.experiments.common import image_flags, output, results
from geomem.experiments.train import configuration, run_folder
from geomem.experiments.train.configuration import Config
from geomem.experiments.train.metrics_log import MetricsLog
from geomem.metrics import watch


class Result(NamedTuple):
    """The outcome of `run`."""

    folder: pathlib.Path
    step: int  # completed steps, over all sessions
    finished: bool  # False after SIGTERM
    copying: bool  # whether it ended early, because copying had started
    images_per_second: float | None  # median over windows of log_every steps after the first


class _Session(NamedTuple):
    """The parts of a run that stay the same during the loop."""

    config: Config
    denoiser: preconditioning.EDMDenoiser
    recipe: training_step.Recipe
    image_shape: tuple[int, int, int]
    dataset: data.Dataset
    folder: pathlib.Path
    saved: checkpoints.Checkpoints

    @property
    def sampling_grid(self) -> np.ndarray:
        """The noise levels to sample with, which skip the gap."""
        return grids.skip_gaps(grids.edm_grid(18), self.recipe.schedule)


def run(config: Config) -> Result:
    """Train, or resume training, until `config.kimg`, SIGTERM or Ctrl-C.

    Raises:
      ValueError: invalid configuration or data, another run's folder, or a loss that is not finite
        (the checkpoint before it is kept).
      OSError: the folder cannot be written.
      KeyboardInterrupt: after Ctrl-C, once the state is saved; the message says how to resume. A
        second Ctrl-C does not wait.
    """
    if config.distributed and not jax.distributed.is_initialized():
        jax.distributed.initialize()
    config, phases = configuration.resolve(config), results.Phases()
    with phases("load"):
        dataset = image_flags.load(config)
        _check_values(config, dataset)
        facts = configuration.facts(config, dataset.train_split)
    denoiser, recipe = configuration.build(facts)
    update = training_step.make_update(denoiser, recipe, parallel=config.parallel)
    template = run_folder.state_template(facts)
    shape = tuple(facts["data"]["image_shape"])
    _check_memory(config, dataset.train_split, template)
    with _claimed(config, facts) as folder:
        with checkpoints.Checkpoints(folder, config.keep_checkpoints) as saved:
            with phases("start"):
                restored = saved.restore(template, argument="out")
                first, state = restored or (0, training_step.init(denoiser, recipe, shape))
            if first >= config.steps:
                _say(f"{folder} already has all {first} steps; a larger --kimg extends the run")
                return Result(folder, first, True, False, None)
            record = {"data": results.dataset_facts(dataset)}
            _write(folder, config, phases, record)
            _say(
                f"{len(dataset.train_split):,} images of {record['data']['name']}, steps "
                f"{first:,} to {config.steps:,}, {config.batch} images each"
            )
            images = training_step.load_images(dataset.train_split.pixels)
            session = _Session(config, denoiser, recipe, shape, dataset, folder, saved)
            with phases("train"), StopSignal() as stopping:
                last, copying, speed = _train(session, update, state, images, first, stopping)
        result = Result(folder, last, copying or last == config.steps, copying, speed)
        outcome = {name: getattr(result, name) for name in Result._fields if name != "folder"}
        _write(folder, config, phases, {**record, "result": outcome})
    if stopping.interrupted:
        raise KeyboardInterrupt(
            f"interrupted at step {last}; {folder} keeps checkpoint {last}; the same command "
            "resumes."
        )
    state = "finished" if result.finished else "stopped"
    _say(f"{state} at step {last}" + ", where copying started" * result.copying)
    for name in (f"checkpoints/{last}", "tensorboard"):  # the command lists the other files
        _say(f"wrote {folder / name}")
    return result


def _check_values(config, dataset):
    """Refuse vectors and too few held-out images; warn if the noise is for another scale."""
    if len(dataset.train_split.shape) != 4:
        raise ValueError(
            f"dataset must be images or latents [N, H, W, C], got {dataset.train_split.shape}."
        )
    if config.watch and len(dataset.test_split) < 2:
        raise ValueError(
            f"heldout must leave 2 or more images for watch, got {len(dataset.test_split)}."
        )
    deviation = dataset.noise_scale / 2
    measured = config.sigma_data == 0
    if not (dataset.is_images or measured or 0.5 < deviation / config.sigma_data < 2):
        mean = config.noise_mean + math.log(deviation / config.sigma_data)
        warn(
            f"the values' standard deviation is {deviation:.3g}, but --sigma-data is "
            f"{config.sigma_data:g}: pass --scale {config.sigma_data / deviation:.3g}, or "
            f"--sigma-data {deviation:.3g} --noise-mean {mean:.3g}"
        )


def _check_memory(config, split, template):
    """Raise a ValueError if memory cannot hold the images, the state, or a step on a CPU."""
    on_cpu = jax.default_backend() == "cpu"
    image_flags.check_memory(2 if on_cpu else 1, split)  # a CPU's device has a copy of its own
    state = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(template))
    memory.check("channels", state, config.channels)
    if on_cpu and not config.remat:
        memory.check("batch", _least_activations(config, split.shape), config.batch)


def _least_activations(config, shape):
    """A lower limit of what a step keeps: compiled steps take up to 2.6 times as many bytes."""
    positions = math.prod(shape[1:3]) // config.patch**2
    blocks = 2 * config.blocks + 1  # of the first level; four activations each, five times
    images = config.microbatch or config.batch
    return 4 * images * positions * config.channels * 5 * 4 * blocks


def _check_step(session, state, images):
    """Raise a ValueError if a step on a CPU might not fit, and the compiled one does not."""
    config = session.config
    least = _least_activations(config, session.dataset.train_split.shape)
    if jax.default_backend() != "cpu" or memory.free() > 4 * least:
        return
    parts = session.denoiser, session.recipe, None, config.parallel
    step, constants = training_step.program(*parts)
    compiled = step.lower(state, images, *constants, 1).compile()
    own = compiled.memory_analysis().temp_size_in_bytes  # of one device; all share the memory
    memory.check("batch", own * jax.local_device_count(), config.batch)


class StopSignal:
    """A context manager that records SIGTERM and Ctrl-C; call it after each step.

    Before the first call there is nothing to save, and a signal does what it did before. If a run
    has several processes, JAX's preemption service receives SIGTERM, and all processes stop at the
    same step.
    """

    def __enter__(self) -> Self:
        self._received = self._previous = None
        return self

    def __exit__(self, kind, error, traceback) -> None:
        for number, handler in (self._previous or {}).items():
            signal.signal(number, handler)

    def __call__(self, step: int) -> bool:
        """Return whether to save and stop after `step`."""
        if jax.process_count() > 1:
            return multihost_utils.reached_preemption_sync_point(step)
        if self._previous is None:
            self._previous = {}
            if threading.current_thread() is threading.main_thread():
                for number in (signal.SIGTERM, signal.SIGINT):
                    if signal.getsignal(number) != signal.SIG_IGN:
                        self._previous[number] = signal.signal(number, self._receive)
        return self._received is not None

    @property
    def interrupted(self) -> bool:
        """Whether the signal was Ctrl-C."""
        return self._received == signal.SIGINT

    def _receive(self, number, frame):
        if self._received is None:
            self._received = number
        elif number == signal.SIGINT and callable(handler := self._previous[number]):
            handler(number, frame)


def _train(session, update, state, images, step, stopping):
    """Run steps, log and save until the end or a signal.

    Returns:
      The last step, whether it ended because copying started, and images/s.
    """
    config, first_process = session.config, jax.process_index() == 0
    log = MetricsLog(session.folder, step) if first_process else None
    closing = contextlib.closing(log) if log else contextlib.nullcontext()
    state, images = data_parallel.replicate(state), data_parallel.replicate(images)
    _say("compiling the training step (up to a minute) ...")
    _check_step(session, state, images)
    usual = config.steps_per_dispatch or (1 if jax.default_backend() == "cpu" else 10)
    usual = math.gcd(usual, config.log_every)
    size = {"total": config.steps * config.batch, "initial": step * config.batch}
    look = {"unit": "image", "unit_scale": True, "mininterval": 1, "disable": not first_process}
    with closing, tqdm(**size, **look) as bar:
        stop = copying = False
        speeds, clock = [], (step, time.perf_counter())
        while step < config.steps and not stop:
            # After a resumption too, if the stop came before it.
            if _watch(session, log, state, step) and config.stop_when_copying:
                copying = True
                break
            # One step at a time where the usual number would cross the end of a window.
            count = usual if step % usual == 0 and step + usual <= config.steps else 1
            state = update(state, images, count)
            step += count
            stop = stopping(step)
            bar.update(count * config.batch)
            if step % config.log_every == 0:
                metrics, now = _metrics(session, state, step), time.perf_counter()
                speeds.append((step - clock[0]) * config.batch / (now - clock[1]))
                clock = step, now
                bar.set_postfix(loss=f"{metrics['loss']:.4g}")
                if log:
                    log.write(step, metrics, {"images_per_second": speeds[-1]})
            if step % config.checkpoint_every == 0 or step == config.steps or stop:
                _save(session, state, step, draw=first_process and not stop)
        if not (stop or copying):
            _watch(session, log, state, step)
    return step, copying, statistics.median(speeds[1:]) if speeds[1:] else None


def _metrics(session, state, step):
    """The means over the window so far; reading them waits for the device."""
    config = session.config
    count = (step - 1) % config.log_every + 1
    sums = jax.tree.map(lambda leaf: float(leaf.addressable_data(0)[0]), state.metrics)
    if not math.isfinite(sums["loss"]):
        raise ValueError(
            f"loss must be finite, got {sums['loss']} by step {step}; try a smaller --lr. "
            f"{session.folder} keeps the last good checkpoint."
        )
    return {
        "kimg": step * config.batch / 1000,
        "loss": sums["loss"] / count,
        "grad_norm": sums["grad_norm"] / count,
        "lr": float(session.recipe.learning_rate(step - 1)),
    }


def _save(session, state, step, draw):
    """Save a checkpoint and a grid of samples, unless the loss is not finite."""
    _metrics(session, state, step)
    host = data_parallel.unreplicate(state)
    session.saved.save(step, host)
    if draw and session.config.samples:
        seeds = range(session.config.samples)
        denoiser = session.denoiser.bind(host.ema)
        images = sampler.generate(denoiser, seeds, session.image_shape, session.sampling_grid)
        if session.dataset.is_images:
            path = session.folder / f"samples_{step:07d}.png"
            results.write_image_grid(path, sampler.to_uint8(images))
        else:
            with paths.open_whole(session.folder / f"samples_{step:07d}.npy") as file:
                np.save(file, images)


def _watch(session, log, state, step):
    """At a checkpoint, log what `watch` observes, once; return whether there are copies."""
    config = session.config
    regular = step and (step % config.checkpoint_every == 0 or step == config.steps)
    if not (config.watch and regular):
        return False
    if log and step not in log.values("watch/copying"):
        _observe(session, log, state, step)
    copying = bool(log and log.values("watch/copying")[step])
    if jax.process_count() > 1:  # only the first process knows
        copying = bool(multihost_utils.broadcast_one_to_all(np.int32(copying)))
    return copying


def _observe(session, log, state, step):
    config, dataset = session.config, session.dataset
    observation = watch.observe(
        session.denoiser.bind(data_parallel.unreplicate(state).ema),
        dataset.train,
        dataset.test,
        count=config.watch_samples,
        sigmas=session.sampling_grid,
    )
    _say(f"step {step:,}: {observation}")
    if observation.copying and not any(log.values("watch/copying").values()):
        before = max([*filter(step.__gt__, session.saved.steps())], default=None)
        older = "no checkpoint" if before is None else f"checkpoint {before}"
        _say(f"step {step:,}: copying has started; {older} was saved before")
    metrics = {"kimg": step * config.batch / 1000, **observation.metrics()}
    log.write(step, metrics | {"watch/copying": int(observation.copying)}, {})


@contextlib.contextmanager
def _claimed(config, facts):
    """The run folder, which the first process locks and creates or checks while others wait."""
    if jax.process_index() == 0:
        output.lock(config.out)
        resumed = run_folder.claim(paths.as_path(config.out), facts, configuration.MAY_CHANGE)
        if resumed and not config.resume:
            raise ValueError(f"out must not hold a run when resume is False, got {config.out}.")
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices("geomem run folder")
    try:
        yield paths.as_path(config.out)
    finally:
        output.release(config.out)


def _say(text):
    if jax.process_index() == 0:
        tqdm.write(text)


def _write(folder, config, phases, record):
    if jax.process_index() == 0:
        results.write_json(folder / "run.json", results.run_facts(config, phases, **record))
