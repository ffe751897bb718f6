"""How much memory this process may take, and a check before taking much of it."""

import contextlib
import os
import pathlib

__all__ = ["check", "free", "limit"]

_PAGE = os.sysconf("SC_PAGE_SIZE") if hasattr(os, "sysconf") else 4096


def limit() -> int:
    """Return the bytes that the machine, the control group and `ulimit -v` allow this process."""
    return min(_machine("MemTotal"), _group("memory.max"), _address_space()[0])


def free() -> int:
    """Return the bytes that this process may still take."""
    allowed, used = _address_space()
    group = _group("memory.max") - _group("memory.current", 0)
    return max(0, min(_machine("MemAvailable"), group, allowed - used))


def check(argument: str, needed: int, source: object) -> None:
    """Raise a ValueError that names `argument` and `source` if so many bytes are not free."""
    if needed > (available := free()):
        raise ValueError(
            f"{argument} must fit in memory, got {source}, which needs {needed / 1e9:.3g} GB of "
            f"{available / 1e9:.3g} GB that are free; use fewer or smaller images."
        )


def _machine(name):
    with contextlib.suppress(OSError):
        for line in pathlib.Path("/proc/meminfo").read_text().splitlines():
            if line.startswith(f"{name}:"):
                return int(line.split()[1]) * 1024
    return _PAGE * os.sysconf("SC_PHYS_PAGES") if hasattr(os, "sysconf") else 2**62


def _group(name, unknown=2**62):
    """A number of bytes from this process's control group (Linux, version 2)."""
    with contextlib.suppress(OSError, ValueError):
        own = pathlib.Path("/proc/self/cgroup").read_text().strip().rpartition("::/")[2]
        return int(pathlib.Path("/sys/fs/cgroup", own, name).read_text())
    return unknown


def _address_space():
    """The limit of the address space, and how much of it is in use."""
    with contextlib.suppress(ImportError, OSError, ValueError):
        import resource

        allowed = resource.getrlimit(resource.RLIMIT_AS)[0]
        if allowed != resource.RLIM_INFINITY:
            return allowed, int(pathlib.Path("/proc/self/statm").read_text().split()[0]) * _PAGE
    return 2**62, 0
