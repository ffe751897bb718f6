"""Start one JAX program as several processes on this machine."""

import os
import pathlib
import socket
import subprocess
import sys

import geomem

ROOT = pathlib.Path(geomem.__file__).parents[1]

# Each process runs this first: 4 CPU devices of its own, 8 in all.
_JOIN = """
import sys
import jax
port, process, *arguments = sys.argv[1:]
jax.config.update("jax_cpu_collectives_implementation", "gloo")
jax.distributed.initialize(f"localhost:{port}", 2, int(process))
assert jax.device_count() == 8 and jax.local_device_count() == 4
"""


def run_two(code, *arguments):
    """Run `code` in two processes, with the strings `arguments` and the number `process`."""
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        port = probe.getsockname()[1]
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", _JOIN + code, str(port), str(i), *map(str, arguments)],
            env={**os.environ, "XLA_FLAGS": "--xla_force_host_platform_device_count=4"},
            cwd=ROOT,
            stderr=subprocess.PIPE,
            text=True,
        )
        for i in range(2)
    ]
    for process in processes:
        error = process.communicate(timeout=200)[1]
        assert process.returncode == 0, error
