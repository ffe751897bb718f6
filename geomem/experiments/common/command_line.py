"""The command line of all commands: typed flags; one line and exit code 2 for invalid input."""

import atexit
import contextlib
import dataclasses
import gc
import io
import os
import re
import signal
import sys
import threading
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import BrokenExecutor
from typing import Any, NoReturn, TypeVar

from geomem import memory, paths
from geomem.experiments.common import compilation, dataclass_flags, interruption

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
    excludes: Mapping[str, Collection[str]] | None = None,
    needs: Mapping[str, Sequence[str]] | None = None,
) -> None:
    """Parse `config` from the command line, run it, and list the files that it wrote.

    Exits with code 2 and one line on stderr if the configuration, the data or a file is invalid or
    memory runs out, with code 130 on Ctrl-C, and with code 143 if SIGTERM stopped a training run.
    Otherwise exits with the result's `exit_code`, if it has one: 1 if --fail-above was exceeded.

    With GEOMEM_DISTRIBUTED=1 in the environment, this process is one of several that run the same
    command, and `jax.distributed.initialize` finds the others (on a TPU slice or under Slurm). Only
    the first process writes and prints.

    Args:
      config: the dataclass whose fields are the flags; its docstring is the help's description.
      run: called with the parsed configuration.
      presets, about: as in `dataclass_flags.parse`.
      resumes: whether the same command resumes an interrupted run. If so, `run` checks the output
        folder itself. Other commands never overwrite the results of another run.
      excludes: for a flag, the other flags that would be ignored and must then be left out;
        --plot-only excludes all.
      needs: for a flag, the others without any of which it would be ignored.
    """
    parsed: Any = None
    prepare()
    interruption.on_interruption(lambda: _last_words(parsed, resumes))
    if isinstance(sys.stdout, io.TextIOWrapper):  # lines are not lost, whatever ends the process
        sys.stdout.reconfigure(line_buffering=True, errors="backslashreplace")
    try:
        names = [field.name for field in dataclasses.fields(config)]  # pyright: ignore
        switches = _OVERWRITE if "out" in names and not resumes else {}
        parsed, given = dataclass_flags.parse(
            config, sys.argv[1:], _program(), presets=presets, about=about, switches=switches
        )
        _check_together(given, {"plot_only": {*names, "overwrite"}} | (excludes or {}), needs or {})
        _check_buckets(parsed)
        compilation.enable_cache()
        with _joined(), compilation.announced():
            parsed = _claim(parsed, given, resumes)
            result = run(parsed)
            for path in paths.written():
                print(f"wrote {path}")
        if getattr(result, "finished", True) is False:
            sys.exit(interruption.STOPPED)
        if code := getattr(result, "exit_code", 0):
            sys.exit(code)
    except KeyboardInterrupt as interrupt:
        text = str(interrupt) or _last_words(parsed, resumes)
        interruption.on_interruption(lambda: text)
        interruption.end()
    except interruption.Stopped as stopped:
        fail(stopped, interruption.STOPPED)
    except BrokenPipeError:  # the reader of the output has ended, as in `geomem ... | head`
        os._exit(128 + signal.SIGPIPE)
    except OSError as error:
        fail(describe(error))
    except ValueError as error:
        fail(_with_flags(str(error), config))
    except Exception as error:
        import jax  # not at the top, so that `geomem --help` starts fast

        # Out of memory on the device, a process that the system killed, usually for its memory, or
        # a device that JAX_PLATFORMS names and this machine lacks.
        lacks_device = isinstance(error, RuntimeError) and "initialize backend" in str(error)
        known = MemoryError, BrokenExecutor, jax.errors.JaxRuntimeError
        if not isinstance(error, known) and not lacks_device:
            raise
        fail(f"{type(error).__name__}: {str(error).partition(chr(10))[0]}")


