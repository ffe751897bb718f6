"""The command line of all experiments: typed flags in, one line and exit code 2 on bad input."""

import sys
from collections.abc import Callable
from typing import TypeVar

__all__ = ["main"]

Config = TypeVar("Config")


def main(config: type[Config], run: Callable[[Config], object]) -> None:
    """Parse `config` (a dataclass) from the command line and run it.

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
        run(parsed)
    except (ValueError, OSError) as error:
        sys.exit(_fail(error))
    except KeyboardInterrupt:
        sys.exit(130)


def _fail(error: Exception) -> int:
    print(f"error: {error}", file=sys.stderr)
    return 2
