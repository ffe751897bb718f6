"""The command line of all experiments: typed flags in, one line and exit code 2 on bad input."""

import contextlib
import io
import os
import sys
from collections.abc import Callable
from typing import TypeVar

__all__ = ["main"]

Config = TypeVar("Config")


def main(config: type[Config], run: Callable[[Config], object]) -> None:
    """Parse `config` (a dataclass) from the command line and run it.

    With GEOMEM_DISTRIBUTED set, this process is one of several that run the same command: 1 where
    `jax.distributed.initialize` finds the others by itself (a TPU slice, Slurm), or else
    "ADDRESS:PORT COUNT INDEX". The first process writes and prints.

    Args:
      config: the dataclass whose fields are the flags; its docstring is the help's description.
      run: called with the parsed configuration.

    Exits with code 2 and one line on stderr when the configuration, the data or a file is unusable,
    and with 130 on Ctrl-C.
    """
    import tyro

    module = sys.modules["__main__"].__spec__
    parsed = tyro.cli(
        config,
        prog=f"python -m {module.name}" if module else None,
        config=(tyro.conf.FlagConversionOff,),
    )
    try:
        with _joined(os.environ.get("GEOMEM_DISTRIBUTED")):
            run(parsed)
    except (ValueError, OSError) as error:
        sys.exit(_fail(error))
    except KeyboardInterrupt:
        sys.exit(130)


@contextlib.contextmanager
def _joined(distributed: str | None):
    """One process of the run; all but the first are silent."""
    if not distributed:
        yield
        return
    import jax

    try:
        address, count, index = distributed.split() if distributed != "1" else (None, 0, 0)
        count, index = int(count) or None, int(index) if address else None
    except ValueError:
        raise ValueError(
            f"GEOMEM_DISTRIBUTED: {distributed!r}, wanted 1 or 'ADDRESS:PORT COUNT INDEX'"
        ) from None
    jax.distributed.initialize(address, count, index)
    with contextlib.ExitStack() as stack:
        if jax.process_index() > 0:
            stack.enter_context(contextlib.redirect_stdout(io.StringIO()))
        yield


def _fail(error: Exception) -> int:
    print(f"error: {error}", file=sys.stderr)
    return 2
