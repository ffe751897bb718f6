"""Train several arms with several seeds, and judge each along its training.

An arm is a training noise distribution. All arms share the data, the network and, seed by seed, the
initial parameters and the latents of their samples. Runs that a folder holds already are not
trained again, and checkpoints that were judged already are not judged again.
"""

from __future__ import annotations

import collections
import concurrent.futures
import contextlib
import csv
import dataclasses
import io
import json
import multiprocessing
import os
import pathlib
import tempfile
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from tqdm.auto import tqdm

from geomem import data, paths
from geomem.diffusion import checkpoints, sample, schedules
from geomem.experiments import record, train, train_config
from geomem.metrics import frechet, inception, inception_weights, memorization

__all__ = [
    "Arm",
    "Judging",
    "Task",
    "early_stopping",
    "judge",
    "measure",
    "measure_all",
    "read_samples",
    "summarize",
    "write_rows",
]

_ONE_THREAD = "--xla_cpu_multi_thread_eigen=false"  # 8% faster on one core


class Arm(NamedTuple):
    """A training noise distribution under a name.

    Attributes:
      name: the arm's name in files and figures, without spaces.
      gap: the interval of sigma that is left out, thinned or filled with dummy images, or None.
      keep: what is left of the density inside.
      dummy: whether the interval keeps its noise levels, with dummy images.
      changes: fields of the training configuration that this arm has otherwise.
    """

    name: str
    gap: tuple[float, float] | None = None
    keep: float = 0.0
    dummy: bool = False
    changes: tuple[tuple[str, Any], ...] = ()

    def configure(self, config: train_config.Config, seed: int, out: pathlib.Path):
        """The training run of this arm and seed."""
        schedule = "dummy" if self.dummy else None
        changes = {"gap": self.gap, "keep": self.keep, "schedule": schedule, "seed": seed}
        out = str(out / f"{self.name}-{seed}")
        return dataclasses.replace(config, out=out, **changes, **dict(self.changes))


@dataclasses.dataclass(frozen=True)
class Judging:
    """How checkpoints are judged.

    Attributes:
      samples: images sampled from each checkpoint, the seeds 0, 1, ...
      steps: levels of the sampling grid, one entry for each grid; the first is used along the
        training, the others on the last checkpoint only.
      method: the sampler.
      inception: weights of the FID network; None takes pixels as features.
    """

    samples: int = 512
    steps: tuple[int, ...] = (18,)
    method: str = "heun"
    inception: str | None = None


class Task(NamedTuple):
    """One training run to carry out and to judge."""

    arm: Arm
    config: train_config.Config
    judging: Judging


def measure_all(tasks: Sequence[Task], jobs: int | None = None) -> list[dict[str, Any]]:
    """`measure` of all tasks, on a CPU one process to a core.

    Small networks leave most of a second core idle, so two runs side by side are nearly twice as
    fast as one after the other. On accelerators tasks run in this process, one after the other.

    Args:
      tasks: what to train and judge.
      jobs: processes; default the number of cores on a CPU, else 1.

    Returns:
      The rows of all tasks, in the order of the tasks.
    """
    if jobs is None:
        jobs = os.cpu_count() if jax.default_backend() == "cpu" else 1
    jobs = min(jobs, len(tasks))
    with tqdm(total=len(tasks), unit="run", desc="train and judge") as bar:
        if jobs <= 1:
            rows = []
            for task in tasks:
                rows += measure(task)
                bar.update()
            return rows
        context = multiprocessing.get_context("spawn")
        numbers = context.Queue()
        for job in range(jobs):
            numbers.put(job)
        with (
            tempfile.TemporaryDirectory() as compiled,
            concurrent.futures.ProcessPoolExecutor(
                jobs, context, _start, (numbers, jobs, compiled)
            ) as pool,
        ):
            futures = [pool.submit(_quietly, task) for task in tasks]
            try:
                for done in concurrent.futures.as_completed(futures):
                    done.result()
                    bar.update()
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise
    return [row for future in futures for row in future.result()]


