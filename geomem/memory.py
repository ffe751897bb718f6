"""How much memory this process may take, a check before taking much of it, and other limits."""

import contextlib
import ctypes
import importlib.metadata
import importlib.util
import math
import os
import pathlib
import threading

__all__ = [
    "check",
    "free",
    "keep_freed",
    "keep_freed_without_accelerator",
    "limit",
    "reserve_gaps",
    "setting",
]

_PAGE = os.sysconf("SC_PAGE_SIZE") if hasattr(os, "sysconf") else 4096
_UNLIMITED = 2**62
_RESERVE = 2**28  # for compiled programs and small arrays
_TRIM_THRESHOLD, _MMAP_THRESHOLD, _MMAP_MAX, _ARENAS = -1, -3, -4, -8  # of <malloc.h>
_SMALLEST_GAP, _LARGEST_GAP = 2**14, 2**26
_MAPPED, _OTHER_HEAP = 2, 4  # of glibc's malloc.c
_reserved, _reserving = [], threading.Lock()  # addresses of `reserve_gaps`
_OWN_GROUPS = pathlib.Path("/proc/self/cgroup")
_GROUPS = pathlib.Path("/sys/fs/cgroup")
# Files of a control group with its limit and its use, version 2 and 1.
_GROUP_FILES = ("memory.max", "memory.current"), ("memory.limit_in_bytes", "memory.usage_in_bytes")


def limit() -> int:
    """Return the bytes that the machine, the control group and `ulimit` allow this process."""
    return min(_machine("MemTotal"), *(allowed for allowed, _ in [*_groups(), *_resources()]))


def free() -> int:
    """Return the bytes that this process may still take."""
    rest = (allowed - used for allowed, used in [*_groups(), *_resources()])
    return max(0, min(_machine("MemAvailable"), *rest))


def check(argument: str, needed: int, source: object) -> None:
    """Raise a ValueError that names `argument` and `source` if so many bytes are not free."""
    if needed + _RESERVE > free():
        with contextlib.suppress(AttributeError, OSError, TypeError):
            ctypes.CDLL(None).malloc_trim(0)  # return what `keep_freed` has kept
    if needed + _RESERVE > (available := free()):
        raise ValueError(
            f"{argument} must fit in memory, got {source}, which needs {needed / 1e9:.3g} GB of "
            f"{available / 1e9:.3g} GB that are free."
        )


def keep_freed() -> None:
    """From now on, keep the memory that this process frees, for its next use (Linux with glibc).

    Each run of a compiled program takes its temporary memory anew. Without this, glibc returns
    blocks of 32 MB and more to the system after each run, which clears them for the next one. Call
    it before JAX starts its threads: threads that already run keep their own heaps, which cannot
    hold blocks of 64 MB and more, so those still go back to the system.
    """
    with contextlib.suppress(AttributeError, OSError, TypeError):
        set_option = ctypes.CDLL(None).mallopt
        if not set_option(_MMAP_THRESHOLD, 2**30):  # old versions refuse it
            set_option(_MMAP_MAX, 0)
        set_option(_TRIM_THRESHOLD, 2**31 - 1)
        set_option(_ARENAS, 1)  # those of other threads grow to 64 MB only


def keep_freed_without_accelerator() -> None:
    """Call `keep_freed`, unless a plugin for a GPU or TPU is installed; this does not start JAX."""
    plugins = importlib.metadata.entry_points(group="jax_plugins")
    if not plugins and not importlib.util.find_spec("libtpu"):
        keep_freed()


class _Mallinfo(ctypes.Structure):
    _fields_ = tuple(  # of <malloc.h>
        (name, ctypes.c_size_t)
        for name in (
            *("arena", "ordblks", "smblks", "hblks", "hblkhd"),
            *("usmblks", "fsmblks", "uordblks", "fordblks", "keepcost"),
        )
    )


