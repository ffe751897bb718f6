"""Ctrl-C ends a command at once, with one line, whatever Python or XLA is doing.

Python raises KeyboardInterrupt wherever the main thread is: inside an import, or inside a callback
of the garbage collector, which swallows it. During a compilation it raises nothing until XLA
returns. So the handler ends the process instead, and a thread does so if the main thread is busy.
Nothing is lost, since all files are written as a whole. Imports only what starts in no time.
"""

import atexit
import contextlib
import os
import signal
import sys
import threading
from collections.abc import Callable

INTERRUPTED = 128 + signal.SIGINT  # exit codes, as of a process that the signal ends
STOPPED = 128 + signal.SIGTERM

_ending = threading.Lock()


class Stopped(Exception):
    """SIGTERM stopped a training run; the same command resumes it."""


def _last_words() -> str:
    return "interrupted; nothing was kept."


def install() -> None:
    """Let Ctrl-C end this process, unless it ignores Ctrl-C or has a handler of its own."""
    in_main_thread = threading.current_thread() is threading.main_thread()
    if not in_main_thread or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        return
    signal.signal(signal.SIGINT, end)
    # Python puts the default handler back before it frees its modules, which takes a while. By
    # then everything is written, and Ctrl-C must not turn the exit code into a failure.
    atexit.register(signal.signal, signal.SIGINT, signal.SIG_IGN)
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    threading.Thread(target=_watch, args=(reader,), daemon=True).start()


def on_interruption(last_words: Callable[[], str]) -> None:
    """Set the function that cleans up and returns what to print."""
    global _last_words
    _last_words = last_words


def end(*_: object) -> None:
    """Print what was kept and exit with code 130."""
    if not _ending.acquire(blocking=False):  # the other thread is at it
        return
    try:
        text = _last_words()
    except Exception as error:
        text = f"interrupted ({error})."
    with contextlib.suppress(OSError):  # not print, which the signal may have interrupted
        bars = getattr(getattr(sys.modules.get("tqdm"), "tqdm", None), "_instances", ())
        start = "\n" if os.isatty(2) or len(bars) else ""
        os.write(2, f"{start}{text}\n".encode(errors="backslashreplace"))
    # Not sys.exit, because ending the interpreter while an XLA program runs can crash.
    os._exit(INTERRUPTED)


def _watch(reader):
    while number := os.read(reader, 1):
        if number[0] == signal.SIGINT and signal.getsignal(signal.SIGINT) is end:
            end()