def measure(task: Task) -> list[dict[str, Any]]:
    """Train (or go on training) one run and judge its checkpoints.

    Returns:
      One row for each checkpoint and grid: arm, seed, gap and mass, kimg, and what `judge` finds.
      They are also kept in the run folder's judged.jsonl; the samples of the last checkpoint are in
      samples-STEPS.npz there.

    Raises:
      ValueError: an unusable configuration, or a run that SIGTERM ended early.
    """
    config = task.config
    if not train.run(config).finished:
        raise ValueError(f"run: {config.out} was stopped, wanted to its end (run again to go on)")
    dataset = data.load(config.dataset, heldout=config.heldout, resize=config.resize).subset(
        classes=config.classes, count=config.num_train, seed=config.subset_seed
    )
    folder = paths.as_path(config.out)
    features = frechet.PIXELS
    if task.judging.inception is not None:
        features = inception.features(inception_weights.load(task.judging.inception))
    reference = frechet.describe(dataset.test, f"{dataset.name} held out", features)
    with checkpoints.Checkpoints(folder, read_only=True) as saved:
        steps = saved.steps()
    judged = _Judged(folder / "judged.jsonl", task.judging)
    rows = []
    for step in steps:
        bound = None
        for grid in task.judging.steps if step == steps[-1] else task.judging.steps[:1]:
            found = judged.get(step, grid)
            if found is None:
                bound = bound or _bind(folder, step)
                images = _generate(*bound, task.judging, grid)
                found, report = judge(images, dataset, reference, features)
                if step == steps[-1]:
                    _save_samples(folder / f"samples-{grid}.npz", images, report)
                judged.put(step, grid, found)
            base = train_config.base_schedule(config)
            low, high = task.arm.gap or (None, None)
            about = {
                "arm": task.arm.name,
                "seed": config.seed,
                "gap_low": low,
                "gap_high": high,
                "gap_mass": base.mass(low, high) if low else 0.0,
                "keep": task.arm.keep,
                "kimg": step * config.batch / 1000,
                "sampling_steps": grid,
            }
            rows.append(about | found)
    return rows


def judge(
    images: np.ndarray, dataset: data.Dataset, reference: frechet.Reference, features=frechet.PIXELS
) -> tuple[dict[str, float], memorization.Report]:
    """Memorization, left-over noise and quality of samples [Q, H, W, C], as one flat row."""
    report = memorization.report(images, dataset.train, dataset.test)
    row = {
        "samples": len(images),
        "memorized": report.memorized.rate,
        "memorized_low": report.memorized.low,
        "memorized_high": report.memorized.high,
        "memorized_heldout": report.memorized_heldout.rate,
        "residual_noise": report.noise_mean,
        "without_noise": report.without_noise.rate,
        "without_noise_low": report.without_noise.low,
        "without_noise_high": report.without_noise.high,
        "without_noise_heldout": report.without_noise_heldout.rate,
        "adaptive": report.adaptive.rate,
        "adaptive_heldout": report.adaptive_heldout.rate,
        "frechet": frechet.compare(images, reference, features).value,
        "features": features.name,
    }
    return row, report


def summarize(rows: Iterable[dict[str, Any]], *keys: str) -> list[dict[str, Any]]:
    """Mean and standard error over the seeds of the columns `keys`, for each arm, kimg and grid.

    Returns:
      Rows in the order of their first appearance, with seeds (a count), KEY and KEY_error, which is
      None for a single seed.
    """
    groups = collections.defaultdict(list)
    for row in rows:
        groups[row["arm"], row["kimg"], row["sampling_steps"]].append(row)
    summary = []
    for (arm, kimg, grid), members in groups.items():
        line = {"arm": arm, "kimg": kimg, "sampling_steps": grid, "seeds": len(members)}
        for key in keys:
            values = np.array([member[key] for member in members], float)
            error = values.std(ddof=1) / np.sqrt(len(values)) if len(values) > 1 else None
            line |= {key: float(values.mean()), f"{key}_error": error}
        summary.append(line)
    return summary


