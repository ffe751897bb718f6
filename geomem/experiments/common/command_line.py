"""The command line of all commands: typed flags; one line and exit code 2 for invalid input."""

import contextlib
import dataclasses
import io
import os
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import BrokenExecutor
from typing import Any, NoReturn, TypeVar

from geomem import paths
from geomem.experiments.common import compilation, dataclass_flags

Config = TypeVar("Config")

_OVERWRITE = {"overwrite": "Write into --out even if it holds the results of another run."}
_prog: str | None = None


def main(
    config: type[Config],
    run: Callable[[Config], object],
    *,
    presets: Mapping[str, Config] | None = None,
    about: Mapping[str, str] | None = None,
    resumes: bool = False,
) -> None:
    """Parse `config` from the command line, run it, and list the files that it wrote.

    Exits with code 2 and one line on stderr if the configuration, the data or a file is invalid or
    memory runs out, and with code 130 on Ctrl-C.

    With GEOMEM_DISTRIBUTED=1 in the environment, this process is one of several that run the same
    command, and `jax.distributed.initialize` finds the others (on a TPU slice or under Slurm). Only
    the first process writes and prints.

    Args:
      config: the dataclass whose fields are the flags; its docstring is the help's description.
      run: called with the parsed configuration.
      presets, about: as in `dataclass_flags.parse`.
      resumes: whether the same command resumes an interrupted run. If so, `run` checks the output
        folder itself. Other commands never overwrite the results of another run.
    """
    parsed: Any = None
    try:
        names = [field.name for field in dataclasses.fields(config)]  # pyright: ignore
        switches = _OVERWRITE if "out" in names and not resumes else {}
        parsed, given = dataclass_flags.parse(
            config, sys.argv[1:], _program(), presets=presets, about=about, switches=switches
        )
        compilation.enable_cache()
        with _joined(), compilation.announced():
            if switches:
                parsed = _claim(parsed, given)
            run(parsed)
            for path in paths.written():
                print(f"wrote {path}")
    except KeyboardInterrupt as interruption:
        interrupted(parsed and getattr(parsed, "out", None), resumes, str(interruption))
    except (ValueError, OSError) as error:
        fail(_with_flags(str(error), config))
    except Exception as error:
        import jax  # not at the top, so that `geomem --help` starts fast

        # Out of memory on the device, or a process that the system killed, usually for its memory.
        if not isinstance(error, (MemoryError, BrokenExecutor, jax.errors.JaxRuntimeError)):
            raise
        fail(f"{type(error).__name__}: {str(error).partition(chr(10))[0]}")


def started_as(prog: str) -> None:
    """Tell `main` what the user typed, if that was not `python -m` and the module's name."""
    global _prog
    _prog = prog


def warn(text: str) -> None:
    """Print a warning to stderr."""
    print(f"warning: {text}", file=sys.stderr)


def fail(message: object) -> NoReturn:
    """Print one line to stderr and exit with code 2."""
    print("error:", str(message).replace("\n", " "), file=sys.stderr)
    sys.exit(2)


def interrupted(
    out: paths.AnyPath | None = None, resumes: bool = False, message: str = ""
) -> NoReturn:
    """Print `message`, or else what was kept and how to continue; exit with code 130."""
    files = paths.written()
    if resumes and out is not None and paths.as_path(out).exists():
        kept = f"{out} keeps what was finished; the same command resumes."
    elif files:
        kept = f"{len(files)} files were written, last {files[-1]}; the same command starts over."
    else:
        kept = "nothing was kept."
    print(f"\n{message or f'interrupted; {kept}'}", file=sys.stderr, flush=True)
    sys.stdout.flush()
    # Not sys.exit, because ending the interpreter while an XLA program runs can crash.
    os._exit(130)


def _program():
    module = sys.modules["__main__"].__spec__
    if _prog is not None or module is None:
        return _prog or sys.argv[0]
    return f"python -m {module.name.removesuffix('.__main__')}"


def _several_processes():
    return os.environ.get("GEOMEM_DISTRIBUTED", "0") != "0"


def _claim(config, given):
    import jax

    from geomem.experiments.common import results

    if _several_processes() and jax.process_index() > 0:
        return config
    claimed = results.claim(config, overwrite="overwrite" in given, number="out" not in given)
    if claimed.out != config.out:
        print(f"{config.out} holds the results of another run; writing to {claimed.out}")
    return claimed


@contextlib.contextmanager
def _joined() -> Iterator[None]:
    """Join the run's other processes, if there are any, and silence all but the first."""
    if not _several_processes():
        yield
        return
    import jax

    try:
        jax.distributed.initialize()
    except ValueError as error:
        message = f"GEOMEM_DISTRIBUTED is set, but no other process was found ({error})."
        raise ValueError(message) from None
    silence = contextlib.redirect_stdout(io.StringIO())
    with silence if jax.process_index() else contextlib.nullcontext():
        yield


def _with_flags(message, config):
    """The message with field names in its subject ("sigma_min must be ...") changed to flags."""
    subject, must, rest = message.partition(" must ")
    if must and (flag := re.fullmatch(r"\w+ \((--[\w-]+)\)", subject)):  # count (--num-train)
        return flag[1] + must + rest
    if not must or not re.fullmatch(r"\w+((, | and |, and | or )\w+)*", subject):
        return message
    for field in dataclasses.fields(config):
        subject = re.sub(rf"(?<![\w-]){field.name}\b", dataclass_flags.option(field.name), subject)
    return subject + must + rest
