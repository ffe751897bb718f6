"""The command line of all experiments: typed flags in, one line and exit code 2 on bad input."""

import contextlib
import io
import os
import sys
from collections.abc import Callable
from concurrent.futures import BrokenExecutor
from typing import TypeVar

import jax

__all__ = ["main"]

Config = TypeVar("Config")


def main(config: type[Config], run: Callable[[Config], object]) -> None:
    """Parse `config` (a dataclass) from the command line and run it.

    With GEOMEM_DISTRIBUTED=1 in the environment this process is one of several that run the same
    command, and `jax.distributed.initialize` finds the others (on a TPU slice, under Slurm). The
    first one writes and prints.

    Args:
      config: the dataclass whose fields are the flags; its docstring is the help's description.
      run: called with the parsed configuration.

    Exits with code 2 and one line on stderr when the configuration, the data or a file is unusable
    or memory is short, and with 130 on Ctrl-C.
    """
    import tyro

    module = sys.modules["__main__"].__spec__
    parsed = tyro.cli(
        config,
        prog=f"python -m {module.name}" if module else None,
        config=(tyro.conf.FlagConversionOff,),
    )
    try:
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
