"""Train and evaluate several runs at the same time, on a CPU in one process per core."""

import concurrent.futures
import contextlib
import multiprocessing
import os
import pathlib
import signal
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
from tqdm import tqdm

from geomem import memory
from geomem.experiments.common import arms, output

Rows = list[dict[str, Any]]

_ONE_THREAD = "--xla_cpu_multi_thread_eigen=false"  # 8% faster on one core


def train_and_evaluate_all(
    tasks: Sequence[Any],
    jobs: int | None = None,
    evaluate: Callable[[Any], Rows] = arms.train_and_evaluate,
) -> Rows:
    """Return the rows of `evaluate` for all tasks, in the order of the tasks.

    A small network leaves most of a second core idle, so two runs at the same time take little more
    time than one. Their output goes to log files beside the run folders. On an accelerator, the
    tasks run in this process, one after the other.

    Args:
      tasks: the runs, an `arms.Task` each, or whatever `evaluate` takes; `task.config.out` is the
        run folder.
      jobs: number of processes; default: the number of cores on a CPU, else 1.
      evaluate: trains and evaluates one run; a function of a module.
    """
    if jobs is None:
        jobs = len(_cores()) if jax.default_backend() == "cpu" else 1
    jobs = min(jobs, len(tasks))
    with tqdm(total=len(tasks), unit="run", desc="train and evaluate") as bar:
        if jobs <= 1:
            rows = []
            for task in tasks:
                rows += evaluate(task)
                bar.update()
            return rows
        context = multiprocessing.get_context("spawn")
        numbers = context.Queue()
        for job in range(jobs):
            numbers.put(job)
        with tempfile.TemporaryDirectory() as scratch:
            start = numbers, jobs, jax.config.jax_compilation_cache_dir or scratch
            pool = concurrent.futures.ProcessPoolExecutor(jobs, context, _start_process, start)
            with pool:
                # Ctrl-C is for this process; the others end when it does.
                handler = signal.signal(signal.SIGINT, signal.SIG_IGN)
                try:
                    futures = [pool.submit(_run_logged, evaluate, task) for task in tasks]
                finally:
                    signal.signal(signal.SIGINT, handler)
                try:
                    for future in concurrent.futures.as_completed(futures):
                        future.result()
                        bar.update()
                except BaseException:
                    pool.shutdown(cancel_futures=True)
                    raise
    return [row for future in futures for row in future.result()]


def _cores():
    """The cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count()))


def _start_process(numbers, jobs, cache):
    """Give a new process its share of the cores and the compilation cache, before JAX starts."""
    memory.keep_freed_without_accelerator()
    job = numbers.get()
    cores = _cores()[job::jobs]
    if cores and hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, cores)
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {_ONE_THREAD}"
    jax.config.update("jax_compilation_cache_dir", cache)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent():
    """End when the parent ends; a run left behind would collide with the next start."""
    multiprocessing.parent_process().join()
    os.kill(os.getpid(), signal.SIGTERM)  # saves a checkpoint
    time.sleep(30)
    os._exit(1)


def _run_logged(evaluate, task):
    """The rows of a task, with its output in a log file beside the run folder."""
    folder = output.make_folder(task.config.out)
    mode = "a" if isinstance(folder, pathlib.Path) else "w"  # a bucket's objects cannot grow
    with (
        folder.with_name(f"{folder.name}.log").open(mode) as log,
        contextlib.redirect_stdout(log),
        contextlib.redirect_stderr(log),
    ):
        return evaluate(task)