def prepare() -> None:
    """Prepare the process for a command, before the command's imports."""
    interruption.install()  # imports have callbacks that swallow Ctrl-C
    if sys.stdout is None:  # closed by the caller
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115
    # By default Python searches for garbage after some thousand new objects and once more at its
    # end, among the million objects of JAX and matplotlib: a fifth of the time of a short command.
    gc.set_threshold(50_000, 20, 20)
    atexit.register(gc.freeze)


def started_as(prog: str) -> None:
    """Tell `main` what the user typed, if that was not `python -m` and the module's name."""
    global _prog
    _prog = prog


def warn(text: str) -> None:
    """Print a warning to stderr."""
    print(f"warning: {text}", file=sys.stderr)


def fail(message: object, code: int = 2) -> NoReturn:
    """Print one line to stderr and exit with `code`."""
    if output := sys.modules.get("geomem.experiments.common.output"):
        output.discard()
    print("error:", " ".join(str(message).split()), file=sys.stderr)
    sys.exit(code)


def describe(error: OSError) -> str:
    """Return the file and what is wrong with it; stdout has no name."""
    place = error.filename
    try:
        print(end="" if place else "\n", flush=True)
    except OSError:
        place = place or "stdout"
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # Python flushes it once more at its end
    return f"{place}: {error.strerror or error}." if place else f"{error.strerror or error}."


def _last_words(config, resumes):
    """What was kept, and how to continue; removes unfinished files."""
    if output := sys.modules.get("geomem.experiments.common.output"):
        output.discard()
    out = getattr(config, "out", None)
    files = [path for path in paths.written() if path.exists()]
    if resumes and out is not None and paths.as_path(out).exists():
        return f"interrupted; {out} keeps what was finished; the same command resumes."
    if files:
        kept = f"{len(files)} files were written, last {files[-1]}"
        return f"interrupted; {kept}; the same command starts over."
    return "interrupted; nothing was kept."


def _check_together(given, excludes, needs):
    """Raise a ValueError if a flag would be ignored."""
    option = dataclass_flags.option
    for flag, others in excludes.items():
        if flag in given and (both := sorted(given.intersection(others) - {flag})):
            raise ValueError(f"{option(both[0])} must be left out with {option(flag)}.")
    for flag, others in needs.items():
        if flag in given and not given.intersection(others):
            either = " or ".join(map(option, others))
            raise ValueError(f"{option(flag)} must be left out without {either}.")


def _program():
    module = sys.modules["__main__"].__spec__
    if _prog is not None or module is None:
        return _prog or sys.argv[0]
    return f"python -m {module.name.removesuffix('.__main__')}"


def _several_processes():
    return os.environ.get("GEOMEM_DISTRIBUTED", "0") != "0"


def _claim(config, given, resumes):
    import jax

    from geomem.experiments.common import results

    if _several_processes() and jax.process_index() > 0:
        return config
    results.check_outside(config)
    if resumes:
        results.check_command(config)
        return config
    claimed = results.claim(config, overwrite="overwrite" in given, number="out" not in given)
    if getattr(claimed, "out", None) != getattr(config, "out", None):
        print(f"{config.out} holds the results of another run; writing to {claimed.out}")
    return claimed


def _check_buckets(config):
    """Raise a ValueError if a bucket in a flag does not answer in GEOMEM_BUCKET_SECONDS (30)."""
    seconds = memory.setting("GEOMEM_BUCKET_SECONDS", 30)
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        for text in value if isinstance(value, tuple) else (value,):
            if not isinstance(text, str) or "://" not in text:
                continue
            path, errors = paths.as_path(text), []

            def ask(path=path, errors=errors):
                try:
                    path.exists()
                except Exception as error:  # a bucket's client has errors of its own
                    errors.append(str(error).partition("\n")[0][:200] or type(error).__name__)

            thread = threading.Thread(target=ask, daemon=True)
            thread.start()
            thread.join(seconds)
            if thread.is_alive():
                errors.append(f"no answer in {seconds:g} seconds")
            if errors:
                raise ValueError(f"{field.name} must be reachable, got {text} ({errors[0]}).")


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
