"""Real interruptions: SIGKILL at random moments, SIGTERM, and a run of two processes.

GEOMEM_KILLS sets the number of kills (5).
"""

import dataclasses
import os
import pathlib
import random
import signal
import socket
import subprocess
import sys
import time

import jax
import numpy as np
import pytest

import geomem
from geomem.diffusion import checkpoints, training_step
from geomem.experiments.train import configuration
from geomem.experiments.train.run_folder import load, run

pytestmark = pytest.mark.slow

STEPS = 300
FLAGS = (
    "digits --channels 8 --num-train 32 --batch 16 --log-every 2 --checkpoint-every 4 --samples 0 "
    f"--kimg {STEPS * 16 / 1000}"
).split()
ROOT = pathlib.Path(geomem.__file__).parents[1]


def _start(folder, cache):
    """The training command, on one device; compiled programs are cached, to have time for kills."""
    environment = {
        **os.environ,
        "XLA_FLAGS": "",
        "JAX_COMPILATION_CACHE_DIR": str(cache),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }
    command = [sys.executable, "-m", "geomem.experiments.train", *FLAGS, "--out", str(folder)]
    return subprocess.Popen(command, env=environment, cwd=ROOT, stderr=subprocess.PIPE, text=True)


def _finish(folder, cache):
    process = _start(folder, cache)
    error = process.communicate(timeout=300)[1]
    assert process.returncode == 0, error


def _state(folder):
    facts = checkpoints.read_facts(folder)
    denoiser, recipe = configuration.build(facts)
    template = jax.eval_shape(lambda: training_step.init(denoiser, recipe, (8, 8, 1)))
    with checkpoints.Checkpoints(folder, read_only=True) as saved:
        return saved.restore(template)


def _lines(folder):
    path = folder / "metrics.jsonl"
    return path.read_text().count("\n") if path.exists() else 0


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def reference(tmp_path_factory, cache):
    folder = tmp_path_factory.mktemp("uninterrupted")
    _finish(folder, cache)
    return folder


def _assert_same(folder, reference):
    (step, state), (_, expected) = _state(folder), _state(reference)
    assert step == STEPS
    jax.tree.map(np.testing.assert_array_equal, state, expected)
    assert (folder / "metrics.jsonl").read_bytes() == (reference / "metrics.jsonl").read_bytes()


def test_killed_runs_end_bitwise_as_the_uninterrupted_one(reference, cache, tmp_path):
    rng, kills = random.Random(0), int(os.environ.get("GEOMEM_KILLS", "5"))
    while_writing = 0
    for kill in range(kills):
        process = _start(tmp_path, cache)
        # Every other kill waits for a checkpoint that is being written; the rest for a random
        # moment, of the start (imports, restoring) or of the training.
        if kill % 2:
            goal = _lines(tmp_path) + rng.randrange(1, max(2, STEPS // 2 // kills))
            while process.poll() is None and _lines(tmp_path) < goal:
                time.sleep(0.001)
            while process.poll() is None and not any((tmp_path / "checkpoints").glob("*tmp*")):
                time.sleep(0.0002)
        else:
            time.sleep(rng.uniform(0, 8))
        process.send_signal(signal.SIGKILL)
        process.communicate()
        while_writing += any((tmp_path / "checkpoints").glob("*tmp*"))
    assert while_writing or kills < 5
    _finish(tmp_path, cache)
    _assert_same(tmp_path, reference)


def test_sigterm_saves_and_exits_cleanly(reference, cache, tmp_path):
    process = _start(tmp_path, cache)
    while process.poll() is None and _lines(tmp_path) < 5:
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=60) == 0, process.stderr.read()
    step = _state(tmp_path)[0]
    assert 10 <= step < STEPS
    _finish(tmp_path, cache)
    _assert_same(tmp_path, reference)


WORKER = """
import dataclasses, sys
import jax
port, process, folder, kimg = sys.argv[1:]
jax.config.update("jax_cpu_collectives_implementation", "gloo")
jax.distributed.initialize(f"localhost:{port}", 2, int(process))
assert jax.device_count() == 8 and jax.local_device_count() == 4
from geomem.experiments import train
config = dataclasses.replace(
    train.PRESETS["digits"], out=folder, kimg=float(kimg), channels=8, num_train=32, batch=16,
    lr=1e-3, lr_ramp_kimg=0, log_every=2, checkpoint_every=2, samples=4,
)
train.run(config)
"""


def test_two_processes_train_save_and_restore_like_one(tmp_path):
    def session(folder, kimg):
        with socket.socket() as probe:
            probe.bind(("localhost", 0))
            port = probe.getsockname()[1]
        environment = {**os.environ, "XLA_FLAGS": "--xla_force_host_platform_device_count=4"}
        processes = [
            subprocess.Popen(
                [sys.executable, "-c", WORKER, str(port), str(i), str(folder), str(kimg)],
                env=environment,
                cwd=ROOT,
                stderr=subprocess.PIPE,
                text=True,
            )
            for i in range(2)
        ]
        for process in processes:
            error = process.communicate(timeout=200)[1]
            assert process.returncode == 0, error

    session(tmp_path / "two", 0.064)
    session(tmp_path / "two", 0.096)  # restores what two processes saved
    assert sorted(path.name for path in (tmp_path / "two" / "checkpoints").iterdir())[-1] == "6"
    assert (tmp_path / "two" / "metrics.jsonl").read_text().count("\n") == 3

    config = configuration.from_facts(checkpoints.read_facts(tmp_path / "two"))
    run(dataclasses.replace(config, out=str(tmp_path / "one")))
    two, one = (load(tmp_path / name, average=False)[1] for name in ("two", "one"))
    scale = max(np.abs(leaf).max() for leaf in jax.tree.leaves(one))
    errors = jax.tree.map(lambda a, b: np.abs(a - b).max() / scale, two, one)
    assert max(jax.tree.leaves(errors)) <= 1e-6