def write_rows(path: paths.AnyPath, rows: Sequence[dict[str, Any]]) -> None:
    """Write rows of the same keys as CSV."""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]))
    writer.writeheader()
    writer.writerows(rows)
    paths.as_path(path).write_text(text.getvalue())


def read_samples(runs: pathlib.Path, arm: str, seed: int, grid: int) -> dict[str, np.ndarray]:
    """What `measure` kept of the last checkpoint's samples.

    Returns:
      images [Q, H, W, C], distance and index [Q, 2] of the two nearest training images, memorized
      and memorized_without_noise [Q].
    """
    with np.load(runs / f"{arm}-{seed}" / f"samples-{grid}.npz") as archive:
        return dict(archive)


def early_stopping(
    rows: Sequence[dict[str, Any]], arm: str, baseline: str
) -> dict[str, float | None]:
    """An arm's end against the baseline stopped as early as its quality allows.

    For each seed the baseline's checkpoint of least memorization is taken among those of a Frechet
    distance no larger than the arm's at its end.

    Returns:
      frechet, without_noise: of the arm at its end, means over the seeds; baseline_frechet,
      baseline_without_noise: of the baseline's checkpoints, None if a seed has none as good.
    """
    grid = rows[0]["sampling_steps"]
    pairs = []
    for seed in dict.fromkeys(row["seed"] for row in rows):
        mine, other = (
            [r for r in rows if (r["arm"], r["seed"], r["sampling_steps"]) == (name, seed, grid)]
            for name in (arm, baseline)
        )
        end = max(mine, key=lambda row: row["kimg"])
        as_good = [row for row in other if row["frechet"] <= end["frechet"]]
        pairs.append((end, min(as_good, key=lambda r: r["without_noise"], default=None)))
    ends, stops = zip(*pairs, strict=True)
    found: dict[str, float | None] = {}
    for prefix, chosen in (("", ends), ("baseline_", stops)):
        for key in ("frechet", "without_noise", "kimg"):
            missing = None in chosen
            found[prefix + key] = None if missing else float(np.mean([r[key] for r in chosen]))
    return found


class _Judged:
    """Rows that were found before, by checkpoint and by how they were judged."""

    def __init__(self, path: pathlib.Path, judging: Judging):
        self._path = path
        self._how = [judging.samples, judging.method, judging.inception]
        lines = path.read_text().splitlines() if path.exists() else []
        self._rows = {_name(line["at"]): line["row"] for line in map(json.loads, lines)}

    def get(self, step, grid):
        return self._rows.get(_name([step, grid, *self._how]))

    def put(self, step, grid, row):
        with self._path.open("a") as file:
            file.write(json.dumps({"at": [step, grid, *self._how], "row": row}) + "\n")


def _name(at):
    return json.dumps(at)


def _bind(folder, step):
    denoiser, params, shape = train.load(folder, step)
    return denoiser.bind(params), shape


def _generate(denoiser, shape, judging, grid):
    sigmas = schedules.edm_grid(grid)
    return sample.generate(denoiser, range(judging.samples), shape, sigmas, method=judging.method)


def _save_samples(path, images, report):
    found = report.found
    np.savez_compressed(
        path,
        images=images,
        distance=found.distance,
        index=found.index,
        memorized=found.memorized,
        memorized_without_noise=report.ratio_without_noise < 1 / 3,
    )


def _start(numbers, jobs, compiled):
    """Give this process its share of the cores and the common cache, before JAX starts."""
    job = numbers.get()
    if hasattr(os, "sched_setaffinity"):
        mine = sorted(os.sched_getaffinity(0))[job::jobs]
        if mine:
            os.sched_setaffinity(0, mine)
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {_ONE_THREAD}"
    jax.config.update("jax_compilation_cache_dir", compiled)


def _quietly(task):
    """`measure`, with what it prints in a log file beside the run folder."""
    folder = record.make_folder(task.config.out)
    with (
        folder.with_name(f"{folder.name}.log").open("a") as log,
        contextlib.redirect_stdout(log),
        contextlib.redirect_stderr(log),
    ):
        return measure(task)
