"""Compilation by XLA: a cache that lasts between runs, and a notice if it takes long."""

import contextlib
import os
import pathlib
import sys
import threading
from collections.abc import Callable, Iterator

_PATIENCE = 2.0  # seconds
_START = "/jax/core/compile/jaxpr_to_mlir_module_duration"  # recorded just before XLA compiles
END = "/jax/core/compile/backend_compile_duration"
_LEAST_SECONDS = "0.02"  # of compilation; JAX's default keeps only programs that take 1 second


def enable_cache() -> None:
    """Keep compiled programs in JAX_COMPILATION_CACHE_DIR, or else in the user's cache folder.

    Does nothing with GEOMEM_NO_COMPILATION_CACHE=1 or if the folder cannot be written. Also sets
    the environment variables, for the processes that a command starts.
    """
    if os.environ.get("GEOMEM_NO_COMPILATION_CACHE", "0") != "0":
        return
    default = pathlib.Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser()
    folder = os.environ.get("JAX_COMPILATION_CACHE_DIR") or str(default / "geomem" / "xla")
    if "://" not in folder:
        try:
            os.makedirs(folder, exist_ok=True)
        except OSError:
            return
        if not os.access(folder, os.W_OK):
            return
    import jax

    os.environ["JAX_COMPILATION_CACHE_DIR"] = folder
    least = os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", _LEAST_SECONDS)
    jax.config.update("jax_compilation_cache_dir", folder)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", float(least))


@contextlib.contextmanager
def listening(listen: Callable[[str, float], object]) -> Iterator[None]:
    """Call `listen` with the name and the seconds of each event that JAX times in the block."""
    import jax

    def forward(event: str, seconds: float, **_: str | int) -> None:
        if active:
            listen(event, seconds)

    active = True
    jax.monitoring.register_event_duration_secs_listener(forward)
    try:
        yield
    finally:
        active = False  # the oldest supported JAX cannot remove a listener


@contextlib.contextmanager
def announced() -> Iterator[None]:
    """Print one line to stderr for each compilation in the block that takes over 2 seconds."""
    timer: threading.Timer | None = None

    def listen(event, _):
        nonlocal timer
        if event in (_START, END) and timer is not None:
            timer.cancel()
        if event == _START:
            timer = threading.Timer(_PATIENCE, _say)
            timer.daemon = True
            timer.start()

    try:
        with listening(listen):
            yield
    finally:
        if timer is not None:
            timer.cancel()


def _say():
    print("compiling ... (once per shape; cached afterwards)", file=sys.stderr, flush=True)
