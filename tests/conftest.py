"""Eight virtual CPU devices, set before JAX starts, so that parallel paths run in parallel."""

import contextlib
import gc
import importlib.metadata
import os
import signal
import tempfile

os.environ["XLA_FLAGS"] = (
    os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
)
# Compilation dominates the tests. These flags halve it; users' programs are optimized, as are the
# tests with GEOMEM_TESTS_AS_USERS=1 (.ci/run: the oldest and newest stacks, and the slow tests).
if not os.environ.get("GEOMEM_TESTS_AS_USERS"):
    os.environ["XLA_FLAGS"] += " --xla_backend_optimization_level=0"
    # Python 3.11's newest JAX has this flag. XLA ends the process for a flag that it lacks.
    if importlib.metadata.version("jaxlib").startswith(("0.7.", "0.8.", "0.9.", "0.10.")):
        os.environ["XLA_FLAGS"] += " --xla_cpu_use_fusion_emitters=false"

# NumPy's products on one core for each worker: its idle threads take the other worker's core.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

gc.set_threshold(50_000, 20, 20)  # as in the commands: tracing makes many objects

# Started in the background of a script, pytest ignores Ctrl-C, and so would its children.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# Test workers and the commands that they start share one cache of compiled programs.
_run = os.environ.get("PYTEST_XDIST_TESTRUNUID", str(os.getpid()))
os.environ.setdefault(
    "JAX_COMPILATION_CACHE_DIR", os.path.join(tempfile.gettempdir(), f"geomem-tests-{_run}")
)
# As in the commands: writing a small program takes 5 ms, and reading it 10 ms.
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.02")

import jax  # noqa: E402
import numpy as np  # noqa: E402
import pytest  # noqa: E402

from geomem import data  # noqa: E402

if not hasattr(jax, "enable_x64"):  # its name before JAX 0.8
    from jax.experimental import enable_x64

    jax.enable_x64 = enable_x64

collect_ignore = ["typing/public_api.py"]  # for pyright, not for pytest
_compiled = []
jax.monitoring.register_event_duration_secs_listener(
    lambda event, *_, **__: _compiled.append(event) if "backend_compile" in event else None
)


@pytest.fixture(scope="session")
def count_compilations():
    """Return a context manager that yields a list with one entry for each compilation."""

    @contextlib.contextmanager
    def counting():
        before, seen = len(_compiled), []
        yield seen
        seen.extend(_compiled[before:])

    return counting


@pytest.fixture(scope="session")
def cifar():
    """Return the bundled sample as training and held-out points, float32 [1000, 3072] each."""
    dataset = data.load()
    return dataset.train.reshape(1000, -1), dataset.test.reshape(1000, -1)


@pytest.fixture(scope="session")
def prepared_cifar10():
    """Return CIFAR-10, or skip the test if TFDS has not prepared it (TFDS_DATA_DIR)."""
    try:
        return data.load("cifar10")
    except ValueError as error:
        pytest.skip(str(error))


@pytest.fixture
def rng():
    return np.random.default_rng(0)
