"""The command line of all experiments: typed flags in, one line and exit code 2 on bad input."""

import contextlib
import io
import os
import sys
from collections.abc import Callable, Mapping
from concurrent.futures import BrokenExecutor
from typing import TypeVar

import jax

from geomem.experiments.common import arguments

__all__ = ["main"]

Config = TypeVar("Config")


def main(
    config: type[Config],
    run: Callable[[Config], object],
    *,
    presets: Mapping[str, Config] | None = None,
    about: Mapping[str, str] | None = None,
    resumes: bool = False,
) -> None:
    """Parse `config` (a dataclass) from the command line and run it.

    With GEOMEM_DISTRIBUTED=1 in the environment this process is one of several that run the same
    command, and `jax.distributed.initialize` finds the others (on a TPU slice, under Slurm). The
    first one writes and prints.

    Args:
      config: the dataclass whose fields are the flags; its docstring is the help's description.
      run: called with the parsed configuration.
      presets: configurations by name, if the first argument names one.
      about: one sentence about each preset.
      resumes: whether the same command continues an interrupted run.

    Exits with code 2 and one line on stderr if the configuration, the data or a file is unusable
    or memory is short, and with 130 on Ctrl-C.
    """
    module = sys.modules["__main__"].__spec__
    prog = f"python -m {module.name.removesuffix('.__main__')}" if module else sys.argv[0]
    try:
        parsed, _ = arguments.parse(config, sys.argv[1:], prog, presets=presets, about=about)
        with _joined():
            run(parsed)
    except (ValueError, OSError) as error:
        sys.exit(_fail(error))
    except (MemoryError, BrokenExecutor, jax.errors.JaxRuntimeError) as error:
        # The device's memory, or a process that the system ended, usually for its memory.
        sys.exit(_fail(f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"))
    except KeyboardInterrupt:
        sys.exit(130)


@contextlib.contextmanager
def _joined():
    """Together with the other processes of the run, if it has several; all but one are silent."""
    if os.environ.get("GEOMEM_DISTRIBUTED", "0") == "0":
        yield
        return
    try:
        jax.distributed.initialize()
    except ValueError as error:
        raise ValueError(f"GEOMEM_DISTRIBUTED: set, but found no other process ({error})") from None
    silence = contextlib.redirect_stdout(io.StringIO())
    with silence if jax.process_index() else contextlib.nullcontext():
        yield


def _fail(error: object) -> int:
    print(f"error: {error}", file=sys.stderr)
    return 2