def reserve_gaps() -> int:
    """Return the heap's free pages to the system, and reserve their addresses (Linux with glibc).

    Compilation leaves tens of thousands of gaps in the heap, of all sizes, and glibc searches them
    each time that a matrix product takes memory to work in. The next call frees the gaps that the
    previous one reserved. In a thread with a heap of its own, nothing is reserved.

    Returns:
      The reserved bytes. They take almost no memory.
    """
    with _reserving, contextlib.suppress(AttributeError, OSError, TypeError):
        libc = ctypes.CDLL(None)
        libc.mallinfo2.restype = _Mallinfo
        libc.malloc.restype = libc.sbrk.restype = ctypes.c_void_p
        libc.malloc.argtypes, libc.free.argtypes = [ctypes.c_size_t], [ctypes.c_void_p]
        libc.sbrk.argtypes = [ctypes.c_ssize_t]
        while _reserved:
            libc.free(_reserved.pop())
        libc.malloc_trim(0)
        heap = libc.mallinfo2()
        top = libc.sbrk(0) - heap.keepcost  # above this address, the heap is free
        reserved, size = 0, _LARGEST_GAP
        while size >= _SMALLEST_GAP:
            block = libc.malloc(size)
            gap = block is not None and block < top and _in_main_heap(block)
            if gap and reserved + size <= heap.fordblks:
                _reserved.append(block)
                reserved += size
            else:
                libc.free(block)
                size = size * 3 // 4
        return reserved
    return 0


def _in_main_heap(block):
    """Whether glibc took a block from the heap that `sbrk` extends: two bits before the block."""
    size = ctypes.c_size_t.from_address(block - ctypes.sizeof(ctypes.c_size_t)).value
    return not size & (_MAPPED | _OTHER_HEAP)


def setting(name: str, default: float) -> float:
    """Return the positive number in an environment variable that raises a limit.

    Raises:
      ValueError: it is not a positive number.
    """
    text = os.environ.get(name, str(default))
    with contextlib.suppress(ValueError):
        if math.isfinite(value := float(text)) and value > 0:
            return value
    raise ValueError(f"{name} in the environment must be a positive number, got {text!r}.")


def _machine(name):
    with contextlib.suppress(OSError):
        for line in pathlib.Path("/proc/meminfo").read_text().splitlines():
            if line.startswith(f"{name}:"):
                return int(line.split()[1]) * 1024
    return _PAGE * os.sysconf("SC_PHYS_PAGES") if hasattr(os, "sysconf") else 2**62


def _groups():
    """The limits and the use of this process's control group and of those above it (Linux)."""
    found = [(_UNLIMITED, 0)]
    with contextlib.suppress(OSError):
        for line in _OWN_GROUPS.read_text().splitlines():
            _, kind, own = line.split(":", 2)
            if kind not in ("", "memory"):
                continue
            top = _GROUPS / kind
            for folder in (top / own[1:], *(top / own[1:]).parents):
                if folder.is_relative_to(top):  # in a container, the top is its own group
                    found += _group(folder)
    return found


def _group(folder):
    for allowed, used in _GROUP_FILES:
        with contextlib.suppress(OSError, ValueError):
            bytes_allowed = int((folder / allowed).read_text())
            # Files that the system keeps in memory make room when it is needed.
            lines = (folder / "memory.stat").read_text().splitlines()
            counts = {name: int(count) for name, count in map(str.split, lines)}
            cache = sum(
                counts.get(f"total_{kind}", counts.get(kind, 0))
                for kind in ("inactive_file", "active_file")
            )
            yield bytes_allowed, int((folder / used).read_text()) - cache


def _resources():
    """The limits of the address space and of the data segment, and how much of them is in use."""
    with contextlib.suppress(ImportError, OSError):
        import resource

        pages = pathlib.Path("/proc/self/statm").read_text().split()
        for name, column in (("RLIMIT_AS", 0), ("RLIMIT_DATA", 5)):
            allowed = resource.getrlimit(getattr(resource, name))[0]
            if allowed != resource.RLIM_INFINITY:
                yield allowed, int(pages[column]) * _PAGE
