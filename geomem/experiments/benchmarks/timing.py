"""Timers and memory meters that the benchmarks share."""

import contextlib
import ctypes
import pathlib
import statistics
import threading
import time
from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp

_STATUS = pathlib.Path("/proc/self/status")
_SIDE, _DIM = 4096, 3072  # of the product that sets the peak


def seconds(f: Callable[[], object]) -> float:
    """Return the time of one call of `f`, until its arrays are ready."""
    start = time.perf_counter()
    jax.block_until_ready(f())
    return time.perf_counter() - start


def median_seconds(f: Callable[[], object], repeats: int) -> float:
    """Return the median time of `repeats` calls of `f`, after one untimed call."""
    return statistics.median(_times(f, repeats))


def fastest_seconds(f: Callable[[], object], repeats: int) -> float:
    """Return the shortest time of `repeats` calls of `f`, after one untimed call."""
    return min(_times(f, repeats))


def product_peak(timer: Callable[[Callable, int], float], repeats: int) -> float:
    """Return the operations per second of a 4096 x 4096 x 3072 product in full float32 precision.

    `timer` is `median_seconds` or `fastest_seconds`.
    """
    a = jax.random.normal(jax.random.key(0), (_SIDE, _DIM))
    product = jax.jit(lambda a: jnp.inner(a, a, precision=jax.lax.Precision.HIGHEST))
    return 2 * _SIDE * _SIDE * _DIM / timer(lambda: product(a), repeats)


def peak_growth(f: Callable[[], object]) -> int | None:
    """Return by how many bytes resident memory peaks during `f()`; None if not on Linux."""
    try:
        # Freed memory that the process still holds would hide the growth.
        ctypes.CDLL(None).malloc_trim(0)
        pathlib.Path("/proc/self/clear_refs").write_text("5")  # resets the peak
        before = _memory("VmRSS")
        jax.block_until_ready(f())
        return _memory("VmHWM") - before
    except (AttributeError, OSError):
        return None


@contextlib.contextmanager
def peak_memory() -> Iterator[Callable[[], float]]:
    """Yield a function: the block's peak resident memory so far, without page cache, in MB.

    It returns 0 if not on Linux.
    """
    peak, stop = [0.0], threading.Event()

    def watch():
        while not stop.wait(0.01):
            peak[0] = max(peak[0], _memory("RssAnon") / 2**20)

    if _STATUS.exists():
        threading.Thread(target=watch, daemon=True).start()
    try:
        yield lambda: peak[0]
    finally:
        stop.set()


def _times(f, repeats):
    jax.block_until_ready(f())  # compiles
    return [seconds(f) for _ in range(repeats)]


def _memory(field):
    """The value of a field of this process's status, in bytes."""
    lines = _STATUS.read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))
