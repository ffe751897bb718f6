"""How much memory a process may take."""

import os
import pathlib
import platform
import resource
import subprocess
import sys

import pytest

from geomem import memory

ROOT = pathlib.Path(memory.__file__).parents[1]


@pytest.mark.parametrize(
    ("line", "folder", "names"),
    [
        ("0::/a/b", "a", ("memory.max", "memory.current")),
        ("0::/a/b", "", ("memory.max", "memory.current")),
        ("4:memory:/a", "memory/a", ("memory.limit_in_bytes", "memory.usage_in_bytes")),
        ("4:memory:/of/the/host", "memory", ("memory.limit_in_bytes", "memory.usage_in_bytes")),
    ],
    ids=["above", "container", "version 1", "container, version 1"],
)
def test_control_groups_limit_memory_without_their_page_cache(
    line, folder, names, tmp_path, monkeypatch
):
    own, place = tmp_path / "own", tmp_path / "groups" / folder
    own.write_text(f"3:cpuset:/x\n{line}\n")
    place.mkdir(parents=True)
    for name, value in zip(names, ("200000000", "150000000"), strict=True):
        (place / name).write_text(value)
    (place / "memory.stat").write_text("anon 9\nactive_file 30000000\ninactive_file 20000000\n")
    monkeypatch.setattr(memory, "_OWN_GROUPS", own)
    monkeypatch.setattr(memory, "_GROUPS", tmp_path / "groups")
    assert memory.limit() == 200_000_000
    assert memory.free() == 100_000_000


@pytest.mark.parametrize("name", ["RLIMIT_AS", "RLIMIT_DATA"])
def test_ulimit_limits_memory(name):
    pytest.importorskip("resource")
    code = (
        f"import resource; resource.setrlimit(resource.{name}, (2**31, 2**31))\n"
        "from geomem import memory; print(memory.limit(), memory.free())"
    )
    process = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=True,
    )
    limit, free = map(int, process.stdout.split())
    assert limit == 2**31
    assert 2**30 < free < 2**31


@pytest.mark.parametrize("text", ["", "abc", "0", "-1", "nan", "inf"])
def test_rejects_bad_settings(text, monkeypatch):
    monkeypatch.setenv("GEOMEM_MAX_GB", text)
    with pytest.raises(ValueError, match="GEOMEM_MAX_GB in the environment must be a positive"):
        memory.setting("GEOMEM_MAX_GB", 4)


_REUSE = """
import ctypes, resource, sys
from geomem import memory

if len(sys.argv) > 1:
    memory.keep_freed()
libc = ctypes.CDLL(None)
libc.malloc.restype = ctypes.c_void_p
for _ in range(3):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    block = ctypes.c_void_p(libc.malloc(2**26))
    ctypes.memset(block, 1, 2**26)
    libc.free(block)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc has mallopt")
def test_freed_memory_is_kept_for_the_next_use():
    def faults(*arguments):
        command = [sys.executable, "-c", _REUSE, *arguments]
        return int(subprocess.check_output(command, text=True, cwd=ROOT))

    if (usual := faults()) < 100:
        pytest.skip("the system's pages are too large to count")
    assert faults("keep") < usual / 10


_GAPS = """
import concurrent.futures, ctypes, pathlib
from geomem import memory

def resident():
    return int(pathlib.Path("/proc/self/statm").read_text().split()[1]) * memory._PAGE

libc = ctypes.CDLL(None)
libc.mallinfo2
libc.malloc.restype, libc.free.argtypes = ctypes.c_void_p, [ctypes.c_void_p]
blocks = [libc.malloc(100_000) for _ in range(400)]
for block in blocks:
    ctypes.memset(block, 1, 100_000)
for block in blocks[::2]:
    libc.free(block)
before = resident()
print(memory.reserve_gaps(), before - resident(), libc.malloc(50_000) > max(blocks))
print(memory.reserve_gaps())
with concurrent.futures.ThreadPoolExecutor(1) as pool:  # has a heap of its own
    print(pool.submit(memory.reserve_gaps).result())
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc has mallinfo2")
@pytest.mark.skipif(memory._PAGE > 4096, reason="the gaps of the test are smaller than two pages")
@pytest.mark.parametrize("stack", [2**23, resource.RLIM_INFINITY])
def test_gaps_in_the_heap_are_returned_to_the_system_and_not_used(stack):
    _, largest = resource.getrlimit(resource.RLIMIT_STACK)
    if largest not in (stack, resource.RLIM_INFINITY):
        pytest.skip("the system limits the stack")

    def limit():  # an unlimited stack puts mapped blocks below the heap
        resource.setrlimit(resource.RLIMIT_STACK, (stack, largest))
        resource.setrlimit(resource.RLIMIT_AS, (2**32, 2**32))

    process = subprocess.run(
        [sys.executable, "-c", _GAPS],
        capture_output=True,
        text=True,
        cwd=ROOT,
        check=False,
        preexec_fn=limit,
    )
    if "mallinfo2" in process.stderr:
        pytest.skip("an old glibc")
    assert process.returncode == 0, process.stderr
    (reserved, returned, above), (again,), (other,) = map(str.split, process.stdout.splitlines())
    # 200 gaps of 100 kB, each filled to at least three quarters.
    assert 15e6 < int(reserved) < 25e6
    assert int(returned) > 15e6
    assert above == "True"
    assert 0.9 < int(again) / int(reserved) < 1.1  # the first reservation was freed
    assert int(other) < 1e6


@pytest.mark.parametrize("plugins", [[], ["xla_cuda13"]])
def test_freed_memory_is_kept_early_unless_there_is_an_accelerator(plugins, monkeypatch):
    calls = []
    monkeypatch.setattr(memory, "keep_freed", lambda: calls.append(None))
    monkeypatch.setattr(memory.importlib.metadata, "entry_points", lambda group: plugins)
    monkeypatch.setattr(memory.importlib.util, "find_spec", lambda name: None)
    memory.keep_freed_without_accelerator()
    assert len(calls) == (not plugins)
